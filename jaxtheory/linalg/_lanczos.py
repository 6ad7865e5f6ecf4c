"""Lanczos tridiagonalisation, with full reorthogonalisation or with none."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.linalg._checks import check_reorthogonalise
from jaxtheory.linalg._flat import inner_products
from jaxtheory.linalg._watch import not_finite, nothing_yet, seen

_dot = functools.partial(jnp.dot, precision="highest")


class Tridiagonal(NamedTuple):
    """An operator's compression onto a Krylov space, and what Lanczos met on the way.

    Attributes:
        diagonal: ``[m]``.
        off_diagonal: ``[m - 1]``; zero where the Krylov space was exhausted.
        basis: Rows are the orthonormal Lanczos vectors, ``[m, p]``; None where they
            were not stored (``reorthogonalise="none"``).
        asymmetry: Largest ``|v_i^T A v_j - v_j^T A v_i|`` over the largest entry of the
            tridiagonal matrix. Rounding for a symmetric operator; where it is not small
            the operator is not symmetric and nothing here means anything. With full
            reorthogonalisation over all pairs of Lanczos vectors, otherwise over
            neighbours.
        nonfinite_step: The first iteration whose product was not finite, -1 if none.
        nonfinite_index: First entry of that product that was not finite, -1 if none.
    """

    diagonal: Float[Array, " m"]
    off_diagonal: Float[Array, " m-1"]
    basis: Float[Array, "m p"] | None
    asymmetry: Float[Array, ""]
    nonfinite_step: Int[Array, ""]
    nonfinite_index: Int[Array, ""]


def lanczos(
    product: Callable[[Float[Array, " p"]], Float[Array, " p"]],
    start: Float[Array, " p"],
    *,
    num_iterations: int,
    key: KeyArray,
    reorthogonalise: Literal["full", "none"] = "full",
) -> Tridiagonal:
    """Tridiagonalise a symmetric operator.

    With full reorthogonalisation ``basis @ A @ basis.T`` equals the tridiagonal matrix
    to rounding, and an exhausted Krylov space (an operator of low rank, a start inside
    an invariant subspace) is survived: the recursion goes on from a random direction
    orthogonal to all so far, with a zero off-diagonal entry, where normalising the
    remainder would bring ghost eigenvalues or NaN.

    With none, the plain recursion of three terms keeps two vectors. In finite precision
    its vectors lose their orthogonality as soon as a Ritz value converges, and further
    copies ("ghosts") of that eigenvalue appear. Squared first entries of the
    eigenvectors, summed over the copies, are still those of one eigenvalue (Greenbaum),
    so quadrature with them stays right; counting eigenvalues does not. Where the Krylov
    space is exhausted the matrix is filled with zeros, which have no such weight.

    Args:
        product: Symmetric matrix-vector product on flat vectors.
        start: Start vector of any length; a random one takes its place where it is zero
            or not finite.
        num_iterations: Number ``m <= p`` of products.
        key: Used for restarts and for an unusable start only.
        reorthogonalise: Against all vectors so far, twice, or not at all.

    Returns:
        The tridiagonal matrix and the basis.

    Raises:
        ValueError: `start` is not a floating-point vector, `num_iterations` is not
            between 1 and ``p``, `product` returns another shape, `key` is no typed key,
            or `reorthogonalise` is another word.

    Memory:
        Full: ``m p`` numbers; ``4 m^2 p`` operations beside the products. None: about
        seven vectors, two of them from step to step.

    References:
        Lanczos (1950); Golub & Van Loan, Matrix Computations, section 10.3; Paige, J.
        Inst. Maths Applics 18 (1976) (the order of operations without
        reorthogonalisation); Greenbaum, Linear Algebra Appl. 113 (1989).
    """
    start = jnp.asarray(start)
    num_iterations = _check_lanczos(start, num_iterations)
    check_key(key)
    check_reorthogonalise(reorthogonalise)
    if reorthogonalise == "none":
        none = jnp.zeros((0, num_iterations), start.dtype)
        return three_terms(product, unit_start(start, key), none)[0]
    random = jax.random.normal(key, start.shape, start.dtype)
    unit = _unit(start, random)
    zeros = jnp.zeros(num_iterations, start.dtype)
    basis = jnp.zeros((num_iterations, start.size), start.dtype)
    carry = (basis, zeros, zeros, unit, nothing_yet(start.dtype))
    step = functools.partial(_full_step, product, random)
    basis, diagonal, off_diagonal, _, watch = jax.lax.fori_loop(
        0, num_iterations, step, carry
    )
    return _tridiagonal(diagonal, off_diagonal, basis, watch)


def three_terms(
    product: Callable[[Float[Array, " p"]], Float[Array, " p"]],
    unit: Float[Array, " p"],
    coordinates: Float[Array, "num m"],
) -> tuple[Tridiagonal, Float[Array, "num p"]]:
    """Run the plain recursion, and add its vectors up with given coordinates.

    Args:
        product: Symmetric matrix-vector product on flat vectors.
        unit: Start vector of unit length.
        coordinates: How often each of the ``m`` Lanczos vectors is taken.

    Returns:
        The tridiagonal matrix without basis, and ``coordinates @ basis``.
    """
    num, num_iterations = coordinates.shape
    zeros = jnp.zeros(num_iterations, unit.dtype)
    sums = jnp.zeros((num, unit.size), unit.dtype)

    def step(index, carry):
        sums, diagonal, off_diagonal, before, vector, watch = carry
        sums = sums + coordinates[:, index, None] * vector[None]
        image = _apply(product, vector)
        # At 0 this reads the last entry, which is still zero.
        beta = off_diagonal[index - 1]
        deviation = jnp.abs(_dot(before, image) - beta)
        entry = not_finite(image)
        image = image - beta * before
        alpha = _dot(vector, image)
        image = image - alpha * vector
        beta = norm(image)
        watch = seen(watch, index, alpha, beta, deviation, entry)
        exhausted = beta <= 10 * jnp.finfo(unit.dtype).eps * watch.scale
        following = jnp.where(exhausted, 0, image / jnp.where(exhausted, 1, beta))
        diagonal = diagonal.at[index].set(alpha)
        off_diagonal = off_diagonal.at[index].set(jnp.where(exhausted, 0, beta))
        return sums, diagonal, off_diagonal, vector, following, watch

    carry = (
        *(sums, zeros, zeros, jnp.zeros_like(unit)),
        *(unit, nothing_yet(unit.dtype)),
    )
    sums, diagonal, off_diagonal, *_, watch = jax.lax.fori_loop(
        0, num_iterations, step, carry
    )
    return _tridiagonal(diagonal, off_diagonal, None, watch), sums


def _full_step(product, restarts, index, carry):
    """One product: the next entries of the matrix, and the next basis vector."""
    basis, diagonal, off_diagonal, vector, watch = carry
    basis = basis.at[index].set(vector)
    image = _apply(product, vector)
    coordinates = inner_products(basis, image)
    entry = not_finite(image)
    alpha = coordinates[index]
    # Symmetry says what all coordinates but the last are, without a product more. At
    # index 0 the last entry is read, which is still zero.
    known = jnp.zeros_like(diagonal).at[index - 1].set(off_diagonal[index - 1])
    before = jnp.arange(diagonal.size) < index
    deviation = jnp.max(jnp.where(before, jnp.abs(coordinates - known), 0))
    image = _orthogonalise(image - _dot(coordinates, basis), basis)
    beta = norm(image)
    watch = seen(watch, index, alpha, beta, deviation, entry)
    exhausted = beta <= 10 * jnp.finfo(vector.dtype).eps * watch.scale

    def fresh():
        # Rotated by the index, the same random vector is a new one each time.
        direction = _orthogonalise(jnp.roll(restarts, index), basis)
        direction = _orthogonalise(direction, basis)
        return direction / jnp.linalg.norm(direction)

    vector = jax.lax.cond(exhausted, fresh, lambda: image / beta)
    beta = jnp.where(exhausted, 0.0, beta).astype(vector.dtype)
    diagonal = diagonal.at[index].set(alpha)
    return basis, diagonal, off_diagonal.at[index].set(beta), vector, watch


def _tridiagonal(diagonal, off_diagonal, basis, watch):
    asymmetry = watch.deviation / jnp.where(watch.scale == 0, 1, watch.scale)
    return Tridiagonal(
        diagonal, off_diagonal[:-1], basis, asymmetry, watch.step, watch.entry
    )


def _apply(product, vector):
    image = product(vector)
    if jnp.shape(image) != vector.shape:
        raise ValueError(
            f"`product` must return a vector like its argument, shape {vector.shape}, "
            f"but returned shape {jnp.shape(image)}."
        )
    return image


def unit_start(start: Float[Array, " p"], key: KeyArray) -> Float[Array, " p"]:
    """A unit vector along `start`, or a random one where that has no direction.

    Args:
        start: A vector of any length.
        key: Of the random one.

    Returns:
        The unit vector.
    """
    return _unit(start, jax.random.normal(key, start.shape, start.dtype))


def _unit(start, otherwise):
    """A unit vector along `start`, or along the other one where that has no length."""
    largest = jnp.max(jnp.abs(start))
    usable = jnp.isfinite(largest) & (largest > 0)
    # Of any length: its square may not exist.
    vector = jnp.where(usable, start / jnp.where(usable, largest, 1), otherwise)
    return vector / jnp.linalg.norm(vector)


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


def norm(vector: Float[Array, " p"]) -> Float[Array, ""]:
    """Euclidean norm, scaled first: in float32 squares vanish below 1e-19.

    Args:
        vector: Of any scale.

    Returns:
        Its length.
    """
    largest = jnp.max(jnp.abs(vector))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.linalg.norm(vector / scale)


def _orthogonalise(vector, basis):
    """Remove what lies in the span of the basis; twice is enough (Parlett)."""
    return vector - _dot(inner_products(basis, vector), basis)


def dense(krylov: Tridiagonal) -> Float[Array, "m m"]:
    """The tridiagonal matrix as a dense one.

    Args:
        krylov: What Lanczos returned.

    Returns:
        The symmetric matrix.
    """
    beside = krylov.off_diagonal
    return jnp.diag(krylov.diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
