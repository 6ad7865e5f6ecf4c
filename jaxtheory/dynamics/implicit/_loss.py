"""What the flows are given: a scalar loss of parameters, and numbers around it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxtheory.batching import (
    check_count,
    check_function,
    check_number,
    check_params,
)


def flatten(params: PyTree) -> tuple[Float[Array, " p"], Callable]:
    """The parameters as one vector of at least float32, and the way back."""
    flat, unravel = ravel_pytree(params)
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    return flat.astype(dtype), lambda w: unravel(w.astype(flat.dtype))


def flat_loss(loss: Callable, params: PyTree, data: tuple) -> Callable:
    """The loss as a function of the flat parameters, in their precision."""
    flat, unravel = flatten(params)
    return lambda w: jnp.asarray(loss(unravel(w), *data), flat.dtype)


def check_loss(loss: Any, params: Any, data: tuple) -> None:
    """Raise unless ``loss(params, *data)`` is one floating-point number."""
    check_function("loss", loss)
    check_params(params)
    value = jax.eval_shape(loss, params, *data)
    if getattr(value, "shape", None) != ():
        raise ValueError(
            "`loss` must return one number, the mean loss as gradient descent "
            "differentiates it, but returned "
            f"{jax.tree.map(lambda leaf: leaf.shape, value)}."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"`loss` must return a floating-point number, but returned {value.dtype}."
        )


def check_times(learning_rate: Any, num_steps: Any, record_every: Any) -> int:
    """The number of records after the first; raise unless the numbers fit."""
    positive = lambda s: 0 < s < float("inf")
    check_number("learning_rate", learning_rate, positive, "positive and finite")
    num_steps = check_count(num_steps=num_steps)
    every = check_count(record_every=record_every)
    if num_steps % every:
        raise ValueError(
            "`record_every` must divide `num_steps`, so that the end is recorded, but "
            f"{every} does not divide {num_steps}."
        )
    return num_steps // every
