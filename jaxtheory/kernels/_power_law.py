"""Exponents: how a measurement grows or decays with a size."""

import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, Real

from jaxtheory._types import Estimate
from jaxtheory.kernels._checks import check_real


def power_law(
    sizes: Real[ArrayLike, " w"], values: Float[ArrayLike, " w *seeds"]
) -> Estimate:
    r"""Fit the exponent of ``value = c size^a`` by least squares of logarithms.

    The slope of ``log value`` against ``log size``, every value one point, with the
    usual standard error ``sqrt(sum_i e_i^2 / (N - 2) / sum_i (u_i - u)^2)`` from the
    residuals ``e_i``. It holds for values that scatter independently around a power
    law; a curve in the logarithms goes into the error too, not only scatter.

    Args:
        sizes: Widths, numbers of examples, scales, ...; positive.
        values: Measurements, positive, one row a size; further axes are repetitions.

    Returns:
        The exponent, its standard error and the number ``N`` of values. NaN, because
        undefined, if a size or value is not positive and finite.

    Raises:
        ValueError: Fewer than two sizes, fewer than three values, other shapes, or
            complex numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> fit = power_law(jnp.array([1, 2, 4]), jnp.array([8.0, 4.0, 2.0]))
        >>> round(float(fit.value), 4), fit.num_samples
        (-1.0, 3)
    """
    sizes, values = jnp.asarray(sizes), jnp.asarray(values)
    check_real(sizes=sizes, values=values)
    sizes, values = sizes.astype(float), values.astype(float)
    if sizes.ndim != 1 or values.shape[:1] != sizes.shape or len(sizes) < 2:
        raise ValueError(
            "`sizes` must be a vector of at least two sizes and `values` have a row "
            f"for each, but have shapes {sizes.shape} and {values.shape}."
        )
    if values.size < 3:
        raise ValueError(
            "`values` must hold at least three, to tell a standard error, but has "
            f"shape {values.shape}."
        )
    points = jnp.reshape(values, (len(sizes), -1))
    valid = jnp.all((points > 0) & jnp.isfinite(points)) & jnp.all(sizes > 0)
    logs = jnp.log(jnp.where(valid, points, 1))
    u = jnp.log(jnp.where(valid, sizes, jnp.arange(1.0, len(sizes) + 1)))
    u = jnp.broadcast_to((u - jnp.mean(u))[:, None], logs.shape)
    spread = jnp.sum(u**2)
    slope = jnp.sum(u * logs) / spread
    residuals = logs - jnp.mean(logs) - slope * u
    error = jnp.sqrt(jnp.sum(residuals**2) / (values.size - 2) / spread)
    undefined = lambda value: jnp.where(valid, value, jnp.nan)
    return Estimate(undefined(slope), undefined(error), values.size)
