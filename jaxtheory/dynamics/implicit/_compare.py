"""How far a discrete run is from a flow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxtheory.batching import check_count, check_examples


def path_distance(
    path: PyTree[Float[ArrayLike, "r ..."]],
    flow_path: PyTree[Float[ArrayLike, "r ..."]],
    *,
    window: int = 1,
) -> Float[Array, " r_out"]:
    """The distance between two recorded paths, record by record.

    The Euclidean norm over all parameters of the mean, over `window` records in a row,
    of the differences: entry ``i`` is of records ``i`` to ``i + window - 1``. A window
    takes out what oscillates, as gradient descent does at the edge of stability; it
    should hold several periods (of two steps), and be short against the drift.

    Args:
        path: Parameters with a leading axis of records, for example what `train`
            recorded of ``lambda s: s.params``.
        flow_path: The `path` of a flow, recorded at the same steps.
        window: Records to average over.

    Returns:
        ``r - window + 1`` distances.

    Raises:
        ValueError: The paths differ in structure or shapes, or hold fewer than `window`
            records.

    Memory:
        A copy of the path.

    Example:
        >>> import jax.numpy as jnp
        >>> run, flow = jnp.array([1.0, -1.0, 1.0, -1.0]), jnp.zeros(4)
        >>> path_distance(run, flow).tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> path_distance(run, flow, window=2).tolist()
        [0.0, 0.0, 0.0]
    """
    _check(path, flow_path, window)
    return _distance(path, flow_path, int(window))


@functools.partial(jax.jit, static_argnums=2)
def _distance(path, flow_path, window):
    def total(a, b):
        apart = a.astype(jnp.promote_types(a.dtype, jnp.float32)) - b
        num = apart.shape[0] - window + 1
        # Not differences of running sums, whose rounding grows along the path.
        return jnp.reshape(sum(apart[i : i + num] for i in range(window)), (num, -1))

    sums = jnp.concatenate(
        jax.tree.leaves(jax.tree.map(total, path, flow_path)), axis=1
    )
    # Squares by themselves would leave the range of float32.
    scale = jnp.max(jnp.abs(sums), axis=1)
    safe = jnp.where(scale > 0, scale, 1)
    norms = scale * jnp.linalg.norm(sums / safe[:, None], axis=1) / window
    return jnp.where(jnp.isfinite(scale), norms, scale)


def _check(path: Any, flow_path: Any, window: Any) -> None:
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (path, flow_path)]
    if jax.tree.structure(path) != jax.tree.structure(flow_path) or (
        shapes[0] != shapes[1]
    ):
        raise ValueError(
            "`path` and `flow_path` must have the same structure and shapes, but have "
            f"{shapes[0]} and {shapes[1]}. Record both at the same steps."
        )
    for leaf in jax.tree.leaves((path, flow_path)):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                "`path` and `flow_path` must hold real numbers, but one has dtype "
                f"{jnp.result_type(leaf)}."
            )
    num_records = check_examples(path=path)
    if check_count(window=window) > num_records:
        raise ValueError(
            f"`window` must be at most the number of records, {num_records}, but was "
            f"{window}."
        )
