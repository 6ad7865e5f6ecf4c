"""Kernels of a network of infinite width, from the network itself."""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    map_examples,
)
from jaxtheory.kernels._infinite_first import FirstLayer
from jaxtheory.kernels._infinite_moments import Moments
from jaxtheory.kernels._infinite_setup import (
    as_model,
    first_layer_tables,
    make_plan,
    precision,
    set_up,
    walk_through,
)
from jaxtheory.kernels._infinite_values import Layout
from jaxtheory.kernels._neural_tangents import neural_tangents

FirstLayerWeights = Literal["exact", "gaussian"]


class InfiniteKernel(NamedTuple):
    """Kernels of one output of a network of infinite width.

    Attributes:
        nngp: Covariance of the outputs over initialisations, ``E[f(x1) f(x2)]``.
        ntk: Tangent kernel in the NTK parametrisation: the sum over parameters of
            their initial variance times the product of derivatives.
        deviations: For each parameter that counts, by key path, its standard deviation
            at initialisation: of a weight times ``sqrt(fan_in)``, of a bias as it is.
            As given (standard error 0, no samples), or estimated from that many draws
            of the parameter.
        first_layer_error: Relative standard error (root mean square over entries) that
            ``first_layer="exact"`` leaves in the covariance after the first
            activation; 0 where nothing was drawn.
        integration_error: Of activation functions that were integrated numerically,
            the largest share of the second moment, of the function or of its
            derivative, in Hermite modes beyond those used. Entries of pairs that are
            nearly parallel can be off by that much, all others far less; 0 where all
            are in closed form.
        num_nonfinite: Number of entries of the two kernels that are not finite.
    """

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]
    deviations: dict[str, Estimate]
    first_layer_error: Float[Array, ""]
    integration_error: Float[Array, ""]
    num_nonfinite: Int[Array, ""]


def infinite_width(
    module: Any,
    x1: Shaped[ArrayLike, "n1 ..."],
    x2: Shaped[ArrayLike, "n2 ..."] | None = None,
    *,
    key: KeyArray | None = None,
    weight_std: Any = None,
    bias_std: Any = None,
    first_layer: FirstLayerWeights = "exact",
    num_draws: int = 32_768,
    batch_size: int | None = None,
) -> InfiniteKernel:
    """Compute the kernels of a model in the limit of infinite width."""
    neural_tangents()
    _check_options(first_layer, num_draws, batch_size)
    _check_inputs(x1, x2)
    x1 = jnp.asarray(x1)
    x2 = None if x2 is None else jnp.asarray(x2)
    model = as_model(module)
    with jax.ensure_compile_time_eval():  # also where the caller is being compiled
        key = jax.random.key(0) if key is None else key
        keys = [jax.random.fold_in(key, i) for i in range(3)]
    setup = set_up(model, x1, keys[0], weight_std, bias_std)
    shape, dtype = tuple(x1.shape[1:]), x1.dtype.name
    plan = make_plan(model, setup.leaves, shape, dtype, precision())
    exact = first_layer == "exact"
    tables = first_layer_tables(model, setup, plan, x1, keys[1]) if exact else {}
    arrays = _Arrays(setup.stds, setup.fixed, tables, keys[2])
    options = (model, setup.leaves, plan.diagonal, num_draws, batch_size)
    nngp, ntk, first_error, tail = _kernels(*options, x1, x2, arrays)
    if x2 is None:
        nngp, ntk = _mirror(nngp), _mirror(ntk)
    return InfiniteKernel(
        nngp=nngp,
        ntk=ntk,
        deviations={p: _times(setup.estimates[p], f) for p, f in plan.factors},
        first_layer_error=first_error,
        integration_error=tail,
        num_nonfinite=jnp.sum(~jnp.isfinite(nngp)) + jnp.sum(~jnp.isfinite(ntk)),
    )


