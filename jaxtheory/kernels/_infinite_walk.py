"""Walk through a traced model, with kernels for activations."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxtheory.kernels import _infinite_attention as attention
from jaxtheory.kernels._infinite_linear import RULES
from jaxtheory.kernels._infinite_moments import Moments
from jaxtheory.kernels._infinite_steps import ELEMENTWISE, elementwise
from jaxtheory.kernels._infinite_values import Activation, Known, Refusal, Weight
from jaxtheory.kernels._program import scan_arguments


class Layer(NamedTuple):
    """What a parameter met.

    Attributes:
        factor: The root of the fan-in, if that is not in its deviation already.
        first: Whether its inputs are known.
    """

    factor: float
    first: bool


@dataclasses.dataclass
class Walk:
    """One walk through one traced model.

    Attributes:
        moments: Integrals over units; knows how covariances lie.
        record: Any record of these examples.
        stds: For each parameter, by key path, its standard deviation.
        given: Those whose deviation is stated times ``sqrt(fan_in)``.
        layers: The parameters met so far, by key path.
        met: They again, slice by slice where they are stacked for a scan.
    """

    moments: Moments
    record: Any
    stds: Mapping[str, Any]
    given: frozenset[str]
    layers: dict[str, Layer] = dataclasses.field(default_factory=dict)
    met: set[str] = dataclasses.field(default_factory=set)

    @property
    def layout(self):
        """How covariances lie."""
        return self.moments.layout

    def consume(self, weight: Weight, fan_in: int, first: bool) -> Any:
        """Deviation of an acting weight times ``sqrt(fan_in)``; each parameter once.

        Args:
            weight: The parameter, where it meets its inputs.
            fan_in: Number of inputs that one output sums over; 1 for a bias.
            first: Whether its inputs are known.

        Returns:
            The deviation.

        Raises:
            Refusal: It was met before, or starts at zero.
        """
        if weight.root in self.met:
            raise Refusal(
                "uses a parameter that an earlier layer has used (tied weights, or a "
                "layer called twice): its outputs are correlated with that layer's, "
                "which kernel rules assume they are not. Give it parameters of its own."
            )
        self.met.add(weight.root)
        if weight.path not in self.stds:
            raise Refusal(
                "has a parameter that starts at a constant where a random one belongs, "
                "so that nothing depends on its inputs at first. Initialise it at "
                "random, or pass its deviation in `weight_std`."
            )
        # A deviation that was given is that of an entry times sqrt(fan_in) already.
        factor = 1.0 if weight.path in self.given else fan_in**0.5
        self.layers[weight.path] = Layer(factor, first)
        return self.stds[weight.path] * factor * abs(weight.factor)

    def run(self, jaxpr: Any, consts: Any, values: Any, scope: str = "") -> list[Any]:
        """Values of a program's outputs.

        Args:
            jaxpr: The program.
            consts: Values of its constants.
            values: Values of its inputs.
            scope: Where it stands, for error messages.

        Returns:
            The values of its outputs.

        Raises:
            ValueError: A layer has no limit; named.
        """
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, values, strict=True))

        def read(v):
            return Known(np.asarray(v.val), ()) if isinstance(v, Literal) else env[v]

        for eqn in _live(jaxpr):
            stack = str(eqn.source_info.name_stack)
            where = "/".join(part for part in (scope, stack) if part)
            operands = [read(v) for v in eqn.invars]
            try:
                results = self._equation(jaxpr, eqn, operands, where)
            except Refusal as refusal:
                raise ValueError(_message(where, operands, refusal)) from None
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, jaxpr, eqn, operands, where):
        """Values of one equation's outputs."""
        name = eqn.primitive.name
        all_known = all(isinstance(v, Known) for v in operands)
        if eqn.params.get("name") == "same_convolution":
            return [RULES["same_convolution"](self, eqn, *operands)]
        if name == "scan" and not all_known:
            return self._scan(eqn, operands, where)
        inner = _sub_program(eqn)
        if inner is not None:
            if self.moments.only_shapes and name.startswith("custom_"):
                _check_derivative(jaxpr, eqn, operands, inner)
            return self.run(*inner, operands, where)
        if any(isinstance(v, attention.Scores | attention.Heads) for v in operands):
            return [attention.step(self, eqn, operands)]
        if name in ELEMENTWISE:
            return [elementwise(self, eqn, operands)]
        if all_known:
            return _evaluate(eqn, operands)
        if name in RULES:
            return [RULES[name](self, eqn, *operands)]
        if any(isinstance(v, Activation) for v in operands):
            raise Refusal(_NO_RULE.get(name, _UNKNOWN.format(name)))
        raise Refusal(
            f"computes with a parameter (`{name}`) before it meets its inputs, so that "
            "its entries are not independent draws of its initialiser. Apply the "
            "parameter itself, times a constant at most."
        )

    def _scan(self, eqn, operands, where):
        """Unroll a scan over layers: each step has its own slice of the parameters."""
        program = eqn.params["jaxpr"]
        consts = []
        if isinstance(program, ClosedJaxpr):
            consts, program = [known(c) for c in program.consts], program.jaxpr
        fixed, carried = scan_arguments(eqn, program)
        shared, carry = operands[:fixed], operands[fixed : fixed + carried]
        steps = range(eqn.params["length"])
        stacked: list[list[Any]] = []
        for step in reversed(steps) if eqn.params["reverse"] else steps:
            slices = [_slice(v, step) for v in operands[fixed + carried :]]
            inputs = [*shared, *carry, *slices]
            results = self.run(program, consts, inputs, f"{where}[{step}]")
            carry, outputs = results[:carried], results[carried:]
            stacked.append(outputs)
        if eqn.params["reverse"]:
            stacked.reverse()
        collected = [_stack(outputs) for outputs in zip(*stacked, strict=True)]
        return [*carry, *collected]


