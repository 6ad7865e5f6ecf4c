"""What is computed for a chunk of examples, and the kernel between two chunks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr

from jaxtheory.kernels import _groups
from jaxtheory.kernels._groups import Factors, Outputs
from jaxtheory.kernels._plan import Plan
from jaxtheory.kernels._trace import walk


class Features(NamedTuple):
    """The gradients of a chunk of examples, in parts, each ``[n, ...]``.

    Attributes:
        x: The inputs.
        gram: For each group of `Plan.gram`, the factors of its sites.
        form: For each group of `Plan.form`, its gradients ``[n, k, p]``.
        jacobian: For each leaf of `Plan.jacobian`, its gradients ``[n, k, p]``.
    """

    x: Any
    gram: tuple[tuple[Factors, ...], ...]
    form: tuple[Any, ...]
    jacobian: tuple[Any, ...]


def features(plan: Plan, leaves: list[Any], x: Any) -> Features:
    """Differentiate the outputs of a chunk of examples.

    Args:
        plan: What to differentiate with respect to.
        leaves: Parameter leaves.
        x: Inputs ``[n, ...]``.

    Returns:
        Gradients, or factors of them.
    """
    found = jax.vmap(lambda x: _one(plan, leaves, x))(x)
    form = [
        _groups.form(group, factors)
        for group, factors in zip(plan.form, found.form, strict=True)
    ]
    return found._replace(form=tuple(form))


def _one(plan, leaves, x):
    """The features of one example, with the factors of formed groups still apart."""
    args = [a[None] for a in jax.tree.leaves(x)]

    def perturbed(perturbations, chosen):
        full = list(leaves)
        for leaf, value in zip(plan.jacobian, chosen, strict=True):
            full[leaf] = value
        outputs, found = walk(
            plan.program, [*full, *args], plan.num_leaves, perturbations
        )
        return jnp.ravel(outputs[0]), found.inputs

    zeros = {
        place: jnp.zeros((*site.lengths, *site.shape), site.dtype)
        for place, site in plan.sites.items()
    }
    chosen = [leaves[leaf] for leaf in plan.jacobian]
    outputs, pullback, inputs = jax.vjp(perturbed, zeros, chosen, has_aux=True)
    basis = jnp.eye(plan.num_outputs, dtype=outputs.dtype)
    cotangents, jacobian = jax.vmap(pullback)(basis)
    factors = lambda groups: tuple(
        tuple(_factors(plan, member, inputs, cotangents) for member in group.members)
        for group in groups
    )
    return Features(
        x,
        factors(plan.gram),
        factors(plan.form),
        tuple(a.reshape(plan.num_outputs, -1) for a in jacobian),
    )


def _factors(plan, member, inputs, cotangents):
    """The two factors of one site's gradient for one example."""
    site, place = plan.sites[member.place], member.place
    layout, loops = site.layout, site.view.loops
    left = layout.input(inputs[place], loops)
    right = jax.vmap(lambda g: layout.output(g, loops))(cotangents[place])
    right = right if site.view.factor == 1.0 else site.view.factor * right
    return Factors(right, left) if member.flipped else Factors(left, right)


def kernel(
    plan: Plan,
    outputs: Outputs,
    leaves: list[Any],
    scales: list[Any] | None,
    rows: Features,
    columns: Features,
) -> list[Any]:
    """The kernel between two chunks, in parts that sum to the whole.

    Args:
        plan: That of the features.
        outputs: What is kept of the ``k x k`` block of two examples.
        leaves: Parameter leaves.
        scales: A factor for the kernel of each leaf, or None.
        rows: Features of the first chunk.
        columns: Features of the second chunk.

    Returns:
        The kernel of each parameter leaf; of all together in vector products.
    """
    if plan.vector_products:
        return [_products(plan, outputs, leaves, scales, rows, columns)]
    parts: list[Any] = [None] * plan.num_leaves
    for group, *factors in zip(plan.gram, rows.gram, columns.gram, strict=True):
        part = _groups.gram(outputs, group, *factors)
        parts[group.leaf] = (
            part if parts[group.leaf] is None else parts[group.leaf] + part
        )
    formed = [group.leaf for group in plan.form]
    for leaf, *gradients in zip(
        (*formed, *plan.jacobian),
        (*rows.form, *rows.jacobian),
        (*columns.form, *columns.jacobian),
        strict=True,
    ):
        part = _groups.contract(outputs, *gradients)
        parts[leaf] = _plus(parts[leaf], part)
    n1, n2 = (jax.tree.leaves(chunk.x)[0].shape[0] for chunk in (rows, columns))
    k = plan.num_outputs
    shape = {"trace": (), "diagonal": (k,), "full": (k, k)}[outputs]
    zeros = jnp.zeros((n1, n2, *shape), jnp.result_type(jnp.float32, *leaves))
    parts = [zeros if part is None else part for part in parts]
    if scales is None:
        return parts
    return [scale * part for scale, part in zip(scales, parts, strict=True)]


def _plus(total, part):
    return part if total is None else total + part


def _products(plan, outputs, leaves, scales, rows, columns):
    """The kernel by products of the rows' Jacobian with the columns' gradients."""
    k = plan.num_outputs
    n2 = jax.tree.leaves(columns.x)[0].shape[0]
    tangents = {
        leaf: jnp.reshape(gradient, (n2 * k, *leaves[leaf].shape))
        for leaf, gradient in zip(plan.jacobian, columns.jacobian, strict=True)
    }
    if scales is not None:
        tangents = {leaf: scales[leaf] * t for leaf, t in tangents.items()}

    def evaluate(chosen):
        full = [chosen.get(leaf, value) for leaf, value in enumerate(leaves)]
        return jax.vmap(lambda x: _evaluate(plan, full, x))(rows.x)

    def product(tangents):
        """The change ``[n1, k]`` of the rows' outputs along one direction."""
        chosen = {leaf: leaves[leaf] for leaf in plan.jacobian}
        tangents = {leaf: t.astype(leaves[leaf].dtype) for leaf, t in tangents.items()}
        return jax.jvp(evaluate, (chosen,), (tangents,))[1]

    found = jax.vmap(product)(tangents)
    found = found.astype(jnp.result_type(jnp.float32, found))
    found = found.reshape(n2, k, -1, k)  # columns, their outputs, rows, their outputs
    kept = {"full": "jlik->ijkl", "diagonal": "jkik->ijk", "trace": "jkik->ij"}[outputs]
    return jnp.einsum(kept, found)


def _evaluate(plan, leaves, x):
    """The outputs of one example, as one axis."""
    args = [*leaves, *(a[None] for a in jax.tree.leaves(x))]
    (outputs,) = eval_jaxpr(plan.program.jaxpr, plan.program.consts, *args)
    return jnp.ravel(outputs)
