"""Elementwise steps of a model: which there are, and functions of activations."""

import contextlib
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.kernels._infinite_sums import add, inner, multiply, reciprocal
from jaxtheory.kernels._infinite_values import Activation, Known, Refusal, Term, Weight

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
        return multiply(walk, operands[0], Known(np.asarray(-1.0), ()))
    if name in ("add", "add_any", "sub"):
        first, second = operands
        if name == "sub":
            second = multiply(walk, second, Known(np.asarray(-1.0), ()))
        return add(walk, first, second, shape)
    if name in ("mul", "div") and isinstance(operands[1], Known):
        value, factor = operands
        if name == "div":
            factor = reciprocal(factor)
        return multiply(walk, value, factor)
    if name == "mul" and isinstance(operands[0], Known):
        return multiply(walk, operands[1], operands[0])
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
