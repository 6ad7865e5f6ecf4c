"""One environment of the kernel benchmark.

    python -m experiments.benchmarks.kernels_worker ENVIRONMENT THREADS

See `worker` for what it answers.
"""

import functools
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import kernels_cases, worker


def implementations(environment: str) -> dict[str, Callable[..., Any]]:
    """What an environment offers: ``build(case) -> call()`` by name."""
    if environment == "torch":
        from experiments.benchmarks import kernels_torch

        return kernels_torch.TORCH
    from experiments.benchmarks import kernels_jax

    offers = {"ours": kernels_jax.OURS, "NT": kernels_jax.NEURAL_TANGENTS}
    return offers[environment]


serve = functools.partial(worker.serve, kernels_cases.make)

if __name__ == "__main__":
    worker.run(kernels_cases.make, implementations)
