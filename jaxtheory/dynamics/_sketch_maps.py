"""Random linear maps from ``[p]`` to ``[dim]``, drawn anew from a seed in each call.

Nothing of the size of the map is kept: as a constant it would be part of every compiled
program. Each has ``E |S v|^2 = |v|^2`` and ``Var |S v|^2 <= 2/dim |v|^4``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Entries of the Gaussian matrix that are there at once: 4 MiB.
_ENTRIES = 2**20
# Digits of this many bits at a time in the Hadamard transform.
_RADIX_BITS = 4


@functools.partial(jax.jit, static_argnums=(0, 1))
def sketch_vector(kind: str, dim: int, vector: Array, seed: Array) -> Array:
    """Apply the map of a kind, size and seed.

    Args:
        kind: One of `MAPS`.
        dim: Length of the sketch.
        vector: What is sketched, ``[p]`` in float32.
        seed: An unsigned number of 32 bits.

    Returns:
        The sketch ``[dim]``.
    """
    # Named, so that the default generator of a session does not change the sketch.
    key = jax.random.key(seed, impl="threefry2x32")
    return MAPS[kind](vector, dim, key)


def _count(vector, dim, key) -> Float[Array, " dim"]:
    """Signs, a random cyclic offset for each block of `dim`, and a sum of blocks."""
    num_blocks = -(-vector.size // dim)
    num_words = -(-vector.size // 32)
    bits = jax.random.bits(key, (num_words + num_blocks,), jnp.uint32)
    offsets = (bits[num_words:] % jnp.uint32(dim)).astype(jnp.int32)
    # A loop of slices is slow on a GPU, and a gather on a CPU (in the loop of training
    # it took as long as four steps of a network of a million parameters).
    return jax.lax.platform_dependent(
        vector,
        bits[:num_words],
        offsets,
        cpu=functools.partial(_fold_in_turn, dim),
        default=functools.partial(_fold_at_once, dim),
    )


def _fold_at_once(dim, vector, words, offsets):
    """Turn all blocks with one gather and add them up."""
    num_blocks = offsets.size
    signed = _flipped(vector, words)
    padded = jnp.pad(signed, (0, num_blocks * dim - signed.size))
    blocks = jnp.reshape(padded, (num_blocks, dim))
    source = (jnp.arange(dim)[None] + offsets[:, None]) % dim
    turned = jnp.take_along_axis(blocks, source, axis=1, mode="promise_in_bounds")
    return jnp.sum(turned, axis=0)


def _fold_in_turn(dim, vector, words, offsets):
    """Add block after block to buckets, each where its offset begins."""
    starts = (dim - offsets) % dim
    whole, per_block = vector.size // dim, dim // 32
    # Signs are drawn where they are needed, unless words of them straddle blocks.
    straddling = dim % 32 != 0
    if straddling:
        vector = _flipped(vector, words)

    def add(block, some, index, total):
        signed = block if straddling else _flipped(block, some)
        old = jax.lax.dynamic_slice(total, (starts[index],), block.shape)
        return jax.lax.dynamic_update_slice(total, old + signed, (starts[index],))

    def step(index, total):
        block = jax.lax.dynamic_slice(vector, (index * dim,), (dim,))
        some = jax.lax.dynamic_slice(words, (index * per_block,), (per_block,))
        return add(block, some, index, total)

    # Twice as long as the buckets, so that no block wraps round.
    total = jnp.zeros(2 * dim, vector.dtype)
    if whole:
        total = jax.lax.fori_loop(0, whole, step, total)
    if whole < offsets.size:
        total = add(vector[whole * dim :], words[whole * per_block :], whole, total)
    return total[:dim] + total[dim:]


def _gaussian(vector, dim, key) -> Float[Array, " dim"]:
    """Independent normal entries of variance ``1/dim``, some columns at a time."""
    columns = min(vector.size, max(1, _ENTRIES // dim))
    num_chunks = -(-vector.size // columns)
    padded = jnp.pad(vector, (0, num_chunks * columns - vector.size))

    def add(total, numbered):
        index, chunk = numbered
        entries = jax.random.normal(
            jax.random.fold_in(key, index), (dim, columns), jnp.float32
        )
        return total + jnp.matmul(entries, chunk, precision="highest"), None

    chunks = jnp.arange(num_chunks), jnp.reshape(padded, (num_chunks, columns))
    total, _ = jax.lax.scan(add, jnp.zeros(dim, vector.dtype), chunks)
    return total / np.float32(dim**0.5)


def _srht(vector, dim, key) -> Float[Array, " dim"]:
    """Signs, an orthonormal Hadamard transform, and one row from each of `dim` parts.

    Rows are drawn within equal parts of the transform (of lengths that differ by one
    where `dim` is no power of two) and weighted by the root of the part's length.
    """
    size = 1 << (max(vector.size, dim) - 1).bit_length()
    num_words = -(-vector.size // 32)
    bits = jax.random.bits(key, (num_words + dim,), jnp.uint32)
    signed = _flipped(vector, bits[:num_words])
    mixed = _hadamard(jnp.pad(signed, (0, size - vector.size)))
    borders = np.arange(dim + 1) * size // dim
    lengths = np.diff(borders)
    within = bits[num_words:] % lengths.astype(np.uint32)
    rows = borders[:-1].astype(np.int32) + within.astype(jnp.int32)
    taken = mixed.at[rows].get(mode="promise_in_bounds")
    return taken * np.sqrt(lengths / size).astype(np.float32)


def _hadamard(vector):
    """The Walsh-Hadamard transform, unnormalised, of a power of two of numbers."""
    remaining = vector.size.bit_length() - 1
    while remaining:
        bits = min(_RADIX_BITS, remaining)
        # The last digit is transformed and becomes the first; after all of them the
        # digits are in order again.
        digits = jnp.reshape(vector, (-1, 2**bits))
        factor = _hadamard_matrix(bits)
        vector = jnp.ravel(jnp.matmul(digits, factor, precision="highest").T)
        remaining -= bits
    return vector


def _hadamard_matrix(bits):
    matrix = np.ones((1, 1), np.float32)
    for _ in range(bits):
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    return matrix


def _flipped(vector, words):
    """The vector with the sign of each number turned where its bit is set."""
    shifts = np.arange(32, dtype=np.uint32)
    flags = jnp.ravel((words[:, None] >> shifts[None, :]) & 1)[: vector.size]
    return jnp.where(flags != 0, -vector, vector)


MAPS = {"count": _count, "gaussian": _gaussian, "srht": _srht}
