"""Tables and the figure of collapse against transfer."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from experiments.claims import claims_table
from experiments.transfer.ranking import COLUMNS
from experiments.transfer.verdicts import claims, picked
from jaxtheory import plot

_VARIANCES = ("target directional CDNV (negative)", "target CDNV (negative)")


def report(config: Any, result: Any) -> str:
    """All tables, and claims with verdicts."""
    num_stops = len(config.stops)
    head = (
        f"{len(result.networks)} networks from {len(result.networks) // num_stops} "
        f"runs, {len(result.targets)} targets; Spearman correlations with 95 % "
        f"intervals over {config.num_resamples} resamples of runs"
    )
    parts = [
        [head],
        _course(config, result),
        _accuracies(result),
        _correlations("the new classes", result.new_classes),
        _correlations("shifts (mean over them)", result.shifts),
        _counts(result),
        _layers(result),
        _few_shot(config, result),
        [claims_table(claims(config, result))],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _course(config, result):
    """How longer pretraining changes everything, mean over runs."""
    columns = {
        "source NC1 train": result.source["source train NC1"],
        "test": result.source["source test NC1"],
        "source accuracy": result.source["source test accuracy"],
        "target NC1": -result.scores["target NC1 (negative)"][0],
        **{name: result.accuracies[name][0] for name in COLUMNS},
    }
    lines = ["epochs  medians: " + "  ".join(columns) + "  (target: the new classes)"]
    for stop in config.stops:
        some = result.stops == stop
        numbers = (np.median(column[some]) for column in columns.values())
        lines.append(f"{stop:<8}" + "  ".join(f"{number:.3f}" for number in numbers))
    return lines


def _accuracies(result):
    names = "  ".join(f"{name:<19}" for name in COLUMNS)
    lines = [f"{'mean [least, most] accuracy':<28}{'pixels':<8}{names}"]
    for index, target in enumerate(result.targets):
        cells = []
        for name in COLUMNS:
            row = result.accuracies[name][index]
            text = f"{row.mean():.3f} [{row.min():.3f}, {row.max():.3f}]"
            cells.append(f"{'' if np.isnan(row).any() else text:<19}")
        line = f"{target:<28}{result.raw[index]:<8.3f}" + "  ".join(cells)
        lines.append(line.rstrip())
    return lines


def _correlations(where, rows):
    """One line a score, those of largest correlation with the probe first."""
    lines = [
        f"{'rank correlation on ' + where:<44}{'probe':<22}"
        f"{'given source accuracy':<23}{'within architectures':<22}"
        + "".join(f"{name:<22}" for name in COLUMNS[1:])
    ]
    order = sorted(rows, key=lambda name: -_or(rows[name].by["probe"].value, -2.0))
    for name in order:
        row = rows[name]
        cells = [f"{_with_interval(row.by['probe']):<22}"]
        cells += [f"{_with_interval(row.partial):<23}"]
        cells += [f"{_with_interval(row.within):<22}"]
        cells += [f"{_with_interval(row.by[column]):<22}" for column in COLUMNS[1:]]
        lines.append((f"{name:<44}" + "".join(cells)).rstrip())
    return lines


def _or(number, other):
    return other if math.isnan(number) else number


def _with_interval(found):
    if math.isnan(found.value):
        return ""
    low, high = found.interval
    return f"{found.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _counts(result):
    """Parameters and accuracies of every fine-tuning of the new classes."""
    lines = ["parameters trained on the new classes, and mean accuracy"]
    for name in dict.fromkeys(result.networks):
        some = result.networks == name
        counts = result.counts[int(np.argmax(some))]
        total = counts[0].trainable
        full = result.accuracies["full"][0, some].mean()
        cells = [f"all {total:,} {full:.3f}"]
        for layer, (count, row) in enumerate(
            zip(counts[1:], result.skip, strict=True), start=1
        ):
            cells.append(
                f"layer_{layer} and skip {count.trainable:,} "
                f"({count.trainable / total:.0%}) {row[some].mean():.3f}"
            )
        probe = result.accuracies["probe"][0, some].mean()
        lines.append(f"{name:<16}" + "  ".join([*cells, f"probe {probe:.3f}"]))
    return lines


def _layers(result):
    """Probes on each layer, and on the layers that scores choose."""
    depth = result.layers.shape[1]
    hidden = "  ".join(f"layer_{layer}" for layer in range(1, depth + 1))
    lines = [f"{'accuracy of a probe on':<28}{hidden}  best     chosen by each score"]
    for place, index in enumerate(result.examined):
        table = result.layers[place]
        means = "  ".join(f"{number:<7.3f}" for number in table.mean(axis=1))
        picks = ", ".join(
            f"{score} {picked(table, best[place]).mean():.3f} "
            f"(finds it in {_found(table, best[place]):.0%})"
            for score, best in result.chosen.items()
        )
        best = table.max(axis=0).mean()
        lines.append(f"{result.targets[index]:<28}{means}  {best:<7.3f}  {picks}")
    return lines


def _found(table, best):
    """How often no other layer does better."""
    return np.mean(picked(table, best) >= table.max(axis=0))


def _few_shot(config, result):
    lines = [
        "shots  error of nearest class means  directional bound  bound by CDNV  "
        "directional of known means  rank correlation of the error with directional "
        "CDNV, CDNV"
    ]
    for count, errors, bounds in zip(
        config.bound_shots,
        result.few_errors,
        np.moveaxis(result.few_bounds, 1, 0),
        strict=True,
    ):
        ranks = (_spearman(-result.scores[name][0], errors) for name in _VARIANCES)
        lines.append(
            f"{count:<7}{errors.mean():<30.3f}{bounds[0].mean():<19.3f}"
            f"{bounds[1].mean():<15.3f}{result.limit.mean():<28.3f}"
            + ", ".join(f"{rank:+.2f}" for rank in ranks)
        )
    return lines


def _spearman(left, right):
    found: Any = scipy.stats.spearmanr(left, right)
    return found.statistic


def draw(config: Any, result: Any) -> Any:
    """Collapse on source and target against accuracy; correlations of all scores."""
    del config
    with plt.rc_context(plot.STYLE):
        figure = plt.figure(figsize=(13.5, 8), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25), squeeze=False)[0]
        axes = left.subplots(2, 1)
        for ax, name, values in (
            (axes[0], "source NC1 (train)", result.source["source train NC1"]),
            (axes[1], "target NC1", -result.scores["target NC1 (negative)"][0]),
        ):
            _scatter(ax, result, values)
            ax.set(xscale="log", xlabel=name, ylabel="probe on the new classes")
        axes[0].legend(fontsize=8)
        _bars(right.subplots(), result)
    return figure


def _scatter(ax, result, values):
    markers = dict(zip(dict.fromkeys(result.networks), "osD^v", strict=False))
    shortest = result.stops.min()
    for name, marker in markers.items():
        for early in (True, False):
            some = (result.networks == name) & ((result.stops == shortest) == early)
            ax.scatter(
                values[some],
                result.accuracies["probe"][0, some],
                marker=marker,
                s=22,
                color=plot.TEST if early else plot.TRAIN,
                label=f"{name}, {'early' if early else 'longer'}",
                alpha=0.8,
            )


def _bars(ax, result):
    rows = result.new_classes
    order = sorted(rows, key=lambda name: _or(rows[name].by["probe"].value, -2.0))
    places = np.arange(len(order))
    for shift, found, color, label in (
        (0.13, rows, plot.TRAIN, "new classes"),
        (-0.13, result.shifts, plot.TEST, "mean over shifts"),
    ):
        probes = [found[name].by["probe"] for name in order]
        ends = np.array([one.interval for one in probes]).T
        ax.hlines(places + shift, *ends, color=color)
        values = [one.value for one in probes]
        ax.plot(values, places + shift, "o", ms=4, color=color, label=label)
    ax.axvline(0, color=plot.THEORY, ls=":")
    ax.set_yticks(places, order, fontsize=8)
    ax.set(xlabel="Spearman correlation with probe accuracy", xlim=(-1, 1))
    ax.legend(loc="upper left")
