"""One environment of the kernel benchmark: answers requests, a line of JSON each.

    python -m experiments.benchmarks.kernels_worker ENVIRONMENT THREADS

Requests are ``{"do": "first" | "time" | "forget", ...}``: build an implementation on a
case and call it once (the result goes to a file); call it again, at most `repetitions`
times and until `seconds` are over; drop all.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import numpy as np

from experiments.benchmarks import kernels_cases


def implementations(environment: str) -> dict[str, Callable[..., Any]]:
    """What an environment offers: ``build(case) -> call()`` by name."""
    if environment == "torch":
        from experiments.benchmarks import kernels_torch

        return kernels_torch.TORCH
    from experiments.benchmarks import kernels_jax

    offers = {"ours": kernels_jax.OURS, "NT": kernels_jax.NEURAL_TANGENTS}
    return offers[environment]


def _timed(call):
    """A call's result, its seconds, and the processor's."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _repeated(call, request):
    """Times of at least one call."""
    times, until = [], time.perf_counter() + request["seconds"]
    while not times or (
        len(times) < request["repetitions"] and time.perf_counter() < until
    ):
        times.append(_timed(call)[1:])
    return times


def serve(
    builders: dict[str, Callable[..., Any]], requests: Iterable[str], replies: TextIO
) -> None:
    """Answer requests until there are no more.

    Args:
        builders: What can be built, by name.
        requests: Lines of JSON.
        replies: Where a line of JSON goes for each.
    """
    calls = {}
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["do"] == "forget":
            calls.clear()
        else:
            key = request["case"], request["implementation"]
            if request["do"] == "first":
                case = kernels_cases.make(key[0], small=request["small"])
                calls[key] = builders[key[1]](case)
                result, *times = _timed(calls[key])
                np.save(request["file"], np.asarray(result))
                times = [times]
            else:
                times = _repeated(calls[key], request)
            reply["seconds"], reply["cpu_seconds"] = zip(*times, strict=True)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Start the library, serve."""
    environment, threads = sys.argv[1], int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    builders = implementations(environment)
    if environment == "torch":
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(threads)
    else:
        import jax

        jax.block_until_ready(jax.jit(lambda a: a + 1)(np.ones(3, np.float32)))
    replies.write("{}\n")
    replies.flush()
    serve(builders, sys.stdin, replies)


if __name__ == "__main__":
    main()
