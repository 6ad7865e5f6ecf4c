"""Is curvature right and fast, against curvlinops, hessian-eigenthings and PyHessian?

In float64 on small networks: the five largest eigenvalues, the trace and the moments of
the spectral density, against the dense Hessian and the three libraries, on PyTorch
twins with the weights copied. Then time: Lanczos runs and spectral densities of Hessian
and Gauss-Newton on 5,000 examples, against curvlinops 3.0.1 and hessian-eigenthings
1.0.0a5 (the density of PyHessian calls a function that PyTorch has removed). The
libraries have an environment of their own, made at the first run under `environments`,
and each side one worker process, held to the same processors; all take turns, in a new
order each round, and what is reported is the ratio within a round.

Peers take all examples in one batch. `density` and `Hessian` are without
reorthogonalisation, as with curvlinops; `full` names those with it, which
hessian-eigenthings' density always has.

    python -m experiments.benchmarks.curvature
"""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks import curvature_cases, curvature_report, environments
from experiments.benchmarks.curvature_report import LIBRARIES, RIVALS
from experiments.benchmarks.environments import LimitError, Limits, Requirements
from experiments.benchmarks.kernels_report import Measurement
from experiments.benchmarks.turns import Rounds, request_for, take_turns
from experiments.folder import write_folder

TIMED = {
    "ours": ("gradient", *RIVALS),
    "curvature": (
        "PyTorch gradient",
        *dict.fromkeys(name for names in RIVALS.values() for name in names),
    ),
}
COMPARED = ("eigenvalues", "trace", "moments")
RESOURCES = ("memory", "memory, batches", "traces")


