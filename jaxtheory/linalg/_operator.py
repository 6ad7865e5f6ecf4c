"""Operators on pytrees: how they are built, checked and handed to jitted routines."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree


def function_operator(
    product: Callable[..., PyTree], *arrays: PyTree, structure: PyTree, tags: Any = ()
) -> lx.FunctionLinearOperator:
    """Wrap ``product(*arrays, vector)`` as a lineax operator whose arrays are leaves.

    The operator passes through `jit` as an argument, scan carries, `vmap` and `grad`,
    and two operators built from equal `product`s share one compiled program. (lineax
    would trace a callable that is no plain function into a jaxpr, which hides its
    arrays from `jit`; hence ``closure_convert=False``, safe because every array is an
    explicit argument.)

    Args:
        product: Hashable callable, compared by value (a module-level function, or a
            frozen dataclass of functions), linear in its last argument.
        *arrays: Pytrees of arrays that the product needs.
        structure: A pytree of arrays (or shapes) like the vectors it acts on.
        tags: lineax tags, for example ``lineax.symmetric_tag``.

    Returns:
        The operator; ``operator.mv(vector)`` checks the vector before it computes.

    Example:
        >>> import jax.numpy as jnp
        >>> def scale(factor, vector):
        ...     return factor * vector
        >>> op = function_operator(scale, jnp.array(3.0), structure=jnp.zeros(2))
        >>> op.mv(jnp.array([1.0, 2.0])).tolist()
        [3.0, 6.0]
    """
    # Shapes and dtypes alone: where an example vector lives is no part of the space.
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), structure
    )
    checked = _Checked(product, tuple(jax.tree.leaves(like)), jax.tree.structure(like))
    return lx.FunctionLinearOperator(
        jax.tree_util.Partial(checked, *arrays), like, tags, closure_convert=False
    )


class _Checked:
    """A product that checks its vector first; equal when built from equal parts."""

    def __init__(self, product, leaves, treedef):
        self._parts = (product, leaves, treedef)

    def __call__(self, *arguments):
        product, leaves, treedef = self._parts
        check_vector(arguments[-1], jax.tree.unflatten(treedef, leaves))
        return _call(product, *arguments)

    def __eq__(self, other):
        return isinstance(other, _Checked) and self._parts == other._parts

    def __hash__(self):
        return hash(self._parts)


# A product called by hand would otherwise compile its loop over chunks at every call.
@functools.partial(jax.jit, static_argnums=0)
def _call(product, *arguments):
    return product(*arguments)


def check_vector(vector: PyTree, like: PyTree, name: str = "vector") -> None:
    """Raise unless `vector` has the structure and shapes of `like`.

    Args:
        vector: The pytree to check.
        like: Arrays or shapes that it must match (dtypes may differ in precision).
        name: Name that the error message uses.

    Raises:
        ValueError: Another structure, or a leaf of another shape, or complex where
            `like` is real; names the leaf.
    """
    if jax.tree.structure(vector) != jax.tree.structure(like):
        raise ValueError(
            f"`{name}` must have the structure {jax.tree.structure(like)}, but has "
            f"{jax.tree.structure(vector)}. Pass a pytree like the operator's input "
            "(`operator.in_structure()`)."
        )
    leaves = jax.tree_util.tree_leaves_with_path(vector)
    for (path, leaf), expected in zip(leaves, jax.tree.leaves(like), strict=True):
        if jnp.shape(leaf) != jnp.shape(expected):
            stacked = jnp.shape(leaf)[1:] == jnp.shape(expected)
            fix = " Of a stack take one: `jax.tree.map(lambda leaf: leaf[0], ...)`."
            raise ValueError(
                f"`{name}{jax.tree_util.keystr(path)}` must have shape "
                f"{jnp.shape(expected)}, but has {jnp.shape(leaf)}."
                f"{fix if stacked else ''}"
            )
        dtypes = [jnp.result_type(a) for a in (leaf, expected)]
        if [jnp.issubdtype(d, jnp.complexfloating) for d in dtypes] == [True, False]:
            raise ValueError(
                f"`{name}{jax.tree_util.keystr(path)}` must be real, but has dtype "
                f"{dtypes[0]}. Take its real part."
            )


def dimension(operator: lx.AbstractLinearOperator) -> int:
    """Number of entries of the vectors that a square operator acts on.

    Args:
        operator: Operator from a pytree space to itself.

    Returns:
        The dimension ``p``.

    Raises:
        ValueError: It is no operator, acts on complex numbers or on none, or its input
            and output structures differ.
    """
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise ValueError(
            "`operator` must be a lineax operator, but is a "
            f"{type(operator).__name__}. Wrap a matrix in "
            "`lineax.MatrixLinearOperator`, a product in `function_operator`."
        )
    inside, outside = operator.in_structure(), operator.out_structure()
    for leaf in jax.tree.leaves((inside, outside)):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"`operator` must act on real numbers, but has dtype {leaf.dtype}."
            )
    shapes = lambda tree: jax.tree.map(lambda s: s.shape, tree)
    if shapes(inside) != shapes(outside):
        raise ValueError(
            "`operator` must map a space to itself, but its input has structure "
            f"{inside} and its output {outside}."
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(inside))
    if size == 0:
        raise ValueError(
            "`operator` must act on at least one number, but its input has structure "
            f"{inside}."
        )
    return size


def split_operator(operator: lx.AbstractLinearOperator) -> tuple[list, Any]:
    """Split an operator into array leaves and a hashable rest, for use with `jit`.

    Args:
        operator: Any lineax operator; also one that lineax traced into a jaxpr.

    Returns:
        ``(arrays, rest)`` for `join_operator`.
    """
    leaves, treedef = jax.tree.flatten(operator)
    is_array = [
        isinstance(leaf, jax.Array | np.ndarray) or jnp.isscalar(leaf)
        for leaf in leaves
    ]
    arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
    others = tuple(
        None if yes else leaf for leaf, yes in zip(leaves, is_array, strict=True)
    )
    return arrays, (treedef, others, tuple(is_array))


def join_operator(arrays: list, rest: Any) -> lx.AbstractLinearOperator:
    """Inverse of `split_operator`.

    Args:
        arrays: The array leaves.
        rest: The hashable rest.

    Returns:
        The operator.
    """
    treedef, others, is_array = rest
    remaining = iter(arrays)
    leaves = [
        next(remaining) if yes else other
        for other, yes in zip(others, is_array, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)
