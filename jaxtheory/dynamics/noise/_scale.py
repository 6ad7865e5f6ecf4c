"""Gradient noise scale: exact on stored data, and from batches of two sizes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, LossFn, Params
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_problem,
    num_shards,
    sum_examples,
)


class NoiseScale(NamedTuple):
    """The simple noise scale of stored data, and what it is made of.

    Attributes:
        noise_scale: ``covariance_trace / gradient_norm_squared``, in examples.
        gradient_norm_squared: Squared norm of the mean gradient.
        covariance_trace: Trace of the covariance (``1/(n-1)``) of the per-example
            gradients.
        standard_error: Of `noise_scale`, over draws of ``n`` independent examples: of
            these it is exact. By each example's influence on it (delta method).
    """

    noise_scale: Float[Array, ""]
    gradient_norm_squared: Float[Array, ""]
    covariance_trace: Float[Array, ""]
    standard_error: Float[Array, ""]


class TwoBatchNoiseScale(NamedTuple):
    """The simple noise scale estimated from batches of two sizes.

    Attributes:
        noise_scale: Ratio of the two means below, in examples; its standard error is
            that of the delta method.
        gradient_norm_squared: Estimate of the squared norm of the true gradient.
        covariance_trace: Estimate of the trace of the gradient covariance.
        undetermined: True unless `gradient_norm_squared` is above two of its standard
            errors: else the ratio says nothing, whatever its own error is.
    """

    noise_scale: Estimate
    gradient_norm_squared: Estimate
    covariance_trace: Estimate
    undetermined: Bool[Array, ""]


def noise_scale(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
) -> NoiseScale:
    r"""Compute the simple gradient noise scale of stored data, exactly.

    .. math:: B = \frac{\operatorname{tr} \Sigma}{|G|^2}, \quad
        G = \frac{1}{n} \sum_i g_i, \quad
        \operatorname{tr} \Sigma = \frac{1}{n-1} \sum_i |g_i - G|^2

    with ``g_i`` the gradient of example ``i``'s loss. It describes these ``n``
    examples: of the population they were drawn from, ``|G|^2`` is an overestimate by
    ``tr Sigma / n`` in the mean.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``, examples
            independent of each other.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which the gradients are taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        batch_size: Examples per chunk and device; None takes all at once. Call it
            outside `jit` for chunks that follow the sharding.

    Returns:
        The noise scale, ``|G|^2``, ``tr Sigma`` and the standard error. Where the mean
        gradient is zero the noise scale is infinite; where every example's is zero too
        (or below 1e-19 in float32, whose square is zero) it is NaN, because ``0 / 0``
        is undefined; there is no standard error in either case. A gradient that is not
        finite makes everything NaN.

    Raises:
        ValueError: Fewer than two examples, arrays disagree on ``n``, parameters are
            not floating-point, or the loss is not one number per example.

    Memory:
        One chunk's per-example gradients, ``batch_size * p``. Two passes over the
        data: one gradient of the mean, one gradient per example.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: w * x
        >>> loss = lambda outputs, y: outputs - y
        >>> x = jnp.array([1.0, 3.0])  # the per-example gradients
        >>> result = noise_scale(model, loss, jnp.array(0.0), x, x)
        >>> float(result.noise_scale)  # variance 2 over squared mean 4
        0.5

    References:
        McCandlish et al., arXiv:1812.06162, equation 2.9.
    """
    lanes = _check(apply_fn, loss_fn, params, x, y, batch_size)
    return _noise_scale(apply_fn, loss_fn, params, x, y, batch_size, lanes)


def two_batch_noise_scale(
    small_norms_squared: Float[ArrayLike, " r"],
    big_norms_squared: Float[ArrayLike, " r"],
    *,
    small: int,
    big: int,
) -> TwoBatchNoiseScale:
    r"""Estimate the gradient noise scale from gradients of batches of two sizes.

    Draw by draw, with ``b`` and ``B`` the batch sizes,

    .. math:: |G|^2 = \frac{B |G_B|^2 - b |G_b|^2}{B - b}, \quad
        \operatorname{tr} \Sigma = \frac{|G_b|^2 - |G_B|^2}{1/b - 1/B}

    and the noise scale is the ratio of their means over draws (a mean of ratios is
    biased and has no finite variance). Its standard error takes the two as paired.

    Both are unbiased for independent draws from a population only. Batches taken
    without replacement from ``n`` stored examples (an epoch) estimate
    ``|G_n|^2 - S / n``, with ``G_n`` and ``S`` the mean and the covariance trace
    (``1/(n-1)``) of those ``n``: late in training that is negative. `noise_scale` is
    exact for stored data.

    Args:
        small_norms_squared: Squared norms of mean gradients over `small` examples,
            one per draw.
        big_norms_squared: The same over `big` examples.
        small: Examples in a small batch.
        big: Examples in a big batch.

    Returns:
        Each of the three with its standard error over draws, and `undetermined`. The
        errors assume draws that are independent of each other, at one point of
        parameter space.

    Raises:
        ValueError: Fewer than two draws, arrays of different lengths, or batch sizes
            that are not ``1 <= small < big``.

    Example:
        >>> import jax.numpy as jnp
        >>> small, big = jnp.array([3.0, 5.0]), jnp.array([2.5, 2.5])
        >>> result = two_batch_noise_scale(small, big, small=1, big=4)
        >>> float(result.gradient_norm_squared.value)  # (4 * 2.5 - 4) / 3
        2.0
        >>> float(result.noise_scale.value)  # (4 - 2.5) / (1 - 1/4) over 2
        1.0

    References:
        McCandlish et al., arXiv:1812.06162, appendix A.1.
    """
    _check_draws(small_norms_squared, big_norms_squared, small, big)
    at_small, at_big = _wide(small_norms_squared), _wide(big_norms_squared)
    squares = (big * at_big - small * at_small) / (big - small)
    traces = (at_small - at_big) / (1 / small - 1 / big)
    square, trace = _mean(squares), _mean(traces)
    ratio = trace.value / square.value
    # Delta method: to first order the ratio's deviation is that of this mean.
    deviation = _mean(traces - ratio * squares).standard_error / jnp.abs(square.value)
    return TwoBatchNoiseScale(
        noise_scale=Estimate(ratio, deviation, square.num_samples),
        gradient_norm_squared=square,
        covariance_trace=trace,
        undetermined=~(square.value > 2 * square.standard_error),  # true for NaN, 0
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6))
def _noise_scale(apply_fn, loss_fn, params, x, y, batch_size, lanes):
    n = check_examples(x=x, y=y)
    add_up = functools.partial(
        sum_examples, data=(x, y), batch_size=batch_size, lanes=lanes
    )

    def summed_loss(params, chunk, weights):
        inputs, targets = chunk
        losses = loss_fn(apply_fn(params, inputs), targets)
        return jnp.sum(weights.astype(losses.dtype) * losses)

    def one_gradient(example):
        batch_of_one = jax.tree.map(lambda a: a[None], example)
        return jax.grad(summed_loss)(params, batch_of_one, jnp.ones(1))

    total = add_up(lambda chunk, w: jax.grad(summed_loss)(params, chunk, w))
    gradient = jax.tree.map(lambda g: _wide(g) / n, total)

    square = _inner(gradient, gradient)

    # A second pass around the mean: the sum of squares minus the square of the sum
    # loses every digit where the noise is small against the gradient.
    def deviations(chunk, weights):
        def one(example):
            noise = jax.tree.map(jnp.subtract, one_gradient(example), gradient)
            return _inner(noise, noise), _inner(noise, gradient) / square

        size, along = jax.vmap(one)(chunk)
        share = size / square
        terms = (size, share**2, share * along, along**2)
        return [jnp.sum(weights.astype(term.dtype) * term) for term in terms]

    size, squared, mixed, along = add_up(deviations)
    trace = size / (n - 1)
    ratio = trace / square
    # Example i moves the ratio by share_i - mean(share) - 2 ratio along_i, over n.
    centred = squared - (size / square) ** 2 / n
    total = centred - 4 * ratio * mixed + 4 * ratio**2 * along
    error = jnp.sqrt(jnp.maximum(total, 0) / (n - 1) / n)
    return NoiseScale(ratio, square, trace, error)


def _wide(a):
    """In single precision or better: integers and half precision would overflow."""
    return jnp.asarray(a, jnp.result_type(jnp.float32, jnp.asarray(a)))


def _inner(a, b):
    """Inner product of two pytrees."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), a, b)
    return jax.tree.reduce(jnp.add, products)


