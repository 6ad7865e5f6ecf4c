"""Train many runs at once: one compiled step for all of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree

from jaxtheory._types import Measurement, Objective, StatefulMeasurement, TrainState
from jaxtheory.batching import check_count, check_function
from jaxtheory.dynamics import _checks, _store
from jaxtheory.dynamics._history import History
from jaxtheory.dynamics._run import follow, history, strong
from jaxtheory.dynamics._runs import Block, Population
from jaxtheory.dynamics._schedule import Piece, check_schedule, most_steps, pieces
from jaxtheory.dynamics._shards import num_places, sharding_of_runs
from jaxtheory.dynamics._step import Recipe
from jaxtheory.dynamics._store import Chunk

_MAKE_STATES = "`init_population(optimizer, params)`"
_CACHE_BYTES = 2**20


def train_population(
    objective: Objective,
    states: TrainState,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    num_steps: int,
    keys: Key[Array, " m"],
    batch_size: int | Sequence[int] | None = None,
    record: Mapping[str, Measurement | StatefulMeasurement] | None = None,
    trace: Mapping[str, Measurement] | None = None,
    record_every: int | Sequence[int] | None = None,
    stop_when: Callable[[TrainState], Any] | None = None,
    runs_at_once: int | None = None,
    store: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train ``m`` runs at once, measuring along the way.

    The step of `train` under `jax.vmap`: run ``i`` is ``train(objective, states[i],
    ..., key=keys[i])``, to rounding. Runs differ in their parameters, keys, batch sizes
    and in what `init_population` writes into their optimizer states (learning rate,
    weight decay, noise); `data` is the same for all.

    **Runs are axis 1** of ``history.records[name]`` ``[r, m, ...]`` and
    ``history.trace[name]`` ``[t, m, ...]``, and axis 0 of ``history.state`` ``[m,
    ...]``: `matplotlib`'s ``plot(history.steps, records)`` draws a line for each run.
    ``jax.tree.map(lambda a: a[i], history.state)`` is the state of run ``i``.

    **Divergence** concerns one run, the others go on untouched. The run whose loss or
    length of step ``s`` is not finite is kept, and frozen at the state before that
    step, its last finite one (`train` returns the one at the last record);
    ``diverged_at[i]`` is ``s``, and -1 where nothing diverged. Row ``s`` of its trace
    holds what was not finite.

    **Stopping.** `stop_when` is asked for each run at each record. Where it holds, the
    run is frozen, not dropped, and ``stopped_at[i]`` is its step; -1 elsewhere. When
    all runs have ended, so does training. To take a window of iterates from each run's
    stop on, pass ``history.state`` to a second call (see `train`): all runs go on.

    **Frozen runs** are measured on: records repeat what holds for their last state. In
    their trace, ``"loss"`` and ``"step_length"`` are NaN where no step was taken.

    **Steps.** ``history.steps`` count as `train` counts them; where runs begin at
    different steps, as the one that begins earliest. ``diverged_at[i]``,
    ``stopped_at[i]`` and ``state.step[i]`` count the steps of run ``i``.

    **Groups.** Runs with different batch sizes are trained in groups, one compiled
    program for each size, and come back in the order given. Runs of different widths
    are groups of yours: `join_runs` joins their histories.

    **Devices.** Where the parameters are sharded over runs
    (``jax.device_put(params, NamedSharding(mesh, PartitionSpec("runs")))``, so that
    each device holds as many), every device trains its own and states stay where they
    are: the compiled program has no communication. `data` is copied to each device.
    (Where `runs_at_once` makes runs take turns, their states move between devices after
    each chunk.)

    **Store, interruption, schedules** are those of `train`: one folder holds all runs.

    Args:
        objective: As of `train`, of one run.
        states: Where to start, runs on axis 0 of every array: from `init_population` or
            an earlier history.
        optimizer: The optax optimizer that `states` were made with.
        data: Pytree of arrays ``[n, ...]``, the same for all runs.
        num_steps: Number of steps to take from `states`.
        keys: A typed key for each run, ``jax.random.split(key, m)``. Equal keys give
            equal batches.
        batch_size: Examples per step, one number or one for each run; None takes all.
        record: Measurements of the state of one run, as of `train`.
        trace: Measurements of one run at every step, as of `train`.
        record_every: Steps between records, or the steps of the records.
        stop_when: ``stop_when(state) -> boolean scalar`` of one run, asked at each
            record; None never stops.
        runs_at_once: The most runs that are trained at once; the others wait their
            turn, after each chunk. Bounds what a step needs beside the states; rounded
            up to a multiple of the devices. None trains all at once, but on a CPU no
            more than fit into its cache (states of a megabyte), which is faster.
        store: Folder to keep the population in; None keeps it in memory only.
        resume: Continue the population in `store`, if there is one. Bit-identical
            with the same `runs_at_once`.
        progress: Show a progress bar: the mean loss of the runs that go on, and their
            number.

    Returns:
        The history; `diverged_at` and `stopped_at` are integer arrays ``[m]``.

    Raises:
        ValueError: As of `train`; `states` or `keys` have no axis of runs, or disagree
            about their number; `batch_size` has another length.

    Memory:
        A few copies of all states, whatever `runs_at_once`; activations, gradients and
        batches of `runs_at_once` runs.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> objective = dynamics.supervised(
        ...     lambda w, x: x @ w, lambda out, y: (out - y) ** 2
        ... )
        >>> data = jnp.eye(2), jnp.array([1.0, 2.0])
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        >>> states = dynamics.init_population(
        ...     optimizer,
        ...     jnp.zeros((3, 2)),
        ...     hyperparams={"learning_rate": jnp.array([0.5, 1.0, 1e15])},
        ... )
        >>> history = dynamics.train_population(
        ...     objective,
        ...     states,
        ...     optimizer,
        ...     data,
        ...     num_steps=4,
        ...     keys=jax.random.split(jax.random.key(0), 3),
        ...     record={"w": lambda s: s.params},
        ...     record_every=2,
        ...     progress=False,
        ... )
        >>> history.records["w"].shape, history.records["w"][-1, :2].tolist()
        ((3, 3, 2), [[0.9375, 1.875], [1.0, 2.0]])
        >>> history.diverged_at.tolist()
        [-1, -1, 1]
    """
    check_function("objective", objective)
    record, trace = _checks.check_measurements(record, trace)
    num_runs = _check_states(states, optimizer)
    _checks.check_keys(keys, num_runs)
    batch_sizes = _batch_sizes(batch_size, num_runs)
    num_examples = _checks.check_data(data, *dict.fromkeys(batch_sizes))
    schedule = check_schedule(num_steps, record_every)
    _checks.check_stop_when(stop_when)
    _checks.check_store(store, resume)
    if runs_at_once is not None:
        runs_at_once = check_count(runs_at_once=runs_at_once)

    sharding = sharding_of_runs(states.params)
    if runs_at_once is None:
        runs_at_once = _runs_in_cache(states, num_runs, num_places(sharding))
    states, data, keys = _placed(states, data, keys, sharding)
    steps = np.asarray(states.step)
    first_step = int(steps.min())
    todo = [
        Piece(piece.start + first_step, piece.end + first_step, piece.recorded)
        for piece in pieces(schedule, num_steps)
    ]
    make = lambda size: Recipe(
        objective,
        optimizer,
        tuple(trace.items()),
        most_steps(schedule),
        size,
        sharding,
    )
    blocks = _blocks(make, batch_sizes, runs_at_once, num_places(sharding))
    population = Population(
        todo, blocks, tuple(record.items()), stop_when, data, keys, steps, sharding
    )
    shapes = population.shapes(states)
    chunks = []
    if store is not None:
        settings = {
            "first_step": first_step,
            "record_every": schedule,
            "batch_size": batch_size if _is_one(batch_size) else batch_sizes,
            "num_examples": num_examples,
            "num_runs": num_runs,
        }
        inputs = states._asdict() | {"data": data, "keys": keys}
        chunks = _store.begin(store, settings, inputs, shapes, resume=resume)
    start = Chunk(first_step, states, None, None, None)
    follow(population, start, chunks, store, progress)
    return history(chunks, shapes)


