"""How a population is trained: a block of runs after another, chunk by chunk."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from jaxtheory._types import Measurement, StatefulMeasurement, TrainState
from jaxtheory.dynamics import _measure
from jaxtheory.dynamics._run import Flow, Run, is_bad, num_rows
from jaxtheory.dynamics._schedule import Piece
from jaxtheory.dynamics._step import Recipe, first_orders, run_chunks
from jaxtheory.dynamics._store import Chunk


class Block(NamedTuple):
    """Runs that one compiled program trains together.

    Attributes:
        rows: Which runs; the last one again where the block is not full.
        is_real: Which of them are not there to fill it.
        recipe: How they are trained.
    """

    rows: np.ndarray
    is_real: np.ndarray
    recipe: Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Population(Run):
    """Many runs. Steps are counted as by the one that begins earliest."""

    blocks: tuple[Block, ...]
    record: tuple[tuple[str, Measurement | StatefulMeasurement], ...]
    stop_when: Callable[[TrainState], Any] | None
    data: PyTree
    keys: Any
    first_steps: np.ndarray
    sharding: NamedSharding | None

    @functools.cached_property
    def positions(self) -> np.ndarray | None:
        """Where each run is in the blocks joined; None where it is where it was."""
        rows = np.concatenate([block.rows for block in self.blocks])
        real = np.concatenate([block.is_real for block in self.blocks])
        if np.array_equal(rows, np.arange(len(self.first_steps))):
            return None
        found = np.empty(len(self.first_steps), np.int32)
        found[rows[real]] = np.flatnonzero(real)
        return found

    def shapes(self, state: TrainState) -> Chunk:
        block = self.blocks[0]
        width, everything = len(block.rows), len(self.first_steps)
        states, keys = _resized((state, self.keys), width, 0)
        start = jax.ShapeDtypeStruct((width,), np.int32)
        active = jax.ShapeDtypeStruct((width,), np.bool_)
        order = first_orders.eval_shape(block.recipe, self.data, start, keys)
        _, _, trace, _ = run_chunks.eval_shape(
            block.recipe, states, order, self.data, keys, start, np.int32(0), active
        )
        memory = _measure.begin_many.eval_shape(self.record, self.sharding, states)
        records, memory, _, _ = _measure.measure_many.eval_shape(
            self.record, self.stop_when, self.sharding, states, memory, active
        )
        records, memory = _resized((records, memory), everything, 0)
        trace = _resized(trace, everything, 1)
        return Chunk(0, state, records, trace, memory, self._ended())

    def first(self, state: TrainState) -> Chunk:
        going = np.ones(len(self.first_steps), bool)

        def measure(block):
            states, active = self._of(block, (state, going))
            memory = _measure.begin_many(self.record, self.sharding, states)
            return self._measured(states, memory, active)

        records, memory, stop, _ = self._joined([measure(b) for b in self.blocks])
        records, stop = jax.device_get((records, stop))
        ended = self._ended()
        ended["stopped_at"][stop] = self.first_steps[stop]
        first_step = int(self.first_steps.min())
        return Chunk(first_step, state, records, None, self._placed(memory), ended)

    def begin(self, latest: Chunk) -> Flow:
        orders = []
        for block in self.blocks:
            start = self._start(block, latest.step)
            keys = self._of(block, self.keys)
            orders.append(first_orders(block.recipe, self.data, start, keys))
        flags = np.stack(list(latest.ended.values()))
        active = self._placed(jnp.asarray((flags < 0).all(0)))
        order = self._placed(self._joined(orders))
        return Flow(latest.state, order, latest.memory, active)

    def launch(self, flow: Flow, piece: Piece) -> Flow:
        parts = [self._launch(block, flow, piece) for block in self.blocks]
        trace = self._joined([trace for _, trace, _ in parts], axis=1)
        kept = self._joined([kept for kept, _, _ in parts])
        state, order, memory, active = self._placed(kept)
        records, stop = self._joined([recorded for _, _, recorded in parts])
        state = state._replace(initial_params=flow.state.initial_params)
        return Flow(state, order, memory, active, (trace, records, stop))

    def _launch(self, block, flow, piece):
        """One block's part of a chunk: what is kept, its trace, its records."""
        start = self._start(block, piece.start)
        length = np.int32(piece.end - piece.start)
        states, order, memory, active, keys = self._of(
            block, (flow.state, flow.order, flow.memory, flow.active, self.keys)
        )
        if not block.is_real.all():
            active = active & block.is_real
        after, order, trace, active = run_chunks(
            block.recipe, states, order, self.data, keys, start, length, active
        )
        records = stop = None
        if piece.recorded:
            whole = after._replace(initial_params=states.initial_params)
            measured = self._measured(whole, memory, active)
            records, memory, stop, active = measured
        return (after, order, memory, active), trace, (records, stop)

    def finish(self, latest: Chunk, flow: Flow, piece: Piece) -> Chunk:
        trace, records, stop = jax.device_get(flow.recorded)
        trace = num_rows(trace, piece.end - piece.start)
        ended = {name: flags.copy() for name, flags in latest.ended.items()}
        going = np.logical_and.reduce([flags < 0 for flags in ended.values()])
        own = self.first_steps - self.first_steps.min()
        bad = is_bad(trace) & going
        diverged = bad.any(0)
        step = piece.start + own + np.argmax(bad, axis=0)
        ended["diverged_at"][diverged] = step[diverged]
        if stop is not None:
            ended["stopped_at"][stop] = (piece.end + own)[stop]
        return Chunk(piece.end, flow.state, records, trace, flow.memory, ended)

    def _ended(self):
        """Where runs ended: nowhere so far."""
        never = np.full(len(self.first_steps), -1, np.int32)
        return {"diverged_at": never, "stopped_at": never.copy()}

    def _measured(self, states, memory, active):
        return _measure.measure_many(
            self.record, self.stop_when, self.sharding, states, memory, active
        )

    def _start(self, block, step):
        """The step of each run of a block when the population is at `step`."""
        own = self.first_steps - self.first_steps.min()
        return (own + step)[block.rows].astype(np.int32)

    def _of(self, block, tree):
        """The arrays of the runs of a block."""
        if self.positions is None and len(self.blocks) == 1:
            return tree
        return self._placed(_picked(tree, block.rows, 0))

    def _joined(self, parts, axis=0):
        """The arrays of all runs, of those of the blocks."""
        if self.positions is None and len(parts) == 1:
            return parts[0]
        whole = _concatenated(parts, axis)
        if self.positions is None:
            return whole
        return _picked(whole, self.positions, axis)

    def _placed(self, tree):
        """Arrays of runs where the runs are."""
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)


@functools.partial(jax.jit, static_argnums=2)
def _picked(tree, rows, axis):
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis), tree)


@functools.partial(jax.jit, static_argnums=1)
def _concatenated(trees, axis):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *trees)


def _resized(tree, size, axis):
    """The shapes of a tree with another size of an axis."""

    def resize(leaf):
        shape = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(resize, tree)
