"""The compiled program of training: a chunk of steps, of one run or of many."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtheory._types import Measurement, Objective, TrainState
from jaxtheory.dynamics._measure import describe, evaluate
from jaxtheory.dynamics._permutation import permutation
from jaxtheory.dynamics._shards import over_shards

# Streams of the one key of a run.
_SHUFFLE, _NOISE = 0, 1


class Recipe(NamedTuple):
    """What a compiled chunk depends on besides arrays; hashable, a static argument.

    Attributes:
        objective: What is differentiated.
        optimizer: The optax optimizer.
        trace: Measurements of every step, with their names.
        num_steps: The most steps of a chunk: rows of its trace.
        batch_size: Examples per step; None for all.
        sharding: Where the runs of a population are; None for one place.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    trace: tuple[tuple[str, Measurement], ...]
    num_steps: int
    batch_size: int | None
    sharding: Any = None


@functools.partial(jax.jit, static_argnums=0)
def run_chunk(recipe, state, order, data, key, start, length):
    """Train one run for `length` steps, at most `recipe.num_steps`.

    `length` is an array, so that chunks of all lengths are one program. `start` is the
    state's step.

    Returns:
        The state after them without its initial parameters (to return them would be to
        copy them), the order of the examples in the epoch that it is in, and the trace:
        a dictionary of arrays ``[recipe.num_steps, ...]``, zero from `length` on.
    """
    fixed = state.initial_params, data, key
    carry = (state._replace(initial_params=()), order)
    (state, order), rows = _loop(_advance, recipe, fixed, carry, start, length)
    return state, order, rows


@functools.partial(jax.jit, static_argnums=0)
def run_chunks(recipe, state, order, data, keys, start, length, active):
    """The same for many runs at once; only those that are `active` take steps.

    All arrays but `data` and `length` have a leading axis of runs, those of the trace a
    second one. A run whose loss or step is not finite is frozen before that step, and
    is not active any more.

    Returns:
        States, orders and trace as of `run_chunk`, and which runs are active still.
    """

    def chunk(state, order, keys, start, active, data, length):
        fixed = state.initial_params, data, keys
        carry = (state._replace(initial_params=()), order, active)
        return _loop(_advance_many, recipe, fixed, carry, start, length)

    sharded = over_shards(chunk, recipe.sharding, "rrrrr--", "rt")
    (state, order, active), rows = sharded(
        state, order, keys, start, active, data, length
    )
    return state, order, rows, active


def _loop(advance, recipe, fixed, carry, start, length):
    """Advance `length` times, writing rows into the first ones of a chunk's trace."""
    # A scan's number of steps is fixed; a loop has no rows of its own. Of shapes alone,
    # because keys in the carry are used once.
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (fixed, carry, start)
    )
    _, row = advance.eval_shape(recipe, *shapes)
    empty = lambda a: jnp.zeros((recipe.num_steps, *a.shape), a.dtype)
    rows = jax.tree.map(empty, row)

    def body(index, both):
        carry, rows = both
        carry, row = advance(recipe, fixed, carry, start + index)
        write = lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, index, 0)
        return carry, jax.tree.map(write, rows, row)

    return jax.lax.fori_loop(0, length, body, (carry, rows))


# The two are jitted so that the shapes of a row and the loop are one trace.
@functools.partial(jax.jit, static_argnums=0)
def _advance(recipe, fixed, carry, now):
    """Step `now` of one run."""
    initial_params, data, key = fixed
    state, order = carry
    if recipe.batch_size is not None:
        starts = _position(recipe, order, now)[1] == 0
        renew = lambda order: _renewed(recipe, order, now, key)
        order = jax.lax.cond(starts, renew, lambda order: order, order)
    after, row = _take_step(recipe, data, state, order, initial_params, key, now)
    return (after, order), row


@functools.partial(jax.jit, static_argnums=0)
def _advance_many(recipe, fixed, carry, now):
    """Step ``now[m]`` of each run."""
    initial_params, data, keys = fixed
    state, order, active = carry
    if recipe.batch_size is not None:
        starts = _position(recipe, order[0], now)[1] == 0
        # One condition for all: under `vmap` both branches would run at every step.
        renew = lambda order: jax.vmap(
            lambda starts, *one: jnp.where(starts, _renewed(recipe, *one), one[0])
        )(starts, order, now, keys)
        order = jax.lax.cond(jnp.any(starts), renew, lambda order: order, order)
    step = functools.partial(_take_step, recipe, data)
    after, row = jax.vmap(step)(state, order, initial_params, keys, now)
    loss, length = row["loss"], row["step_length"]
    taken = active & jnp.isfinite(loss) & jnp.isfinite(length)
    row["loss"] = jnp.where(active, loss, jnp.nan)
    row["step_length"] = jnp.where(active, length, jnp.nan)
    return (_frozen(after, state, taken), order, taken), row


def _take_step(recipe, data, state, order, initial_params, key, now):
    """One step on its batch: the state after it, and its row of the trace."""
    batch = _batch(recipe, order, data, now)
    noise = jax.random.fold_in(jax.random.fold_in(key, _NOISE), now)
    after, loss = _step(recipe, state, batch, noise)
    whole = state._replace(initial_params=initial_params)
    row = {
        "loss": loss,
        "step_length": _distance(after.params, state.params),
        **evaluate("trace", recipe.trace, whole),
    }
    return after, row


