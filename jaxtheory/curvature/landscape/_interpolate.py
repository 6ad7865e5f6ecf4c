"""The straight line between two networks, and the barrier on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from jaxtheory._types import LossFn, Params
from jaxtheory.batching import check_count, check_params
from jaxtheory.curvature.landscape._evaluate import (
    Recompute,
    check_landscape,
    check_same,
    losses_at,
)


class Interpolation(NamedTuple):
    """The loss between two networks.

    Attributes:
        coordinates: Shares ``a`` of the second network, from 0 to 1, ``[r]``.
        losses: Mean loss at ``(1 - a) params_a + a params_b``, ``[r]``.
        barrier: The largest excess over the straight line between the losses at the
            ends; at least 0, and NaN where a loss is.
    """

    coordinates: Float[Array, " r"]
    losses: Float[Array, " r"]
    barrier: Float[Array, ""]


def interpolate(
    apply_fn: Callable[..., Any],
    loss_fn: LossFn,
    params_a: Params,
    params_b: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    num: int = 25,
    recompute: Recompute | None = None,
    batch_size: int | None = None,
    points_at_once: int = 1,
) -> Interpolation:
    r"""Evaluate the mean loss between two networks, and the barrier on the way.

    .. math:: B = \max_a \left[ L((1-a) \theta_A + a \theta_B)
        - (1-a) L(\theta_A) - a L(\theta_B) \right]

    over `num` equally spaced ``a`` in ``[0, 1]``, both ends among them. It is zero for
    every convex loss, and a lower bound on the barrier between the grid's points. In
    units of the loss. (Others subtract the larger or the mean loss of the ends: for
    ends of equal loss all three agree.)

    Two networks trained alike may differ by an order of their units: call
    `match_weights` before. Those with BatchNorm need `recompute`: the statistics of
    neither end fit between them.

    Args:
        apply_fn: The model, as for `slice_1d`.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params_a: Parameters at ``a = 0``.
        params_b: Parameters at ``a = 1``, of the same network.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        num: Points, at least 2.
        recompute: As for `slice_1d`.
        batch_size: As for `slice_1d`.
        points_at_once: As for `slice_1d`.

    Returns:
        Coordinates, losses and the barrier.

    Raises:
        ValueError: The two parameters differ in structure or shapes, `num` is less than
            2, or as for `slice_1d`.

    Memory:
        As for `slice_1d`; `num` evaluations of the loss.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> two_wells = lambda outputs, y: (outputs**2 - y) ** 2
        >>> one = jnp.ones(1)
        >>> ends = (jnp.array(-1.0), jnp.array(1.0))
        >>> between = interpolate(model, two_wells, *ends, one, one, num=5)
        >>> between.losses.tolist()
        [0.0, 0.5625, 1.0, 0.5625, 0.0]
        >>> float(between.barrier)
        1.0

    References:
        Frankle, Dziugaite, Roy & Carbin, arXiv:1912.05671, section 2 (instability);
        Entezari, Sedghi, Saukh & Neyshabur, arXiv:2110.06296, definition 2.1 (this
        barrier).
    """
    check_params(params_a, "params_a")
    problem = check_landscape(
        apply_fn,
        loss_fn,
        params_a,
        x,
        y,
        recompute=recompute,
        batch_size=batch_size,
        points_at_once=points_at_once,
    )
    check_same(params_b, params_a, "params_b")
    num = check_count(at_least=2, num=num)
    shares = jnp.linspace(0.0, 1.0, num)
    losses = losses_at(problem, _between, (params_a, params_b), shares, x, y)
    return Interpolation(shares, losses, barrier(shares, losses))


def barrier(shares: Float[Array, " r"], losses: Float[Array, " r"]) -> Float[Array, ""]:
    """The largest excess of losses over the line between the first and the last.

    Args:
        shares: Positions from 0 to 1, ``[r]``.
        losses: Losses there, ``[r]``.

    Returns:
        ``max [L(a) - (1 - a) L(0) - a L(1)]``, at least 0.
    """
    straight = (1 - shares) * losses[0] + shares * losses[-1]
    # The ends are 0 exactly, so the largest is not negative; NaN stays NaN.
    return jnp.max(losses - straight)


def _between(ends, share):
    """``(1 - a) A + a B``, exact at both ends."""

    def leaf(a, b):
        a, b = jnp.asarray(a), jnp.asarray(b)
        return ((1 - share) * a + share * b).astype(a.dtype)

    return jax.tree.map(leaf, *ends)
