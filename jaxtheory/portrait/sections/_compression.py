"""What of the trained network can be left out before it errs more."""

import jax
import numpy as np

from jaxtheory import compression, plot
from jaxtheory.portrait._numbers import only, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    classification,
    lacking,
    nothing,
)

_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02)
# Each makes arrays of new shapes, which costs half a second.
_NODE_SHARES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)
_TOLERANCE = 0.01
_KINDS = {"entries": "entries", "singular": "singular values", "nodes": "nodes"}


def read(plan, history):
    """Test error and share of the numbers left, by how much each method leaves out."""
    params = history.state.params
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        return {"finite": False}

    @jax.jit
    def error_of(params):
        return plan.error(plan.apply_fn(params, plan.x_test), plan.y_test)

    pruned = {
        name: [prune(params, 1 - share) for share in shares]
        for name, prune, shares in (
            ("entries", _without_entries, _SHARES),
            ("singular", _without_values, _SHARES),
            ("nodes", _without_nodes, _NODE_SHARES),
        )
    }
    return {
        "finite": True,
        "error": float(error_of(params)),
        "num_test": len(plan.y_test),
        "curves": {
            name: {
                "shares": only(share for _, share in found),
                "errors": only(error_of(smaller) for smaller, _ in found),
            }
            for name, found in pruned.items()
        },
    }


def _without_entries(params, fraction):
    """Parameters without the smallest entries, and the share of the others."""
    return _parts(params, compression.prune_magnitude(params, fraction=fraction))


def _without_values(params, fraction):
    """Parameters without singular values, and the share of the numbers in factors."""
    return _parts(params, compression.prune_svd(params, fraction=fraction))


def _parts(params, pruned):
    saved = sum(
        # Two factors may hold more numbers than the array itself, which then is kept.
        max(whole - int(pruned.num_kept[name]), 0)
        for name, whole in pruned.num_params.items()
    )
    return pruned.params, 1 - saved / _size(params)


def _without_nodes(params, fraction):
    """Parameters with the arrays of some nodes at zero, and the share of the others.

    Activations of 0 are 0 here, so that this is what the smaller network computes;
    nothing is compiled for its shapes.
    """
    modules = params.get("params", params)
    layers = sorted(modules)  # layer_1, ..., output
    found = compression.prune_nodes(params, layers=layers, fraction=fraction)
    inside = dict(modules)
    for layer, nodes in found.kept.items():
        mask = np.zeros(modules[layer]["kernel"].shape[-1], np.float32)
        mask[nodes] = 1
        held = jax.tree.map(np.asarray, modules[layer])
        inside[layer] = {name: leaf * mask for name, leaf in held.items()}
    whole = {**params, "params": inside} if "params" in params else inside
    return whole, _size(found.params) / _size(params)


def _size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def draw(numbers, ax):
    """Test error against the share that is left."""
    if not numbers["finite"]:
        ax.text(0.5, 0.5, "weights not finite", transform=ax.transAxes, ha="center")
        return
    curves = {
        name: (curve["shares"], curve["errors"])
        for name, curve in zip(_KINDS.values(), _curves(numbers), strict=True)
    }
    plot.compression(
        curves,
        whole=numbers["error"],
        tolerance=_TOLERANCE,
        size="share",
        metric="error",
        ax=ax,
    )


def _curves(numbers):
    return [numbers["curves"][name] for name in _KINDS]


def _smallest(numbers, curve):
    """The smallest share whose error is within the tolerance."""
    limit = numbers["error"] + _TOLERANCE
    pairs = zip(curve["shares"], curve["errors"], strict=True)
    return min(share for share, error in pairs if error <= limit)


def findings(numbers):
    """How much each method leaves out at no loss."""
    if not numbers["finite"]:
        return [lacking("the weights are not finite")]
    entries, singular, nodes = (_smallest(numbers, one) for one in _curves(numbers))
    text = (
        "Without training on, the error on "
        f"{numbers['num_test']:,} test examples stays within a point of "
        f"{percent(numbers['error'])} with {percent(entries)} of the numbers where the "
        f"smallest entries of each matrix are left out, with {percent(singular)} "
        f"(in factors) where the smallest singular values are, and with "
        f"{percent(nodes)} where whole nodes are, which alone makes arrays smaller as "
        "they are."
    )
    return [Finding(text, "measured")]


def rows(numbers):
    """The smallest share for each method."""
    if not numbers["finite"]:
        return [Row("numbers that can be left out", "not finite", "")]
    return [
        Row(
            f"numbers needed, {name} left out",
            percent(_smallest(numbers, curve)),
            f"within a point of {percent(numbers['error'])}",
        )
        for name, curve in zip(_KINDS.values(), _curves(numbers), strict=True)
    ]


SECTION = Section(
    "compression",
    "What can be left out",
    classification,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
