"""Train with any optax optimizer and measure along the way."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxtheory._types import (
    KeyArray,
    Measurement,
    Objective,
    Params,
    StatefulMeasurement,
    TrainState,
)
from jaxtheory.batching import check_key, check_params
from jaxtheory.dynamics import _checks, _measure, _store
from jaxtheory.dynamics._history import History
from jaxtheory.dynamics._run import (
    Flow,
    Run,
    follow,
    history,
    is_bad,
    num_rows,
    strong,
)
from jaxtheory.dynamics._schedule import Piece, check_schedule, most_steps, pieces
from jaxtheory.dynamics._step import Recipe, first_order, run_chunk
from jaxtheory.dynamics._store import Chunk

_MAKE_STATE = "`init(optimizer, params)`"


def init(
    optimizer: optax.GradientTransformation,
    params: Params,
    *,
    model_state: PyTree = (),
) -> TrainState:
    """The state in which training begins.

    Args:
        optimizer: An optax optimizer.
        params: Initial parameters; kept as `initial_params` too.
        model_state: Non-trained variables (BatchNorm statistics); ``()`` if none.

    Returns:
        The state at step 0.

    Raises:
        ValueError: `params` is empty or holds arrays that are not floating-point.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> state = init(optax.sgd(0.1), {"w": jnp.ones(3)})
        >>> int(state.step), state.params["w"].shape
        (0, (3,))
    """
    check_params(params)
    params = strong(params)
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step, params, optimizer.init(params), model_state, params)
    return strong(state)


def train(
    objective: Objective,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    num_steps: int,
    key: KeyArray,
    batch_size: int | None = None,
    record: Mapping[str, Measurement | StatefulMeasurement] | None = None,
    trace: Mapping[str, Measurement] | None = None,
    record_every: int | Sequence[int] | None = None,
    stop_when: Callable[[TrainState], Any] | None = None,
    store: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train, measuring at every ``record_every``-th step and, cheaply, at every step.

    Training runs in jitted chunks of `record_every` steps (one compiled loop each),
    with the measurements of `record` between them; each chunk's records move to the
    host, so device memory does not grow with their number. The numbers are those of one
    loop over all steps. The device works on a chunk while the host keeps the one
    before. Functions are static arguments of the compiled programs: a second call with
    the same functions, optimizer and shapes compiles nothing.

    **Schedules.** With a sequence of steps as `record_every` there are records at these
    steps alone; `log_spaced_steps` and `exponential_steps` make such sequences. Chunks
    then have at most 100 steps, so that a long gap between two records costs neither
    memory nor, interrupted, more than a chunk. All are one compiled program.

    **Batches.** With `batch_size`, the permutation of epoch ``e`` is
    ``jax.random.permutation(fold_in(fold_in(key, 0), e), n)``, cut into
    ``n // batch_size`` batches; the incomplete last one is dropped. The objective's key
    at step ``t`` is ``fold_in(fold_in(key, 1), t)``. ``t`` and ``e`` count from the
    state's step, so that continuing from ``history.state`` with the same key is exact.

    **Divergence** is data. When the loss or the length of step ``s`` is not finite,
    training stops: ``diverged_at`` is ``s``, `trace` ends with its row, and state and
    records are those of the last multiple of `record_every` before it (of a schedule,
    the state is that of the last chunk). (Non-finite already at the first step: one
    record, one row.) In `train_population` only that run stops, and its state is the
    one right before step ``s``.

    **Stopping.** `stop_when` is asked at each record, also at the first: training ends
    with the first record at which it holds, and ``stopped_at`` is that step. The last
    ``r`` iterates after a condition are two calls; the second begins where the first
    ended, and takes a sketch of every iterate::

        first = train(..., stop_when=lambda state: accuracy(state) == 1.0)
        window = train(
            objective, first.state, ..., num_steps=r, trace={"path": sketch()}
        )
        path = window.trace["path"]  # [r, 1024]

    **Memory of measurements.** A `StatefulMeasurement` begins with ``init(state)`` of
    the state given, also where that comes from an earlier history: its memory is no
    part of the state. To go on with the old one, pass
    ``measurement._replace(init=lambda state: history.memory[name])``. A resumed run
    goes on with the memory in its `store`.

    **Interruption.** Ctrl-C returns what has been recorded until then
    (``history.state.step`` tells how far), and says so.

    **Store.** With `store`, each chunk is a file in that folder, and so is the latest
    state. Killing the process costs at most the chunk in flight; calling again with
    ``resume=True`` continues with bit-identical numbers (as far as the backend
    computes the same program the same way twice), also to a larger `num_steps` (and to
    a schedule that begins with the one before). A finished, stopped or diverged run is
    read back and not trained on. Functions cannot be
    compared with those of the run in the folder: that objective, optimizer and
    measurements are the same is the caller's word.

    Args:
        objective: ``objective(params, model_state, batch, key) -> (scalar,
            model_state)``; see `supervised`.
        state: Where to start, from `init` or an earlier history.
        optimizer: Any optax optimizer; the one `state` was made with. Line searches,
            Polyak steps, plateaus and SAM get what they ask for (``value``, ``grad``,
            ``value_fn``, ``grad_fn``, ``obj_fn``) on the batch of the step; SAM's own
            `update` takes nothing else, so it cannot be inside an `optax.chain`.
        data: Pytree of arrays ``[n, ...]``, typically ``(x, y)``; may be sharded over a
            mesh.
        num_steps: Number of optimizer steps to take from `state`.
        key: A typed key (``jax.random.key``).
        batch_size: Examples per step; None takes all.
        record: Measurements ``measure(state) -> pytree of arrays`` taken at steps
            ``0, record_every, ..., num_steps`` (from the state's step). A
            `StatefulMeasurement` gets what it remembered at the record before.
        trace: Measurements taken at *every* step inside the compiled loop, of the
            state before the update. ``"loss"`` (the objective at that state on the
            step's batch) and ``"step_length"`` (Euclidean norm of the change of the
            parameters) are always traced.
        record_every: Steps between records; divides `num_steps`. It is also what an
            interruption can cost. None takes the largest divisor of `num_steps` up to
            100. Or the steps of the records, increasing, counted from the first step of
            this call: the last is `num_steps`, and 0 is added where it is missing.
        stop_when: ``stop_when(state) -> boolean scalar``, jittable, asked at each
            record; None never stops.
        store: Folder to keep the run in; None keeps it in memory only.
        resume: Continue the run in `store`, if there is one.
        progress: Show a progress bar.

    Returns:
        The history; records and trace are NumPy arrays.

    Raises:
        ValueError: An argument does not fit the others; a measurement returns
            something that is not an array, `stop_when` something that is not a boolean
            scalar; `store` holds a run and `resume` is False, another run, more steps
            than `num_steps`, or a damaged file.

    Memory:
        Up to four states (of the last chunk, this one and the next, and inside it),
        two records and three memories on the device, however many steps there are.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> objective = dynamics.supervised(
        ...     lambda w, x: x @ w, lambda out, y: (out - y) ** 2
        ... )
        >>> data = jnp.eye(2), jnp.array([1.0, 2.0])
        >>> optimizer = optax.sgd(0.5)
        >>> state = dynamics.init(optimizer, jnp.zeros(2))
        >>> history = dynamics.train(
        ...     objective,
        ...     state,
        ...     optimizer,
        ...     data,
        ...     num_steps=4,
        ...     key=jax.random.key(0),
        ...     record={"w": lambda s: s.params},
        ...     record_every=2,
        ...     progress=False,
        ... )
        >>> history.steps.tolist(), history.records["w"].tolist()
        ([0, 2, 4], [[0.0, 0.0], [0.75, 1.5], [0.9375, 1.875]])
        >>> history.trace["loss"].tolist()
        [2.5, 0.625, 0.15625, 0.0390625]
    """
    record, trace = _checks.check_measurements(record, trace)
    check_key(key)
    num_examples = _checks.check_data(data, batch_size)
    schedule = check_schedule(num_steps, record_every)
    _checks.check_state(state, "state", _MAKE_STATE)
    expected = jax.eval_shape(optimizer.init, state.params)
    _checks.check_optimizer(expected, state, "state", _MAKE_STATE)
    _checks.check_stop_when(stop_when)
    _checks.check_store(store, resume)

    data = jax.tree.map(jnp.asarray, data)
    state = _beside(data, strong(state))
    first_step = int(state.step)
    recipe = Recipe(
        objective, optimizer, tuple(trace.items()), most_steps(schedule), batch_size
    )
    todo = [
        Piece(piece.start + first_step, piece.end + first_step, piece.recorded)
        for piece in pieces(schedule, num_steps)
    ]
    run = _Single(todo, recipe, tuple(record.items()), stop_when, data, key)
    shapes = run.shapes(state)
    chunks = []
    if store is not None:
        settings = {
            "first_step": first_step,
            "record_every": schedule,
            "batch_size": batch_size,
            "num_examples": num_examples,
        }
        inputs = state._asdict() | {"data": data, "key": key}
        chunks = _store.begin(store, settings, inputs, shapes, resume=resume)
    follow(run, Chunk(first_step, state, None, None, None), chunks, store, progress)
    return history(chunks, shapes)


