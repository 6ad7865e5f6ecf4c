"""Small semidefinite complementarity problems, solved to a residual that is told."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Complementary(NamedTuple):
    """Two positive semidefinite matrices that are complementary.

    Attributes:
        solution: ``X``, positive semidefinite by construction.
        residual: Norm of ``X - P(X - Y)``, with ``P`` the projection on the positive
            semidefinite matrices, in units that make the data of norm 1. Zero
            exactly where ``X`` and ``Y`` are positive semidefinite and ``X Y = 0``.
        num_iterations: Iterations taken.
    """

    solution: Float[Array, "k k"]
    residual: Float[Array, ""]
    num_iterations: Array


def basis_size(k: int) -> int:
    """The dimension of the symmetric ``k x k`` matrices."""
    return k * (k + 1) // 2


def pairs(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights of the entries of `vector`.

    With the weights the inner product of vectors is that of matrices.
    """
    rows, columns = np.triu_indices(k)
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))


def vector(matrix: Float[Array, "k k"]) -> Float[Array, " m"]:
    """A symmetric matrix as a vector with the same inner product."""
    rows, columns, weights = pairs(matrix.shape[0])
    return matrix[rows, columns] * weights.astype(matrix.dtype)


def matrix(entries: Float[Array, " m"], k: int) -> Float[Array, "k k"]:
    """Inverse of `vector`."""
    rows, columns, weights = pairs(k)
    values = entries / weights.astype(entries.dtype)
    empty = jnp.zeros((k, k), entries.dtype)
    return empty.at[rows, columns].set(values).at[columns, rows].set(values)


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def solve_complementarity(
    offset: Float[Array, "k k"],
    slope: Float[Array, "m m"],
    *,
    tolerance: float,
    max_iterations: int = 2000,
) -> Complementary:
    """Find ``X >= 0`` with ``Y = offset + slope X >= 0`` and ``<X, Y> = 0``.

    It is the minimum of ``<X, slope X> / 2 + <offset, X>`` over the positive
    semidefinite matrices, a convex problem, found by alternating directions
    (over-relaxed, one small eigendecomposition an iteration), which converge wherever
    there is a solution. A non-negative `offset` has the solution zero, exactly.

    Args:
        offset: A symmetric matrix.
        slope: A positive semidefinite matrix acting on `vector`s.
        tolerance: Residual to stop at.
        max_iterations: Iterations to give up after.

    Returns:
        The solution and its residual; zero with an infinite residual where there is no
        solution, or a number is not finite.
    """
    k = offset.shape[0]
    alpha, unit = _scaled(vector(offset))
    beta, steepness = _scaled(slope)
    spread = jnp.linalg.eigvalsh(beta)
    weight = jnp.sqrt(jnp.maximum(spread[0], 1e-3 * spread[-1]) * spread[-1])
    weight = jnp.where(weight > 0, weight, 1)
    shifted = beta + weight * jnp.eye(beta.shape[0], dtype=beta.dtype)
    inverse = jnp.linalg.inv(shifted)

    def residual_of(x):
        y = alpha + jnp.matmul(beta, x, precision="highest")
        return jnp.linalg.norm(x - _project(x - y, k))

    def going(carry):
        _, _, residual, taken = carry
        return (residual > tolerance) & (taken < max_iterations)

    def iterate(carry):
        z, dual, _, taken = carry
        x = jnp.matmul(inverse, weight * (z - dual) - alpha, precision="highest")
        relaxed = 1.6 * x - 0.6 * z
        after = _project(relaxed + dual, k)
        return after, dual + relaxed - after, residual_of(after), taken + 1

    zero = jnp.zeros_like(alpha)
    start = (zero, zero, residual_of(zero), jnp.zeros((), jnp.int32))
    x, _, residual, taken = jax.lax.while_loop(going, iterate, start)
    # Without a solution the iterates leave for infinity.
    solved = residual <= jnp.maximum(1e-2, tolerance)
    x = jnp.where(solved, x * (unit / steepness), 0)
    return Complementary(matrix(x, k), jnp.where(solved, residual, jnp.inf), taken)


def _scaled(array):
    """An array of norm 1, and the norm that it had."""
    norm = jnp.linalg.norm(array)
    safe = jnp.where(norm > 0, norm, 1)
    return array / safe, safe


def _project(entries, k):
    """Onto the positive semidefinite matrices."""
    values, vectors = jnp.linalg.eigh(matrix(entries, k))
    scaled = vectors * jnp.maximum(values, 0)[None]
    return vector(jnp.matmul(scaled, vectors.T, precision="highest"))
