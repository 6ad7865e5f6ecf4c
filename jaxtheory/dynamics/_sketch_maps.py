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
    signed = _flipped(vector, bits[:num_words])
    padded = jnp.pad(signed, (0, num_blocks * dim - signed.size))
    source = (jnp.arange(dim)[None] + offsets[:, None]) % dim
    turned = jnp.take_along_axis(
        jnp.reshape(padded, (num_blocks, dim)), source, 1, mode="promise_in_bounds"
    )
    # Added up as it is gathered, column by column, it took a CPU as long as four steps
    # of a network of a million parameters inside the loop of training; a loop over
    # blocks took even longer there.
    turned = jax.lax.optimization_barrier(turned)
    ones = jnp.ones((1, num_blocks), turned.dtype)
    return jnp.matmul(ones, turned, precision="highest")[0]


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


@jax.custom_jvp
def _flipped(vector, words):
    """The vector with the sign of each number turned where its bit is set.

    By the bit that is its sign: as a choice between two numbers it takes XLA ten times
    as long in the loop of training on a CPU.
    """
    signs = (words[:, None] >> np.arange(32, dtype=np.uint32)[None, :]) << 31
    numbers = jax.lax.bitcast_convert_type(vector, jnp.uint32)
    turned = numbers ^ jnp.ravel(signs)[: vector.size]
    return jax.lax.bitcast_convert_type(turned, jnp.float32)


@_flipped.defjvp
def _(primals, tangents):
    """The same of the tangent, in a form that has a transpose."""
    (_, words), (tangent, _) = primals, tangents
    flags = (words[:, None] >> np.arange(32, dtype=np.uint32)[None, :]) & 1
    turned = jnp.where(jnp.ravel(flags)[: tangent.size] != 0, -tangent, tangent)
    return _flipped(*primals), turned


MAPS = {"count": _count, "gaussian": _gaussian, "srht": _srht}
