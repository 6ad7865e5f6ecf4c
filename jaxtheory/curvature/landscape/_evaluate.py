"""The mean loss at many points of parameter space, in one jitted program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import LossFn
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_params,
    check_problem,
    num_shards,
)
from jaxtheory.curvature._mean_product import mean_examples
from jaxtheory.linalg import check_vector

Recompute: TypeAlias = Callable[[Any, Any], Any]


class Problem(NamedTuple):
    """What the mean loss is made of besides parameters and data; hashable.

    Attributes:
        apply_fn: ``apply_fn(params, x)``, or ``apply_fn(params, x, model_state)`` where
            there is `recompute`.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        recompute: ``recompute(params, x) -> model_state``, or None.
        batch_size: Examples per chunk.
        lanes: Shards of the examples.
        points_at_once: Points of parameter space evaluated side by side.
    """

    apply_fn: Callable[..., Any]
    loss_fn: LossFn
    recompute: Recompute | None
    batch_size: int | None
    lanes: int
    points_at_once: int


def check_landscape(
    apply_fn: Callable[..., Any],
    loss_fn: LossFn,
    params: PyTree,
    x: Any,
    y: Any,
    *,
    recompute: Recompute | None,
    batch_size: int | None,
    points_at_once: int = 1,
) -> Problem:
    """Check a model, its loss and its data; only shapes are traced.

    Args:
        apply_fn: See `Problem`.
        loss_fn: See `Problem`.
        params: Parameters.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        recompute: See `Problem`.
        batch_size: See `Problem`.
        points_at_once: See `Problem`.

    Returns:
        What `mean_loss` needs.

    Raises:
        ValueError: As `batching.check_problem` and `batching.check_batch_size`.
    """
    check_batch_size(batch_size)
    check_count(points_at_once=points_at_once)
    check_params(params)
    check_examples(x=x, y=y)
    model = apply_fn
    if recompute is not None:
        model = lambda p, x: apply_fn(p, x, recompute(p, x))
    check_problem(model, loss_fn, params, x, y, differentiable=False)
    lanes = num_shards((x, y))
    return Problem(apply_fn, loss_fn, recompute, batch_size, lanes, points_at_once)


def mean_loss(problem: Problem, params: PyTree, x: Any, y: Any) -> Float[Array, ""]:
    """The mean loss over all examples at one point.

    Args:
        problem: What it is made of.
        params: Where.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.

    Returns:
        ``(1/n) sum_i loss_i``, in the dtype of the losses and at least float32.
    """
    state = () if problem.recompute is None else (problem.recompute(params, x),)
    losses = lambda x, y: problem.loss_fn(problem.apply_fn(params, x, *state), y)
    options = {"batch_size": problem.batch_size, "lanes": problem.lanes}
    return mean_examples(losses, (x, y), **options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses_at(
    problem: Problem,
    place: Callable[[Any, Array], PyTree],
    anchors: PyTree,
    coordinates: Float[Array, "r ..."],
    x: Any,
    y: Any,
) -> Float[Array, " r"]:
    """The mean loss at each of `coordinates`.

    Args:
        problem: What it is made of.
        place: Module-level function ``place(anchors, coordinate) -> params``.
        anchors: Points and directions of parameter space that `place` needs.
        coordinates: ``[r, ...]``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.

    Returns:
        The losses, ``[r]``.
    """
    loss = lambda where: mean_loss(problem, place(anchors, where), x, y)
    # One after the other needs no `vmap`, whose batched products are slower on CPU.
    size = None if problem.points_at_once == 1 else problem.points_at_once
    return jax.lax.map(loss, coordinates, batch_size=size)


def check_same(tree: PyTree, params: PyTree, name: str) -> None:
    """Raise unless `tree` has the structure and shapes of `params`.

    Args:
        tree: Another point, or a direction, of parameter space.
        params: The parameters.
        name: What an error message calls it.

    Raises:
        ValueError: Another structure or shape.
    """
    found, expected = jax.tree.structure(tree), jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"`{name}` must have the structure of the parameters, {expected}, but has "
            f"{found}. Pass a pytree of the same network."
        )
    check_vector(tree, params, name)


def check_stacked(stacked: PyTree, params: PyTree, name: str) -> int:
    """Return how many pytrees like `params` are stacked; raise unless they are.

    Args:
        stacked: A pytree like `params` whose leaves have one more leading axis.
        params: The parameters.
        name: What an error message calls it.

    Returns:
        The length of the leading axis.

    Raises:
        ValueError: Another structure or shape, no leading axis, or an empty one, or
            complex numbers.
    """
    found, expected = jax.tree.structure(stacked), jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"`{name}` must have the structure of the parameters, {expected}, and one "
            f"more leading axis on every leaf, but has {found}. Stack several with "
            "`jax.tree.map(lambda *leaves: jnp.stack(leaves), *pytrees)`."
        )
    leaves = jax.tree_util.tree_leaves_with_path(stacked)
    num = np.shape(leaves[0][1])[:1]
    for (path, leaf), like in zip(leaves, jax.tree.leaves(params), strict=True):
        shape, inner = np.shape(leaf), np.shape(like)
        if shape[:1] != num or shape[1:] != inner or num in ((), (0,)):
            many = "some number" if num in ((), (0,)) else str(num[0])
            raise ValueError(
                f"`{name}{jax.tree_util.keystr(path)}` must hold {many} of the shape "
                f"{inner} on a leading axis, but has shape {shape}. For a single one "
                "write `leaf[None]`."
            )
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                f"`{name}{jax.tree_util.keystr(path)}` must be real, but has dtype "
                f"{jnp.result_type(leaf)}. Take its real part."
            )
    return num[0]


def largest_entry(tree: PyTree) -> Float[Array, ""]:
    """The largest absolute entry, to divide by before squares leave float32.

    Args:
        tree: A pytree of arrays.

    Returns:
        It, or 1 where all entries are zero, in at least float32.
    """
    largest = jnp.asarray(optax.tree.norm(tree, ord="inf"))
    largest = largest.astype(at_least_float32(largest.dtype))
    return jnp.where(largest == 0, 1, largest)


def at_least_float32(dtype: Any) -> Any:
    """The dtype to add up in: half precision stops growing.

    Args:
        dtype: A floating-point dtype.

    Returns:
        It, or float32 for a smaller one.
    """
    return jnp.promote_types(dtype, jnp.float32)
