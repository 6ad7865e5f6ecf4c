"""When to record: every so many steps, or at steps of one's own."""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtheory.batching import check_count, check_number

# The most steps of one compiled chunk where records are further apart than that: what
# an interruption can cost, and rows that the trace needs on the device.
_MOST = 100


class Piece(NamedTuple):
    """Steps that are trained in one go, from `start` up to `end`.

    Attributes:
        start: Steps taken before.
        end: Steps taken after.
        recorded: Whether the state at the end is recorded.
    """

    start: int
    end: int
    recorded: bool


def exponential_steps(num_steps: int, *, base: float = 2.0) -> tuple[int, ...]:
    """Steps of a schedule whose gaps grow exponentially, for `train(record_every=)`.

    ``0, 1, base, base^2, ...`` rounded down to integers, without repetitions, and
    `num_steps` at the end.

    Args:
        num_steps: Number of steps of the run, the last one of the schedule.
        base: Factor from one step to the next; above 1.

    Returns:
        Increasing steps, the first 0 and the last `num_steps`.

    Raises:
        ValueError: `num_steps` is not a positive integer, or `base` not above 1.

    Example:
        >>> exponential_steps(20)
        (0, 1, 2, 4, 8, 16, 20)
    """
    num_steps = check_count(num_steps=num_steps)
    above_one = lambda value: 1.0 < value < np.inf
    check_number("base", base, above_one, "a finite number above 1")
    base = float(base)
    # As long as a factor is less than a step every step is there; of a base just above
    # 1 that is most of them, and too many factors to go through.
    dense = max(1, int(min(num_steps, 1 / (base - 1))))
    steps = {0, num_steps, *range(1, dense)}
    power = base ** int(math.log(dense) / math.log(base))
    while power < num_steps:
        steps.add(int(power))
        power *= base
    return tuple(sorted(steps))


def log_spaced_steps(num_steps: int, *, num: int) -> tuple[int, ...]:
    """Steps of a schedule that is even on a logarithmic axis, for `train`.

    ``num_steps^(i / (num - 1))`` for ``i = 0, ..., num - 1``, rounded to the nearest
    integer; each is there once, so the beginning has fewer, and 0 comes before them.

    Args:
        num_steps: Number of steps of the run, the last one of the schedule.
        num: How many steps after step 0, before repetitions are dropped; at least 2.

    Returns:
        Increasing steps, the first 0 and the last `num_steps`; at most ``num + 1``.

    Raises:
        ValueError: `num_steps` is not a positive integer, or `num` not one above 1.

    Example:
        >>> log_spaced_steps(1000, num=7)
        (0, 1, 3, 10, 32, 100, 316, 1000)
    """
    num_steps = check_count(num_steps=num_steps)
    num = check_count(at_least=2, num=num)
    exponents = np.linspace(0.0, np.log(num_steps), num)
    steps = np.rint(np.exp(exponents)).astype(np.int64)
    return (0, *np.unique(steps).tolist())


def check_schedule(num_steps: Any, record_every: Any) -> int | tuple[int, ...]:
    """The period of records, or their steps from the first on.

    Args:
        num_steps: Number of steps of the run.
        record_every: What `train` got.

    Returns:
        A divisor of `num_steps`, or increasing steps from 0 to `num_steps`.

    Raises:
        ValueError: It is neither.
    """
    for name, value in (("num_steps", num_steps), ("record_every", record_every)):
        if name == "record_every" and (value is None or _is_sequence(value)):
            continue
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_whole or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, but was {value!r}.")
    if record_every is None:
        num_steps = int(num_steps)
        return max(d for d in range(1, min(num_steps, _MOST) + 1) if num_steps % d == 0)
    if _is_sequence(record_every):
        return _check_steps(num_steps, record_every)
    if num_steps % record_every:
        raise ValueError(
            f"`record_every` must divide `num_steps`, so that the last state is "
            f"recorded, but {record_every} does not divide {num_steps}."
        )
    return int(record_every)


def pieces(schedule: int | Sequence[int], num_steps: int) -> list[Piece]:
    """The pieces of a run, counted from its first step.

    Where records are more than 100 steps apart, a sequence has pieces of 100 steps
    between them and a last one of what remains, so the pieces up to a record do not
    depend on what comes after it.

    Args:
        schedule: What `check_schedule` returned.
        num_steps: Number of steps of the run.

    Returns:
        The pieces in order.
    """
    if isinstance(schedule, int):
        ends = range(schedule, num_steps + 1, schedule)
        return [Piece(end - schedule, end, True) for end in ends]
    found = []
    for before, after in itertools.pairwise(schedule):
        for start in range(before, after, _MOST):
            end = min(start + _MOST, after)
            found.append(Piece(start, end, end == after))
    return found


def most_steps(schedule: int | Sequence[int]) -> int:
    """The most steps of a piece: for all sequences the same, hence one program."""
    return schedule if isinstance(schedule, int) else _MOST


def _is_sequence(value):
    is_array = isinstance(value, np.ndarray) and value.ndim == 1
    return is_array or (isinstance(value, Sequence) and not isinstance(value, str))


def _check_steps(num_steps, record_at):
    """Increasing steps from 0 to `num_steps`."""
    try:
        steps = [operator.index(step) for step in record_at]
    except TypeError:
        steps = []
    increasing = all(before < after for before, after in itertools.pairwise(steps))
    if not steps or not increasing or steps[0] < 0:
        raise ValueError(
            "`record_every` must be increasing integers from 0 on, without repetitions,"
            f" but was {_shortened(record_at)}. `log_spaced_steps` and "
            "`exponential_steps` make such schedules."
        )
    if steps[-1] != num_steps:
        raise ValueError(
            f"`record_every` must end with `num_steps`, {num_steps}, so that the last "
            f"state is recorded, but ends with {steps[-1]}. Add it."
        )
    return tuple(steps) if steps[0] == 0 else (0, *steps)


def _shortened(record_at):
    """The beginning of a sequence, for a message."""
    few = ", ".join(repr(step) for step in list(record_at)[:8])
    return f"[{few}{', ...' if len(record_at) > 8 else ''}]"
