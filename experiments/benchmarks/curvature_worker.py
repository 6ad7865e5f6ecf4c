"""One environment of the curvature benchmark.

    python -m experiments.benchmarks.curvature_worker ENVIRONMENT THREADS

See `worker` for what it answers.
"""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks import curvature_cases, worker


def implementations(environment: str) -> dict[str, Callable[..., Any]]:
    """What an environment offers: ``build(case) -> call()`` by name."""
    if environment == "curvature":
        from experiments.benchmarks import curvature_torch

        return curvature_torch.TORCH
    from experiments.benchmarks import curvature_jax

    return curvature_jax.OURS


if __name__ == "__main__":
    worker.run(curvature_cases.make, implementations)