@dataclasses.dataclass(frozen=True)
class _Single(Run):
    """One run."""

    recipe: Recipe
    record: tuple[tuple[str, Measurement | StatefulMeasurement], ...]
    stop_when: Callable[[TrainState], Any] | None
    data: PyTree
    key: KeyArray

    def shapes(self, state: TrainState) -> Chunk:
        now = np.int32(0)
        order = first_order.eval_shape(self.recipe, self.data, now, self.key)
        _, _, trace = run_chunk.eval_shape(
            self.recipe, state, order, self.data, self.key, now, now
        )
        memory = _measure.begin.eval_shape(self.record, state)
        records, memory, _ = _measure.measure.eval_shape(
            self.record, self.stop_when, state, memory
        )
        return Chunk(0, state, records, trace, memory, self._ended())

    def first(self, state: TrainState) -> Chunk:
        remember = any(isinstance(m, StatefulMeasurement) for _, m in self.record)
        # Without any, no program to compile.
        memory = _measure.begin(self.record, state) if remember else {}
        records, memory, stop = self._measured(state, memory)
        step = int(state.step)
        records, stop = jax.device_get((records, stop))
        return Chunk(step, state, records, None, memory, self._ended(step, stop))

    def begin(self, latest: Chunk) -> Flow:
        step = np.int32(latest.step)
        order = first_order(self.recipe, self.data, step, self.key)
        return Flow(latest.state, order, latest.memory)

    def launch(self, flow: Flow, piece: Piece) -> Flow:
        start, length = np.int32(piece.start), np.int32(piece.end - piece.start)
        state, order, trace = run_chunk(
            self.recipe, flow.state, flow.order, self.data, self.key, start, length
        )
        state = state._replace(initial_params=flow.state.initial_params)
        if not piece.recorded:
            return Flow(state, order, flow.memory, None, (trace, None, None))
        records, memory, stop = self._measured(state, flow.memory)
        return Flow(state, order, memory, None, (trace, records, stop))

    def finish(self, latest: Chunk, flow: Flow, piece: Piece) -> Chunk:
        trace, records, stop = jax.device_get(flow.recorded)
        trace = num_rows(trace, piece.end - piece.start)
        bad = is_bad(trace)
        if bad.any():
            num_good = int(np.argmax(bad))
            return latest._replace(
                step=piece.start + num_good,
                records=None,
                trace=num_rows(trace, num_good + 1),
                diverged=True,
            )
        ended = self._ended(piece.end, stop)
        return Chunk(piece.end, flow.state, records, trace, flow.memory, ended)

    def _measured(self, state, memory):
        return _measure.measure(self.record, self.stop_when, state, memory)

    def _ended(self, step=0, stop=False):
        """Where the condition held; nothing at all where there is none."""
        if self.stop_when is None:
            return {}
        return {"stopped_at": np.array(step if stop else -1, np.int32)}


def _beside(data: PyTree, state: TrainState) -> TrainState:
    """The state on all devices that `data` is sharded over.

    Where a chunk would put it; so the first chunk is the same program as the others.
    """
    sharding = jax.tree.leaves(data)[0].sharding
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return state
    everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    place = lambda leaf: leaf if leaf.committed else jax.device_put(leaf, everywhere)
    return jax.tree.map(place, state)
