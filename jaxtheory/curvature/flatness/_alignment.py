"""How the noise of stochastic gradients lies in the landscape."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_count,
    check_key,
    check_word,
)
from jaxtheory.curvature._gradient_covariance import gradient_covariance
from jaxtheory.curvature._operators import ggn, hessian
from jaxtheory.curvature.flatness._common import (
    dot,
    largest,
    norm,
    prepare,
)


class NoiseAlignment(NamedTuple):
    """Alignment of the gradient noise with a curvature matrix.

    Attributes:
        cosine: ``tr(S G) / (|S|_F |G|_F)``, in ``[0, 1]`` for semi-definite ``G``.
        loss_scaled: ``tr(S G) / (2 L |G|_F^2)``.
    """

    cosine: Estimate
    loss_scaled: Estimate


def noise_alignment(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    matrix: Literal["ggn", "hessian"] = "ggn",
    num_samples: int = 16,
    batch_size: int | None = None,
) -> NoiseAlignment:
    r"""Estimate how the gradient noise is aligned with the curvature.

    .. math:: \frac{\operatorname{tr}(S G)}{|S|_F |G|_F}, \qquad
        \frac{\operatorname{tr}(S G)}{2 L |G|_F^2}, \qquad
        S = \frac{1}{n} \sum_i (g_i - \bar g)(g_i - \bar g)^\top

    with ``S`` the covariance of the gradients of the examples' losses (that of a batch
    of ``b`` draws is ``S / b``), ``G`` the Gauss-Newton matrix and ``L`` the mean loss.
    The second is the alignment of the stability analysis of SGD, for *half* the squared
    error: if residuals were independent of gradients, ``S = 2 L G`` at a minimum and it
    would be 1; a minimum where SGD is stable has ``|G|_F <= sqrt(b / alignment) /
    learning rate``. For other losses it is a number without that meaning; the first is
    free of scale and compares for any.

    Traces are Hutchinson's, ``<S z, G z>``, ``|G z|^2`` and ``|S z|^2`` on the same
    signs ``z``, and the ratios are ratios of means, with the delta method's error.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Probes.
        matrix: ``G``: "ggn", as in the paper, or the "hessian".
        num_samples: Number of probes, at least 2; one product of ``S`` and one of
            ``G`` each.
        batch_size: As for `curvature.hessian`.

    Returns:
        Both alignments. NaN where ``S`` or ``G`` is zero (``S`` to the rounding of
        differences of gradients, as for equal examples), and the second where the loss
        is, because ``0 / 0`` is undefined.

    Raises:
        ValueError: Fewer than two samples, an unknown matrix, or as for
            `curvature.hessian`.

    Memory:
        As one product.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> x, y = jnp.ones(2), jnp.array([1.0, -1.0])
        >>> found = noise_alignment(
        ...     model, loss, jnp.array(0.0), x, y, key=jax.random.key(0)
        ... )
        >>> float(found.cosine.value), float(found.loss_scaled.value)
        (1.0, 1.0)

    References:
        Wu, Wang & Su, The alignment property of SGD noise and how it helps select flat
        minima, arXiv:2207.02628, section 3; Wang & Wu, arXiv:2310.00692.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    check_key(key)
    check_word("matrix", matrix, ("ggn", "hessian"))
    num_samples = check_count(at_least=2, num_samples=num_samples)
    build = ggn if matrix == "ggn" else hessian
    arguments = (apply_fn, loss_fn, params, x, y)
    noise = gradient_covariance(*arguments, batch_size=batch_size)
    curved = build(*arguments, batch_size=batch_size)
    mean_loss, slope = _loss_and_slope(loss, params, x, y)
    return _alignment(noise, curved, mean_loss, slope, key, num_samples)


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_slope(loss, params, x, y):
    """The mean loss and the norm of its gradient."""
    value, gradient = jax.value_and_grad(loss)(params, x, y)
    return value, norm(gradient)


@functools.partial(jax.jit, static_argnums=5)
def _alignment(noise, curved, mean_loss, slope, key, num_samples):
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), noise.in_structure())

    def images(index):
        z = optax.tree.random_like(
            jax.random.fold_in(key, index), zeros, sampler=jax.random.rademacher
        )
        return noise.mv(z), curved.mv(z)

    # In float32 the square of a covariance near interpolation does not exist: each
    # image is measured in units of its largest entry.
    def products(index):
        sized = images(index)
        units = jnp.stack([largest(image) for image in sized])
        over = lambda a, unit: a / jnp.where(unit > 0, unit, 1)
        s, g = (
            jax.tree.map(lambda a, unit=unit: over(a, unit), image)
            for image, unit in zip(sized, units, strict=True)
        )
        return jnp.stack([dot(s, s), dot(s, g), dot(g, g)]), units

    values, units = jax.lax.map(products, jnp.arange(num_samples))
    # Deviations of gradients from their mean are known to the rounding of the mean.
    dtype = jnp.result_type(*jax.tree.leaves(zeros))
    rounding = (10 * jnp.finfo(dtype).eps * slope) ** 2
    units = units.at[:, 0].set(jnp.where(units[:, 0] > rounding, units[:, 0], 0))
    top = jnp.max(units, axis=0, keepdims=True)
    s, g = (units / jnp.where(top > 0, top, 1)).T
    noise2, both, curved2 = (values * jnp.stack([s * s, s * g, g * g], axis=1)).T
    mean = jnp.mean
    cosine = mean(both) / jnp.sqrt(mean(curved2) * mean(noise2))
    relative = both / mean(both)
    scale = top[0, 0] / top[0, 1] / (2 * mean_loss)
    ratio = scale * mean(both) / mean(curved2)
    ratio = jnp.where(mean(noise2) > 0, ratio, jnp.nan)

    def estimate(value, deviations):
        error = jnp.abs(value) * jnp.std(deviations, ddof=1) / jnp.sqrt(num_samples)
        return Estimate(value, error, num_samples)

    g, s = curved2 / mean(curved2), noise2 / mean(noise2)
    return NoiseAlignment(
        estimate(cosine, relative - g / 2 - s / 2), estimate(ratio, relative - g)
    )
