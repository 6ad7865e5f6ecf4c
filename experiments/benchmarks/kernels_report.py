"""The arithmetic, the table, the targets and the figure of the kernel benchmark."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.kernels_cases import MLPS


class Measurement(NamedTuple):
    """One implementation on one case.

    Attributes:
        case: The case.
        environment: ``"ours"`` or a peer.
        implementation: Which of its implementations.
        skipped: Why it was not timed, or nothing.
        first_seconds: Wall time of the first call, compilation included.
        first_cpu_seconds: The processor's time of that call.
        error: Relative Frobenius distance of its kernel from ours.
        seconds: Wall time of a call, the median of each round.
        cpu_seconds: The processor's.
    """

    case: str
    environment: str
    implementation: str
    skipped: str = ""
    first_seconds: float = math.nan
    first_cpu_seconds: float = math.nan
    error: float = math.nan
    seconds: tuple[float, ...] = ()
    cpu_seconds: tuple[float, ...] = ()


class Quartiles(NamedTuple):
    """The middle half of some values."""

    low: float
    median: float
    high: float


class Target(NamedTuple):
    """A claim, what was measured, and whether it holds."""

    claim: str
    measured: str
    met: bool


def ratio(
    measured: Measurement, reference: Measurement, *, cpu: bool = False
) -> Quartiles:
    """How many times longer than the reference, over the rounds that both ran.

    Args:
        measured: An implementation that was timed.
        reference: Another, on the same case.
        cpu: Whether by the processor's time, which other load disturbs less.

    Returns:
        Quartiles over rounds.
    """
    times, others = (m.cpu_seconds if cpu else m.seconds for m in (measured, reference))
    rounds = min(len(times), len(others))
    values = np.divide(times[:rounds], others[:rounds])
    return Quartiles(*np.quantile(values, [0.25, 0.5, 0.75]).tolist())


def geometric_mean(values: Sequence[float]) -> float:
    """The exponential of the mean logarithm."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def of_case(measurements: Sequence[Measurement], case: str) -> list[Measurement]:
    """The measurements on one case."""
    return [m for m in measurements if m.case == case]


def cases(measurements: Sequence[Measurement]) -> list[str]:
    """The cases, each once, in their order."""
    return list(dict.fromkeys(m.case for m in measurements))


def find(
    measurements: Sequence[Measurement], case: str, environment: str, name: str
) -> Measurement:
    """One implementation on one case."""
    (found,) = [
        m
        for m in of_case(measurements, case)
        if (m.environment, m.implementation) == (environment, name)
    ]
    return found


def best(
    measurements: Sequence[Measurement], case: str, environment: str
) -> Measurement | None:
    """The implementation of an environment with the least median, if any was timed."""
    timed = [
        m
        for m in of_case(measurements, case)
        if m.environment == environment and m.seconds
    ]
    return min(timed, key=lambda m: float(np.median(m.seconds)), default=None)


def targets(
    measurements: Sequence[Measurement], wide: Sequence[dict[str, Any]]
) -> list[Target]:
    """What the project promises, against what was measured."""
    against_nt, against_jacobian, first, untimed = {}, {}, {}, []
    for case in cases(measurements):
        auto = find(measurements, case, "ours", "auto")
        first[case] = auto.first_seconds
        if (peer := best(measurements, case, "NT")) is not None:
            against_nt[case] = ratio(peer, auto).median
        jacobian = find(measurements, case, "ours", "Jacobian")
        if case in MLPS and jacobian.seconds:
            against_jacobian[case] = ratio(jacobian, auto).median
        elif case in MLPS:
            untimed.append(f"{case} not timed: {jacobian.skipped}")
    found = []
    if against_nt:
        found.append(_least("the best of NT takes at least as long", against_nt, 1.0))
        mean = geometric_mean(list(against_nt.values()))
        claim = "the best of NT takes 2 times as long in geometric mean"
        found.append(Target(claim, f"{mean:.2f}", mean >= 2))
    if against_jacobian:
        claim = "our Jacobian contraction takes 100 times as long on MLPs"
        target = _least(claim, against_jacobian, 100.0)
        measured = "; ".join([target.measured, *untimed])
        found.append(Target(claim, measured, target.met and not untimed))
    slowest = max(first, key=lambda case: first[case])
    claim = "the first call takes less than 3 s"
    measured = f"at most {first[slowest]:.2f} s ({slowest})"
    found.append(Target(claim, measured, first[slowest] < 3))
    return found + _wide_targets(wide)


def _least(claim, values, wanted):
    """The target that the least of values by case reaches one."""
    least = min(values, key=lambda case: values[case])
    measured = f"at least {values[least]:.2f} ({least})"
    return Target(claim, measured, values[least] >= wanted)


def growth(run: dict[str, Any]) -> float:
    """By how much the largest memory of a process grew, in units of 10^6 bytes."""
    return run["megabytes_after"] - run["megabytes_before"]


