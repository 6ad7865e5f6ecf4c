"""Elementwise steps of a model: sums, scalings, biases, activation functions."""

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxtheory.kernels._infinite_rules import field_activation, settle
from jaxtheory.kernels._infinite_values import (
    Activation,
    Base,
    Field,
    Known,
    Opaque,
    Refusal,
    Term,
    Weight,
    scaled,
)

_MONOTONE = ("exp", "exp2", "expm1", "log", "log1p", "logistic")
_POWERS = ("cbrt", "integer_pow", "pow", "rsqrt", "sqrt", "square")
_CIRCULAR = ("sin", "cos", "tan", "asin", "acos", "atan", "atan2")
_HYPERBOLIC = ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh")
_SPECIAL = (
    *("erf", "erf_inv", "erfc"),
    "bessel_i0e",
    "bessel_i1e",
    "digamma",
    "lgamma",
)
_PIECEWISE = ("abs", "ceil", "clamp", "floor", "max", "min", "rem", "round", "sign")
_LOGIC = ("and", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "xor")
_OTHER = ("convert_element_type", "copy", "reduce_precision", "select_n")
_ARITHMETIC = ("add", "add_any", "div", "mul", "neg", "sub", "stop_gradient")
ELEMENTWISE = frozenset().union(
    *(_ARITHMETIC, _MONOTONE, _POWERS, _CIRCULAR, _HYPERBOLIC),
    *(_SPECIAL, _PIECEWISE, _LOGIC, _OTHER),
)


def elementwise(walk: Any, eqn: Any, operands: list[Any]) -> Any:
    """The value of an elementwise equation.

    Args:
        walk: The walk.
        eqn: The equation.
        operands: Known arrays, parameters and activations.

    Returns:
        What it is.

    Raises:
        Refusal: It has no kernel rule.
    """
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if all(isinstance(v, Known) for v in operands):
        return _known(eqn, operands, shape)
    if _passes(eqn):
        return operands[0]
    if name == "stop_gradient":
        raise Refusal(
            "stops a gradient, so that its tangent kernel is not that of its values. "
            "Compute the kernel of the model without."
        )
    if name == "neg":
        return _scale(walk, operands[0], Known(np.asarray(-1.0), ()))
    if name in ("add", "add_any", "sub"):
        first, second = operands
        if name == "sub":
            second = _scale(walk, second, Known(np.asarray(-1.0), ()))
        return _add(walk, first, second, shape)
    if name in ("mul", "div") and isinstance(operands[1], Known):
        value, factor = operands
        if name == "div":
            factor = _reciprocal(factor)
        return _scale(walk, value, factor)
    if name == "mul" and isinstance(operands[0], Known):
        return _scale(walk, operands[1], operands[0])
    if any(isinstance(v, Weight) for v in operands):
        raise Refusal(
            f"computes with a random parameter elementwise (`{name}`). Constants at "
            "initialisation (a scale of ones) and biases that are added have a rule."
        )
    return _function(walk, eqn, operands)


def _passes(eqn):
    """Whether the equation does nothing to a random value."""
    name = eqn.primitive.name
    if name == "convert_element_type":
        types = (eqn.invars[0].aval.dtype, eqn.params["new_dtype"])
        return all(jnp.issubdtype(dtype, jnp.floating) for dtype in types)
    return name in ("copy", "reduce_precision")


def _known(eqn, operands, shape):
    """An elementwise equation of known arrays, broadcast no further than they are."""
    concrete = all(v.is_concrete() for v in operands)
    evaluate = jax.ensure_compile_time_eval if concrete else contextlib.nullcontext
    with evaluate():
        array = _bind(eqn, [v.array for v in operands])
    by_example = any(v.by_example for v in operands)
    return Known(np.asarray(array) if concrete else array, tuple(shape), by_example)


def _bind(eqn, arrays):
    """An elementwise primitive, on arrays that broadcast."""
    arrays = [jnp.asarray(a) for a in arrays]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = jnp.result_type(*floats) if floats else None

    def fit(a):
        a = a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
        rank = (1,) * (len(shape) - a.ndim)
        return jnp.broadcast_to(a.reshape(rank + a.shape), shape)

    params = dict(eqn.params)
    if eqn.primitive.name == "convert_element_type":
        new = params["new_dtype"]
        if jnp.issubdtype(new, jnp.floating):
            # As precise as the kernel, also where the model computes in less.
            return arrays[0].astype(dtype or jax.dtypes.canonicalize_dtype(float))
        return arrays[0].astype(new)
    return eqn.primitive.bind(*map(fit, arrays), **params)


def _reciprocal(factor):
    """One over a known array."""
    return Known(1 / _floating(factor.array), factor.shape)


