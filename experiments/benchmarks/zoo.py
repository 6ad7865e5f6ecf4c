"""What does sharing save among the measures of a trained network?

Networks 64-w-w-10 trained on 300 digits, and all of `bounds.measures` of each, in three
ways, in turn and several times in one process, everything compiled before:

- *stacked*: one program for all networks, `jax.vmap` of the bundle, as the zoo has it;
- *bundle*: the bundle compiled once, called for one network after the other;
- *separate*: for one network after the other the public function of each measure with
  the same numbers of probes, iterations and draws. Measures that have no function of
  their own (of outputs, of cosines between gradients, relative perturbations, roots of
  edges) are left out: this side does less.

    python -m experiments.benchmarks.zoo
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.population.networks import cross_entropy
from experiments.zoo.networks import (
    Network,
    make_network,
    measure,
    measure_one,
)
from jaxtheory import bounds, collapse, curvature, data, dynamics, kernels, linalg
from jaxtheory.curvature import flatness
from jaxtheory.dynamics import noise, tails, topology

PROMISED_RATIO, PROMISED_SECONDS = 10.0, 5.0
PROBES, ITERATIONS, DRAWS, KERNEL = 8, 16, 8, 64  # what `bounds.measures` takes


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        width: Units of each of the two hidden layers.
        num_networks: How many networks.
        num_separate: How many of them are measured by separate functions.
        num_steps: Of training.
        num_points: Of the path behind each network, and its sketches' length.
        repetitions: Turns.
    """

    width: int = 32
    num_networks: int = 20
    num_separate: int = 3
    num_steps: int = 300
    num_points: int = 128
    repetitions: int = 5


class Problem(NamedTuple):
    """Trained networks ``m``, stacked, and their data."""

    network: Network
    params: Any
    start: Any
    path: tuple[Any, Any]
    x: Any
    y: Any


class Result(NamedTuple):
    """Seconds a network, one entry a repetition, and what the first calls took."""

    stacked: np.ndarray
    bundle: np.ndarray
    separate: np.ndarray
    first: dict[str, float]
    num_measures: int
    num_separate: int


def make_problem(cfg: Config) -> Problem:
    """Train the networks."""
    digits = data.digits(num_train=300, key=jax.random.key(0))
    x, y = digits.x_train, digits.y_train
    network, optimizer = make_network(cfg.width, 10), optax.adam(1e-3)
    keys = jax.random.split(jax.random.key(1), cfg.num_networks)
    start = jax.jit(jax.vmap(network.model.init, (0, None)))(keys, x[:1])
    history = dynamics.train_population(
        network.objective,
        dynamics.init_population(optimizer, start),
        optimizer,
        (x, y),
        num_steps=cfg.num_steps,
        keys=jax.random.split(jax.random.key(2), cfg.num_networks),
        batch_size=50,
        trace={"path": dynamics.sketch(dim=cfg.num_points)},
        progress=False,
    )
    path = np.moveaxis(history.trace["path"][-cfg.num_points :], 0, 1)
    lengths = history.trace["step_length"][-cfg.num_points : -1].T
    both = jnp.asarray(path), jnp.asarray(lengths)
    return Problem(network, history.state.params, start, both, x, y)