def _check_states(states, optimizer) -> int:
    """The number of runs; raise unless all arrays have them, and fit the optimizer."""
    _checks.check_state(states, "states", _MAKE_STATES)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(states)):
        raise ValueError(
            "`states` must have values, but are traced. Call `train_population` outside"
            " `jit`: what it loops over is compiled."
        )
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "`optimizer` must be an optax optimizer, but is a "
            f"{type(optimizer).__name__}."
        )
    fields = {f"states.{name}": tree for name, tree in states._asdict().items()}
    num_runs = _checks.check_runs(**fields)
    expected = jax.eval_shape(jax.vmap(optimizer.init), states.params)
    _checks.check_optimizer(expected, states, "states", _MAKE_STATES)
    _check_shapes("opt_state", states.opt_state, expected)
    _check_shapes("initial_params", states.initial_params, states.params)
    return num_runs


def _check_shapes(name, tree, expected):
    """Raise unless a field of the states has the shapes that the parameters ask for."""
    structures = [jax.tree.structure(one) for one in (tree, expected)]
    shapes = [[np.shape(a) for a in jax.tree.leaves(one)] for one in (tree, expected)]
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            f"`states.{name}` must fit `states.params`, with arrays of the shapes "
            f"{shapes[1]}, but has {shapes[0]}. Make the states with {_MAKE_STATES}."
        )


