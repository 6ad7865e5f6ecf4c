"""Lanczos tridiagonalisation with full reorthogonalisation, and top eigenpairs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count
from jaxtheory.linalg._flat import flatten_operator
from jaxtheory.linalg._operator import (
    check_vector,
    dimension,
    join_operator,
    split_operator,
)

_dot = functools.partial(jnp.dot, precision="highest")


class Tridiagonal(NamedTuple):
    """An orthonormal Krylov basis and the operator's compression onto it.

    Attributes:
        diagonal: ``[m]``.
        off_diagonal: ``[m - 1]``; zero where the Krylov space was exhausted and the
            recursion was restarted with a fresh direction.
        basis: Rows are the orthonormal Lanczos vectors, ``[m, p]``.
    """

    diagonal: Float[Array, " m"]
    off_diagonal: Float[Array, " m-1"]
    basis: Float[Array, "m p"]


class Eigenpairs(NamedTuple):
    """Extremal eigenpairs and how far they can be trusted.

    Attributes:
        values: Ritz values, largest first, ``[num]``.
        vectors: Unit Ritz vectors: the operator's input pytree with a leading axis
            ``num``.
        residuals: ``|A v - value v|`` of the returned pairs, computed with one more
            product each; an eigenvalue lies within this distance of the value.
        converged: ``residuals <= tolerance * max |Ritz value|``, ``[num]``.
    """

    values: Float[Array, " num"]
    vectors: PyTree[Float[Array, "num ..."]]
    residuals: Float[Array, " num"]
    converged: Bool[Array, " num"]


def lanczos(
    product: Callable[[Float[Array, " p"]], Float[Array, " p"]],
    start: Float[Array, " p"],
    *,
    num_iterations: int,
    key: KeyArray,
) -> Tridiagonal:
    """Tridiagonalise a symmetric operator with full reorthogonalisation.

    ``basis @ A @ basis.T`` equals the tridiagonal matrix to rounding. Unlike the plain
    recursion this survives an exhausted Krylov space (an operator of low rank, a start
    inside an invariant subspace): the recursion goes on from a random direction
    orthogonal to all so far, with a zero off-diagonal entry, where normalising the
    remainder would bring ghost eigenvalues or NaN.

    Args:
        product: Symmetric matrix-vector product on flat vectors.
        start: Start vector, any non-zero length.
        num_iterations: Number ``m <= p`` of products.
        key: Used for restarts only.

    Returns:
        The tridiagonal matrix and the basis.

    Raises:
        ValueError: `start` is not a floating-point vector, `num_iterations` is not
            between 1 and ``p``, or `product` returns another shape.

    Memory:
        ``m p`` numbers; ``4 m^2 p`` operations beside the products.

    References:
        Lanczos (1950); Golub & Van Loan, Matrix Computations, section 10.3.
    """
    start = jnp.asarray(start)
    num_iterations = _check_lanczos(start, num_iterations)
    (p,), dtype = start.shape, start.dtype
    restarts = jax.random.normal(key, (p,), dtype)
    zeros = jnp.zeros(num_iterations, dtype)
    basis = jnp.zeros((num_iterations, p), dtype)
    start = start / jnp.max(jnp.abs(start))  # any length: its square may not exist
    unit = start / jnp.linalg.norm(start)
    carry = (basis, zeros, zeros, unit, jnp.zeros((), dtype))
    step = functools.partial(_lanczos_step, product, restarts)
    basis, diagonal, off_diagonal, *_ = jax.lax.fori_loop(
        0, num_iterations, step, carry
    )
    return Tridiagonal(diagonal, off_diagonal[:-1], basis)


def _lanczos_step(product, restarts, index, carry):
    """One product: the next entries of the matrix, and the next basis vector."""
    basis, diagonal, off_diagonal, vector, scale = carry
    basis = basis.at[index].set(vector)
    image = product(vector)
    if jnp.shape(image) != vector.shape:
        raise ValueError(
            f"`product` must return a vector like its argument, shape {vector.shape}, "
            f"but returned shape {jnp.shape(image)}."
        )
    alpha = _dot(vector, image)
    image = _orthogonalise(image, basis)
    beta = _norm(image)
    scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
    exhausted = beta <= 10 * jnp.finfo(vector.dtype).eps * scale

    def fresh():
        # Rotated by the index, the same random vector is a new one each time.
        direction = _orthogonalise(jnp.roll(restarts, index), basis)
        return direction / jnp.linalg.norm(direction)

    vector = jax.lax.cond(exhausted, fresh, lambda: image / beta)
    beta = jnp.where(exhausted, 0.0, beta).astype(vector.dtype)
    diagonal = diagonal.at[index].set(alpha)
    return basis, diagonal, off_diagonal.at[index].set(beta), vector, scale


def _check_lanczos(start, num_iterations):
    """Raise unless Lanczos can start; the number of iterations as an int."""
    if start.ndim != 1 or not jnp.issubdtype(start.dtype, jnp.floating):
        raise ValueError(
            "`start` must be a floating-point vector [p], but has shape "
            f"{start.shape} and dtype {start.dtype}."
        )
    num_iterations = check_count(num_iterations=num_iterations)
    if num_iterations > start.size:
        raise ValueError(
            "`num_iterations` must be at most the length of `start`, "
            f"{start.size}, but was {num_iterations}."
        )
    return num_iterations


def _norm(vector):
    """Euclidean norm, scaled first: in float32 squares vanish below 1e-19."""
    largest = jnp.max(jnp.abs(vector))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.linalg.norm(vector / scale)


def _orthogonalise(vector, basis):
    """Remove what lies in the span of the basis; "twice is enough" (Parlett)."""
    for _ in range(2):
        vector = vector - _dot(_dot(basis, vector), basis)
    return vector


def top_eigenpairs(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num: int = 1,
    num_iterations: int | None = None,
    start: PyTree | None = None,
    tolerance: float = 1e-3,
) -> Eigenpairs:
    """Find the algebraically largest eigenpairs of a symmetric operator.

    Lanczos with full reorthogonalisation, compiled once for an operator type and its
    shapes: a new operator of the same kind costs no new trace.

    Args:
        operator: Symmetric lineax operator on any pytree.
        key: Start vector and restarts.
        num: Number of pairs.
        num_iterations: Krylov dimension ``m``; by default ``min(p, 4 num + 40)``.
            Raise it when `converged` is False.
        start: Start vector, for example the top eigenvector of a neighbouring
            operator; by default random.
        tolerance: Relative residual below which a pair counts as converged.

    Returns:
        Values, vectors, true residuals and `converged`. NaN values (never converged)
        when the operator returns something that is not finite.

    Raises:
        ValueError: `num` or `num_iterations` is out of range, the operator is not
            square, or `start` does not fit it.

    Memory:
        ``(m + num) p`` numbers; ``m + num`` products.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.array([3.0, -5.0, 1.0]))
        >>> op = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> top = top_eigenpairs(op, num=2, key=jax.random.key(0))
        >>> [round(float(value), 4) for value in top.values]
        [3.0, 1.0]

    References:
        Saad, Numerical Methods for Large Eigenvalue Problems, chapter 6.
    """
    p = dimension(operator)
    num = check_count(num=num)
    if num > p:
        raise ValueError(
            f"`num` must be between 1 and the operator's dimension {p}, but was {num}."
        )
    if num_iterations is None:
        num_iterations = min(p, 4 * num + 40)
    num_iterations = check_count(num_iterations=num_iterations)
    if not num <= num_iterations <= p:
        raise ValueError(
            f"`num_iterations` must be between `num` ({num}) and the operator's "
            f"dimension ({p}), but was {num_iterations}."
        )
    if start is not None:
        check_vector(start, operator.in_structure(), "start")
    arrays, rest = split_operator(operator)
    return _top_eigenpairs(arrays, start, key, tolerance, rest, num, num_iterations)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _top_eigenpairs(arrays, start, key, tolerance, rest, num, num_iterations):
    product, back, zeros = flatten_operator(join_operator(arrays, rest))
    start_key, restart_key = jax.random.split(key)
    if start is None:
        first = jax.random.normal(start_key, zeros.shape, zeros.dtype)
    else:
        first = ravel_pytree(start)[0].astype(zeros.dtype)
    krylov = lanczos(product, first, num_iterations=num_iterations, key=restart_key)
    matrix = _dense(krylov.diagonal, krylov.off_diagonal)
    ritz_values, ritz = jnp.linalg.eigh(matrix)
    values, coordinates = ritz_values[::-1][:num], ritz[:, ::-1][:, :num].T
    vectors = _dot(coordinates, krylov.basis)
    images = jax.lax.map(product, vectors)
    residuals = jax.vmap(_norm)(images - values[:, None] * vectors)
    converged = residuals <= tolerance * jnp.max(jnp.abs(ritz_values))
    return Eigenpairs(values, jax.vmap(back)(vectors), residuals, converged)


def _dense(diagonal, off_diagonal):
    """The dense symmetric tridiagonal matrix."""
    return jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
