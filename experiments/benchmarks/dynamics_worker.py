"""One environment of the dynamics benchmark.

    python -m experiments.benchmarks.dynamics_worker ENVIRONMENT THREADS

See `worker` for what it answers.
"""

import sys
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import dynamics_cases, worker


def implementations(environment: str) -> dict[str, Callable[..., Any]]:
    """What an environment offers: ``build(case) -> call()`` by name."""
    if environment == "ours":
        import jax

        # A device for each processor: XLA leaves small products to one thread.
        jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
        from experiments.benchmarks import dynamics_jax

        return dynamics_jax.OURS
    from experiments.benchmarks import dynamics_peers

    if environment == "torch":
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    return dynamics_peers.PEERS


if __name__ == "__main__":
    worker.run(dynamics_cases.make, implementations)
