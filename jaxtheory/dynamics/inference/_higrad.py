"""HiGrad: confidence intervals from a tree of averaged SGD threads."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real

from jaxtheory._types import KeyArray, Objective, Params
from jaxtheory.batching import (
    check_count,
    check_examples,
    check_function,
    check_key,
    check_number,
    check_params,
)
from jaxtheory.dynamics.inference._interval import (
    Interval,
    check_prediction,
    column_norms,
    quantile,
)
from jaxtheory.dynamics.inference._tree import make_tree

# Streams of the one key: the order of the examples, and what the objective draws.
_SHUFFLE, _NOISE = 0, 1


def higrad(
    objective: Objective,
    predict: Callable[[Any, Any], Array],
    params: Params,
    data: PyTree,
    points: PyTree,
    *,
    step_size: Real[ArrayLike, ""],
    key: KeyArray,
    power: Real[ArrayLike, ""] = 0.55,
    splits: Sequence[int] = (2, 2),
    lengths: Sequence[int] | None = None,
    burn_in: int = 0,
    batch_size: int = 1,
    confidence: float = 0.95,
) -> Interval:
    r"""Confidence intervals of predictions by a tree of averaged SGD threads.

    SGD with steps ``step_size (1 + j)^{-power}`` (``j`` counts along a thread) on fresh
    examples runs ``n_0`` steps, splits into ``B_1`` threads of ``n_1`` steps, each of
    these into ``B_2``, and so on. A thread's parameters are the weighted mean of the
    averages of its segments, with weights ``w_k = n_k B_1 ... B_k / N``, and its
    prediction ``mu_t = predict`` of these. Two threads that share the levels ``0 .. p``
    have the covariance ``sigma^2 S_{tu} = sigma^2 sum_{k <= p} w_k^2 / n_k``, so that

    .. math:: \bar\mu \pm t_{T-1} \sqrt{\tfrac{1}{T^2} 1^\top S 1 \cdot
        \tfrac{1}{T-1} (\mu - \bar\mu)^\top S^{-1} (\mu - \bar\mu)}

    covers the prediction at the minimiser of the expected objective, asymptotically in
    the number of steps. The mean over threads uses every step as well as one average
    over all of them. Each example is used once; those left over are not used. All
    threads of a level run at once.

    Args:
        objective: ``objective(params, model_state, batch, key) -> (scalar,
            model_state)``, the mean over the batch; the model state is ``()``. See
            `dynamics.supervised`.
        predict: ``predict(params, points) -> [...]``, for example a model.
        params: Where to start. SGD runs in at least float32, because steps that shrink
            are soon lost in half precision.
        data: Pytree of independent examples ``[n, ...]``, typically ``(x, y)``.
        points: What `predict` gets: inputs to predict at.
        step_size: Length of the first step, positive.
        key: Random key of the order of the examples and of the objective.
        power: Decay of the steps, in (1/2, 1).
        splits: Into how many each segment splits, level after level.
        lengths: Steps of a segment of each level, the root's first; by default equal,
            as many as there are examples for.
        burn_in: Steps before the root that no average contains.
        batch_size: Examples a step.
        confidence: Nominal coverage.

    Returns:
        The interval; `parts` are the predictions of the threads.

    Raises:
        ValueError: An argument is out of range, there are too few examples, or
            `objective` or `predict` returns something else.

    Memory:
        Parameters and gradients of all ``T`` threads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import dynamics
        >>> objective = dynamics.supervised(
        ...     lambda w, x: w * x, lambda out, y: (out - y) ** 2 / 2
        ... )
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 4000))
        >>> got = higrad(
        ...     objective,
        ...     lambda w, x: w * x,
        ...     jnp.zeros(()),
        ...     (x, 3 * x + noise),
        ...     jnp.array([1.0, 2.0]),
        ...     step_size=0.3,
        ...     key=jax.random.key(1),
        ... )
        >>> bool(jnp.all((got.lower < 3 * jnp.array([1, 2.0])) & (got.upper > 3)))
        True
        >>> got.parts.shape, got.degrees_of_freedom
        ((4, 2), 3)

    References:
        Su & Zhu, arXiv:1802.04876, sections 2 and 3 (tree, weights, interval).
    """
    check_key(key)
    check_function("objective", objective)
    check_function("predict", predict)
    check_params(params)
    check_number("step_size", step_size, lambda a: 0 < a < np.inf, "a positive number")
    check_number("power", power, lambda a: 0.5 < a < 1, "in (1/2, 1)")
    burn_in = check_count(at_least=0, burn_in=burn_in)
    batch_size = check_count(batch_size=batch_size)
    num_examples = check_examples(data=data)
    tree = make_tree(splits, lengths, num_examples, batch_size, burn_in)
    width = quantile(confidence, tree.num_threads - 1)
    wide = lambda a: jnp.promote_types(jnp.result_type(a), jnp.float32)
    params = jax.tree.map(lambda a: jnp.asarray(a, wide(a)), params)
    check_prediction(jax.eval_shape(predict, params, points))
    recipe = (objective, predict, tree, burn_in, batch_size)
    value, error, parts, num_nonfinite = _run(
        recipe, params, data, points, step_size, power, key
    )
    half = width * error
    freedom = tree.num_threads - 1
    return Interval(
        value, error, value - half, value + half, freedom, parts, num_nonfinite
    )


@functools.partial(jax.jit, static_argnums=0)
def _run(recipe, params, data, points, step_size, power, key):
    """Grow the tree level after level; predict from each thread."""
    _, predict, tree, burn_in, batch_size = recipe
    num_examples = jax.tree.leaves(data)[0].shape[0]
    order = jax.random.permutation(jax.random.fold_in(key, _SHUFFLE), num_examples)
    draws = jax.random.fold_in(key, _NOISE)
    rate = lambda step: step_size * (1.0 + step) ** -power
    now = jax.tree.map(lambda a: a[None], params)
    average = _zeros(params, tree.num_threads)
    done = used = 0
    levels = [(1, burn_in, 0.0)] if burn_in else []
    levels += zip(tree.widths, tree.lengths, tree.weights.tolist(), strict=True)
    for width, length, weight in levels:
        now = _repeat(now, width // jax.tree.leaves(now)[0].shape[0])
        count = width * length * batch_size
        chosen = order[used : used + count].reshape(length, width, batch_size)
        now, means = _segments(recipe[0], now, data, chosen, done, rate, draws)
        means = _repeat(means, tree.num_threads // width)
        add = lambda total, a, weight=weight: total + weight * a
        average = jax.tree.map(add, average, means)
        done, used = done + length, used + count
    predictions = jax.lax.map(lambda some: predict(some, points), average)
    return _interval(predictions, tree)


def _segments(objective, params, data, chosen, done, rate, key):
    """Run one level: the parameters at the end of each segment, and their means."""
    length, width, _ = chosen.shape
    loss = functools.partial(_loss, objective)

    def step(carry, both):
        params, total, excess = carry
        rows, index = both
        batch = jax.tree.map(lambda a: jnp.asarray(a)[rows], data)
        noise = jax.random.fold_in(key, done + index)
        noises = jax.vmap(lambda i: jax.random.fold_in(noise, i))(jnp.arange(width))
        grads = jax.vmap(jax.grad(loss))(params, batch, noises)
        move = lambda w, g: (w - rate(done + index) * g).astype(w.dtype)
        params = jax.tree.map(move, params, grads)
        # Compensated (Kahan): a plain sum of 1e5 steps in float32 is off by more than
        # the standard error of their mean.
        new = jax.tree.map(jnp.subtract, params, excess)
        after = jax.tree.map(jnp.add, total, new)
        excess = jax.tree.map(lambda s, t, a: (s - t) - a, after, total, new)
        return (params, after, excess), None

    first = jax.tree.map(lambda a: a[0], params)
    start = params, _zeros(first, width), _zeros(first, width)
    (params, total, _), _ = jax.lax.scan(step, start, (chosen, jnp.arange(length)))
    return params, jax.tree.map(lambda a: a / length, total)


def _loss(objective, params, batch, key):
    """The objective without its model state, checked."""
    result = objective(params, (), batch, key)
    if not isinstance(result, tuple) or len(result) != 2 or jnp.shape(result[0]):
        raise ValueError(
            "`objective` must return a pair (scalar, model state), but returned "
            f"{jax.tree.map(jnp.shape, result)}. `dynamics.supervised` makes one of a "
            "model and a loss."
        )
    return result[0]


def _zeros(like, num):
    """Zeros for `num` threads, in at least float32."""
    wide = lambda a: jnp.promote_types(a.dtype, jnp.float32)
    return jax.tree.map(lambda a: jnp.zeros((num, *a.shape), wide(a)), like)


def _repeat(tree, num):
    return jax.tree.map(lambda a: jnp.repeat(a, num, axis=0), tree)


def _interval(predictions, tree):
    """Mean and standard error of predictions that share segments."""
    num = tree.num_threads
    wide = jnp.promote_types(predictions.dtype, jnp.float32)
    parts = predictions.astype(wide)
    value = jnp.mean(parts, axis=0)
    deviations = (parts - value[None]).reshape(num, -1)
    covariance = tree.covariance()
    # In units of the variance of the mean, where no number is tiny.
    unit = covariance.mean()
    # The root of the inverse: a sum of squares is never negative.
    whiten = np.linalg.inv(np.linalg.cholesky(covariance / unit))
    whitened = jnp.matmul(jnp.asarray(whiten, wide), deviations, precision="highest")
    error = column_norms(whitened) / np.sqrt(num - 1)
    bad = ~jnp.all(jnp.isfinite(parts.reshape(num, -1)), axis=1)
    return value, error.reshape(value.shape), parts, jnp.sum(bad)
