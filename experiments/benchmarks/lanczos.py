"""Print what a fresh operator costs `linalg.top_eigenpairs` over a repeated one.

Run: `python -m experiments.benchmarks.lanczos`. The Hessian of a small network is built
anew from new parameters and handed over; the compiled call on one and the same operator
is what it is held against. Both alternate in one process.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

import jaxtheory as jth

NUM_PAIRS = 15
NUM_ITERATIONS = 30


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    num_traces = 0
    model = jth.models.MLP((256, 256), 10)

    def apply_fn(params, x):
        nonlocal num_traces
        num_traces += 1
        return model.apply(params, x)

    x = jax.random.normal(jax.random.key(0), (1000, 64))
    y = jax.random.randint(jax.random.key(1), (1000,), 0, 10)
    loss_fn = optax.softmax_cross_entropy_with_integer_labels

    def operator(seed):
        params = model.init(jax.random.key(seed), x[:1])
        return jth.curvature.hessian(apply_fn, loss_fn, params, x, y)

    def top(hessian):
        return jth.linalg.top_eigenpairs(
            hessian, key=jax.random.key(2), num_iterations=NUM_ITERATIONS
        )

    same = operator(0)
    first = seconds(lambda: top(same))
    params = [model.init(jax.random.key(seed), x[:1]) for seed in range(NUM_PAIRS)]
    build = lambda p: jth.curvature.hessian(apply_fn, loss_fn, p, x, y)
    seconds(lambda: top(build(params[0])))
    before = num_traces
    pairs = [
        (seconds(lambda: top(same)), seconds(lambda p=p: top(build(p)))) for p in params
    ]
    # Building an operator checks the shape of the loss, which traces the model once.
    traces = (num_traces - before) / NUM_PAIRS
    ratios = [fresh / repeated for repeated, fresh in pairs]
    repeated = statistics.median(pair[0] for pair in pairs)
    print(f"first call {first:.2f} s, repeated {repeated:.4f} s")
    print(
        f"a fresh operator, built and solved: {statistics.median(ratios):.2f} times "
        f"that (median of {NUM_PAIRS}; {min(ratios):.2f} to {max(ratios):.2f}), with "
        f"{traces:.0f} trace of the model each, to check the shape of the loss"
    )


if __name__ == "__main__":
    main()