def _floating(array):
    """An array of floating-point numbers, double where it is known already."""
    return array * 1.0 if isinstance(array, Tracer) else np.asarray(array, float)


def inner(activation: Activation, array: Any) -> Any:
    """A known array that meets an activation, as ``[total or 1, *positions, c]``.

    Args:
        activation: The activation.
        array: The array, of the activation's rank, or a number.

    Returns:
        The array, of the rank that the activation has when it is not flat.

    Raises:
        Refusal: It differs between features that have been flattened.
    """
    if np.ndim(array) == 0:
        return array
    if split := len(activation.split):
        channels = array.shape[array.ndim - split :]
        if math.prod(channels) != 1:
            raise Refusal(
                "combines heads with an array that differs between their channels. "
                "Use one number for all of them."
            )
        return array.reshape(*array.shape[: array.ndim - split], 1)
    if not activation.flat:
        return array
    if array.shape[-1] != 1 and activation.positions:
        raise Refusal(
            "combines flattened activations with an array that differs between their "
            "features. Combine them before they are flattened."
        )
    ones = (1,) * len(activation.positions)
    return array.reshape(array.shape[0], *ones, array.shape[-1])


def _scale(walk, value, factor):
    """A value times a known array."""
    if isinstance(value, Known):
        return Known(value.array * factor.array, value.shape)
    if isinstance(value, Weight):
        if np.size(factor.array) != 1 or not factor.is_concrete():
            raise Refusal(
                "multiplies a parameter by an array. A number has a rule: entries "
                "stay independent draws of one distribution."
            )
        number = float(np.ravel(np.asarray(factor.array))[0])
        return value._replace(factor=value.factor * number)
    array = inner(value, factor.array)
    if np.size(array) == 1 and factor.is_concrete():
        scale = float(np.ravel(np.asarray(array))[0])
    elif np.ndim(array) == 0:
        scale = array
    elif array.shape[-1] != 1:
        raise Refusal(
            "multiplies channels by different known factors, so that they are no "
            "longer equally distributed. Use one factor for all channels."
        )
    else:
        scale = jnp.asarray(array)[..., 0]
    full = jnp.asarray(scale)[..., None] if np.ndim(scale) else scale
    offset = value.offset
    if offset is not None:
        offset = Known(offset.array * full, offset.shape)
    return Activation(
        tuple(_scale_term(t, scale) for t in value.terms),
        tuple(
            Opaque(
                scaled(walk.moments.layout, o.record, scale), o.mean * scale, o.roots
            )
            for o in value.opaque
        ),
        offset,
        value.positions,
        value.width,
        value.flat,
        value.split,
    )


def _scale_term(term, scale):
    """A term times a coefficient."""
    scale = term.scale * scale
    if term.function is None and np.ndim(scale):
        # What varies by example belongs to the base: functions of it are then the
        # same for all examples, and may have closed forms.
        parts = tuple((field, factor * scale) for field, factor in term.base.parts)
        return Term(Base(parts))
    return Term(term.base, scale, term.function)


def _add(walk, first, second, shape):
    """The sum of two values."""
    channels = max(len(getattr(v, "split", ())) or 1 for v in (first, second))
    first, second = (
        _bias(walk, v, shape, channels) if isinstance(v, Weight) else v
        for v in (first, second)
    )
    if isinstance(first, Known):
        first, second = second, first
    if isinstance(second, Known):
        return _offset(first, second)
    if first.flat != second.flat:
        first, second = (settle(walk.moments, v) for v in (first, second))
    total = Activation(
        _merge((*first.terms, *second.terms)),
        (*first.opaque, *second.opaque),
        first.offset,
        first.positions,
        first.width,
        first.flat,
        first.split,
    )
    if (offset := second.offset) is None:
        return total
    return _plus(total, offset)


def _offset(activation, array):
    """An activation plus a known array."""
    if array.is_zero():
        return activation
    return _plus(activation, Known(inner(activation, array.array), array.shape))


def _plus(activation, offset):
    """An activation plus an offset that has its inner rank, or none."""
    rank = len(activation.positions) + 2
    array = jnp.asarray(offset.array)
    array = array.reshape((1,) * rank) if array.ndim == 0 else array
    if activation.offset is not None:
        array = array + activation.offset.array
    return dataclasses.replace(activation, offset=Known(array, offset.shape))


