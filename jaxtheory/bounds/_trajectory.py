"""What the bounds of trajectories share: checks of their inputs, and statements."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxtheory._types import Bound
from jaxtheory.batching import check_count, check_number
from jaxtheory.bounds._ledger import (
    ESTIMATED,
    SETTING,
    VERIFIED,
    VIOLATED,
    check_concrete,
    make_bound,
)

IN_EXPECTATION = (
    ESTIMATED,
    "the bound is on an expectation over training sets, its empirical risk that of one",
)
BOUNDED = (SETTING, "the loss of every example lies between 0 and `loss_bound`")
LOSSES_IN_RANGE = (VERIFIED, "the losses given do")
NO_INFORMATION_TERM = (
    VIOLATED,
    "the iterates were fixed before the examples were seen (what they know of the "
    "examples costs an information term, which is unknown and left out)",
)


def gap_bound(
    *,
    empirical_risk: float,
    gap: float,
    loss_bound: float,
    delta: float | None,
    assumptions: Sequence[tuple[str, str]],
) -> Bound:
    """A `Bound` on the risk of a loss in ``[0, loss_bound]``, from one on the gap.

    Args:
        empirical_risk: Mean training loss.
        gap: Upper bound on risk minus mean training loss.
        loss_bound: Largest loss, to which `vacuous` refers.
        delta: See `Bound`.
        assumptions: As for `make_bound`.

    Returns:
        The bound; `complexity` is the bound on the gap.
    """
    bound = make_bound(
        value=empirical_risk + gap,
        empirical_risk=empirical_risk,
        complexity=gap,
        delta=delta,
        assumptions=assumptions,
    )
    return bound._replace(vacuous=bound.value >= loss_bound)


def check_loss_bound(loss_bound: Any) -> float:
    """The largest loss as a float; raise unless it is positive and finite."""
    check_concrete(loss_bound=loss_bound)
    positive = lambda b: 0 < b < np.inf
    check_number("loss_bound", loss_bound, positive, "positive and finite")
    return float(loss_bound)


def check_setting(
    empirical_risk: Any, num_examples: Any, loss_bound: Any
) -> tuple[float, int, float]:
    """Risk, number of examples and largest loss; raise unless they fit together."""
    check_concrete(empirical_risk=empirical_risk, num_examples=num_examples)
    largest = check_loss_bound(loss_bound)
    n = check_count(at_least=2, num_examples=num_examples)
    # A clipped loss in single precision may exceed the limit by its rounding.
    check_number(
        "empirical_risk",
        empirical_risk,
        lambda risk: 0 <= risk <= largest * (1 + 2e-7),
        "between 0 and `loss_bound` (clip the losses or raise the limit)",
    )
    return min(float(empirical_risk), largest), n, largest


def check_losses(
    losses: Any, loss_bound: Any, name: str = "losses"
) -> tuple[np.ndarray, float]:
    """Losses ``[r, n]`` in float64 and the largest; raise unless they fit together."""
    check_concrete(**{name: losses})
    largest = check_loss_bound(loss_bound)
    given = np.asarray(losses)
    if given.ndim != 2 or given.shape[0] < 1 or given.shape[1] < 2:
        raise ValueError(
            f"`{name}` must be the losses of at least 2 examples at each record, "
            f"[r, n], but has shape {given.shape}. Record them with "
            "`dynamics.example_losses`."
        )
    is_float = jnp.issubdtype(given.dtype, jnp.floating)
    if not is_float and not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"`{name}` must be real, but has dtype {given.dtype}.")
    array = given.astype(np.float64)
    # The limit as the losses' own precision knows it: 0.1 is larger in float32.
    limit = float(np.asarray(largest, given.dtype)) if is_float else largest
    outside = int(np.sum(~((array >= 0) & (array <= max(limit, largest)))))
    if outside:
        raise ValueError(
            f"`{name}` must lie between 0 and `loss_bound` = {largest:g}, but "
            f"{outside} of {array.size} do not, or are not finite. Clip the losses, "
            "which changes what the bound is about, or raise the limit."
        )
    return np.minimum(array, largest), largest


def count_examples(
    losses: np.ndarray, num_examples: Any
) -> tuple[int, list[tuple[str, str]]]:
    """Number of training examples, and what is assumed where losses are of some alone.

    Args:
        losses: Losses ``[r, m]``, checked.
        num_examples: Number of all training examples; None for ``m``.

    Returns:
        The number, and an assumption if it is above ``m``.
    """
    columns = losses.shape[1]
    n = columns if num_examples is None else check_count(num_examples=num_examples)
    if n < columns:
        raise ValueError(
            f"`num_examples` must be at least the {columns} examples of `losses`, but "
            f"was {n}."
        )
    if n == columns:
        return n, []
    text = f"the losses of {n} examples, by those of a random {columns} of them"
    return n, [(ESTIMATED, text)]


def check_steps(*, positive: Sequence[str] = (), **arrays: Any) -> list[np.ndarray]:
    """Arrays over training steps in float64; raise unless one number a step each.

    Args:
        positive: Names of those that must be above zero; the others at least zero.
        **arrays: Vectors of one length, or single numbers that hold for every step.
            The first must be a vector.

    Returns:
        Vectors of one length, in the order given.
    """
    check_concrete(**arrays)
    first, length = next(iter(arrays)), None
    found = []
    for name, values in arrays.items():
        array = np.asarray(values)
        real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(
            array.dtype, jnp.integer
        )
        right = array.ndim == 1 and array.size > 0 if length is None else None
        if right is None:
            right = array.shape in ((), (length,))
        if not real or not right:
            size = "at least 1" if length is None else f"{length}, as `{first}` has,"
            raise ValueError(
                f"`{name}` must hold one real number for each training step ({size} "
                f"of them), but has shape {array.shape} and dtype {array.dtype}."
            )
        length = array.size if length is None else length
        array = np.broadcast_to(array.astype(np.float64), (length,))
        above = array > 0 if name in positive else array >= 0
        if not np.all(above & (array < np.inf)):
            must = "positive" if name in positive else "at least 0"
            raise ValueError(
                f"`{name}` must be {must} and finite at every step, but "
                f"{int(np.sum(~(above & (array < np.inf))))} of {length} are not."
            )
        found.append(array)
    return found


def signal_to_noise(
    rates: np.ndarray, scales: np.ndarray, squares: np.ndarray
) -> float:
    """``sum_t eta_t^2 q_t / s_t^2``; infinite, and never NaN, where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.sum(np.square(rates * np.sqrt(squares) / scales)))
