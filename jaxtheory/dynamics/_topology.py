"""The dimension of a set of points, and the topology of a training path."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.dynamics._nulls import ornstein_uhlenbeck, sign_flipped
from jaxtheory.dynamics._path import as_points, count_nonfinite, path_length
from jaxtheory.dynamics._tree import (
    check_alpha,
    e_alpha,
    minimum_spanning_tree,
    pairwise_distances,
    prim,
)

_MINIMUM_POINTS = 500


class PersistentHomologyDimension(NamedTuple):
    """A persistent homology dimension with what it rests on.

    Attributes:
        value: ``alpha / (1 - slope)``; infinite for ``slope >= 1``; NaN when
            `too_few`, when a point is not finite, and when all points coincide.
            Points that coincide count as one and lower it.
        standard_error: Standard deviation over repeats over ``sqrt(num_repeats)``, by
            the delta method: the error of drawing subsets, not of drawing the points.
            Subsets of the same points overlap, so it is optimistic: .7 of the standard
            deviation over fresh clouds of uniform points in one to three dimensions,
            .5 to 1 over fresh paths of one process.
        slope: Slope of ``log E_alpha`` against ``log n`` (NaN as `value`).
        num_points: Number of points.
        num_nonfinite: Number of points with a coordinate that is not finite.
        too_few: True for fewer than 500 points: no number is given.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    slope: Float[Array, ""]
    num_points: int
    num_nonfinite: Int[Array, ""]
    too_few: Bool[Array, ""] | bool


class NullTopology(NamedTuple):
    """What one draw of a null model of the path measures.

    Attributes:
        e_1_over_path_length: As in `PathTopology`.
        ph_dimension: As in `PathTopology`.
        ph_standard_error: As in `PathTopology`.
    """

    e_1_over_path_length: Float[Array, ""]
    ph_dimension: Float[Array, ""]
    ph_standard_error: Float[Array, ""]


class PathTopology(NamedTuple):
    """Topological measures of a path, beside what they are of two null models.

    Attributes:
        num_points: Number of points ``r``.
        num_nonfinite: Number of points with a coordinate that is not finite; unless
            it is 0, every measure of the points is NaN.
        too_few: True for fewer than 500 points: the dimensions are NaN.
        path_length: Length of the path: of the exact steps where they were given.
        e_1: Length of the minimum spanning tree, on the scale of `path_length`.
        e_1_over_path_length: Their ratio, at most 1: near 1, `e_1` says nothing that
            the path length does not say. NaN for a path of length 0.
        ph_dimension: Persistent homology dimension at ``alpha = 1``.
        ph_standard_error: Its standard error, see `PersistentHomologyDimension`.
        null_sign_flipped: The same of one draw of null A, the increments times
            independent random signs.
        null_ou: The same of one draw of null B, a stationary Ornstein-Uhlenbeck
            process with the path's lag-1 autocorrelation and variances.
        ou_decay: One minus the fitted lag-1 autocorrelation.
    """

    num_points: int
    num_nonfinite: Int[Array, ""]
    too_few: Bool[Array, ""] | bool
    path_length: Float[Array, ""]
    e_1: Float[Array, ""]
    e_1_over_path_length: Float[Array, ""]
    ph_dimension: Float[Array, ""]
    ph_standard_error: Float[Array, ""]
    null_sign_flipped: NullTopology
    null_ou: NullTopology
    ou_decay: Float[Array, ""]


