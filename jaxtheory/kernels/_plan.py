"""Plan the kernel of a model: which parameters are structured, and at what cost."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxtheory.kernels import _groups
from jaxtheory.kernels._groups import Group, Outputs
from jaxtheory.kernels._program import count_products, names
from jaxtheory.kernels._trace import Site, walk
from jaxtheory.kernels._views import entries

Method = Literal["auto", "jacobian", "sites", "vector_products"]


class Plan(NamedTuple):
    """How the kernel of one model is computed for one size of chunks.

    Attributes:
        program: The model on one example: parameter leaves, then inputs.
        num_leaves: Number of parameter leaves.
        num_outputs: Number ``k`` of outputs.
        frozen: Leaves whose kernel is not wanted.
        sites: The sites in use, by place.
        gram: Groups whose kernel is a product of Gram matrices.
        form: Groups whose gradients are formed from their factors.
        jacobian: Leaves that are differentiated as they are.
        vector_products: Whether the Jacobian of the rows is never formed, but
            multiplied with that of the columns.
        in_halves: Whether contractions cost enough for a symmetric kernel to be put
            together of blocks, though each reads the parameters again, and the program
            is short enough.
    """

    program: core.ClosedJaxpr
    num_leaves: int
    num_outputs: int
    frozen: tuple[int, ...]
    sites: dict[tuple[int, ...], Site]
    gram: tuple[Group, ...]
    form: tuple[Group, ...]
    jacobian: tuple[int, ...]
    vector_products: bool
    in_halves: bool = False


# Examples from which on a symmetric kernel is put together of blocks, and the share of
# contractions in the cost of the backward passes: below, reading parameters twice costs
# more than the blocks save (measured: 0.02 loses 14 %, 0.4 and above gain 10 to 20).
# Programs of more groups than the last number take too long to compile twice.
_HALVED, _SHARE, _GROUPS = 16, 0.1, 16


def make(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    method: Method,
    outputs: Outputs,
    chunks: tuple[int, int],
    frozen: tuple[int, ...] = (),
) -> Plan:
    """Trace a model on one example and plan its kernel.

    Args:
        apply_fn: The model.
        params: Parameters.
        x: Inputs, of which shapes and dtypes matter alone.
        method: How; see `empirical_ntk`.
        outputs: What is kept of the ``k x k`` block of two examples.
        chunks: Examples in a chunk of rows and of columns.
        frozen: Leaves whose kernel is not wanted.

    Returns:
        The plan.
    """
    leaves, structure = jax.tree.flatten(params)
    example, inputs = jax.tree.flatten(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
    )

    def flat(*args):
        params = jax.tree.unflatten(structure, args[: len(leaves)])
        return apply_fn(params, jax.tree.unflatten(inputs, args[len(leaves) :]))

    program = jax.make_jaxpr(flat)(*leaves, *example)
    (out,) = program.out_avals
    k = math.prod(out.shape)
    nothing = Plan(program, len(leaves), k, frozen, {}, (), (), (), False)
    wanted = tuple(i for i in range(len(leaves)) if i not in frozen)
    by_jacobian = nothing._replace(jacobian=wanted)
    if method == "jacobian":
        return by_jacobian
    if method == "vector_products":
        return by_jacobian._replace(vector_products=True)
    plan, total = _structured(nothing, [*leaves, *example], outputs, chunks)
    size = sum(math.prod(jnp.shape(leaves[leaf])) for leaf in wanted)
    if method == "auto" and total > _cost_of_products(program, k, size, chunks):
        return by_jacobian._replace(vector_products=True)
    return plan


def _structured(nothing, args, outputs, chunks):
    """The plan with every parameter structured that can be, and its cost."""
    found = []

    def look(*args):
        found.append(walk(nothing.program, args, nothing.num_leaves, {})[1])

    jax.eval_shape(look, *args)
    sites, opaque = found[0].sites, found[0].opaque
    k, (n1, n2) = nothing.num_outputs, chunks
    gram, form, jacobian = [], [], []
    # The backward passes, which every way but the products needs.
    total = backward = 2.0 * (n1 + n2) * k * count_products(nothing.program.jaxpr)
    for leaf in range(nothing.num_leaves):
        if leaf in nothing.frozen:
            continue
        shape = jnp.shape(args[leaf])
        plain = _groups.cost_of_jacobian(math.prod(shape), n1, n2, k, outputs)
        groups = None if leaf in opaque else _group(leaf, sites, shape)
        ways = [_groups.cost(group, n1, n2, k, outputs) for group in groups or ()]
        structured = sum(min(costs.values()) for costs in ways)
        # A lookup cannot be formed: a small table is better differentiated.
        if groups is None or (
            structured > plain and any(group.has_lookup for group in groups)
        ):
            jacobian.append(leaf)
            total += plain
            continue
        total += structured
        for group, costs in zip(groups, ways, strict=True):
            best = min(costs, key=lambda way: costs[way])
            (gram if best == "gram" else form).append(group)
    is_short = len(gram) + len(form) <= _GROUPS
    used = {member.place for group in (*gram, *form) for member in group.members}
    plan = nothing._replace(
        sites={place: site for place, site in sites.items() if place in used},
        gram=tuple(gram),
        form=tuple(form),
        jacobian=tuple(jacobian),
        in_halves=n1 >= _HALVED and is_short and total > (1 + _SHARE) * backward,
    )
    return plan, total


def _group(leaf, sites, shape):
    """The groups of one leaf's sites, or None if they overlap in part."""
    mine = {place: site for place, site in sites.items() if site.view.leaf == leaf}
    places = list(mine)
    index = [_entries(mine[place], shape) for place in places]
    return _groups.group_sites(
        leaf,
        places,
        [_num_positions(site) for site in mine.values()],
        [site.layout.is_lookup for site in mine.values()],
        [a.shape for a in index],
        index if len(index) > 1 else None,
    )


def _entries(site, shape):
    """Indices ``[b, c, f]`` of the entries that a site consumes."""
    own = [True for sliced in site.view.loops if sliced]
    with jax.ensure_compile_time_eval():
        return np.asarray(site.layout.weight(entries(site.view, shape), own))


def _num_positions(site):
    """The number of positions at which a site uses its entries, loops included."""
    shape = jax.eval_shape(
        lambda y: site.layout.output(y, site.view.loops),
        jax.ShapeDtypeStruct((*site.lengths, *site.shape), site.dtype),
    )
    return shape.shape[1]


def _cost_of_products(program, k, size, chunks):
    """Multiply-adds of the kernel by vector products: a forward pass for each pair."""
    if "custom_vjp_call" in names(program.jaxpr):
        return math.inf  # has no forward derivative
    n1, n2 = chunks
    columns = _groups.cost_of_jacobian(size, 0, n2, k, "trace")
    return columns + 2.0 * (n1 * n2 + n2) * k * count_products(program.jaxpr)


def check_options(method: str, outputs: str) -> None:
    """Raise unless both options are among those that exist.

    Args:
        method: See `empirical_ntk`.
        outputs: See `empirical_ntk`.

    Raises:
        ValueError: One is not.
    """
    for name, value, allowed in [
        ("outputs", outputs, get_args(Outputs)),
        ("method", method, get_args(Method)),
    ]:
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, but was {value!r}.")
