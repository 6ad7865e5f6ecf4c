"""What training returns: records along a trajectory."""

from typing import Any, NamedTuple

from jaxtheory._types import TrainState


class History(NamedTuple):
    """What training returns and a store holds on disk.

    Of a population of ``m`` runs (`train_population`), **runs are axis 1** of records
    and trace, after the axis of records or steps, and axis 0 of the state: each record
    is a measurement of all runs ``[m, ...]``. So ``plot(history.steps,
    history.records[name])`` draws a line for each run.

    Attributes:
        state: The last recorded state (all finite, even when the run diverged); None
            when read from a store without the run's functions.
        steps: Steps at which `records` were taken: ``0, record_every, ...``. Shape
            ``[r]``. Of a population, as the run counts that begins earliest.
        records: For each recorded name, the measurements stacked on axis 0
            (``[r, ...]``; of a population ``[r, m, ...]``), as host (NumPy) arrays.
        trace: For each name traced at *every* step, values stacked on axis 0
            (``[t, ...]``; of a population ``[t, m, ...]``); row ``t`` belongs to the
            iterate before update ``t``.
            ``"loss"`` (of that step's batch) and ``"step_length"`` (Euclidean norm of
            the update made at that step) are always there.
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
