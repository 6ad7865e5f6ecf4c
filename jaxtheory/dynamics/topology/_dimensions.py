"""Dimensions from neighbours: correlation sums, two neighbours, many neighbours."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory.batching import check_count, check_number
from jaxtheory.dynamics.topology._checks import (
    MINIMUM_POINTS,
    as_distances,
    check_pair,
    check_settled,
    check_window,
    count_coincident,
    nan_unless_valid,
)

_BISECTIONS = 48


class CorrelationDimension(NamedTuple):
    """A correlation dimension with the line it was read from.

    Attributes:
        value: Slope of ``log fractions`` against ``log radii``. NaN when `too_few`,
            when an entry is invalid, and when so many points coincide that the smallest
            radius is zero.
        standard_error: From the spread over points of how much each contributes to the
            slope, the radii fixed: 1 to 2 times the standard deviation over fresh
            clouds of uniform points and of fractals; but .5 to 1.3 times that over
            fresh paths of Brownian motion and stable walks, whose points depend on
            each other.
        residual: Root mean square of ``log fractions`` about the line.
        radii: Radii of the window, spaced geometrically.
        fractions: Share of pairs within each radius.
        num_points: Number of points.
        num_invalid: Number of entries that are no distances.
        num_coincident: Number of points at distance zero from another one.
        too_few: True for fewer than 500 points: no number is given.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    residual: Float[Array, ""]
    radii: Float[Array, " k"]
    fractions: Float[Array, " k"]
    num_points: int
    num_invalid: Int[Array, ""]
    num_coincident: Int[Array, ""]
    too_few: Bool[Array, ""] | bool