def _is_one(batch_size):
    """Whether it is one batch size for all runs."""
    return batch_size is None or np.ndim(batch_size) == 0


def _batch_sizes(batch_size, num_runs) -> list[int | None]:
    """The batch size of each run."""
    if _is_one(batch_size):
        return [batch_size] * num_runs
    sizes = [size.item() if hasattr(size, "item") else size for size in batch_size]
    whole = all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)
    if len(sizes) != num_runs or not whole:
        raise ValueError(
            f"`batch_size` must be one integer, or one for each of the {num_runs} runs,"
            f" but was a sequence of {len(sizes)}{'' if whole else ' with others'}."
        )
    return sizes


def _runs_in_cache(states, num_runs, places) -> int | None:
    """How many runs CPUs train at once; None, for all, on other devices."""
    leaves = jax.tree.leaves((states.params, states.opt_state, states.model_state))
    device, *_ = jnp.asarray(leaves[0]).devices()
    # States of other processes cannot be moved to where their turn is.
    alone = all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves)
    if device.platform != "cpu" or not alone:
        return None
    # Of 64 perceptrons, 5e3 and 5e4 numbers each, 32 and 4 at once were fastest.
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / num_runs
    return places * max(1, int(_CACHE_BYTES // size))


def _placed(states, data, keys, sharding):
    """All arrays where the runs are."""
    states, data = strong(states), jax.tree.map(jnp.asarray, data)
    if sharding is None:
        return states, data, keys
    everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    states, keys = jax.device_put((states, keys), sharding)
    return states, jax.device_put(data, everywhere), keys


def _blocks(make_recipe, batch_sizes, runs_at_once, multiple) -> tuple[Block, ...]:
    """The runs by batch size, and no more than `runs_at_once` together."""
    blocks = []
    for size in dict.fromkeys(batch_sizes):
        rows = np.flatnonzero([other == size for other in batch_sizes])
        parts = -(-len(rows) // min(runs_at_once or len(rows), len(rows)))
        # As even as can be: what is missing in the last one is trained in vain.
        width = -(-len(rows) // parts)
        width = -(-width // multiple) * multiple
        recipe = make_recipe(size)
        for start in range(0, len(rows), width):
            real = rows[start : start + width]
            padding = np.repeat(real[-1:], width - len(real))
            is_real = np.arange(width) < len(real)
            blocks.append(Block(np.concatenate([real, padding]), is_real, recipe))
    return tuple(blocks)