def _mean(samples):
    """The mean of independent samples with its standard error."""
    num = samples.shape[0]
    error = jnp.std(samples, ddof=1) / num**0.5
    return Estimate(jnp.mean(samples), error, num)


def _check(apply_fn, loss_fn, params, x, y, batch_size):
    """Check what `noise_scale` is given; the number of shards of the data."""
    check_batch_size(batch_size)
    if check_problem(apply_fn, loss_fn, params, x, y) < 2:
        raise ValueError(
            "`x` must hold at least two examples, for a covariance, but holds 1."
        )
    return num_shards((x, y))


def _check_draws(small_norms_squared, big_norms_squared, small, big):
    """Check what `two_batch_noise_scale` is given."""
    shapes = np.shape(small_norms_squared), np.shape(big_norms_squared)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or shapes[0][0] < 2:
        raise ValueError(
            "`small_norms_squared` and `big_norms_squared` must hold one number per "
            f"draw, [r] with at least two draws, but have shapes {shapes[0]} and "
            f"{shapes[1]}."
        )
    for name, norms in (
        ("small_norms_squared", small_norms_squared),
        ("big_norms_squared", big_norms_squared),
    ):
        dtype = jnp.asarray(norms).dtype
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(f"`{name}` must hold real numbers, but has dtype {dtype}.")
    if check_count(small=small) >= check_count(big=big):
        raise ValueError(
            "`small` and `big` must be batch sizes with 1 <= small < big, but were "
            f"{small} and {big}."
        )
