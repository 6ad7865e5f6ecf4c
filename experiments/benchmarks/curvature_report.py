"""The arithmetic, the table and the figure of the curvature benchmark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.curvature_cases import largest
from experiments.benchmarks.curvature_jax import NUM_GRADIENTS
from experiments.benchmarks.kernels_report import (
    Measurement,
    cases,
    find,
    of_case,
    ratio,
)

# What is held against what: ours, and the peers' that do the same.
RIVALS = {
    "Hessian": ("curvlinops Hessian", "eigenthings Hessian"),
    "Hessian, full": ("eigenthings Hessian, full",),
    "GGN": ("curvlinops GGN", "eigenthings GGN"),
    "density": ("curvlinops density", "eigenthings density"),
    "density, full": ("eigenthings density",),
}
TIMES_FASTER = {
    "MLP 784": 1.8,
    "digits MLP": 4.0,
    "CNN": 4.0,
    "digits MLP, 250 examples": 4.0,
    "CNN, 250 examples": 4.0,
}
LIBRARIES = ("curvlinops", "eigenthings", "PyHessian")
_WORDS = {"Hessian": "a Lanczos run", "density": "the spectral density"}

# Results of one case in float64 (or bytes, or numbers of traces), by implementation.
Results = Mapping[str, np.ndarray]


class Row(NamedTuple):
    """A claim, what is expected, what was measured, and whether it holds."""

    claim: str
    expected: str
    measured: str
    met: bool


def rows(
    found: Sequence[Measurement],
    results: Mapping[str, Results],
    steps: Mapping[str, int],
) -> list[Row]:
    """What the project promises, against what was measured.

    Args:
        found: Times.
        results: By case, what was not timed.
        steps: Lanczos iterations of each case.

    Returns:
        One row a claim and case.
    """
    all_rows = []
    for case in cases(found):
        for name in _WORDS:
            all_rows += _faster(found, case, name)
        for name, most in (("Hessian", 1.7), ("GGN", 1.4)):
            all_rows.append(_in_gradients(found, case, name, most, steps[case]))
    for case, result in results.items():
        all_rows += [*_resources(case, result), *_accuracy(case, result)]
    return all_rows


def _faster(found, case, name):
    """How many times faster than the best peer; nothing where none was timed."""
    ours = find(found, case, "ours", name)
    timed = [
        m
        for m in of_case(found, case)
        if m.implementation in RIVALS[name] and m.seconds
    ]
    if not timed or not ours.seconds:
        return []
    best = min(timed, key=lambda m: float(np.median(m.seconds)))
    times, least = ratio(best, ours), TIMES_FASTER[case]
    return [
        Row(
            f"{case}: {_WORDS[name]} against {best.implementation}",
            f"at least {least:g} times faster",
            f"{times.median:.2f} [{times.low:.2f}, {times.high:.2f}]",
            times.median >= least,
        )
    ]


def in_gradients(
    found: Sequence[Measurement], case: str, name: str, steps: int
) -> float:
    """Time of one of our products inside a Lanczos loop, in gradients."""
    product, slope = (find(found, case, "ours", n) for n in (name, "gradient"))
    return ratio(product, slope).median * NUM_GRADIENTS / steps


def _in_gradients(found, case, name, most, steps):
    cost = in_gradients(found, case, name, steps)
    claim = f"{case}: a {name} product inside Lanczos, in gradients"
    return Row(claim, f"at most {most:g}", f"{cost:.2f}", cost <= most)


def _resources(case, result):
    """Memory and traces."""
    found = []
    for name in ("memory", "memory, batches"):
        if name in result:
            total, vectors, batch = result[name]
            share = total / (vectors + batch)
            measured = (
                f"{share:.2f} ({total / 1e6:.0f} MB; {vectors / 1e6:.0f} + "
                f"{batch / 1e6:.0f})"
            )
            where = "in ten batches" if "batches" in name else "all at once"
            claim = f"{case}, {where}: working memory of Lanczos"
            expected = "at most 1.2 (stored vectors + product on one batch)"
            found.append(Row(claim, expected, measured, share <= 1.2))
    if "traces" in result:
        few, many, twice = result["traces"]
        claim = f"{case}: traces of the model by 2 steps, all, and all twice"
        measured = f"{few:.0f}, {many:.0f}, {twice:.0f}"
        found.append(Row(claim, "equal: compiled once", measured, few == many == twice))
    return found


def _accuracy(case, result):
    """Eigenvalues, trace and moments, against the dense Hessian and the peers."""
    if "dense spectrum" not in result:
        return []
    spectrum, ours = result["dense spectrum"], result["eigenvalues"]
    dense = largest(spectrum)
    found = [_close(f"{case}: top 5 eigenvalues, dense", ours, dense, 1e-4)]
    exact = float(spectrum.sum())
    value, error = result["trace"]
    found.append(_within(f"{case}: trace, dense", value - exact, error))
    for name in (n for n in LIBRARIES if f"{n} eigenvalues" in result):
        theirs = result[f"{name} eigenvalues"]
        found.append(_close(f"{case}: top 5 eigenvalues, {name}", ours, theirs, 1e-4))
        other, other_error = result[f"{name} trace"]
        both = math.hypot(error, other_error)
        found.append(_within(f"{case}: trace, {name}", value - other, both))
        moments = result["moments"], result[f"{name} moments"]
        found.append(_close(f"{case}: moments 1 to 9, {name}", *moments, 1e-6))
    return found


def _close(claim, ours, theirs, most):
    """The largest relative difference."""
    difference = float(np.max(np.abs(ours / theirs - 1)))
    expected = f"within {most:g} relative"
    return Row(claim, expected, f"{difference:.1e}", difference <= most)


def _within(claim, difference, error):
    """A difference in standard errors."""
    away = abs(difference) / error
    return Row(claim, "within 2 standard errors", f"{away:.2f}", away <= 2)


def table(
    found: Sequence[Measurement], all_rows: Sequence[Row], load: Sequence[float]
) -> str:
    """All times, and the rows ``claim | expected | measured | verdict``."""
    text = []
    for case in cases(found):
        slope = find(found, case, "ours", "gradient")
        text += [
            "",
            f"{case:30s}{'first call s':>14s}{'s':>10s}{'over gradients':>16s}",
        ]
        for m in of_case(found, case):
            text.append(
                f"  {m.environment + ' ' + m.implementation:36s}" + _cells(m, slope)
            )
    text += ["", f"load of the machine {load[0]:.1f} before, {load[1]:.1f} after", ""]
    text.append("claim | expected | measured | verdict")
    return "\n".join([*text, *map(_line, all_rows)])


def lines(case: str, result: Results) -> list[str]:
    """The rows of one case that need no times, as text."""
    return [_line(row) for row in rows([], {case: result}, {})]


def _line(row):
    verdict = "met" if row.met else "NOT met"
    return f"{row.claim} | {row.expected} | {row.measured} | {verdict}"


def _cells(m, slope):
    if not m.seconds:
        return "skipped: " + m.skipped
    times = ratio(m, slope).median
    return f"{m.first_seconds:8.2f}{np.median(m.seconds):10.3f}{times:16.2f}"


def draw(found: Sequence[Measurement]) -> Any:
    """How many times longer than ours the peers take, a group a case."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    pairs = [(ours, peer) for ours, peers in RIVALS.items() for peer in peers]
    width = 0.8 / len(pairs)
    for number, (name, peer) in enumerate(pairs):
        for at, case in enumerate(cases(found)):
            timed = [
                m
                for m in of_case(found, case)
                if m.implementation in (name, peer) and m.seconds
            ]
            if len(timed) != 2:
                continue
            low, middle, high = ratio(timed[1], timed[0])
            place = at - 0.4 + (number + 0.5) * width
            error = [[middle - low], [high - middle]]
            label = f"{peer} / our {name}" if at == 0 else None
            axis.bar(place, middle, width, yerr=error, color=f"C{number}", label=label)
    axis.axhline(1, color="k", lw=1)
    axis.set_xticks(range(len(cases(found))), cases(found))
    axis.set_ylabel("time / time of ours")
    axis.legend(fontsize=8, ncols=2)
    return figure
