"""Tables, claims and the figure of local elasticity."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import Claim, claims_table, mean_and_error
from experiments.elasticity.networks import KINDS
from jaxtheory import plot

# Correlations with the distance at width 4,096, of one seed.
REFERENCE = {"ReLU": -0.965, "linear": -0.453}


def _claim(text, values, low, high):
    mean, error = mean_and_error(values)
    return Claim(text, mean, low, high, error)


def claims(config: Any, result: Any) -> list[Claim]:
    """What is published, and what these do."""
    found, torus = [], result.torus
    for kind in KINDS:
        values, known = torus[kind].kernel, REFERENCE[kind]
        # The number it is held against is that of one seed.
        spread = 2 * float(np.std(values, ddof=1))
        text = f"torus, {kind}: similarity against distance on the curve, {known}"
        found.append(_claim(text, values, known - spread, known + spread))
    gap = torus["ReLU"].kernel - torus["linear"].kernel
    text = "torus: more so for ReLU, its correlation less that of linear (1910.06943)"
    found.append(_claim(text, gap, -2.0, 0.0))
    for pair, kinds in result.digits.items():
        name, relu = f"digits {pair[0]}, {pair[1]}", kinds["ReLU"].kernel
        gap = relu - kinds["linear"].kernel
        found += [
            _claim(f"{name}: index of ReLU above 1 (1910.06943)", relu, 1.0, np.inf),
            _claim(f"{name}: and above that of linear, by", gap, 0.0, np.inf),
        ]
    away = [
        np.max(np.abs(found.step / found.kernel - 1))
        for found in (
            *torus.values(),
            *(e for k in result.digits.values() for e in k.values()),
        )
    ]
    text = "the kernel tells what a step changes: largest relative difference"
    found.append(Claim(text, float(np.max(away)), 0.0, 0.01))
    return found + _path_claims(result)


def _path_claims(result):
    """Separation over the second half of the time."""
    found, half = [], len(result.times) // 2
    for (alpha, beta), (separation, predicted) in result.paths.items():
        growth = np.log(separation[:, -1] / separation[:, half])
        limits = (0.0, np.inf) if alpha > beta else (-np.inf, 0.0)
        what = "grows" if alpha > beta else "does not grow"
        text = (
            f"impact {alpha:g} on its own class, {beta:g} on others: separation {what}"
        )
        found.append(_claim(f"{text}, log of its factor (2110.05960)", growth, *limits))
        if alpha >= beta:
            # Means of finitely many features wander, by some 2 % of their distance.
            ratio = separation[:, -1] / predicted[:, -1]
            text = f"impact {alpha:g}, {beta:g}: separation at the end over prediction"
            found.append(_claim(text, ratio, 0.95, 1.05))
    return found


def report(config: Any, result: Any) -> str:
    """Correlations, indices, separations, and the claims."""
    columns = ("by kernel", "by steps", "squared error")
    head = f"{'':<22}" + "".join(f"{name:<20}" for name in columns)
    lines = ["correlation of similarity and distance on the torus", head]
    rows = {f"width {config.width}, {k}": e for k, e in result.torus.items()}
    lines += [_row(*row) for row in rows.items()]
    lines += ["", "same over different class", head]
    for pair, kinds in result.digits.items():
        lines += [_row(f"{pair[0]}, {pair[1]}: {k}", e) for k, e in kinds.items()]
    lines += ["", "impact: own, other    separation: start, half-way, end, predicted"]
    for (alpha, beta), (separation, predicted) in result.paths.items():
        half = separation.shape[1] // 2
        places = separation[:, [0, half, -1]].mean(0)
        numbers = ", ".join(f"{v:.4g}" for v in (*places, predicted[:, -1].mean()))
        lines.append(f"{f'{alpha:g}, {beta:g}':<22}{numbers}")
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def _row(name, found):
    cells = [mean_and_error(values) for values in found[:3]]
    text = "".join(f"{f'{mean:.4f} ± {error:.4f}':<20}" for mean, error in cells)
    return (f"{name:<22}" + text).rstrip()


def draw(config: Any, result: Any) -> Any:
    """Similarity against distance, indices, and separations."""
    colours = {"ReLU": plot.TRAIN, "linear": plot.TEST}
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
        on = np.ix_(*[np.arange(1, len(result.distance), 2)] * 2)
        for i, (kind, found) in enumerate(result.torus.items()):
            places = result.distance[on].ravel(), found.similarity[on].ravel()
            label = f"{kind}: {found.kernel.mean():.2f}"
            axes[0].plot(*places, ".", ms=3, color=colours[kind], label=label)
            pairs = np.arange(len(result.digits)) + (i - 0.5) / 10
            values = [
                mean_and_error(kinds[kind].kernel) for kinds in result.digits.values()
            ]
            axes[1].errorbar(
                pairs, *np.array(values).T, fmt="o", color=colours[kind], label=kind
            )
        axes[0].set(xlabel="distance on the curve", ylabel="relative similarity")
        names = [f"{a}, {b}" for a, b in result.digits]
        axes[1].set_xticks(range(len(names)), names)
        axes[1].axhline(1, color=plot.THEORY, ls="--", lw=1)
        axes[1].set(xlabel="digits", ylabel="same over different class")
        for i, ((alpha, beta), (separation, predicted)) in enumerate(
            result.paths.items()
        ):
            label = f"own {alpha:g}, other {beta:g}"
            axes[2].semilogy(result.times, separation.T, color=f"C{i}", alpha=0.4)
            axes[2].semilogy(
                result.times, predicted.mean(0), "--", color=f"C{i}", label=label
            )
        axes[2].set(xlabel="time", ylabel="separation (dashed: predicted)")
        for ax in axes:
            ax.legend()
    return figure
