"""The plane that a training path lies in best, and paths seen on any plane."""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from jaxtheory._types import Params
from jaxtheory.batching import check_count, check_params
from jaxtheory.curvature.landscape._evaluate import (
    at_least_float32,
    check_stacked,
    largest_entry,
)

Centre = Literal["mean", "last"]


class TrajectoryPlane(NamedTuple):
    """Principal directions of a path in parameter space, through its last point.

    Attributes:
        origin: The last iterate, a pytree of parameters.
        directions: Orthonormal principal directions, most variance first: the origin's
            pytree with a leading axis ``k``. Those from `rank` on are zero.
        coordinates: The path on them, relative to the last iterate, ``[r, k]``: the
            last row is 0. In units of parameter distance.
        explained_variance: Share of the path's variance along each, ``[k]``: of the
            squared distances from the mean iterate, or from the last one.
        rank: How many of the directions stand out of the rounding of the path.
    """

    origin: PyTree
    directions: PyTree[Float[Array, "k ..."]]
    coordinates: Float[Array, "r k"]
    explained_variance: Float[Array, " k"]
    rank: Int[Array, ""]


class Projection(NamedTuple):
    """A path seen on given directions.

    Attributes:
        coordinates: Multiples of each direction of the nearest point of their span,
            ``[r, k]``.
        distances: How far each iterate is from that point, ``[r]``.
    """

    coordinates: Float[Array, "r k"]
    distances: Float[Array, " r"]


def trajectory_plane(
    iterates: PyTree[Float[ArrayLike, "r ..."]],
    *,
    num_directions: int = 2,
    centre: Centre = "mean",
) -> TrajectoryPlane:
    r"""Find the principal directions of a recorded training path.

    Principal component analysis of the iterates: the eigenvectors of

    .. math:: \sum_t (\theta_t - c) (\theta_t - c)^\top

    largest eigenvalue first, where ``c`` is the mean iterate (``centre="mean"``, the
    usual analysis) or the last one (``"last"``, which weighs the way to the end and is
    no variance). The plane is put through the *last* iterate under both, so that a
    slice around the trained parameters shows the path.

    A random walk in many dimensions explains much in few directions too: hold
    `explained_variance` against `random_walk_variance` with the same `centre`.

    Args:
        iterates: The path, stacked: parameters with a leading axis ``r >= 3``, such as
            ``history.records["params"]`` of
            ``dynamics.train(..., record={"params": lambda state: state.params})``.
        num_directions: Number ``k`` of directions, less than ``r``.
        centre: What distances are taken from.

    Returns:
        The directions, the path on them and what they explain. The sign of each is
        such that the path comes from its positive side.

    Raises:
        ValueError: Iterates that are not stacked, fewer than three of them, too many
            directions, another word for `centre`; a path that never moves or is not
            finite (under `jit`: ``rank`` 0).

    Memory:
        Two copies of the path; ``r^2 p`` operations. Eigenvalues come from the
        ``r x r`` Gram matrix: a direction below ``eps r`` of the first one's variance
        counts as rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> path = jnp.array([[4.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
        >>> plane = trajectory_plane(path)
        >>> plane.coordinates[:2, 0].round(4).tolist()
        [4.0, 2.0]
        >>> [round(float(share), 4) for share in plane.explained_variance]  # 8 : 2/3
        [0.9231, 0.0769]

    References:
        Li et al., arXiv:1712.09913, section 7.2 (which subtracts the last iterate
        before an analysis that centres again).
    """
    check_params(iterates, "iterates")
    r = _length(iterates)
    num_directions = check_count(num_directions=num_directions)
    p = sum(math.prod(np.shape(leaf)[1:]) for leaf in jax.tree.leaves(iterates))
    if r < 3:
        raise ValueError(
            f"`iterates` must hold at least three points of a path, but holds {r}. "
            "Record more often."
        )
    if num_directions > min(r - 1, p):
        raise ValueError(
            f"`num_directions` must be at most {min(r - 1, p)}, with {r} iterates of "
            f"{p} parameters, but was {num_directions}."
        )
    _check_centre(centre)
    plane = _trajectory_plane(iterates, num_directions, centre)
    if not isinstance(plane.rank, Tracer) and plane.rank == 0:
        _check_finite(iterates, r)
        raise ValueError(
            "`iterates` must move, but are all the same: a path of one point has no "
            "directions. Record the parameters, not the initial ones."
        )
    return plane


