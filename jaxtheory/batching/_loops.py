"""Sums and maps over examples: chunked, exact when ragged; sums stay sharded.

The one place that loops over data. A chunk is cut out with `dynamic_slice`, so nothing
is padded or copied: the last chunk starts early enough to be full, and the examples in
it that were seen before get weight zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxtheory.batching._checks import check_batch_size, check_examples


def num_shards(data: PyTree) -> int:
    """Into how many pieces the examples of `data` are sharded over devices.

    Args:
        data: Arrays with examples on axis 0. Under `jit` an array does not know its
            sharding: ask before (operators ask when they are built).

    Returns:
        The number of shards along axis 0; 1 for an array in one place or traced.

    Raises:
        ValueError: The mesh has explicit axes, which put the sharding into every
            array's type and refuse the reductions over examples that are made here.
    """
    leaves = jax.tree.leaves(data)
    for leaf in leaves:
        mesh = getattr(leaf.sharding, "mesh", None) if _is_placed(leaf) else None
        if mesh is not None and jax.sharding.AxisType.Explicit in mesh.axis_types:
            raise ValueError(
                "`data` must be sharded over a mesh with automatic axes, but its mesh "
                f"has the axis types {mesh.axis_types}. Make the mesh with "
                "`jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) "
                "* len(names))`."
            )
    if not leaves or not _is_placed(leaves[0]) or leaves[0].ndim == 0:
        return 1
    first = leaves[0]
    return first.shape[0] // first.sharding.shard_shape(first.shape)[0]


def _is_placed(leaf):
    """Whether it is an array that knows where it lives."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)


def sum_examples(
    function: Callable[[Any, Array], PyTree],
    data: PyTree,
    *,
    batch_size: int | None = None,
    lanes: int = 1,
) -> PyTree:
    """Sum a function over all examples, a chunk at a time inside one program.

    Computes ``sum_c function(chunk_c, weights_c)`` where every example has weight 1
    exactly once, also when `batch_size` does not divide the number of examples. No
    mean is taken: divide by ``n`` for one.

    Args:
        function: ``function(chunk, weights[b]) -> pytree``: the weighted *sum* over the
            chunk's examples. The weights are weakly typed: a product with them keeps
            the dtype of the other factor.
        data: Pytree of arrays ``[n, ...]``.
        batch_size: Examples per chunk and lane; None takes all at once.
        lanes: Number of shards of axis 0 (see `num_shards`). Each lane scans its own
            examples and the lanes are added after the loop, so that sharded data costs
            one all-reduce and no gather.

    Returns:
        The sum, with the structure that `function` returns.

    Raises:
        ValueError: Arrays disagree on ``n``, `batch_size` is not positive, or `lanes`
            does not divide ``n``.

    Memory:
        One chunk's intermediates and ``lanes`` copies of the result, also in reverse
        mode, which computes each chunk again instead of storing it.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(5.0)
        >>> float(sum_examples(lambda x, w: jnp.sum(w * x), x, batch_size=2))
        10.0
    """
    n = check_examples(data=data)
    check_batch_size(batch_size)
    if type(lanes) is not int or lanes < 1 or n % lanes:
        raise ValueError(
            f"`lanes` must be a positive integer that divides the {n} examples, but "
            f"was {lanes!r}. Pass `num_shards(data)`."
        )
    per_lane = n // lanes
    if batch_size is None or batch_size >= per_lane:
        return function(data, jnp.full(n, 1.0))
    if lanes == 1:
        return _scan_sum(function, data, batch_size)
    by_lane = jax.tree.map(
        lambda a: jnp.reshape(a, (lanes, per_lane, *jnp.shape(a)[1:])), data
    )
    sums = jax.vmap(lambda lane: _scan_sum(function, lane, batch_size))(by_lane)
    return jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)


def _scan_sum(function, data, batch_size):
    """The sum over one lane, scanning chunks of `batch_size` examples."""
    n = jnp.shape(jax.tree.leaves(data)[0])[0]

    def part(data, index):
        chunk, start = _chunk(data, index, batch_size, n)
        fresh = start + jnp.arange(batch_size) >= index * batch_size
        return function(chunk, jnp.where(fresh, 1.0, 0.0))

    def add(total, index):
        return jax.tree.map(jnp.add, total, _recomputed(part)(data, index)), None

    shapes = jax.eval_shape(part, data, 0)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, _sum_dtype(s.dtype)), shapes)
    total = jax.lax.scan(add, zeros, jnp.arange(-(-n // batch_size)))[0]
    return jax.tree.map(lambda a, s: a.astype(s.dtype), total, shapes)


def _sum_dtype(dtype):
    """In half precision a sum of some 300 chunks would not grow any more."""
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if half else dtype


def _recomputed(part):
    """`part`, keeping nothing for reverse mode: else it would store every chunk."""
    # Inside a scan the compiler cannot merge the two computations, so nothing has to
    # prevent it.
    return jax.checkpoint(part, prevent_cse=False)


def _chunk(data, index, batch_size, n):
    """Chunk `index`, moved forward where it would reach past the end; its start."""
    start = jnp.minimum(index * batch_size, n - batch_size)
    cut = lambda a: jax.lax.dynamic_slice_in_dim(jnp.asarray(a), start, batch_size)
    return jax.tree.map(cut, data), start


def map_examples(
    function: Callable[[Any], PyTree], data: PyTree, *, batch_size: int | None = None
) -> PyTree:
    """Apply a batched function to all examples, a chunk at a time.

    Args:
        function: ``function(chunk[b, ...]) -> pytree of arrays [b, ...]``, examples
            independent of each other.
        data: Pytree of arrays ``[n, ...]``.
        batch_size: Examples per chunk; None takes all at once, and keeps sharded data
            sharded: to cut chunks, the devices gather all of it.

    Returns:
        What ``function(data)`` returns, arrays ``[n, ...]``.

    Raises:
        ValueError: Arrays disagree on ``n``, `batch_size` is not positive, or
            `function` does not return one row for each example.

    Memory:
        The result and one chunk's intermediates, also in reverse mode, which computes
        each chunk again instead of storing it.

    Example:
        >>> import jax.numpy as jnp
        >>> map_examples(lambda x: 2 * x, jnp.arange(5), batch_size=2).tolist()
        [0, 2, 4, 6, 8]
    """
    n = check_examples(data=data)
    check_batch_size(batch_size)
    if batch_size is None or batch_size >= n:
        return _check_rows(function(data), n)

    def part(data, index):
        chunk, start = _chunk(data, index, batch_size, n)
        return _check_rows(function(chunk), batch_size), start

    def write(outputs, index):
        rows, start = _recomputed(part)(data, index)
        put = lambda a, row: jax.lax.dynamic_update_slice_in_dim(a, row, start, 0)
        return jax.tree.map(put, outputs, rows), None

    shapes, _ = jax.eval_shape(part, data, 0)
    empty = jax.tree.map(lambda s: jnp.zeros((n, *s.shape[1:]), s.dtype), shapes)
    return jax.lax.scan(write, empty, jnp.arange(-(-n // batch_size)))[0]


def _check_rows(outputs, num_rows):
    """`outputs`, or an error that names the first leaf without `num_rows` rows."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if jnp.shape(leaf)[:1] != (num_rows,):
            raise ValueError(
                f"`function` must return arrays with the {num_rows} examples of its "
                f"chunk on axis 0, but `output{jax.tree_util.keystr(path)}` has shape "
                f"{jnp.shape(leaf)}. Reduce over examples with `sum_examples`."
            )
    return outputs
