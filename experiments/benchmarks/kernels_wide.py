"""The traced kernel of a wide network in batches: seconds and memory of one process.

    python -m experiments.benchmarks.kernels_wide --num-examples 2000 --batch-size 500

Prints a line of JSON: seconds of the one call, compilation included, the processor's
seconds, and the largest resident memory before and after it in units of 10^6 bytes.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from experiments.benchmarks.kernels_cases import mlp_case
from experiments.benchmarks.kernels_peers import ROOT


@dataclasses.dataclass(frozen=True)
class Config:
    num_examples: int = 2000
    widths: tuple[int, ...] = (784, 2048, 2048, 2048, 10)
    batch_size: int = 500


def _largest_memory():
    """Largest resident memory so far, in units of 10^6 bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest * 1024 / 1e6


def run(cfg: Config) -> dict[str, Any]:
    """Compute one kernel, once."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.kernels_jax import OPS
    from jaxtheory.kernels import empirical_ntk

    case = mlp_case(cfg.num_examples, cfg.widths)
    params, x = jax.tree.map(jnp.asarray, (case.params, case.x))
    apply_fn = lambda params, x: case.model(OPS, params, x)
    jax.block_until_ready(jax.jit(lambda a: a + 1)(x))
    before, wall, cpu = _largest_memory(), time.perf_counter(), time.process_time()
    kernel = empirical_ntk(apply_fn, params, x, batch_size=cfg.batch_size)
    jax.block_until_ready(kernel)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "num_examples": cfg.num_examples,
        "batch_size": cfg.batch_size,
        "seconds": wall,
        "cpu_seconds": cpu,
        "megabytes_before": before,
        "megabytes_after": _largest_memory(),
        "trace": float(np.trace(np.asarray(kernel, np.float64))),
    }


def in_a_process(cfg: Config) -> dict[str, Any]:
    """The same in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "experiments.benchmarks.kernels_wide"]
    command += ["--num-examples", str(cfg.num_examples)]
    command += ["--batch-size", str(cfg.batch_size)]
    command += ["--widths", *map(str, cfg.widths)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return json.loads(done.stdout)


def main() -> None:
    """Run the command line."""
    import tyro

    print(json.dumps(run(tyro.cli(Config))))


if __name__ == "__main__":
    main()
