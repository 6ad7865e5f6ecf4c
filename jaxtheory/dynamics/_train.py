"""Train with any optax optimizer and measure along the way."""

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm import tqdm

from jaxtheory._types import (
    KeyArray,
    Measurement,
    Objective,
    Params,
    StatefulMeasurement,
    TrainState,
)
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_key,
    check_params,
    num_shards,
)
from jaxtheory.dynamics import _measure, _store
from jaxtheory.dynamics._history import History
from jaxtheory.dynamics._progress import ticking
from jaxtheory.dynamics._step import Recipe, first_order, run_chunk
from jaxtheory.dynamics._store import Chunk

_ALWAYS_TRACED = ("loss", "step_length")


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
    params = _strong(params)
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step, params, optimizer.init(params), model_state, params)
    return _strong(state)


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
    record_every: int | None = None,
    store: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train, measuring at every ``record_every``-th step and, cheaply, at every step.

    Training runs in jitted chunks of `record_every` steps (one `lax.scan` each), with
    the measurements of `record` between them; each chunk's records move to the host,
    so device memory does not grow with their number. The numbers are those of one scan
    over all steps. The device works on a chunk while the host keeps the one before.
    Functions are static arguments of the compiled programs: a second
    call with the same functions, optimizer and shapes compiles nothing.

    **Batches.** With `batch_size`, the permutation of epoch ``e`` is
    ``jax.random.permutation(fold_in(fold_in(key, 0), e), n)``, cut into
    ``n // batch_size`` batches; the incomplete last one is dropped. The objective's key
    at step ``t`` is ``fold_in(fold_in(key, 1), t)``. ``t`` and ``e`` count from the
    state's step, so that continuing from ``history.state`` with the same key is exact.

    **Divergence** is data. When the loss or the length of step ``s`` is not finite,
    training stops: ``diverged_at`` is ``s``, `trace` ends with its row, and state and
    records are those of the last multiple of `record_every` before it. (Non-finite
    already at the first step: one record, one row.)

    **Memory of measurements.** A `StatefulMeasurement` begins with ``init(state)`` of
    the state given, also where that comes from an earlier history: its memory is no
    part of the state. To go on with the old one, pass
    ``measurement._replace(init=lambda state: history.memory[name])``. A resumed run
    goes on with the memory in its `store`.

    **Interruption.** Ctrl-C returns what has been recorded until then
    (``history.steps[-1]`` tells how far), and says so.

    **Store.** With `store`, each chunk is a file in that folder, and so is the latest
    state. Killing the process costs at most the chunk in flight; calling again with
    ``resume=True`` continues with bit-identical numbers (as far as the backend
    computes the same program the same way twice), also to a larger `num_steps`. A
    finished or diverged run is read back and not trained on. Functions cannot be
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
            100.
        store: Folder to keep the run in; None keeps it in memory only.
        resume: Continue the run in `store`, if there is one.
        progress: Show a progress bar.

    Returns:
        The history; records and trace are NumPy arrays.

    Raises:
        ValueError: An argument does not fit the others; a measurement returns
            something that is not an array; `store` holds a run and `resume` is False,
            another run, more steps than `num_steps`, or a damaged file.

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
    record = _check_measurements("record", record)
    trace = _check_measurements("trace", trace)
    _check_trace(trace)
    check_key(key)
    num_examples = _check_data(data, batch_size)
    every = _check_steps(num_steps, record_every)
    _check_optimizer(optimizer, state)
    if resume and store is None:
        raise ValueError("`resume` needs a folder to resume from: pass `store`.")

    data = jax.tree.map(jnp.asarray, data)
    state = _beside(data, _strong(state))
    first_step = int(state.step)
    recipe = Recipe(objective, optimizer, tuple(trace.items()), every, batch_size)
    run = _Run(recipe, tuple(record.items()), data, key, first_step + num_steps)
    shapes = run.shapes(state)
    chunks = []
    if store is not None:
        settings = {
            "first_step": first_step,
            "record_every": every,
            "batch_size": batch_size,
            "num_examples": num_examples,
        }
        inputs = state._asdict() | {"data": data, "key": key}
        chunks = _store.begin(store, settings, inputs, shapes, resume=resume)
    _follow(run, state, chunks, store, progress)
    return _history(chunks, shapes)


