"""What training returns: records along a trajectory."""

from typing import Any, NamedTuple

from jaxtheory._types import TrainState


class History(NamedTuple):
    """What training returns and a store holds on disk.

    Attributes:
        state: The last recorded state (all finite, even when the run diverged); None
            when read from a store without the run's functions.
        steps: Steps at which `records` were taken: ``0, record_every, ...``. Shape
            ``[r]``.
        records: For each recorded name, the measurements stacked on axis 0
            (``[r, ...]``), as host (NumPy) arrays.
        trace: For each name traced at *every* step, values stacked on axis 0
            (``[t, ...]``); row ``t`` belongs to the iterate before update ``t``.
            ``"loss"`` (of that step's batch) and ``"step_length"`` (Euclidean norm of
            the update made at that step) are always there.
        diverged_at: The first step whose loss or length was not finite, or None. Its
            row is the last one of `trace`.
        memory: What each stateful measurement remembered after the last record, by
            name; None when read from a store without the run's functions.
    """

    state: TrainState
    steps: Any
    records: dict[str, Any]
    trace: dict[str, Any]
    diverged_at: int | None
    memory: Any = None
