"""The derivative of the very step that training takes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import KeyArray, Objective, TrainState
from jaxtheory.batching import check_function
from jaxtheory.dynamics import _checks
from jaxtheory.dynamics._run import strong
from jaxtheory.dynamics._step import Recipe, _batch, _position, _renewed, _step

_MAKE_STATE = "`dynamics.init(optimizer, params)`"


def check_training(
    objective: Objective,
    state: TrainState,
    optimizer: Any,
    data: PyTree,
    batch_size: int | None,
) -> tuple[Recipe, TrainState, PyTree]:
    """Check what training would be given.

    Args:
        objective: What is differentiated.
        state: A state of `optimizer`.
        optimizer: The optax optimizer.
        data: Arrays ``[n, ...]``.
        batch_size: Examples per step; None for all.

    Returns:
        The recipe of a step, and state and data as arrays of definite type.

    Raises:
        ValueError: One does not fit the others.
    """
    check_function("objective", objective)
    _checks.check_data(data, batch_size)
    _checks.check_state(state, "state", _MAKE_STATE)
    if np.shape(state.step):
        raise ValueError(
            "`state` must be of one run, but its `step` has shape "
            f"{np.shape(state.step)}. Take one out: `jax.tree.map(lambda a: a[0], "
            "state)`."
        )
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "`optimizer` must be an optax optimizer, but is a "
            f"{type(optimizer).__name__}."
        )
    expected = jax.eval_shape(optimizer.init, state.params)
    _checks.check_optimizer(expected, state, "state", _MAKE_STATE)
    recipe = Recipe(objective, optimizer, (), 1, batch_size)
    return recipe, strong(state), jax.tree.map(jnp.asarray, data)


def coordinates(
    state: TrainState,
) -> tuple[Float[Array, " D"], Callable[[Array], TrainState]]:
    """Parameters and the floating-point leaves of the optimizer state, as one vector.

    Args:
        state: A training state.

    Returns:
        The vector, and what puts another one in its place: counters, random keys and
        the model state stay as they are.
    """
    leaves, structure = jax.tree.flatten((state.params, state.opt_state))
    moves = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    flat, unravel = ravel_pytree([a for a, m in zip(leaves, moves, strict=True) if m])

    def put(flat):
        new = iter(unravel(flat))
        both = zip(leaves, moves, strict=True)
        moved = [next(new) if moving else leaf for leaf, moving in both]
        params, opt_state = jax.tree.unflatten(structure, moved)
        return state._replace(params=params, opt_state=opt_state)

    return flat, put


def linearise(
    recipe: Recipe, state: TrainState, batch: PyTree, key: KeyArray
) -> tuple[TrainState, Callable[[Array], Array]]:
    """Take one step of training, and its derivative there.

    Args:
        recipe: Of the step.
        state: Where to take it.
        batch: On which examples.
        key: What the objective draws from.

    Returns:
        The state after it, and the product of its Jacobian with a vector of
        `coordinates`.
    """
    flat, put = coordinates(state)

    def step(flat):
        after, _ = _step(recipe, put(flat), batch, key)
        return coordinates(after)[0], after

    _, push, after = jax.linearize(step, flat, has_aux=True)
    wide = jnp.promote_types(flat.dtype, jnp.float32)
    return after, lambda tangent: push(tangent.astype(flat.dtype)).astype(wide)


def next_batch(
    recipe: Recipe, order: Any, data: PyTree, now: Array, key: KeyArray
) -> tuple[PyTree, Any]:
    """The batch that training takes at step `now`.

    Args:
        recipe: Of the step.
        order: Order of the examples in the epoch of the step before.
        data: All examples.
        now: The step.
        key: The key of the run.

    Returns:
        The batch, and the order of the examples in the epoch of this step.
    """
    if recipe.batch_size is not None:
        starts = _position(recipe, order, now)[1] == 0
        renew = lambda order: _renewed(recipe, order, now, key)
        order = jax.lax.cond(starts, renew, lambda order: order, order)
    return _batch(recipe, order, data, now), order
