"""The compiled program of training: a chunk of steps."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtheory._types import Measurement, Objective, TrainState
from jaxtheory.dynamics._measure import describe, evaluate

# Streams of the one key of a run.
_SHUFFLE, _NOISE = 0, 1


class Recipe(NamedTuple):
    """What a compiled chunk depends on besides arrays; hashable, a static argument."""

    objective: Objective
    optimizer: optax.GradientTransformation
    trace: tuple[tuple[str, Measurement], ...]
    num_steps: int
    batch_size: int | None


@functools.partial(jax.jit, static_argnums=0)
def run_chunk(recipe, state, order, data, key):
    """Scan `recipe.num_steps` steps.

    Returns:
        The state after them without its initial parameters (to return them would be to
        copy them), the order of the examples in the epoch that it is in, and the trace:
        a dictionary of arrays ``[num_steps, ...]``.
    """
    shuffle, noise = (jax.random.fold_in(key, stream) for stream in (_SHUFFLE, _NOISE))
    initial_params = state.initial_params

    def step(carry, _):
        state, order = carry
        order, batch = _next_batch(recipe, order, data, state.step, shuffle)
        after, loss = _step(recipe, state, batch, jax.random.fold_in(noise, state.step))
        whole = state._replace(initial_params=initial_params)
        row = {
            "loss": loss,
            "step_length": _distance(after.params, state.params),
            **evaluate("trace", recipe.trace, whole),
        }
        return (after, order), row

    carry = (state._replace(initial_params=()), order)
    (state, order), rows = jax.lax.scan(step, carry, length=recipe.num_steps)
    return state, order, rows


@functools.partial(jax.jit, static_argnums=0)
def first_order(recipe, data, step, key):
    """The order of the examples in the epoch of `step`; nothing for full batches."""
    if recipe.batch_size is None:
        return ()
    num_examples = jax.tree.leaves(data)[0].shape[0]
    epoch = step // (num_examples // recipe.batch_size)
    return _permutation(jax.random.fold_in(key, _SHUFFLE), epoch, num_examples)


def _permutation(key, epoch, num_examples):
    """The order in which epoch `epoch` visits the examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def _next_batch(recipe, order, data, step, key):
    """The batch of `step`, and the order it is cut from: a new one in each epoch."""
    if recipe.batch_size is None:
        return order, data
    num_examples = order.shape[0]
    epoch, position = jnp.divmod(step, num_examples // recipe.batch_size)
    order = jax.lax.cond(
        position == 0,
        lambda order: _permutation(key, epoch, num_examples),
        lambda order: order,
        order,
    )
    start = position * recipe.batch_size
    chosen = jax.lax.dynamic_slice_in_dim(order, start, recipe.batch_size)
    take = lambda a: a.at[chosen].get(mode="promise_in_bounds")
    return order, jax.tree.map(take, data)


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
