"""Are trajectories cheap to record, to populate and to measure?

Minimum spanning trees of given distances against ripser 0.6.15 and SciPy; distances by
a centred Gram matrix against NumPy's BLAS; 64 perceptrons on digits trained together
against a compact loop of PyTorch 2.13 and against `dynamics.train`, one after another;
training with a sketch of the iterate at every step against training without. Each side
is a worker process held to the same processors, PyTorch and ripser in environments of
their own that are made at the first run; all take turns, in a new order each round, and
what is reported is the ratio within a round.

    python -m experiments.benchmarks.dynamics
"""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import tyro

from experiments.benchmarks import dynamics_cases, environments
from experiments.benchmarks.environments import Limits, Requirements
from experiments.benchmarks.kernels_report import Measurement, ratio
from experiments.benchmarks.turns import Rounds, request_for, take_turns

# By kind of case and environment, what is timed; the first of ours is the reference.
TIMED = {
    "tree": {"ours": ("spanning tree",), "numpy": ("SciPy",), "ripser": ("ripser",)},
    "Gram": {"ours": ("distances",), "numpy": ("NumPy",)},
    "population": {
        "ours": ("population", "one after another"),
        "torch": ("PyTorch", "PyTorch, one thread"),
    },
    "recording": {"ours": ("training with sketches", "plain training")},
}
# Which ratio to the reference is promised, by case and implementation: at least.
PROMISED = {
    ("tree", "SciPy"): 20.0,
    ("tree", "ripser"): 50.0,
    ("Gram", "NumPy"): 1 / 1.5,
    ("population", "one after another"): 1.0,
    ("recording", "plain training"): 1 / 1.15,
}
PYTORCH = {32: 15.0, 128: 5.0}  # the better of the two, by width


class Peer(environments.Peer):
    """A worker process of this benchmark."""

    module = "experiments.benchmarks.dynamics_worker"
    requirements = {  # noqa: RUF012
        "numpy": None,
        "ripser": Requirements(("ripser==0.6.15", "numpy==2.3.5", "scipy==1.16.3")),
        "torch": Requirements(
            ("torch==2.13.0", "numpy==2.3.5", "scipy==1.16.3", "scikit-learn==1.9.1")
        ),
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        environments: Where the peers' environments lie, made if need be.
        peers: Which environments take part beside ours.
        cases: Which cases.
        rounds: Rounds of turns.
        slow_rounds: Of which those take part that need more than 5 seconds.
        limit_seconds: What a call may take.
        limit_gigabytes: What a worker process may hold.
        threads: Processors for each of them.
        quick: A rehearsal: cases of no size, one round.
    """

    environments: Path = Path("runs/benchmark_environments")
    peers: tuple[str, ...] = ("numpy", "ripser", "torch")
    cases: tuple[str, ...] = dynamics_cases.NAMES
    rounds: int = 7
    slow_rounds: int = 3
    limit_seconds: float = 300.0
    limit_gigabytes: float = 14.0
    threads: int = 2
    quick: bool = False


def measure(cfg: Config, case: str, folder: Path) -> list[Measurement]:
    """Time all implementations of a case, in turns; `error` is 0 where results agree.

    Raises:
        RuntimeError: A peer's tree or distance is another one.
    """
    kind, limits = case.split()[0], Limits(cfg.limit_seconds, cfg.limit_gigabytes)
    file, names = str(folder / "result.npy"), ("ours", *cfg.peers)
    peers = {
        name: Peer(name, cfg.environments, cfg.threads, folder / "log")
        for name in names
        if name in TIMED[kind]
    }
    try:
        found, mine = [], 0.0
        for environment, peer in peers.items():
            for name in TIMED[kind][environment]:
                request = request_for("first", case, name, small=cfg.quick, file=file)
                (first,) = peer.ask(request, limits)["seconds"]
                value = float(np.load(file))
                mine = value if not found else mine
                check(case, name, value, mine)
                found.append(Measurement(case, environment, name, first_seconds=first))
        rounds = Rounds(1 if cfg.quick else cfg.rounds, cfg.slow_rounds, 5.0, 3, 1.0, 0)
        found = take_turns(found, peers, rounds, limits)
        if kind == "recording":
            request = request_for("first", case, "bytes", small=cfg.quick, file=file)
            peers["ours"].ask(request, limits)
            print(f"{case}: a sketch takes {float(np.load(file)):.0f} bytes on disk")
    finally:
        for peer in peers.values():
            peer.close()
    return found


def check(case: str, name: str, value: float, mine: float) -> None:
    """Raise unless a result is ours; of training, unless it is of the same size.

    Raises:
        RuntimeError: It is another one.
    """
    training = case.startswith(("population", "recording"))
    near = 0.5 * mine < value < 2 * mine if training else abs(value / mine - 1) < 1e-4
    if not near:
        raise RuntimeError(f"{case}: {name} gives {value}, ours {mine}")


def report(found: list[Measurement]) -> list[str]:
    """Times, ratios to ours within rounds, and what was promised of them."""
    reference, lines = found[0], [found[0].case]
    kind, *_, size = reference.case.split()
    torch = {}
    for way in found:
        quartiles = ratio(way, reference)
        line = f"  {way.implementation:24s}{np.median(way.seconds):9.4f} s"
        if way is not reference:
            line += (
                f"{quartiles.median:9.2f} [{quartiles.low:.2f}, {quartiles.high:.2f}]"
            )
            line += f" times {reference.implementation}"
        promised = PROMISED.get((kind, way.implementation))
        if promised is not None:
            line += f"; promised {promised:.3g}: {_verdict(quartiles.median, promised)}"
        if way.implementation.startswith("PyTorch"):
            torch[way.implementation] = quartiles.median
        lines.append(line)
    if torch and int(size) in PYTORCH:
        promised, least = PYTORCH[int(size)], min(torch.values())
        lines.append(
            f"  the better PyTorch over ours {least:.1f}; promised {promised:g}: "
            f"{_verdict(least, promised)}"
        )
    return lines


def _verdict(measured, promised):
    return "met" if measured >= promised else "NOT met"


def main() -> None:
    """Measure and print."""
    cfg = tyro.cli(Config, description=__doc__)
    # Every library takes as many threads as there are processors that it may use, and
    # processes inherit them.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: cfg.threads])
    with tempfile.TemporaryDirectory() as folder:
        for case in cfg.cases:
            found = measure(cfg, case, Path(folder))
            print(*report(found), sep="\n", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")
    if cfg.quick:
        print("(a rehearsal: the promises are not for cases of this size)")


if __name__ == "__main__":
    main()
