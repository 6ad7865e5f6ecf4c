"""What is looked after while Lanczos runs: symmetry, and products that are finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree


class Watch(NamedTuple):
    """What Lanczos has seen so far.

    Attributes:
        scale: Largest entry of the tridiagonal matrix, in size.
        deviation: Largest difference of two entries that symmetry makes equal.
        step: First iteration whose product was not finite, or -1.
        entry: First entry of that product that was not finite, or -1.
    """

    scale: Float[Array, ""]
    deviation: Float[Array, ""]
    step: Int[Array, ""]
    entry: Int[Array, ""]


def nothing_yet(dtype: Any) -> Watch:
    """Begin to watch.

    Args:
        dtype: Of the vectors.

    Returns:
        The watch before the first product.
    """
    none = jnp.array(-1, int)
    return Watch(jnp.zeros((), dtype), jnp.zeros((), dtype), none, none)


def seen(
    watch: Watch,
    index: Int[Array, ""],
    alpha: Float[Array, ""],
    beta: Float[Array, ""],
    deviation: Float[Array, ""],
    entry: Int[Array, ""],
) -> Watch:
    """Take one more product into account.

    Args:
        watch: What was seen before it.
        index: Its iteration.
        alpha: Its diagonal entry of the tridiagonal matrix.
        beta: Its off-diagonal entry.
        deviation: What symmetry makes zero.
        entry: First entry of it that is not finite, or -1.

    Returns:
        The watch after it.
    """
    scale = jnp.maximum(watch.scale, jnp.maximum(jnp.abs(alpha), beta))
    first = (watch.step < 0) & (entry >= 0)
    return Watch(
        scale,
        jnp.maximum(watch.deviation, deviation),
        jnp.where(first, index, watch.step),
        jnp.where(first, entry, watch.entry),
    )


def not_finite(image: Float[Array, " p"]) -> Int[Array, ""]:
    """Find the first entry that is not finite.

    Args:
        image: A product.

    Returns:
        Its index, or -1.
    """
    none = jnp.array(-1, int)
    search = lambda: jnp.argmax(~jnp.isfinite(image)).astype(none.dtype)
    # Searched for only where there is one: an arg max is slow on a CPU.
    finite = jnp.isfinite(jnp.max(jnp.abs(image)))
    return jax.lax.cond(finite, lambda: none, search)


def leaf_of(index: Int[Array, "..."], structure: PyTree) -> Int[Array, "..."]:
    """Which leaf an entry of the flat vector lies in.

    Args:
        index: Entry of the flat vector, or -1.
        structure: The pytree of arrays or shapes that was made flat.

    Returns:
        Index into its leaves; -1 for -1.
    """
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(structure)])
    leaf = jnp.searchsorted(jnp.asarray(ends, index.dtype), index, side="right")
    return jnp.where(index < 0, -1, leaf)
