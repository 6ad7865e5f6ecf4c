"""Ritz vectors of the plain Lanczos recursion, without storing its vectors."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.linalg._lanczos import Tridiagonal, dense, norm, three_terms

_dot = functools.partial(jnp.dot, precision="highest")


def two_passes(
    product: Callable[[Float[Array, " p"]], Float[Array, " p"]],
    unit: Float[Array, " p"],
    num: int,
    num_iterations: int,
) -> tuple[Tridiagonal, Float[Array, "num p"], Float[Array, ""]]:
    """Run the recursion for its matrix, and again for the vectors that this chooses.

    Args:
        product: Symmetric matrix-vector product on flat vectors.
        unit: Start vector of unit length.
        num: Number of Ritz vectors.
        num_iterations: Number of products in each pass.

    Returns:
        The tridiagonal matrix, the unit Ritz vectors of the largest distinct values
        (zeros where there are fewer), and the largest Ritz value in size.
    """

    # One compiled body for both passes: rounding differs between programs, and the
    # recursion amplifies that until the second pass has other vectors than the first.
    def one_pass(_, carry):
        coordinates = carry[0]
        krylov, vectors = three_terms(product, unit, coordinates)
        chosen, scale = _choose(krylov, num)
        return chosen, krylov, vectors, scale

    blank = jnp.zeros((num, num_iterations), unit.dtype)
    shapes = jax.eval_shape(lambda: one_pass(0, (blank,)))
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    _, krylov, vectors, scale = jax.lax.fori_loop(0, 2, one_pass, empty)
    lengths = jax.vmap(norm)(vectors)[:, None]
    return krylov, vectors / jnp.where(lengths == 0, 1, lengths), scale


def _choose(krylov, num):
    """Coordinates of the `num` largest distinct Ritz vectors, and the scale."""
    values, ritz = jnp.linalg.eigh(dense(krylov))
    values, ritz = values[::-1], ritz[:, ::-1]
    scale, eps = jnp.max(jnp.abs(values)), jnp.finfo(values.dtype).eps
    apart = values[:-1] - values[1:] > jnp.sqrt(eps) * scale
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(apart)])
    same = cluster[:, None] == jnp.arange(values.size)[None]
    first = ritz[0]
    weights = _dot(first**2, same.astype(values.dtype))
    # The genuine clusters first, in their order; as many as are asked for.
    genuine = weights > (10 * eps) ** 2
    order = jnp.argsort(~genuine, stable=True)[:num]
    # The start vector's part along all copies, which rounding leaves alone.
    parts = jnp.where(same[:, order] & genuine[order][None], first[:, None], 0)
    coordinates = _dot(ritz, parts).T
    lengths = jnp.linalg.norm(coordinates, axis=1, keepdims=True)
    coordinates = coordinates / jnp.where(lengths == 0, 1, lengths)
    # A matrix that is not finite has no clusters, and its vectors are to say so.
    finite = jnp.isfinite(scale)
    return jnp.where(finite, coordinates, jnp.nan), scale
