"""Entries of parameters on their way through a program: moved, scaled, not mixed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxtheory.kernels._program import evaluate, shape_of

# Primitives whose output holds entries of their first operand, each at most once.
_SELECTIONS = {
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "rev",
    "slice",
    "split",
    "broadcast_in_dim",
    "copy",
    "convert_element_type",
}


class View(NamedTuple):
    """Entries of a parameter leaf, moved and scaled but not mixed.

    Attributes:
        leaf: Index of the parameter leaf.
        steps: What was done to it: equations, and which of their outputs it is, to be
            done again to an array of indices; None where a loop took a slice of it.
        factor: The entries are those of the leaf times this number.
        loops: For each loop that the view is in, outermost first: whether each
            iteration has a slice of its own (True) or all share it (False).
        repeated: Axes along which the entries were repeated, to meet an activation.
    """

    leaf: int
    steps: tuple[tuple[core.JaxprEqn, int] | None, ...] = ()
    factor: float = 1.0
    loops: tuple[bool, ...] = ()
    repeated: tuple[int, ...] = ()


def moved(eqn: core.JaxprEqn, views: Sequence[View | None]) -> list[View] | None:
    """The views that come out of an equation that only moves or scales one, or None.

    Args:
        eqn: The equation.
        views: Of its operands; None for what is no parameter.

    Returns:
        The views of its outputs, or None if it does anything else.
    """
    name, view = eqn.primitive.name, views[0]
    if name in _SELECTIONS and view is not None and len(eqn.invars) == 1:
        return _selected(eqn, view)
    if name == "neg" and view is not None:
        return [view._replace(factor=-view.factor)]
    if name in ("mul", "div"):
        return _scaled(eqn, views)
    return None


def _selected(eqn, view):
    """The view moved; None if repeated entries move, or no longer are numbers."""
    name, repeated = eqn.primitive.name, view.repeated
    if repeated and name not in ("copy", "convert_element_type"):
        return None
    if not all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.outvars):
        return None
    if name == "broadcast_in_dim":
        repeated = _repeated(eqn)
    steps = [(eqn, output) for output in range(len(eqn.outvars))]
    return [
        view._replace(steps=(*view.steps, step), repeated=repeated) for step in steps
    ]


def _repeated(eqn):
    """Axes along which a broadcast repeats what it is given."""
    source, target = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    kept = dict(zip(eqn.params["broadcast_dimensions"], source, strict=True))
    return tuple(i for i, size in enumerate(target) if kept.get(i, 1) != size)


def _scaled(eqn, views):
    """The view times a literal number, or None."""
    is_number = [isinstance(a, core.Literal) and shape_of(a) == () for a in eqn.invars]
    if views[0] is not None and is_number[1]:
        number, view = float(eqn.invars[1].val), views[0]
    elif views[1] is not None and is_number[0] and eqn.primitive.name == "mul":
        number, view = float(eqn.invars[0].val), views[1]
    else:
        return None
    factor = number if eqn.primitive.name == "mul" else 1.0 / number
    return [view._replace(factor=view.factor * factor)]


def entries(view: View, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries of its leaf a view holds.

    Args:
        view: The view.
        shape: Shape of the leaf.

    Returns:
        Flat indices into the leaf, in the shape of the view, with an axis in front for
        each loop that slices it.
    """
    index = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    depth = 0
    for step in view.steps:
        if step is None:
            depth += 1
        elif step[0].primitive.name != "convert_element_type":
            index = _redo(step, depth, index)
    return index


def _redo(step, depth, index):
    """Do to an array of indices, `depth` axes inside, what was done to a leaf."""
    eqn, output = step
    if eqn.primitive.name in ("reshape", "squeeze") and not eqn.params.get("sharding"):
        return index.reshape(index.shape[:depth] + tuple(shape_of(eqn.outvars[0])))
    move = lambda index: evaluate(eqn, [index])[output]
    for _ in range(depth):
        move = jax.vmap(move)
    with jax.ensure_compile_time_eval():
        return np.asarray(move(index))
