"""Print what collapse statistics cost against the way through d x d covariances.

Run: `python -m experiments.benchmarks.collapse`. The existing packages form the within-
and between-class covariances, ``[d, d]`` each, and take the pseudo-inverse of the
second (all of it, or its ``K - 1`` largest singular pairs); written here in PyTorch, as
they are, in an environment of its own that is made at the first run, and in NumPy and
SciPy. Every side is a worker process held to the same processors; all take turns, in a
new order each round, and all statistics must agree before a ratio is printed. Then the
law of separation through ten layers, and the memory that compiled programs work in.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import collapse_cases, environments
from experiments.benchmarks.environments import Limits, Requirements
from experiments.benchmarks.kernels_report import Measurement
from experiments.benchmarks.turns import Rounds, request_for, take_turns
from jaxtheory import collapse

WAYS = {
    "ours": ("ours",),
    "numpy": ("NumPy pinv of d x d", "SciPy svds of d x d"),
    "torch": ("PyTorch pinv of d x d", "PyTorch, svds of d x d"),
}


class Peer(environments.Peer):
    """A worker process of this benchmark."""

    module = "experiments.benchmarks.collapse_worker"
    requirements = {  # noqa: RUF012
        "numpy": None,
        "torch": Requirements(("torch==2.13.0", "numpy==2.3.5", "scipy==1.16.3")),
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        environments: Where the peers' environment lies, made if need be.
        peers: Whether PyTorch takes part.
        num_classes: Classes ``K``.
        dim: Features ``d``.
        num_examples: Examples ``N``.
        num_layers: Layers of the law of separation.
        width: Of each of them.
        batch_size: Examples in a batch, for the memory.
        rounds: Turns of each way.
        threads: Processors for each worker.
    """

    environments: Path = Path("runs/benchmark_environments")
    peers: bool = True
    num_classes: int = 100
    dim: int = 2048
    num_examples: int = 10_000
    num_layers: int = 10
    width: int = 1000
    batch_size: int = 500
    rounds: int = 5
    threads: int = 2


def compare(cfg: Config) -> None:
    """Print the times of all ways to the statistics, and their ratios.

    Raises:
        RuntimeError: Two ways disagree.
    """
    limits = Limits(600, 8)
    case = f"{cfg.num_classes}, {cfg.dim}, {cfg.num_examples}"
    with tempfile.TemporaryDirectory() as folder:
        log, file = Path(folder) / "log", str(Path(folder) / "result.npy")
        names = ("ours", "numpy", "torch") if cfg.peers else ("ours", "numpy")
        peers = {name: Peer(name, cfg.environments, cfg.threads, log) for name in names}
        try:
            found, mine = [], np.zeros(0)
            for environment, peer in peers.items():
                for way in WAYS[environment]:
                    request = request_for("first", case, way, small=False, file=file)
                    (first,) = peer.ask(request, limits)["seconds"]
                    measured = Measurement(case, environment, way, first_seconds=first)
                    found.append(measured)
                    values = np.load(file)
                    mine = values if way == "ours" else mine  # it is the first
                    check(way, values, mine)
            rounds = Rounds(cfg.rounds, cfg.rounds, 0, 3, 1.0, 0)
            found = take_turns(found, peers, rounds, limits)
        finally:
            for peer in peers.values():
                peer.close()
    report(cfg, found, float(mine[0]))


def check(way: str, values: np.ndarray, mine: np.ndarray) -> None:
    """Raise unless statistics are ours.

    Args:
        way: How they were found.
        values: In the order of `collapse_cases.FIELDS`.
        mine: Ours.

    Raises:
        RuntimeError: One is not.
    """
    for name, value, own in zip(collapse_cases.FIELDS, values, mine, strict=True):
        if not abs(own - value) <= 1e-3 * abs(value) + 1e-6:
            raise RuntimeError(f"{name} is {own} by ours and {value} by {way}")


def report(cfg: Config, found: list[Measurement], nc1: float) -> None:
    """Print times, and the median over rounds of their ratio to ours."""
    print(f"K = {cfg.num_classes}, d = {cfg.dim}, N = {cfg.num_examples}")
    ours = next(m for m in found if m.implementation == "ours")
    print(f"  {'ours, first call':24s}{ours.first_seconds:8.3f} s")
    for way in found:
        ratio = np.median(np.divide(way.seconds, ours.seconds))
        typical = np.median(way.seconds)
        print(f"  {way.implementation:24s}{typical:8.3f} s{ratio:8.1f} times ours")
    print(f"  NC1 {nc1:.9g} by all; load {os.getloadavg()[0]:.1f}")


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def law(cfg: Config) -> None:
    """Print the time of the law of separation."""
    rng = np.random.default_rng(1)
    shape = (cfg.num_examples, cfg.width)
    labels = jnp.asarray(rng.integers(0, cfg.num_classes, cfg.num_examples))
    means = rng.standard_normal((cfg.num_classes, cfg.width), np.float32)[labels]
    layers = [
        jnp.asarray(means + 2.0**-layer * rng.standard_normal(shape, np.float32))
        for layer in range(cfg.num_layers)
    ]
    call = lambda: collapse.separation_law(layers, labels)
    first, again = seconds(call), seconds(call)
    print(
        f"law of {cfg.num_layers} layers of {cfg.width}: {first:.2f} s, {again:.2f} s"
    )


def memory(cfg: Config) -> None:
    """Print what the accumulator works in, in units of the class means."""
    state = collapse.accumulator.init(cfg.num_classes, cfg.dim)
    batch = jax.ShapeDtypeStruct((cfg.batch_size, cfg.dim), jnp.float32)
    labels = jax.ShapeDtypeStruct((cfg.batch_size,), jnp.int32)
    program = jax.jit(collapse.accumulator.update).lower(state, batch, labels).compile()
    analysis: Any = program.memory_analysis()
    working = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 1e6
    rows = lambda number: f"{4e-6 * cfg.dim * number:.1f}"
    print(
        f"a batch of {cfg.batch_size}: the accumulator works in {working:.1f} MB; the "
        f"batch has {rows(cfg.batch_size)}, the class means {rows(cfg.num_classes)}, a "
        f"d x d matrix {rows(cfg.dim)}"
    )


def main() -> None:
    """Measure and print."""
    cfg = tyro.cli(Config, description=__doc__)
    # Every library takes as many threads as there are processors that it may use, and
    # processes inherit them.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: cfg.threads])
    compare(cfg)
    law(cfg)
    memory(cfg)


if __name__ == "__main__":
    main()
