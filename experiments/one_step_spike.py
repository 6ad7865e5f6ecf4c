"""One large step makes one outlier: ``python -m experiments.one_step_spike --help``.

Ba, Erdogdu, Suzuki, Wang, Wu & Yang (arXiv:2205.01445): the first step of gradient
descent on the first layer is a matrix of rank one, up to noise. Added to the random
weights it is a spike in the sense of Baik, Ben Arous and Peche: below a learning rate
the spectrum of the weights does not change, above it exactly one eigenvalue leaves the
Marchenko-Pastur bulk, and its eigenvector points to what the teacher looks at. Where
the teacher has no linear part, no step points there. And features after a step can do
more than a linear function only if the step grows with the width.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.folder import run_command
from experiments.spike import page
from experiments.spike.theory import LINEAR, predicted, signal
from jaxtheory import data, dynamics, linalg

# Of the target and its control, in normalised Hermite polynomials of one direction.
TERMS = {"linear and cubic": ((1,), (3,)), "quadratic": ((2,),)}
COEFFICIENTS = {"linear and cubic": (LINEAR, 0.6), "quadratic": (1.0,)}
LEVEL = 1e-3  # of the test for outliers


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        dim: Inputs ``d``.
        width: Hidden units ``N``.
        num_train: Examples ``n`` of the step, and of the ridge regression after it.
        num_test: Test examples.
        strengths: Learning rates, as the spike that they make over the threshold
            ``sqrt(d / N)``.
        large: A learning rate that grows with the width, likewise.
        ridge: Of the regression on features, times their mean squared norm.
        num_seeds: Data sets and networks, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    dim: int = 256
    width: int = 512
    num_train: int = 8192
    num_test: int = 4096
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 2.0, 4.0, 8.0)
    large: float = 500.0
    ridge: float = 1e-3
    num_seeds: int = 5
    seed: int = 0
    out: Path = Path("runs/one_step_spike")


class Spectrum(NamedTuple):
    """What a step did to the first layer; arrays over seeds and strengths.

    Attributes:
        eigenvalues: Of ``d W^T W / N``, largest first.
        num_outliers: Eigenvalues beyond the edge, by the Tracy-Widom test.
        overlap: Squared cosine between the first eigenvector and the teacher.
        test_error: Of ridge regression on the features, over the target's variance.
    """

    eigenvalues: np.ndarray
    num_outliers: np.ndarray
    overlap: np.ndarray
    test_error: np.ndarray


class Result(NamedTuple):
    """What was measured and predicted.

    Attributes:
        measured: By target, ``[seeds, strengths + 1, ...]``; the last strength is
            `Config.large`.
        strengths: The spikes over the threshold.
        location: Predicted first eigenvalue at each of them.
        overlap: Predicted squared cosine with the teacher.
        edges: Ends of the bulk.
    """

    measured: dict[str, Spectrum]
    strengths: np.ndarray
    location: np.ndarray
    overlap: np.ndarray
    edges: tuple[float, float]


def run(config: Config) -> Result:
    """Take the steps and look at the spectra.

    Raises:
        ValueError: There are fewer than two seeds.
    """
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    strengths = np.array([*config.strengths, config.large])
    key = jax.random.key(config.seed)
    measured = {}
    for target in TERMS:
        found = [
            _of_seed(config, target, strengths, jax.random.fold_in(key, seed))
            for seed in range(config.num_seeds)
        ]
        measured[target] = Spectrum(*map(np.stack, zip(*found, strict=True)))
    ratio = config.dim / config.width
    low, high = linalg.marchenko_pastur_edges(ratio)
    edges = float(low), float(high)
    return Result(measured, strengths, *predicted(config, strengths), edges)


def _of_seed(config, target, strengths, key):
    """Spectra after steps of all strengths, of one network on one data set."""
    key_data, key_weights = jax.random.split(key)
    task = data.multi_index(
        dim=config.dim,
        num_train=2 * config.num_train,
        num_test=config.num_test,
        terms=TERMS[target],
        coefficients=jnp.array([COEFFICIENTS[target]]),
        key=key_data,
    )
    first = slice(config.num_train)
    start, readout = _weights(config, key_weights)
    optimizer = _optimizer()
    state = dynamics.init(optimizer, start, model_state=readout)
    found = []
    for strength in strengths:
        state.opt_state.hyperparams["learning_rate"] = jnp.asarray(
            _rate(config, strength)
        )
        history = dynamics.train(
            objective,
            state,
            optimizer,
            (task.x_train[first], task.y_train[first, 0]),
            num_steps=1,
            key=jax.random.key(0),  # of a full batch; nothing is drawn
            progress=False,
        )
        weights = history.state.params
        error = _ridge_error(weights, task, config.num_train, config.ridge)
        found.append((*_spectrum(weights, task.directions[:, 0]), error))
    return tuple(map(np.asarray, zip(*found, strict=True)))


@functools.cache
def _optimizer():
    """Gradient descent whose rate is data: one program for all rates."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)


def _weights(config, key):
    """First layer ``[d, N]`` of variance ``1/d``, and a readout of squared norm N."""
    inner, outer = jax.random.split(key)
    weights = jax.random.normal(inner, (config.dim, config.width)) / config.dim**0.5
    readout = jax.random.normal(outer, (config.width,))
    # Its norm is a factor of the spike, and at finite width would blur the threshold.
    return weights, readout * config.width**0.5 / jnp.linalg.norm(readout)


def _rate(config, strength):
    """The learning rate whose spike is `strength` times the threshold."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    slope = weights @ (1 - np.tanh(nodes) ** 2) / weights.sum()
    spike = strength * math.sqrt(config.dim / config.width)
    norm = math.sqrt(config.dim * signal(config))
    return config.width * math.sqrt(spike) / (slope * norm)


def objective(params, model_state, batch, key):
    """Half the squared error of ``1/N sum_i a_i tanh(w_i x)``; the readout is fixed."""
    del key
    x, y = batch
    outputs = jnp.tanh(x @ params) @ model_state / len(model_state)
    return 0.5 * jnp.mean((outputs - y) ** 2), model_state


@jax.jit
def _spectrum(weights, teacher):
    """Eigenvalues of the first layer, outliers, and where the first of them points."""
    dim, width = weights.shape
    gram = jnp.matmul(weights, weights.T, precision="highest") * dim / width
    values, vectors = jnp.linalg.eigh(gram)
    test = linalg.edge_test(values, num_samples=width, dimension=dim)
    overlap = jnp.vdot(vectors[:, -1], teacher) ** 2
    return values[::-1], jnp.sum(test.p_value < LEVEL), overlap


@functools.partial(jax.jit, static_argnums=2)
def _ridge_error(weights, task, num_train, ridge):
    """Test error of ridge regression on features, with examples new to the step."""
    scale = weights.shape[1] ** -0.5
    features = lambda x: jnp.tanh(x @ weights) * scale
    train, y = features(task.x_train[num_train:]), task.y_train[num_train:, 0]
    gram = jnp.matmul(train.T, train, precision="highest") / num_train
    gram = gram + ridge * jnp.trace(gram) * jnp.eye(len(gram))
    readout = jnp.linalg.solve(gram, train.T @ y / num_train)
    residual = features(task.x_test) @ readout - task.y_test[:, 0]
    return jnp.mean(residual**2) / jnp.var(task.y_test)


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
