"""How fast are empirical kernels, against Neural Tangents and PyTorch?

Full kernels ``[n, n, k, k]`` of five models by our method, our Jacobian contraction,
the three implementations of Neural Tangents 0.6.5 (on jax 0.4.25, the last that its
structured derivatives work with) and the two recipes with `torch.func`. Each library
has an environment of its own, made at the first run under `environments` (Python 3.11
or 3.12), and one worker process, held to the same processors. Kernels must agree before
anything is timed. Then all implementations take turns, in a new order each round, and
what is reported is the ratio to ours within a round: its median and quartiles. The
first call of each is timed apart. Implementations past the limits are skipped.

After that, the traced kernel of a wide MLP at n = 2,000 in processes of its own, for
time and memory.

    python -m experiments.benchmarks.kernels
"""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks import kernels_report, kernels_wide
from experiments.benchmarks.kernels_cases import NAMES
from experiments.benchmarks.kernels_peers import LimitError, Limits, Peer
from experiments.benchmarks.kernels_report import Measurement
from experiments.benchmarks.turns import Rounds, request_for, take_turns
from experiments.folder import write_folder

IMPLEMENTATIONS = {
    "ours": ("auto", "Jacobian"),
    "NT": ("structured", "Jacobian", "vector products"),
    "torch": ("Jacobian", "vector products"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        out: Where numbers, table and figure go.
        environments: Where the peers' environments lie, made if need be.
        peers: Against whom.
        cases: On which models.
        rounds: Rounds of turns.
        slow_rounds: Of which those take part that need more than `slow_seconds`.
        slow_seconds: See `slow_rounds`.
        repetitions: Calls in a turn at most.
        turn_seconds: No call of a turn starts later than this.
        limit_seconds: What a first call may take.
        limit_gigabytes: What a worker process may hold.
        threads: Processors for each of them.
        wide: Examples and batch sizes of the wide network.
        seed: Of the order of turns.
        quick: A rehearsal: models of no size, one round.
    """

    out: Path = Path("runs/benchmark_kernels")
    environments: Path = Path("runs/benchmark_environments")
    peers: tuple[str, ...] = ("NT", "torch")
    cases: tuple[str, ...] = NAMES
    rounds: int = 9
    slow_rounds: int = 3
    slow_seconds: float = 1.0
    repetitions: int = 10
    turn_seconds: float = 1.0
    limit_seconds: float = 60.0
    limit_gigabytes: float = 8.0
    threads: int = 2
    wide: tuple[tuple[int, int], ...] = (
        (1000, 250), (2000, 250), (2000, 500), (2000, 1000)
    )  # fmt: skip
    seed: int = 0
    quick: bool = False


def first_calls(
    cfg: Config, case: str, peers: dict[str, Peer], folder: Path
) -> list[Measurement]:
    """Build all implementations of a case and call each once.

    Raises:
        RuntimeError: Two kernels disagree, or ours came to nothing.
    """
    limits = Limits(cfg.limit_seconds, cfg.limit_gigabytes)
    found, reference = [], None
    for environment, peer in peers.items():
        for name in IMPLEMENTATIONS[environment]:
            file = folder / "kernel.npy"
            request = request_for("first", case, name, small=cfg.quick, file=str(file))
            measured = Measurement(case, environment, name)
            try:
                reply = peer.ask(request, limits)
            except LimitError as reason:
                found.append(measured._replace(skipped=str(reason)))
                continue
            kernel = np.load(file).astype(np.float64)
            reference = kernel if reference is None else reference
            distance = np.linalg.norm(kernel - reference) / np.linalg.norm(reference)
            if kernel.shape != reference.shape or not distance < 1e-4:
                raise RuntimeError(
                    f"{environment} {name} gives another kernel of {case} than ours: "
                    f"relative distance {distance:.1e}"
                )
            (seconds,), (cpu,) = reply["seconds"], reply["cpu_seconds"]
            found.append(
                measured._replace(
                    first_seconds=seconds, first_cpu_seconds=cpu, error=float(distance)
                )
            )
    if found[0].skipped:
        raise RuntimeError(f"our kernel of {case} was not timed: {found[0].skipped}")
    return found


def measure(cfg: Config, case: str, peers: dict[str, Peer]) -> list[Measurement]:
    """Time all implementations of a case, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        found = first_calls(cfg, case, peers, Path(folder))
        _build_again(cfg, found, peers, Path(folder))
    limits = Limits(600.0, 2 * cfg.limit_gigabytes)
    rounds = Rounds(
        1 if cfg.quick else cfg.rounds, cfg.slow_rounds, cfg.slow_seconds,
        cfg.repetitions, cfg.turn_seconds, cfg.seed,
    )  # fmt: skip
    found = take_turns(found, peers, rounds, limits)
    for peer in peers.values():
        peer.ask({"do": "forget"}, limits)
    return found


def _build_again(cfg, found, peers, folder):
    """Restore what was lost where a worker was ended for a later implementation."""
    for environment, peer in peers.items():
        mine = [m for m in found if m.environment == environment]
        last = max((i for i, m in enumerate(mine) if m.skipped), default=0)
        for m in mine[:last]:
            if not m.skipped:
                request = request_for(
                    "first", m.case, m.implementation,
                    small=cfg.quick, file=str(folder / "kernel.npy"),
                )  # fmt: skip
                peer.ask(request, Limits(600.0, 2 * cfg.limit_gigabytes))


def run_wide(cfg: Config) -> list[dict[str, Any]]:
    """The wide network's traced kernel, for each number of examples and batch size."""
    if cfg.quick:
        small = {"num_examples": 40, "widths": (12, 16, 4), "batch_size": 20}
        return [kernels_wide.in_a_process(kernels_wide.Config(**small))]
    settings = [kernels_wide.Config(num_examples=n, batch_size=b) for n, b in cfg.wide]
    return [kernels_wide.in_a_process(setting) for setting in settings]


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
        for name in ("ours", *cfg.peers)
    }
    load, found = [os.getloadavg()[0]], []
    try:
        for case in cfg.cases:
            print(f"{case} ...", flush=True)
            found += measure(cfg, case, peers)
    finally:
        for peer in peers.values():
            peer.close()
    print("the wide network ...", flush=True)
    wide = run_wide(cfg)
    load.append(os.getloadavg()[0])
    table = kernels_report.table(found, wide, load)
    if cfg.quick:
        table += "\n(a rehearsal: the targets are not for models of this size)"
    numbers = {
        "measurements": found,
        "wide": wide,
        "load": load,
        "targets": kernels_report.targets(found, wide),
    }
    write_folder(cfg, numbers, table, kernels_report.draw(found))
    (cfg.out / "result.csv").write_text(kernels_report.as_csv(found))
    print(f"{table}\n\nNumbers and figure: {cfg.out}")


if __name__ == "__main__":
    main()
