"""One environment of the collapse benchmark.

    python -m experiments.benchmarks.collapse_worker ENVIRONMENT THREADS

See `worker` for what it answers.
"""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks import collapse_cases, worker


def implementations(environment: str) -> dict[str, Callable[..., Any]]:
    """What an environment offers: ``build(case) -> call()`` by name."""
    if environment == "torch":
        from experiments.benchmarks import collapse_torch

        return collapse_torch.TORCH
    if environment == "numpy":
        return collapse_cases.NUMPY
    from experiments.benchmarks import collapse_jax

    return collapse_jax.OURS


if __name__ == "__main__":
    worker.run(collapse_cases.make, implementations)
