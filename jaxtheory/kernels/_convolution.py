"""Strided convolutions whose gradients are fast on CPUs."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxtheory.kernels._program import shape_of


def is_strided(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a convolution that `convolve_by_phases` takes.

    Args:
        eqn: The equation.

    Returns:
        Whether it is a convolution with a stride, and without dilation.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return False
    params = eqn.params
    dilated = max(*params["lhs_dilation"], *params["rhs_dilation"], 1) > 1
    strided = max(params["window_strides"], default=1) > 1
    return strided and not dilated and params["batch_group_count"] == 1


def convolve_by_phases(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> Any:
    """Evaluate a strided convolution as a sum of ones without strides.

    A window of stride ``s`` meets the positions of each phase (remainder modulo ``s``)
    with every ``s``-th of its weights: one convolution for each phase, with as many
    multiply-adds in all. Their gradients have no strides either, where that of the
    whole is the convolution of an array filled up with zeros, which XLA computes
    several times slower on a CPU.

    Args:
        eqn: The equation; see `is_strided`.
        inputs: The image and the weights.

    Returns:
        Its output, with sums in another order.
    """
    image, weight = inputs
    params = eqn.params
    lhs, rhs, out = params["dimension_numbers"]
    strides = params["window_strides"]
    image = jnp.transpose(image, (lhs[0], *lhs[2:], lhs[1]))
    weight = jnp.transpose(weight, (*rhs[2:], rhs[1], rhs[0]))
    sizes = [shape_of(eqn.outvars[0])[axis] for axis in out[2:]]
    ndim = len(strides)
    channels_last = (0, ndim + 1, *range(1, ndim + 1))
    numbers = jax.lax.ConvDimensionNumbers(
        channels_last, (ndim + 1, ndim, *range(ndim)), channels_last
    )
    total: Any = None
    phases = itertools.product(*map(range, strides))
    for phase, part in zip(
        phases, _split(image, strides, params["padding"]), strict=True
    ):
        every = tuple(slice(r, None, s) for r, s in zip(phase, strides, strict=True))
        taps = weight[every]
        if taps.size == 0:
            continue
        lengths = [n + m - 1 for n, m in zip(sizes, taps.shape, strict=False)]
        part = part[(slice(None), *map(slice, lengths))]
        product = jax.lax.conv_general_dilated(
            part,
            taps,
            window_strides=[1] * ndim,
            padding="VALID",
            dimension_numbers=numbers,
            feature_group_count=params["feature_group_count"],
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        total = product if total is None else total + product
    order = [out[0], *out[2:], out[1]]
    return jnp.transpose(total, [order.index(i) for i in range(len(order))])


def _split(image, strides, padding):
    """The padded image ``[n, *spatial, c]`` by phases, all of the same size.

    By `jax.lax.split`, whose transpose is a concatenation and no sum of padded arrays.
    """
    config, shape = [(0, 0, 0)], [image.shape[0]]
    for size, stride, (low, high) in zip(
        image.shape[1:-1], strides, padding, strict=True
    ):
        count = -(-(size + low + high) // stride)
        config.append((low, count * stride - size - low, 0))
        shape += [count, stride]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), [*config, (0, 0, 0)])
    image = image.reshape(*shape, image.shape[-1])
    ndim = len(strides)
    order = [*range(2, 2 * ndim + 1, 2), 0, *range(1, 2 * ndim, 2), 2 * ndim + 1]
    image = jnp.transpose(image, order)
    image = image.reshape(math.prod(strides), *image.shape[ndim:])
    return [part[0] for part in jax.lax.split(image, [1] * len(image))]
