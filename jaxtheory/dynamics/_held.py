"""Arrays inside a measurement, which compiled programs are found by."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree


class Held:
    """A pytree of arrays that can be hashed and compared.

    JAX arrays, which never change, are equal when they are the same object; NumPy
    arrays, which can, are copied and equal when their contents are. So a measurement
    built twice of the same arrays is one static argument to `jit` and does not retrace.
    """

    def __init__(self, tree: PyTree):
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = tuple(map(_frozen, leaves))
        self._hash = hash((self._structure, tuple(map(_mark, self._leaves))))

    @property
    def tree(self) -> PyTree:
        """The arrays; of NumPy's, JAX arrays made of them."""
        return jax.tree.unflatten(self._structure, map(jnp.asarray, self._leaves))

    def __eq__(self, other):
        if self is other:
            return True
        return (
            isinstance(other, Held)
            and self._structure == other._structure
            and all(map(_same, self._leaves, other._leaves))
        )

    def __hash__(self):
        return self._hash


def check_known(**trees: PyTree) -> None:
    """Raise if values that a measurement is built from are traced.

    Args:
        **trees: Arrays; the keyword is the name that an error message uses.

    Raises:
        ValueError: One is traced.
    """
    for name, tree in trees.items():
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
            raise ValueError(
                f"`{name}` must have values, but is traced. Take it outside `jit`: "
                "measurements are built there, and called inside."
            )


def _frozen(leaf):
    return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def _mark(leaf):
    """What equal leaves have in common, found without reading them."""
    is_jax = isinstance(leaf, jax.Array)
    return id(leaf) if is_jax else (leaf.shape, leaf.dtype.str)


def _same(leaf, other):
    if leaf is other:
        return True
    if isinstance(leaf, jax.Array) or isinstance(other, jax.Array):
        return False
    alike = leaf.shape == other.shape and leaf.dtype == other.dtype
    return alike and np.array_equal(leaf, other)
