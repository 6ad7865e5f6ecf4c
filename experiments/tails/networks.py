"""Small networks past 100 % training accuracy: tails of their steps and weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import dynamics, models
from jaxtheory.dynamics import tails

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Networks(NamedTuple):
    """What was measured, by cell of the grid, seed and layer.

    Attributes:
        cells: Learning rate and batch size, ``[c, 2]``.
        layers: Their names, ``l`` of them.
        steps: Log-moment index of a layer's steps, ``[c, s, l]``.
        steps_error: Its standard errors.
        steps_hill: Hill's index of the largest fiftieth of the steps.
        p_value: That steps come from a stable law.
        lighter: Where they do not, and their sums are nearer to a Gaussian.
        correlation: Of successive steps.
        weights: Log-moment index of the entries of a layer's mean over the window, as
            published.
        weights_error: Its standard errors.
        initial: The same of the weights at the start.
        weights_p: That those entries come from a stable law.
        spectrum: Exponent of a power law fitted to eigenvalues; NaN where too few.
        train_error: At the end of the window, ``[c, s]``.
        test_error: There.
        reached: Step at which training accuracy was first seen to be 100 %; -1 never.
    """

    cells: np.ndarray
    layers: tuple[str, ...]
    steps: np.ndarray
    steps_error: np.ndarray
    steps_hill: np.ndarray
    p_value: np.ndarray
    lighter: np.ndarray
    correlation: np.ndarray
    weights: np.ndarray
    weights_error: np.ndarray
    initial: np.ndarray
    weights_p: np.ndarray
    spectrum: np.ndarray
    train_error: np.ndarray
    test_error: np.ndarray
    reached: np.ndarray


class LayerTails(NamedTuple):
    """Of one layer of one run; fields as in `Networks`."""

    steps: Any
    steps_error: Any
    steps_hill: Any
    p_value: Any
    lighter: Any
    correlation: Any
    weights: Any
    weights_error: Any
    initial: Any
    weights_p: Any
    spectrum: Any


def is_kernel(path: str) -> bool:
    """Whether a leaf is a weight matrix."""
    return "kernel" in path


def grid(config: Any, data: Any, key: Any) -> Networks:
    """Train every cell of the grid and measure; one population for each batch size."""
    model = models.MLP(config.widths, 10)
    rates, num_seeds = np.asarray(config.learning_rates, np.float32), config.num_seeds
    parts, names = [], ()
    for index, batch_size in enumerate(config.batch_sizes):
        first_key, window_key, measure_key = jax.random.split(
            jax.random.fold_in(key, index), 3
        )
        first, window = _train(
            model,
            np.repeat(rates, num_seeds),
            batch_size,
            data,
            config,
            (first_key, window_key),
        )
        found, names = _measure(first, window, measure_key, config.num_bootstrap)
        errors = _errors(model, window.state.params, data)
        every = {**found, **errors, "reached": np.asarray(first.stopped_at)}
        parts.append(
            {
                name: np.reshape(value, (len(rates), num_seeds, *value.shape[1:]))
                for name, value in every.items()
            }
        )
    cells = [(rate, size) for size in config.batch_sizes for rate in rates.tolist()]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Networks(cells=np.array(cells), layers=names, **joined)


def _train(model, rates, batch_size, data, config, keys):
    """To 100 % training accuracy, then the window whose iterates are kept."""
    first_key, window_key = keys
    num = len(rates)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    # The same starts at every batch size; seeds vary fastest.
    starts = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    init = jax.vmap(model.init, (0, None))(starts, data.x_train[:1])
    params = jax.tree.map(
        lambda a: jnp.tile(a, (num // len(a),) + (1,) * (a.ndim - 1)), init
    )
    states = dynamics.init_population(
        optimizer, params, hyperparams={"learning_rate": rates}
    )
    objective = dynamics.supervised(model.apply, cross_entropy)
    x, y = data.x_train, data.y_train
    is_fitted = lambda state: jnp.all(jnp.argmax(model.apply(state.params, x), -1) == y)
    shared = {"batch_size": batch_size, "progress": False}
    first = dynamics.train_population(
        objective,
        states,
        optimizer,
        (x, y),
        num_steps=config.max_steps,
        keys=jax.random.split(first_key, num),
        record={"step": lambda state: state.step},
        record_every=50,
        stop_when=is_fitted,
        **shared,
    )
    window = dynamics.train_population(
        objective,
        first.state,
        optimizer,
        (x, y),
        num_steps=config.window,
        keys=jax.random.split(window_key, num),
        trace={"kernels": dynamics.snapshots(is_kernel)},
        **shared,
    )
    return first, window


def _measure(first, window, key, num_bootstrap):
    """The tails of each layer of each run, ``[m, l]`` by name."""
    paths = window.trace["kernels"]
    starts = dynamics.snapshots(is_kernel)(
        first.state._replace(params=first.state.initial_params)
    )
    rows = []
    for run in range(len(window.diverged_at)):
        row = []
        for layer, path in enumerate(sorted(paths)):
            one_key = jax.random.fold_in(jax.random.fold_in(key, run), layer)
            kernels = paths[path][:, run]
            row.append(of_layer(kernels, starts[path][run], one_key, num_bootstrap))
        rows.append(LayerTails(*map(np.stack, zip(*row, strict=True))))
    columns = map(np.stack, zip(*rows, strict=True))
    names = tuple(path.split("'")[-4] for path in sorted(paths))
    return dict(zip(LayerTails._fields, columns, strict=True)), names


def of_layer(kernels: Any, start: Any, key: Any, num_bootstrap: int) -> LayerTails:
    """The tails of one weight matrix along its window ``[t, n, p]``."""
    shuffle, test, average, before_key, entry, spectrum = jax.random.split(key, 6)
    steps, mean, before = _views(kernels, start)
    of_steps = tails.log_moment(steps, key=shuffle)
    stable = tails.diagnose(steps, key=test, num_bootstrap=num_bootstrap)
    of_mean = tails.log_moment(mean, key=average)
    of_start = tails.log_moment(before, key=before_key)
    entries = tails.diagnose(mean, key=entry, num_bootstrap=num_bootstrap)
    found = tails.weight_spectra({"kernel": kernels[-1]}, key=spectrum)
    measured = LayerTails(
        of_steps.value,
        of_steps.standard_error,
        stable.hill_index,
        stable.p_value,
        stable.lighter,
        of_steps.serial_correlation,
        of_mean.value,
        of_mean.standard_error,
        of_start.value,
        entries.p_value,
        found["['kernel']"].power_law.exponent,
    )
    return LayerTails(*map(np.asarray, measured))


@jax.jit
def _views(kernels, start):
    """Steps as vectors, and the entries of the mean iterate and of the start."""
    # Less the first iterate: steps are small beside what moves.
    kernels = jnp.reshape(kernels, (len(kernels), -1))
    moved = kernels - kernels[:1]
    return jnp.diff(moved, axis=0), jnp.mean(moved, 0) + kernels[0], jnp.ravel(start)


def _errors(model, params, data):
    """Share of errors of each run, on both sets."""
    wrong = functools.partial(_wrong, model)
    return {
        "train_error": np.asarray(wrong(params, data.x_train, data.y_train)),
        "test_error": np.asarray(wrong(params, data.x_test, data.y_test)),
    }


@functools.partial(jax.jit, static_argnums=0)
def _wrong(model, params, x, y):
    error = lambda one: jnp.mean(jnp.argmax(model.apply(one, x), axis=-1) != y)
    return jax.vmap(error)(params)
