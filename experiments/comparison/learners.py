"""Every way to learn a task that is compared, each with the same number of candidates.

A method turns training data into predictions, one for each candidate of its options;
the candidate with the least error on the validation examples is the one that is tested.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparison.tasks import Task, accuracy, relative_error
from experiments.comparison.training import (
    Network,
    Options,
    initial_params,
    make_network,
    outputs,
    train,
)
from jaxtheory import kernels

# Kernels that do not depend on the targets are what "kernel" means in a verdict.
FIXED_KERNELS: tuple[str, ...] = ("initial NTK", "infinite NTK", "NNGP")
METHODS: tuple[str, ...] = ("network", "linearised", *FIXED_KERNELS, "final NTK", "RFM")
MEASURES = (
    "kernel distance",
    "alignment at start",
    "alignment at end",
    "network overlap",
    "RFM overlap",
)

_NTK_BATCH, _INFINITE_BATCH = 250, 500


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Options to choose among by validation, as many for every method.

    Attributes:
        network: Of training the network.
        linearised: Of training its linearisation.
        ridges: Of kernel regression, over the mean of the kernel's diagonal; summed,
            not averaged, over examples.
        machines: Bandwidth over the typical distance of two inputs, and ridge, of the
            recursive feature machine.
    """

    network: tuple[Options, ...] = (
        Options(0.005, 0.1),
        Options(0.005, 0.3),
        Options(0.02, 0.1),
        Options(0.02, 0.3),
    )
    linearised: tuple[Options, ...] = (
        Options(0.01, 0.3),
        Options(0.01, 3.0),
        Options(0.01, 30.0),
        Options(0.001, 300.0),
    )
    ridges: tuple[float, ...] = (1e-4, 1e-2, 1.0, 100.0)
    machines: tuple[tuple[float, float], ...] = (
        (1.0, 1e-3),
        (1.0, 0.1),
        (10.0, 1e-3),
        (10.0, 0.1),
    )

    def of(self, method: str) -> tuple[Any, ...]:
        """The candidates of a method."""
        own = {
            "network": self.network,
            "linearised": self.linearised,
            "RFM": self.machines,
        }
        return own.get(method, self.ridges)


class Outcome(NamedTuple):
    """What one method reached.

    Attributes:
        error: Relative squared error on test examples.
        accuracy: Share of test examples in the right class; NaN in regression.
        validation: Relative squared error on validation examples.
        chosen: Index of the candidate.
    """

    error: float
    accuracy: float
    validation: float
    chosen: int


class Trial(NamedTuple):
    """All methods on one training set.

    Attributes:
        outcomes: By method.
        measures: By name, how far features were learned; NaN where undefined.
        num_diverged: How often training stopped because it was not finite.
    """

    outcomes: dict[str, Outcome]
    measures: dict[str, float]
    num_diverged: int


class Setting(NamedTuple):
    """What all methods have in common.

    Attributes:
        widths: Hidden layers.
        num_steps: Steps of training.
        batch_size: Examples a step.
        num_updates: Updates of the metric of recursive feature machines.
        candidates: Options of every method.
    """

    widths: tuple[int, ...]
    num_steps: int
    batch_size: int
    num_updates: int
    candidates: Candidates


def compare(
    task: Task, sizes: tuple[int, ...], setting: Setting, *, key: Any
) -> list[Trial]:
    """Learn the first ``n`` examples of a task in every way, for all sizes ``n``.

    The network starts from the same parameters at every size, so that its initial
    kernel, like the infinite ones, is computed once.
    """
    network = make_network(setting.widths, task.y_train.shape[1])
    key_init, key_batches = jax.random.split(key)
    params = initial_params(network, task.x_train[:1], key_init)
    inputs = jnp.concatenate([task.x_train, task.x_validation, task.x_test])
    fixed = {
        "initial NTK": _empirical(network, params, inputs, task.x_train),
        **_infinite(network, inputs, task.x_train),
    }
    learn = functools.partial(
        _trial, task, network, params, inputs, fixed, setting, key_batches
    )
    return [learn(n) for n in sizes]


def _trial(task, network, params, inputs, fixed, setting, key, n) -> Trial:
    """One training set; targets are centred for every method."""
    x, y, held_out = task.x_train[:n], task.y_train[:n], inputs[len(task.x_train) :]
    mean = np.asarray(y).mean(axis=0, keepdims=True)
    centred, candidates = y - mean, setting.candidates
    run = functools.partial(
        train,
        *(network, params, x, centred),
        num_steps=setting.num_steps,
        batch_size=setting.batch_size,
        key=key,
    )
    trained, failed = run(linear=False, candidates=candidates.network)
    moved, linear_failed = run(linear=True, candidates=candidates.linearised)
    machines, metrics = _machines(x, centred, held_out, setting)
    regress = lambda kernel: _regressions(
        kernel, centred, len(task.x_train), candidates.ridges
    )
    predictions = {
        "network": outputs(network.apply_fn, trained, (), held_out),
        "linearised": outputs(network.apply_fn, moved, params, held_out),
        "RFM": machines,
        **{name: regress(kernel) for name, kernel in fixed.items()},
    }
    choose = lambda found: _choose(task, np.asarray(found) + mean[None])
    outcomes = {name: choose(found) for name, found in predictions.items()}
    final = jax.tree.map(lambda a: a[outcomes["network"].chosen], trained)
    kernel = _empirical(network, final, inputs, task.x_train)
    outcomes["final NTK"] = choose(regress(kernel))
    agop = kernels.agop(network.apply_fn, final, x, batch_size=_NTK_BATCH)
    matrices = (agop, metrics[outcomes["RFM"].chosen])
    before, after = fixed["initial NTK"][:n, :n], kernel[:n, :n]
    return Trial(
        {name: outcomes[name] for name in METHODS},
        _measures(before, after, y, matrices, task.directions),
        failed + linear_failed,
    )


