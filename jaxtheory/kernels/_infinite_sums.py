"""Sums of activations, scaled, and with biases and known offsets added."""

import dataclasses
import math
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


def reciprocal(factor: Known) -> Known:
    """One over a known array.

    Args:
        factor: The array.

    Returns:
        One over it.
    """
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


def multiply(walk: Any, value: Any, factor: Known) -> Any:
    """A value times a known array.

    Args:
        walk: The walk.
        value: A known array, a parameter or an activation.
        factor: The array.

    Returns:
        The product.

    Raises:
        Refusal: The factor differs between entries that must stay alike.
    """
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


def add(walk: Any, first: Any, second: Any, shape: tuple[int, ...]) -> Any:
    """The sum of two values.

    Args:
        walk: The walk.
        first: A known array, a parameter or an activation.
        second: Likewise; one of both is an activation.
        shape: The shape of the sum.

    Returns:
        The sum.

    Raises:
        Refusal: A parameter is added that is no bias.
    """
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
