"""What points and distances must be; what only their values can tell."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

MINIMUM_POINTS = 500


def as_points(points: ArrayLike, *, at_least: int, name: str = "points") -> Array:
    """Points ``[r, d]`` in single precision or better; raise if they are none."""
    array = jnp.asarray(points)
    shape, dtype = array.shape, array.dtype
    if len(shape) != 2 or shape[0] < at_least or shape[1] == 0:
        raise ValueError(
            f"`{name}` must be a matrix [r, d] of at least {at_least} points, one a "
            f"row, but has shape {shape}. Flatten each point into a row."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` must be floating-point, but has dtype {dtype}.")
    return array.astype(jnp.promote_types(dtype, jnp.float32))


def as_distances(distances: ArrayLike, numpy: Any = jnp) -> Any:
    """Distances ``[r, r]`` in single precision or better; raise if they are none.

    With NumPy for `numpy` they stay on the host, where doubles are doubles.
    """
    array = numpy.asarray(distances)
    shape, dtype = array.shape, array.dtype
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise ValueError(
            "`distances` must be a square matrix of at least two points, but has shape "
            f"{shape}. Compute it with `pairwise_distances(points)`."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`distances` must be floating-point, but has dtype {dtype}.")
    return array.astype(jnp.promote_types(dtype, jnp.float32))


def check_metric(metric: str) -> None:
    """Raise unless it is one of the two words."""
    if metric not in ("euclidean", "loss"):
        raise ValueError(f"`metric` must be 'euclidean' or 'loss', but was {metric!r}.")


def check_window(window: tuple[float, float]) -> None:
    """Raise unless it is two shares of a whole, the smaller first."""
    low, high = window
    if not 0 < low < high <= 1:
        raise ValueError(
            "`window` must be two shares 0 < low < high <= 1 at the ends of the "
            f"scaling range, but was {window!r}."
        )


def count_nonfinite(points: Array) -> Array:
    """The number of rows with a coordinate that is not finite."""
    return jnp.sum(~jnp.all(jnp.isfinite(points), axis=1))


def count_invalid(distances: Any, numpy: Any = jnp) -> Any:
    """The number of entries that cannot be distances, whatever the points are.

    Negative, not finite, unlike their mirror image by more than 1e-5 of themselves, or
    not zero on the diagonal.
    """
    finite = numpy.isfinite(distances)
    distances = numpy.where(finite, distances, 0)
    symmetric = numpy.abs(distances - distances.T) <= 1e-5 * numpy.abs(distances)
    valid = finite & symmetric & (distances >= 0)
    return numpy.sum(~valid) + numpy.sum(numpy.diagonal(distances) > 0)


@jax.jit
def nan_unless_valid(distances: Array) -> tuple[Array, Array]:
    """The distances, all NaN if one cannot be a distance; and how many cannot."""
    num_invalid = count_invalid(distances)
    return jnp.where(num_invalid == 0, distances, jnp.nan), num_invalid


def count_coincident(distances: Array) -> Array:
    """The number of points at distance zero from another one."""
    zeros = jnp.sum(distances == 0, axis=1) - (jnp.diagonal(distances) == 0)
    return jnp.sum(zeros > 0)