def _length(iterates):
    """How many iterates there are; raise unless they are stacked."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(iterates)]
    if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        raise ValueError(
            "`iterates` must be one pytree of parameters with an iterate at each place "
            f"of the leading axis, [r, ...], but has leaves of the shapes {shapes}. "
            "Stack a list of them: `jax.tree.map(lambda *leaves: jnp.stack(leaves), "
            "*iterates)`."
        )
    return shapes[0][0]


def _check_finite(iterates, r):
    """Raise where an iterate is not finite; says which."""
    finite = np.ones(r, bool)
    for leaf in jax.tree.leaves(iterates):
        rows = jnp.reshape(jnp.asarray(leaf), (r, -1))
        finite &= np.asarray(jnp.all(jnp.isfinite(rows), axis=1))
    if not finite.all():
        where = np.flatnonzero(~finite)
        shown = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
        raise ValueError(
            f"`iterates` must be finite, but {len(where)} of {r} are not, at places "
            f"{shown}. Leave them out, or end the path before the run diverges."
        )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _trajectory_plane(iterates, num, centre):
    """`trajectory_plane` of checked arguments."""
    iterates = jax.tree.map(jnp.asarray, iterates)
    origin = jax.tree.map(lambda a: a[-1], iterates)
    # From the last iterate before anything else: parameters are large, steps small.
    steps = _relative(iterates, origin)
    size = largest_entry(steps)
    steps = jax.tree.map(lambda a: a / size, steps)
    centred = steps
    if centre == "mean":
        centred = jax.tree.map(lambda a: a - jnp.mean(a, 0, keepdims=True), steps)
    values, vectors = jnp.linalg.eigh(_gram(centred, centred))
    values, vectors = values[::-1][:num], vectors[:, ::-1][:, :num]
    r = vectors.shape[0]
    real = values > r * jnp.finfo(values.dtype).eps * values[0]
    scale = jnp.where(real, 1 / jnp.sqrt(jnp.where(real, values, 1)), 0)
    directions = _combine(vectors * scale[None], centred)
    # Rounding of the Gram matrix leaves the later ones a little long.
    norms = jnp.sqrt(jnp.diag(_gram(directions, directions)))
    directions = _combine(jnp.diag(1 / jnp.where(norms > 0, norms, 1)), directions)
    coordinates = _gram(steps, directions)
    signs = jnp.where(coordinates[0] < 0, -1.0, 1.0).astype(coordinates.dtype)
    directions = _combine(jnp.diag(signs), directions)
    total = sum(jnp.sum(a**2) for a in jax.tree.leaves(centred))
    explained = jnp.where(real, values, 0) / jnp.where(total > 0, total, 1)
    return TrajectoryPlane(
        origin,
        jax.tree.map(lambda d, o: d.astype(o.dtype), directions, origin),
        size * coordinates * signs[None],
        explained,
        jnp.sum(real),
    )


def project(
    iterates: PyTree[Float[ArrayLike, "r ..."]],
    *,
    origin: Params,
    directions: PyTree[Float[ArrayLike, "k ..."]],
) -> Projection:
    """Project a path on the plane of any directions, in the slice's coordinates.

    The least-squares coordinates ``c_t`` of ``theta_t - origin`` on the directions,
    which may be neither orthogonal nor of unit length: the nearest point of the plane
    is ``origin + sum_i c_ti directions[i]``, the one that `slice_2d` shows there. What
    the plane does not show is in `distances`.

    Args:
        iterates: The path, stacked, with a leading axis ``r``.
        origin: Where the plane has its zero: parameters.
        directions: Linearly independent directions, stacked, ``k`` of them.

    Returns:
        Coordinates and distances from the plane; NaN or infinite for an iterate that
        is. A direction that depends on the others makes the coordinates those of least
        length.

    Raises:
        ValueError: `iterates` or `directions` are not stacked pytrees like `origin`.

    Memory:
        Two copies of the path.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = project(
        ...     jnp.array([[3.0, 4.0, 5.0]]),
        ...     origin=jnp.zeros(3),
        ...     directions=jnp.array([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]]),
        ... )
        >>> seen.coordinates.round(4).tolist(), seen.distances.round(4).tolist()
        ([[1.0, 2.0]], [5.0])
    """
    check_params(origin, "origin")
    check_stacked(iterates, origin, "iterates")
    check_stacked(directions, origin, "directions")
    return _project(iterates, origin, directions)


@jax.jit
def _project(iterates, origin, directions):
    """`project` of checked arguments."""
    steps = _relative(iterates, jax.tree.map(jnp.asarray, origin))
    finite = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0), steps)
    length, size = largest_entry(directions), largest_entry(finite)
    directions = jax.tree.map(lambda d: jnp.asarray(d) / length, directions)
    steps = jax.tree.map(lambda a: a / size, steps)
    gram, mixed = _gram(directions, directions), _gram(directions, steps)
    # Directions of unit length: what is small in the Gram matrix is dependence alone.
    norms = jnp.sqrt(jnp.diag(gram))
    norms = jnp.where(norms > 0, norms, 1)
    gram = gram / norms[:, None] / norms[None]
    inverse = jnp.linalg.pinv(gram, rtol=10 * jnp.finfo(gram.dtype).eps, hermitian=True)
    solved = jnp.matmul(inverse, mixed / norms[:, None], precision="highest")
    coordinates = (solved / norms[:, None]).T
    left = jax.tree.map(jnp.subtract, steps, _combine(coordinates.T, directions))
    squares = sum(
        jnp.sum(a**2, axis=tuple(range(1, a.ndim))) for a in jax.tree.leaves(left)
    )
    return Projection(coordinates * size / length, size * jnp.sqrt(squares))


def random_walk_variance(
    num: int = 3, *, centre: Centre = "mean"
) -> Float[np.ndarray, " num"]:
    r"""Compute what principal directions of a long random walk explain.

    In the limit of many steps in many more dimensions, component ``k = 1, 2, ...`` of a
    walk of independent steps explains

    .. math:: \frac{6}{(\pi k)^2} \quad\text{(centre "mean")}, \qquad
        \frac{8}{(\pi (2 k - 1))^2} \quad\text{(centre "last")}

    because the eigenvalues of the covariance of centred Brownian motion are
    ``1 / (pi k)^2``, with sum 1/6, and those of Brownian motion seen from one end
    ``1 / (pi (k - 1/2))^2``, with sum 1/2.

    Args:
        num: How many components.
        centre: As for `trajectory_plane`.

    Returns:
        The shares, ``[num]``, in double precision.

    Raises:
        ValueError: `num` is not positive, or another word for `centre`.

    Example:
        >>> random_walk_variance().round(3).tolist()
        [0.608, 0.152, 0.068]
        >>> random_walk_variance(centre="last").round(3).tolist()
        [0.811, 0.09, 0.032]

    References:
        Antognini & Sohl-Dickstein, PCA of high dimensional random walks with comparison
        to neural network training, arXiv:1806.08805 (centred).
    """
    num = check_count(num=num)
    _check_centre(centre)
    k = np.arange(1, num + 1)
    if centre == "mean":
        return 6 / (np.pi * k) ** 2
    return 8 / (np.pi * (2 * k - 1)) ** 2


def _check_centre(centre):
    if centre not in ("mean", "last"):
        raise ValueError(f"`centre` must be 'mean' or 'last', but was {centre!r}.")


def _relative(iterates, origin):
    """Each iterate minus the origin, in at least float32."""

    def leaf(path, start):
        dtype = at_least_float32(start.dtype)
        return jnp.asarray(path).astype(dtype) - start.astype(dtype)[None]

    return jax.tree.map(leaf, iterates, origin)


def _gram(a, b):
    """Inner products of two stacks of pytrees."""
    rows = lambda leaf: jnp.reshape(leaf, (leaf.shape[0], -1))
    product = lambda u, v: jnp.matmul(rows(u), rows(v).T, precision="highest")
    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(product, a, b)))


def _combine(weights, stack):
    """Row ``i`` of the result is ``sum_t weights[t, i] stack[t]``."""
    mix = lambda leaf: jnp.tensordot(weights.T, leaf, 1, precision="highest")
    return jax.tree.map(mix, stack)
