"""What is computed for a chunk of examples, and the kernel between two chunks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr

from jaxtheory.kernels import _groups
from jaxtheory.kernels._groups import Factors, Outputs
from jaxtheory.kernels._plan import Plan
from jaxtheory.kernels._trace import walk

# Gradients of fewer entries are contracted together: one product instead of many.
_SMALL = 1024


class Features(NamedTuple):
    """The gradients of a chunk of examples, in parts, each ``[n, ...]``.

    Attributes:
        x: The inputs.
        gram: For each group of `Plan.gram`, the factors of its sites.
        formed: The gradients ``[n, k, p]`` of all other leaves, by leaf (with those of
            its groups that are formed side by side).
    """

    x: Any
    gram: tuple[tuple[Factors, ...], ...]
    formed: dict[int, Any]


def features(plan: Plan, leaves: list[Any], x: Any) -> Features:
    """Differentiate the outputs of a chunk of examples.

    Args:
        plan: What to differentiate with respect to.
        leaves: Parameter leaves.
        x: Inputs ``[n, ...]``.

    Returns:
        Gradients, or factors of them.
    """
    gram, form, jacobian = jax.vmap(lambda x: _one(plan, leaves, x))(x)
    by_leaf = {leaf: [a] for leaf, a in zip(plan.jacobian, jacobian, strict=True)}
    for group, factors in zip(plan.form, form, strict=True):
        by_leaf.setdefault(group.leaf, []).append(_groups.form(group, factors))
    return Features(x, gram, {leaf: _side_by_side(a) for leaf, a in by_leaf.items()})


def _side_by_side(gradients):
    """Gradients ``[n, k, p]`` with respect to different entries, as one."""
    return gradients[0] if len(gradients) == 1 else jnp.concatenate(gradients, axis=-1)


def _one(plan, leaves, x):
    """One example: factors of both kinds of groups, gradients of the other leaves."""
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
    jacobian = tuple(a.reshape(plan.num_outputs, -1) for a in jacobian)
    return factors(plan.gram), factors(plan.form), jacobian


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
    *,
    per_leaf: bool,
) -> list[Any]:
    """The kernel between two chunks.

    Args:
        plan: That of the features.
        outputs: What is kept of the ``k x k`` block of two examples.
        leaves: Parameter leaves.
        scales: A factor for the kernel of each leaf, or None.
        rows: Features of the first chunk.
        columns: Features of the second chunk.
        per_leaf: Whether to keep the kernels of parameter leaves apart.

    Returns:
        The kernel of each parameter leaf, or one that is the sum.
    """
    if plan.vector_products:
        return [_products(plan, outputs, leaves, scales, rows, columns)]
    scaled = lambda leaf, a: a if scales is None else scales[leaf] * a
    n1, n2 = (jax.tree.leaves(chunk.x)[0].shape[0] for chunk in (rows, columns))
    k = plan.num_outputs
    shape = {"trace": (), "diagonal": (k,), "full": (k, k)}[outputs]
    zeros = jnp.zeros((n1, n2, *shape), jnp.result_type(jnp.float32, *leaves))
    totals = [zeros] * (plan.num_leaves if per_leaf else 1)

    def add(leaf, part):
        number = leaf if per_leaf else 0
        totals[number] = part if totals[number] is zeros else totals[number] + part

    for group, *factors in zip(plan.gram, rows.gram, columns.gram, strict=True):
        add(group.leaf, scaled(group.leaf, _groups.gram(outputs, group, *factors)))
    formed = {
        leaf: (scaled(leaf, a), columns.formed[leaf]) for leaf, a in rows.formed.items()
    }
    for leaf, gradients in (formed if per_leaf else _packed(formed)).items():
        add(leaf, _groups.contract(outputs, *gradients))
    return totals


def _packed(formed):
    """Pairs of gradients by leaf, those of the small ones as one."""
    small = [leaf for leaf, (a, _) in formed.items() if a.shape[-1] <= _SMALL]
    if len(small) < 2:
        return formed
    rows, columns = ([formed[leaf][side] for leaf in small] for side in (0, 1))
    large = {leaf: pair for leaf, pair in formed.items() if leaf not in small}
    return {**large, small[0]: (_side_by_side(rows), _side_by_side(columns))}


def _products(plan, outputs, leaves, scales, rows, columns):
    """The kernel by products of the rows' Jacobian with the columns' gradients."""
    k = plan.num_outputs
    n2 = jax.tree.leaves(columns.x)[0].shape[0]
    tangents = {
        leaf: jnp.reshape(gradient, (n2 * k, *leaves[leaf].shape))
        for leaf, gradient in columns.formed.items()
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