def _merge(terms):
    """Terms of one base made one, and all linear terms made one."""
    by_base: dict[Base, list[Term]] = {}
    for term in terms:
        by_base.setdefault(term.base, []).append(term)
    merged, linear = [], []
    for base, group in by_base.items():
        if len(group) == 1:
            term = group[0]
        elif all(t.function is None for t in group):
            term = Term(base, sum(t.scale for t in group))
        else:
            term = Term(base, 1.0, lambda z, group=group: sum(t.of(z) for t in group))
        (linear if term.function is None else merged).append(term)
    if len(linear) > 1:
        parts: dict[tuple[str, ...], Any] = {}
        for term in linear:
            for field, scale in term.base.parts:
                before = parts.get(field.key, (field, 0.0))[1]
                parts[field.key] = (field, before + scale * term.scale)
        linear = [Term(Base(tuple(parts.values())))]
    return (*merged, *linear)


def _bias(walk, weight, shape, channels):
    """A parameter that is added: a Gaussian field, the same for all examples."""
    sizes = (1,) * (len(shape) - len(weight.sizes)) + weight.sizes
    last = len(shape) - channels
    if sizes[0] != 1 or sizes[last:] != tuple(shape[last:]):
        raise Refusal(
            f"adds a parameter of sizes {sizes} to activations of shape {shape}. It "
            "must have one entry for each channel, and be the same for all examples."
        )
    std = walk.consume(weight, 1, False)
    layout, first = walk.moments.layout, walk.moments.first
    positions = tuple(shape[1:last])
    blocks = {}
    dtype = jax.dtypes.canonicalize_dtype(float)
    columns = layout.rows if layout.columns is None else layout.columns
    for block, batch in {
        "nngp": (layout.rows, columns),
        "ntk": (layout.rows, columns),
        "cov1": (layout.rows,),
        "cov2": (columns,),
    }.items():
        block_shape, array = list(batch), jnp.ones((1,) * len(batch), dtype)
        for own, size in zip(sizes[1:last], positions, strict=True):
            same = [size] if layout.diagonal else [size, size]
            block_shape += same
            kind = jnp.ones(same, dtype)
            if own > 1 and not layout.diagonal:
                kind = jnp.eye(size, dtype=dtype)
            array = array[(..., *([None] * len(same)))] * kind.reshape(
                (1,) * array.ndim + tuple(same)
            )
        blocks[block] = jnp.broadcast_to(array * std**2, block_shape)
    if layout.columns is None:
        blocks["cov2"] = None
    record = walk.record.replace(
        is_gaussian=True, diagonal_spatial=layout.diagonal, **blocks
    )

    def draw(key, number):
        shape = (1, *sizes[1:last], number)
        real, gaussian = first.weights(weight.path, key, shape, dtype)
        return std * real, std * gaussian

    field = Field(record, (weight.root,), draw)
    return field_activation(field, positions, tuple(shape[last:]))


def _function(walk, eqn, operands):
    """An elementwise function of one base."""
    random = [v for v in operands if isinstance(v, Activation)]
    example = random[0]
    bases = {term.base for v in random for term in v.terms}
    if any(v.opaque for v in random):
        raise Refusal(
            f"applies a function (`{eqn.primitive.name}`) to pooled or flattened sums "
            "of activations, whose distribution is not Gaussian. Put a layer with "
            "weights between them."
        )
    if len(bases) != 1:
        raise Refusal(
            f"applies a function (`{eqn.primitive.name}`) to several independent "
            "activations at once, not to a sum of outputs of layers. Put it on each "
            "before they meet, or (a residual sum after its activation) move the "
            "activation into the branch."
        )
    offsets = [v.offset for v in random if v.offset is not None]
    if any(o.array.shape[-1] != 1 for o in offsets):
        raise Refusal(
            "applies a function to the sum of activations and of known features (the "
            "inputs themselves, fixed embeddings), which differ between channels. Pass "
            "the features through a layer with weights before they are added."
        )
    (base,) = bases

    def function(z):
        arrays = []
        for v in operands:
            if isinstance(v, Known):
                arrays.append(inner(example, v.array))
                continue
            value = functools.reduce(operator.add, [t.of(z) for t in v.terms])
            arrays.append(value if v.offset is None else value + v.offset.array)
        return _bind(eqn, arrays)

    for v in operands:
        if isinstance(v, Known) and np.ndim(v.array) and v.array.shape[-1] != 1:
            raise Refusal(
                f"applies a function (`{eqn.primitive.name}`) to activations and an "
                "array that differs between channels."
            )
    return Activation(
        (Term(base, 1.0, _once(function)),),
        (),
        None,
        example.positions,
        example.width,
        example.flat,
        example.split,
    )


def _once(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, evaluated once where the same argument comes again.

    A step that uses its input twice would otherwise double the work of all before it.
    """
    last: list[Any] = [None, None]

    def remembered(z):
        if last[0] is not z:
            last[:] = z, function(z)
        return last[1]

    return remembered