def separate(
    network: Network, params: Any, start: Any, path: Any, *, x: Any, y: Any
) -> dict[str, Any]:
    """Every measure that has one by its own public function."""
    problem, key = (network.apply_fn, cross_entropy, params, x, y), jax.random.key(0)
    hessian, ggn = curvature.hessian(*problem), curvature.ggn(*problem)
    fisher = curvature.empirical_fisher(*problem)
    runs = {"num_probes": PROBES, "num_iterations": ITERATIONS}
    features = network.layers(params, x)
    last = [*features.values()][-1]
    targets = jax.nn.one_hot(y, 10)
    rows = jnp.arange(KERNEL) * len(x) // KERNEL
    ntk = lambda: kernels.empirical_ntk(network.apply_fn, params, x[rows]) / 10
    draws = {"key": key, "num_samples": PROBES}
    points, lengths = path
    tree = lambda: topology.minimum_spanning_tree(topology.pairwise_distances(points))
    calls = {
        "shannon_entropy": lambda: flatness.shannon_entropy(*problem),
        "geometric_complexity": lambda: collapse.geometric_complexity(
            network.apply_fn, params, x
        ),
        "noise_scale": lambda: noise.noise_scale(*problem),
        "fisher_trace": lambda: linalg.trace(fisher, **draws),
        "ggn_trace": lambda: linalg.trace(ggn, **draws),
        "fisher_rao": lambda: flatness.fisher_rao(*problem),
        "sharpness": lambda: curvature.sharpness(
            *problem, key=key, num_iterations=ITERATIONS
        ),
        "smallest": lambda: linalg.bottom_eigenpairs(
            hessian, num=1, key=key, num_iterations=ITERATIONS
        ),
        "trace": lambda: flatness.hessian_trace(*problem, **draws),
        "frobenius": lambda: flatness.hessian_frobenius_norm(*problem, **draws),
        "dimension": lambda: linalg.effective_dimension(hessian, 1.0, key=key, **runs),
        "relative_flatness": lambda: flatness.relative_flatness(*problem, **draws),
        "sam": lambda: flatness.sam_sharpness(*problem),
        "asam": lambda: flatness.asam_sharpness(*problem),
        "lpf": lambda: flatness.lpf(*problem, key=key, num_samples=DRAWS),
        "pac_bayes": lambda: flatness.pac_bayes(
            *problem, initial_params=start, key=key, num_samples=DRAWS
        ),
        "ntk_alignment": lambda: kernels.centred_alignment(ntk(), targets[rows]),
        "ntk_spectrum": lambda: kernels.spectrum_summary(ntk()),
        "ntk_regression": lambda: kernels.kernel_regression(
            ntk(), targets[rows] - 0.1, ridge=0.0
        ),
        "weight_spectra": lambda: tails.weight_spectra(params, key=key),
        "norms": lambda: bounds.norm_measures(
            network.apply_fn, params, x, y, initial_params=start
        ),
        "collapse": lambda: collapse.statistics(
            last, y, classifier=network.classifier(params)
        ),
        "separation": lambda: collapse.separation_law(features, y),
        "feature_rank": lambda: collapse.effective_ranks(last),
        "feature_alignment": lambda: kernels.centred_alignment(last @ last.T, targets),
        "path_length": lambda: jnp.sum(lengths),
        "displacement": lambda: topology.displacement(points),
        "e_1": lambda: topology.e_alpha(tree().lengths),
        "step_tail_index": lambda: tails.log_moment(jnp.diff(points, axis=0), key=key),
    }
    return {name: call() for name, call in calls.items()}


def ways(cfg: Config, problem: Problem) -> dict[str, tuple[Callable[[], Any], int]]:
    """The three ways, with the number of networks that each measures."""
    network, params, start, path, x, y = problem
    pick = lambda i: jax.tree.map(lambda a: a[i], (params, start, path))
    alone: list[Any] = [pick(i) for i in range(cfg.num_networks)]

    def bundle(*one):
        return measure_one(network, *one, x=x, y=y, key=jax.random.key(0))

    few = alone[: cfg.num_separate]
    return {
        "stacked": (
            lambda: measure(network, params, start, path, x, y, jax.random.key(0)),
            cfg.num_networks,
        ),
        "bundle": (lambda: [bundle(*one) for one in alone], cfg.num_networks),
        "separate": (
            lambda: [separate(network, *one, x=x, y=y) for one in few],
            cfg.num_separate,
        ),
    }


def run(cfg: Config) -> Result:
    """Time all three, in turns."""
    found, first, results = ways(cfg, make_problem(cfg)), {}, {}
    for name, (way, _) in found.items():
        first[name], results[name] = _seconds(way)
    times = {name: [] for name in found}
    for _ in range(cfg.repetitions):
        for name, (way, number) in found.items():
            times[name].append(_seconds(way)[0] / number)
    numbers = [len(results["stacked"]), len(results["separate"][0])]
    arrays = {name: np.array(values) for name, values in times.items()}
    return Result(
        **arrays, first=first, num_measures=numbers[0], num_separate=numbers[1]
    )


def _seconds(way):
    start = time.perf_counter()
    result = jax.block_until_ready(way())
    return time.perf_counter() - start, result


def report(result: Result) -> str:
    """Times, ratios within turns, and what was promised."""
    lines = [
        f"{result.num_measures} measures in the bundle, {result.num_separate} separate "
        "calls"
    ]
    for name in ("stacked", "bundle", "separate"):
        low, middle, high = 1e3 * np.quantile(getattr(result, name), [0, 0.5, 1])
        lines.append(
            f"  {name:9s}{middle:9.1f} ms a network [{low:.1f}, {high:.1f}], first "
            f"call {result.first[name]:.0f} s"
        )
    seconds = float(np.median(result.bundle))
    lines.append(
        f"  one network after compilation {seconds:.3f} s; promised "
        f"{PROMISED_SECONDS:g}: {_verdict(seconds <= PROMISED_SECONDS)}"
    )
    for name in ("separate", "bundle"):
        ratios = getattr(result, name) / result.stacked
        low, middle, high = np.quantile(ratios, [0, 0.5, 1])
        line = f"  {name} / stacked {middle:.1f} [{low:.1f}, {high:.1f}]"
        if name == "separate":
            verdict = _verdict(middle >= PROMISED_RATIO)
            line += f"; promised {PROMISED_RATIO:g}: {verdict}"
        lines.append(line)
    return "\n".join(lines)


def _verdict(met):
    return "met" if met else "NOT met"


def main() -> None:
    """Measure and print."""
    import tyro

    print(report(run(tyro.cli(Config, description=__doc__))))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
