"""CountSketch: a random projection that costs one pass over what it projects."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key


class CountSketch(NamedTuple):
    r"""A random linear map from ``[p]`` to ``[dim]`` that keeps inner products.

    Every coordinate gets a random sign and is added to one of ``dim`` buckets:

    .. math:: (S v)_j = \sum_{i : h(i) = j} \sigma_i v_i, \qquad
        \mathbb{E} \langle S v, S w \rangle = \langle v, w \rangle

    An inner product has variance at most
    :math:`(|v|^2 |w|^2 + \langle v, w \rangle^2) / dim`.

    Attributes:
        signs: The coordinates' signs, 1 or -1, cut into blocks of ``dim``.
        offsets: How far each block is turned before it is added to the buckets: two
            coordinates of different blocks meet with probability ``1 / dim``, two of
            one block never.
    """

    signs: Int[Array, "blocks dim"]
    offsets: Int[Array, " blocks"]

    def project(self, vectors: Float[ArrayLike, "r p"]) -> Float[Array, "r dim"]:
        """Sketch each row.

        Args:
            vectors: Rows of length ``p``, that of `draw_count_sketch`.

        Returns:
            Their sketches, in at least float32.

        Raises:
            ValueError: There are no rows, or they have another number of blocks of
                ``dim`` than the sketch was drawn for.

        Memory:
            Two copies of the result, none of `vectors`.
        """
        vectors = jnp.asarray(vectors)
        if vectors.ndim != 2:
            raise ValueError(
                f"`vectors` must be rows [r, p], but has shape {vectors.shape}. Use "
                "`vectors[None]` for one."
            )
        num_rows, size = vectors.shape
        num_blocks, dim = self.signs.shape
        if -(-size // dim) != num_blocks:
            raise ValueError(
                f"`vectors` must have rows for {num_blocks} blocks of {dim}, but has "
                f"shape {vectors.shape}. Draw the sketch with their length."
            )
        dtype = jnp.promote_types(vectors.dtype, jnp.float32)

        def add(block, index, total):
            # Twice as long as the buckets, so that no block wraps round.
            signed = block.astype(dtype) * self.signs[index][None, : block.shape[1]]
            start = self.offsets[index]
            old = jax.lax.dynamic_slice_in_dim(total, start, block.shape[1], axis=1)
            return jax.lax.dynamic_update_slice_in_dim(
                total, old + signed, start, axis=1
            )

        def step(index, total):
            block = jax.lax.dynamic_slice_in_dim(vectors, index * dim, dim, axis=1)
            return add(block, index, total)

        whole = size // dim
        total = jnp.zeros((num_rows, 2 * dim), dtype)
        if whole:
            total = jax.lax.fori_loop(0, whole, step, total)
        if whole < num_blocks:
            total = add(vectors[:, whole * dim :], whole, total)
        return total[:, :dim] + total[:, dim:]


def draw_count_sketch(key: KeyArray, *, size: int, dim: int) -> CountSketch:
    """Draw signs and offsets of a `CountSketch`.

    Args:
        key: Equal keys give equal sketches.
        size: Length ``p`` of the vectors.
        dim: Number of buckets.

    Returns:
        The map; ``.project(vectors)`` applies it.

    Raises:
        ValueError: `size` or `dim` is no positive integer.

    Memory:
        One byte for each of the ``p`` coordinates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sketch = draw_count_sketch(jax.random.key(0), size=100, dim=16)
        >>> unit = jnp.zeros((1, 100)).at[0, 7].set(-3.0)
        >>> float(jnp.linalg.norm(sketch.project(unit)))
        3.0

    References:
        Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams.
        Weinberger et al. (2009), arXiv:0902.2206, Lemma 2 (unbiasedness and variance of
        the signed hash).
    """
    check_key(key)
    size, dim = check_count(size=size), check_count(dim=dim)
    num_blocks = -(-size // dim)
    sign_key, offset_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (num_blocks, dim), jnp.int8)
    return CountSketch(signs, jax.random.randint(offset_key, (num_blocks,), 0, dim))
