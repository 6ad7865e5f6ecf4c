"""Tables, claims and the figure of the topology of training paths."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.claims import Claim, claims_table
from experiments.population.page import verdict
from experiments.topology.paths import METRICS, name
from jaxtheory import plot

_SUM = {"euclidean": "E_1", "loss": "E_1 (losses)"}
_DIMENSION = "PH dimension"


def report(config: Any, result: Any) -> str:
    """Who took part, every measure beside its nulls, its correlations, and claims."""
    ranking = result.ranking
    return "\n".join(
        [
            *_head(config, result),
            "",
            *_values(result),
            "",
            *_correlations(ranking),
            "",
            f"largest |tau| of these {len(ranking.correlations)} rows by chance, which "
            f"95 % of permutations stay below: {ranking.band:.3f}",
            "noise ceiling: tau between the gaps of two seeds "
            f"{ranking.ceiling.between_seeds:.3f}, of a seed with the mean of others "
            f"{ranking.ceiling.from_other_seeds:.3f}; of two seeds at one learning "
            f"rate {ranking.ceiling.fixed_rate:.3f}",
            "",
            claims_table(claims(result)),
        ]
    )


def _head(config, result):
    """The networks, their gaps, and the conditions of two measures."""
    num_cells, num_seeds = result.gap.shape
    distance = result.dimension - result.rows["sharpness dimension"].value
    saturated = ", ".join(f"{n} ({m})" for m, n in result.num_saturated.items())
    return [
        f"{config.task}: {num_cells} cells x {num_seeds} seeds = {result.gap.size} "
        f"networks of {result.dimension:,} parameters, {result.num_excluded} of them "
        f"left out (labels not fitted after {config.max_steps:,} steps, or diverged)",
        f"gap between test and training error {np.nanmin(result.gap):.3f} to "
        f"{np.nanmax(result.gap):.3f}, mean {np.nanmean(result.gap):.3f}",
        "positive magnitudes that saturate at the published scale sqrt(n) = "
        f"{config.num_train**0.5:.1f}: {saturated} of {result.gap.size}",
        f"d - sharpness dimension: {np.nanmin(distance):.0f} to "
        f"{np.nanmax(distance):.0f}, mean standard error "
        f"{np.nanmean(result.sharpness_error):.1f}",
    ]


def _values(result):
    """Medians over networks of each measure of a path and of its nulls."""
    titles = ("path", "null A: flipped", "null B: OU")
    lines = [f"{'median over networks':<32}" + "".join(f"{t:>16}" for t in titles)]
    for row, found in result.rows.items():
        numbers = [_median(values) for values in found]
        lines.append(f"{row:<32}" + "".join(f"{_short(n):>16}" for n in numbers))
    return lines


def _median(values):
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan


def _short(number):
    return "" if math.isnan(number) else f"{number:.4g}"


def _correlations(ranking):
    """One line a row, those of largest tau first."""
    titles = {
        "learning_rates": "rate varies",
        "batch_sizes": "batch varies",
        "given_rate": "given rate",
        "given_length": "given length",
        "with_rate": "with rate",
        "loss_gap": "loss gap",
        "flipped": "null A",
        "ou": "null B",
    }
    lines = [
        f"{'Kendall tau with the gap':<32}{'pooled [95 % interval]':<24}"
        + "".join(f"{title:>14}" for title in titles.values())
        + "  beyond chance"
    ]
    for row, found in _sorted(ranking):
        pooled = f"{found.pooled:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        numbers = [getattr(found, field) for field in titles]
        lines.append(
            f"{row:<32}{pooled:<24}"
            + "".join(f"{_signed(number):>14}" for number in numbers)
            + f"  {verdict(found.pooled, ranking.band)}"
        )
    return lines


def _sorted(ranking):
    place = lambda item: -item[1].pooled if not math.isnan(item[1].pooled) else 2.0
    return sorted(ranking.correlations.items(), key=place)


def _signed(number):
    return "" if math.isnan(number) else f"{number:+.3f}"


def claims(result: Any) -> list[Claim]:
    """What is published, and what these networks say."""
    ranking = result.ranking
    band, tau, samples = ranking.band, ranking.correlations, ranking.samples
    error = lambda values: float(np.nanstd(values, ddof=1))
    found = []
    positive = {
        _DIMENSION: "2111.13171",
        _SUM["loss"]: "2407.08723",
        "PMag (losses)": "2407.08723",
        _SUM["euclidean"]: "2407.08723",
        "PMag": "2407.08723",
    }
    for row, source in positive.items():
        text = f"{row} goes with the gap, beyond chance ({source})"
        spread = error(samples[row].pooled)
        found.append(Claim(text, tau[row].pooled, band, 1.0, error=spread))
    for metric in METRICS:
        found.append(_difference(ranking, _SUM[metric], name(_DIMENSION, metric)))
    found.append(
        Claim(
            f"{_DIMENSION} given the learning rate: no more than chance (2406.02234)",
            tau[_DIMENSION].given_rate,
            -band,
            band,
            error=error(samples[_DIMENSION].given_rate),
        )
    )
    found.append(_norm_wins(ranking))
    for metric, low in zip(METRICS, (0.995, 0.93), strict=True):
        ratio = result.rows[name("E_1 / length", metric)].value
        text = f"smallest {name('E_1 / length', metric)} of a network (seven runs)"
        found.append(Claim(text, float(np.nanmin(ratio)), low, 1.0 + 1e-3))
        row = _SUM[metric]
        found.append(
            Claim(
                f"{row} given the path length: no more than chance",
                tau[row].given_length,
                -band,
                band,
                error=error(samples[row].given_length),
            )
        )
    return found


def _difference(ranking, row, other):
    """That one measure ranks better than another."""
    spread = ranking.samples[row].pooled - ranking.samples[other].pooled
    tau = ranking.correlations
    return Claim(
        f"{row} ranks better than {other} (2407.08723)",
        tau[row].pooled - tau[other].pooled,
        0.0,
        math.inf,
        error=float(np.nanstd(spread, ddof=1)),
        note=f"tau {tau[row].pooled:+.3f} less {tau[other].pooled:+.3f}",
    )


def _norm_wins(ranking):
    """That the plain norm says more of the gap than the dimension."""
    spread = np.abs(ranking.samples["norm"].pooled)
    spread = spread - np.abs(ranking.samples[_DIMENSION].pooled)
    norm, dimension = (ranking.correlations[r].pooled for r in ("norm", _DIMENSION))
    return Claim(
        f"the norm of the parameters ranks better than {_DIMENSION} (2406.02234)",
        abs(norm) - abs(dimension),
        0.0,
        math.inf,
        error=float(np.nanstd(spread, ddof=1)),
        note=f"|tau| {abs(norm):.3f} less {abs(dimension):.3f}",
    )


def draw(config: Any, result: Any) -> Any:
    """Taus beside those of the nulls, a measure against the gap, and lifetimes."""
    del config
    with plt.rc_context(plot.STYLE):
        figure = plt.figure(figsize=(13, 7.5), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1), squeeze=False)[0]
        _taus(left.subplots(), result.ranking)
        upper, lower = right.subplots(2, 1)
        _against_gap(right, upper, result)
        nulls = {
            "flipped steps": list(result.trees.flipped),
            "Ornstein-Uhlenbeck": list(result.trees.ou),
        }
        plot.lifetimes(result.trees.path, nulls, ax=lower)
        lower.set_title("lifetimes of one path and of its nulls")
    return figure


def _taus(ax, ranking):
    found = _sorted(ranking)[::-1]
    places = np.arange(len(found))
    value = lambda field: np.array([getattr(one, field) for _, one in found])
    band, limit = ranking.band, ranking.ceiling.from_other_seeds
    ax.axvspan(-band, band, color=plot.NULL, alpha=0.25, label="best row by chance")
    ax.axvline(limit, color=plot.THEORY, ls="--", label="other seeds of the cell")
    ax.hlines(places, value("low"), value("high"), color=plot.TRAIN)
    ax.plot(value("pooled"), places, "o", color=plot.TRAIN, label="path, 95 % interval")
    ax.plot(value("flipped"), places, "D", ms=5, mfc="none", color=plot.TEST,
            label="null A: flipped steps")  # fmt: skip
    ax.plot(value("ou"), places, "s", ms=5, mfc="none", color=plot.KERNEL,
            label="null B: Ornstein-Uhlenbeck")  # fmt: skip
    ax.plot(value("given_rate"), places, "|", ms=11, mew=2, color=plot.ACCENT,
            label="path, given the learning rate")  # fmt: skip
    ax.set_yticks(places, [row for row, _ in found], fontsize=8)
    ax.set(xlabel="Kendall tau with the gap", xlim=(-1, 1))
    # The rows fall from right to left: the upper left corner is free.
    ax.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")


def _against_gap(figure, ax, result):
    """E_1 of the losses against the gap, by learning rate."""
    row = _SUM["loss"]
    rates = np.broadcast_to(result.cells[:, :1], result.gap.shape)
    points = ax.scatter(
        result.rows[row].value, result.gap, c=np.log10(rates), s=12, alpha=0.8
    )
    ax.set(xscale="log", xlabel=row, ylabel="gap")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(f"{row}: tau {result.ranking.correlations[row].pooled:+.2f}")
    figure.colorbar(points, ax=ax, label="log10 learning rate")
