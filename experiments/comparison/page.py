"""Tables, rows and the figure of the comparison of kernels and networks."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.comparison.learners import MEASURES, METHODS, Candidates
from experiments.comparison.summary import (
    TaskResult,
    advantage,
    best_kernel,
    exponents,
    interval,
    winners,
)
from experiments.comparison.tasks import TITLES
from jaxtheory import plot

# Okabe and Ito's colours, told apart under every common colour blindness; markers and
# dashes say the same once more.
_STYLE = {
    "network": ("#D55E00", "o", "-"),
    "RFM": ("#CC79A7", "s", "-"),
    "final NTK": ("#E69F00", "D", "-"),
    "NNGP": ("#56B4E9", "v", "--"),
    "infinite NTK": ("#0072B2", "^", "--"),
    "initial NTK": ("#009E73", "<", ":"),
    "linearised": ("#000000", "x", ":"),
}
_WORD = {"network": "network", "kernel": "kernel", "undecided": "-"}


def tables(
    tasks: dict[str, TaskResult], sizes: tuple[int, ...], candidates: Candidates
) -> str:
    """One table a task, and how often each candidate was chosen."""
    blocks = [_task_table(name, task, sizes) for name, task in tasks.items()]
    return "\n\n".join([*blocks, _candidate_table(tasks, candidates)])


def _task_table(name, task, sizes):
    """Errors with intervals, exponents, the paired difference, and features."""
    known = task.information_exponent
    title = f"{name}: relative squared error on test data, mean +- 95 % interval"
    if known is not None:
        title += f" (information exponent {known})"
    widths = [24] + [15] * len(sizes) + [15]
    header = ["n", *(f"{n:,}" for n in sizes), "exponent"]
    fitted = exponents(task, sizes)
    rows = [header]
    rows += [
        [method, *_cells(interval(error)), _slope(fitted[method])]
        for method, error in zip(METHODS, task.error, strict=True)
    ]
    for label, other in (("best fixed kernel", None), ("RFM", "RFM")):
        difference = advantage(task, over=other)
        rows.append([f"network - {other or 'kernel'}", *_cells(difference, sign="+")])
        rows[-1].append(_slope(fitted[label]) if other is None else "")
    rows.append(["ahead", *(_WORD[w] for w in winners(advantage(task))), ""])
    if np.isfinite(task.accuracy).all():
        values = dict(zip(METHODS, task.accuracy, strict=True))
        values["best kernel"] = best_kernel(task, "accuracy")
        rows += [
            [f"accuracy, {name}", *_cells(interval(values[name]))]
            for name in ("network", "best kernel", "RFM")
        ]
        difference = advantage(task, of="accuracy")
        rows.append(["network - kernel", *_cells(difference, sign="+")])
    rows += [
        [measure, *_cells(interval(task.measures[measure]), digits=2)]
        for measure in MEASURES
        if np.isfinite(task.measures[measure]).all()
    ]
    lines = [
        "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        for row in rows
    ]
    if task.num_diverged:
        lines.append(f"{task.num_diverged} trainings were not finite and stopped.")
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _cells(values, sign="", digits=3):
    """Means with half widths as text."""
    pairs = zip(values.mean, values.half_width, strict=True)
    return [f"{mean:{sign}.{digits}f} +-{half:.{digits}f}" for mean, half in pairs]


def _slope(fit):
    """An exponent with its standard error."""
    value, error = float(fit.value), float(fit.standard_error)
    return f"{value:.2f} ({error:.2f})" if np.isfinite(value) else "-"


def _candidate_table(tasks, candidates):
    """How many each method had, and how often each was chosen."""
    lines = ["candidates of each method, and how often validation chose them"]
    for row, method in enumerate(METHODS):
        own = candidates.of(method)
        chosen = np.concatenate([task.chosen[row].ravel() for task in tasks.values()])
        counts = np.bincount(chosen, minlength=len(own))
        said = ", ".join(
            f"{_candidate(method, one)}: {count}"
            for one, count in zip(own, counts, strict=True)
        )
        lines.append(f"{method:<14}{len(own)}  {said}")
    return "\n".join(lines)


def _candidate(method, options):
    """Options as text."""
    if method in ("network", "linearised"):
        return f"rate {options[0]:g} decay {options[1]:g}"
    if method == "RFM":
        return f"bandwidth {options[0]:g} ridge {options[1]:g}"
    return f"ridge {options:g}"


def write_rows(
    file: Path,
    tasks: dict[str, TaskResult],
    sizes: tuple[int, ...],
    candidates: Candidates,
) -> None:
    """One row for each task, size, seed and method."""
    header = ("task", "n", "seed", "method", "error", "accuracy", "validation_error")
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow((*header, "candidate"))
        for name, task in tasks.items():
            for m, s, r in np.ndindex(task.error.shape):
                at = (m, s, r)
                values = (task.error[at], task.accuracy[at], task.validation[at])
                chosen = candidates.of(METHODS[m])[task.chosen[at]]
                said = _candidate(METHODS[m], chosen)
                writer.writerow((name, sizes[s], r, METHODS[m], *values, said))


def draw(tasks: dict[str, TaskResult], sizes: tuple[int, ...]) -> Figure:
    """Error against the number of examples, one panel a task."""
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(3.6 * columns + 0.6, 3.0 * rows + 0.8),
            layout="constrained",
            squeeze=False,
        )
        for ax in axes.flat[len(tasks) :]:
            ax.remove()
        for ax, (name, task) in zip(axes.flat, tasks.items(), strict=False):
            _panel(ax, TITLES[name], task, sizes)
        for ax in axes[:, 0]:
            ax.set_ylabel("test error / variance")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fitting = (2, 4, len(labels))[columns - 1]
        figure.legend(handles, labels, loc="outside lower center", ncols=fitting)
    return figure


def _panel(ax, title, task, sizes):
    """One task; what predicts the mean has error 1."""
    ax.axhline(1, color="#888888", lw=0.8)
    for place, (method, (color, marker, line)) in enumerate(_STYLE.items()):
        mean, half = interval(task.error[METHODS.index(method)])
        # Side by side, or intervals would hide each other.
        n = np.array(sizes) * 1.02 ** (place - 3)
        # An interval that reaches zero leaves the axis.
        low = np.minimum(half, mean * (1 - 1e-9))
        ax.errorbar(
            n,
            mean,
            yerr=(low, half),
            color=color,
            marker=marker,
            ls=line,
            ms=4.5,
            lw=1.5,
            elinewidth=1,
            zorder=3 - 0.1 * place,
            label=method,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    floor, ceiling = task.error.min(), task.error.max()
    ax.set_ylim(floor / 1.5, max(1.2, ceiling) * 1.5)
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("training examples n")
    ax.set_title(title)
