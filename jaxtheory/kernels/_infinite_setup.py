"""What the initialisers of a model do, which its kernels have to know."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtheory._types import Estimate
from jaxtheory.kernels._infinite_model import Model
from jaxtheory.kernels._initial import (
    Initial,
    given_deviations,
    initial,
    is_weight,
    parameters,
    quantiles,
)


class Leaf(NamedTuple):
    """What is known of a parameter while the model is traced.

    Attributes:
        path: Its key path.
        constant: The number that all its entries start at, or None.
        fixed: Whether it is used as it starts, the same under all keys.
        given: Whether its deviation was given.
    """

    path: str
    constant: float | None
    fixed: bool
    given: bool


class Setup(NamedTuple):
    """What the initialisers do.

    Attributes:
        leaves: The parameters, in the order of the pytree.
        stds: Deviations of those that are random, by key path.
        fixed: Values of those that start at constant arrays.
        estimates: Deviations with standard errors.
        initial: More of those whose initialisers were drawn from.
    """

    leaves: tuple[Leaf, ...]
    stds: dict[str, Any]
    fixed: dict[str, Any]
    estimates: dict[str, Estimate]
    initial: dict[str, Initial]


def precision() -> str:
    """The widest floating-point type, which kernels have."""
    return jax.dtypes.canonicalize_dtype(float).name


def set_up(model: Model, x: Any, key: Any, weight_std: Any, bias_std: Any) -> Setup:
    """Find out what each parameter starts as, with the caller's word for some.

    Args:
        model: The model.
        x: Inputs ``[n, ...]``; only their shape and type matter.
        key: A typed key.
        weight_std: As `infinite_width` takes it.
        bias_std: Likewise.

    Returns:
        What the initialisers do.

    Raises:
        ValueError: A deviation is none or names no parameter, or the model has batch
            statistics, or draws parameters of a mean other than zero.
    """
    shapes = parameters(model.variables(x.shape[1:], x.dtype))
    _check_variables(shapes)
    sizes = {path: leaf.shape for path, leaf in shapes.items()}
    given = given_deviations(weight_std, bias_std, sizes)
    drawn = [path for path in shapes if path not in given]
    with jax.ensure_compile_time_eval():  # also where the caller is being compiled
        example = jnp.zeros((1, *x.shape[1:]), x.dtype)
        found = initial(model.init, example, key, drawn)
        leaves, estimates = [], {}
        for path in shapes:
            if path in given:
                # A bias of deviation zero starts at zero.
                constant = None if given[path] else 0.0
                leaves.append(Leaf(path, constant, not given[path], True))
                estimates[path] = Estimate(jnp.asarray(given[path]), jnp.zeros(()), 0)
            else:
                one = found[path]
                _check_start(path, one)
                leaves.append(Leaf(path, one.constant, one.fixed, False))
                estimates[path] = one.std
        random = [leaf.path for leaf in leaves if not leaf.fixed]
        stds = {p: jnp.asarray(estimates[p].value, precision()) for p in random}
        fixed = [leaf.path for leaf in leaves if leaf.fixed and leaf.constant is None]
        values = parameters(jax.jit(model.init)(key, example)) if fixed else {}
    arrays = {path: values[path] for path in fixed}
    return Setup(tuple(leaves), stds, arrays, estimates, found)


def _check_start(path, one):
    """Raise if a matrix of weights starts at a constant."""
    if one.constant is not None and is_weight(path, one.shape):
        raise ValueError(
            f"`module` has no infinite-width kernel: {path!r} starts at the constant "
            f"{one.constant}, so that at first nothing depends on its inputs. "
            "Initialise it at random, or pass its deviation in `weight_std`."
        )


def _check_variables(shapes):
    """Raise if the model normalises by statistics of a batch."""
    stats = [path for path in shapes if path.startswith("batch_stats/")]
    if stats:
        layers = sorted({p.split("/", 1)[1].rpartition("/")[0] for p in stats})
        raise ValueError(
            "`module` has no infinite-width kernel: BatchNorm normalises each example "
            "by statistics of others, so that the kernel of two examples would depend "
            f"on the whole batch (layers {layers}). Use a normalisation over channels "
            "(`nn.LayerNorm`, `nn.RMSNorm`), or none."
        )


def first_layer_tables(
    model: Model, setup: Setup, first: Sequence[str], x: Any, key: Any
) -> dict[str, Any]:
    """Quantiles of the first layer's parameters that are not Gaussian.

    Args:
        model: The model.
        setup: What its initialisers do.
        first: The parameters that meet the inputs.
        x: Inputs ``[n, ...]``; only their shape and type matter.
        key: A typed key.

    Returns:
        For each of them, by key path, its quantiles at equal steps.

    Raises:
        ValueError: Its entries are not independent, or not symmetric about zero.
    """
    given = [path for path in first if path not in setup.initial]
    tables = {}
    with jax.ensure_compile_time_eval():  # also where the caller is being compiled
        example = jnp.zeros((1, *x.shape[1:]), x.dtype)
        found = setup.initial | initial(model.init, example, key, given)
        for path in first:
            one = found[path]
            if one.fixed or one.is_gaussian:
                continue
            size = math.prod(one.shape)
            key = jax.random.fold_in(key, len(tables))
            table = quantiles(model.init, path, size, example, key)
            skewed = float(jnp.std(table + table[::-1])) > 0.05
            if skewed or not one.is_independent:
                what = "skewed" if skewed else "not independent of each other"
                raise ValueError(
                    f"`module` initialises {path!r}, in the first layer, with entries "
                    f'that are {what}, for which `first_layer="exact"` has no draws. '
                    'Pass `first_layer="gaussian"`.'
                )
            tables[path] = table.astype(precision())
    return tables
