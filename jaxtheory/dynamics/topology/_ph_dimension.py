"""Persistent homology dimension: how the tree of a subset grows with its size."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.dynamics.topology._checks import (
    MINIMUM_POINTS,
    as_distances,
    nan_unless_valid,
)
from jaxtheory.dynamics.topology._tree import (
    check_alpha,
    e_alpha,
    minimum_spanning_tree,
    prim,
)

_SLOPE_OF_BOUNDED = 0.1


class PersistentHomologyDimension(NamedTuple):
    """A persistent homology dimension with what it rests on.

    Attributes:
        value: ``alpha / (1 - slope)``; infinite for ``slope >= 1``; NaN when
            `too_few`, when an entry is invalid, and when all points coincide.
            Points that coincide count as one and lower it.
        standard_error: Standard deviation over repeats over ``sqrt(num_repeats)``, by
            the delta method: the error of drawing subsets, not of drawing the points.
            Subsets of the same points overlap, so it is optimistic: .5 to .75 of the
            standard deviation over fresh clouds of uniform points in one to three
            dimensions, and over fresh paths of Brownian motion .2 to .35 in 2, 3 and
            8 dimensions, .5 to .6 in 100.
        slope: Slope of ``log E_alpha`` against ``log n`` (NaN as `value`).
        alpha_too_large: True for a slope below .1: ``E_alpha`` hardly grows, and
            `value` is about `alpha` whatever the dimension is, as long as that is
            below 1.1 `alpha`. Take a smaller `alpha`.
        num_points: Number of points.
        num_invalid: Number of entries that are no distances: negative, not finite, or
            unlike their mirror image.
        too_few: True for fewer than 500 points: no number is given.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    slope: Float[Array, ""]
    alpha_too_large: Bool[Array, ""]
    num_points: int
    num_invalid: Int[Array, ""]
    too_few: Bool[Array, ""] | bool


def persistent_homology_dimension(
    distances: Float[ArrayLike, "r r"],
    *,
    key: KeyArray,
    alpha: float | Float[Array, ""] = 1.0,
    num_sizes: int = 8,
    num_repeats: int = 5,
) -> PersistentHomologyDimension:
    r"""Estimate the persistent homology dimension of a set of points.

    .. math:: \dim_\alpha = \frac{\alpha}{1 - m}, \quad
        \log E_\alpha(n) \approx m \log n + \text{const}

    with ``m`` the least-squares slope over random subsets of ``n`` points drawn
    without replacement, `num_repeats` of each of `num_sizes` sizes spaced
    geometrically from ``r / 5`` to ``r``.

    `alpha` must be below the dimension: otherwise ``E_alpha`` stays bounded and the
    answer is about `alpha` itself (a Cantor set of dimension .631 gives 1.00 at
    ``alpha=1``, .65 to .69 at ``alpha=.25``). The estimate falls short of high
    dimensions (15.6 for a cube of 20 at 1,000 points). Of any slowly diffusing path it
    is about 2.2, so read it beside the nulls of `measure_path`.

    Args:
        distances: Distances of the points, their order irrelevant; at least 500 points
            for a number.
        key: Random key, for the subsets.
        alpha: Positive power of the edge lengths, below the expected dimension.
        num_sizes: Number of subset sizes, at least 2.
        num_repeats: Number of subsets of each size, at least 2.

    Returns:
        The dimension, its standard error over repeats, and the conditions.

    Raises:
        ValueError: `distances` is not a square matrix of at least two floating-point
            rows, or an option is out of range.

    Memory:
        A few times ``r^2``; a subset of ``n`` points costs ``n r`` operations.

    Example:
        >>> import jax
        >>> from jaxtheory.dynamics import topology
        >>> points = jax.random.uniform(jax.random.key(0), (500, 2))
        >>> distances = topology.pairwise_distances(points)
        >>> result = persistent_homology_dimension(distances, key=jax.random.key(1))
        >>> abs(float(result.value) - 2) < 0.3
        True

    References:
        Birdal et al., arXiv:2111.13171; Jaquette and Schweinhart, arXiv:1907.11182.
    """
    check_key(key)
    check_alpha(alpha)
    check_count(num_sizes=num_sizes, at_least=2)
    check_count(num_repeats=num_repeats, at_least=2)
    valid, num_invalid = nan_unless_valid(as_distances(distances))
    _, value, error, slope = estimate(valid, key, alpha, num_sizes, num_repeats)
    r = valid.shape[0]
    return PersistentHomologyDimension(
        value=value,
        standard_error=error,
        slope=slope,
        alpha_too_large=slope < _SLOPE_OF_BOUNDED,
        num_points=r,
        num_invalid=num_invalid,
        too_few=r < MINIMUM_POINTS,
    )