class Peer(environments.Peer):
    """A worker process of this benchmark."""

    module = "experiments.benchmarks.curvature_worker"
    requirements = {  # noqa: RUF012
        "curvature": Requirements(
            (
                "torch==2.13.0",
                "numpy==2.3.5",
                "curvlinops-for-pytorch==3.0.1",
                "hessian-eigenthings==1.0.0a5",
                "PyHessian==0.1",
            )
        )
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        out: Where numbers, table and figure go.
        environments: Where the peers' environment lies, made if need be.
        peers: Whether the other libraries take part.
        cases: On which networks time is taken.
        small: On which networks results are compared.
        rounds: Rounds of turns.
        slow_rounds: Of which those take part that need more than `slow_seconds`.
        slow_seconds: See `slow_rounds`.
        repetitions: Calls in a turn at most.
        turn_seconds: No call of a turn starts later than this.
        limit_seconds: What a first call may take.
        limit_gigabytes: What a worker process may hold.
        threads: Processors for each of them.
        seed: Of the order of turns.
        quick: A rehearsal: networks of no size, one round.
    """

    out: Path = Path("runs/benchmark_curvature")
    environments: Path = Path("runs/benchmark_environments")
    peers: bool = True
    cases: tuple[str, ...] = curvature_cases.NAMES
    small: tuple[str, ...] = curvature_cases.SMALL
    rounds: int = 7
    slow_rounds: int = 3
    slow_seconds: float = 5.0
    repetitions: int = 5
    turn_seconds: float = 1.0
    limit_seconds: float = 240.0
    limit_gigabytes: float = 8.0
    threads: int = 2
    seed: int = 0
    quick: bool = False


def results(
    cfg: Config, case: str, peers: dict[str, Peer], names: dict[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """What implementations return, each called once.

    Raises:
        LimitError: One of them took too much.
    """
    found, limits = {}, Limits(cfg.limit_seconds, cfg.limit_gigabytes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.npy"
        for environment, peer in peers.items():
            for name in names.get(environment, ()):
                request = request_for(
                    "first", case, name, small=cfg.quick, file=str(file)
                )
                peer.ask(request, limits)
                found[name] = np.load(file)
    return found


def compare(cfg: Config, case: str, peers: dict[str, Peer]) -> dict[str, np.ndarray]:
    """Results in float64 of all libraries on a small network."""
    theirs = tuple(f"{library} {name}" for library in LIBRARIES for name in COMPARED)
    names = {"ours": ("dense spectrum", *COMPARED), "curvature": theirs}
    return results(cfg, case, peers, names)


def measure(cfg: Config, case: str, peers: dict[str, Peer]) -> list[Measurement]:
    """Time all implementations of a case, in turns."""
    found, limits = [], Limits(cfg.limit_seconds, cfg.limit_gigabytes)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "result.npy")
        for environment, peer in peers.items():
            for name in TIMED[environment]:
                request = request_for("first", case, name, small=cfg.quick, file=file)
                measured = Measurement(case, environment, name)
                try:
                    reply = peer.ask(request, limits)
                except LimitError as reason:
                    print(f"{name} on {case} left out: {reason}", flush=True)
                    found.append(measured._replace(skipped=str(reason)))
                    # Its worker was ended, and with it what it had built before.
                    _build_again(peer, found, request, limits)
                    continue
                (seconds,), (cpu,) = reply["seconds"], reply["cpu_seconds"]
                found.append(
                    measured._replace(first_seconds=seconds, first_cpu_seconds=cpu)
                )
    rounds = Rounds(
        1 if cfg.quick else cfg.rounds, cfg.slow_rounds, cfg.slow_seconds,
        cfg.repetitions, cfg.turn_seconds, cfg.seed,
    )  # fmt: skip
    found = take_turns(found, peers, rounds, Limits(600.0, cfg.limit_gigabytes))
    for peer in peers.values():
        peer.ask({"do": "forget"}, limits)
    return found


def _build_again(
    peer: Peer, found: list[Measurement], request: dict[str, Any], limits: Limits
) -> None:
    """Let a fresh worker build what the one before it could, of the same case."""
    for built in found:
        mine = (built.case, built.environment) == (request["case"], peer.environment)
        if mine and not built.skipped:
            peer.ask(request | {"implementation": built.implementation}, limits)


def run(
    cfg: Config, peers: dict[str, Peer]
) -> tuple[list[Measurement], dict[str, dict[str, Any]]]:
    """All times, and by case what was not timed."""
    found, others = [], {}
    for case in cfg.small:
        print(f"{case} ...", flush=True)
        others[case] = compare(cfg, case, peers)
        print(*curvature_report.lines(case, others[case]), sep="\n", flush=True)
    for case in cfg.cases:
        print(f"{case} ...", flush=True)
        found += measure(cfg, case, peers)
        for timed in found:
            if timed.case == case and timed.seconds:
                typical = float(np.median(timed.seconds))
                print(f"{case}: {timed.implementation} {typical:.3g} s", flush=True)
        others[case] = results(cfg, case, peers, {"ours": RESOURCES})
    return found, others


def main() -> None:
    """Run the command line."""
    cfg = tyro.cli(Config, description=__doc__)
    # Every library takes as many threads as there are processors that it may use, and
    # processes inherit them.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: cfg.threads])
    cfg.out.mkdir(parents=True, exist_ok=True)
    peers = {
        name: Peer(name, cfg.environments, cfg.threads, cfg.out / f"{name}.log")
        for name in (("ours", "curvature") if cfg.peers else ("ours",))
    }
    load = [os.getloadavg()[0]]
    try:
        found, others = run(cfg, peers)
    finally:
        for peer in peers.values():
            peer.close()
    load.append(os.getloadavg()[0])
    steps = {
        name: curvature_cases.make(name, small=cfg.quick).num_steps
        for name in cfg.cases
    }
    rows = curvature_report.rows(found, others, steps)
    table = curvature_report.table(found, rows, load)
    if cfg.quick:
        table += "\n(a rehearsal: the targets are not for networks of this size)"
    numbers = {"measurements": found, "results": others, "load": load, "rows": rows}
    print(table, flush=True)
    write_folder(cfg, numbers, table, curvature_report.draw(found))
    print(f"\nNumbers and figure: {cfg.out}")


if __name__ == "__main__":
    main()