def _infinite(network: Network, inputs: Any, x: Any) -> dict[str, np.ndarray]:
    """Both kernels of the network's limit."""
    with jax.enable_x64(True):
        limit = kernels.infinite_width(
            network.model,
            jnp.asarray(inputs, float),
            jnp.asarray(x, float),
            # As they are drawn: there is nothing to estimate.
            weight_std=network.model.weight_std,
            bias_std=network.model.bias_std,
            batch_size=_INFINITE_BATCH,
        )
        return {"infinite NTK": np.asarray(limit.ntk), "NNGP": np.asarray(limit.nngp)}


def _empirical(network: Network, params: Any, inputs: Any, x: Any) -> np.ndarray:
    """The tangent kernel of one output, on average: the trace over their number."""
    kernel = kernels.empirical_ntk(
        network.apply_fn, params, inputs, x, batch_size=_NTK_BATCH
    )
    return np.asarray(kernel, np.float64) / network.model.num_outputs


def _regressions(kernel, targets, num_train, ridges):
    """Held-out predictions ``[c, m, k]`` of kernel regression with every ridge.

    In double precision: float32 would lose small ridges in rounding.
    """
    n = len(targets)
    with jax.enable_x64(True):
        train, test = kernel[:n, :n], kernel[num_train:, :n]
        ridges = np.array(ridges) * np.trace(train) / n
        solved = _solve(
            *(jnp.asarray(a, float) for a in (train, targets, test, ridges))
        )
        return np.asarray(solved)


@jax.jit
def _solve(train, targets, test, ridges):
    solve = lambda ridge: kernels.kernel_regression(train, targets, test, ridge=ridge)
    return jax.vmap(solve)(ridges).predictions


def _machines(x, targets, held_out, setting):
    """Held-out predictions and final metrics of every recursive feature machine."""
    distance = np.sqrt(2 * np.var(np.asarray(x), axis=0).sum())
    found = []
    with jax.enable_x64(True):
        data = [jnp.asarray(a, float) for a in (x, targets, held_out)]
        for bandwidth, ridge in setting.candidates.machines:
            machine = kernels.recursive_feature_machine(
                *data,
                num_iterations=setting.num_updates,
                bandwidth=float(bandwidth * distance),
                ridge=ridge,
            )
            found.append(jax.device_get((machine.predictions, machine.metrics)))
    return (
        np.stack([array[-1] for array in some]) for some in zip(*found, strict=True)
    )


def _choose(task, predictions) -> Outcome:
    """The candidate with the least validation error, tested; what is NaN loses."""
    y_validation, y_test = np.asarray(task.y_validation), np.asarray(task.y_test)
    n = len(y_validation)
    validation = relative_error(predictions[:, :n], y_validation)
    validation = np.where(np.isfinite(validation), validation, np.inf)
    chosen = int(np.argmin(validation))
    tested = predictions[chosen, n:]
    return Outcome(
        float(relative_error(tested, y_test)),
        float(accuracy(tested, y_test)) if task.classes else float("nan"),
        float(validation[chosen]),
        chosen,
    )


def _measures(before, after, y, matrices, directions) -> dict[str, float]:
    """How far the kernel moved, and how much of the hidden subspace was found."""
    single = [np.asarray(a, np.float32) for a in (before, after, *matrices)]
    overlaps = (float("nan"),) * len(matrices)
    if directions is not None:
        overlaps = [_overlap(matrix, directions) for matrix in single[2:]]
    values = (*_movement(*single[:2], y), *overlaps)
    return dict(zip(MEASURES, map(float, values), strict=True))


@jax.jit
def _movement(before, after, y):
    """Distance of two kernels, and the alignment of each with the targets."""
    alignments = [kernels.centred_alignment(kernel, y) for kernel in (before, after)]
    return kernels.kernel_distance(before, after), *alignments


@jax.jit
def _overlap(matrix, directions):
    """Of the top eigenvectors, as many as there are directions."""
    top = jnp.linalg.eigh(matrix)[1][:, -directions.shape[1] :]
    return kernels.subspace_overlap(top, directions)
