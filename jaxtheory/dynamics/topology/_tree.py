"""The minimum spanning tree of points, and the sum of its lengths.

The edges of the minimum spanning tree are the lifetimes of zero-dimensional persistent
homology (Vietoris-Rips), so that no persistence library is needed: Prim's algorithm on
the full distance matrix is O(r^2) and runs in the same program as the rest.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxtheory.batching import check_number
from jaxtheory.dynamics.topology._checks import as_distances, as_real


class MinimumSpanningTree(NamedTuple):
    """The minimum spanning tree of ``r`` points.

    Attributes:
        edges: Indices of the two points that each edge joins, in the order in which
            Prim's algorithm, started at point 0, finds them (the second one is new).
        lengths: Length of each edge.
        num_invalid: Number of edges whose length is negative, or not the same in both
            directions. The smallest entry is always an edge, so that 0 means that no
            distance is negative; asymmetry away from the tree is not looked for.
    """

    edges: Int[Array, "r-1 2"]
    lengths: Float[Array, " r-1"]
    num_invalid: Int[Array, ""]


def minimum_spanning_tree(distances: Float[ArrayLike, "r r"]) -> MinimumSpanningTree:
    """Find the minimum spanning tree of a distance matrix by Prim's algorithm.

    The total length, and the sorted lengths, do not depend on how ties are broken (the
    lowest index first). Zero distances are edges like any other. The lengths are
    differentiable in the distances, the tree taken as constant.

    Args:
        distances: Symmetric matrix. An infinite or NaN distance is an absent edge.

    Returns:
        Edges and lengths. Where the points are not connected, the edge that crosses
        has the length that is not finite.

    Raises:
        ValueError: `distances` is not a square matrix of at least two floating-point
            rows.

    Memory:
        O(r) beside the matrix; O(r^2) operations in r sequential steps.

    Example:
        >>> import jax.numpy as jnp
        >>> line = jnp.array([0.0, 1.0, 3.0, 7.0])
        >>> tree = minimum_spanning_tree(jnp.abs(line[:, None] - line[None, :]))
        >>> tree.lengths.tolist(), tree.edges.tolist()
        ([1.0, 2.0, 4.0], [[0, 1], [1, 2], [2, 3]])
    """
    return _spanning_tree(as_distances(distances))


def e_alpha(
    lengths: Float[ArrayLike, " e"], *, alpha: float | Float[Array, ""] = 1.0
) -> Float[Array, ""]:
    r"""Sum the lengths of tree edges, raised to a power.

    .. math:: E_\alpha = \sum_e |e|^\alpha

    the alpha-weighted lifetime sum of zero-dimensional persistent homology: a sum, not
    a mean. Of a training path, `E_1` is nearly its length: see `measure_path`.

    As a regulariser of training take the gradient of the newest iterate alone:
    ``e_alpha(minimum_spanning_tree(append_point(known, others, newest)).lengths)``
    (the example of `append_point`). The tree is taken as constant, so that where two
    trees tie it is one-sided; the gradient in a length of zero is zero.

    Args:
        lengths: Edge lengths, ``minimum_spanning_tree(...).lengths``. Half precision is
            summed in single.
        alpha: Positive power.

    Returns:
        The sum.

    Raises:
        ValueError: `lengths` is not a vector, or `alpha` is not one positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> float(e_alpha(jnp.array([1.0, 2.0, 3.0]), alpha=2.0))
        14.0

    References:
        Andreeva et al., arXiv:2407.08723.
    """
    lengths = as_real("lengths", lengths)
    if lengths.ndim != 1:
        raise ValueError(
            "`lengths` must be a vector of edge lengths, but has shape "
            f"{lengths.shape}. Pass `minimum_spanning_tree(...).lengths`."
        )
    check_alpha(alpha)
    # For alpha below one the slope at zero is infinite: keep it out of the gradient.
    present = lengths != 0
    return jnp.sum(jnp.where(present, jnp.where(present, lengths, 1) ** alpha, 0))


def check_alpha(alpha: ArrayLike) -> None:
    """Raise unless `alpha` is one positive number."""
    check_number("alpha", alpha, lambda a: 0 < a < math.inf, "positive and finite")


@jax.jit
def _spanning_tree(distances):
    num = distances.shape[0]
    edges = prim(distances, jnp.ones(num, bool), num)
    lengths = distances[edges[:, 0], edges[:, 1]]
    back = distances[edges[:, 1], edges[:, 0]]
    unlike = jnp.abs(lengths - back) > 1e-5 * jnp.abs(lengths)
    return MinimumSpanningTree(edges, lengths, jnp.sum((lengths < 0) | unlike))


def prim(distances: Array, member: Array, num: int | Array) -> Array:
    """Edges ``[r-1, 2]`` of the tree over the `num` members; the others are (0, 0)."""
    # The tree is piecewise constant, and a loop of traced length has no transpose.
    distances = jax.lax.stop_gradient(distances)
    indices = jnp.arange(distances.shape[0])

    def add_point(i, carry):
        nearest, parent, edges, new = carry
        closer = (distances[new] < nearest) & (nearest < jnp.inf)
        parent = jnp.where(closer, new, parent)
        nearest = jnp.where(closer, distances[new], nearest).at[new].set(jnp.inf)
        # The minimum, then its first index: two to three times faster than argmin.
        new = jnp.min(jnp.where(nearest == jnp.min(nearest), indices, indices[-1]))
        return nearest, parent, edges.at[i].set(jnp.array([parent[new], new])), new

    # Infinity marks what is not to be added: no member, or in the tree already.
    nearest = jnp.where(member, jnp.finfo(distances.dtype).max, jnp.inf)
    first = jnp.argmax(member)
    parent = jnp.full_like(indices, first)
    edges = jnp.zeros((indices.size - 1, 2), indices.dtype)
    return jax.lax.fori_loop(0, num - 1, add_point, (nearest, parent, edges, first))[2]
