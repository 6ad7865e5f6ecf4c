"""Gradient flow, and the flow of the modified loss, at the times of gradient descent.

Explicit Runge-Kutta of order 5 with an embedded error estimate (Dormand & Prince, J.
Comput. Appl. Math. 6, 1980): near the edge of stability a fixed step would have to be
known beforehand.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from jaxtheory._types import Params, StatefulMeasurement, TrainState
from jaxtheory.batching import check_count, check_number
from jaxtheory.dynamics.implicit._loss import (
    check_loss,
    check_times,
    flat_loss,
    flatten,
)

# Of the method: the stages' coefficients (the last row is the result), and the
# difference of the result from that of order 4.
_STAGES = (
    np.array([1 / 5]),
    np.array([3 / 40, 9 / 40]),
    np.array([44 / 45, -56 / 15, 32 / 9]),
    np.array([19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729]),
    np.array([9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656]),
    np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]),
)
_ORDER_4 = (
    5179 / 57600,
    0,
    7571 / 16695,
    393 / 640,
    -92097 / 339200,
    187 / 2100,
    0.025,
)
_DIFFERENCE = np.append(_STAGES[-1], 0) - np.array(_ORDER_4)


class Flow(NamedTuple):
    """A continuous-time path at the times of gradient descent's steps.

    Attributes:
        steps: Gradient descent's steps ``s`` that were recorded, from 0.
        times: ``learning_rate * s``.
        path: The parameters, each leaf with a leading axis ``r``.
        losses: The loss (never the modified one) there.
        error: Sum of the estimated local errors (Euclidean norm) up to the record; the
            order of the error, as long as the flow does not pull paths apart.
        converged: Whether the record was reached within `max_substeps` for each
            interval. Where not, as on a path that leaves for infinity in finite time,
            `path` stays where it got to.
        num_evaluations: Evaluations of the flow's velocity altogether.
    """

    steps: Int[np.ndarray, " r"]
    times: Float[Array, " r"]
    path: PyTree[Float[Array, "r ..."]]
    losses: Float[Array, " r"]
    error: Float[Array, " r"]
    converged: Bool[Array, " r"]
    num_evaluations: Int[Array, ""]


class _Point(NamedTuple):
    """Where the integration stands."""

    flat: Array
    size: Array
    error: Array
    reached: Array
    num_evaluations: Array


def gradient_flow(
    loss: Callable[..., Float[Array, ""]],
    params: Params,
    *data: PyTree,
    learning_rate: Real[ArrayLike, ""],
    num_steps: int,
    record_every: int = 1,
    tolerance: Real[ArrayLike, ""] | None = None,
    max_substeps: int = 10_000,
) -> Flow:
    """Integrate gradient flow, ``dw/dt = -grad L(w)``, beside gradient descent.

    Step ``s`` of gradient descent stands at time ``learning_rate * s``. At a fixed time
    the two are ``O(learning_rate)`` apart.

    Args:
        loss: ``loss(params, *data) -> scalar``, the loss as gradient descent
            differentiates it (for a mean loss, the mean).
        params: Where both start.
        *data: Arrays that `loss` needs. (What it closes over is compiled in.)
        learning_rate: ``eta``.
        num_steps: Steps of gradient descent to go along with.
        record_every: Steps between records; divides `num_steps`.
        tolerance: Local error of an integration step over the norm of the parameters;
            None is the unit roundoff to the power 3/4.
        max_substeps: Most integration steps, refused ones included, from one record to
            the next.

    Returns:
        The path at steps ``0, record_every, ..., num_steps``; see `Flow`.

    Raises:
        ValueError: `loss` does not return one number, `params` are not floating-point,
            or a number is out of range.

    Memory:
        The path, ``r p`` numbers, and 8 vectors ``[p]``. At least 6 gradients for each
        record; the Hessian's largest eigenvalue times the time, over 3, where that is
        more.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w: jnp.sum(w**2) / 2
        >>> flow = gradient_flow(loss, jnp.ones(1), learning_rate=0.5, num_steps=4)
        >>> flow.path[:, 0].round(4).tolist() == jnp.exp(-flow.times).round(4).tolist()
        True

    References:
        Barrett & Dherin, arXiv:2009.11162, section 2.
    """
    options = (learning_rate, num_steps, record_every, tolerance, max_substeps)
    return _integrate("gradient", loss, params, data, *options)


def modified_flow(
    loss: Callable[..., Float[Array, ""]],
    params: Params,
    *data: PyTree,
    learning_rate: Real[ArrayLike, ""],
    num_steps: int,
    record_every: int = 1,
    tolerance: Real[ArrayLike, ""] | None = None,
    max_substeps: int = 10_000,
) -> Flow:
    r"""Integrate the flow of the modified loss ``L + (eta / 4) |grad L|^2``.

    .. math:: \dot w = -\nabla L(w) - \frac{\eta}{2} \nabla^2 L(w) \nabla L(w)

    To first order in ``eta`` the flow that gradient descent follows: at a fixed time
    the two are ``O(eta^2)`` apart, where gradient flow is ``O(eta)`` away. Says nothing
    at the edge of stability.

    Args:
        loss: ``loss(params, *data) -> scalar``, as for `gradient_flow`, as are all
            others.
        params: Where both start.
        *data: Arrays that `loss` needs.
        learning_rate: ``eta``, of the modified loss too.
        num_steps: Steps of gradient descent to go along with.
        record_every: Steps between records.
        tolerance: Local error of an integration step over the norm of the parameters.
        max_substeps: Most integration steps from one record to the next.

    Returns:
        The path at steps ``0, record_every, ..., num_steps``; see `Flow`.

    Raises:
        ValueError: As for `gradient_flow`.

    Memory:
        As for `gradient_flow`; each evaluation costs about three gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w: jnp.sum(w**2) / 2
        >>> flow = modified_flow(loss, jnp.ones(1), learning_rate=0.1, num_steps=10)
        >>> round(float(flow.path[-1, 0]), 4), round(0.9**10, 4)  # beside exp(-1)
        (0.3499, 0.3487)

    References:
        Barrett & Dherin, arXiv:2009.11162, theorem 3.1.
    """
    options = (learning_rate, num_steps, record_every, tolerance, max_substeps)
    return _integrate("modified", loss, params, data, *options)


def flow_distance(
    loss: Callable[..., Float[Array, ""]],
    *data: PyTree,
    learning_rate: Real[ArrayLike, ""],
    flow: Literal["gradient", "modified"] = "gradient",
    tolerance: Real[ArrayLike, ""] | None = None,
    max_substeps: int = 10_000,
) -> StatefulMeasurement:
    """Measure, while training, how far it is from a flow that started with it.

    For `train`'s `record`: the flow starts at the state that training starts from, and
    moves on from record to record by as many steps as training took. `central_flow` has
    a path of its own, to be compared by `path_distance`.

    Args:
        loss: ``loss(params, *data) -> scalar``, as for `gradient_flow`. Each call of
            this function makes a new measurement, to be compiled anew.
        *data: Arrays that `loss` needs.
        learning_rate: The learning rate of training.
        flow: ``"gradient"``, as `gradient_flow`, or ``"modified"``, as `modified_flow`.
        tolerance: Local error of an integration step over the norm of the parameters.
        max_substeps: Most integration steps from one record to the next.

    Returns:
        A measurement of a dictionary: ``"distance"`` (Euclidean, of the parameters),
        ``"loss"`` of the flow, and its ``"error"`` and ``"converged"`` as in `Flow`.

    Raises:
        ValueError: A number is out of range, `flow` is another word; in training,
            `loss` does not return one number.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> loss = lambda w, target: jnp.sum((w - target) ** 2) / 2
        >>> target = jnp.ones((1, 1))
        >>> history = dynamics.train(
        ...     lambda w, state, batch, key: (loss(w, batch), state),
        ...     dynamics.init(optax.sgd(0.1), jnp.zeros((1, 1))),
        ...     optax.sgd(0.1),
        ...     target,
        ...     num_steps=10,
        ...     key=jax.random.key(0),
        ...     record={"flow": flow_distance(loss, target, learning_rate=0.1)},
        ...     progress=False,
        ... )
        >>> print(history.records["flow"]["distance"].round(4))  # exp(-1) - .9^10
        [0.     0.0192]
    """
    check_times(learning_rate, 1, 1)
    _check_accuracy(tolerance, max_substeps)
    if flow not in ("gradient", "modified"):
        raise ValueError(
            f"`flow` must be 'gradient' or 'modified', but was {flow!r}. Compare with "
            "the path of `central_flow` by `path_distance`."
        )

    def init(state: TrainState):
        check_loss(loss, state.params, data)
        flat, _ = flatten(state.params)
        return _start(flat), jnp.asarray(state.step)

    def measure(state: TrainState, memory):
        before, step = memory
        flat, _ = flatten(state.params)
        value = flat_loss(loss, state.params, data)
        eta = jnp.asarray(learning_rate, flat.dtype)
        velocity = _velocity(flow, value, eta)
        span = (state.step - step).astype(flat.dtype)
        limits = _tolerance(tolerance, flat.dtype), max_substeps
        point = _advance(velocity, before, span, *limits)
        result = {
            "distance": jnp.linalg.norm(flat - point.flat),
            "loss": value(point.flat),
            "error": point.error,
            "converged": point.reached,
        }
        return result, (point, state.step)

    return StatefulMeasurement(init, measure)


def _integrate(
    kind, loss, params, data, learning_rate, num_steps, every, tolerance, max_substeps
):
    """Check the arguments, and call the compiled routine."""
    check_loss(loss, params, data)
    num_records = check_times(learning_rate, num_steps, every)
    _check_accuracy(tolerance, max_substeps)
    static = (kind, loss, num_records, int(max_substeps))
    results = _flow(static, params, data, learning_rate, int(every), tolerance)
    return Flow(np.arange(num_records + 1) * int(every), *results)


@functools.partial(jax.jit, static_argnums=0)
def _flow(static, params, data, learning_rate, every, tolerance):
    kind, loss, num_records, max_substeps = static
    flat, unravel = flatten(params)
    eta = jnp.asarray(learning_rate, flat.dtype)
    value = flat_loss(loss, params, data)
    velocity = _velocity(kind, value, eta)
    limits = _tolerance(tolerance, flat.dtype), max_substeps
    span = jnp.asarray(every, flat.dtype)

    def interval(point, _):
        row = unravel(point.flat), value(point.flat), point.error, point.reached
        return _advance(velocity, point, span, *limits), row

    start = _start(flat)
    point, rows = jax.lax.scan(interval, start, length=num_records)
    last = unravel(point.flat), value(point.flat), point.error, point.reached
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), rows, last)
    times = jnp.arange(num_records + 1, dtype=flat.dtype) * span * eta
    return times, *rows, point.num_evaluations


def _velocity(kind, value, eta):
    """The change of the flat parameters in one step's worth of time."""
    gradient = jax.grad(value)

    def velocity(w):
        slope = gradient(w)
        if kind == "modified":
            slope += eta / 2 * jax.jvp(gradient, (w,), (slope,))[1]
        return -eta * slope

    return velocity


