"""Random linear maps from ``[p]`` to ``[dim]``, drawn anew from a seed in each call.

Nothing of the size of the map is kept: as a constant it would be part of every compiled
program. Each has ``E |S v|^2 = |v|^2`` and
``Var |S v|^2 <= VARIANCES[kind] / dim |v|^4``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt32

# Entries of the Gaussian matrix that are there at once: 4 MiB.
_ENTRIES = 2**20
# Digits of this many bits at a time in the Hadamard transform.
_RADIX_BITS = 4
# More than 4 times this many numbers for each bucket are first folded, to twice as many
# at least; in about this many blocks.
_FOLDED = 32
_BLOCKS = 64


@functools.partial(jax.jit, static_argnums=(0, 1))
def sketch_vectors(
    kind: str,
    dim: int,
    vectors: list[Float[Array, " _"]],
    seed: UInt32[ArrayLike, ""],
) -> Float[Array, " dim"]:
    """Apply the map of a kind, size and seed to vectors, end to end.

    Args:
        kind: One of `MAPS`.
        dim: Length of the sketch.
        vectors: What is sketched, ``p`` numbers in all, in float32.
        seed: An unsigned number of 32 bits.

    Returns:
        The sketch ``[dim]``.
    """
    # Named, so that the default generator of a session does not change the sketch.
    key = jax.random.key(seed, impl="threefry2x32")
    if kind == "count":
        vectors = _short(vectors, dim, key)
    return MAPS[kind](jnp.concatenate(vectors), dim, key)


def _short(vectors, dim, key):
    """Fold until few numbers are left for each bucket: assigning them is slow."""
    stage, size = 0, sum(vector.size for vector in vectors)
    while size > 4 * _FOLDED * dim:
        length = max(_FOLDED * dim, 1 << (size // _BLOCKS).bit_length())
        vectors = [_folded(vectors, length, jax.random.fold_in(key, stage))]
        stage, size = stage + 1, 2 * length
    return vectors


def _folded(vectors, length, key) -> Float[Array, " _"]:
    """Blocks of a length, each with a sign, added up at random places of twice it.

    Within a block a number's sign is that of its place, the same in every block. Two
    blocks ``v, w`` add ``2 s t <v, w turned>`` to the squared norm, with independent
    signs of mean zero; the places' signs leave of the square of that product the sum of
    squares unless both lie at the same place, and each difference of places has
    probability at most ``1/length``. Together ``Var <= 4/length |v|^4``.
    """
    sizes = [vector.size for vector in vectors]
    num_blocks, num_words = -(-sum(sizes) // length), -(-length // 32)
    bits = jax.random.bits(key, (num_words + 2 * num_blocks,), jnp.uint32)
    places, turns, words = jnp.split(bits, [num_blocks, 2 * num_blocks])
    places = (places % np.uint32(length)).astype(jnp.int32)
    turns = _signs(turns[:, None] >> 31)
    # Once in memory: in each block's program again, it would be drawn for each.
    signs = jax.lax.optimization_barrier(
        jnp.ravel(_signs(words[:, None] >> np.arange(32, dtype=np.uint32)[None, :]))
    )
    # Two sums by turns: a CPU adds to both at once.
    totals = [jnp.zeros(2 * length)] * 2
    for vector, start in zip(vectors, np.cumsum([0, *sizes]), strict=False):
        for begin, end, block, within in _pieces(vector.size, int(start), length):
            # Vectors are never joined: on a CPU that takes as long as many steps.
            part = vector[begin:end] * signs[within : within + end - begin]
            total, place = totals.pop(0), (places[block] + within,)
            part = jax.lax.dynamic_slice(total, place, part.shape) + turns[block] * part
            totals.append(jax.lax.dynamic_update_slice(total, part, place))
    return totals[0] + totals[1]


def _pieces(size, start, length):
    """Cut numbers from `start` on at block borders: begin, end, block, place in it."""
    begin = 0
    while begin < size:
        block, within = divmod(start + begin, length)
        end = min(size, begin + length - within)
        yield begin, end, block, within
        begin = end


def _signs(bits):
    """1 or -1 by the last bit of each number."""
    return 1 - 2 * (bits & 1).astype(jnp.float32)


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
VARIANCES = {"count": 2.2, "gaussian": 2.0, "srht": 2.0}
