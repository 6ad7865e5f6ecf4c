"""What training returns: records along a trajectory."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PyTree

from jaxtheory._types import Measurement, TrainState
from jaxtheory.dynamics import _import

# Fields that say at which step runs ended.
_ENDS = ("diverged_at", "stopped_at")


class History(NamedTuple):
    """What training returns and a store holds on disk.

    Of a population of ``m`` runs (`train_population`), **runs are axis 1** of records
    and trace, after the axis of records or steps, and axis 0 of the state: each record
    is a measurement of all runs ``[m, ...]``. So ``plot(history.steps,
    history.records[name])`` draws a line for each run.

    Attributes:
        state: The last recorded state, or a later one where a schedule leaves long
            gaps (all finite, even when the run diverged); None when read from a store
            without the run's functions.
        steps: Steps at which `records` were taken: ``0, record_every, ...``. Shape
            ``[r]``. Of a population, as the run counts that begins earliest.
        records: For each recorded name, the measurements stacked on axis 0
            (``[r, ...]``; of a population ``[r, m, ...]``), as host (NumPy) arrays.
        trace: For each name traced at *every* step, values stacked on axis 0
            (``[t, ...]``; of a population ``[t, m, ...]``); row ``t`` belongs to the
            iterate before update ``t``. ``"loss"`` (of that step's batch) and
            ``"step_length"`` (Euclidean norm of the update made at that step) are
            always there; of a population, NaN after a run has ended.
        diverged_at: The first step whose loss or length was not finite, or None. Its
            row is the last one of `trace`. Of a population ``[m]``, -1 where a run did
            not diverge.
        memory: What each stateful measurement remembered after the last record, by
            name; None when read from a store without the run's functions.
        stopped_at: The step of the record at which `stop_when` held, or None. Of a
            population ``[m]``, -1 where a run did not stop.
    """

    state: TrainState
    steps: Any
    records: dict[str, Any]
    trace: dict[str, Any]
    diverged_at: Any
    memory: Any = None
    stopped_at: Any = None

    def select(self, start: int | None = None, stop: int | None = None) -> "History":
        """Cut out records ``start:stop``, and the trace of the steps between them.

        Args:
            start: First record, counted like a Python slice.
            stop: Record after the last one.

        Returns:
            The history of these records. State and memory are those of the end of the
            run: None without it. Divergence and stop are kept if they came before the
            last record that is left. Lazy arrays stay lazy.

        Raises:
            ValueError: No record is left.

        Example:
            >>> import numpy as np
            >>> from jaxtheory import dynamics
            >>> history = dynamics.History.from_arrays(np.arange(12.0).reshape(6, 2))
            >>> part = history.select(2, 5)
            >>> part.steps.tolist(), part.records["params"].shape
            ([2, 3, 4], (3, 2))
            >>> part.trace["step_length"].shape
            (2,)
        """
        kept = range(len(self.steps))[start:stop]
        if not kept:
            raise ValueError(
                f"`start` and `stop` must leave a record, but of {len(self.steps)} "
                f"records {start}:{stop} leaves none."
            )
        steps = np.asarray(self.steps)
        first = int(steps[kept[0]] - steps[0])
        at_end = kept[-1] == len(steps) - 1
        # Beyond the last record there is the trace of steps that diverged.
        last = None if at_end else int(steps[kept[-1]] - steps[0])
        part = self._replace(
            steps=steps[kept[0] : kept[-1] + 1],
            records=jax.tree.map(lambda a: a[kept[0] : kept[-1] + 1], self.records),
            trace=jax.tree.map(lambda a: a[first:last], self.trace),
        )
        if at_end:
            return part
        ends = {name: _before(getattr(self, name), part.steps[-1]) for name in _ENDS}
        return part._replace(state=None, memory=None, **ends)

    @staticmethod
    def concatenate(parts: Iterable["History"]) -> "History":
        """Join the parts of one run, each continued from the end of the one before.

        The record at a seam, which both parts have, is taken once.

        Args:
            parts: Histories in order.

        Returns:
            The whole history, in memory; its end is that of the last part. Of a
            population, the first divergence of each run.

        Raises:
            ValueError: There are no parts, one does not begin at the step where the one
                before it ends, one but the last diverged (a single run), or they
                recorded other things.

        Example:
            >>> import numpy as np
            >>> from jaxtheory import dynamics
            >>> whole = dynamics.History.from_arrays(np.arange(12.0).reshape(6, 2))
            >>> parts = whole.select(0, 3), whole.select(2)
            >>> dynamics.History.concatenate(parts).steps.tolist()
            [0, 1, 2, 3, 4, 5]
        """
        parts = list(parts)
        if not parts:
            raise ValueError("`parts` must hold at least one history, but is empty.")
        for number, (before, after) in enumerate(itertools.pairwise(parts)):
            _check_seam(number, before, after)
        first, *others = parts
        join = lambda *arrays: np.concatenate([np.asarray(a) for a in arrays])
        later = [jax.tree.map(lambda a: a[1:], part.records) for part in others]
        return parts[-1]._replace(
            steps=join(first.steps, *[part.steps[1:] for part in others]),
            records=jax.tree.map(join, first.records, *later),
            trace=jax.tree.map(join, first.trace, *[part.trace for part in others]),
            diverged_at=_first_end([part.diverged_at for part in parts]),
        )

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Read everything recorded into one flat dictionary of arrays.

        Returns:
            ``"steps"``, and records and trace by their key paths joined with ``/``, for
            example ``"trace/loss"``.

        Example:
            >>> import numpy as np
            >>> from jaxtheory import dynamics
            >>> history = dynamics.History.from_arrays(np.arange(6.0).reshape(3, 2))
            >>> sorted(history.to_numpy())[:2]
            ['records/params', 'records/since_previous']
        """
        recorded = {"records": self.records, "trace": self.trace}
        return {"steps": np.asarray(self.steps)} | {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(recorded)
        }

    @staticmethod
    def from_arrays(
        iterates: Float[ArrayLike, "r p"] | Iterable[Any],
        *,
        steps: Int[ArrayLike, " r"] | Sequence[int] | None = None,
        losses: Float[ArrayLike, " r"] | Sequence[float] | None = None,
        initial: PyTree | None = None,
        record: Mapping[str, Measurement] | None = None,
    ) -> "History":
        """Make a history of iterates that any other framework computed.

        Args:
            iterates: A matrix ``[r, p]``, one iterate a row, or an iterable of pytrees
                of arrays, all alike; tensors of PyTorch too. Of an iterable two are
                held at a time unless `record` keeps them.
            steps: The steps that they belong to, increasing; None counts from 0.
            losses: The training loss at each iterate.
            initial: Initial parameters, like an iterate, from which measurements take
                displacements; None takes the first iterate.
            record: Measurements ``measure(state) -> pytree of arrays`` as in `train`:
                of the state they get ``step``, ``params`` and ``initial_params``. None
                keeps the iterates themselves, as ``"params"``.

        Returns:
            A history. Beside what `record` says, ``records["since_previous"]`` is the
            exact distance (in double precision) from the iterate before, 0 for the
            first, and ``records["loss"]`` the loss. Where the steps have no gaps they
            are in ``trace`` as well, as ``"step_length"`` and ``"loss"``. From the
            first iterate that is not finite on, all are left out, and ``diverged_at``
            says at which step.

        Raises:
            ValueError: There are no iterates, one is unlike the first or holds no
                floating-point numbers, the first is not finite, `steps` do not increase
                or `losses` are not one a iterate.

        Example:
            >>> import numpy as np
            >>> from jaxtheory import dynamics
            >>> path = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
            >>> history = dynamics.History.from_arrays(
            ...     path, record={"path": dynamics.sketch(dim=8)}
            ... )
            >>> history.trace["step_length"].tolist(), history.records["path"].shape
            ([5.0, 1.0], (3, 8))
        """
        return History(**_import.from_arrays(iterates, steps, losses, initial, record))

    @staticmethod
    def from_folder(
        folder: str | os.PathLike,
        *,
        pattern: str | None = None,
        select: Callable[[str], bool] | None = None,
        record: Mapping[str, Measurement] | None = None,
    ) -> "History":
        """Make a history of a folder of checkpoints, safetensors or npz.

        Files are read one after another in the order of the steps in their names; two
        are held at a time, so that with a sketch in `record` any number of checkpoints
        of any size become a path of some megabytes.

        Args:
            folder: The folder.
            pattern: Which files, as a glob from the folder with ``{step}`` where the
                step stands, for example ``"run-*/step_{step}.safetensors"``. Without
                ``{step}`` it is the one number that differs from file to file. None
                takes all ``*.safetensors``, or all ``*.npz``.
            select: ``select(name) -> bool`` of the arrays in a file; None takes all.
                Arrays of whole numbers (counters of steps, for example) are always left
                out.
            record: As in `from_arrays`; the parameters are a dict of arrays by name.

        Returns:
            As `from_arrays`.

        Raises:
            ValueError: There are no such files, or of two kinds; the step of a file
                cannot be told, or two have the same; a file is damaged, lacks arrays
                of the first or has others; nothing is selected; or as `from_arrays`.
        """
        return History(**_import.from_folder(folder, pattern, select, record))


def _before(end, step):
    """Where runs ended, as far as that was before a step."""
    if np.ndim(end):
        return np.where(np.asarray(end) < step, end, -1)
    return end if end is not None and end < step else None


def _first_end(ends):
    """The first end of each run of a population; of a single run, that of the last."""
    if not np.ndim(ends[-1]):
        return ends[-1]
    first = np.asarray(ends[0])
    for later in ends[1:]:
        first = np.where(first >= 0, first, later)
    return first


def _check_seam(number, before, after):
    """Raise unless part ``number + 1`` continues part `number`."""
    names = f"`parts[{number}]`", f"`parts[{number + 1}]`"
    end, begin = int(before.steps[-1]), int(after.steps[0])
    if before.diverged_at is not None and not np.ndim(before.diverged_at):
        raise ValueError(
            f"{names[0]} must be finite to its end to be continued, but diverged at "
            f"step {before.diverged_at}. Only the last part may."
        )
    if begin != end:
        what = "there is a gap" if begin > end else "they overlap"
        raise ValueError(
            f"{names[1]} must begin with the record that {names[0]} ends with, at step "
            f"{end}, but begins at step {begin}: {what}. Cut with `select`."
        )
    for part in ("records", "trace"):
        trees = getattr(before, part), getattr(after, part)
        described = [
            {
                jax.tree_util.keystr(path): (a.dtype.name, *a.shape[1:])
                for path, a in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in trees
        ]
        if described[0] != described[1]:
            differ = dict(described[0].items() ^ described[1].items())
            raise ValueError(
                f"{names[1]} must have the same {part} as {names[0]}, but these "
                f"differ: {sorted(differ)}."
            )
