"""Linear steps of a model: layers with weights, pooling, reshapes, statistics."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.kernels import _infinite_attention as attention
from jaxtheory.kernels import _infinite_rules as rules
from jaxtheory.kernels._infinite_values import (
    Activation,
    Field,
    Known,
    Refusal,
    Weight,
)

_CHANNELS_LAST = (
    "works on activations whose leading axis is not that of examples, or whose last "
    "one is not that of channels. Keep examples first and channels last: a model of "
    "one example under `jax.vmap` (as in Equinox) multiplies the other way round. "
    "Write it for a batch."
)


def _dot(walk, eqn, left, right):
    """``dot_general``: a dense layer on the last axis."""
    (own, theirs), batch = eqn.params["dimension_numbers"]
    if isinstance(left, Activation) and isinstance(right, Activation):
        return attention.score(eqn, left, right)
    if not isinstance(right, Weight):
        if isinstance(left, Weight):
            raise Refusal(_CHANNELS_LAST)
        raise Refusal(
            "multiplies activations by a matrix that does not start at random (all "
            "zero?). Initialise it at random, or pass its deviation in `weight_std`."
        )
    shape = eqn.invars[0].aval.shape
    channels = max(1, len(getattr(left, "split", ())))
    start, end = min(own), len(shape)
    rest = tuple(size for i, size in enumerate(right.sizes) if i not in theirs)
    in_order = list(own) == list(range(start, end)) and list(theirs) == sorted(theirs)
    if any(batch) or not in_order or start == 0 or not rest:
        raise Refusal(_CHANNELS_LAST)
    if isinstance(left, Activation) and start not in (1, end - channels):
        raise Refusal(
            "sums over some positions but not all. Flatten all of them, or none."
        )
    fan_in = math.prod(right.sizes[i] for i in theirs)
    positions = tuple(shape[1:start])
    if isinstance(left, Known):
        x = left.full()
        x = x.reshape(*x.shape[:start], fan_in)
        apply = lambda x, w: jnp.matmul(x, w, precision="highest")
        field = _first(walk, right, x, fan_in, (fan_in,), apply, rules.dense)
    else:
        left = dataclasses.replace(left, flat=left.flat or start == 1, split=())
        record = rules.flattened(walk.moments, left)
        record = rules.shaped(walk.layout, record, positions, fan_in)
        std = walk.consume(right, fan_in, False)
        field = Field(rules.dense(walk.layout, record, std), (right.root,))
    return rules.field_activation(field, positions, rest)


def _first(walk, weight, x, fan_in, draw_shape, apply, rule):
    """The field of a layer whose inputs are known."""
    moments = walk.moments
    std = walk.consume(weight, fan_in, True)
    record = rule(moments.layout, rules.input_record(moments.layout, x), std)

    def draw(key, number):
        shape, entry = (*draw_shape, number), std / fan_in**0.5
        units = moments.first.weights(weight.path, key, shape, record.nngp.dtype)
        real, gaussian = (apply(x.astype(w.dtype), entry * w) for w in units)
        return real, gaussian

    return Field(record, (weight.root,), draw)


def _convolution(walk, eqn, left, right):
    """``conv_general_dilated``: a convolution, channels last."""
    p = eqn.params
    spatial = range(1, len(eqn.invars[0].aval.shape) - 1)
    last = len(spatial) + 1
    numbers = p["dimension_numbers"]
    layouts = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    expected = (0, last, *spatial)
    kernel_spec = (last, last - 1, *range(last - 1))
    if layouts != (expected, kernel_spec, expected) or not isinstance(right, Weight):
        raise Refusal(_CHANNELS_LAST)
    dilated = {*p["lhs_dilation"], *p["rhs_dilation"]} != {1}
    if dilated or p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        raise Refusal(
            "convolves with groups of channels or with dilation. Use "
            "`feature_group_count=1` and no dilation."
        )
    return _convolve(walk, left, right, p["window_strides"], p["padding"])


def _same_convolution(walk, eqn, left, right):
    """The convolution of `jaxtheory.models.CNN`, written there as shifted products."""
    padding = [(size // 2, size // 2) for size in right.sizes[:-2]]
    return _convolve(walk, left, right, (1,) * len(padding), padding)


def _convolve(walk, left, right, strides, padding):
    """A convolution, of known inputs or of activations."""
    *window, channels, width = right.sizes
    window, strides = tuple(window), tuple(strides)
    padding = [tuple(pair) for pair in padding]
    if min(min(pair) for pair in padding) < 0:
        raise Refusal("crops its inputs by negative padding. Slice them instead.")
    layout, moments = walk.layout, walk.moments
    fan_in = math.prod(window) * channels

    def pad(array):
        return jnp.pad(array, [(0, 0), *padding])

    def rule(layout, record, std):
        return rules.convolution(layout, record, std, window, strides)

    if isinstance(left, Known):
        x = jnp.pad(left.full(), [(0, 0), *padding, (0, 0)])

        def apply(x, w):
            letters = "HWDUV"[: len(window)]
            names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
            return jax.lax.conv_general_dilated(
                *(x, w, strides, "VALID"),
                dimension_numbers=names,
                precision="highest",
            )

        field = _first(walk, right, x, fan_in, (*window, channels), apply, rule)
    else:
        if left.flat:
            raise Refusal(_CHANNELS_LAST)
        if any(map(any, padding)):
            left = rules.move(moments, left, f"pad {padding}", pad, selects=True)
        record = rules.shaped(layout, moments.of(left), left.positions, channels)
        std = walk.consume(right, fan_in, False)
        field = Field(rule(layout, record, std), (right.root,))
    record = field.record
    positions = tuple(record.shape1[1:-1])
    return rules.field_activation(field, positions, (width,))


def _reshape(walk, eqn, value, *_):
    """``reshape``, ``squeeze``, and axes of size one that a broadcast adds."""
    shape = eqn.outvars[0].aval.shape
    if isinstance(value, Weight):
        if value.sizes != value.shape and eqn.primitive.name == "reshape":
            raise Refusal("reshapes a parameter that was broadcast.")
        return value._replace(sizes=shape, shape=shape)
    return _reshaped(walk, value, shape)


def _reshaped(walk, value, shape):
    """An activation in another shape: other positions, or flattened."""
    total = walk.layout.total
    if shape == value.shape(total):
        return value
    if shape[0] != total:
        raise Refusal(_CHANNELS_LAST)
    if value.split:
        return _reshaped(walk, dataclasses.replace(value, split=()), shape)
    if value.flat and shape == (total, *value.positions, value.width):
        return _flatten(value, False)
    if not value.flat and shape == (total, value.width * math.prod(value.positions)):
        if math.prod(value.positions) == 1:
            empty = lambda a: a.reshape(a.shape[0])
            return rules.move(walk.moments, value, "squeeze", empty, selects=True)
        return _flatten(value)
    if not value.flat and shape[-1] == value.width:
        new = shape[1:-1]
        change = lambda a: a.reshape(a.shape[0], *new)
        return rules.move(walk.moments, value, f"reshape {new}", change, selects=True)
    raise Refusal(
        f"reshapes activations from {value.shape(total)} to {shape}, which splits or "
        "mixes channels. Flatten all positions, or keep the last axis."
    )


def _flatten(value, flat=True):
    """Positions and channels as one axis, or again as they were."""
    return dataclasses.replace(value, flat=flat)


def _squeeze(walk, eqn, value):
    """``squeeze``, of a parameter or of positions."""
    if isinstance(value, Weight):
        keep = [i for i in range(len(value.shape)) if i not in eqn.params["dimensions"]]
        sizes = tuple(value.sizes[i] for i in keep)
        return value._replace(sizes=sizes, shape=tuple(value.shape[i] for i in keep))
    return _reshaped(walk, value, eqn.outvars[0].aval.shape)


def _broadcast(walk, eqn, value, *_):
    """``broadcast_in_dim``: lazily for parameters; new axes of size one otherwise."""
    shape = eqn.params["shape"]
    if isinstance(value, Weight):
        sizes = [1] * len(shape)
        for own, axis in enumerate(eqn.params["broadcast_dimensions"]):
            sizes[axis] = value.sizes[own]
        return value._replace(sizes=tuple(sizes), shape=shape)
    if math.prod(shape) != math.prod(value.shape(walk.layout.total)):
        raise Refusal("repeats activations along a new axis.")
    return _reshaped(walk, value, shape)


def _transpose(walk, eqn, value):
    """``transpose``: of a parameter, or of positions."""
    order = eqn.params["permutation"]
    if isinstance(value, Weight):
        sizes = tuple(value.sizes[i] for i in order)
        return value._replace(sizes=sizes, shape=tuple(value.shape[i] for i in order))
    last = len(order) - 1
    if value.flat or order[0] != 0 or order[last] != last:
        raise Refusal(_CHANNELS_LAST)
    inner = order[:-1]
    swap = lambda a: jnp.transpose(a, inner)
    return rules.move(walk.moments, value, f"transpose {order}", swap, selects=True)


def _positions(make: Callable[[Any], Any], *, selects: bool):
    """A rule for a linear map of positions; `make` gives it from the equation."""

    def rule(walk, eqn, value, *others):
        if isinstance(value, Weight):
            raise Refusal(
                f"computes with a parameter (`{eqn.primitive.name}`) before it meets "
                "its inputs. Apply the parameter itself, times a constant at most."
            )
        if value.flat:
            raise Refusal(
                f"applies `{eqn.primitive.name}` to flattened activations, where "
                "positions and channels are one axis. Apply it before flattening."
            )
        if not all(isinstance(v, Known) and v.is_zero() for v in others):
            raise Refusal(f"applies `{eqn.primitive.name}` with a value that is not 0.")
        function = make(eqn.params)
        name = f"{eqn.primitive.name} {sorted(map(str, eqn.params.items()))}"
        return rules.move(walk.moments, value, name, function, selects=selects)

    return rule


def _window_sum(p):
    """``reduce_window_sum`` on ``[b, *positions]``."""
    names = ("window_dimensions", "window_strides", "padding")
    options = [p[name] for name in names]
    dilations = [p["base_dilation"], p["window_dilation"]]
    _whole(p["window_dimensions"], 1)
    _whole(p["padding"], (0, 0))
    window, strides, padding, base, inside = (
        tuple(option[:-1]) for option in (*options, *dilations)
    )
    return lambda a: jax.lax.reduce_window(
        a,
        np.zeros((), a.dtype)[()],
        jax.lax.add,
        window,
        strides,
        padding,
        base,
        inside,
    )


def _whole(option, nothing):
    """Raise unless examples and channels are left as they are."""
    if {option[0], option[-1]} != {nothing}:
        raise Refusal(_CHANNELS_LAST)


def _pad(p):
    """``pad`` on ``[b, *positions]``."""
    config = p["padding_config"]
    _whole(config, (0, 0, 0))
    return lambda a: jax.lax.pad(a, np.zeros((), a.dtype)[()], config[:-1])


def _cut(p):
    """``slice`` on ``[b, *positions]``."""
    starts, stops = p["start_indices"], p["limit_indices"]
    strides = p["strides"] or (1,) * len(starts)
    _whole(starts, 0)
    index = tuple(map(slice, starts[1:-1], stops[1:-1], strides[1:-1]))
    return lambda a: a[(slice(None), *index)]


def _slice(walk, eqn, value):
    """``slice`` of positions."""
    if isinstance(value, Activation) and not value.flat:
        stops = eqn.params["limit_indices"]
        if (stops[0], stops[-1]) != (walk.layout.total, value.width):
            raise Refusal(
                "takes some examples or some channels only. Use a layer of its own for "
                "each group of channels."
            )
    return _positions(_cut, selects=True)(walk, eqn, value)


def _reverse(p):
    axes = p["dimensions"]
    return lambda a: jnp.flip(a, axes)


def _sum(walk, eqn, value):
    """``reduce_sum``: over positions, a map of them; over channels, a statistic."""
    axes = tuple(eqn.params["axes"])
    if isinstance(value, Weight):
        raise Refusal("sums a parameter (`reduce_sum`) before it meets its inputs.")
    if 0 in axes:
        raise Refusal(
            "sums over examples (batch statistics), so that the kernel of two examples "
            "would depend on the others. Use a normalisation over channels "
            "(`nn.LayerNorm`)."
        )
    last = len(value.shape(1)) - 1
    if last not in axes:
        add = lambda a: jnp.sum(a, axes)
        return rules.move(walk.moments, value, f"sum {axes}", add)
    average = rules.total_mean(walk.moments, value)
    shape = eqn.outvars[0].aval.shape
    if jnp.ndim(average) == 0:
        return Known(np.zeros((1,) * len(shape)), shape, True)
    average = jnp.broadcast_to(average, (average.shape[0], *value.positions))
    inner = [axis for axis in axes if axis != last]
    if value.flat:
        inner = list(range(1, average.ndim))
    return Known(jnp.sum(average, inner) * value.width, shape, True)


def _gather(walk, eqn, table, indices):
    """``gather`` of rows of an embedding: a layer without bias on one-hot inputs."""
    numbers, width = eqn.params["dimension_numbers"], table.shape[-1]
    last = len(eqn.outvars[0].aval.shape) - 1
    rows = isinstance(table, Weight) and isinstance(indices, Known)
    if not rows or len(table.sizes) != 2 or table.sizes != table.shape:
        raise Refusal("picks some activations or some entries of a parameter.")
    whole = eqn.params["slice_sizes"] == (1, width) and numbers.offset_dims == (last,)
    if not whole or numbers.start_index_map != (0,):
        raise Refusal("picks some entries of a parameter. Pick whole rows of it.")
    if not indices.by_example:
        raise Refusal("embeds what is the same for all examples. Embed the inputs.")
    number = table.sizes[0]
    x = jax.nn.one_hot(indices.full()[..., 0], number)
    apply = lambda x, w: jnp.matmul(x, w, precision="highest")
    field = _first(walk, table, x, number, (number,), apply, rules.dense)
    return rules.field_activation(field, tuple(x.shape[1:-1]), (width,))


RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "gather": _gather,
    "pad": _positions(_pad, selects=True),
    "reduce_sum": _sum,
    "reduce_window_sum": _positions(_window_sum, selects=False),
    "reshape": _reshape,
    "rev": _positions(_reverse, selects=True),
    "same_convolution": _same_convolution,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
