"""What drives training: chunk after chunk, kept in memory and in the store."""

import abc
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from jaxtheory._types import TrainState
from jaxtheory.dynamics import _store
from jaxtheory.dynamics._history import History
from jaxtheory.dynamics._progress import ticking
from jaxtheory.dynamics._schedule import Piece
from jaxtheory.dynamics._store import Chunk


class Flow(NamedTuple):
    """What a chunk leaves on the device; the next one starts from it.

    Attributes:
        state: State after the chunk.
        order: Order of the examples in the epoch that it is in.
        memory: What the stateful measurements remember.
        active: For a population, which runs go on; None for one run.
        recorded: ``(trace, records, stop)`` of the chunk, on its way to the host; the
            last two are None where nothing is recorded.
    """

    state: TrainState
    order: Any
    memory: Any
    active: Any = None
    recorded: tuple[Any, Any, Any] = (None, None, None)


@dataclasses.dataclass(frozen=True)
class Run(abc.ABC):
    """A whole run, or a population of them, but its state.

    Attributes:
        pieces: The chunks to train, counted as the state counts steps.
    """

    pieces: Sequence[Piece]

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.pieces[-1].end

    @abc.abstractmethod
    def shapes(self, state: TrainState) -> Chunk:
        """Shapes of what a chunk records, with the state it starts from."""

    @abc.abstractmethod
    def first(self, state: TrainState) -> Chunk:
        """The record of the state that a fresh run begins with."""

    @abc.abstractmethod
    def begin(self, latest: Chunk) -> Flow:
        """What to launch the chunk after `latest` from."""

    @abc.abstractmethod
    def launch(self, flow: Flow, piece: Piece) -> Flow:
        """Start a chunk and the measurements at its end; returns at once."""

    @abc.abstractmethod
    def finish(self, latest: Chunk, flow: Flow, piece: Piece) -> Chunk:
        """What was recorded, on the host."""

    def chunks(self, latest: Chunk, *, fresh: bool) -> Iterator[Chunk]:
        """Train from `latest` on and yield chunk after chunk.

        A fresh run begins with the record of the state that it starts from. After a
        chunk that is over there is no other.
        """
        if fresh:
            latest = self.first(latest.state)
            yield latest
        todo = [piece for piece in self.pieces if piece.start >= latest.step]
        if latest.is_over or not todo:
            return
        ahead = self.launch(self.begin(latest), todo[0])
        for piece, following in zip(todo, [*todo[1:], None], strict=True):
            flow = ahead
            # The device works on the next chunk while the host deals with this one.
            if following is not None:
                ahead = self.launch(flow, following)
            latest = self.finish(latest, flow, piece)
            yield latest
            if latest.is_over:
                return


def follow(
    run: Run,
    start: Chunk,
    chunks: list[Chunk],
    store: str | os.PathLike | None,
    progress: bool,
) -> None:
    """Train to the end, adding every chunk to `chunks` and to the store.

    Args:
        run: What to train.
        start: Where a fresh run begins.
        chunks: What is recorded already; grows.
        store: Folder or None.
        progress: Whether to show a bar.

    Raises:
        ValueError: More is recorded than `run` has steps.
    """
    if chunks:
        _check_ahead(run, int(chunks[-1].step), store)
    latest = chunks[-1] if chunks else start
    bar = tqdm(
        total=run.last_step, initial=latest.step, unit="step", disable=not progress
    )
    try:
        with ticking(bar):
            for chunk in run.chunks(latest, fresh=not chunks):
                if store is not None:
                    _store.write(store, chunk)
                chunks.append(chunk)
                if len(chunks) > 1:
                    chunks[-2] = chunks[-2]._replace(state=None, memory=None)
                    bar.set_postfix(_shown(chunk), refresh=False)
                    bar.update(chunk.step - bar.n)
    except KeyboardInterrupt:
        if not chunks:
            raise
        tqdm.write(
            f"Interrupted: returning what was recorded up to step {chunks[-1].step}.",
            file=sys.stderr,
        )


def history(chunks: Sequence[Chunk], shapes: Chunk) -> History:
    """Stack what the chunks recorded.

    Args:
        chunks: In order; at least one.
        shapes: Shapes of one chunk.

    Returns:
        The history of one run, or of a population.
    """
    recorded = [chunk for chunk in chunks if chunk.records is not None]
    traces = [chunk.trace for chunk in chunks if chunk.trace is not None]
    none = jax.tree.map(lambda s: np.empty((0, *s.shape[1:]), s.dtype), shapes.trace)
    last = chunks[-1]
    diverged_at = last.ended.get("diverged_at", last.step if last.diverged else None)
    stopped_at = last.ended.get("stopped_at")
    if np.ndim(stopped_at) == 0 and stopped_at is not None:
        stopped_at = int(stopped_at) if stopped_at >= 0 else None
    return History(
        state=last.state,
        steps=np.array([chunk.step for chunk in recorded]),
        records=jax.tree.map(
            lambda *leaves: np.stack(leaves), *[chunk.records for chunk in recorded]
        ),
        trace=jax.tree.map(lambda *leaves: np.concatenate(leaves), none, *traces),
        diverged_at=diverged_at,
        memory=last.memory,
        stopped_at=stopped_at,
    )


def num_rows(trace: PyTree, length: int) -> PyTree:
    """The rows of the steps that a chunk had."""
    return jax.tree.map(lambda rows: rows[:length], trace)


def is_bad(trace: PyTree) -> np.ndarray:
    """Which steps are not finite."""
    return ~(np.isfinite(trace["loss"]) & np.isfinite(trace["step_length"]))


def strong(tree: PyTree) -> PyTree:
    """Arrays of definite type: a weakly typed one would change after the first step."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def _shown(chunk):
    """What the bar shows: the loss, its mean over the runs that go on."""
    losses = np.ravel(chunk.trace["loss"][-1])
    losses = losses[~np.isnan(losses)]
    shown = {"loss": f"{losses.mean():.4g}" if losses.size else "nan"}
    if np.ndim(chunk.trace["loss"]) == 2:
        shown["runs"] = str(losses.size)
    return shown


def _check_ahead(run, step, store):
    if step > run.last_step:
        raise ValueError(
            f"`num_steps` must reach at least step {step}, which the run in `store` "
            f"{os.fspath(store)!r} has recorded already, but ends at step "
            f"{run.last_step}. Ask for more steps and cut the history."
        )