def _wide_targets(wide):
    """Time and memory of the wide network's traced kernel."""
    if not wide:
        return []
    n = max(run["num_examples"] for run in wide)
    full = [run for run in wide if run["num_examples"] == n]
    fastest = min(full, key=lambda run: run["seconds"])
    time = Target(
        f"the traced kernel of n = {n} takes less than 20 s",
        f"{fastest['seconds']:.1f} s in batches of {fastest['batch_size']}",
        fastest["seconds"] < 20,
    )
    pairs = [
        (growth(large) - growth(small), (n**2 - small["num_examples"] ** 2) * 4e-6)
        for small in wide
        for large in full
        if small["num_examples"] < n and small["batch_size"] == large["batch_size"]
    ]
    if not pairs:
        return [time]
    grown, kernel = max(pairs)
    memory = Target(
        "at one batch size, memory grows by at most 8 times what the kernel does",
        f"{grown:.0f} MB, the kernel by {kernel:.0f} MB",
        grown <= 8 * kernel,
    )
    return [time, memory]


_HEADER = (
    "first call s",
    "(CPU)",
    "ms",
    "(CPU)",
    "times ours [quartiles]",
    "(CPU)",
    "diff",
)


def table(
    measurements: Sequence[Measurement],
    wide: Sequence[dict[str, Any]],
    load: Sequence[float],
) -> str:
    """All measurements and targets as text."""
    lines = []
    for case in cases(measurements):
        auto = find(measurements, case, "ours", "auto")
        lines += [("", ""), (case, *_HEADER)]
        for m in of_case(measurements, case):
            lines.append((f"  {m.environment} {m.implementation}", *_cells(m, auto)))
    text = "\n".join(_row(line).rstrip() for line in lines)
    text += "\n\ntraced kernel of an MLP, one process for each\n"
    text += "\n".join(
        f"  n {run['num_examples']:5d}, batches of {run['batch_size']:4d}: "
        f"{run['seconds']:6.1f} s (CPU {run['cpu_seconds']:.1f} s), memory "
        f"+{growth(run):.0f} MB; the kernel has {run['num_examples'] ** 2 * 4e-6:.1f}"
        for run in wide
    )
    before, after = load
    text += f"\n\nload of the machine {before:.1f} before, {after:.1f} after\n"
    return text + "\n".join(
        f"{'met   ' if t.met else 'NOT met'} {t.claim}: {t.measured}"
        for t in targets(measurements, wide)
    )


def _cells(m, auto):
    """The columns of one measurement."""
    if not m.seconds:
        return ("skipped: " + m.skipped,)
    quartiles = ratio(m, auto)
    return (
        f"{m.first_seconds:.2f}",
        f"{m.first_cpu_seconds:.2f}",
        f"{1e3 * np.median(m.seconds):.1f}",
        f"{1e3 * np.median(m.cpu_seconds):.1f}",
        f"{quartiles.median:.2f} [{quartiles.low:.2f}, {quartiles.high:.2f}]",
        f"{ratio(m, auto, cpu=True).median:.2f}",
        f"{m.error:.0e}",
    )


def _row(cells):
    if len(cells) == 2:
        return f"{cells[0]:24s}   {cells[1]}"
    aligned = zip(cells[1:], (12, 8, 10, 10, 26, 9, 7), strict=True)
    return f"{cells[0]:24s}" + "".join(f"{cell:>{width}s}" for cell, width in aligned)


def as_csv(measurements: Sequence[Measurement]) -> str:
    """One line an implementation, case and round."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*Measurement._fields[:7], "round", *Measurement._fields[7:]))
    for m in measurements:
        rounds = list(zip(m.seconds, m.cpu_seconds, strict=True)) or [("", "")]
        for number, times in enumerate(rounds):
            writer.writerow((*m[:7], number, *times))
    return text.getvalue()


def draw(measurements: Sequence[Measurement]) -> Any:
    """How many times longer than ours each implementation takes, a group a case."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys((m.environment, m.implementation) for m in measurements))
    names.remove(("ours", "auto"))
    figure, axis = plt.subplots(figsize=(11, 4), layout="constrained")
    width = 0.8 / len(names)
    for number, (environment, name) in enumerate(names):
        for at, case in enumerate(cases(measurements)):
            m = find(measurements, case, environment, name)
            label = f"{environment}: {name}" if at == 0 else None
            place = at - 0.4 + (number + 0.5) * width
            color = f"C{number}"
            if not m.seconds:
                axis.bar(place, 0, width, color=color, label=label)
                axis.text(place, 1.1, "skipped", rotation=90, ha="center", size=7)
                continue
            low, middle, high = ratio(m, find(measurements, case, "ours", "auto"))
            error = [[middle - low], [high - middle]]
            axis.bar(place, middle, width, yerr=error, color=color, label=label)
    axis.axhline(1, color="k", lw=1)
    axis.set_yscale("log")
    axis.set_xticks(range(len(cases(measurements))), cases(measurements))
    axis.set_ylabel("time / time of ours (auto)")
    axis.legend(fontsize=8, ncols=3)
    return figure
