"""Kernel regression with and without the matrix: seconds, steps, peak memory.

Fits a noisy teacher with the NTK of an MLP 20-256-256-1 at initialisation, with a ridge
of .05 of the kernel's mean diagonal, to a relative residual of 1e-3:

- *dense*: `empirical_ntk`, then `kernel_regression`, up to the largest `dense` size;
- *free*: `ntk_regression` with preconditioners of several ranks, at every size;

and holds one product of `ntk_operator` against a plain `jax.vjp` with `jax.jvp` on the
whole batch, and random-projected features against their kernel. Each fit runs in a
process of its own, whose largest resident memory is taken before and after it.

    python -m experiments.benchmarks.matrix_free
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxtheory as jth


@dataclasses.dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (256, 256)
    num_inputs: int = 20
    num_test: int = 1000
    batch_size: int = 1000
    relative_ridge: float = 0.05
    tolerance: float = 1e-3
    dense_sizes: tuple[int, ...] = (1250, 2500, 5000)
    free_sizes: tuple[int, ...] = (5000, 20_000)
    ranks: tuple[int, ...] = (0, 50, 200)
    dims: tuple[int, ...] = (256, 1024, 4096)
    num_runs: int = 7


def problem(cfg: Config, n: int) -> tuple[Any, ...]:
    """The network, its parameters, data and ridge."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = jth.models.MLP(cfg.widths, 1)
    x = jax.random.normal(keys[0], (n + cfg.num_test, cfg.num_inputs))
    params = model.init(keys[1], x[:1])
    noise = 0.1 * jax.random.normal(keys[2], (len(x), 1))
    y = jnp.tanh(x[:, :1]) * x[:, 1:2] + jnp.sin(x[:, 2:3]) + noise
    theta = jth.kernels.ntk_operator(model.apply, params, x[:1000])
    trace = jth.linalg.trace(theta, key=keys[3])
    ridge = cfg.relative_ridge * float(trace.value) / 1000
    return model.apply, params, x[:n], y[:n], x[n:], y[n:], ridge


def fit(cfg: Config, n: int, rank: int | None) -> dict[str, float]:
    """One regression in this process: dense without a rank, else by products."""
    apply_fn, params, x, y, x_test, y_test, ridge = problem(cfg, n)
    before = memory()

    def dense(max_steps):
        ntk = jth.kernels.empirical_ntk
        kernel = ntk(apply_fn, params, x, batch_size=cfg.batch_size)
        test = ntk(apply_fn, params, x_test, x, batch_size=cfg.batch_size)
        found = jth.kernels.kernel_regression(kernel, y, test, ridge=ridge)
        return found.predictions, max_steps, True

    def free(max_steps):
        found = jth.kernels.ntk_regression(
            apply_fn,
            params,
            x,
            y,
            x_test,
            ridge=ridge,
            key=jax.random.key(1),
            rank=rank,
            batch_size=cfg.batch_size,
            tolerance=cfg.tolerance,
            max_steps=max_steps,
        )
        return found.predictions, found.num_steps, found.converged

    call = dense if rank is None else free
    jax.block_until_ready(call(1))  # compiles
    seconds, (predictions, steps, converged) = timed(lambda: call(2000))
    assert converged
    return {
        "seconds": seconds,
        "steps": 0 if rank is None else int(steps),
        "megabytes": memory() - before,
        "error": float(jnp.mean((predictions - y_test) ** 2) / jnp.var(y_test)),
    }


def memory() -> float:
    """Largest resident memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call until its result is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def median(call: Callable[[], Any], num_runs: int) -> float:
    """Median seconds of several calls after a first one."""
    jax.block_until_ready(call())
    return statistics.median(timed(call)[0] for _ in range(num_runs))


def products(cfg: Config, n: int) -> None:
    """Print what a product costs, in gradients of the same network."""
    apply_fn, params, x, y, *_ = problem(cfg, n)

    @jax.jit
    def gradient(params, x, y):
        return jax.grad(lambda p: jnp.vdot(apply_fn(p, x), y))(params)

    @jax.jit
    def plain(params, x, y):
        model = lambda p: apply_fn(p, x)
        (tangent,) = jax.vjp(model, params)[1](y)
        return jax.jvp(model, (params,), (tangent,))[1]

    unit = median(lambda: gradient(params, x, y), cfg.num_runs)
    print(f"n = {n}: gradient {unit:.3f} s")
    seconds = median(lambda: plain(params, x, y), cfg.num_runs)
    print(f"  vjp and jvp of the whole batch: {seconds / unit:.2f} gradients")
    for batch_size in (None, 4000, 1000, 250):
        theta = jth.kernels.ntk_operator(apply_fn, params, x, batch_size=batch_size)
        seconds = median(lambda theta=theta: theta.mv(y), cfg.num_runs)
        print(f"  ntk_operator, batch_size {batch_size}: {seconds / unit:.2f}")


def features(cfg: Config, n: int) -> None:
    """Print seconds of random-projected features and the error of their kernel."""
    apply_fn, params, x, *_ = problem(cfg, n)
    kernel = jth.kernels.empirical_ntk(apply_fn, params, x[:500])
    for dim in cfg.dims:
        call = lambda dim=dim: jth.kernels.ntk_features(
            apply_fn, params, x, key=jax.random.key(1), dim=dim, batch_size=100
        )
        jax.block_until_ready(call())
        seconds, phi = timed(call)
        gram = phi[:500, 0] @ phi[:500, 0].T
        error = jnp.linalg.norm(gram - kernel) / jnp.linalg.norm(kernel)
        print(f"  dim {dim}: {seconds:.2f} s, error {float(error):.4f} (Frobenius)")


def main() -> None:
    """Measure and print."""
    cfg = Config()
    runs = [(n, None) for n in cfg.dense_sizes]
    runs += [(n, rank) for n in cfg.free_sizes for rank in cfg.ranks]
    for n, rank in runs:
        command = [sys.executable, "-m", __spec__.name, str(n), json.dumps(rank)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(run.stdout.splitlines()[-1])
        kind = "dense" if rank is None else f"free, rank {rank}"
        print(
            f"n = {n}, {kind}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items())
        )
    products(cfg, 20_000)
    print("features of n = 2000:")
    features(cfg, 2000)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(fit(Config(), int(sys.argv[1]), json.loads(sys.argv[2]))))
    else:
        main()
