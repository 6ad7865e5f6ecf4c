"""From trials to what can be said: means with intervals, exponents, who is ahead."""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.comparison.learners import FIXED_KERNELS, MEASURES, METHODS, Trial
from jaxtheory import kernels
from jaxtheory._types import Estimate

Quantity: TypeAlias = Literal["error", "accuracy"]
Winner: TypeAlias = Literal["network", "kernel", "undecided"]


class Interval(NamedTuple):
    """A mean over seeds and its 95 % Student t interval.

    Attributes:
        mean: The mean.
        half_width: ``t_{.975, r-1} s / sqrt(r)`` for ``r`` seeds of sample deviation
            ``s``.
    """

    mean: np.ndarray
    half_width: np.ndarray


class TaskResult(NamedTuple):
    """Everything measured on one task; ``m`` methods, ``s`` sizes, ``r`` seeds.

    Attributes:
        error: Relative squared error on test examples ``[m, s, r]``.
        accuracy: Share of test examples in the right class, NaN in regression.
        validation: Relative squared error on validation examples.
        chosen: Index of the candidate with the least of these.
        measures: How far features were learned, by name, ``[s, r]``.
        num_diverged: Number of trainings that stopped because they were not finite.
        information_exponent: That of the targets, or None if unknown.
    """

    error: np.ndarray
    accuracy: np.ndarray
    validation: np.ndarray
    chosen: np.ndarray
    measures: dict[str, np.ndarray]
    num_diverged: int
    information_exponent: int | None


def collect(trials: list[list[Trial]], information_exponent: int | None) -> TaskResult:
    """Stack trials, one list of sizes for each seed."""
    # [r, s, m, field] to one array [m, s, r] for each field.
    values = np.array(
        [[[one.outcomes[m] for m in METHODS] for one in seed] for seed in trials], float
    )
    error, accuracy, validation, chosen = values.transpose(3, 2, 1, 0)
    measures = {
        name: np.array([[one.measures[name] for one in seed] for seed in trials]).T
        for name in MEASURES
    }
    num_diverged = sum(one.num_diverged for seed in trials for one in seed)
    return TaskResult(
        error,
        accuracy,
        validation,
        chosen.astype(int),
        measures,
        num_diverged,
        information_exponent,
    )


def interval(values: np.ndarray) -> Interval:
    """Mean over the last axis, of seeds, with its t interval."""
    number = values.shape[-1]
    error = np.std(values, axis=-1, ddof=1) / np.sqrt(number)
    quantile = scipy.stats.t.ppf(0.975, number - 1)
    return Interval(np.mean(values, axis=-1), quantile * error)


def best_kernel(task: TaskResult, of: Quantity = "error") -> np.ndarray:
    """Test error, or accuracy, ``[s, r]`` of the fixed kernel that validation prefers.

    Chosen anew for each training set: as good as choosing among kernels can be.
    """
    rows = [METHODS.index(name) for name in FIXED_KERNELS]
    best = np.argmin(task.validation[rows], axis=0)
    values = getattr(task, of)[rows]
    return np.take_along_axis(values, best[None], axis=0)[0]


def advantage(
    task: TaskResult, *, over: str | None = None, of: Quantity = "error"
) -> Interval:
    """What the network has minus what another method has, paired over seeds.

    Args:
        task: The measurements.
        over: The other method; None for the best fixed kernel.
        of: Test error or accuracy.

    Returns:
        Means and half widths, one for each size.
    """
    values = getattr(task, of)
    other = best_kernel(task, of) if over is None else values[METHODS.index(over)]
    return interval(values[METHODS.index("network")] - other)


def winners(difference: Interval) -> list[Winner]:
    """Who errs less at every size; undecided where the interval contains zero."""
    mean, half = difference
    ahead = np.where(mean < 0, "network", "kernel")
    return list(np.where(np.abs(mean) > half, ahead, "undecided"))


def exponents(task: TaskResult, sizes: tuple[int, ...]) -> dict[str, Estimate]:
    """Power of ``n`` in the test error, by method and of the best fixed kernel."""
    curves = dict(zip(METHODS, task.error, strict=True))
    curves["best fixed kernel"] = best_kernel(task)
    if len(sizes) < 2:
        nothing = Estimate(jnp.asarray(jnp.nan), jnp.asarray(jnp.nan), 0)
        return dict.fromkeys(curves, nothing)
    return {name: kernels.power_law(np.array(sizes), v) for name, v in curves.items()}


def verdict(tasks: dict[str, TaskResult], sizes: tuple[int, ...]) -> list[str]:
    """What the intervals say, at the largest size and of the exponents."""
    ends, lines = {}, []
    for name, task in tasks.items():
        difference = advantage(task)
        ends[name] = winners(difference)[-1]
        mean, half = difference.mean[-1], difference.half_width[-1]
        line = f"{name}: network minus best fixed kernel {mean:+.3f} +- {half:.3f}"
        line += f" at n = {sizes[-1]:,}: {_phrase(ends[name])}"
        lines.append(line + _slopes(exponents(task, sizes)) + _accuracies(task))
    count = lambda winner: sum(end == winner for end in ends.values())
    lines.append(
        f"In squared error at n = {sizes[-1]:,} the network is ahead of every fixed "
        "kernel on "
        f"{count('network')} of {len(tasks)} tasks, behind on {count('kernel')}, and "
        f"{count('undecided')} are undecided."
    )
    return lines


def _phrase(winner: Winner) -> str:
    ahead = {"network": "the network is ahead", "kernel": "the kernel is ahead"}
    return ahead.get(winner, "undecided")


def _accuracies(task: TaskResult) -> str:
    """Who is right more often: less squared error need not mean more right answers."""
    if np.isnan(task.accuracy).all():
        return "."
    mean, half = (array[-1] for array in advantage(task, of="accuracy"))
    who = "the network" if mean > 0 else "the kernel"
    who = "undecided" if abs(mean) <= half else f"{who} is ahead"
    return f"; in accuracy {mean:+.3f} +- {half:.3f}: {who}."


def _slopes(fitted: dict[str, Any]) -> str:
    """Whether the network's error falls faster, where that can be told."""
    network, kernel = fitted["network"], fitted["best fixed kernel"]
    if not np.isfinite(float(network.value)) or not np.isfinite(float(kernel.value)):
        return ""
    gap = float(network.value - kernel.value)
    error = np.hypot(float(network.standard_error), float(kernel.standard_error))
    text = f"; exponent {float(network.value):.2f} against {float(kernel.value):.2f}, "
    if abs(gap) <= 2 * error:
        return f"{text}equal within two standard errors"
    return f"{text}its error falls {'faster' if gap < 0 else 'more slowly'}"
