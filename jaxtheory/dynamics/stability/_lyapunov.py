"""Lyapunov exponents of training, and of any map, by QR along the trajectory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from jaxtheory._types import KeyArray, Objective, Params, TrainState
from jaxtheory.batching import check_count, check_function, check_key, check_params
from jaxtheory.dynamics._step import _NOISE, first_order
from jaxtheory.dynamics.stability._frame import (
    LyapunovExponents,
    first_frame,
    follow,
    summary,
)
from jaxtheory.dynamics.stability._jacobian import (
    check_training,
    coordinates,
    linearise,
    next_batch,
)


def lyapunov_exponents(
    objective: Objective,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    num: int,
    num_steps: int,
    key: KeyArray,
    batch_size: int | None = None,
    warm_up: int | None = None,
) -> LyapunovExponents:
    r"""Lyapunov exponents of training: how fast perturbations of the run grow.

    .. math:: \lambda_i = \lim_{T \to \infty} \frac{1}{T} \sum_{t=1}^{T}
        \log |R_t^{ii}|, \qquad J_t Q_{t-1} = Q_t R_t

    with ``J_t`` the Jacobian of the step that `dynamics.train` takes with the same
    arguments (the same batches and keys) on the vector of the parameters and the
    floating-point leaves of the optimizer state. For SGD it is ``I - eta H_t`` with
    the Hessian of the batch; momentum and Adam have exponents of their buffers too.
    Products come from one forward derivative through the optax step; counters, random
    keys and the model state are advanced and not perturbed. Natural logarithms, per
    step; for a fixed quadratic the exponents of gradient descent are
    ``log|1 - eta h_i|``.

    A floating-point number that the optimizer keeps in its state and never changes (a
    learning rate of `optax.inject_hyperparams`) is a coordinate like any other, with
    the exponent 0.

    Adam is not differentiable where a second moment is 0, that is at parameters whose
    gradient has always been 0 (the weights of a pixel that is always black):
    `nonfinite_step` tells. Give it a positive ``eps_root``.

    Args:
        objective: ``objective(params, model_state, batch, key) -> (scalar,
            model_state)``; see `dynamics.supervised`.
        state: Where to start: a `TrainState`.
        optimizer: The optax optimizer that `state` was made with.
        data: Pytree of arrays ``[n, ...]``.
        num: Number of leading exponents, at most the number of coordinates.
        num_steps: Number of recorded steps, at least 4.
        key: Random key of batches, objective and first directions.
        batch_size: Examples per step; None takes all.
        warm_up: Steps before the recorded ones, in which the directions align; by
            default a tenth of `num_steps`.

    Returns:
        Exponents with standard errors, their record over time, and flags.

    Raises:
        ValueError: An argument is out of range or does not fit the others.

    Memory:
        ``num`` vectors of coordinates, as many products at once, and ``num`` numbers a
        step. A step costs one gradient and ``num`` Hessian products.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> curvature = jnp.array([[1.0, 30.0]])
        >>> loss = lambda w, state, h, key: (jnp.sum(h[0] * w**2) / 2, state)
        >>> optimizer = optax.sgd(0.1)
        >>> got = lyapunov_exponents(
        ...     loss,
        ...     dynamics.init(optimizer, jnp.ones(2)),
        ...     optimizer,
        ...     curvature,
        ...     num=2,
        ...     num_steps=40,
        ...     key=jax.random.key(0),
        ... )
        >>> [round(float(x), 3) for x in got.exponents.value]  # log 2 and log 0.9
        [0.693, -0.105]

    References:
        Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15 (1980).
    """
    check_key(key)
    recipe, state, data = check_training(objective, state, optimizer, data, batch_size)
    warm_up, num_steps = _check_steps(warm_up, num_steps)
    num = _check_num(num, jax.eval_shape(lambda s: coordinates(s)[0], state).size)
    return _along_training(recipe, num, warm_up, num_steps, state, data, key)


def lyapunov_exponents_of_map(
    step: Callable[[Any, Any], Any],
    x: Params,
    *,
    num: int,
    num_steps: int,
    key: KeyArray,
    warm_up: int | None = None,
) -> LyapunovExponents:
    """Lyapunov exponents of any differentiable map, random or not.

    As `lyapunov_exponents`, of ``x <- step(x, key_t)`` with ``key_t`` folded in from
    `key` for each step.

    Args:
        step: ``step(x, key) -> x``; a deterministic one ignores the key. Compiled once
            per function: hand arrays over in a `jax.tree_util.Partial`.
        x: Where to start: a pytree of floating-point arrays.
        num: Number of leading exponents, at most the number of entries of `x`.
        num_steps: Number of recorded steps, at least 4.
        key: Random key.
        warm_up: Steps before the recorded ones; by default a tenth of `num_steps`.

    Returns:
        Exponents with standard errors, their record over time, and flags.

    Raises:
        ValueError: An argument is out of range, or `step` does not return what it got.

    Memory:
        ``num`` copies of `x` and ``num`` numbers a step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> double = lambda x, key: 2 * x % 1
        >>> got = lyapunov_exponents_of_map(
        ...     double, jnp.array([0.3]), num=1, num_steps=10, key=jax.random.key(0)
        ... )
        >>> round(float(got.exponents.value[0]), 4)  # log 2
        0.6931
    """
    check_params(x, "x")
    check_key(key)
    check_function("step", step)
    warm_up, num_steps = _check_steps(warm_up, num_steps)
    x = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), x)
    num = _check_num(num, sum(leaf.size for leaf in jax.tree.leaves(x)))
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    after = shapes(jax.eval_shape(step, x, key))
    if after != shapes(x):
        raise ValueError(
            f"`step` must return what it got, {shapes(x)}, but returned {after}."
        )
    if not isinstance(step, jax.tree_util.Partial):
        step = jax.tree_util.Partial(step)
    return _along_map(num, warm_up, num_steps, step, x, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _along_training(recipe, num, warm_up, num_steps, state, data, key):
    """Follow the directions along a run."""

    def advance(carry, now):
        state, order = carry
        batch, order = next_batch(recipe, order, data, now, key)
        noise = jax.random.fold_in(jax.random.fold_in(key, _NOISE), now)
        after, push = linearise(recipe, state, batch, noise)
        finite = jnp.all(jnp.isfinite(coordinates(after)[0]))
        return (after, order), push, finite

    # The initial parameters need not go round the loop.
    initial_params, state = state.initial_params, state._replace(initial_params=())
    carry = state, first_order(recipe, data, state.step, key)
    frame = first_frame(num, coordinates(state)[0], key)
    steps = state.step + jnp.arange(warm_up + num_steps)
    (state, _), growth, finite = follow(advance, carry, frame, steps)
    state = state._replace(initial_params=initial_params)
    return summary(growth, finite, warm_up, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _along_map(num, warm_up, num_steps, step, x, key):
    """Follow the directions along the orbit of a map."""
    flat, unravel = ravel_pytree(x)

    def advance(flat, now):
        noise = jax.random.fold_in(jax.random.fold_in(key, _NOISE), now)
        image = lambda flat: ravel_pytree(step(unravel(flat), noise))[0]
        after, push = jax.linearize(image, flat)
        wide = lambda v: push(v.astype(flat.dtype)).astype(v.dtype)
        return after, wide, jnp.all(jnp.isfinite(after))

    frame = first_frame(num, flat, key)
    steps = jnp.arange(warm_up + num_steps)
    flat, growth, finite = follow(advance, flat, frame, steps)
    return summary(growth, finite, warm_up, unravel(flat))


def _check_steps(warm_up, num_steps):
    num_steps = check_count(at_least=4, num_steps=num_steps)
    if warm_up is None:
        return num_steps // 10, num_steps
    return check_count(at_least=0, warm_up=warm_up), num_steps


def _check_num(num, most):
    num = check_count(num=num)
    if num > most:
        raise ValueError(
            f"`num` must be at most {most}, the number of coordinates, but was {num}."
        )
    return num