def _frozen(after, before, taken):
    """The states after a step of those runs that took it, before it of the others."""

    def choose(a, b):
        chosen = jnp.expand_dims(taken, tuple(range(1, a.ndim)))
        return _fresh(jnp.where(chosen, a, _fresh(b)))

    # While all go on, as mostly, no second pass over the states.
    keep = lambda after, before: jax.tree.map(_fresh, after)
    choose_each = lambda after, before: jax.tree.map(choose, after, before)
    return jax.lax.cond(jnp.all(taken), keep, choose_each, after, before)


def _fresh(leaf):
    """A leaf, as a key of its own if it is one: a step not taken used none up."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.clone(leaf) if is_key else leaf


@functools.partial(jax.jit, static_argnums=0)
def first_order(recipe, data, step, key):
    """The order of the examples in the epoch of `step`; nothing for full batches."""
    if recipe.batch_size is None:
        return ()
    num_examples = jax.tree.leaves(data)[0].shape[0]
    epoch = step // (num_examples // recipe.batch_size)
    return _permutation(key, epoch, num_examples)


@functools.partial(jax.jit, static_argnums=0)
def first_orders(recipe, data, steps, keys):
    """The same for many runs."""
    order = functools.partial(first_order, recipe, data)
    sharded = over_shards(jax.vmap(order), recipe.sharding, "rr", "r")
    return sharded(steps, keys)


def _permutation(key, epoch, num_examples):
    """The order in which epoch `epoch` visits the examples."""
    shuffle = jax.random.fold_in(key, _SHUFFLE)
    return permutation(jax.random.fold_in(shuffle, epoch), num_examples)


def _position(recipe, order, now):
    """The epoch of step `now`, and the number of the batch in it."""
    return jnp.divmod(now, order.shape[0] // recipe.batch_size)


def _renewed(recipe, order, now, key):
    """The order of the epoch of step `now`."""
    epoch, _ = _position(recipe, order, now)
    return _permutation(key, epoch, order.shape[0])


def _batch(recipe, order, data, now):
    """The batch of step `now`, cut from the order of its epoch."""
    if recipe.batch_size is None:
        return data
    start = _position(recipe, order, now)[1] * recipe.batch_size
    chosen = jax.lax.dynamic_slice_in_dim(order, start, recipe.batch_size)
    take = lambda a: a.at[chosen].get(mode="promise_in_bounds")
    return jax.tree.map(take, data)


def _step(recipe, state, batch, key):
    """One optimizer step: the state after it and the loss before it."""
    objective = functools.partial(_checked, recipe.objective)
    (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(
        state.params, state.model_state, batch, key
    )

    def value_fn(params, grad_fn=None, obj_fn=None):
        # optax's line searches refuse any argument that `value_fn` does not name. The
        # key is the step's own: a batch is one function, however often evaluated.
        del grad_fn, obj_fn
        return objective(params, state.model_state, batch, jax.random.clone(key))[0]

    offered = {
        "value": loss,
        "grad": grads,
        "value_fn": value_fn,
        "grad_fn": lambda params, _: jax.grad(value_fn)(params),
        "obj_fn": value_fn,
    }
    update = optax.with_extra_args_support(recipe.optimizer).update
    updates, opt_state = update(
        grads, state.opt_state, state.params, **_accepted(update, offered)
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    return TrainState(step, params, opt_state, model_state, state.initial_params), loss


def _accepted(update, offered):
    """The extra arguments that an optimizer's `update` can take."""
    parameters = inspect.signature(update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}


def _checked(objective, params, model_state, batch, key):
    """The objective, with errors that say what is wrong with what it returned."""
    result = objective(params, model_state, batch, key)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            "`objective` must return a pair (scalar, model state), but returned "
            f"{jax.tree.structure(result)}. Return `(loss, model_state)`; `supervised` "
            "makes an objective of a model and a loss."
        )
    loss, new_model_state = result
    if jnp.shape(loss) != ():
        raise ValueError(
            "`objective` must return a scalar and the model state, but the first of "
            f"the two has shape {jnp.shape(loss)}. Take the mean over the batch."
        )
    if not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(
            "`objective` must return a floating-point scalar to be differentiated, but "
            f"its dtype is {jnp.result_type(loss)}."
        )
    expected, actual = describe(model_state), describe(new_model_state)
    if expected != actual:
        raise ValueError(
            "`objective` must return a model state like the one it got, "
            f"{expected}, but returned {actual}. Pass an initial one that fits to "
            "`init(..., model_state=)`."
        )
    return loss, new_model_state


def _distance(params, others):
    """Euclidean distance of two parameter pytrees, in at least float32."""
    difference = lambda a, b: _widened(a) - _widened(b)
    return optax.tree.norm(jax.tree.map(difference, params, others))


def _widened(array):
    """The values of an array, in at least float32."""
    wide = jnp.promote_types(array.dtype, jnp.float32)
    if wide == array.dtype:
        return array
    # The compiler may keep the excess precision that the array was computed in, and
    # measure a step that rounding undoes.
    info = jnp.finfo(array.dtype)
    return jax.lax.reduce_precision(array.astype(wide), info.nexp, info.nmant)
