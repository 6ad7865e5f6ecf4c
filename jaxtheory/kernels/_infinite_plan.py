"""Walk through a model: once for what has to be known before, then for its kernels."""

import contextlib
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.kernels._infinite_model import Model
from jaxtheory.kernels._infinite_moments import Moments
from jaxtheory.kernels._infinite_rules import flattened, input_record
from jaxtheory.kernels._infinite_setup import Leaf
from jaxtheory.kernels._infinite_values import (
    Activation,
    Known,
    Layout,
    NeedsPositions,
    Weight,
)
from jaxtheory.kernels._infinite_walk import Walk
from jaxtheory.kernels._initial import parameters


class Plan(NamedTuple):
    """What a first walk found out.

    Attributes:
        diagonal: Whether covariances at equal positions are enough.
        factors: Each parameter met, and the root of its fan-in if that is not in its
            deviation.
        first: Parameters that meet known inputs.
    """

    diagonal: bool
    factors: tuple[tuple[str, float], ...]
    first: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def make_plan(
    model: Model,
    leaves: tuple[Leaf, ...],
    shape: tuple[int, ...],
    dtype: str,
    precision: str,
) -> Plan:
    """Walk through the model for shapes alone, for what has to be known before.

    Args:
        model: The model.
        leaves: Its parameters.
        shape: Shape of one example.
        dtype: Type of the inputs.
        precision: Type of the kernels.

    Returns:
        What the walk found out.

    Raises:
        ValueError: A layer has no limit.
    """
    shapes = parameters(model.variables(shape, dtype))
    arrays = [leaf.path for leaf in leaves if leaf.fixed and leaf.constant is None]
    fixed = {path: shapes[path] for path in arrays}
    scalar = jax.ShapeDtypeStruct((), precision)
    stds = {leaf.path: scalar for leaf in leaves if not leaf.fixed}
    sizes = {*shape, *(size for leaf in shapes.values() for size in leaf.shape)}
    # As many examples as no other axis has elements, so that they are told apart.
    number = next(n for n in itertools.count(2) if n not in sizes)
    layers = {}
    for diagonal in (True, False):

        def kernels(x, stds, fixed, diagonal=diagonal):
            moments = Moments(Layout(len(x), None, diagonal), None, only_shapes=True)
            kernels, walk = walk_through(model, leaves, moments, x, stds, fixed)
            layers.update(walk.layers)
            return kernels

        with contextlib.suppress(NeedsPositions):
            jax.eval_shape(
                kernels, jax.ShapeDtypeStruct((number, *shape), dtype), stds, fixed
            )
            break
    return Plan(
        diagonal,
        tuple((path, layer.factor) for path, layer in layers.items()),
        tuple(path for path, layer in layers.items() if layer.first),
    )


def walk_through(
    model: Model,
    leaves: tuple[Leaf, ...],
    moments: Moments,
    x: Any,
    stds: dict[str, Any],
    fixed: dict[str, Any],
) -> tuple[tuple[Any, Any], Walk]:
    """Trace the model, walk through it, and take the kernels of its outputs.

    Args:
        model: The model.
        leaves: Its parameters.
        moments: Integrals over units; knows how covariances lie.
        x: Inputs ``[total, ...]``.
        stds: Deviations of the random parameters.
        fixed: Values of those that start at constant arrays.

    Returns:
        The kernels ``(nngp, ntk)``, each ``[n1, n2]``, and the walk.

    Raises:
        ValueError: A layer has no limit, or the outputs are not ``[n, k]``.
    """
    tree = model.variables(x.shape[1:], x.dtype)
    program = jax.make_jaxpr(model.apply)(tree, jax.ShapeDtypeStruct(x.shape, x.dtype))
    shapes = parameters(tree)
    values: list[Any] = []
    for leaf in leaves:
        shape = tuple(shapes[leaf.path].shape)
        if leaf.constant is not None:
            array = np.full((1,) * len(shape), leaf.constant, shapes[leaf.path].dtype)
            values.append(Known(array, shape))
        elif leaf.fixed:
            values.append(Known(fixed[leaf.path], shape))
        else:
            values.append(Weight(leaf.path, 1.0, shape, shape))
    values.append(Known(x, x.shape, by_example=True))
    record = input_record(moments.layout, x.reshape(len(x), -1))
    given = frozenset(leaf.path for leaf in leaves if leaf.given)
    walk = Walk(moments, record, stds, given)
    consts = [Known(c, tuple(jnp.shape(c))) for c in program.consts]
    outputs = walk.run(program.jaxpr, consts, values)
    return _output_kernels(walk, outputs), walk


def _output_kernels(walk, outputs):
    """Kernels ``[n1, n2]`` of the model's outputs."""
    if len(outputs) != 1:
        raise ValueError(
            "`module` must return one array of outputs [n, k], but returned "
            f"{len(outputs)} arrays. Return the outputs alone."
        )
    (output,) = outputs
    if not isinstance(output, Activation):
        raise ValueError(
            "`module` must return outputs of a layer with weights, but in the limit of "
            "infinite width its outputs are known from the inputs alone."
        )
    if output.positions and not output.flat:
        raise ValueError(
            "`module` must return outputs [n, k], but they have positions of sizes "
            f"{output.positions} between examples and channels. Average or flatten "
            "them before the last layer."
        )
    record = flattened(walk.moments, output)
    return record.nngp, record.ntk
