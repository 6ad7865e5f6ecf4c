"""Sums and maps over examples: chunked, exact when ragged; sums stay sharded.

The one place that loops over data. A chunk is cut out with `dynamic_slice`, so nothing
is padded or copied: the last chunk starts early enough to be full, and the examples in
it that were seen before get weight zero.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxtheory._types import ApplyFn, LossFn


def check_examples(**arrays: Any) -> int:
    """Return the number of examples that all named arrays share.

    Args:
        **arrays: Arrays or pytrees of arrays with examples on axis 0; the keyword is
            the name that an error message uses. None is skipped.

    Returns:
        The common length of axis 0.

    Raises:
        ValueError: An array has no leading axis, no examples, or another number of
            examples than the first one.
    """
    first = None
    for name, tree in arrays.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            full = f"`{name}{jax.tree_util.keystr(path)}`"
            shape = np.shape(leaf)
            if not shape:
                raise ValueError(
                    f"{full} must have examples on its leading axis, but is a scalar. "
                    f"Pass an array of shape [n, ...]."
                )
            if shape[0] == 0:
                raise ValueError(
                    f"{full} must hold at least one example, but has shape {shape}."
                )
            if first is None:
                first = (full, shape)
            elif shape[0] != first[1][0]:
                raise ValueError(
                    f"{full} must have as many examples (axis 0) as {first[0]}, but "
                    f"has shape {shape} against {first[1]}. Pass arrays that describe "
                    "the same examples."
                )
    if first is None:
        names = ", ".join(f"`{name}`" for name in arrays)
        raise ValueError(
            f"no array was given{f' as {names}' if names else ''}: pass at least one "
            "with examples in it."
        )
    return first[1][0]


def check_pair(batch: Any) -> tuple[Any, Any, int]:
    """Take a batch ``(x, y)`` apart; raise unless it is one.

    Args:
        batch: What training hands to an objective.

    Returns:
        Inputs, targets, and their number of examples.

    Raises:
        ValueError: `batch` is not a pair, or the two disagree on the number.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "`data` must be a pair (x, y) for an objective of a model and a loss, but "
            f"has structure {jax.tree.structure(batch)}. Pass `(x, y)`, or write the "
            "objective out."
        )
    x, y = batch
    return x, y, check_examples(x=x, y=y)


def check_params(params: PyTree) -> None:
    """Raise unless `params` is a non-empty pytree of floating-point arrays.

    Args:
        params: A parameter pytree.

    Raises:
        ValueError: There are no leaves, or one is not a floating-point array; names
            it.
    """
    if isinstance(params, Mapping) and "batch_stats" in params:
        raise ValueError(
            "`params` must hold what is trained, but has the collection 'batch_stats', "
            "whose running statistics would be differentiated too. Use "
            "`interop.flax.evaluate(module, variables)` to measure, and "
            "`interop.flax.split` and `interop.flax.objective` to train."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(
            "`params` must hold at least one array, but is an empty pytree "
            f"({jax.tree.structure(params)})."
        )
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            was = f"is a {type(leaf).__name__}"
        elif not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            was = f"has dtype {jnp.result_type(leaf)}"
        else:
            continue
        raise ValueError(
            f"`params{jax.tree_util.keystr(path)}` must be floating-point to be "
            f"differentiated, but {was}. Cast it, or move what is not trained into the "
            "model (`functools.partial`, a closure)."
        )


def check_count(*, at_least: int = 1, **named: Any) -> int:
    """Return the one named value as an int; raise unless it is one, and large enough.

    Args:
        at_least: Smallest allowed value.
        **named: The value; the keyword is the name that an error message uses.

    Returns:
        The value.

    Raises:
        ValueError: It is no integer (or a bool, or traced), or too small.
    """
    ((name, value),) = named.items()
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None or count < at_least:
        raise ValueError(
            f"`{name}` must be an integer of at least {at_least}, but was {value!r}."
        )
    return count


def check_number(
    name: str, value: Any, holds: Callable[[float], bool], must: str
) -> None:
    """Raise unless `value` is one real number in its range.

    Args:
        name: What an error message calls it.
        value: A number of Python, NumPy or JAX. A traced one is taken on trust.
        holds: Whether a number is in the range; False for NaN.
        must: What an error message says that it must be.

    Raises:
        ValueError: It is no number, an array of several, or out of range.
    """
    shape, dtype = np.shape(value), getattr(value, "dtype", np.result_type(float))
    is_number = hasattr(value, "dtype") or type(value) in (int, float)
    is_real = np.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, jnp.floating)
    is_scalar = is_number and is_real and shape == ()
    if is_scalar and (isinstance(value, Tracer) or holds(float(value))):
        return
    was = f"an array of shape {shape}" if shape else f"{value!r}"
    raise ValueError(f"`{name}` must be {must}, but was {was}.")


