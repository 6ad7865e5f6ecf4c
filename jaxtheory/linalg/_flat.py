"""Operators on pytrees, seen as operators on flat vectors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree


def flatten_operator(
    operator: lx.AbstractLinearOperator,
) -> tuple[
    Callable[[Float[Array, " p"]], Float[Array, " p"]],
    Callable[[Float[Array, " p"]], PyTree],
    Float[Array, " p"],
]:
    """Let an operator on any pytree act on vectors ``[p]`` of at least float32.

    Dense solvers know no half precision: only the products are taken in it.

    Args:
        operator: Square lineax operator on a pytree of real arrays.

    Returns:
        The product on flat vectors, the way back to a pytree with the operator's
        dtypes, and zeros like the flat vectors.
    """
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = ravel_pytree(zeros)
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    back = lambda vector: unravel(vector.astype(flat.dtype))
    product = lambda vector: ravel_pytree(operator.mv(back(vector)))[0].astype(dtype)
    return product, back, flat.astype(dtype)


def inner_products(
    rows: Float[Array, "m p"], vector: Float[Array, " p"]
) -> Float[Array, " m"]:
    """Multiply each of some long rows with a vector.

    Args:
        rows: The rows.
        vector: The vector.

    Returns:
        The products, as accurate as those of two vectors: XLA's matrix-vector product
        on CPUs adds up in one float32 number, which at ``p = 1e6`` is off by 2e-5.
    """
    return jnp.sum(rows * vector[None], axis=-1)
