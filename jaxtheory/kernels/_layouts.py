"""How products arrange their operands, brought to one canonical form.

A product that is linear in a parameter ``w[b, c, f]`` is, with positions ``t`` (tokens,
pixels) and blocks ``b`` (groups of a convolution, slices of a stacked layer),

    y[b, t, f] = sum_c a[b, t, c] w[b, c, f],

so the gradient of output ``k`` with respect to ``w`` is ``sum_t a[b, t, c] g[k, b, t,
f]`` with the cotangent ``g[k]`` of ``y``. A bias has ``a = 1``, a scale has as many
blocks as entries and ``c = f = 1``. A `Layout` brings ``a``, ``g`` and the
indices of ``w`` to these axes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxtheory.kernels._program import shape_of


class Layout(NamedTuple):
    """Where a product's operands have which axes.

    Attributes:
        input_operand: Which operand of the equation is the input ``a``.
        input: Arranges it as ``[b, t, c]``: the operand of a product, the patches of a
            convolution; for a lookup ``[b, t]``, the number of the row at each position
            (-1 for none).
        output: Arranges the product's output as ``[b, t, f]``.
        weight: Arranges the parameter (or indices of it) as ``[b, c, f]``.
        is_lookup: Whether the product picks rows of a table.
    """

    input_operand: int
    input: "Arrangement"
    output: "Arrangement"
    weight: "Arrangement"
    is_lookup: bool = False


def _as_it_is(array):
    return array


class Arrangement(NamedTuple):
    """How to gather the axes of an array in groups, one axis a group.

    Attributes:
        groups: The axes of each group, after `prepare`.
        prepare: What is done to the array first.
    """

    groups: tuple[tuple[int, ...], ...]
    prepare: Callable[[Any], Any] = _as_it_is

    def __call__(self, array: Any, loops: Sequence[bool] = ()) -> Any:
        """Arrange an array.

        Args:
            array: The array, with an axis in front for each loop.
            loops: For each loop, whether it goes to the front of group 0 (blocks) or of
                group 1 (positions).

        Returns:
            The array, with one axis for each group.
        """
        depth, prepare = len(loops), self.prepare
        if prepare is not _as_it_is:
            for _ in loops:
                prepare = jax.vmap(prepare)
            array = prepare(array)
        groups = [[axis + depth for axis in group] for group in self.groups]
        for axis, is_block in reversed(list(enumerate(loops))):
            groups[0 if is_block else 1].insert(0, axis)
        sizes = [math.prod(array.shape[i] for i in group) for group in groups]
        order = list(itertools.chain(*groups))
        # Methods, so that NumPy arranges what is its own: indices.
        return array.transpose(order).reshape(sizes)


def _dot(eqn: core.JaxprEqn, operand: int) -> Layout | None:
    """A matrix product with blocks (`jax.lax.dot_general`)."""
    contracted, batched = eqn.params["dimension_numbers"]
    other = 1 - operand
    # In the order of the parameter's axes, so that two products of one parameter agree.
    pairs = sorted(zip(contracted[operand], contracted[other], strict=True))
    block_order = sorted(
        range(len(batched[operand])), key=lambda i: batched[operand][i]
    )
    weight_c, input_c = _unzip(pairs)
    weight_b = tuple(batched[operand][i] for i in block_order)
    input_b = tuple(batched[other][i] for i in block_order)
    weight_f = _rest(len(shape_of(eqn.invars[operand])), weight_b, weight_c)
    input_t = _rest(len(shape_of(eqn.invars[other])), input_b, input_c)
    # Axes of the output: blocks, those of the left operand, those of the right.
    start = len(block_order)
    left, right = (weight_f, input_t) if operand == 0 else (input_t, weight_f)
    left_out = tuple(range(start, start + len(left)))
    right_out = tuple(range(start + len(left), start + len(left) + len(right)))
    free, positions = (left_out, right_out) if operand == 0 else (right_out, left_out)
    return Layout(
        other,
        Arrangement((input_b, input_t, input_c)),
        Arrangement((tuple(block_order), positions, free)),
        Arrangement((weight_b, weight_c, weight_f)),
    )


def _conv(eqn: core.JaxprEqn, operand: int) -> Layout | None:
    """A convolution, as the matrix product of its patches."""
    params = eqn.params
    if operand != 1 or params["batch_group_count"] != 1:
        return None
    lhs, rhs, out = params["dimension_numbers"]
    groups = params["feature_group_count"]
    shape = shape_of(eqn.invars[1])
    window = [shape[i] for i in rhs[2:]]
    out_spatial = [shape_of(eqn.outvars[0])[i] for i in out[2:]]

    def patches(a):
        """Patches ``[n, *out_spatial, groups, channels, *window]``."""
        a = jnp.transpose(a, (lhs[0], *lhs[2:], lhs[1]))
        a = _patches(a, window, out_spatial, params)
        return a.reshape(*a.shape[: len(window) + 1], groups, -1, *window)

    def by_group(channels):
        """Output channels, moved to the end, as groups and channels of each."""
        return lambda a: _split_last(_to_the_end(a, channels), groups)

    ndim, spatial = len(rhs), len(window)
    positions = tuple(range(spatial + 1))
    seen = tuple(range(spatial + 2, 2 * spatial + 3))
    rest = _behind(rhs, rhs[0])
    return Layout(
        0,
        Arrangement(((spatial + 1,), positions, seen), patches),
        Arrangement(((ndim - 1,), _behind(out, out[1]), (ndim,)), by_group(out[1])),
        Arrangement(((ndim - 1,), rest, (ndim,)), by_group(rhs[0])),
    )


def _behind(spec, moved):
    """Where a convolution's axes are once `moved` has gone to the end, in its order."""
    return tuple(axis - (axis > moved) for axis in spec if axis != moved)


