"""Print what collapse statistics cost against the way through d x d covariances.

Run: `python -m experiments.benchmarks.collapse`. The existing packages form the within-
and between-class covariances, ``[d, d]`` each, and take the pseudo-inverse of the
second (all of it, or its ``K - 1`` largest singular pairs); written here in NumPy and
SciPy. Ours comes first, then all take turns in one process, and NC1 must agree before a
ratio is printed. Then the law of separation through ten layers, and the memory that
compiled programs work in.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.sparse.linalg import svds

from jaxtheory import collapse


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        num_classes: Classes ``K``.
        dim: Features ``d``.
        num_examples: Examples ``N``.
        num_layers: Layers of the law of separation.
        width: Of each of them.
        batch_size: Examples in a batch, for the memory.
        rounds: Turns of each way.
    """

    num_classes: int = 100
    dim: int = 2048
    num_examples: int = 10_000
    num_layers: int = 10
    width: int = 1000
    batch_size: int = 500
    rounds: int = 3


def data(cfg: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features around class means, labels, and a classifier near those means."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((cfg.num_classes, cfg.dim), np.float32)
    labels = rng.integers(0, cfg.num_classes, cfg.num_examples)
    noise = rng.standard_normal((cfg.num_examples, cfg.dim), np.float32)
    weight = means + 0.1 * rng.standard_normal(means.shape, np.float32)
    bias = 0.1 * rng.standard_normal(cfg.num_classes, np.float32)
    return means[labels] + 0.3 * noise, labels, weight, bias


def by_covariances(
    features, labels, weight, bias, *, truncated: bool
) -> dict[str, Any]:
    """NC1 to NC4 and CDNV by the covariance matrices and a pseudo-inverse."""
    num_classes, dim = weight.shape
    counts = np.bincount(labels, minlength=num_classes)
    means = np.zeros((num_classes, dim), np.float32)
    np.add.at(means, labels, features)
    means /= counts[:, None]
    deviations = features - means[labels]
    within = deviations.T @ deviations / len(features)
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / num_classes
    if truncated:
        factors: Any = svds(between, k=num_classes - 1)
        left, values, right = factors
        inverse = right.T @ ((1 / values)[:, None] * left.T)
    else:
        inverse = np.linalg.pinv(between, rcond=1e-6, hermitian=False)
    variances = np.bincount(labels, np.sum(deviations**2, axis=1)) / counts
    gram = means @ means.T
    squares = np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram
    pairs = ~np.eye(num_classes, dtype=bool)
    cdnv = (variances[:, None] + variances[None])[pairs] / (2 * squares[pairs])
    lengths = np.linalg.norm(centred, axis=1)
    cosines = (centred @ centred.T) / np.outer(lengths, lengths)
    scaled = lambda a: a / np.linalg.norm(a)
    nearest = np.argmin(-2 * features @ means.T + np.diag(gram)[None], axis=1)
    predicted = np.argmax(features @ weight.T + bias[None], axis=1)
    return {
        "nc1": np.sum(within * inverse.T) / num_classes,
        "nc2_equinorm": lengths.std() / lengths.mean(),
        "nc2_equiangular": np.abs(cosines[pairs] + 1 / (num_classes - 1)).mean(),
        "nc3": np.linalg.norm(scaled(weight) - scaled(centred)),
        "nc4": np.mean(nearest != predicted),
        "cdnv": cdnv.mean(),
    }


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(cfg: Config) -> None:
    """Print the times of all ways to the statistics, and their ratios."""
    features, labels, weight, bias = data(cfg)
    h, y, w, b = map(jnp.asarray, (features, labels, weight, bias))
    ours = lambda: collapse.statistics(h, y, classifier=(w, b))
    first, found = seconds(ours), ours()
    given = (features, labels, weight, bias)
    ways = {
        "ours": ours,
        "pinv of d x d": lambda: by_covariances(*given, truncated=False),
        "svds of d x d": lambda: by_covariances(*given, truncated=True),
    }
    for name in ("pinv of d x d", "svds of d x d"):
        for key, value in ways[name]().items():
            mine = float(getattr(found, key))
            if abs(mine - value) > 1e-3 * abs(value) + 1e-6:
                raise RuntimeError(f"{key} is {mine} by ours and {value} by {name}")
    times = {name: [] for name in ways}
    for _ in range(cfg.rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    typical = {name: statistics.median(found) for name, found in times.items()}
    print(f"K = {cfg.num_classes}, d = {cfg.dim}, N = {cfg.num_examples}")
    print(f"  ours, first call    {first:8.3f} s")
    for name, typically in typical.items():
        ratios = [t / mine for t, mine in zip(times[name], times["ours"], strict=True)]
        ratio = statistics.median(ratios)
        print(f"  {name:18s}  {typically:8.3f} s  {ratio:7.1f} times ours")
    print(f"  NC1 {float(found.nc1):.9g} by all three")


def law(cfg: Config) -> None:
    """Print the time of the law of separation."""
    rng = np.random.default_rng(1)
    shape = (cfg.num_examples, cfg.width)
    labels = jnp.asarray(rng.integers(0, cfg.num_classes, cfg.num_examples))
    means = rng.standard_normal((cfg.num_classes, cfg.width), np.float32)[labels]
    layers = [
        jnp.asarray(means + 2.0**-layer * rng.standard_normal(shape, np.float32))
        for layer in range(cfg.num_layers)
    ]
    call = lambda: collapse.separation_law(layers, labels)
    first, again = seconds(call), seconds(call)
    print(
        f"law of {cfg.num_layers} layers of {cfg.width}: {first:.2f} s, {again:.2f} s"
    )


def memory(cfg: Config) -> None:
    """Print what the accumulator works in, in units of the class means."""
    state = collapse.accumulator.init(cfg.num_classes, cfg.dim)
    batch = jax.ShapeDtypeStruct((cfg.batch_size, cfg.dim), jnp.float32)
    labels = jax.ShapeDtypeStruct((cfg.batch_size,), jnp.int32)
    program = jax.jit(collapse.accumulator.update).lower(state, batch, labels).compile()
    analysis: Any = program.memory_analysis()
    working = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 1e6
    rows = lambda number: f"{4e-6 * cfg.dim * number:.1f}"
    print(
        f"a batch of {cfg.batch_size}: the accumulator works in {working:.1f} MB; the "
        f"batch has {rows(cfg.batch_size)}, the class means {rows(cfg.num_classes)}, a "
        f"d x d matrix {rows(cfg.dim)}"
    )


def main() -> None:
    """Measure and print."""
    cfg = tyro.cli(Config, description=__doc__)
    compare(cfg)
    law(cfg)
    memory(cfg)


if __name__ == "__main__":
    main()
