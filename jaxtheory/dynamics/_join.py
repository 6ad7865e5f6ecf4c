"""Histories of several populations as one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.dynamics._history import History


def join_runs(histories: Sequence[History]) -> History:
    """Join populations along their runs, networks of different widths for example.

    Args:
        histories: Histories of populations of ``m_1, m_2, ...`` runs, recorded at the
            same steps, under the same names and with the same shapes.

    Returns:
        The history of all ``m_1 + m_2 + ...`` runs in that order. State and memory are
        kept where all their arrays have the same names and shapes, and None where they
        have not (other widths, another optimizer).

    Raises:
        ValueError: There is none; one is of a single run; they differ in their steps or
            in the names, shapes or types of what they recorded.

    Memory:
        A copy of all records.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> objective = lambda w, model_state, x, key: (jnp.mean(x) * w.sum(), ())
        >>> optimizer = optax.sgd(0.1)
        >>> def train(width):
        ...     return dynamics.train_population(
        ...         objective,
        ...         dynamics.init_population(optimizer, jnp.ones((2, width))),
        ...         optimizer,
        ...         jnp.ones(4),
        ...         num_steps=3,
        ...         keys=jax.random.split(jax.random.key(0), 2),
        ...         progress=False,
        ...     )
        >>> both = dynamics.join_runs([train(1), train(5)])
        >>> both.trace["loss"].shape, both.state
        ((3, 4), None)
    """
    histories = list(histories)
    _check_populations(histories)
    first = histories[0]
    for name in ("records", "trace"):
        _check_alike(name, [getattr(history, name) for history in histories])
    along = lambda axis: lambda *leaves: np.concatenate(leaves, axis)
    trees = lambda name: [getattr(history, name) for history in histories]
    return first._replace(
        state=_joined(trees("state")),
        records=jax.tree.map(along(1), *trees("records")),
        trace=jax.tree.map(along(1), *trees("trace")),
        diverged_at=np.concatenate(trees("diverged_at")),
        memory=_joined(trees("memory")),
        stopped_at=np.concatenate(trees("stopped_at")),
    )


def _check_populations(histories):
    """Raise unless all are populations with the same steps."""
    if not histories:
        raise ValueError("`histories` must hold at least one history, but is empty.")
    for i, history in enumerate(histories):
        if not isinstance(history, History) or np.ndim(history.stopped_at) != 1:
            raise ValueError(
                f"`histories[{i}]` must be the history of a population, from "
                "`train_population`, but is not. A single run is a population of one."
            )
        steps, others = np.asarray(histories[0].steps), np.asarray(history.steps)
        if not np.array_equal(steps, others):
            ends = [f"{len(s)} records up to step {s[-1]}" for s in (steps, others)]
            raise ValueError(
                f"`histories[{i}].steps` must be those of `histories[0]`, which has "
                f"{ends[0]}, but has {ends[1]}. Train all with the same `record_every` "
                "and `num_steps` (a population ends early when all its runs do)."
            )


def _check_alike(name, trees):
    """Raise unless all trees have the same names, shapes and types but for the runs."""
    expected = _described(trees[0])
    for i, tree in enumerate(trees):
        found = _described(tree)
        different = [
            f"{path} ({expected.get(path)} in the first, {found.get(path)} here)"
            for path in sorted(expected.keys() | found.keys())
            if expected.get(path) != found.get(path)
        ]
        if different:
            raise ValueError(
                f"`histories[{i}].{name}` must be like those of `histories[0]` but for "
                f"the number of runs. What differs: {'; '.join(different)}. Leave it "
                f"out with `history._replace({name}=...)`."
            )


def _described(tree):
    """Shape and type of each array without the axis of runs, by its path."""
    return {
        jax.tree_util.keystr(
            path
        ): f"{leaf.dtype}[{leaf.shape[0]}, m, {leaf.shape[2:]}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _joined(trees):
    """States or memories of all runs; None where they do not fit."""
    structures = {jax.tree.structure(tree) for tree in trees}
    shapes = {
        tuple((leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(tree))
        for tree in trees
    }
    if len(structures) > 1 or len(shapes) > 1:
        return None
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
