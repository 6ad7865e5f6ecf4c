"""Tables, claims and the figure of the zoo."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import Claim, claims_table
from experiments.zoo.design import BASE_DECAYS, BASE_RATES
from experiments.zoo.ranking import SOURCES, Ranking
from jaxtheory import plot
from jaxtheory.bounds import evaluate

_SHOWN = 30  # rows of the figure
_VARIANCES = 12  # bars of the variance, beside that of the gap
_NORMS = "log_prod_of_spec_over_margin"
_FLATNESS = "pac_bayes_flatness"


def report(config: Any, result: Any) -> str:
    """All tables, one below the other, and the claims."""
    ranking = result.ranking
    num_cells, num_seeds = result.gap.shape
    head = [
        f"{num_cells} cells x {num_seeds} seeds = {result.gap.size} networks, "
        f"{len(ranking.evaluation.measures)} measures",
        f"{len(result.excluded)} networks left out (training loss above "
        f"{config.stop_loss:g} after {config.max_steps:,} steps, {result.num_diverged} "
        f"of them diverged){_listed(result)}",
        f"learning rates are multiples of {_units(BASE_RATES)}, weight decays of "
        f"{_units(BASE_DECAYS)}",
        f"gap between test and training error {np.nanmin(result.gap):.3f} to "
        f"{np.nanmax(result.gap):.3f}, mean {np.nanmean(result.gap):.3f}",
    ]
    if result.num_nonfinite:
        listed = ", ".join(f"{n} ({k})" for n, k in result.num_nonfinite.items())
        head.append(f"not finite in some of the others: {listed}")
    return "\n".join(
        [
            *head,
            "",
            evaluate.to_text(ranking.evaluation),
            "",
            *_within(ranking),
            "",
            *_variance(ranking),
            "",
            *_choice(ranking),
            "",
            claims_table(claims(result)),
        ]
    )


def _units(base):
    """Base values by optimizer."""
    return ", ".join(f"{value:g} ({name})" for name, value in base.items())


def _listed(result):
    """Cells that lack networks, with how many."""
    if not result.excluded:
        return ""
    lines = [""]
    cells = [cell for cell, _ in result.excluded]
    for cell in dict.fromkeys(cells):
        values = ", ".join(f"{n} {v[cell]}" for n, v in result.cells.items())
        lines.append(f"  {cells.count(cell)} of {values}")
    return "\n".join(lines)


def by_tau(ranking: Ranking) -> list[int]:
    """Rows by ``|tau|``, the largest first."""
    sizes = np.abs(np.nan_to_num(ranking.evaluation.tau))
    return [int(row) for row in np.argsort(-sizes, kind="stable")]


def _within(ranking):
    """Tau on each data set alone."""
    names = ranking.evaluation.measures
    wide = max(map(len, (*names, "best |tau| by chance")))
    line = lambda name, values: (
        name.ljust(wide)
        + "".join(("-" if np.isnan(v) else f"{v:+.2f}").rjust(14) for v in values)
    )
    rows = [
        line(names[row], [*ranking.within[names[row]], _mean(ranking, names[row])])
        for row in by_tau(ranking)
    ]
    return [
        "Kendall tau on each data set alone",
        "measure".ljust(wide) + "".join(n.rjust(14) for n in (*ranking.data, "mean")),
        line("gaps of two seeds", ranking.within_ceiling),
        line("best |tau| by chance", ranking.within_band),
        *rows,
    ]


def _mean(ranking, name):
    """Mean tau over data sets on which it is defined."""
    known = ranking.within[name][~np.isnan(ranking.within[name])]
    return float(np.mean(known)) if len(known) else math.nan


def _variance(ranking):
    """Where the variance of the gap and of each measure comes from."""
    names = ["gap", *(ranking.evaluation.measures[row] for row in by_tau(ranking))]
    wide = max(map(len, names))
    terms = ", ".join(f"{name} {share:.3f}" for name, share in ranking.gap_terms[:8])
    cells = lambda name: "".join(f"{v:17.3f}" for v in ranking.variance[name])
    return [
        "share of the variance by source, less what the noise of seeds puts there",
        f"of the gap, the largest terms: {terms}",
        "".ljust(wide) + "".join(name.rjust(17) for name in SOURCES),
        *(name.ljust(wide) + cells(name) for name in names),
    ]


def _choice(ranking):
    """Regret of choosing by each measure, those of the smallest mean first."""
    choice = ranking.choice
    mean = lambda values: float(np.nanmean(values)) if np.any(values == values) else 9.0
    wide = max(map(len, (*choice.regret, "a validation of few examples")))
    line = lambda name, values: (
        name.ljust(wide)
        + "".join(
            ("-" if np.isnan(v) else f"{100 * v:.1f}").rjust(14)
            for v in (*values, np.nan if mean(values) > 1 else mean(values))
        )
    )
    ordered = sorted(choice.regret.items(), key=lambda item: mean(item[1]))
    return [
        "regret in points of test error of the cell that each measure chooses",
        "by".ljust(wide) + "".join(name.rjust(14) for name in (*choice.data, "mean")),
        line("a validation of few examples", choice.validation),
        line("a cell at random", choice.random),
        *(line(name, values) for name, values in ordered),
    ]


def claims(result: Any) -> list[Claim]:
    """What is published, as far as these networks can tell."""
    e = result.ranking.evaluation
    place = {name: row for row, name in enumerate(e.measures)}
    # A measure that is the same everywhere is as good as a coin by itself.
    varies = ~np.isnan(e.tau + e.worst_sign_error)
    best = int(np.argmin(np.where(varies, e.worst_sign_error, math.inf)))
    found = [
        Claim(
            "every measure is as bad as a coin in some environment (2010.11924)",
            float(e.worst_sign_error[best]),
            0.5,
            math.inf,
            note=f"smallest sign error in the worst one, of {e.measures[best]}",
        )
    ]
    tau, error = e.tau[place[_NORMS]], e.standard_error[place[_NORMS]]
    found.append(
        Claim(
            f"norms mislead: {_NORMS} ranks in reverse (1912.02178)",
            float(tau),
            -1.0,
            -e.band,
            error=float(error),
        )
    )
    better = abs(e.tau[place[_FLATNESS]]) - abs(tau)
    found.append(
        Claim(
            f"sharpness is best: {_FLATNESS} ranks better than norms (1912.02178)",
            float(better),
            0.0,
            math.inf,
            error=float(np.hypot(error, e.standard_error[place[_FLATNESS]])),
            note=f"|tau| less that of {_NORMS}",
        )
    )
    mean = _mean(result.ranking, _FLATNESS)
    found.append(
        Claim(
            f"{_FLATNESS} ranks networks of one data set too",
            mean,
            float(np.nanmax(result.ranking.within_band)),
            1.0,
            note="mean tau over data sets, against chance on one of them",
        )
    )
    ratio = result.rows["e_1_over_path_length"]
    found.append(
        Claim(
            "E_1 of a training path is its length (ratio)",
            float(np.nanmean(ratio)),
            0.93,
            1.001,
            note=f"from {np.nanmin(ratio):.3f} to {np.nanmax(ratio):.3f}",
        )
    )
    return [*found, *_of_choice(result.ranking.choice)]


def _of_choice(choice):
    """What measures are worth beside a validation and a cell at random."""
    all_regrets = np.array([*choice.regret.values()])
    median = np.nanmedian(all_regrets, axis=0)
    pairs = {
        f"{_FLATNESS} chooses better than chance": (
            choice.random - choice.regret[_FLATNESS],
            "regret of a cell at random less its, mean over data sets",
        ),
        "a validation of few examples chooses better than most measures": (
            median - choice.validation,
            "median regret of measures less its, mean over data sets",
        ),
    }
    found = []
    for text, (differences, note) in pairs.items():
        number = len(differences)
        error = np.std(differences, ddof=1) / number**0.5 if number > 1 else 0.0
        found.append(
            Claim(
                text,
                float(np.mean(differences)),
                0.0,
                math.inf,
                error=float(error),
                note=note,
            )
        )
    return found


def draw(result: Any) -> Any:
    """Taus with intervals, variance by source, and the first measure beside the gap."""
    with plt.rc_context(plot.STYLE):
        figure = plt.figure(figsize=(14, 9), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1), squeeze=False)[0]
        _taus(left.subplots(), result.ranking)
        upper, lower = right.subplots(2, 1)
        _bars(upper, result.ranking)
        _against_gap(lower, result)
    return figure


def _taus(ax, ranking):
    e = ranking.evaluation
    rows = by_tau(ranking)[:_SHOWN][::-1]
    places = np.arange(len(rows))
    ax.axvspan(-e.band, e.band, color=plot.NULL, alpha=0.25, label="best by chance")
    limit = e.ceiling.between_seeds
    ax.axvline(limit, color=plot.THEORY, ls="--", label="gaps of two seeds")
    ax.hlines(places, e.low[rows], e.high[rows], color=plot.TRAIN)
    label = "whole zoo, 95 % over cells"
    ax.plot(e.tau[rows], places, "o", color=plot.TRAIN, label=label)
    ax.plot(e.granulated[rows], places, "D", ms=5, mfc="none", color=plot.TEST,
            label="granulated")  # fmt: skip
    means = [_mean(ranking, e.measures[row]) for row in rows]
    ax.plot(means, places, "s", ms=5, mfc="none", color=plot.KERNEL,
            label="mean over data sets")  # fmt: skip
    ax.plot(e.partial[rows], places, "|", ms=11, mew=2, color=plot.ACCENT,
            label="given the learning rate")  # fmt: skip
    ax.set_yticks(places, [e.measures[row] for row in rows], fontsize=8)
    ax.set(xlabel="Kendall tau with the gap", xlim=(-1, 1))
    # Above: among the measures it would hide some of them.
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)


def _bars(ax, ranking):
    rows = by_tau(ranking)[:_VARIANCES]
    names = ["gap", *(ranking.evaluation.measures[row] for row in rows)][::-1]
    shares = np.array([ranking.variance[name] for name in names])
    # What is below zero is none, up to the noise of seeds.
    shares = np.clip(np.nan_to_num(shares), 0, None)
    start = np.zeros(len(names))
    for source, part in zip(SOURCES, shares.T, strict=True):
        ax.barh(names, part, left=start, label=source)
        start = start + part
    ax.set(xlabel="share of the variance", xlim=(0, 1.02))
    ax.tick_params(axis="y", labelsize=8)
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)


def _against_gap(ax, result):
    name = result.ranking.evaluation.measures[by_tau(result.ranking)[0]]
    for task, noise in dict.fromkeys(_pairs(result.cells)):
        here = [pair == (task, noise) for pair in _pairs(result.cells)]
        values, gaps = result.rows[name][here], result.gap[here]
        ax.plot(values.ravel(), gaps.ravel(), ".", label=f"{task} {float(noise):.0%}")
    ax.set(xlabel=name.replace("_", " "), ylabel="gap")
    ax.legend(ncols=2, fontsize=8)


def _pairs(cells):
    return [*zip(cells["task"], cells["label noise"], strict=True)]
