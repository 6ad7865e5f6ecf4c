"""The dimension of a set of points, and the topology of a training path."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key
from jaxtheory.dynamics.topology._nulls import (
    distances_along,
    ornstein_uhlenbeck,
    sign_flipped,
)
from jaxtheory.dynamics.topology._path import as_points, count_nonfinite, path_length
from jaxtheory.dynamics.topology._tree import (
    at_least_single,
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
            Subsets of the same points overlap, so it is optimistic: .5 to .75 of the
            standard deviation over fresh clouds of uniform points in one to three
            dimensions, and over fresh paths of Brownian motion .2 to .35 in 2, 3 and
            8 dimensions, .5 to .6 in 100.
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
    """What draws of a null model of the path measure.

    Attributes:
        e_1_over_path_length: As in `PathTopology`, mean over draws.
        ratio_standard_deviation: Its standard deviation over draws (``1/(n-1)``).
        ph_dimension: As in `PathTopology`, mean over draws.
        ph_standard_deviation: Its standard deviation over draws (``1/(n-1)``): the
            scale on which a path is apart from the null, or is not.
    """

    e_1_over_path_length: Float[Array, ""]
    ratio_standard_deviation: Float[Array, ""]
    ph_dimension: Float[Array, ""]
    ph_standard_deviation: Float[Array, ""]


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
        null_sign_flipped: The same of draws of null A, the increments times
            independent random signs.
        null_ou: The same of draws of null B, a stationary Ornstein-Uhlenbeck process
            with the path's lag-1 autocorrelation and variances.
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
    check_key(key)
    points = as_points(points, at_least=2)
    check_alpha(alpha)
    _check_counts(num_sizes=num_sizes, num_repeats=num_repeats)
    r = points.shape[0]
    points, num_nonfinite = _nan_unless_finite(points)
    distances = pairwise_distances(points)
    _, value, error, slope = _dimension(distances, key, alpha, num_sizes, num_repeats)
    too_few = r < _MINIMUM_POINTS
    return PersistentHomologyDimension(value, error, slope, r, num_nonfinite, too_few)


def path_topology(
    points: Float[ArrayLike, "r d"],
    *,
    key: KeyArray,
    step_lengths: Float[ArrayLike, " s"] | None = None,
    num_nulls: int = 20,
    num_sizes: int = 8,
    num_repeats: int = 5,
) -> PathTopology:
    r"""Measure the minimum spanning tree and the dimension of a path, beside two nulls.

    The tree of a training path is nearly the path itself (``E_1`` was .995 to 1.000 of
    its length on seven runs), and the dimension of any slowly diffusing path is about
    2.2: neither number says much alone. So the length comes with ``E_1``, and both
    come with the same measures of two null models, each drawn `num_nulls` times:

    - A, `null_sign_flipped`: the increments times independent random signs, which
      keeps every step's length and destroys drift.
    - B, `null_ou`: ``x_{t+1} = phi x_t + sqrt(1 - phi^2) sigma xi_t`` from its
      stationary law. ``phi`` is one lag-1 autocorrelation of the centred path ``c``,
      pooled over coordinates (Burg: ``2 sum <c_t, c_{t+1}>`` over ``sum |c_t|^2 +
      |c_{t+1}|^2``), ``sigma_j^2`` the variance (``1/r``) of coordinate j.

    Judge whether a path is apart from a null by the spread of the null's draws,
    `ph_standard_deviation`, because a path is one draw too: of 80 Brownian paths of 600
    points in the plane, three of these deviations called none apart from A and three
    from B, but three standard errors every second one from A. `ph_standard_error` is
    the error of drawing subsets alone.

    Args:
        points: Successive points of the path, or sketches of them, one a row.
        key: Random key, for the subsets and the nulls.
        step_lengths: Exact distances between successive points, ``[r-1]``, where
            `points` are sketches: ``history.trace["step_length"]`` of a run recorded
            at every step. The tree is then rescaled by exact over sketched path
            length, which takes its error from some 2 % to .1 %.
        num_nulls: Number of draws of each null, at least 2.
        num_sizes: As for `persistent_homology_dimension`.
        num_repeats: As for `persistent_homology_dimension`.

    Returns:
        The measures, those of the nulls, and the conditions.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows,
            `step_lengths` does not have one length a step, or an option is out of
            range.

    Memory:
        A few times ``r^2`` and a few copies of `points`, whatever `num_nulls` is.
        Operations of each draw: ``2 r^2 d`` for the distances and about ``num_sizes
        num_repeats r^2`` for the trees: 9 s of one core for 2,000 points in 1,024
        coordinates.

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
    check_key(key)
    points = as_points(points, at_least=2)
    _check_counts(num_nulls=num_nulls, num_sizes=num_sizes, num_repeats=num_repeats)
    r = points.shape[0]
    _check_step_lengths(step_lengths, r)
    points, num_nonfinite = _nan_unless_finite(points)
    key_own, key_nulls = jax.random.split(key)
    length, e_1, dimension, error = _measure_path(
        points, key_own, num_sizes, num_repeats
    )
    null_a, null_b, decay = _measure_nulls(
        points, key_nulls, num_nulls, num_sizes, num_repeats
    )
    exact = length if step_lengths is None else jnp.sum(at_least_single(step_lengths))
    return PathTopology(
        num_points=r,
        num_nonfinite=num_nonfinite,
        too_few=r < _MINIMUM_POINTS,
        path_length=exact,
        e_1=e_1 * (exact / length),
        e_1_over_path_length=e_1 / length,
        ph_dimension=dimension,
        ph_standard_error=error,
        null_sign_flipped=null_a,
        null_ou=null_b,
        ou_decay=decay,
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _measure_path(points, key, num_sizes, num_repeats):
    """Path length, E_1, dimension and its standard error."""
    distances = pairwise_distances(points)
    e_1, value, error, _ = _dimension(distances, key, 1.0, num_sizes, num_repeats)
    return path_length(points), e_1, value, error


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _measure_nulls(points, key, num_nulls, num_sizes, num_repeats):
    """Means and deviations over draws of both nulls, and the decay of the second."""

    def measure(args):
        path, key = args
        distances = distances_along(path)
        e_1, value, *_ = _dimension(distances, key, 1.0, num_sizes, num_repeats)
        return e_1 / path_length(path), value

    def draw(key):
        key_a, key_b, *keys = jax.random.split(key, 4)
        null_a = sign_flipped(points, key=key_a)
        null_b, decay = ornstein_uhlenbeck(points, key=key_b)
        measures = jax.lax.map(measure, (jnp.stack([null_a, null_b]), jnp.stack(keys)))
        return measures, decay

    # One after another: the memory of one draw, and one copy of the program.
    (ratios, dimensions), decays = jax.lax.map(draw, jax.random.split(key, num_nulls))
    null_a, null_b = (
        NullTopology(
            jnp.mean(ratio),
            jnp.std(ratio, ddof=1),
            jnp.mean(value),
            jnp.std(value, ddof=1),
        )
        for ratio, value in zip(ratios.T, dimensions.T, strict=True)
    )
    return null_a, null_b, decays[0]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _dimension(distances, key, alpha, num_sizes, num_repeats):
    """E_alpha, the dimension, its standard error, and the slope.

    All but the first are NaN for too few points.
    """
    r = distances.shape[0]
    whole = e_alpha(minimum_spanning_tree(distances).lengths, alpha=alpha)
    if r < _MINIMUM_POINTS:
        return whole, *(jnp.full((), jnp.nan, distances.dtype),) * 3
    sizes = np.geomspace(r / 5, r, num_sizes).round().astype(int)

    def log_of_subset(args):
        index, size = args
        rank = jax.random.permutation(jax.random.fold_in(key, index), r)
        edges = prim(distances, rank < size, size)
        # Edges that a smaller tree does not have are (0, 0), of length 0.
        return jnp.log(e_alpha(distances[edges[:, 0], edges[:, 1]], alpha=alpha))

    # Of the largest size there is one subset, all points.
    indices = jnp.arange(num_repeats * (num_sizes - 1))
    subsets = (indices, jnp.tile(jnp.asarray(sizes[:-1]), num_repeats))
    logs = jax.lax.map(log_of_subset, subsets).reshape(num_repeats, num_sizes - 1)
    last = jnp.broadcast_to(jnp.log(whole), (num_repeats, 1))
    logs = jnp.concatenate([logs, last], axis=1)
    centred = np.log(sizes) - np.log(sizes).mean()
    weights = jnp.asarray(centred / (centred @ centred), logs.dtype)
    slopes = jnp.matmul(logs, weights, precision="highest")
    slope = jnp.mean(slopes)
    value = jnp.where(slope >= 1, jnp.inf, alpha / (1 - slope))
    error = value**2 / alpha * jnp.std(slopes, ddof=1) / num_repeats**0.5
    return whole, value, error, slope


def _nan_unless_finite(points):
    """The points, all NaN if one of them is not finite; and how many are not."""
    num_nonfinite = count_nonfinite(points)
    return jnp.where(num_nonfinite == 0, points, jnp.nan), num_nonfinite


def _check_counts(**counts):
    """Check that there are two of everything that a slope or a spread is taken over."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 2:
            raise ValueError(
                f"`{name}` must be an integer of at least 2, for a slope and its "
                f"error or the spread of a null, but was {value!r}."
            )


def _check_step_lengths(step_lengths, r):
    """Check that there is one length a step."""
    if step_lengths is not None and np.shape(step_lengths) != (r - 1,):
        raise ValueError(
            f"`step_lengths` must hold one length a step, shape ({r - 1},), but has "
            f"shape {np.shape(step_lengths)}. Entry t is the distance from point t to "
            "point t + 1; leave it out where that is not known."
        )