class NeighbourDimension(NamedTuple):
    """A dimension from the distances of nearest neighbours.

    Attributes:
        value: The dimension. NaN when `too_few`, and when an entry is invalid.
        standard_error: As the function says.
        residual: How far the points are from the model, as the function says.
        num_points: Number of points.
        num_invalid: Number of entries that are no distances.
        num_coincident: Number of points at distance zero from another one. They have no
            ratio of distances and are left out of the mean.
        too_few: True for fewer than 500 points: no number is given.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    residual: Float[Array, ""]
    num_points: int
    num_invalid: Int[Array, ""]
    num_coincident: Int[Array, ""]
    too_few: Bool[Array, ""] | bool


def correlation_dimension(
    distances: Float[ArrayLike, "r r"],
    *,
    window: tuple[float, float] = (0.005, 0.05),
    num_radii: int = 16,
) -> CorrelationDimension:
    r"""Estimate the correlation dimension: how the number of near pairs grows.

    .. math:: C(\rho) = \frac{2}{r (r - 1)} \#\{i < j : d_{ij} \le \rho\}
        \approx \text{const} \cdot \rho^{\dim}

    The value is the least-squares slope of ``log C`` against ``log rho`` over the
    window. It falls short of the dimension of a set with an edge, the more the larger
    the window and the dimension are (2.8 and 7.6 for 1,000 points in cubes of 3 and 10
    dimensions). Of any slow random walk it is about 2: read it beside the nulls of
    `measure_path`.

    Args:
        distances: Distances of the points; at least 500 points for a number.
        window: Shares of pairs ``C`` at the two ends of the window. That makes it
            independent of units; `radii` of the result says what it came to.
        num_radii: Number of radii in the window, at least 3.

    Returns:
        The dimension, its standard error, the line and its residual.

    Raises:
        ValueError: `distances` is not a square matrix of at least two floating-point
            rows, or an option is out of range.

    Memory:
        A few times ``r^2``; ``r^2`` operations for each radius and some hundred times
        that to find the window.

    Example:
        >>> import jax.numpy as jnp
        >>> line = jnp.arange(600.0)
        >>> result = correlation_dimension(jnp.abs(line[:, None] - line[None, :]))
        >>> abs(float(result.value) - 1) < 0.1
        True

    References:
        Grassberger and Procaccia, Physica D 9 (1983), 189-208.
    """
    valid, num_invalid = nan_unless_valid(as_distances(distances))
    window = check_window(window)
    check_count(num_radii=num_radii, at_least=3)
    r = valid.shape[0]
    return CorrelationDimension(
        *correlation(valid, window, num_radii),
        num_points=r,
        num_invalid=num_invalid,
        num_coincident=count_coincident(valid),
        too_few=r < MINIMUM_POINTS,
    )


def two_nn_dimension(
    distances: Float[ArrayLike, "r r"], *, discard: float = 0.1
) -> NeighbourDimension:
    r"""Estimate the dimension from the ratio of the two nearest distances.

    .. math:: \mu_i = d_i^{(2)} / d_i^{(1)}, \quad P(\mu > m) = m^{-\dim}

    Where the density is constant over two neighbours. The largest ratios, which leave
    that range, are discarded, and the exponent is the maximum-likelihood one of a
    sample cut at its m-th smallest value, ``(m - 1) / (sum_{i <= m} log mu_i +
    (r - m) log mu_m)``. (The paper fits a line through the origin to the same points,
    which has a larger error.)

    Useless on paths: there the two nearest points are the neighbours in time, at about
    the same distance, and the answer grows with the number of coordinates (37 for
    Brownian motion in 1,000).

    Args:
        distances: Distances of the points; at least 500 points for a number.
        discard: Share of the largest ratios to leave out, in [0, 1).

    Returns:
        The dimension; its standard error ``value / sqrt(m)``, as if the ratios were
        independent (.6 to 1.5 times the standard deviation over fresh clouds); and as
        residual the largest gap between the distribution function of the ratios and
        the fitted one (about ``.8 / sqrt(r)`` where the model holds).

    Raises:
        ValueError: `distances` is not a square matrix of at least two floating-point
            rows, or `discard` is out of range.

    Memory:
        ``r^2``; a sort of every row.

    Example:
        >>> import jax
        >>> from jaxtheory.dynamics import topology
        >>> points = jax.random.uniform(jax.random.key(0), (1000, 2))
        >>> result = two_nn_dimension(topology.pairwise_distances(points))
        >>> abs(float(result.value) - 2) < 4 * float(result.standard_error)
        True

    References:
        Facco et al., arXiv:1803.06992.
    """
    matrix = as_distances(distances)
    check_settled("discard", discard)
    check_number("discard", discard, lambda a: 0 <= a < 1, "in [0, 1)")
    return _of_neighbours(matrix, functools.partial(two_nn, discard=float(discard)))


def levina_bickel_dimension(
    distances: Float[ArrayLike, "r r"],
    *,
    num_neighbours: tuple[int, int] = (10, 20),
    correction: str = "mackay_ghahramani",
) -> NeighbourDimension:
    r"""Estimate the dimension by maximum likelihood from several neighbours.

    .. math:: \frac{1}{m_k(i)} = \frac{1}{k - 1} \sum_{j=1}^{k-1}
        \log \frac{d_i^{(k)}}{d_i^{(j)}}

    averaged over points ``i`` and then over ``k`` in `num_neighbours` (both ends
    taken): with ``"mackay_ghahramani"`` the mean over points is one of ``1 / m_k``, the
    maximum of the joint likelihood; with ``"none"`` one of ``m_k``, as first published,
    which is too large by ``(k - 1) / (k - 2)`` and by the spread of ``1 / m_k``.

    Args:
        distances: Distances of the points; at least 500 points for a number.
        num_neighbours: Smallest and largest number of neighbours ``k``, the smallest
            at least 3.
        correction: The word ``"mackay_ghahramani"`` or ``"none"``.

    Returns:
        The dimension; its standard error from the spread over points, as if their
        neighbourhoods were independent (they overlap: it was .5 to 1.3 times the
        standard deviation over fresh clouds, and .2 to .5 times over fresh paths); and
        as residual the standard deviation over ``k``, which is
        large where the dimension depends on the scale.

    Raises:
        ValueError: `distances` is not a square matrix of at least two floating-point
            rows, or an option is out of range.

    Memory:
        ``r^2``; a sort of every row.

    Example:
        >>> import jax
        >>> from jaxtheory.dynamics import topology
        >>> points = jax.random.uniform(jax.random.key(0), (1000, 2))
        >>> result = levina_bickel_dimension(topology.pairwise_distances(points))
        >>> abs(float(result.value) - 2) < 0.2
        True

    References:
        Levina and Bickel, NeurIPS 2004, equations 8 to 10; MacKay and Ghahramani,
        "Comments on 'Maximum likelihood estimation of intrinsic dimension'", 2005.
    """
    matrix = as_distances(distances)
    if correction not in ("mackay_ghahramani", "none"):
        raise ValueError(
            "`correction` must be 'mackay_ghahramani' or 'none', but was "
            f"{correction!r}."
        )
    both = check_pair("num_neighbours", num_neighbours)
    low, high = (check_count(num_neighbours=k, at_least=3) for k in both)
    if not low <= high < matrix.shape[0]:
        raise ValueError(
            "`num_neighbours` must be a smallest and a largest number, below the "
            f"{matrix.shape[0]} points of `distances`, but was {num_neighbours}."
        )
    function = functools.partial(
        levina_bickel, num_neighbours=(low, high), correction=correction
    )
    return _of_neighbours(matrix, function)


def _of_neighbours(distances, estimate):
    """Value, error and residual of `estimate`, with the conditions."""
    distances, num_invalid = nan_unless_valid(distances)
    r = distances.shape[0]
    return NeighbourDimension(
        *estimate(distances),
        num_points=r,
        num_invalid=num_invalid,
        num_coincident=count_coincident(distances),
        too_few=r < MINIMUM_POINTS,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def correlation(
    distances: Array, window: tuple[float, float], num_radii: int
) -> tuple[Array, ...]:
    """Slope, its error, the residual, the radii and the share of pairs within them."""
    r = distances.shape[0]
    others = _without_self(distances)
    low, high = (_radius_of(others, share * r * (r - 1)) for share in window)
    # Rounding must not take the pair at the end out of the window.
    radii = jnp.geomspace(low, high, num_radii).at[0].set(low).at[-1].set(high)
    within = lambda radius: jnp.sum(others <= radius, axis=1)
    shares = jax.lax.map(within, radii).astype(distances.dtype) / (r - 1)
    fractions = jnp.mean(shares, axis=1)
    logs, at = jnp.log(fractions), jnp.log(radii)
    at = at - jnp.mean(at)
    weights = at / jnp.sum(at**2)
    slope = jnp.sum(weights * logs)
    residual = jnp.sqrt(jnp.mean((logs - jnp.mean(logs) - slope * at) ** 2))
    # log C is a mean over pairs: a point's influence on it is twice its own excess.
    excess = 2 * (shares / fractions[:, None] - 1)
    influence = jnp.sum(weights[:, None] * excess, axis=0)
    error = jnp.std(influence, ddof=1) / r**0.5
    return *_unless_too_few(r, slope, error, residual), radii, fractions


@functools.partial(jax.jit, static_argnames="discard")
def two_nn(distances: Array, *, discard: float) -> tuple[Array, ...]:
    """Dimension, its error, and the largest gap to the fitted distribution."""
    r = distances.shape[0]
    nearest = _nearest(distances, 2)
    used = nearest[:, 0] > 0
    ratios = jnp.where(used, jnp.log(nearest[:, 1] / nearest[:, 0]), jnp.inf)
    ratios = jnp.sort(ratios)
    num = jnp.sum(used)
    kept = jnp.floor((1 - discard) * num).astype(int)
    is_kept = jnp.arange(r) < kept
    ratios = jnp.where(is_kept, ratios, 0)
    exposure = jnp.sum(ratios) + (num - kept) * jnp.max(ratios)
    value = jnp.where(kept > 1, (kept - 1) / exposure, jnp.nan)
    empirical = (jnp.arange(r) + 0.5) / num
    gaps = jnp.abs(empirical + jnp.expm1(-value * ratios))
    residual = jnp.max(jnp.where(is_kept, gaps, 0))
    return _unless_too_few(r, value, value / jnp.sqrt(kept), residual)


@functools.partial(jax.jit, static_argnames=("num_neighbours", "correction"))
def levina_bickel(
    distances: Array, *, num_neighbours: tuple[int, int], correction: str
) -> tuple[Array, ...]:
    """Dimension, its error, and its deviation over the numbers of neighbours."""
    r = distances.shape[0]
    low, high = num_neighbours
    nearest = _nearest(distances, high)
    used = nearest[:, :1] > 0
    logs = jnp.log(jnp.where(used, nearest / nearest[:, :1], 1))
    k = np.arange(low, high + 1)
    sums = jnp.cumsum(logs, axis=1)[:, k - 2] / (k - 1)[None, :]
    inverses = logs[:, k - 1] - sums
    mean = lambda a: jnp.sum(jnp.where(used, a, 0), axis=0) / jnp.sum(used)
    if correction == "none":
        each = 1 / inverses
        by_k = mean(each)
        influence = each - by_k[None, :]
    else:
        by_k = 1 / mean(inverses)
        influence = (1 / by_k[None, :] - inverses) * by_k[None, :] ** 2
    by_point = jnp.mean(jnp.where(used, influence, 0), axis=1)
    error = jnp.sqrt(jnp.sum(by_point**2)) / jnp.sum(used)
    return _unless_too_few(r, jnp.mean(by_k), error, jnp.std(by_k, ddof=0))


def _unless_too_few(r: int, *numbers: Any) -> tuple[Any, ...]:
    """The numbers, or NaN for each where there are too few points for one."""
    if r >= MINIMUM_POINTS:
        return numbers
    return tuple(jnp.full_like(number, jnp.nan) for number in numbers)


def _without_self(distances):
    """The distances with infinity for that of a point from itself."""
    return jnp.where(jnp.eye(distances.shape[0], dtype=bool), jnp.inf, distances)


def _nearest(distances, num):
    """The `num` smallest distances ``[r, num]`` of each point from others."""
    return -jax.lax.top_k(-_without_self(distances), num)[0]


def _radius_of(others, num):
    """The smallest radius within which `num` ordered pairs lie, by bisection."""
    top = jnp.max(jnp.where(jnp.isfinite(others), others, 0))

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) / 2
        enough = jnp.sum(others <= middle) >= num
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    found = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(top), top))[1]
    return jnp.where(jnp.sum(others <= 0) >= num, 0, found)
