"""Traced programs: evaluating, opening and counting their equations.

What an equation's parameters are called changes between releases of JAX; what a program
is, and the shapes of its variables, less.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend import core


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of an operand or an output.

    Args:
        atom: A variable or a literal of a program.

    Returns:
        Its shape.
    """
    return atom.aval.shape


def evaluate(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Evaluate one equation as it was written.

    Args:
        eqn: The equation.
        inputs: Values of its operands.

    Returns:
        Values of its outputs.
    """
    operands = {
        atom: value
        for atom, value in zip(eqn.invars, inputs, strict=True)
        if not isinstance(atom, core.Literal)
    }
    # How an equation is evaluated changes between releases; what a program is, less.
    program = _empty().replace(invars=[*operands], outvars=eqn.outvars, eqns=[eqn])
    return list(eval_jaxpr(program, (), *operands.values()))


@functools.cache
def _empty():
    """A program without equations, from which others are made."""
    return jax.make_jaxpr(lambda: None)().jaxpr


def subprogram(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[Any]]:
    """The one program inside an equation, and its constants.

    Args:
        eqn: An equation that holds exactly one program.

    Returns:
        The program, and the values of its constants.
    """
    (found,) = subprograms(eqn)
    return found


def subprograms(eqn: core.JaxprEqn) -> list[tuple[core.Jaxpr, Sequence[Any]]]:
    """All programs inside an equation, under whatever name it keeps them.

    Args:
        eqn: An equation.

    Returns:
        Pairs of a program and the values of its constants.
    """
    leaves = jax.tree.leaves(
        list(eqn.params.values()),
        is_leaf=lambda a: isinstance(a, core.Jaxpr | core.ClosedJaxpr),
    )
    programs: list[Any] = [
        a for a in leaves if isinstance(a, core.Jaxpr | core.ClosedJaxpr)
    ]
    return [(getattr(a, "jaxpr", a), getattr(a, "consts", ())) for a in programs]


def scan_arguments(eqn: core.JaxprEqn, jaxpr: core.Jaxpr) -> tuple[int, int]:
    """How many constants and carries a scan has; from shapes, which no release moves.

    A slice has one axis less inside than outside, constants and carries have as many.

    Args:
        eqn: A scan.
        jaxpr: The program of one step.

    Returns:
        The number of constants, and of carries.
    """
    inside = lambda outer, inner: len(shape_of(outer)) == len(shape_of(inner))
    num_carry = sum(map(inside, eqn.outvars, jaxpr.outvars))
    return sum(map(inside, eqn.invars, jaxpr.invars)) - num_carry, num_carry


def count_products(jaxpr: core.Jaxpr) -> float:
    """Multiply-adds of the matrix products and convolutions of a program.

    Args:
        jaxpr: A program. The branch of a conditional with the most is counted, a
            `while` loop once.

    Returns:
        Their number for one evaluation.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        count: Callable[[Any], float] | None = _COUNTS.get(eqn.primitive.name)
        if count is not None:
            total += count(eqn)
        inner = [count_products(sub) for sub, _ in subprograms(eqn)]
        total += eqn.params.get("length", 1) * max(inner, default=0.0)
    return total


def names(jaxpr: core.Jaxpr) -> set[str]:
    """The names of all primitives in a program.

    Args:
        jaxpr: The program.

    Returns:
        The names, those of inner programs included.
    """
    found = {eqn.primitive.name for eqn in jaxpr.eqns}
    inner = [names(sub) for eqn in jaxpr.eqns for sub, _ in subprograms(eqn)]
    return found.union(*inner)


def _count_dot(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = shape_of(eqn.invars[0])
    return math.prod(shape_of(eqn.outvars[0])) * math.prod(shape[i] for i in contracted)


def _count_conv(eqn):
    channels = eqn.params["dimension_numbers"].rhs_spec[0]
    weight = shape_of(eqn.invars[1])
    return math.prod(shape_of(eqn.outvars[0])) * math.prod(weight) / weight[channels]


_COUNTS = {"dot_general": _count_dot, "conv_general_dilated": _count_conv}