class _Run(NamedTuple):
    """A whole run but its state: how to train, what to measure, how far to go."""

    recipe: Recipe
    record: tuple[tuple[str, Measurement | StatefulMeasurement], ...]
    data: PyTree
    key: KeyArray
    last_step: int

    def shapes(self, state: TrainState) -> Chunk:
        """Shapes of what a chunk records, with the state it starts from."""
        order = first_order.eval_shape(self.recipe, self.data, state.step, self.key)
        _, _, trace = run_chunk.eval_shape(
            self.recipe, state, order, self.data, self.key
        )
        memory = _measure.begin.eval_shape(self.record, state)
        records, memory = _measure.measure.eval_shape(self.record, state, memory)
        return Chunk(0, state, records, trace, memory)

    def chunks(
        self, state: TrainState, memory: PyTree, *, fresh: bool
    ) -> Iterator[Chunk]:
        """Train from `state` on and yield chunk after chunk.

        A fresh run begins with the record of the state that it starts from. A chunk
        that diverged is the last.
        """
        start, every = int(state.step), self.recipe.num_steps
        if fresh:
            records, memory = _measure.measure(self.record, state, self._begin(state))
            yield Chunk(start, state, jax.device_get(records), None, memory)
        order = first_order(self.recipe, self.data, state.step, self.key)
        ahead = self._launch(state, order, memory)
        for end in range(start + every, self.last_step + 1, every):
            after, order, remembered, *recorded = ahead
            # The device works on the next chunk while the host deals with this one.
            if end < self.last_step:
                ahead = self._launch(after, order, remembered)
            trace, records = jax.device_get(recorded)
            num_good = _count_good(trace)
            if num_good < every:
                trace = jax.tree.map(lambda a, last=num_good: a[: last + 1], trace)
                yield Chunk(end - every + num_good, state, None, trace, memory)
                return
            state, memory = after, remembered
            yield Chunk(end, state, records, trace, memory)

    def _begin(self, state):
        """The memories before the first record; without any, no program to compile."""
        remember = any(isinstance(m, StatefulMeasurement) for _, m in self.record)
        return _measure.begin(self.record, state) if remember else {}

    def _launch(self, state, order, memory):
        """Start a chunk and the measurements at its end; returns at once."""
        after, order, trace = run_chunk(self.recipe, state, order, self.data, self.key)
        after = after._replace(initial_params=state.initial_params)
        records, memory = _measure.measure(self.record, after, memory)
        return after, order, memory, trace, records


def _follow(run, state, chunks, store, progress):
    """Train to the end, adding every chunk to `chunks` and to the store."""
    memory = None
    if chunks:
        state, memory = chunks[-1].state, chunks[-1].memory
        _check_ahead(run, int(state.step), store)
        if chunks[-1].records is None or int(state.step) == run.last_step:
            return
    bar = tqdm(
        total=run.last_step, initial=int(state.step), unit="step", disable=not progress
    )
    try:
        with ticking(bar):
            for chunk in run.chunks(state, memory, fresh=not chunks):
                if store is not None:
                    _store.write(store, chunk)
                chunks.append(chunk)
                if len(chunks) > 1:
                    chunks[-2] = chunks[-2]._replace(state=None, memory=None)
                    loss = chunk.trace["loss"][-1]
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    bar.update(chunk.step - bar.n)
    except KeyboardInterrupt:
        if not chunks:
            raise
        tqdm.write(
            f"Interrupted: returning what was recorded up to step {chunks[-1].step}.",
            file=sys.stderr,
        )


def _count_good(trace) -> int:
    """How many steps of a chunk come before the first that is not finite."""
    bad = ~(np.isfinite(trace["loss"]) & np.isfinite(trace["step_length"]))
    return int(np.argmax(bad)) if bad.any() else len(bad)


