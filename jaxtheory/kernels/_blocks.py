"""Kernels block by block: symmetric ones by half, sharded ones by the device's rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxtheory.batching import map_examples, num_shards


def blocks(
    features: Callable[[Any], Any],
    contract: Callable[[Any, Any], PyTree[Array]],
    x1: Any,
    x2: Any | None,
    *,
    batch_size: int | None,
    lanes: int,
    sharding: jax.sharding.Sharding | None,
    in_halves: bool = False,
) -> PyTree[Array]:
    """Evaluate a kernel between all examples from features of chunks of them.

    Args:
        features: ``features(chunk[b, ...]) -> pytree of arrays [b, ...]``.
        contract: ``contract(features1, features2) -> pytree of kernels``, each ``[b1,
            b2]``, ``[b1, b2, k]`` or ``[b1, b2, k, k]``.
        x1: Inputs ``[n1, ...]`` (rows).
        x2: Inputs ``[n2, ...]`` (columns); None for those of `x1`.
        batch_size: Examples in a chunk, of rows and of columns; None takes all.
        lanes: Number of devices over which the rows are sharded.
        sharding: Where the kernels' rows belong (see `row_sharding`), or None.
        in_halves: Whether the kernel of one set that is taken all at once is put
            together of three blocks: three quarters of the contraction, and features of
            half the examples at a time.

    Returns:
        The kernels; exactly symmetric where `x2` is None.
    """
    if lanes > 1:
        columns = x1 if x2 is None else x2
        rows = lambda some: _rectangular(features, contract, some, columns, batch_size)
        kernel = by_lane(rows, x1, lanes)
    elif x2 is None:
        kernel = _symmetric(features, contract, x1, batch_size, in_halves)
    else:
        kernel = _rectangular(features, contract, x1, x2, batch_size)
    # A kernel and its transpose want opposite shardings: say which of them holds.
    place = partial(_place, sharding)
    kernel = jax.tree.map(place, kernel)
    if x2 is not None:
        return kernel
    return jax.tree.map(lambda a: place(_mirror(a)), kernel)


def _place(sharding, kernel):
    """The kernel with its rows where the rows' inputs are."""
    if sharding is None:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, sharding)


def row_sharding(x: Any) -> jax.sharding.Sharding | None:
    """The sharding of a kernel whose rows lie where their inputs do.

    Args:
        x: Inputs ``[n, ...]``; traced arrays do not know where they are.

    Returns:
        The sharding, or None if it is not known or the inputs are in one place.
    """
    if num_shards(x) == 1:
        return None
    sharding = jax.tree.leaves(x)[0].sharding
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return None
    rows = jax.sharding.PartitionSpec(sharding.spec[0])
    return jax.sharding.NamedSharding(sharding.mesh, rows)


def by_lane(function: Callable[[Any], Any], data: Any, lanes: int) -> Any:
    """Apply a function to the examples of each device, and join what it gives.

    Args:
        function: Takes and gives arrays ``[n / lanes, ...]``.
        data: Examples ``[n, ...]``, sharded over `lanes` devices.
        lanes: Number of devices.

    Returns:
        Arrays ``[n, ...]``.
    """
    split = lambda a: jnp.reshape(a, (lanes, -1, *jnp.shape(a)[1:]))
    join = lambda a: a.reshape(-1, *a.shape[2:])
    return jax.tree.map(join, jax.vmap(function)(jax.tree.map(split, data)))


def _rectangular(features, contract, x1, x2, batch_size):
    """The kernel between two sets: for each chunk of rows, all chunks of columns."""

    def rows(chunk1):
        features1 = features(chunk1)

        def columns(chunk2):
            return _swapped(contract(features1, features(chunk2)))

        return _swapped(map_examples(columns, x2, batch_size=batch_size))

    return map_examples(rows, x1, batch_size=batch_size)


def _symmetric(features, contract, x, batch_size, in_halves):
    """The kernel of one set, zero in the blocks below the diagonal ones."""
    n = jnp.shape(jax.tree.leaves(x)[0])[0]
    if batch_size is None or batch_size >= n:
        if in_halves:
            return _in_halves(features, contract, x, n // 2)
        whole = features(x)
        return contract(whole, whole)
    indexed = (jnp.arange(n), x)

    def rows(chunk1):
        index1, inputs1 = chunk1
        features1 = features(inputs1)
        block = lambda inputs2: contract(features1, features(inputs2))

        def columns(chunk2):
            index2, inputs2 = chunk2
            shapes = jax.eval_shape(block, inputs2)
            skip = lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            upper = index2[-1] >= index1[0]
            return _swapped(jax.lax.cond(upper, block, skip, inputs2))

        return _swapped(map_examples(columns, indexed, batch_size=batch_size))

    return map_examples(rows, indexed, batch_size=batch_size)


def _in_halves(features, contract, x, middle):
    """The kernel of one set from those of its halves and the one between them."""
    first = features(jax.tree.map(lambda a: a[:middle], x))
    second = features(jax.tree.map(lambda a: a[middle:], x))

    def join(upper, beside, lower):
        below = jnp.zeros_like(jnp.swapaxes(beside, 0, 1))
        rows = [
            jnp.concatenate(pair, axis=1) for pair in ((upper, beside), (below, lower))
        ]
        return jnp.concatenate(rows, axis=0)

    blocks = contract(first, first), contract(first, second), contract(second, second)
    return jax.tree.map(join, *blocks)


def _swapped(kernels):
    """Kernels with columns on the leading axis, or with rows again."""
    return jax.tree.map(lambda kernel: jnp.swapaxes(kernel, 0, 1), kernels)


def _mirror(kernel):
    """Make ``K[i, j, k, l] = K[j, i, l, k]`` hold exactly, from its upper triangle."""
    transposed = jnp.swapaxes(kernel, 0, 1)
    if kernel.ndim == 4:
        transposed = jnp.swapaxes(transposed, 2, 3)
    index = jnp.arange(kernel.shape[0])
    index = index.reshape(-1, *(1,) * (kernel.ndim - 1))
    row, column = index, jnp.swapaxes(index, 0, 1)
    # Of a block on the diagonal both triangles were computed: their mean.
    lower = jnp.where(row > column, transposed, (kernel + transposed) / 2)
    return jnp.where(row < column, kernel, lower)
