"""Distances between the points of a path: in parameters, and in losses."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxtheory.batching import sum_examples
from jaxtheory.dynamics.topology._checks import as_distances, as_points, as_real

_COORDINATES_PER_CHUNK = 1024
_GAPS = {"euclidean": jnp.square, "loss": jnp.abs}


def pairwise_distances(points: Float[ArrayLike, "r d"]) -> Float[Array, "r r"]:
    """Compute the Euclidean distance of every pair of points.

    Differences are taken before squares. The matrix product ``|a|^2 + |b|^2 - 2 a.b``
    is faster but its error is ``eps * |a|^2``: late in training, where a step is a
    1e-5 part of a weight, nothing of the step is left; and centred
    (`gram_distances`), it still gets the edges of 2,000 points on a line wrong by up to
    28 % in single precision. Here every distance has the relative precision of its
    coordinates' differences, down to 1e-19 in single precision, whose square is zero.

    Args:
        points: One point a row. Half precision is computed in single.

    Returns:
        A symmetric matrix with zero diagonal and nothing negative. A point that is not
        finite has infinite or NaN distances.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows.

    Memory:
        ``r^2`` and a transposed copy of `points`; ``3 r^2 d`` operations. Sketch
        coordinates beyond some 10,000.

    Example:
        >>> import jax.numpy as jnp
        >>> pairwise_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    return distances_in(as_points(points, at_least=2), metric="euclidean")


def loss_distances(losses: Float[ArrayLike, "r n"]) -> Float[Array, "r r"]:
    r"""Compute how far apart models are in their losses, example by example.

    .. math:: \rho_S(w, w') = \frac{1}{n} \sum_{i=1}^n |\ell(w, z_i) - \ell(w', z_i)|

    the mean (not the sum) over examples of the absolute difference: a pseudo-metric,
    because models of equal losses are at distance zero. The loss is 1-Lipschitz in it
    by construction, which bounds need and Euclidean distances do not give.

    A random subset of the examples estimates it, each distance with a standard error of
    the spread of ``|l - l'|`` over examples by the root of their number.

    Args:
        losses: One loss vector a row: losses of the same examples at each record.

    Returns:
        A symmetric matrix with zero diagonal and nothing negative, for
        `minimum_spanning_tree` and everything else that takes distances.

    Raises:
        ValueError: `losses` is not a matrix of at least two floating-point rows.

    Memory:
        ``r^2`` and a transposed copy of `losses`; ``3 r^2 n`` operations.

    Example:
        >>> import jax.numpy as jnp
        >>> loss_distances(jnp.array([[0.0, 0.0], [1.0, 2.0]])).tolist()
        [[0.0, 1.5], [1.5, 0.0]]

    References:
        Dupuis et al., arXiv:2302.02766.
    """
    return distances_in(as_points(losses, at_least=2, name="losses"), metric="loss")


