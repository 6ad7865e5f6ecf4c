"""Implementations in worker processes take turns, in a new order each round."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.environments import Limits, Peer
from experiments.benchmarks.kernels_report import Measurement


class Rounds(NamedTuple):
    """How often each implementation is timed.

    Attributes:
        rounds: Rounds of turns.
        slow_rounds: Of which those take part that need more than `slow_seconds`.
        slow_seconds: See `slow_rounds`.
        repetitions: Calls in a turn at most.
        turn_seconds: No call of a turn starts later than this.
        seed: Of the order of turns.
    """

    rounds: int
    slow_rounds: int
    slow_seconds: float
    repetitions: int
    turn_seconds: float
    seed: int


def request_for(do: str, case: str, implementation: str, **more: Any) -> dict[str, Any]:
    """A request as `worker` reads it."""
    return {"do": do, "case": case, "implementation": implementation, **more}


def take_turns(
    found: Sequence[Measurement],
    peers: Mapping[str, Peer],
    rounds: Rounds,
    limits: Limits,
) -> list[Measurement]:
    """Time implementations that have been built and called once.

    Args:
        found: What is known of them; those that were skipped stay so.
        peers: The workers that built them, by environment.
        rounds: How often.
        limits: Of a turn.

    Returns:
        The same with the median times of each round.
    """
    rng, found = np.random.default_rng(rounds.seed), list(found)
    for number in range(rounds.rounds):
        for i in rng.permutation(len(found)):
            m = found[i]
            slow = number > 0 and min(m.seconds, default=0.0) > rounds.slow_seconds
            if m.skipped or (slow and number >= rounds.slow_rounds):
                continue
            request = request_for(
                "time", m.case, m.implementation,
                repetitions=rounds.repetitions, seconds=rounds.turn_seconds,
            )  # fmt: skip
            reply = peers[m.environment].ask(request, limits)
            found[i] = m._replace(
                seconds=(*m.seconds, float(np.median(reply["seconds"]))),
                cpu_seconds=(*m.cpu_seconds, float(np.median(reply["cpu_seconds"]))),
            )
    return found
