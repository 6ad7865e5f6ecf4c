"""What a law says of depth: how many layers are wanted, how many are used."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.batching import check_number
from jaxtheory.collapse._law import real_array
from jaxtheory.collapse._separation import SeparationLaw


def suggest_depth(
    law: SeparationLaw, target: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The first layer at which a fitted law reaches a wanted separation.

    ``l* = ceil((log target - log_intercept) / log_slope)``, at least 0. With the raw
    input as ``l = 0`` this is a number of hidden layers.

    It reads one line further than it was measured. Trained at another depth, a network
    has another line: measure again at the depth suggested.

    Args:
        law: A fitted law.
        target: The wanted ``D``, positive.

    Returns:
        A whole number (an excess of a thousandth of a layer counts as reached).
        Infinite where the line does not fall and starts above `target`; NaN where the
        law is undefined.

    Raises:
        ValueError: `target` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.collapse import fit_separation_law
        >>> law = fit_separation_law(jnp.array([8.0, 4.0, 2.0, 1.0]))
        >>> print(suggest_depth(law, 0.1))
        7.0

    References:
        He & Su 2023, arXiv:2210.17020 (the law as a guide to depth).
    """
    if not isinstance(law, SeparationLaw):
        raise ValueError(
            "`law` must be a `SeparationLaw`, but is a "
            f"{type(law).__name__}. Pass what `fit_separation_law` returned."
        )
    check_number("target", target, lambda d: 0 < d < float("inf"), "positive")
    gap = jnp.log(target) - law.log_intercept
    falls = law.log_slope < 0
    depth = jnp.ceil(gap / jnp.where(falls, law.log_slope, -1) - 1e-3)
    depth = jnp.where(falls, depth, jnp.inf)
    depth = jnp.where(gap >= 0, 0.0, depth)
    return jnp.where(jnp.isnan(law.log_slope), jnp.nan, depth)


def effective_depth(
    errors: Float[Array, " l"], *, tolerance: float = 0.0
) -> Float[Array, ""]:
    """The first layer whose nearest class centre is right often enough.

    ``min{l : error_l <= tolerance}``, the nearest-class-centre depth: what a deeper
    network does after it could have been done by looking for the nearest class mean.

    Args:
        errors: Nearest-class-centre error of each layer in [0, 1], in network order,
            such as `LayerStatistics.nearest_mean_error`; the first one is ``l = 0``.
        tolerance: The error allowed.

    Returns:
        A whole number; infinite where no layer gets there. A NaN error is not small.

    Raises:
        ValueError: `errors` is not a vector, or `tolerance` not a number from 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> errors = jnp.array([0.6, 0.2, 0.04, 0.0])
        >>> print(effective_depth(errors, tolerance=0.05))
        2.0

    References:
        Galanti et al. 2022, arXiv:2202.09028, definition of the effective depth.
    """
    errors = real_array(errors, "errors")
    if errors.ndim != 1 or errors.size == 0:
        raise ValueError(
            "`errors` must be a vector with one entry for each layer, but has shape "
            f"{errors.shape}."
        )
    check_number("tolerance", tolerance, lambda e: 0 <= e <= 1, "from 0 to 1")
    reached = errors <= tolerance
    first = jnp.argmax(reached).astype(errors.dtype)
    return jnp.where(jnp.any(reached), first, jnp.inf)
