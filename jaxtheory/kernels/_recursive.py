"""Recursive feature machine: a kernel that learns features without a network."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_number,
    map_examples,
    sum_examples,
)
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import check_targets


class RecursiveFeatures(NamedTuple):
    """The regressions of a recursive feature machine, one after each update.

    Row 0 of everything is the plain Laplace kernel, row ``t`` the kernel after ``t``
    updates of its metric; ``r`` is one more than the number of updates.

    Attributes:
        predictions: For the test inputs.
        train_predictions: For the training inputs.
        coefficients: Dual coefficients ``(K + ridge I)^-1 Y``.
        metrics: The matrices ``M`` in the kernels: the identity, then average gradient
            outer products. A mean over examples, a sum over outputs, not normalised.
        residuals: ``|(K + ridge I) a - Y|_F / |Y|_F`` of the coefficients ``a``.
        num_nonfinite: Number of coefficients that are NaN or infinite: not 0 if the
            data are not finite, or the ridge is lost in rounding and the Cholesky
            factorisation failed. All rows after the first such one are NaN.
    """

    predictions: Float[Array, "r m k"]
    train_predictions: Float[Array, "r n k"]
    coefficients: Float[Array, "r n k"]
    metrics: Float[Array, "r d d"]
    residuals: Float[Array, " r"]
    num_nonfinite: Int[Array, " r"]


def recursive_feature_machine(
    x: Float[Array, "n d"],
    y: Float[Array, "n k"],
    x_test: Float[Array, "m d"],
    *,
    num_iterations: int,
    bandwidth: Real[ArrayLike, ""],
    ridge: Real[ArrayLike, ""],
    batch_size: int | None = 512,
) -> RecursiveFeatures:
    r"""Fit a Laplace kernel whose metric learns which directions matter.

    ``K_M(x, z) = exp(-|x - z|_M / bandwidth)`` with ``|v|_M^2 = v^T M v``, from ``M =
    I`` on. Each iteration fits ``f(z) = sum_j a_j K_M(z, x_j)`` by kernel regression
    and replaces ``M`` by the average gradient outer product of the fit,

    ``M <- 1/n sum_i sum_k grad f_k(x_i) grad f_k(x_i)^T``,

    in closed form; an example adds nothing to the gradient at itself, where the kernel
    has a kink. The regression minimises ``sum_i |f(x_i) - y_i|^2 + ridge |f|_K^2``, a
    *sum* over examples as in `kernel_regression`, and fits no offset.

    In the precision of the arguments, and at least float32, where ridges below about
    ``1e-6`` of the kernel's largest eigenvalue (at most ``n``) are lost in rounding:
    use ``jax.enable_x64(True)`` for those. Compiled once for each shape and number of
    iterations.

    Args:
        x: Training inputs.
        y: Training targets, one-hot for classes.
        x_test: Test inputs.
        num_iterations: Number of updates of the metric; one more regression is made.
        bandwidth: Length over which the kernel decays, in the units of the inputs.
        ridge: Ridge; the kernel is 1 on its diagonal.
        batch_size: Rows of the kernel that predictions and gradients hold at once; need
            not divide ``n`` or ``m``.

    Returns:
        Predictions, coefficients and metrics of every iteration.

    Raises:
        ValueError: Shapes do not fit, `num_iterations` is no positive integer,
            `bandwidth` is not positive or `ridge` is negative.

    Memory:
        Two matrices ``[n, n]``, a few ``[b, n]`` and ``[b, k d]``. Each iteration takes
        ``O(n^3 / 3 + n^2 k d)``.

    Example:
        >>> import jax
        >>> keys = jax.random.split(jax.random.key(0))
        >>> x, z = (jax.random.normal(key, (200, 5)) for key in keys)
        >>> f = lambda x: x[:, :1] ** 2
        >>> found = recursive_feature_machine(
        ...     x, f(x), z, num_iterations=3, bandwidth=5.0, ridge=1e-3
        ... )
        >>> errors = ((found.predictions - f(z)[None]) ** 2).mean((1, 2))
        >>> bool(errors[-1] < errors[0] / 2), found.metrics.shape
        (True, (4, 5, 5))

    References:
        Radhakrishnan, Beaglehole, Pandit, Belkin, arXiv:2212.13881, algorithm 1.
    """
    num_iterations = check_count(num_iterations=num_iterations)
    check_batch_size(batch_size)
    check_number("ridge", ridge, lambda r: 0 <= r < float("inf"), "0 or positive")
    positive = lambda b: 0 < b < float("inf")
    check_number("bandwidth", bandwidth, positive, "positive and finite")
    check_examples(x=x, y=y)
    check_targets(y, x, name="y")
    check_examples(x_test=x_test)
    check_real(x=x, x_test=x_test)
    for name, inputs in (("x", x), ("x_test", x_test)):
        if jnp.ndim(inputs) != 2 or jnp.shape(inputs)[1] != jnp.shape(x)[1]:
            raise ValueError(
                f"`{name}` must be a matrix [n, d] with the columns of `x`, but has "
                f"shape {jnp.shape(inputs)} against {jnp.shape(x)}."
            )
    dtype = jnp.result_type(jnp.float32, x, y, x_test)
    data = tuple(jnp.asarray(a, dtype) for a in (x, y, x_test))
    options = tuple(jnp.asarray(a, dtype) for a in (bandwidth, ridge))
    return _machine(*data, *options, num_iterations, batch_size)


@partial(jax.jit, static_argnums=(5, 6))
def _machine(x, y, x_test, bandwidth, ridge, num_iterations, batch_size):
    # Distances survive rounding better where inputs are small.
    centre = jnp.mean(x, axis=0, keepdims=True)
    x, x_test = x - centre, x_test - centre

    def iteration(metric, _):
        fit, coefficients = _fit(x, y, x_test, metric, bandwidth, ridge, batch_size)
        following = _update(x, coefficients, metric, bandwidth, batch_size)
        return following, fit

    metric = jnp.eye(x.shape[1], dtype=x.dtype)
    return jax.lax.scan(iteration, metric, length=num_iterations + 1)[1]


def _fit(x, y, x_test, metric, bandwidth, ridge, batch_size):
    """The regression with one metric, and its coefficients."""
    kernel_of = lambda z: jnp.exp(-_distances(z, x, metric) / bandwidth)
    identity = jnp.eye(len(x), dtype=x.dtype)
    kernel = map_examples(kernel_of, x, batch_size=batch_size) + ridge * identity
    coefficients = jax.scipy.linalg.cho_solve(
        (jnp.linalg.cholesky(kernel, symmetrize_input=False), True), y
    )
    predict = lambda z: jnp.matmul(kernel_of(z), coefficients, precision="highest")
    train_predictions = map_examples(predict, x, batch_size=batch_size)
    left = y - train_predictions - ridge * coefficients
    fit = RecursiveFeatures(
        predictions=map_examples(predict, x_test, batch_size=batch_size),
        train_predictions=train_predictions,
        coefficients=coefficients,
        metrics=metric,
        residuals=jnp.linalg.norm(left) / jnp.linalg.norm(y),
        num_nonfinite=jnp.sum(~jnp.isfinite(coefficients)),
    )
    return fit, coefficients


def _update(x, coefficients, metric, bandwidth, batch_size):
    """The average gradient outer product of a fit at its training inputs."""
    n, d = x.shape
    # sum_j a_jk w_zj (x_j - z) needs these products of coefficients and inputs.
    weighted = coefficients[:, :, None] * x[:, None]
    weighted = jnp.concatenate([weighted, coefficients[:, :, None]], axis=2)

    def outer(chunk, weights):
        distances = _distances(chunk, x, metric)
        apart = distances > 0
        kernel = jnp.exp(-distances / bandwidth)
        slopes = jnp.where(apart, kernel / jnp.where(apart, distances, 1), 0)
        sums = jnp.einsum("zj,jkd->zkd", slopes, weighted, precision="highest")
        differences = sums[:, :, :d] - sums[:, :, d:] * chunk[:, None]
        return jnp.einsum(
            "zka,zkb,z->ab", differences, differences, weights, precision="highest"
        )

    total = sum_examples(outer, x, batch_size=batch_size) / (n * bandwidth**2)
    dot = partial(jnp.matmul, precision="highest")
    following = dot(dot(metric, total), metric)
    return (following + following.T) / 2


def _distances(z, x, metric):
    """``|z - x|_M`` of all pairs; exactly 0 for equal inputs."""
    dot = partial(jnp.matmul, precision="highest")
    mapped = dot(x, metric)
    squares = jnp.sum(mapped * x, axis=1)[None]
    mapped_squares = jnp.sum(dot(z, metric) * z, axis=1)[:, None]
    squared = mapped_squares + squares - 2 * dot(z, mapped.T)
    # Cancellation leaves this much of what should be zero.
    rounding = 8 * jnp.finfo(x.dtype).eps * (mapped_squares + squares)
    # What is not finite stays so: as zero, a broken input would count as an equal one.
    equal = (squared <= rounding) & jnp.isfinite(squared)
    return jnp.sqrt(jnp.where(equal, 0, squared))