_NO_LIMIT = {
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), "pools by the maximum"),
    **dict.fromkeys(
        ("reduce_max", "argmax"), "takes a maximum, as softmax and attention by it do"
    ),
    **dict.fromkeys(("reduce_min", "argmin"), "takes a minimum"),
    **dict.fromkeys(("sort", "top_k"), "sorts activations"),
}
_NO_RULE = {
    name: f"{what} (`{name}`), which has no limit in closed form. Pool by the average "
    "(`nn.avg_pool`, or `jnp.mean` over positions), and return the outputs themselves."
    for name, what in _NO_LIMIT.items()
}
_RECURRENT = (
    "scans over positions (recurrence in time), so that one parameter meets them at "
    "every step and its outputs are correlated. A scan over layers has a limit."
)
_MIXES = (
    "combines different examples (`{}`), so that the kernel of two examples would "
    "depend on the others. Treat each example by itself."
)
_UNKNOWN = (
    "uses `{}`, for which there is no kernel rule. Dense and convolution layers, "
    "elementwise functions, sums, average pooling, normalisation over channels and "
    "reshapes have one."
)


def known(array: Any) -> Known:
    """An array that depends on inputs and constants alone."""
    return Known(array, tuple(jnp.shape(array)))


def _live(jaxpr):
    """The equations that the outputs depend on, in order."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            live.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return reversed(live)


def _sub_program(eqn):
    """The program that an equation calls, with its constants; None if it calls none."""
    found = [p for p in eqn.params.values() if isinstance(p, Jaxpr | ClosedJaxpr)]
    if len(found) != 1 or eqn.primitive.name in ("scan", "while"):
        return None
    program, consts = found[0], []
    if isinstance(program, ClosedJaxpr):
        consts, program = [known(c) for c in program.consts], program.jaxpr
    return (program, consts) if len(program.invars) == len(eqn.invars) else None


# Those of JAX are the limits of derivatives at kinks, or keep digits.
_OWN_DERIVATIVES = ("relu", "relu6", "logaddexp")


def _check_derivative(jaxpr, eqn, operands, inner):
    """Raise if a function's derivative is not that of the steps it is made of."""
    variables = [v for v in eqn.invars if not isinstance(v, Literal)]
    alone = len(variables) == 1 and len(eqn.invars) == 1 == len(eqn.outvars)
    random = any(isinstance(v, Activation) for v in operands)
    if not alone or not random or eqn.params.get("name") in _OWN_DERIVATIVES:
        return
    whole = jaxpr.replace(
        constvars=[], invars=variables, outvars=eqn.outvars, eqns=[eqn]
    )
    program, consts = inner[0], [v.full() for v in inner[1]]
    aval = variables[0].aval
    with jax.ensure_compile_time_eval():
        line = np.resize(np.linspace(-3.03, 3.07, 101), aval.shape)
        z = jnp.asarray(line, aval.dtype)

        def slope(jaxpr, consts):
            function = lambda z: jax.core.eval_jaxpr(jaxpr, consts, z)[0]
            value, pull = jax.vjp(function, z)
            return pull(jnp.ones_like(value))[0]

        own, plain = slope(whole, []), slope(program, consts)
        same = np.allclose(own, plain, rtol=1e-3, atol=1e-3)
    if not same:
        raise Refusal(
            "applies a function that defines a derivative of its own (`jax.custom_jvp` "
            "or `jax.custom_vjp`), other than that of what it computes. Write it "
            "without."
        )