def _to_the_end(a, axis):
    return a.transpose(*(i for i in range(a.ndim) if i != axis), axis)


def _split_last(a, groups):
    """The last axis as `groups` of equal size."""
    return a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)


def _patches(a, window, out_spatial, params):
    """What each output position of a convolution sees, ``[n, *out, d, *window]``.

    Slices of the padded input, one for each place in the window: a convolution with an
    identity would compute the same with a matrix product for each.
    """
    padding = zip(params["padding"], params["lhs_dilation"], strict=True)
    config = [(0, 0, 0), *((low, high, by - 1) for (low, high), by in padding)]
    a = jax.lax.pad(a, jnp.zeros((), a.dtype), [*config, (0, 0, 0)])
    strides = params["window_strides"]
    slices = []
    for place in itertools.product(*map(range, window)):
        start = [i * by for i, by in zip(place, params["rhs_dilation"], strict=True)]
        limit = [
            s + (size - 1) * by + 1
            for s, size, by in zip(start, out_spatial, strides, strict=True)
        ]
        first, last = (0, *start, 0), (a.shape[0], *limit, a.shape[-1])
        slices.append(jax.lax.slice(a, first, last, (1, *strides, 1)))
    return jnp.stack(slices, axis=-1)


def _gather(eqn: core.JaxprEqn, operand: int) -> Layout | None:
    """A table lookup: whole rows of a parameter along one of its axes."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    table = shape_of(eqn.invars[0])
    axes = numbers.start_index_map
    if operand != 0 or len(axes) != 1 or numbers.collapsed_slice_dims != axes:
        return None
    free = tuple(i for i in range(len(table)) if i != axes[0])
    if numbers.operand_batching_dims or any(sizes[i] != table[i] for i in free):
        return None

    def rows(indices):
        """The number of the row looked up at each position, -1 for none."""
        return jax.lax.gather(
            jnp.arange(table[axes[0]]),
            indices,
            jax.lax.GatherDimensionNumbers((), (0,), (0,)),
            (1,),
            mode=eqn.params["mode"],
            fill_value=-1,
        )

    offsets = numbers.offset_dims
    positions = _rest(len(shape_of(eqn.outvars[0])), offsets)
    return Layout(
        1,
        Arrangement(((), tuple(range(len(positions)))), rows),
        Arrangement(((), positions, offsets)),
        Arrangement(((), axes, free)),
        is_lookup=True,
    )


def _add(eqn: core.JaxprEqn, operand: int, repeated: tuple[int, ...]) -> Layout | None:
    """A parameter added entry by entry: the product of an input that is one."""
    out: Any = eqn.outvars[0].aval
    repeated, free, weight = _elementwise(eqn, operand, repeated)
    size = math.prod(out.shape[i] for i in repeated)
    ones = lambda _: jnp.ones((1, size, 1), out.dtype)
    return Layout(
        1 - operand,
        Arrangement(((0,), (1,), (2,)), ones),
        Arrangement(((), repeated, free)),
        Arrangement(((), (), tuple(range(out.ndim))), weight),
    )


def _mul(eqn: core.JaxprEqn, operand: int, repeated: tuple[int, ...]) -> Layout | None:
    """A parameter multiplied entry by entry: a block for each entry."""
    shape = shape_of(eqn.outvars[0])
    repeated, free, weight = _elementwise(eqn, operand, repeated)
    return Layout(
        1 - operand,
        Arrangement((free, repeated, ()), lambda a: jnp.broadcast_to(a, shape)),
        Arrangement((free, repeated, ())),
        Arrangement((tuple(range(len(shape))), (), ()), weight),
    )


def _elementwise(eqn, operand, repeated):
    """Axes along which entries are repeated, and not; how to take each entry once."""
    shape, out = shape_of(eqn.invars[operand]), shape_of(eqn.outvars[0])
    if len(shape) < len(out):  # a number
        return tuple(range(len(out))), (), lambda a: a.reshape((1,) * len(out))
    # Axes of size one are repeated by the equation itself.
    every = range(len(out))
    repeated = tuple(i for i in every if i in repeated or shape[i] != out[i])
    once = tuple(slice(0, 1 if i in repeated else None) for i in every)
    return repeated, _rest(len(out), repeated), lambda a: a[once]


def _unzip(pairs):
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def _rest(ndim, *taken):
    """The axes that are not taken."""
    used = set(itertools.chain(*taken))
    return tuple(i for i in range(ndim) if i not in used)


# By name of the primitive.
_PRODUCTS: dict[str, Callable[[core.JaxprEqn, int], Layout | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
}
_ELEMENTWISE = {"add": _add, "mul": _mul}


def layout_of(
    eqn: core.JaxprEqn, operand: int, repeated: tuple[int, ...]
) -> Layout | None:
    """The layout of an equation that consumes a parameter.

    Args:
        eqn: The equation.
        operand: Which of its operands the parameter is.
        repeated: Axes along which the parameter's entries are repeated.

    Returns:
        The layout, or None where none is known.
    """
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        return _ELEMENTWISE[name](eqn, operand, repeated)
    if repeated or name not in _PRODUCTS:
        return None
    return _PRODUCTS[name](eqn, operand)