def ph_dimension_penalty(
    distances: Float[ArrayLike, "r r"],
    *,
    key: KeyArray,
    sizes: Sequence[int] = tuple(range(10, 100, 10)),
    alpha: float | Float[Array, ""] = 1.0,
) -> Float[Array, ""]:
    r"""Compute the persistent homology dimension of few points, to penalise it.

    .. math:: \frac{\alpha}{1 - m}

    with ``m`` the least-squares slope of ``\log E_\alpha`` over one random subset of
    each size. It is differentiable in the distances and cheap enough for every step of
    training; of a hundred points it is a penalty and no estimate, for which there is
    `persistent_homology_dimension`. As published, `distances` are those of the last 100
    iterates, the newest one appended by `append_point` and the only one that the
    gradient reaches, and the loss gets .5 times the penalty. Only subsets that hold the
    newest iterate have a gradient.

    Args:
        distances: Distances of the points.
        key: Random key, for the subsets; a fresh one each step.
        sizes: Numbers of points of the subsets, at least two different ones.
        alpha: Positive power of the edge lengths.

    Returns:
        The penalty. Where the slope passes 1, as for points that are nearly
        equidistant, it passes through infinity.

    Raises:
        ValueError: `distances` is not a square matrix of at least two floating-point
            rows, or an option is out of range.

    Memory:
        A subset of ``n`` points costs ``n r`` operations.

    Example:
        >>> import jax
        >>> from jaxtheory.dynamics import topology
        >>> points = jax.random.uniform(jax.random.key(0), (100, 2))
        >>> distances = topology.pairwise_distances(points)
        >>> penalty = ph_dimension_penalty(distances, key=jax.random.key(1))
        >>> abs(float(penalty) - 2) < 0.6
        True

    References:
        Birdal et al., arXiv:2111.13171 (the regulariser).
    """
    check_key(key)
    matrix = as_distances(distances)
    check_alpha(alpha)
    sizes = _check_sizes(sizes, matrix.shape[0])
    return _penalty(matrix, key, alpha, sizes)


@functools.partial(jax.jit, static_argnums=(3, 4))
def estimate(
    distances: Array, key: KeyArray, alpha: Any, num_sizes: int, num_repeats: int
) -> tuple[Array, Array, Array, Array]:
    """E_alpha, the dimension, its standard error, and the slope.

    All but the first are NaN for too few points.
    """
    r = distances.shape[0]
    whole = e_alpha(minimum_spanning_tree(distances).lengths, alpha=alpha)
    if r < MINIMUM_POINTS:
        nan = jnp.full((), jnp.nan, distances.dtype)
        return whole, nan, nan, nan
    sizes = np.geomspace(r / 5, r, num_sizes).round().astype(int)
    # Of the largest size there is one subset, all points.
    logs = _logs_of_subsets(distances, key, alpha, sizes[:-1], num_repeats)
    last = jnp.broadcast_to(jnp.log(whole), (num_repeats, 1))
    slopes = _slopes(jnp.concatenate([logs, last], axis=1), sizes)
    slope = jnp.mean(slopes)
    value = jnp.where(slope >= 1, jnp.inf, alpha / (1 - slope))
    error = value**2 / alpha * jnp.std(slopes, ddof=1) / num_repeats**0.5
    return whole, value, error, slope


@functools.partial(jax.jit, static_argnums=3)
def _penalty(distances, key, alpha, sizes):
    logs = _logs_of_subsets(distances, key, alpha, np.array(sizes), 1)
    return alpha / (1 - _slopes(logs, np.array(sizes))[0])


def _logs_of_subsets(distances, key, alpha, sizes, num_repeats):
    """Logarithms ``[num_repeats, num_sizes]`` of E_alpha of random subsets."""
    r = distances.shape[0]

    def log_of_subset(args):
        index, size = args
        rank = jax.random.permutation(jax.random.fold_in(key, index), r)
        edges = prim(distances, rank < size, size)
        # Edges that a smaller tree does not have are (0, 0), of length 0.
        return jnp.log(e_alpha(distances[edges[:, 0], edges[:, 1]], alpha=alpha))

    indices = jnp.arange(num_repeats * len(sizes))
    subsets = (indices, jnp.tile(jnp.asarray(sizes), num_repeats))
    return jax.lax.map(log_of_subset, subsets).reshape(num_repeats, len(sizes))


def _slopes(logs, sizes):
    """Least-squares slope of each row against the logarithm of the sizes."""
    centred = np.log(sizes) - np.log(sizes).mean()
    weights = jnp.asarray(centred / (centred @ centred), logs.dtype)
    return jnp.matmul(logs, weights, precision="highest")


def _check_sizes(sizes, r):
    """The sizes as a tuple; raise unless a slope can be taken over them."""
    if not isinstance(sizes, Sequence | np.ndarray) or isinstance(sizes, str):
        raise ValueError(f"`sizes` must be several numbers, but was {sizes!r}.")
    sizes = tuple(check_count(sizes=size, at_least=2) for size in sizes)
    if len(set(sizes)) < 2 or max(sizes) > r:
        raise ValueError(
            f"`sizes` must hold two different numbers, none above the {r} points that "
            f"`distances` has, but was {sizes}."
        )
    return sizes
