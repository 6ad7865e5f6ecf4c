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
    return {"ours": _ours} | collapse_cases.NUMPY


def _ours(case):
    import jax.numpy as jnp

    from jaxtheory import collapse

    features, labels, weight, bias = map(jnp.asarray, case)

    def call():
        found = collapse.statistics(features, labels, classifier=(weight, bias))
        return [float(getattr(found, name)) for name in collapse_cases.FIELDS]

    return call


if __name__ == "__main__":
    worker.run(collapse_cases.make, implementations)
