"""What does `dynamics.train` cost over a hand-written training loop?

Trains an MLP 784-256-256-10 (269,322 parameters, Adam) on the same minibatches in four
ways, in turn and several times in one process, for batches of three sizes:

- *plain*: one jitted `lax.scan` over all steps, written by hand, nothing measured;
- *measured*: the same, with the one thing that `train` always measures, the length of
  each step;
- *recorded*: `dynamics.train` with a trivial record every 10 steps;
- *sketched*: the same with a sketch of the iterate traced at every step, and *sketch*,
  that sketch by itself.

What recording costs beyond the measurements themselves is *recorded* over *measured*.

    python -m experiments.benchmarks.recording
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import dynamics


@dataclasses.dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (784, 256, 256, 10)
    num_examples: int = 8192
    batch_sizes: tuple[int, ...] = (64, 256, 1024)
    num_steps: int = 500
    record_every: int = 10
    repetitions: int = 7


class Result(NamedTuple):
    plain: np.ndarray  # seconds a step, one entry a repetition
    measured: np.ndarray
    recorded: np.ndarray
    sketched: np.ndarray
    sketch: np.ndarray


def apply_fn(params, x):
    *hidden, (w, b) = params
    for v, c in hidden:
        x = jax.nn.relu(x @ v + c[None])
    return x @ w + b[None]


def init_params(widths, key):
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n))
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def plain_loop(optimizer, *, measure: bool = False) -> Callable:
    """The loop one writes by hand: scan, gather, value_and_grad, update, apply."""

    @jax.jit
    def loop(params, opt_state, data, batches):
        def loss_fn(params, x, y):
            logits = apply_fn(params, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(losses)

        def step(carry, chosen):
            params, opt_state = carry
            x, y = (a[chosen] for a in data)
            loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            after = optax.apply_updates(params, updates)
            if measure:
                moved = jax.tree.map(jnp.subtract, after, params)
                return (after, opt_state), (loss, optax.tree.norm(moved))
            return (after, opt_state), loss

        return jax.lax.scan(step, (params, opt_state), batches)

    return loop


def batches(cfg: Config, batch_size: int, key) -> jax.Array:
    """The minibatches that `train` takes, by its documented rule."""
    per_epoch = cfg.num_examples // batch_size
    shuffle = jax.random.fold_in(key, 0)
    orders = [
        jax.random.permutation(jax.random.fold_in(shuffle, epoch), cfg.num_examples)
        for epoch in range(-(-cfg.num_steps // per_epoch))
    ]
    rows = [order[: per_epoch * batch_size] for order in orders]
    return jnp.reshape(jnp.stack(rows), (-1, batch_size))[: cfg.num_steps]


def run(cfg: Config, batch_size: int) -> Result:
    key = jax.random.key(0)
    x = jax.random.normal(jax.random.fold_in(key, 2), (cfg.num_examples, cfg.widths[0]))
    y = jax.random.randint(jax.random.fold_in(key, 3), x.shape[:1], 0, cfg.widths[-1])
    optimizer = optax.adam(1e-3)
    params = init_params(cfg.widths, jax.random.fold_in(key, 4))
    state = dynamics.init(optimizer, params)
    objective = dynamics.supervised(
        apply_fn, optax.softmax_cross_entropy_with_integer_labels
    )
    sketch = dynamics.sketch()
    count = lambda state: state.step
    jitted_sketch = jax.jit(sketch)
    plain, measured = plain_loop(optimizer), plain_loop(optimizer, measure=True)
    inputs = params, state.opt_state, (x, y), batches(cfg, batch_size, key)

    def train(trace):
        history = dynamics.train(
            objective, state, optimizer, (x, y), num_steps=cfg.num_steps, key=key,
            batch_size=batch_size, record={"count": count}, trace=trace,
            record_every=cfg.record_every, progress=False,
        )  # fmt: skip
        return history.trace["loss"]

    ways = {
        "plain": lambda: plain(*inputs)[1],
        "measured": lambda: measured(*inputs)[1],
        "recorded": lambda: train(None),
        "sketched": lambda: train({"path": sketch}),
        "sketch": lambda: [
            jax.block_until_ready(jitted_sketch(state)) for _ in range(cfg.num_steps)
        ],
    }
    losses = {name: np.asarray(ways[name]()) for name in ("plain", "recorded")}
    np.testing.assert_allclose(losses["plain"], losses["recorded"], rtol=1e-3)
    times = {name: [] for name in ways}
    for way in ways.values():
        jax.block_until_ready(way())
    for _ in range(cfg.repetitions):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way())
            times[name].append((time.perf_counter() - start) / cfg.num_steps)
    return Result(**{name: np.array(values) for name, values in times.items()})


def report(batch_size: int, result: Result) -> None:
    """Print the times and ratios of one batch size."""
    print(f"batches of {batch_size}")
    for name, seconds in result._asdict().items():
        low, middle, high = 1e3 * np.quantile(seconds, [0, 0.5, 1])
        print(f"  {name:9s} {middle:7.3f} ms a step  [{low:.3f}, {high:.3f}]")
    ratios = {
        "recorded / measured (target 1.10)": result.recorded / result.measured,
        "recorded / plain": result.recorded / result.plain,
        "(sketched - sketch) / measured": (result.sketched - result.sketch)
        / result.measured,
    }
    for name, ratio in ratios.items():
        low, middle, high = np.quantile(ratio, [0, 0.5, 1])
        print(f"  {name:34s} {middle:.3f}  [{low:.3f}, {high:.3f}]")


def main() -> None:
    import tyro

    cfg = tyro.cli(Config)
    for batch_size in cfg.batch_sizes:
        report(batch_size, run(cfg, batch_size))


if __name__ == "__main__":
    main()
