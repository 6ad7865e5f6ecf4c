"""Kernel rules of a network's layers, most of them neural-tangents' own."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtheory.kernels._infinite_moments import Moments
from jaxtheory.kernels._infinite_values import (
    Activation,
    Base,
    Field,
    Layout,
    NeedsPositions,
    Opaque,
    Term,
    scaled,
)
from jaxtheory.kernels._neural_tangents import neural_tangents


def field_activation(
    field: Field, positions: tuple[int, ...], channels: tuple[int, ...]
) -> Activation:
    """The activation that is one field; several channel axes are heads."""
    term = Term(Base(((field, 1.0),)))
    split = channels if len(channels) > 1 else ()
    width = math.prod(channels)
    return Activation((term,), (), None, positions, width, split=split)


def shaped(layout: Layout, record: Any, positions: tuple[int, ...], width: int):
    """A record that says of which shape the activations are."""
    columns = layout.rows if layout.columns is None else layout.columns
    shapes = [(n, *positions, width) for n in (layout.rows, columns)]
    axes = {"batch_axis": 0, "channel_axis": len(positions) + 1}
    return record.replace(shape1=shapes[0], shape2=shapes[1], **axes)


def input_record(layout: Layout, x: Any) -> Any:
    """The record of known inputs ``[total, *positions, d]``: mean products over d."""
    x = x.astype(jax.dtypes.canonicalize_dtype(float))
    rows, columns = layout.split(x)
    identity = neural_tangents().stax.Identity()[2]
    record = identity(
        rows,
        None if layout.columns is None else columns,
        diagonal_batch=True,
        diagonal_spatial=layout.diagonal,
    )
    return record.replace(ntk=jnp.zeros_like(record.nngp))


def dense(layout: Layout, record: Any, std: Any) -> Any:
    """A dense layer without bias; `std` is that of weights times ``sqrt(fan_in)``."""
    return neural_tangents().stax.Dense(1, std, None)[2](record)


def convolution(
    layout: Layout,
    record: Any,
    std: Any,
    window: tuple[int, ...],
    strides: tuple[int, ...],
) -> Any:
    """A convolution without bias, on padded positions."""
    letters = "HWDUV"[: len(window)]
    kernel = neural_tangents().stax.Conv(
        1,
        window,
        strides,
        padding="VALID",
        W_std=std,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )[2]
    record = kernel(record)
    return record.reverse() if record.is_reversed else record


def flattened(moments: Moments, activation: Activation) -> Any:
    """The record of an activation whose positions count as channels, if it is flat."""
    record = moments.of(activation)
    if not activation.flat or not activation.positions:
        return record
    layout = moments.layout
    record = shaped(layout, record, activation.positions, activation.width)
    return neural_tangents().stax.Flatten()[2](record)


def settle(moments: Moments, activation: Activation) -> Activation:
    """A flat activation as moments alone, without positions."""
    if not activation.flat:
        return activation
    average = jnp.asarray(total_mean(moments, activation))
    if average.ndim > 1:
        average = jnp.mean(average, tuple(range(1, average.ndim)))
    width = math.prod(activation.positions) * activation.width
    term = Opaque(flattened(moments, activation), average, activation.roots())
    return Activation((), (term,), None, (), width)


def total_mean(moments: Moments, activation: Activation) -> Any:
    """Mean over channels ``[total or 1, *positions]``, or the number 0."""
    parts = [moments.mean(term) for term in activation.terms]
    parts += [term.mean for term in activation.opaque]
    if activation.offset is not None:
        parts.append(jnp.mean(jnp.asarray(activation.offset.array), -1))
    parts = [part for part in parts if jnp.ndim(part) or part != 0]
    return sum(parts[1:], start=parts[0]) if parts else 0.0


def move(
    moments: Moments,
    activation: Activation,
    name: str,
    function: Callable[[Any], Any],
    *,
    selects: bool = False,
) -> Activation:
    """Apply a linear map of positions, the same in every channel.

    Args:
        moments: Integrals over units.
        activation: The activation, not flat.
        name: What tells this map from others.
        function: The map, on arrays ``[b, *positions]``.
        selects: Whether it picks positions (or zero) rather than adds them up.

    Returns:
        The activation at the new positions.
    """
    layout = moments.layout
    ones = jax.eval_shape(
        function, jax.ShapeDtypeStruct((1, *activation.positions), jnp.float32)
    )
    positions = ones.shape[1:]
    apply = lambda record: _move_record(layout, record, function, selects)
    if activation.is_linear():
        (term,) = activation.terms
        parts = [_fixed(layout, f, c, term.scale) for f, c in term.base.parts]
        base = Base(tuple((_moved(f, name, apply, function), c) for f, c in parts))
        return Activation((Term(base),), (), None, positions, activation.width)
    average = total_mean(moments, activation)
    if jnp.ndim(average):
        shape = (average.shape[0], *activation.positions)
        average = function(jnp.broadcast_to(average, shape))
    moved = Opaque(apply(moments.of(activation)), average, activation.roots())
    return Activation((), (moved,), None, positions, activation.width)


def _fixed(layout, field, coefficient, scale):
    """A field and a number; coefficients that vary by position go into the field."""
    coefficient = coefficient * scale
    if jnp.ndim(coefficient) == 0:
        return field, coefficient
    record = scaled(layout, field.record, coefficient)
    times = lambda unit: unit * jnp.asarray(coefficient)[..., None]
    # A key of its own: what else the layer's outputs do is not followed.
    key = (*field.key, f"scaled {id(coefficient)}")
    return Field(record, key, _drawn(field, times)), 1.0


def _moved(field, name, apply, function):
    """A field at other positions."""

    def move_units(units):
        shape = (units.shape[0], *field_positions(field), units.shape[-1])
        return jax.vmap(function, -1, -1)(jnp.broadcast_to(units, shape))

    return Field(apply(field.record), (*field.key, name), _drawn(field, move_units))


def _drawn(field, change):
    """How the units of a changed field are drawn."""
    draw = field.draw
    if draw is None:
        return None
    return lambda key, number: tuple(map(change, draw(key, number)))


def field_positions(field: Field) -> tuple[int, ...]:
    """Sizes of the axes between examples and channels."""
    record = field.record
    step = 1 if record.diagonal_spatial else 2
    return tuple(record.cov1.shape[1::step])


def _move_record(layout, record, function, selects):
    """Apply a map of positions to both sides of each covariance."""
    if layout.diagonal and not selects:
        raise NeedsPositions

    def last(array, number):
        """Apply the map to the last axes."""
        lead = array.shape[: array.ndim - number]
        moved = function(array.reshape(-1, *array.shape[array.ndim - number :]))
        return moved.reshape(*lead, *moved.shape[1:])

    def both(array, batch):
        if layout.diagonal:
            return last(array, array.ndim - batch)
        old = (array.ndim - batch) // 2
        lead, left = range(batch), [batch + 2 * s for s in range(old)]
        array = jnp.transpose(array, [*lead, *(axis + 1 for axis in left), *left])
        array = last(array, old)
        new = array.ndim - batch - old
        left = range(batch + old, array.ndim)
        array = jnp.transpose(array, [*lead, *left, *range(batch, batch + old)])
        array = last(array, old)
        pairs = [axis for s in range(batch, batch + new) for axis in (s, s + new)]
        return jnp.transpose(array, [*lead, *pairs])

    blocks = {
        block: both(getattr(record, block), 2 if block in ("nngp", "ntk") else 1)
        for block in (*layout.blocks, "ntk")
    }
    return record.replace(**blocks)
