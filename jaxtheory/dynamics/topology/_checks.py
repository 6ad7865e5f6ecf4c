"""What points and distances must be; what only their values can tell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from jaxtheory.batching import check_number

MINIMUM_POINTS = 500


def _check_array(name: str, value: Any) -> None:
    """Raise unless it is an array, or a list that makes one."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic | list | tuple):
        raise ValueError(
            f"`{name}` must be an array of JAX or NumPy, but is of type "
            f"{type(value).__name__}. Convert it: `jnp.asarray({name})`."
        )


def as_real(name: str, value: Any) -> Array:
    """An array of real numbers in single precision or better; raise if it is none."""
    _check_array(name, value)
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"`{name}` must be real, but has dtype {array.dtype}.")
    return array.astype(jnp.result_type(jnp.float32, array))


def as_points(points: ArrayLike, *, at_least: int, name: str = "points") -> Array:
    """Points ``[r, d]`` in single precision or better; raise if they are none."""
    _check_array(name, points)
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
    _check_array("distances", distances)
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


def check_settled(name: str, value: Any) -> None:
    """Raise if a number that compiled programs depend on is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"`{name}` must be concrete, but is traced. Close over it, or make it a "
            "static argument of your `jax.jit`."
        )


def check_pair(name: str, pair: Any) -> tuple[Any, Any]:
    """The two of a pair; raise unless it is one."""
    if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
        raise ValueError(f"`{name}` must be a pair (low, high), but was {pair!r}.")
    check_settled(name, pair)
    return pair[0], pair[1]


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """Return two shares of a whole; raise unless it is two, the smaller first."""
    low, high = check_pair("window", window)
    must = "two shares 0 < low < high <= 1 at the ends of the scaling range"
    check_number("window", low, lambda a: 0 < a < 1, must)
    check_number("window", high, lambda a: float(low) < a <= 1, must)
    return float(low), float(high)


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
