"""What `experiments.multilabel_collapse` says: claims, a table and a picture."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import Claim, claims_table
from experiments.collapse.summary import claim, draw_curves, row, said
from experiments.collapse.tags import STATISTICS
from jaxtheory import plot


def claims(result: Any) -> list[Claim]:
    """Solver against closed form, and what is published of networks."""
    solved = result.solved
    found = [
        Claim(
            f"free features, {len(solved)} settings: margins as in closed form, error",
            *(max(s.margin_error for s in solved), -math.inf, 1e-6),
        ),
        Claim(
            "free features: means of several tags are scaled sums, residual",
            *(max(s.residual for s in solved), -math.inf, 1e-6),
        ),
        Claim(
            "free features: scales as in closed form, error",
            *(max(s.scale_error for s in solved), -math.inf, 1e-6),
        ),
    ]
    for name, label in STATISTICS.items():
        values = result.train[name]
        found.append(
            claim(
                f"networks: {label}, log10 of end / start (2310.15903)",
                np.log10(values[:, -1] / values[:, 0]),
                *(-math.inf, 0.0),
            )
        )
    ratios = result.scale[:, -1] / result.predicted_scale
    apart = np.log10(result.test["residual"][:, -1] / result.train["residual"][:, -1])
    note = "to a tenth"
    return [
        *found,
        *(
            claim(
                f"networks: {STATISTICS[name]}, at the end (2310.15903)",
                result.train[name][:, -1],
                *(-math.inf, 0.1, note),
            )
            for name in ("residual", "seen")
        ),
        claim("networks: scale of the sum over that of theory", ratios, 0.95, 1.05),
        claim(
            "networks: pairs of test images are sums less exactly, log10 of residuals",
            *(apart, 0.0, math.inf),
        ),
    ]


def report(config: Any, result: Any) -> str:
    """Solver, statistics, theory beside networks, and claims with verdicts."""
    lines = [f"{'free features':<40}{'margins':>26}{'scales':>18}{'errors':>18}"]
    for one in result.solved:
        margins, scales = (
            " ".join(f"{value:.5f}" for value in values)
            for values in (one.margins, one.scales[1:])
        )
        errors = f"{one.margin_error:.0e} {one.scale_error:.0e}"
        lines.append(f"{one.name:<40}{margins:>26}{scales:>18}{errors:>18}")
    lines += ["", row("networks", ["start", "end", "end, test images"], 40, 18)]
    curves = [
        (label, result.train[name], result.test[name])
        for name, label in STATISTICS.items()
    ]
    curves.append(("error", result.error, result.test_error))
    for label, train, test in curves:
        cells = [said(train[:, 0]), said(train[:, -1]), said(test[:, -1])]
        lines.append(row(label, cells, 40, 18))
    label = "two tags, not in the sum, with offset"
    lines.append(row(label, ["", said(result.uncentred)], 40, 18))
    lines += ["", row("beside free features", ["measured", "predicted"], 40, 18)]
    for label, measured, predicted in (
        ("margin, one tag", result.margins[:, 0], result.predicted_margins[:, 0]),
        ("margin, two tags", result.margins[:, 1], result.predicted_margins[:, 1]),
        ("scale of the sum", result.scale[:, -1], result.predicted_scale),
    ):
        lines.append(row(label, [said(measured), said(predicted)], 40, 18))
    return "\n".join([*lines, "", claims_table(claims(result))])


def draw(config: Any, result: Any) -> Any:
    """Variability, frames, and sums along training."""
    del config
    groups = (
        ("variability", ("nc1_single", "nc1_pair")),
        ("frames", ("nc2_single", "nc2_classifier", "nc3_single")),
        ("two tags against sums", ("angle_ratio", "residual", "seen")),
    )
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
        for ax, (title, names) in zip(axes, groups, strict=True):
            draw_curves(ax, result, result, {n: STATISTICS[n] for n in names})
            ax.set(yscale="log", xlabel="step", title=title)
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
            ax.legend(fontsize=7.5, ncols=2, **below)
    return figure