def _evaluate(eqn, operands):
    """An equation of known arrays."""
    if (lazy := _reshaped(eqn, operands)) is not None:
        return [lazy]
    arrays = [v.full() for v in operands]
    outer = jax.ensure_compile_time_eval
    concrete = all(v.is_concrete() for v in operands)
    with outer() if concrete else contextlib.nullcontext():
        results = eqn.primitive.bind(*arrays, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    by_example = any(v.by_example for v in operands)
    if by_example:
        _check_examples(eqn, operands, results)
    return [Known(a, tuple(a.shape), by_example) for a in results]


def _check_examples(eqn, operands, results):
    """Raise if an equation of known arrays mixes examples, which lead."""
    name, p = eqn.primitive.name, eqn.params
    number = next(v.shape[0] for v in operands if v.by_example)
    along = [*p.get("axes", ()), p.get("axis"), p.get("dimension")]
    mixed = 0 in [axis for axis in along if axis is not None]
    mixed |= any(a.ndim == 0 or a.shape[0] != number for a in results)
    if name == "dot_general":
        contracted, batch = p["dimension_numbers"]
        leading = [v.by_example for v in operands]
        mixed |= any(
            lead and 0 in c for lead, c in zip(leading, contracted, strict=True)
        )
        mixed |= all(leading) and not (0 in batch[0] and 0 in batch[1])
    if name == "transpose" and mixed:
        raise Refusal(
            "moves examples from the leading axis, as a recurrence in time does. Keep "
            "them there."
        )
    if mixed:
        raise Refusal(_MIXES.format(name))


def _reshaped(eqn, operands):
    """A known array in another shape, without broadcasting it; None if it has to be."""
    name = eqn.primitive.name
    if name not in ("reshape", "broadcast_in_dim", "squeeze") or not operands:
        return None
    value, shape = operands[0], eqn.outvars[0].aval.shape
    if np.size(value.array) == 1:
        return Known(value.array.reshape((1,) * len(shape)), shape, value.by_example)
    if name != "broadcast_in_dim" or value.array.ndim != len(value.shape):
        return None
    sizes = [1] * len(shape)
    for own, axis in enumerate(eqn.params["broadcast_dimensions"]):
        sizes[axis] = value.array.shape[own]
    return Known(value.array.reshape(sizes), shape, value.by_example)


def _slice(value, step):
    """What one step of a scan sees of a stacked value."""
    if isinstance(value, Known):
        if value.by_example:
            raise Refusal(_RECURRENT)
        if value.array.ndim == len(value.shape) and value.array.shape[0] == 1:
            return Known(value.array[0], value.shape[1:])
        return known(value.full()[step])
    if isinstance(value, Weight):
        sizes, shape = value.sizes[1:], value.shape[1:]
        part = f"{value.part}[{step}]"
        return value._replace(sizes=sizes, shape=shape, part=part)
    raise Refusal(_RECURRENT)


def _stack(outputs):
    """What a scan gives of all steps; a value that nothing but its absence can use."""
    if all(isinstance(v, Known) for v in outputs):
        return known(jnp.stack([v.full() for v in outputs]))
    return None


def _message(where, operands, refusal):
    """What an error says: the layer, why it has no limit, what to do."""
    paths = [v.path for v in operands if isinstance(v, Weight)]
    layer = f"layer {where!r}" if where else "a layer"
    if paths:
        layer += f" (parameter {', '.join(map(repr, paths))})"
    return f"`module` has no infinite-width kernel here: {layer} {refusal}"
