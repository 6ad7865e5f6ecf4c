"""Runs of a population on several devices: each device works on its own, alone."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def over_shards(
    function: Callable, sharding: NamedSharding | None, inputs: str, output: str
) -> Callable:
    """Let each device apply a function to its runs; there is no communication.

    Left to the compiler, nothing would be said about communication; `shard_map` has
    none that is not asked for.

    Args:
        function: Function of arrays, or pytrees of arrays.
        sharding: How axis 0 of an array of runs is sharded; None calls `function` as
            it is.
        inputs: A letter for each argument: ``r`` has runs on axis 0, ``-`` is the same
            for all runs.
        output: A letter for each result: ``r`` as above, ``t`` has steps on axis 0 and
            runs on axis 1. One letter stands for a result that is no tuple.

    Returns:
        The function.
    """
    if sharding is None:
        return function
    runs = sharding.spec[0]
    specs = {
        "r": PartitionSpec(runs),
        "t": PartitionSpec(None, runs),
        "-": PartitionSpec(),
    }
    out_specs = tuple(specs[letter] for letter in output)
    return jax.shard_map(
        function,
        mesh=sharding.mesh,
        in_specs=tuple(specs[letter] for letter in inputs),
        out_specs=out_specs[0] if len(output) == 1 else out_specs,
        # A user's function need not know of the mesh.
        check_vma=False,
    )


def sharding_of_runs(tree: Any) -> NamedSharding | None:
    """How the runs of a pytree are sharded over devices; None if they are not."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.spec:
            runs = sharding.spec[0]
            if runs is not None and num_places(sharding) > 1:
                return NamedSharding(sharding.mesh, PartitionSpec(runs))
    return None


def num_places(sharding: NamedSharding | None) -> int:
    """Into how many pieces axis 0 is cut."""
    if sharding is None:
        return 1
    runs = sharding.spec[0]
    names = runs if isinstance(runs, tuple) else (runs,)
    size = 1
    for name in names:
        size *= sharding.mesh.shape[name]
    return size
