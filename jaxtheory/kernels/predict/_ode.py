"""An adaptive Runge-Kutta method for one array, jitted, that says how far it came."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# The coefficients of Dormand and Prince (1980), of order 5 with an error of order 4.
_STAGES = np.array(
    [
        [1 / 5, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ]
)
_FOURTH = np.array(
    [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]
)
_ERROR = np.append(_STAGES[-1], 0) - _FOURTH


def integrate(
    velocity: Callable[[Array], Array],
    start: Array,
    times: Float[Array, " r"],
    error: Callable[[Array, Array], Array],
    *,
    max_steps: int,
) -> tuple[Array, Bool[Array, " r"]]:
    """Solve ``dy/dt = velocity(y)`` from time 0.

    Args:
        velocity: The field; it does not depend on time.
        start: ``y`` at time 0.
        times: When to report, in ascending order.
        error: ``error(change, y)``, the size of an error relative to what is tolerated.
        max_steps: Most steps tried, all times together.

    Returns:
        ``y`` at each time, and whether that time was reached; the last ``y`` otherwise.
    """
    slope = velocity(start)
    # A first guess, which the error of the first step corrects.
    first = 1 / jnp.maximum(error(slope, start), jnp.finfo(start.dtype).tiny)
    zero = jnp.zeros((), times.dtype)
    size = jax.lax.stop_gradient(first).astype(times.dtype)
    state = (zero, start, slope, size, jnp.zeros((), int))

    def advance(state, end):
        going = lambda state: (
            (state[0] < end) & (state[4] < max_steps) & jnp.all(jnp.isfinite(state[2]))
        )
        step = lambda state: _step(velocity, error, state, end)
        state = jax.lax.while_loop(going, step, state)
        return state, (state[1], state[0] >= end)

    return jax.lax.scan(advance, state, times)[1]


def _step(velocity, error, state, end):
    """Try one step, not past `end`; keep it if its error is tolerable."""
    time, y, slope, size, count = state
    last = time + size >= end
    length = jnp.where(last, end - time, size)
    new, slopes = y, [slope]
    for row in _STAGES:
        new = y + length * _combine(row, slopes)
        slopes.append(velocity(new))
    miss = error(length * _combine(_ERROR, slopes), new)
    accepted = miss <= 1
    # Errors grow with the fifth power; a miss that is not finite shrinks the step.
    factor = jnp.clip(0.9 * jnp.where(miss > 0, miss, 1e-10) ** -0.2, 0.2, 5.0)
    factor = jnp.where(jnp.isfinite(miss), factor, 0.2)
    proposed = length * factor.astype(length.dtype)
    # A step cut short to end here says little about the size of the next.
    proposed = jnp.where(accepted & last, jnp.maximum(proposed, size), proposed)
    # The steps' sizes are no part of the solution, nor of its derivatives.
    proposed = jax.lax.stop_gradient(proposed)
    time = jnp.where(accepted, jnp.where(last, end, time + length), time)
    keep = lambda a, b: jnp.where(accepted, a, b)
    return time, keep(new, y), keep(slopes[-1], slope), proposed, count + 1


def _combine(weights, slopes):
    """The weighted sum of as many slopes as there are."""
    return sum(
        float(w) * slope for w, slope in zip(weights, slopes, strict=False) if w != 0
    )
