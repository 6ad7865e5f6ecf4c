"""Parameters as one vector, and how far training has moved it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import TrainState


def moved(state: TrainState) -> PyTree:
    """The displacement ``params - initial_params``, in float32.

    Args:
        state: A training state.

    Returns:
        A pytree like the parameters. Differences are taken in at least float32, so that
        half precision loses none, and in double precision of double parameters.
    """
    return jax.tree.map(_difference, state.params, state.initial_params)


def as_vector(tree: PyTree) -> Float[Array, " p"]:
    """All leaves of a pytree, one after another, as one float32 vector.

    Args:
        tree: A pytree of real arrays.

    Returns:
        The vector.

    Raises:
        ValueError: There is nothing in it, or something that is not a real array.
    """
    return jnp.concatenate(as_vectors(tree))


def as_vectors(tree: PyTree) -> list[Float[Array, " _"]]:
    """Each leaf of a pytree as a float32 vector.

    Args:
        tree: A pytree of real arrays.

    Returns:
        The vectors, in the order of the leaves.

    Raises:
        ValueError: There is nothing in it, or something that is not a real array.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(
            dtype, jnp.integer
        )
        if not is_real:
            raise ValueError(
                f"what is projected must be real arrays, but "
                f"`tree{jax.tree_util.keystr(path)}` has dtype {dtype}."
            )
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise ValueError(
            "what is projected must hold at least one number, but has structure "
            f"{jax.tree.structure(tree)} and no elements."
        )
    return [jnp.ravel(jnp.asarray(leaf, jnp.float32)) for _, leaf in leaves]


def _difference(now, start):
    dtype = jnp.promote_types(jnp.result_type(now), jnp.float32)
    return (jnp.asarray(now, dtype) - jnp.asarray(start, dtype)).astype(jnp.float32)
