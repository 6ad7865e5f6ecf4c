"""Directions along a trajectory: how they grow, and the averages of that."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtheory._types import Estimate

# A stream of its own beside those of training: the first directions.
_FRAME = 2
# Fewer batch means than this say little of their own spread.
_FEWEST_BATCHES = 10


class LyapunovExponents(NamedTuple):
    """The leading Lyapunov exponents along one trajectory, in nats per step.

    Attributes:
        exponents: The exponents ``[num]``, in the order in which the directions were
            orthonormalised: largest first once they are told apart. Standard errors are
            of `num_samples` batch means; infinite where an exponent is ``-inf`` (the
            step is singular).
        total: Their sum, the growth rate of ``num``-dimensional volumes, with its own
            standard error.
        growth: Logarithmic growth along each direction in each recorded step,
            ``[t, num]``; its mean over steps is `exponents`.
        running: Finite-time exponents, means of `growth` from its first row on,
            ``[t, num]``.
        settled: Whether the means over the first and the second half agree to three
            standard errors of their difference, ``[num]``. Where they do not, the
            trajectory was too short or still on its way.
        too_short: Whether fewer than 100 steps were recorded, so that the standard
            errors rest on fewer than ten batch means.
        nonfinite_step: The first step, counted from the first of the warm-up, at which
            state or directions were not finite; -1 if none. If there is one, nothing
            from there on means anything, nor do the averages.
        state: Where the trajectory ended.
    """

    exponents: Estimate
    total: Estimate
    growth: Float[Array, "t num"]
    running: Float[Array, "t num"]
    settled: Bool[Array, " num"]
    too_short: Bool[Array, ""]
    nonfinite_step: Int[Array, ""]
    state: Any


def first_frame(num, like, key):
    """Orthonormal directions in general position, one a row.

    Args:
        num: How many.
        like: A vector of their length and dtype.
        key: Random key of the trajectory.

    Returns:
        The directions, ``[num, D]``.
    """
    dtype = jnp.promote_types(like.dtype, jnp.float32)
    draws = jax.random.normal(
        jax.random.fold_in(key, _FRAME), (num, like.size), dtype=dtype
    )
    return _orthonormalise(draws)[0]


def _orthonormalise(rows):
    """Gram-Schmidt of the rows, stably; with the logarithm of what each had left."""
    q, r = jnp.linalg.qr(rows.T)
    return q.T, jnp.log(jnp.abs(jnp.diagonal(r)))


def follow(advance, carry, frame, steps):
    """Push directions along a trajectory, making them orthonormal after each step.

    Args:
        advance: ``advance(carry, now) -> (carry, product with the Jacobian, finite)``.
        carry: Where the trajectory begins.
        frame: The directions, ``[num, D]``.
        steps: The steps, ``[t]``.

    Returns:
        Where it ends, logarithmic growth ``[t, num]``, and which steps were finite.
    """

    def body(both, now):
        carry, frame = both
        carry, push, finite = advance(carry, now)
        frame, growth = _orthonormalise(jax.vmap(push)(frame))
        # Minus infinity is no accident: the step is singular.
        finite &= jnp.all(jnp.isfinite(frame)) & jnp.all(growth < jnp.inf)
        return (carry, frame), (growth, finite)

    (carry, _), (growth, finite) = jax.lax.scan(body, (carry, frame), steps)
    return carry, growth, finite


def summary(growth, finite, warm_up, state):
    """Averages of the recorded steps.

    Args:
        growth: Logarithmic growth in all steps, ``[t, num]``.
        finite: Which of them were finite, ``[t]``.
        warm_up: How many to leave out.
        state: Where the trajectory ended.

    Returns:
        Exponents and flags.
    """
    growth = growth[warm_up:]
    num_steps = growth.shape[0]
    exponents = _batch_means(growth)
    running = jnp.cumsum(growth, axis=0) / jnp.arange(1, num_steps + 1)[:, None]
    half = num_steps // 2
    change = jnp.mean(growth[half:], axis=0) - jnp.mean(growth[:half], axis=0)
    # A standard error of the difference is two of the mean. What has converged but for
    # rounding has hardly any.
    rounding = jnp.sqrt(jnp.finfo(growth.dtype).eps) * (1 + jnp.abs(exponents.value))
    return LyapunovExponents(
        exponents,
        _batch_means(jnp.sum(growth, axis=1)),
        growth,
        running,
        jnp.abs(change) <= 6 * exponents.standard_error + rounding,
        jnp.asarray(exponents.num_samples < _FEWEST_BATCHES),
        jnp.where(jnp.all(finite), -1, jnp.argmin(finite)),
        state,
    )


def _batch_means(series):
    """The mean over axis 0, its standard error from ``sqrt(t)`` batch means."""
    num_batches = math.isqrt(series.shape[0])
    size = series.shape[0] // num_batches
    late = series[series.shape[0] - num_batches * size :]
    means = jnp.mean(late.reshape(num_batches, size, *series.shape[1:]), axis=1)
    error = jnp.std(means, axis=0, ddof=1) / math.sqrt(num_batches)
    value = jnp.mean(series, axis=0)
    error = jnp.where(jnp.isneginf(value), jnp.inf, error)
    return Estimate(value, error, num_batches)