def check_batch_size(batch_size: int | None) -> None:
    """Raise unless `batch_size` is None or a positive integer.

    Args:
        batch_size: Examples per chunk; None takes all at once.

    Raises:
        ValueError: It is neither.
    """
    if batch_size is None:
        return
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(
            "`batch_size` must be None (all examples at once) or a positive integer, "
            f"but was {batch_size!r}."
        )


def check_losses(losses: Any, num_examples: int) -> None:
    """Raise unless a loss function returned one number per example.

    Args:
        losses: What it returned, or the shape of that.
        num_examples: Number ``n`` of examples.

    Raises:
        ValueError: `losses` is not one array of shape ``[n]``.
    """
    shape = getattr(losses, "shape", None)
    if shape != (num_examples,):
        was = f"shape {shape}" if shape is not None else f"a {type(losses).__name__}"
        raise ValueError(
            f"`loss_fn` must return one loss per example, shape ({num_examples},), but "
            f"returned {was}. Sum or average over the outputs of each example "
            "(`losses.sum(-1)`), and leave the mean over examples to the caller."
        )


def example_losses(loss_fn: LossFn, outputs: Any, targets: Any, n: int) -> Array:
    """Evaluate a loss function, and raise unless it treats each example by itself.

    Args:
        loss_fn: ``loss_fn(outputs[n, ...], targets[n, ...]) -> losses[n]``.
        outputs: Outputs of a model.
        targets: Targets.
        n: Number of examples.

    Returns:
        The losses, ``[n]``.

    Raises:
        ValueError: As `check_losses`; or outputs ``[n, 1]`` met targets ``[n]`` and
            broadcast, so that each output was compared with every target.
    """
    # Summed over the wrong axis, the losses [n, n] have the right shape again: the
    # broadcast has to be caught where it happens.
    shapes = [getattr(a, "shape", None) for a in (outputs, targets)]
    if n > 1 and shapes == [(n, 1), (n,)]:
        _check_pairing(loss_fn, outputs, targets)
    losses = loss_fn(outputs, targets)
    check_losses(losses, n)
    return losses


def check_model(
    apply_fn: ApplyFn, loss_fn: LossFn, params: PyTree, x: Any, y: Any
) -> int:
    """Check a model, its loss, its parameters and its examples; only shapes are traced.

    Args:
        apply_fn: ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.

    Returns:
        The number of examples.

    Raises:
        ValueError: As `check_params`, `check_examples` and `example_losses`.
    """
    check_params(params)
    n = check_examples(x=x, y=y)
    losses = lambda p, x, y: example_losses(loss_fn, apply_fn(p, x), y, n)
    jax.eval_shape(losses, params, x, y)
    return n


def _check_pairing(loss_fn, outputs, targets):
    """Raise if outputs ``[n, 1]`` and targets ``[n]`` broadcast to ``[n, n]``."""

    def shapes(rank_promotion):
        with jax.numpy_rank_promotion(rank_promotion):
            return jax.eval_shape(lambda *args: loss_fn(*args), outputs, targets)

    shapes("allow")  # whatever else is wrong comes up here, unchanged
    try:
        shapes("raise")
    except ValueError as error:
        raise ValueError(
            "`loss_fn` must compare each output with its own target, but broadcasts "
            f"outputs of shape {outputs.shape} against targets of shape "
            f"{targets.shape}. Pass targets `y[:, None]`, or take `outputs[:, 0]`."
        ) from error


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
