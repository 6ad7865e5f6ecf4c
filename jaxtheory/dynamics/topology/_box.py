"""Box-counting dimension, of points in few coordinates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory.batching import check_count
from jaxtheory.dynamics.topology._checks import (
    MINIMUM_POINTS,
    as_points,
    check_window,
    count_nonfinite,
)


class BoxDimension(NamedTuple):
    """A box-counting dimension with the line it was read from.

    Attributes:
        value: Slope of ``log counts`` against ``log divisions`` in the window. NaN when
            `too_few`, when a point is not finite, and with fewer than three divisions
            in the window.
        standard_error: That of the slope of a straight line with independent errors.
            The counts of one set of points are not independent: a lower limit.
        residual: Root mean square of ``log counts`` about the line.
        divisions: Into how many boxes the longest side was divided; the side of a box
            is the longest side over this.
        counts: Number of boxes with a point in them.
        in_window: Which divisions the line was fitted to.
        num_points: Number of points.
        num_nonfinite: Number of points with a coordinate that is not finite.
        too_few: True for fewer than 500 points: no number is given.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    residual: Float[Array, ""]
    divisions: Int[np.ndarray, " k"]
    counts: Int[Array, " k"]
    in_window: Bool[Array, " k"]
    num_points: int
    num_nonfinite: Int[Array, ""]
    too_few: Bool[Array, ""] | bool


def box_dimension(
    points: Float[ArrayLike, "r d"],
    *,
    window: tuple[float, float] = (0.005, 0.2),
    num_sizes: int = 24,
) -> BoxDimension:
    r"""Estimate the box-counting dimension.

    .. math:: \log N(\epsilon) \approx \dim \cdot \log(1 / \epsilon) + \text{const}

    with ``N`` the number of cubes of a grid of side ``epsilon`` that hold a point. The
    grid starts at the smallest coordinates and divides the longest side into a whole
    number of boxes, so that there are no cut ones along it; the value is the
    least-squares slope over the window. A box that holds no point though it cuts the
    set is missed, which is why the count must stay well below the number of points:
    that takes many more than ``2^dim`` of them, and in more than some five dimensions
    no window is left (`in_window`). With few boxes every set looks full: 1,000 points
    of a sphere give 2.5, with an error of .17 from the bend in the line. Embed or
    project a path first; for distances alone there is `correlation_dimension`.

    Args:
        points: One point a row; at least 500 for a number.
        window: Between which shares of the number of points the counts must lie.
        num_sizes: Number of divisions, spaced geometrically from 1 to ``r`` and rounded
            to whole numbers (equal ones are dropped); at least 3.

    Returns:
        The dimension, its standard error, the line and its residual.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows, or an
            option is out of range.

    Memory:
        A copy of `points`; ``d`` sorts of ``r`` numbers for each size.

    Example:
        >>> import jax.numpy as jnp
        >>> line = jnp.linspace(0.0, 1.0, 1000)
        >>> result = box_dimension(jnp.stack([line, 2 * line], axis=1))
        >>> abs(float(result.value) - 1) < 0.1
        True
    """
    array = as_points(points, at_least=2)
    low, high = check_window(window)
    check_count(num_sizes=num_sizes, at_least=3)
    r = array.shape[0]
    divisions = np.unique(np.geomspace(1, r, num_sizes).round().astype(np.int32))
    counts = _counts(array, divisions)
    num_nonfinite = count_nonfinite(array)
    in_window = (counts >= low * r) & (counts <= high * r) & (num_nonfinite == 0)
    fit = _fit(jnp.asarray(np.log(divisions), array.dtype), counts, in_window)
    too_few = r < MINIMUM_POINTS
    value, error, residual = (jnp.where(too_few, jnp.nan, number) for number in fit)
    return BoxDimension(
        value=value,
        standard_error=error,
        residual=residual,
        divisions=divisions,
        counts=counts,
        in_window=in_window,
        num_points=r,
        num_nonfinite=num_nonfinite,
        too_few=too_few,
    )


@jax.jit
def _counts(points, divisions):
    """Number of boxes with a point in them, for each division of the longest side."""
    from_corner = points - jnp.min(points, axis=0, keepdims=True)
    share = from_corner / jnp.max(from_corner)

    def count(division):
        # The far end belongs to the last box.
        boxes = jnp.minimum(jnp.floor(share * division), division - 1).astype(int)
        refine = lambda label, column: (_pair_labels(label, column), None)
        labels = jax.lax.scan(refine, jnp.zeros(len(points), int), boxes.T)[0]
        return jnp.max(labels) + 1

    return jax.lax.map(count, jnp.asarray(divisions))


def _pair_labels(label, column):
    """Number the different pairs of two vectors of integers from zero on."""
    order = jnp.lexsort((column, label))
    first, second = label[order], column[order]
    is_new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    rank = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(is_new)])
    return jnp.zeros_like(label).at[order].set(rank)


@jax.jit
def _fit(x, counts, used):
    """Slope of the log of the counts in the window, its error, and the residual."""
    num = jnp.sum(used)
    mean = lambda a: jnp.sum(jnp.where(used, a, 0)) / num
    y = jnp.log(counts).astype(x.dtype)
    x, y = x - mean(x), y - mean(y)
    slope = mean(x * y) / mean(x**2)
    square = mean((y - slope * x) ** 2)
    error = jnp.sqrt(square * num / (num - 2) / (mean(x**2) * num))
    enough = num >= 3
    residual = jnp.sqrt(square)
    return tuple(jnp.where(enough, a, jnp.nan) for a in (slope, error, residual))
