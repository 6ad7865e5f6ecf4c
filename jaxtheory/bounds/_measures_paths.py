"""Measures of recorded training paths."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxtheory._types import KeyArray
from jaxtheory.dynamics import tails, topology

LEAST_POINTS = 41  # twenty differences of steps, for the tail index


def path_measures(
    points: Float[ArrayLike, "r dim"],
    step_lengths: Float[ArrayLike, " r-1"] | None,
    *,
    key: KeyArray,
) -> dict[str, Array]:
    """Length, lifetimes and tails of successive iterates.

    Args:
        points: Iterates or sketches of them, one a row.
        step_lengths: Exact lengths of the steps between them, or None.
        key: For the tail index.

    Returns:
        One number for each name.
    """
    points = jnp.asarray(points)
    sketched = topology.path_length(points)
    length = sketched if step_lengths is None else jnp.sum(jnp.asarray(step_lengths))
    # Sketches have an error of some percent in length, and the tree has the same one.
    exact = jnp.where(sketched > 0, length / jnp.where(sketched > 0, sketched, 1), 1)
    tree = topology.minimum_spanning_tree(topology.pairwise_distances(points))
    lifetimes = exact * topology.e_alpha(tree.lengths)
    steps = jnp.diff(points, axis=0)
    moments = tails.log_moment(steps, key=key)
    return {
        "path_length": length,
        "e_1": lifetimes,
        "e_1_over_path_length": lifetimes / length,
        "e_half": jnp.sqrt(exact) * topology.e_alpha(tree.lengths, alpha=0.5),
        "displacement_over_path_length": exact * topology.displacement(points) / length,
        "step_tail_index": moments.value,
    }
