"""Stochastic differential equations of training, Gaussian or heavy-tailed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_count,
    check_function,
    check_key,
    check_number,
    check_params,
    check_problem,
    example_losses,
)

_Kick = Callable[[Any, Any], Any]


class SDE(NamedTuple):
    """A stochastic differential equation ``dX = drift(X) dt + kick``.

    Attributes:
        drift: ``drift(x) -> tangent``.
        kick: ``kick(x, key) -> tangent``: one draw of the noise of unit time, scaled by
            ``dt ** (1 / alpha)`` in a simulation.
    """

    drift: Callable[[Any], Any]
    kick: _Kick


def simulate(
    drift: Callable[[Any], Any],
    kick: _Kick,
    start: Params,
    *,
    step_size: float | Float[Array, ""],
    num_steps: int,
    key: KeyArray,
    alpha: float | Float[Array, ""] = 2.0,
    record_every: int = 1,
) -> PyTree[Float[Array, "r ..."]]:
    r"""Simulate a stochastic differential equation by the Euler-Maruyama scheme.

    .. math:: X_{k+1} = X_k + \Delta \, a(X_k) + \Delta^{1/\alpha} \, \xi_k(X_k)

    with ``a`` the drift and ``xi`` the draws of `kick`. With ``alpha = 2`` and Gaussian
    draws of covariance ``D(x)`` it is ``dX = a dt + D^{1/2} dW``; with draws from a
    symmetric ``alpha``-stable law, driven by that Levy motion. The draw of step ``k``
    comes from ``fold_in(key, k)``: nothing is generated ahead.

    Args:
        drift: ``drift(x) -> tangent``, shaped like `start`.
        kick: ``kick(x, key) -> tangent``; may depend on the place (Ito's sense).
        start: Where to begin: a pytree of floating-point arrays.
        step_size: ``Delta``, positive.
        num_steps: Number of steps.
        key: Random key.
        alpha: Tail index of the noise, in (0, 2]; 2 for Gaussian.
        record_every: Steps from one recorded point to the next; divides `num_steps`.

    Returns:
        The points at steps ``0, record_every, ..., num_steps``, on a leading axis.

    Raises:
        ValueError: `start` is empty or not floating-point, an option is out of range,
            or `drift` or `kick` does not return a tangent of the shape of `start`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> decay = lambda x: -x
        >>> still = lambda x, key: jnp.zeros_like(x)
        >>> path = simulate(
        ...     decay,
        ...     still,
        ...     jnp.array([8.0]),
        ...     step_size=0.5,
        ...     num_steps=3,
        ...     key=jax.random.key(0),
        ... )
        >>> path[:, 0].tolist()
        [8.0, 4.0, 2.0, 1.0]

    References:
        Maruyama (1955); Janicki and Weron (1994), chapter 3, for stable noise.
    """
    check_params(start, "start")
    check_key(key)
    check_function("drift", drift)
    check_function("kick", kick)
    check_number("step_size", step_size, lambda a: 0 < a < math.inf, "positive")
    check_number("alpha", alpha, lambda a: 0 < a <= 2, "in (0, 2]")
    every = check_count(record_every=record_every)
    if check_count(num_steps=num_steps) % every:
        raise ValueError(
            "`record_every` must divide `num_steps`, so that the last point is "
            f"recorded, but {every} does not divide {num_steps}."
        )
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), start)
    _check_tangent("drift", jax.eval_shape(drift, start), start)
    _check_tangent("kick", jax.eval_shape(kick, start, key), start)
    # The arrays of a `Partial` are arguments of the program, plain functions a part.
    drift, kick = (
        f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)
        for f in (drift, kick)
    )
    return _simulate(
        drift, kick, num_steps // every, every, start, step_size, alpha, key
    )


def sgd_sde(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    x: PyTree,
    y: PyTree,
    *,
    learning_rate: float,
    batch_size: int,
) -> SDE:
    r"""Write down the stochastic differential equation that SGD approximates.

    .. math:: dX = -\nabla L(X) \, dt + \sqrt{\eta / b} \; \Sigma(X)^{1/2} dW, \quad
        \Sigma = \frac{1}{n} \sum_i (g_i - \bar g)(g_i - \bar g)^T

    A unit of time is ``1 / eta`` steps: with ``step_size=learning_rate``, each step of
    `simulate` is one of SGD whose batch noise was replaced by a Gaussian of the same
    covariance (batches drawn with replacement). ``Sigma`` is never formed: a draw is
    ``1/sqrt(n) sum_i z_i (g_i - g)`` with standard normal ``z``, one gradient of a
    weighted loss.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        learning_rate: ``eta``, in the scale of the noise.
        batch_size: ``b``.

    Returns:
        Drift and noise for `simulate`; equal arguments (the same functions and arrays)
        do not compile again.

    Raises:
        ValueError: An option is out of range. When simulated: the loss does not fit the
            model and the data.

    Memory:
        All examples at once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jnp.array([1.0, 1.0]), jnp.array([1.0, 3.0])
        >>> model = lambda w, x: w * x
        >>> loss = lambda outputs, y: 0.5 * (outputs - y) ** 2
        >>> sde = sgd_sde(model, loss, x, y, learning_rate=0.1, batch_size=1)
        >>> float(sde.drift(jnp.array(0.0)))  # minus the mean gradient, -2
        2.0

    References:
        Li, Tai and E, arXiv:1511.06251.
    """
    check_number("learning_rate", learning_rate, lambda a: 0 < a < math.inf, "positive")
    check_count(batch_size=batch_size)
    scale = (learning_rate / batch_size) ** 0.5
    return SDE(
        jax.tree_util.Partial(_Drift(apply_fn, loss_fn), x, y),
        jax.tree_util.Partial(_BatchNoise(apply_fn, loss_fn), x, y, scale),
    )


@dataclasses.dataclass(frozen=True)
class _Drift:
    """Minus the gradient of the mean loss."""

    apply_fn: ApplyFn
    loss_fn: LossFn

    def __call__(self, x, y, params):
        n = check_problem(self.apply_fn, self.loss_fn, params, x, y)
        return _weighted_gradient(self, x, y, params, jnp.full(n, -1 / n))


@dataclasses.dataclass(frozen=True)
class _BatchNoise:
    """A Gaussian draw with the covariance of a batch's gradient."""

    apply_fn: ApplyFn
    loss_fn: LossFn

    def __call__(self, x, y, scale, params, key):
        n = check_problem(self.apply_fn, self.loss_fn, params, x, y)
        z = jax.random.normal(key, (n,))
        # Weights of sum zero: the mean gradient drops out.
        weights = scale * (z - jnp.mean(z)) / n**0.5
        return _weighted_gradient(self, x, y, params, weights)


def _weighted_gradient(problem, x, y, params, weights):
    """The gradient of a weighted sum of losses."""

    def total(params):
        outputs = problem.apply_fn(params, x)
        losses = example_losses(problem.loss_fn, outputs, y, len(weights))
        return jnp.sum(weights.astype(losses.dtype) * losses)

    return jax.grad(total)(params)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _simulate(drift, kick, num_records, every, start, step_size, alpha, key):
    scale = jnp.asarray(step_size, float) ** (1 / jnp.asarray(alpha, float))

    def move(x, slope, draw):
        return x + (step_size * slope + scale * draw).astype(x.dtype)

    def step(x, index):
        slope, draw = drift(x), kick(x, jax.random.fold_in(key, index))
        return jax.tree.map(move, x, slope, draw), None

    def record(x, first):
        x, _ = jax.lax.scan(step, x, first + jnp.arange(every))
        return x, x

    _, path = jax.lax.scan(record, start, every * jnp.arange(num_records))
    join = lambda first, rest: jnp.concatenate([first[None], rest])
    return jax.tree.map(join, start, path)


def _check_tangent(name, result, start):
    """Raise unless a function returned something of the shape of the state."""
    shapes = lambda tree: (
        jax.tree.structure(tree),
        [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)],
    )
    if shapes(result) != shapes(start):
        raise ValueError(
            f"`{name}` must return a tangent like `start`, {shapes(start)}, but "
            f"returned {shapes(result)}."
        )
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(result)]
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in types):
        raise ValueError(
            f"`{name}` must return real numbers, but returned the dtypes {types}."
        )
