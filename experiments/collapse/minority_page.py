"""What `experiments.minority_collapse` says: claims, tables and a picture."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import Claim, claims_table
from experiments.collapse import thresholds
from experiments.collapse.remedies import REMEDIES, Networks
from experiments.collapse.summary import claim, mean, row, said
from jaxtheory import plot
from jaxtheory.collapse import theory

CURVE_POINTS = 20  # of the layer-peeled model up to its threshold
_COLUMNS = (
    ("cos rows", "row_cosine"),
    ("free features", "predicted_cosine"),
    ("cos means", "mean_cosine"),
    ("length ratio", "length_ratio"),
    ("error rare", "minority_error"),
    ("error others", "majority_error"),
    ("n / threshold", "margin_of_collapse"),
)


def claims(config: Any, result: Any) -> list[Claim]:
    """Thresholds from both sides, the trend, and the remedies."""
    below = max(float(b.apart[0]) for b in result.brackets)
    above = min(float(b.apart[1]) for b in result.brackets)
    number = f"{len(result.brackets)} thresholds"
    gap = np.nanmax([b.gap for b in result.brackets])
    note = f"each proved optimal to {gap:.0e}, but those with weights"
    found = [
        Claim(
            f"{number}, 2 % on the collapsed side: minority rows apart, largest",
            *(below, -math.inf, 1e-6),
            note=note,
        ),
        Claim(
            f"{number}, 2 % on the other side: minority rows apart, smallest",
            *(above, 1e-3, math.inf),
        ),
    ]
    cosines = result.trend.row_cosine
    ratios = [config.minority_counts[0] / few for few in config.minority_counts]
    for i in range(1, len(ratios)):
        text = f"ratio {ratios[i]:.3g}: cosine of minority rows, less that at "
        text += f"{ratios[i - 1]:.3g} (trend, 2101.12699)"
        found.append(claim(text, cosines[i] - cosines[i - 1], 0.0, math.inf))
    worst = result.remedies["none"]
    for name in REMEDIES[1:]:
        remedied = result.remedies[name]
        for what, after, before in (
            ("cosine of minority rows", remedied.row_cosine, worst.row_cosine),
            ("error on rare digits", remedied.minority_error, worst.minority_error),
        ):
            text = f"ratio {ratios[-1]:g}, {name}: {what}, less that without (trend)"
            found.append(claim(text, (after - before)[0], -math.inf, 0.0))
    return found


def report(config: Any, result: Any) -> str:
    """Solvers at thresholds, networks by ratio and remedy, and claims with verdicts."""
    low, high = thresholds.SIDES
    title = f"rows of the minority apart, at {low} and {high} of the threshold"
    lines = [f"{title:<55}{'apart':>10}{'apart':>10}{'gap':>9}"]
    for name, apart, gap in result.brackets:
        gap = np.max(gap)
        lines.append(f"{name:<55}{apart[0]:>10.1e}{apart[1]:>10.4f}{gap:>9.0e}")
    named = {
        f"ratio {config.minority_counts[0] / few:.3g}": _at(result.trend, i)
        for i, few in enumerate(config.minority_counts)
    } | {name: _at(result.remedies[name], 0) for name in REMEDIES[1:]}
    lines += ["", row("networks", [label for label, _ in _COLUMNS], 22, 18)]
    for name, networks in named.items():
        cells = [said(getattr(networks, field)) for _, field in _COLUMNS]
        lines.append(row(name, cells, 22, 18).rstrip())
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def _at(networks, i):
    return Networks(*(values[i] for values in networks))


def draw(config: Any, result: Any) -> Any:
    """The layer-peeled model, networks by ratio, and remedies."""
    ratios = config.minority_counts[0] / np.array(config.minority_counts)
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
        _draw_peeled(axes[0])
        for field, label, colour in (
            ("row_cosine", "networks", plot.TRAIN),
            ("predicted_cosine", "free features", plot.THEORY),
        ):
            cells = getattr(result.trend, field)
            _draw_means(axes[1], ratios, cells, "o-", label, colour)
        axes[1].set(xscale="log", xlabel="imbalance ratio")
        axes[1].set_ylabel("cosine of minority rows")
        places = np.arange(len(REMEDIES))
        for field, label, colour in (
            ("row_cosine", "cosine of minority rows", plot.TRAIN),
            ("minority_error", "test error on rare digits", plot.TEST),
        ):
            cells = [getattr(result.remedies[name], field)[0] for name in REMEDIES]
            _draw_means(axes[2], places, cells, "o", label, colour)
        axes[2].set_xticks(places, [name.replace(" ", "\n") for name in REMEDIES])
        axes[2].set_title(f"remedies at ratio {ratios[-1]:g}")
        for ax in axes[1:]:
            ax.axhline(-1 / 9, color=plot.NULL, ls="--", label="simplex frame")
            ax.legend()
    return figure


def _draw_means(ax, places, cells, style, label, colour):
    """Means over seeds with their standard errors."""
    middle, error = zip(*map(mean, cells), strict=True)
    ax.errorbar(places, middle, error, fmt=style, color=colour, label=label)


def _draw_peeled(ax):
    """Cosine of minority rows in the layer-peeled model, up to its thresholds."""
    for i, case in enumerate(thresholds.PEELED):
        threshold, sizes = thresholds.peeled_threshold(case)
        ratios = np.append(np.geomspace(1, threshold, CURVE_POINTS), 2 * threshold)
        cosines = [theory.layer_peeled(r, **sizes).minority_cosine for r in ratios]
        label = f"{case[0]} + {case[1]} classes, $E_H$ = {case[2]}"
        ax.semilogx(ratios, cosines, color=f"C{i}", label=label)
        ax.axvline(threshold, color=f"C{i}", ls=":", lw=1)
    ax.set(xlabel="imbalance ratio (dotted: $R_0$)", title="layer-peeled model")
    ax.set_ylabel("cosine of minority rows")
    ax.set_ylim(top=1.55)  # room for the legend above the curves
    ax.legend(loc="upper left", fontsize=7, ncols=2)
