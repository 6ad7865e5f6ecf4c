"""Which parameters to train: masks for optax, and how many that leaves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxtheory.batching import check_params


class ParameterCount(NamedTuple):
    """How many numbers are trained.

    Attributes:
        trainable: Entries of the parameters that are trained.
        total: Entries of all parameters.
    """

    trainable: int
    total: int


def trainable_mask(params: PyTree, names: str | Sequence[str]) -> PyTree:
    """Mark the parameters whose path has one of the names.

    For fine-tuning in parts: the head alone is a linear probe; one hidden layer, the
    head and a connection from one to the other is skip-connection-layer fine-tuning
    (`models.SkipConnection` makes it).

    Args:
        params: Parameters.
        names: Names of modules or parameters, such as ``"layer_2"``; a path such as
            ``"model/layer_2"`` matches where its parts follow each other.

    Returns:
        A pytree of the structure of `params` with True where a parameter is trained,
        for `train_only`. (``optax.masked`` with it does not freeze the others: it adds
        their plain gradient to them.)

    Raises:
        ValueError: A name matches nothing, or `params` is no pytree of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"layer_1": {"kernel": jnp.ones(2)}, "head": jnp.ones(3)}
        >>> trainable_mask(params, "head")
        {'head': True, 'layer_1': {'kernel': False}}

    References:
        Li et al. 2022, arXiv:2212.12206, section 4.
    """
    check_params(params)
    wanted = [names] if isinstance(names, str) else list(names)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [_parts(path) for path, _ in leaves]
    parts = [name.split("/") for name in wanted]
    for name, part in zip(wanted, parts, strict=True):
        if not any(_has(path, part) for path in paths):
            modules = sorted({"/".join(path[:-1]) for path in paths})
            raise ValueError(
                f"`names` must be names in `params`, but {name!r} matches nothing. "
                f"There is {modules}."
            )
    marks = [any(_has(path, part) for part in parts) for path in paths]
    return jax.tree_util.tree_unflatten(structure, marks)


def train_only(
    optimizer: optax.GradientTransformation, mask: PyTree
) -> optax.GradientTransformation:
    """An optimizer that leaves all parameters but the marked ones where they are.

    Its state holds moments of the marked parameters only. Weight decay inside
    `optimizer` does not reach the others, as it would if only gradients were masked.

    Args:
        optimizer: What trains the marked parameters.
        mask: True where a parameter is trained, such as `trainable_mask`.

    Returns:
        The optimizer.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
        >>> optimizer = train_only(optax.sgd(1.0), trainable_mask(params, "head"))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["body"], updates["head"])
        [0. 0.] [-1. -1.]
    """
    labels = jax.tree.map(lambda train: "train" if train else "keep", mask)
    return optax.partition(
        {"train": optimizer, "keep": optax.set_to_zero()}, param_labels=labels
    )


def count_parameters(params: PyTree, mask: PyTree | None = None) -> ParameterCount:
    """Count parameters, and those of them that are trained.

    Args:
        params: Parameters.
        mask: True where a parameter is trained; None trains all.

    Returns:
        The counts, in entries.

    Raises:
        ValueError: `mask` has another structure.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"body": jnp.ones((2, 3)), "head": jnp.ones(2)}
        >>> count_parameters(params, trainable_mask(params, "head"))
        ParameterCount(trainable=2, total=8)
    """
    check_params(params)
    sizes = [int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(params)]
    if mask is None:
        return ParameterCount(sum(sizes), sum(sizes))
    if jax.tree.structure(mask) != jax.tree.structure(params):
        raise ValueError(
            "`mask` must have the structure of `params`, "
            f"{jax.tree.structure(params)}, but has {jax.tree.structure(mask)}. Make "
            "it with `trainable_mask`."
        )
    marks: list[Any] = jax.tree.leaves(mask)
    trainable = sum(size for size, mark in zip(sizes, marks, strict=True) if mark)
    return ParameterCount(trainable, sum(sizes))


def _parts(path):
    """A key path as plain names."""
    names = (getattr(key, "key", getattr(key, "name", None)) for key in path)
    indices = (getattr(key, "idx", None) for key in path)
    return [
        str(index if name is None else name)
        for name, index in zip(names, indices, strict=True)
    ]


def _has(path, part):
    """Whether the names of `part` follow each other in `path`."""
    last = len(path) - len(part) + 1
    return any(path[i : i + len(part)] == part for i in range(last))