def _history(chunks, shapes):
    """Stack what the chunks recorded."""
    recorded = [chunk for chunk in chunks if chunk.records is not None]
    traces = [chunk.trace for chunk in chunks if chunk.trace is not None]
    none = jax.tree.map(lambda s: np.empty((0, *s.shape[1:]), s.dtype), shapes.trace)
    return History(
        state=chunks[-1].state,
        steps=np.array([chunk.step for chunk in recorded]),
        records=jax.tree.map(
            lambda *leaves: np.stack(leaves), *[chunk.records for chunk in recorded]
        ),
        trace=jax.tree.map(lambda *leaves: np.concatenate(leaves), none, *traces),
        diverged_at=None if chunks[-1].records is not None else chunks[-1].step,
        memory=chunks[-1].memory,
    )


def _strong(tree: PyTree) -> PyTree:
    """Arrays of definite type: a weakly typed one would change after the first step."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


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


def _check_measurements(
    argument: str, functions: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The measurements by name; raise unless each has a name and can be called."""
    if not isinstance(functions, Mapping | None):
        raise ValueError(
            f"`{argument}` must map names to measurements, but is a "
            f'{type(functions).__name__}. Pass `{{"name": measure}}`.'
        )
    for name, function in (functions or {}).items():
        measures = callable(function) or isinstance(function, StatefulMeasurement)
        if not isinstance(name, str) or not measures:
            raise ValueError(
                f"`{argument}[{name!r}]` must be a function under a name that is a "
                f"string, but is a {type(function).__name__} under a "
                f"{type(name).__name__}."
            )
    return dict(functions or {})


def _check_trace(trace: Mapping[str, Any]) -> None:
    for name, function in trace.items():
        if isinstance(function, StatefulMeasurement):
            raise ValueError(
                f"`trace[{name!r}]` must be a function of the state alone, but is a "
                "`StatefulMeasurement`: nothing is remembered from step to step. Pass "
                "it to `record`, with `record_every=1` if need be."
            )
    for name in _ALWAYS_TRACED:
        if name in trace:
            raise ValueError(
                f"`trace` must not use the name {name!r}, which is always traced. "
                "Choose another one."
            )


def _check_ahead(run, step, store):
    if step > run.last_step:
        raise ValueError(
            f"`num_steps` must reach at least step {step}, which the run in `store` "
            f"{os.fspath(store)!r} has recorded already, but ends at step "
            f"{run.last_step}. Ask for more steps and cut the history."
        )


def _check_data(data: PyTree, batch_size: int | None) -> int:
    """The number of examples."""
    num_examples = check_examples(data=data)
    check_batch_size(batch_size)
    if batch_size is not None and batch_size > num_examples:
        raise ValueError(
            f"`batch_size` must be at most the number of examples, {num_examples}, but "
            f"was {batch_size}. Pass None for full batches."
        )
    if batch_size is not None:
        num_shards(data)  # refuses explicit axes, on which no batch can be drawn
    return num_examples


def _check_steps(num_steps: int, record_every: int | None) -> int:
    """Steps from one record to the next."""
    for name, value in (("num_steps", num_steps), ("record_every", record_every)):
        if name == "record_every" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, but was {value!r}.")
    if record_every is None:
        return max(d for d in range(1, min(num_steps, 100) + 1) if num_steps % d == 0)
    if num_steps % record_every:
        raise ValueError(
            f"`record_every` must divide `num_steps`, so that the last state is "
            f"recorded, but {record_every} does not divide {num_steps}."
        )
    return record_every


def _check_optimizer(optimizer, state: TrainState) -> None:
    """Raise unless the optimizer state is of the optimizer."""
    if not isinstance(state, TrainState):
        raise ValueError(
            f"`state` must be a `TrainState`, but is a {type(state).__name__}. Make it "
            "with `init(optimizer, params)`."
        )
    check_params(state.params)
    expected = jax.tree.structure(jax.eval_shape(optimizer.init, state.params))
    actual = jax.tree.structure(state.opt_state)
    if expected != actual:
        raise ValueError(
            "`state.opt_state` must be of `optimizer`, whose state has structure "
            f"{expected}, but has structure {actual}. Make the state with "
            "`init(optimizer, params)`."
        )
