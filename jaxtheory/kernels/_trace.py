"""Walk a traced model: find where its parameters are consumed, and perturb that.

A parameter that is only moved around (reshaped, sliced, transposed, repeated, scaled by
a number) is followed as a `View` of its entries. Where a view meets an activation in an
operation that is linear in it (`jaxtheory.kernels._layouts`), there is a *site*: the
model is ``f = rest(site output)``, and the gradient with respect to the parameter is a
product of the site's input and the cotangent of its output. `walk` evaluates the model
and adds to the output of each site what it is told to add (zeros, to be
differentiated). Everything else evaluates as it was written, custom derivative rules
included; a parameter used in any other way is *opaque*.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxtheory.kernels._convolution import convolve_by_phases, is_strided
from jaxtheory.kernels._layouts import Layout, layout_of
from jaxtheory.kernels._program import evaluate, scan_arguments, subprogram
from jaxtheory.kernels._views import View, moved

# Calls whose sub-program computes what the call computes, derivatives included.
_INLINED = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat"}


class Site(NamedTuple):
    """A product that consumes a parameter.

    Attributes:
        view: The entries consumed.
        layout: How its operands are arranged; from the equation.
        shape: Shape of its output for one example, without loop axes.
        dtype: Of its output.
        input_shape: Shape of its other operand, without loop axes.
        lengths: Lengths of the loops that it is in, outermost first.
    """

    view: View
    layout: Layout
    shape: tuple[int, ...]
    dtype: Any
    input_shape: tuple[int, ...]
    lengths: tuple[int, ...]


class Found(NamedTuple):
    """What a walk saw.

    Attributes:
        sites: By place (a path of equation numbers).
        inputs: The other operand of each site, by place, with its loop axes in front.
        opaque: Leaves that are consumed where no layout is known.
    """

    sites: dict[tuple[Any, ...], Site]
    inputs: dict[tuple[Any, ...], Any]
    opaque: set[int]


def walk(
    program: core.ClosedJaxpr,
    args: Sequence[Any],
    num_leaves: int,
    perturbations: dict[tuple[Any, ...], Any],
) -> tuple[list[Any], Found]:
    """Evaluate a traced model, perturbing the outputs of its sites.

    Args:
        program: The model, traced on parameter leaves and inputs.
        args: Parameter leaves, then inputs.
        num_leaves: How many of `args` are parameter leaves.
        perturbations: What is added to the output of a site, by place. Sites that are
            not in it are left alone.

    Returns:
        The outputs, and what was seen.
    """
    found = Found({}, {}, set())
    views = [View(i) if i < num_leaves else None for i in range(len(args))]
    walker = _Walker(perturbations, found, ())
    outputs, out_views = walker.run(program.jaxpr, program.consts, args, views, ())
    found.opaque.update(view.leaf for view in out_views if view is not None)
    return outputs, found


class _Walker(NamedTuple):
    perturbations: dict[tuple[Any, ...], Any]
    found: Found
    lengths: tuple[int, ...]

    def run(self, jaxpr, consts, args, views, place):
        """Evaluate `jaxpr`; values and views of its outputs."""
        values: dict[core.Var, Any] = {}
        seen: dict[core.Var, View] = {}

        def read(atom):
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        def view_of(atom):
            return None if isinstance(atom, core.Literal) else seen.get(atom)

        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        seen.update((v, w) for v, w in zip(jaxpr.invars, views, strict=True) if w)
        for number, eqn in enumerate(jaxpr.eqns):
            inputs = [read(atom) for atom in eqn.invars]
            in_views = [view_of(atom) for atom in eqn.invars]
            if any(in_views):
                outputs, out_views = self._step(eqn, inputs, in_views, (*place, number))
            else:
                outputs, out_views = evaluate(eqn, inputs), [None] * len(eqn.outvars)
            values.update(zip(eqn.outvars, outputs, strict=True))
            seen.update(
                (v, w) for v, w in zip(eqn.outvars, out_views, strict=True) if w
            )
        outputs = [read(atom) for atom in jaxpr.outvars]
        return outputs, [view_of(atom) for atom in jaxpr.outvars]

    def _step(self, eqn, inputs, views, place):
        """Evaluate an equation that consumes views."""
        name = eqn.primitive.name
        if name in _INLINED:
            jaxpr, consts = subprogram(eqn)
            return self.run(jaxpr, consts, inputs, views, place)
        if name == "custom_jvp_call":
            return self._custom_jvp(eqn, inputs, views, place), _none(eqn)
        if name == "scan":
            return self._scan(eqn, inputs, views, place), _none(eqn)
        out_views = moved(eqn, views)
        if out_views is not None:
            return evaluate(eqn, inputs), out_views
        return self._sites(eqn, inputs, views, place), _none(eqn)

    def _sites(self, eqn, inputs, views, place):
        """Evaluate an equation, as a site of each view that it has a layout for."""
        if is_strided(eqn) and jax.default_backend() == "cpu":
            outputs = [convolve_by_phases(eqn, inputs)]
        else:
            outputs = evaluate(eqn, inputs)
        for operand, view in enumerate(views):
            if view is None:
                continue
            layout = layout_of(eqn, operand, view.repeated)
            if layout is None:
                self.found.opaque.add(view.leaf)
                continue
            at = (*place, operand)
            other = inputs[layout.input_operand]
            self.found.sites[at] = Site(
                view,
                layout,
                outputs[0].shape,
                outputs[0].dtype,
                jnp.shape(other),
                self.lengths,
            )
            if at in self.perturbations:
                self.found.inputs[at] = other
                outputs = [outputs[0] + self.perturbations[at]]
        return outputs

    def _custom_jvp(self, eqn, inputs, views, place):
        """A call with a derivative rule of its own: walk the rule.

        The call is evaluated as it is, without parameters to be perturbed; its
        linearisation at zero tangents, walked in its place, adds nothing but the
        perturbations, and carries them to the output as the rule says.
        """
        chosen = [i for i, view in enumerate(views) if view is not None]
        weights = [inputs[i] for i in chosen]

        def call(*weights):
            full = list(inputs)
            for i, weight in zip(chosen, weights, strict=True):
                full[i] = weight
            return evaluate(eqn, full)

        outputs, linear = jax.linearize(call, *weights)
        zeros = [jnp.zeros_like(weight) for weight in weights]
        program = jax.make_jaxpr(linear)(*zeros)
        in_views = [views[i] for i in chosen]
        changes, _ = self.run(program.jaxpr, program.consts, zeros, in_views, place)
        return [a + change for a, change in zip(outputs, changes, strict=True)]

    def _scan(self, eqn, inputs, views, place):
        """A loop: perturbations and inputs of its sites travel with its slices."""
        jaxpr, consts = subprogram(eqn)
        num_consts, num_carry = scan_arguments(eqn, jaxpr)
        first = num_consts + num_carry
        # What is carried changes, and slices of what was repeated may be the same.
        lost = [
            i
            for i, view in enumerate(views)
            if view and (num_consts <= i < first or (i >= first and view.repeated))
        ]
        self.found.opaque.update(views[i].leaf for i in lost)
        views = [None if i in lost else view for i, view in enumerate(views)]
        views = [v and _enter(v, sliced=i >= first) for i, v in enumerate(views)]
        here = {a: z for a, z in self.perturbations.items() if a[: len(place)] == place}
        length = eqn.params["length"]
        lengths = (*self.lengths, length)

        def body(carry, slices):
            slices, perturbations = slices
            found = Found({}, {}, set())
            args = [*inputs[:num_consts], *carry, *slices]
            walker = _Walker(perturbations, found, lengths)
            outputs, out_views = walker.run(jaxpr, consts, args, views, place)
            found.opaque.update(v.leaf for v in out_views if v is not None)
            self.found.sites.update(found.sites)
            self.found.opaque.update(found.opaque)
            return outputs[:num_carry], (outputs[num_carry:], found.inputs)

        carry, (stacked, seen) = jax.lax.scan(
            body,
            list(inputs[num_consts:first]),
            (list(inputs[first:]), here),
            length=length,
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        self.found.inputs.update(seen)
        return [*carry, *stacked]


def _enter(view, *, sliced):
    """The view inside a loop that slices it, or does not."""
    steps = (*view.steps, None) if sliced else view.steps
    return view._replace(steps=steps, loops=(*view.loops, sliced))


def _none(eqn):
    return [None] * len(eqn.outvars)