def persistent_homology_dimension(
    points: Float[ArrayLike, "r d"],
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
    is about 2.2, so read it beside the nulls of `path_topology`.

    Args:
        points: One point a row, their order irrelevant; at least 500 for a number.
        key: Random key, for the subsets.
        alpha: Positive power of the edge lengths, below the expected dimension.
        num_sizes: Number of subset sizes, at least 2.
        num_repeats: Number of subsets of each size, at least 2.

    Returns:
        The dimension, its standard error over repeats, and the conditions.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows, or an
            option is out of range.

    Memory:
        ``r^2``; a subset of ``n`` points costs ``n r`` operations.

    Example:
        >>> import jax
        >>> points = jax.random.uniform(jax.random.key(0), (500, 1))
        >>> result = persistent_homology_dimension(points, key=jax.random.key(1))
        >>> abs(float(result.value) - 1) < 0.05
        True

    References:
        Birdal et al., arXiv:2111.13171; Jaquette and Schweinhart, arXiv:1907.11182.
    """
    points = as_points(points, at_least=2)
    check_alpha(alpha)
    _check_subsets(num_sizes, num_repeats)
    r = points.shape[0]
    points, num_nonfinite = _nan_unless_finite(points)
    distances = pairwise_distances(points)
    value, error, slope = _dimension(distances, key, alpha, num_sizes, num_repeats)
    too_few = r < _MINIMUM_POINTS
    return PersistentHomologyDimension(value, error, slope, r, num_nonfinite, too_few)


def path_topology(
    points: Float[ArrayLike, "r d"],
    *,
    key: KeyArray,
    step_lengths: Float[ArrayLike, " s"] | None = None,
    num_sizes: int = 8,
    num_repeats: int = 5,
) -> PathTopology:
    r"""Measure the minimum spanning tree and the dimension of a path, beside two nulls.

    The tree of a training path is nearly the path itself (``E_1`` was .995 to 1.000 of
    its length on seven runs), and the dimension of any slowly diffusing path is about
    2.2: neither number says much alone. So the length comes with ``E_1``, and both
    come with the same measures of two null models, each drawn once:

    - A, `null_sign_flipped`: the increments times independent random signs, which
      keeps every step's length and destroys drift.
    - B, `null_ou`: ``x_{t+1} = phi x_t + sqrt(1 - phi^2) sigma xi_t`` from its
      stationary law. ``phi`` is one lag-1 autocorrelation of the centred path ``c``,
      pooled over coordinates (Burg: ``2 sum <c_t, c_{t+1}>`` over ``sum |c_t|^2 +
      |c_{t+1}|^2``), ``sigma_j^2`` the variance (``1/r``) of coordinate j.

    Args:
        points: Successive points of the path, or sketches of them, one a row.
        key: Random key, for the subsets and the nulls.
        step_lengths: Exact distances between successive points, ``[r-1]``, where
            `points` are sketches: ``history.trace["step_length"]`` of a run recorded
            at every step. The tree is then rescaled by exact over sketched path
            length, which takes its error from some 2 % to .1 %.
        num_sizes: As for `persistent_homology_dimension`.
        num_repeats: As for `persistent_homology_dimension`.

    Returns:
        The measures, those of the nulls, and the conditions.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows,
            `step_lengths` does not have one length a step, or an option is out of
            range.

    Memory:
        ``r^2`` and a few copies of `points`; ``9 r^2 d`` operations for the distances
        and about ``2 num_sizes num_repeats r^2`` for the trees.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> time = jnp.arange(100.0)
        >>> line = jnp.stack([3 * time, 4 * time], axis=1)
        >>> result = path_topology(line, key=jax.random.key(0))
        >>> float(result.e_1), float(result.e_1_over_path_length), result.too_few
        (495.0, 1.0, True)

    References:
        Birdal et al., arXiv:2111.13171; Andreeva et al., arXiv:2407.08723.
    """
    points = as_points(points, at_least=2)
    _check_subsets(num_sizes, num_repeats)
    r = points.shape[0]
    _check_step_lengths(step_lengths, r)
    points, num_nonfinite = _nan_unless_finite(points)
    measures, decay = _measure_paths(points, key, num_sizes, num_repeats)
    lengths, e_1, dimensions, errors = measures
    ratios = e_1 / lengths
    length = lengths[0] if step_lengths is None else jnp.sum(jnp.asarray(step_lengths))
    return PathTopology(
        num_points=r,
        num_nonfinite=num_nonfinite,
        too_few=r < _MINIMUM_POINTS,
        path_length=length,
        e_1=e_1[0] * (length / lengths[0]),
        e_1_over_path_length=ratios[0],
        ph_dimension=dimensions[0],
        ph_standard_error=errors[0],
        null_sign_flipped=NullTopology(ratios[1], dimensions[1], errors[1]),
        null_ou=NullTopology(ratios[2], dimensions[2], errors[2]),
        ou_decay=decay,
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _measure_paths(points, key, num_sizes, num_repeats):
    """Path length, E_1 and dimension of the path and of its two nulls, stacked."""
    key_a, key_b, *keys = jax.random.split(key, 5)
    null_a = sign_flipped(points, key=key_a)
    null_b, decay = ornstein_uhlenbeck(points, key=key_b)

    def measure(args):
        path, key = args
        distances = pairwise_distances(path)
        e_1 = e_alpha(minimum_spanning_tree(distances).lengths)
        value, error, _ = _dimension(distances, key, 1.0, num_sizes, num_repeats)
        return path_length(path), e_1, value, error

    # One after another: a third of the memory, and one copy of the program.
    paths = jnp.stack([points, null_a, null_b])
    return jax.lax.map(measure, (paths, jnp.stack(keys))), decay


@functools.partial(jax.jit, static_argnums=(3, 4))
def _dimension(distances, key, alpha, num_sizes, num_repeats):
    """The dimension, its standard error, and the slope; NaN for too few points."""
    r = distances.shape[0]
    if r < _MINIMUM_POINTS:
        return (jnp.full((), jnp.nan, distances.dtype),) * 3
    sizes = np.geomspace(r / 5, r, num_sizes).round().astype(int)

    def log_of_subset(args):
        index, size = args
        rank = jax.random.permutation(jax.random.fold_in(key, index), r)
        edges = prim(distances, rank < size, size)
        # Edges that a smaller tree does not have are (0, 0), of length 0.
        return jnp.log(e_alpha(distances[edges[:, 0], edges[:, 1]], alpha=alpha))

    indices = jnp.arange(num_repeats * num_sizes)
    subsets = (indices, jnp.tile(jnp.asarray(sizes), num_repeats))
    logs = jax.lax.map(log_of_subset, subsets).reshape(num_repeats, num_sizes)
    centred = np.log(sizes) - np.log(sizes).mean()
    weights = jnp.asarray(centred / (centred @ centred), logs.dtype)
    slopes = jnp.matmul(logs, weights, precision="highest")
    slope = jnp.mean(slopes)
    value = jnp.where(slope >= 1, jnp.inf, alpha / (1 - slope))
    error = value**2 / alpha * jnp.std(slopes, ddof=1) / num_repeats**0.5
    return value, error, slope


def _nan_unless_finite(points):
    """The points, all NaN if one of them is not finite; and how many are not."""
    num_nonfinite = count_nonfinite(points)
    return jnp.where(num_nonfinite == 0, points, jnp.nan), num_nonfinite


def _check_subsets(num_sizes, num_repeats):
    """Check the options of the regression."""
    for name, value in (("num_sizes", num_sizes), ("num_repeats", num_repeats)):
        if not isinstance(value, int) or value < 2:
            raise ValueError(
                f"`{name}` must be an integer of at least 2, for a slope and its "
                f"error, but was {value!r}."
            )


def _check_step_lengths(step_lengths, r):
    """Check that there is one length a step."""
    if step_lengths is not None and jnp.shape(step_lengths) != (r - 1,):
        raise ValueError(
            f"`step_lengths` must hold one length a step, shape ({r - 1},), but has "
            f"shape {jnp.shape(step_lengths)}. Entry t is the distance from point t to "
            "point t + 1; leave it out where that is not known."
        )
