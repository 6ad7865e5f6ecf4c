"""Some leaves of a parameter pytree, by their paths."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jaxtyping import PyTree

SelectFn: TypeAlias = Callable[[str], bool]


def select_leaves(tree: PyTree, select: SelectFn) -> dict[str, Any]:
    """Pick leaves of a pytree by their paths.

    Operators built with ``select=`` act on dicts like the one returned: use it for
    their vectors and preconditioners.

    Args:
        tree: A pytree, say of parameters.
        select: ``select(path) -> bool`` of a leaf's path as `jax.tree_util.keystr`
            writes it, for example ``"['params']['Dense_0']['kernel']"``.

    Returns:
        ``{path: leaf}`` of the selected leaves.

    Raises:
        ValueError: Nothing is selected; names the paths that there are.

    Example:
        >>> params = {"dense": {"kernel": 1.0, "bias": 2.0}, "head": 3.0}
        >>> select_leaves(params, lambda path: "dense" in path)
        {"['dense']['bias']": 2.0, "['dense']['kernel']": 1.0}
    """
    if not callable(select):
        raise ValueError(
            "`select` must be a function of a leaf's path (a string), but is a "
            f"{type(select).__name__}. For one leaf: `lambda path: path == ...`."
        )
    leaves = _by_path(tree)
    chosen = {path: leaf for path, leaf in leaves.items() if select(path)}
    if not chosen:
        raise ValueError(
            f"`select` must choose at least one leaf, but chose none of {[*leaves]}."
        )
    return chosen


def insert_leaves(tree: PyTree, chosen: dict[str, Any]) -> PyTree:
    """Put leaves back in their places.

    Args:
        tree: The pytree that they come from.
        chosen: ``{path: leaf}``.

    Returns:
        `tree` with these leaves.
    """
    leaves = (_by_path(tree) | chosen).values()
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _by_path(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in pairs}
