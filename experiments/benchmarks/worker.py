"""What worker processes of benchmarks do: answer requests, a line of JSON each.

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
    make: Callable[..., Any],
    builders: dict[str, Callable[..., Any]],
    requests: Iterable[str],
    replies: TextIO,
) -> None:
    """Answer requests until there are no more.

    Args:
        make: ``make(name, small=...)`` makes a case.
        builders: What can be built of it, ``build(case) -> call()``, by name.
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
                case = make(key[0], small=request["small"])
                calls[key] = builders[key[1]](case)
                result, *times = _timed(calls[key])
                np.save(request["file"], np.asarray(result))
                times = [times]
            else:
                times = _repeated(calls[key], request)
            reply["seconds"], reply["cpu_seconds"] = zip(*times, strict=True)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def run(
    make: Callable[..., Any], implementations: Callable[[str], dict[str, Any]]
) -> None:
    """Start the library, serve; the command line says which, and how many threads.

    Args:
        make: See `serve`.
        implementations: What an environment offers, by its name.
    """
    environment, threads = sys.argv[1], int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    builders = implementations(environment)  # imports the library
    if "torch" in sys.modules:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(threads)
    elif "jax" in sys.modules:
        import jax

        jax.block_until_ready(jax.jit(lambda a: a + 1)(np.ones(3, np.float32)))
    replies.write("{}\n")
    replies.flush()
    serve(make, builders, sys.stdin, replies)
