"""How near vectors are to a simplex equiangular tight frame."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_matmul = partial(jnp.matmul, precision="highest")


class FrameGeometry(NamedTuple):
    """Distances from a simplex frame of ``K`` vectors; 0 is the frame.

    Attributes:
        distance: ``||G / ||G||_F - (I - J/K) / sqrt(K-1)||_F``, ``G`` the Gram matrix.
        equinorm: Standard deviation (``1/K``) over mean of the norms.
        equiangular: Mean over ordered pairs ``i != j`` of ``|cos_ij + 1/(K-1)|``; a
            zero vector has cosine 0 with every other.
    """

    distance: Float[Array, ""]
    equinorm: Float[Array, ""]
    equiangular: Float[Array, ""]


def norm(x: Array, axis: int | None = None) -> Array:
    """Euclidean norm over `axis` (kept), whose derivative at zero is 0 and not NaN.

    Args:
        x: An array.
        axis: The axis; None takes the norm of all entries.

    Returns:
        The norm.
    """
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    zero = squared == 0  # and not NaN, which has to stay NaN
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def unit(x: Array, axis: int | None = None, rounding: Array | float = 0.0) -> Array:
    """``x`` over its norm along `axis`; zero where that is not above `rounding`.

    Args:
        x: An array.
        axis: The axis; None takes the norm of all entries.
        rounding: Length up to which a vector has no direction.

    Returns:
        The directions.
    """
    length = norm(x, axis)
    return jnp.where(length <= rounding, 0, x / jnp.where(length == 0, 1, length))


def geometry(
    vectors: Float[Array, "k d"],
    present: Bool[Array, " k"],
    rounding: Array | float = 0.0,
) -> FrameGeometry:
    """Measure vectors against a simplex frame of as many, without centring them.

    Args:
        vectors: One in each row.
        present: Which rows count.
        rounding: Length up to which a vector has no direction.

    Returns:
        The three distances.
    """
    vectors = jnp.where(present[:, None], vectors, 0)
    occurring = jnp.sum(present, dtype=vectors.dtype)
    norms = norm(vectors, axis=1)[:, 0]
    mean_norm = jnp.sum(norms) / occurring
    deviations = jnp.where(present, norms - mean_norm, 0)
    equinorm = norm(deviations)[0] / jnp.sqrt(occurring) / mean_norm

    pairs = off_diagonal(present)
    directions = unit(vectors, axis=1, rounding=rounding)
    deviations = jnp.abs(_matmul(directions, directions.T) + 1 / (occurring - 1))
    equiangular = jnp.sum(jnp.where(pairs, deviations, 0)) / jnp.sum(pairs)
    distance = frame_distance(_matmul(vectors, vectors.T), present)
    return FrameGeometry(distance, equinorm, equiangular)


def off_diagonal(present: Bool[Array, " k"]) -> Bool[Array, "k k"]:
    """Which ordered pairs are of two different classes that occur.

    Args:
        present: Which classes occur.

    Returns:
        The mask.
    """
    pairs = present[:, None] & present[None, :]
    return pairs & ~jnp.eye(present.size, dtype=bool)


def frame_distance(
    matrix: Float[Array, "k k"], present: Bool[Array, " k"]
) -> Float[Array, ""]:
    """``||A / ||A||_F - (I - J/K) / sqrt(K-1)||_F`` over the rows and columns present.

    Args:
        matrix: ``A``, zero in the rows and columns that do not count.
        present: Which do.

    Returns:
        The distance.
    """
    occurring = jnp.sum(present, dtype=matrix.dtype)
    both = present[:, None] & present[None, :]
    identity = jnp.eye(present.size, dtype=matrix.dtype)
    frame = jnp.where(both, identity - 1 / occurring, 0)
    return norm(unit(matrix) - frame / jnp.sqrt(occurring - 1))[0, 0]


def squared_distances(points: Float[Array, "k d"]) -> Float[Array, "k k"]:
    """All pairwise squared distances, from differences.

    From ``||a||^2 + ||b||^2 - 2 a.b`` those of points close to each other but far from
    the others would cancel.

    Args:
        points: One in each row.

    Returns:
        The distances, squared.

    Memory:
        ``k^2 + k d`` numbers, also of the derivative.
    """

    @jax.checkpoint  # or a derivative would keep all k^2 differences
    def from_one(point):
        return jnp.sum(jnp.square(points - point[None, :]), axis=1)

    return jax.lax.map(from_one, points)