def _start(flat):
    one = jnp.ones((), flat.dtype)
    return _Point(flat, one, 0 * one, jnp.array(True), jnp.zeros((), jnp.int32))


def _advance(velocity, start, span, tolerance, max_substeps):
    """Integrate over `span` steps' worth of time, from a point that was reached."""

    def going(carry):
        _, _, time, taken = carry
        return start.reached & (time < span) & (taken < max_substeps)

    def substep(carry):
        point, first, time, taken = carry
        size = jnp.minimum(point.size, span - time)
        after, last, error = _runge_kutta(velocity, point.flat, first, size)
        scale = jnp.maximum(jnp.linalg.norm(point.flat), jnp.linalg.norm(after))
        ratio = error / (tolerance * scale + jnp.finfo(scale.dtype).tiny)
        ratio = jnp.where(jnp.isfinite(ratio), ratio, jnp.inf)
        good = ratio <= 1
        factor = jnp.clip(0.9 * jnp.maximum(ratio, 1e-8) ** -0.2, 0.2, 5.0)
        following = size * factor
        # A step cut short by the end of the interval says nothing against longer ones.
        short = good & (size < point.size)
        following = jnp.where(short, jnp.maximum(following, point.size), following)
        point = _Point(
            jnp.where(good, after, point.flat),
            following,
            point.error + jnp.where(good, error, 0),
            point.reached,
            point.num_evaluations + 6,
        )
        # Exactly the end: the sum of sizes may round to less.
        at_end = size >= span - time
        time = jnp.where(good, jnp.where(at_end, span, time + size), time)
        return point, jnp.where(good, last, first), time, taken + 1

    # Where the start was not reached nothing is integrated, and nothing has to be.
    first, zero = velocity(start.flat), jnp.zeros((), start.flat.dtype)
    carry = (start, first, zero, jnp.zeros((), jnp.int32))
    point, _, time, _ = jax.lax.while_loop(going, substep, carry)
    return point._replace(reached=start.reached & (time >= span))


def _runge_kutta(velocity, flat, first, size):
    """One step: the result, the velocity there, and the norm of the local error."""
    slopes, after = [first], flat
    for row in _STAGES:
        move = sum(c * slope for c, slope in zip(row.tolist(), slopes, strict=True))
        after = flat + size * move
        slopes.append(velocity(after))
    pairs = zip(_DIFFERENCE.tolist(), slopes, strict=True)
    error = size * jnp.linalg.norm(sum(c * slope for c, slope in pairs))
    return after, slopes[-1], error


def _tolerance(tolerance, dtype):
    if tolerance is None:
        return float(jnp.finfo(dtype).eps) ** 0.75
    return jnp.asarray(tolerance, dtype)


def _check_accuracy(tolerance, max_substeps):
    if tolerance is not None:
        positive = lambda t: 0 < t < float("inf")
        check_number("tolerance", tolerance, positive, "None, or positive and finite")
    check_count(max_substeps=max_substeps)
