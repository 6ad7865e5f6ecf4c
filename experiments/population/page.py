"""Tables and the figure of flatness against generalization."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from experiments.claims import Claim, claims_table
from experiments.population.ranking import Ranking
from jaxtheory import plot

# Kendall taus stored in the outputs of the study's public notebook: 2,916 narrow
# ResNet18s on CIFAR-10. Trace and effective dimension have none there.
PUBLISHED = {
    "lpf": 0.606,
    "hessian_frobenius_norm": 0.481,
    "pac_bayes.published": 0.466,
    "epsilon_sharpness": 0.383,
    "shannon_entropy": 0.296,
    "fisher_rao.hessian": 0.270,
    "local_entropy.gradient_norm_squared": -0.064,
}
_STUDY = "2201.08025"


def report(ranking: Ranking) -> str:
    """The table of measures, what chance and noise do, and claims with verdicts."""
    return "\n".join(
        [
            *_measures(ranking),
            "",
            f"largest |tau| of these {len(ranking.correlations)} rows by chance, which "
            f"95 % of permutations stay below: {ranking.band:.3f}",
            f"noise ceiling: tau between the gaps of two seeds "
            f"{ranking.ceiling.between_seeds:.3f}, of a seed with the mean of others "
            f"{ranking.ceiling.from_other_seeds:.3f}; of two seeds at fixed width "
            f"{ranking.ceiling.fixed_width:.3f}",
            "",
            claims_table(claims(ranking)),
        ]
    )


def _measures(ranking):
    """One line a row, those of largest tau first."""
    header = (
        f"{'Kendall tau with the gap':<36}{'pooled [95 % interval]':<24}"
        f"{'cell means':>11}{'within seeds':>16}{'test loss':>11}{'fixed rate':>11}"
        f"{'fixed width':>13}"
        f"{'one varies':>13}{'with rate':>13}{'2201.08025':>12}  beyond chance"
    )
    by_tau = sorted(
        ranking.correlations.items(), key=lambda item: -_or(item[1].pooled, -2.0)
    )
    lines = [header]
    for name, found in by_tau:
        pooled = f"{found.pooled:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        within = f"{found.within_seeds:+.3f} ± {found.within_error:.3f}"
        last = (found.fixed_width, found.alone, found.learning_rate)
        published = PUBLISHED.get(name)
        lines.append(
            f"{name:<36}{pooled:<24}{found.cell_means:>+11.3f}{within:>16}"
            + "".join(f"{_cell(n):>11}" for n in (found.test_loss, found.fixed_rate))
            + "".join(f"{_cell(n):>13}" for n in last)
            + f"{'' if published is None else f'{published:+.3f}':>12}  "
            + verdict(found.pooled, ranking.band)
        )
    return lines


def _cell(number):
    return "" if math.isnan(number) else f"{number:+.3f}"


def _or(number, other):
    return other if math.isnan(number) else number


def verdict(tau: float, band: float) -> str:
    """Where a tau stands to what chance does to the best row."""
    if math.isnan(tau):
        return "constant"
    if abs(tau) <= band:
        return "no"
    return "yes" if tau > 0 else "yes, reversed"


def claims(ranking: Ranking) -> list[Claim]:
    """What is published, as far as these rows can tell."""
    found = []
    for name, tau in PUBLISHED.items():
        if name not in ranking.correlations:
            continue
        mine = ranking.correlations[name]
        if abs(tau) > 0.1:
            text = f"flatter networks generalise better by {name} (tau {tau}, {_STUDY})"
            limits = (ranking.band, 1.0)
        else:
            text = f"{name} says nothing of the gap (tau {tau}, {_STUDY})"
            limits = (-ranking.band, ranking.band)
        found.append(Claim(text, mine.pooled, *limits, error=mine.error))
    return [*found, *_best(ranking), *_tracks(ranking)]


def _best(ranking):
    """LPF against the best other row of the study."""
    others = [n for n in PUBLISHED if n in ranking.samples and n != "lpf"]
    if "lpf" not in ranking.samples or not others:
        return []
    best = max(others, key=lambda n: _or(ranking.correlations[n].pooled, -2.0))
    difference = ranking.samples["lpf"] - ranking.samples[best]
    tau = ranking.correlations
    return [
        Claim(
            f"LPF is the best of the study's measures ({_STUDY})",
            tau["lpf"].pooled - tau[best].pooled,
            0.0,
            math.inf,
            error=float(np.nanstd(difference, ddof=1)),
            note=f"tau less that of {best}",
        )
    ]


def _tracks(ranking):
    """Sharpness against the learning rate and against the gap."""
    claims = []
    for name in ("sharpness", "asam_sharpness", "lpf"):
        if name not in ranking.samples:
            continue
        mine = ranking.correlations[name]
        samples = np.abs(ranking.rate_samples[name]) - np.abs(ranking.samples[name])
        claims.append(
            Claim(
                f"{name} tracks the learning rate rather than the gap (2302.07011)",
                abs(mine.learning_rate) - abs(mine.pooled),
                0.0,
                math.inf,
                error=float(np.nanstd(samples, ddof=1)),
                note=f"|tau| {abs(mine.learning_rate):.3f} less {abs(mine.pooled):.3f}",
            )
        )
    return claims


def draw(
    ranking: Ranking, rows: dict[str, np.ndarray], gap: np.ndarray, cells: np.ndarray
) -> Any:
    """Taus of all rows with their intervals; the best known two against the gap."""
    with plt.rc_context(plot.STYLE):
        figure = plt.figure(figsize=(13, 7.5), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1), squeeze=False)[0]
        _taus(left.subplots(), ranking)
        shown = [name for name in ("lpf", "sharpness") if name in rows]
        shown = shown or [next(iter(rows))]
        axes = right.subplots(len(shown), 1, squeeze=False)[:, 0]
        for ax, name in zip(axes, shown, strict=True):
            rates = np.broadcast_to(cells[:, :1], gap.shape)
            points = ax.scatter(
                rows[name], gap, c=np.log10(rates), s=12, cmap="viridis", alpha=0.8
            )
            ax.set(xscale="log", xlabel=name.replace("_", " "), ylabel="gap")
            ax.xaxis.set_minor_formatter(NullFormatter())
            tau = ranking.correlations[name].pooled
            ax.set_title(f"{name.replace('_', ' ')}: tau {tau:+.2f}")
            right.colorbar(points, ax=ax, label="log10 learning rate")
    return figure


def _taus(ax, ranking):
    order = sorted(
        ranking.correlations, key=lambda n: _or(ranking.correlations[n].pooled, -2.0)
    )
    found = [ranking.correlations[name] for name in order]
    places = np.arange(len(order))
    tau = np.array([one.pooled for one in found])
    ends = np.array([[one.low, one.high] for one in found]).T
    band, limit = ranking.band, ranking.ceiling.from_other_seeds
    ax.axvspan(-band, band, color=plot.NULL, alpha=0.25, label="best row by chance")
    ax.axvline(limit, color=plot.THEORY, ls="--", label="other seeds of the cell")
    ax.hlines(places, *ends, color=plot.TRAIN)
    ax.plot(tau, places, "o", color=plot.TRAIN, label="here, 95 % interval")
    known = [(PUBLISHED[n], i) for i, n in enumerate(order) if n in PUBLISHED]
    if known:
        ax.plot(
            *zip(*known, strict=True), "D", color=plot.TEST, label="arXiv:2201.08025"
        )
    ax.set_yticks(places, [name.replace("_", " ") for name in order], fontsize=8)
    ax.set(xlabel="Kendall tau with the gap", xlim=(-1, 1))
    ax.legend(loc="lower right")
