"""A recorded path as a curve: how long it is, and how far it went."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def path_length(points: Float[ArrayLike, "r d"]) -> Float[Array, ""]:
    r"""Measure the length of the polygon through successive points.

    .. math:: L = \sum_{t=1}^{r-1} |w_t - w_{t-1}|

    in Euclidean norm: a sum over steps, not a mean. Of a trained path it grows with
    the number of points that were recorded; sum the traced ``step_length`` for the
    length of every step.

    Args:
        points: Successive points, one a row.

    Returns:
        The length; 0 for one point.

    Raises:
        ValueError: `points` is not a non-empty matrix of floating-point numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> float(path_length(jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])))
        10.0
    """
    points = as_points(points, at_least=1)
    return jnp.sum(jnp.linalg.norm(jnp.diff(points, axis=0), axis=1))


def displacement(points: Float[ArrayLike, "r d"]) -> Float[Array, ""]:
    """Measure how far the last point is from the first, in Euclidean norm.

    Args:
        points: Successive points, one a row.

    Returns:
        The distance; over `path_length` it is 1 for a straight path.

    Raises:
        ValueError: `points` is not a non-empty matrix of floating-point numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> float(displacement(jnp.array([[0.0, 0.0], [9.0, 9.0], [3.0, 4.0]])))
        5.0
    """
    points = as_points(points, at_least=1)
    return jnp.linalg.norm(points[-1] - points[0])


def as_points(points: ArrayLike, *, at_least: int) -> Array:
    """Points ``[r, d]`` in single precision or better; raise if they are none."""
    points = jnp.asarray(points)
    shape, dtype = points.shape, points.dtype
    if len(shape) != 2 or shape[0] < at_least or shape[1] == 0:
        raise ValueError(
            f"`points` must be a matrix [r, d] of at least {at_least} points, one a "
            f"row, but has shape {shape}. Flatten each point into a row."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`points` must be floating-point, but has dtype {dtype}.")
    return points.astype(jnp.promote_types(dtype, jnp.float32))


def count_nonfinite(points: Array) -> Array:
    """The number of rows with a coordinate that is not finite."""
    return jnp.sum(~jnp.all(jnp.isfinite(points), axis=1))
