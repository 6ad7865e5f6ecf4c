"""A product with a mean over examples: what every operator of this package is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from jaxtheory._types import ApplyFn
from jaxtheory.batching import SelectFn, insert_leaves, select_leaves, sum_examples
from jaxtheory.linalg import function_operator

SYMMETRIC = (lx.symmetric_tag,)
SEMIDEFINITE = (lx.symmetric_tag, lx.positive_semidefinite_tag)


@dataclass(frozen=True)
class MeanProduct:
    """A product with a mean over examples, hashable so that equal ones share code.

    Attributes:
        chunk_product: ``chunk_product(model, read, params, vector, weights, *extra)``:
            the weighted sum over one chunk. ``model(params)`` are the chunk's outputs,
            and ``read(outputs)`` is `read_fn` with the chunk's targets.
        apply_fn: The model.
        read_fn: ``read_fn(outputs, *targets)``: losses, or whatever else the product
            needs of outputs.
        batch_size: Examples per chunk and lane; None takes all at once.
        lanes: Number of shards of the data.
        selected: Whether vectors are dicts of some leaves of the parameters (see
            `select_leaves`) instead of pytrees like them.
    """

    chunk_product: Callable[..., PyTree]
    apply_fn: ApplyFn
    read_fn: Callable[..., Any]
    batch_size: int | None
    lanes: int
    selected: bool = False

    def __call__(self, params, data, *extra_and_vector):
        """Return the product with the last argument; ``data = (x, *targets)``."""
        *extra, vector = extra_and_vector
        n = jax.tree.leaves(data)[0].shape[0]
        insert = lambda inside: inside
        inside = params
        if self.selected:
            insert = lambda inside: insert_leaves(params, inside)
            inside = select_leaves(params, vector.__contains__)
        vector = jax.tree.map(lambda v, p: v.astype(p.dtype), vector, inside)

        def on_chunk(chunk, weights):
            x, *targets = chunk
            model = lambda inside: self.apply_fn(insert(inside), x)
            read = lambda outputs: self.read_fn(outputs, *targets)
            return self.chunk_product(model, read, inside, vector, weights, *extra)

        total = sum_examples(
            on_chunk, data, batch_size=self.batch_size, lanes=self.lanes
        )
        return jax.tree.map(lambda leaf: leaf / n, total)


def mean_operator(
    product: Callable[..., PyTree],
    params: PyTree,
    *arrays: PyTree,
    select: SelectFn | None,
    tags: tuple[object, ...],
) -> lx.FunctionLinearOperator:
    """Build the operator of a product, on all parameters or on the selected leaves.

    Args:
        product: ``product(params, *arrays, vector)``.
        params: Parameters.
        *arrays: What else the product needs.
        select: As for `hessian`.
        tags: lineax tags.

    Returns:
        The operator.
    """
    structure = params if select is None else select_leaves(params, select)
    return function_operator(product, params, *arrays, structure=structure, tags=tags)


def hessian_product(model, losses, params, vector, weights):
    """``sum_i w_i H_i v``, forward over reverse."""
    gradient = jax.grad(lambda p: total(losses, weights)(model(p)))
    return jax.jvp(gradient, (params,), (vector,))[1]


def ggn_product(model, losses, params, vector, weights):
    """``sum_i w_i J_i^T (hess l_i) J_i v``; only the last two lines see the vector."""
    outputs, push = jax.linearize(model, params)
    pull = jax.linear_transpose(push, params)
    gradient = jax.grad(total(losses, weights))
    return pull(jax.jvp(gradient, (outputs,), (push(vector),))[1])[0]


def residual_product(model, losses, params, vector, weights):
    """``sum_ik w_i (dl_i / df_ik) (hess f_ik) v``."""

    def contracted(p):
        outputs, pull = jax.vjp(model, p)
        slope = jax.grad(total(losses, weights))(outputs)
        return pull(jax.lax.stop_gradient(slope))[0]

    return jax.jvp(contracted, (params,), (vector,))[1]


def gradient_product(model, losses, params, vector, weights):
    """``sum_i w_i g_i (g_i . v)`` without any ``g_i``."""
    values, push = jax.linearize(lambda p: losses(model(p)), params)
    pull = jax.linear_transpose(push, params)
    return pull(honest_weights(values, weights) * push(vector))[0]


def total(losses: Callable[[Any], Array], weights: Array) -> Callable[[Any], Array]:
    """The weighted sum of losses, as a function of outputs."""

    def weighted(outputs):
        values = losses(outputs)
        return jnp.sum(honest_weights(values, weights) * values)

    return weighted


def honest_weights(losses: Array, weights: Array | float) -> Array:
    """Weights of losses, NaN where a loss that counts is NaN.

    A derivative drops the constant that made a loss NaN, such as a label out of range:
    without this, the curvature of a loss that does not exist would look like a number.

    Args:
        losses: One for each example.
        weights: Their weights; those of zero weight may be anything.

    Returns:
        The weights, in the dtype of the losses.
    """
    weights = jnp.asarray(weights, losses.dtype)
    return jnp.where(jnp.isnan(losses) & (weights != 0), jnp.nan, weights)


def mean_examples(
    function: Callable[..., Array], data: tuple, *, batch_size: int | None, lanes: int
) -> Array:
    """The mean of one number an example, also where chunks are ragged.

    Args:
        function: ``function(*chunk) -> [b]``, for the chunk's arrays.
        data: The arrays, ``[n, ...]``.
        batch_size: Examples per chunk and lane; None takes all at once.
        lanes: Number of shards of the data.

    Returns:
        The mean over all ``n``, in at least float32.
    """

    def on_chunk(chunk, weights):
        values = function(*chunk)
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        return jnp.sum(weights.astype(values.dtype) * values)

    n = jax.tree.leaves(data)[0].shape[0]
    return sum_examples(on_chunk, data, batch_size=batch_size, lanes=lanes) / n