class _Arrays(NamedTuple):
    """Arrays that the compiled kernel takes beside the inputs."""

    stds: dict[str, Any]
    fixed: dict[str, Any]
    tables: dict[str, Any]
    key: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _kernels(model, leaves, diagonal, num_draws, batch_size, x1, x2, arrays):
    """Both kernels, and the errors of the first layer and of integration."""
    first = None
    if arrays.tables:
        first = FirstLayer(arrays.key, num_draws, arrays.tables)

    def block(rows, columns, same):
        """Kernels and errors of some rows and columns; None for the rows again."""
        both = rows if columns is None else jnp.concatenate([rows, columns])
        number = None if columns is None else len(columns)
        moments = Moments(Layout(len(rows), number, diagonal, same), first)
        (nngp, ntk), _ = walk_through(
            model, leaves, moments, both, arrays.stds, arrays.fixed
        )
        errors = [
            jnp.max(jnp.stack([jnp.zeros((), nngp.dtype), *found]))
            for found in (moments.errors, moments.tails)
        ]
        return nngp, ntk, *errors

    if x2 is None and (batch_size is None or batch_size >= len(x1)):
        return block(x1, None, jnp.eye(len(x1), dtype=bool))
    return _in_blocks(block, x1, x2, batch_size)


def _in_blocks(block, x1, x2, batch_size):
    """Kernels by blocks of rows and columns; of one set, the upper triangle alone."""
    columns = (jnp.arange(len(x1)), x1) if x2 is None else (jnp.arange(len(x2)), x2)

    def rows(chunk):
        index, inputs = chunk

        def some(chunk):
            others, columns = chunk

            def compute(columns):
                same = None if x2 is not None else index[:, None] == others[None]
                nngp, ntk, *errors = block(inputs, columns, same)
                spread = [jnp.broadcast_to(e, len(columns)) for e in errors]
                return nngp.T, ntk.T, *spread

            if x2 is not None:
                return compute(columns)
            shapes = jax.eval_shape(compute, columns)
            skip = lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.lax.cond(others[-1] >= index[0], compute, skip, columns)

        nngp, ntk, *errors = map_examples(some, columns, batch_size=batch_size)
        worst = [jnp.broadcast_to(jnp.max(e), len(inputs)) for e in errors]
        return nngp.T, ntk.T, *worst

    indexed = (jnp.arange(len(x1)), x1)
    nngp, ntk, *errors = map_examples(rows, indexed, batch_size=batch_size)
    return nngp, ntk, *map(jnp.max, errors)


@jax.jit  # compiled with what computes it, each side would round in its own way
def _mirror(kernel):
    """A symmetric kernel from its upper triangle."""
    return jnp.triu(kernel) + jnp.triu(kernel, 1).T


def _times(estimate, factor):
    """An estimate times a number."""
    value, error, number = estimate
    return Estimate(value * factor, error * factor, number)


def _check_options(first_layer, num_draws, batch_size):
    """Raise unless the options are among those that exist."""
    check_batch_size(batch_size)
    check_count(num_draws=num_draws, at_least=64)
    if first_layer not in get_args(FirstLayerWeights):
        raise ValueError(
            f"`first_layer` must be one of {get_args(FirstLayerWeights)}, but was "
            f"{first_layer!r}."
        )


def _check_inputs(x1, x2):
    """Raise unless inputs are arrays of examples, of one kind."""
    check_examples(x1=x1)
    if len(np.shape(x1)) < 2:
        raise ValueError(
            "`x1` must have a feature axis after that of examples, but has shape "
            f"{np.shape(x1)}. Add it: `x1[:, None]`."
        )
    if x2 is None:
        return
    check_examples(x2=x2)
    if np.shape(x2)[1:] != np.shape(x1)[1:]:
        raise ValueError(
            "`x2` must have the shape of `x1` after the axis of examples, but has "
            f"shape {np.shape(x2)} against {np.shape(x1)}."
        )