def gram_distances(points: Float[ArrayLike, "r d"]) -> Float[Array, "r r"]:
    r"""Compute Euclidean distances through the centred Gram matrix: fast, less exact.

    .. math:: G_{ij} = \langle x_i - \bar x, x_j - \bar x \rangle, \quad
        d_{ij} = \sqrt{\max(G_{ii} + G_{jj} - 2 G_{ij}, 0)}

    with the mean over points: matrix products instead of ``r^2 d`` differences. The
    error of a squared distance is a few ``eps`` (1.2e-7 in single precision) of the
    squared radius ``max_i |x_i - mean|^2``, whatever the distance: exact enough for
    pairs further apart than a hundredth of the radius (three digits), as the points of
    a cloud in many dimensions are; not for successive points of a smooth path, whose
    tree needs `pairwise_distances`. Centring takes the distance from the origin out of
    the error, not that.

    Args:
        points: One point a row. Half precision is computed in single.

    Returns:
        A symmetric matrix with zero diagonal and nothing negative.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows.

    Memory:
        ``r^2`` and a chunk of 1,024 coordinates of all points, centred; ``2 r^2 d``
        operations of matrix products. On a CPU that took a third of the time of NumPy's
        ``c @ c.T`` of all centred points at once (1,000 points in 100,000 coordinates).

    Example:
        >>> import jax.numpy as jnp
        >>> gram_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    return _from_gram(as_points(points, at_least=2))


def append_point(
    distances: Float[ArrayLike, "r r"],
    points: Float[ArrayLike, "r d"],
    point: Float[ArrayLike, " d"],
) -> Float[Array, "r+1 r+1"]:
    """Add one point to a matrix of Euclidean distances.

    The distances are differentiable in `point` alone, which is what a regulariser of
    training needs: the earlier iterates are history. A step costs ``r d`` for the new
    row where all distances anew cost ``r^2 d``.

    Args:
        distances: Distances of `points`, from `pairwise_distances` or from here.
        points: The points that are there, one a row.
        point: The new one.

    Returns:
        Distances of ``r + 1`` points, the new one last.

    Raises:
        ValueError: `distances` is not square, or the shapes disagree.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxtheory.dynamics.topology import e_alpha, minimum_spanning_tree
        >>> others = jnp.array([[0.0, 0.0], [0.0, 3.0]])
        >>> known = pairwise_distances(others)
        >>> def e_1(newest):
        ...     distances = append_point(known, others, newest)
        ...     return e_alpha(minimum_spanning_tree(distances).lengths)
        >>> jax.grad(e_1)(jnp.array([4.0, 0.0]))[0].tolist()
        1.0

    References:
        Birdal et al., arXiv:2111.13171.
    """
    known = jax.lax.stop_gradient(as_distances(distances))
    others = jax.lax.stop_gradient(as_points(points, at_least=2))
    new = as_real("point", point)
    if others.shape != (known.shape[0], *new.shape):
        raise ValueError(
            "`points` must have a row for each of `distances` and as many coordinates "
            f"as `point`, but the three have shapes {others.shape}, {known.shape} and "
            f"{new.shape}."
        )
    return _appended(known, others, new.astype(others.dtype))


@functools.partial(jax.jit, static_argnames="metric")
def distances_in(points: Array, *, metric: str) -> Array:
    """Distances of all pairs of points in one of the two metrics."""
    gap = _GAPS[metric]

    def gaps(coordinates, weights):
        chunk = coordinates * weights.astype(coordinates.dtype)[:, None]
        to_all = lambda point: jnp.sum(gap(chunk - point[:, None]), axis=0)
        return jax.lax.map(to_all, chunk.T)

    # A few coordinates at a time stay in the cache: 16 times faster at d = 65,536.
    total = sum_examples(gaps, points.T, batch_size=_COORDINATES_PER_CHUNK)
    return total / points.shape[1] if metric == "loss" else root(total)


@jax.jit
def _appended(known, others, new):
    row = root(jnp.sum((others - new[None, :]) ** 2, axis=1))
    padded = jnp.pad(known, ((0, 1), (0, 1)))
    return padded.at[-1, :-1].set(row).at[:-1, -1].set(row)


@jax.jit
def _from_gram(points):
    r, d = points.shape
    width = min(d, _COORDINATES_PER_CHUNK)

    def product(start, width):
        chunk = jax.lax.dynamic_slice_in_dim(points, start, width, axis=1)
        chunk = chunk - jnp.mean(chunk, axis=0, keepdims=True)
        return jnp.matmul(chunk, chunk.T, precision="highest")

    add = lambda i, total: total + product(i * width, width)
    gram = jax.lax.fori_loop(0, d // width, add, jnp.zeros((r, r), points.dtype))
    if d % width:
        gram = gram + product(d - d % width, d % width)
    norms = jnp.diagonal(gram)
    squares = norms[:, None] + norms[None, :] - (gram + gram.T)
    return root(jnp.where(jnp.eye(r, dtype=bool), 0, jnp.maximum(squares, 0)))


def root(squares):
    """Square root, whose infinite derivative at zero is kept out of the gradient."""
    positive = squares != 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
