"""What `experiments.neural_collapse` says: claims, a table and a picture."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import Claim, claims_table
from experiments.collapse.curves import FALLING, STATISTICS, Curves
from experiments.collapse.summary import claim, draw_curves, row, said
from jaxtheory import plot

_BESIDE = {
    "margin": "margin",
    "predicted_margin": "margin at the optimum",
    "means": "distance of the means' Gram matrix",
    "classifier": "distance of the classifier's",
    "mean_scale": "length of means / predicted",
    "classifier_scale": "length of rows / predicted",
    "excess": "objective above the optimum, relative",
    "gap": "error of the optimum, at most",
}
_PANELS = (("nc1", "nc1_ratio", "cdnv"), ("nc2", "nc2_classifier", "nc3"), ("nc4",))


def least_fall(text: str, curves: Curves, since: np.ndarray) -> Claim:
    """That NC1 to NC3 all fall from a record to the end, by the one that falls least.

    In orders of magnitude.
    """
    falls = {}
    for name in FALLING:
        values = curves.train[name]
        start = [
            line[int(r)] if r == r else np.nan
            for line, r in zip(values, since, strict=True)
        ]
        falls[name] = np.log10(values[:, -1] / np.array(start))
    name = max(falls, key=lambda name: falls[name].mean())
    note = f"{STATISTICS[name]} falls least"
    return claim(text, falls[name], -math.inf, 0.0, note)


def claims(result: Any) -> list[Claim]:
    """What is published, loss by loss."""
    found = []
    for name, curves in result.curves.items():
        apart = np.log10(curves.test["nc1"][:, -1] / curves.train["nc1"][:, -1])
        found += [
            least_fall(
                f"{name}: all of NC1 to NC3 fall, log10 of end / start (2008.08186)",
                *(curves, np.zeros(len(curves.error))),
            ),
            least_fall(
                f"{name}: and still in the terminal phase (2008.08186)",
                *(curves, curves.terminal),
            ),
            claim(
                f"{name}: NC4, training images not of the nearest mean (2008.08186)",
                *(curves.train["nc4"][:, -1], -math.inf, 0.001),
            ),
            claim(
                f"{name}: test images collapse less, log10 of NC1 / NC1 (2202.08384)",
                *(apart, 0.0, math.inf),
            ),
        ]
    return found + _comparisons(result)


def _comparisons(result):
    """Losses against cross-entropy, seed by seed."""
    found, (first, *others) = [], result.curves.values()
    for name, curves in zip(list(result.curves)[1:], others, strict=True):
        apart = np.linalg.norm(curves.gram - first.gram, axis=(2, 3))
        text = f"{name}: class means go to the frame of cross-entropy, log10 of "
        text += "distance at the end / at the second record (2210.02192)"
        fall = np.log10(apart[:, -1] / apart[:, 1])
        found.append(claim(text, fall, -math.inf, 0.0))
        text = f"{name}: test error as of cross-entropy, difference (2210.02192)"
        gap, note = curves.test_error - first.test_error, "similar: within a point"
        found.append(claim(text, gap[:, -1], -0.01, 0.01, note))
    return found


def report(config: Any, result: Any) -> str:
    """Statistics at the end, beside what theory has, and claims with verdicts."""
    lines = ["at the end, training / test images; start: training images"]
    names, every = list(result.curves), result.curves.values()
    lines.append(row(f"{'':<13}{'start':>8}", names, 21, 38))
    first = result.curves[names[0]]
    for name, label in STATISTICS.items():
        cells = [
            f"{said(curves.train[name][:, -1])} / {said(curves.test[name][:, -1])}"
            for curves in every
        ]
        start = f"{label:<13}{first.train[name][:, 0].mean():>8.3g}"
        lines.append(row(start, cells, 21, 38))
    for label, cells in (
        ("NC1 around", [said(curves.across[:, -1]) for curves in every]),
        ("test error", [said(curves.test_error[:, -1]) for curves in every]),
        ("terminal at", [said(_steps(result, curves)) for curves in every]),
    ):
        lines.append(row(label, cells, 21, 38))
    lines += ["(NC1 around: test images around the means of training images)", ""]
    lines.append(row("beside the optimum of free features", names, 38, 19))
    for field, label in _BESIDE.items():
        cells = [said(getattr(optimum, field)) for optimum in result.optima.values()]
        lines.append(row(label, cells, 38, 19))
    return "\n".join([*lines, "", claims_table(claims(result))])


def _steps(result, curves):
    """The step at which the terminal phase has begun, by seed."""
    return np.array(
        [result.steps[int(r)] if r == r else np.nan for r in curves.terminal]
    )


def draw(config: Any, result: Any) -> Any:
    """Statistics along training, one column a loss, training and test images."""
    del config
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(
            *(3, len(result.curves)),
            figsize=(14, 8),
            layout="constrained",
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for column, (name, curves) in zip(axes.T, result.curves.items(), strict=True):
            begin = np.nanmean(_steps(result, curves))
            for ax, group in zip(column, _PANELS, strict=True):
                draw_curves(ax, result, curves, {n: STATISTICS[n] for n in group})
                ax.axvline(begin, color=plot.NULL, lw=0.8)
            column[0].set_title(name)
            column[0].set_yscale("log")
            column[1].set_ylim(bottom=0)
            column[2].set_yscale("symlog", linthresh=1e-3)
            column[2].set_ylim(bottom=0)
            column[2].set_xlabel("step (grey line: no training error since)")
        for ax in axes[:, 0]:
            ax.legend(fontsize=7)
    return figure
