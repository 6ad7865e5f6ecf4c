"""Label noise where theory has numbers: two parameters, and a small regression."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxtheory import dynamics, models
from jaxtheory.dynamics import implicit

OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
# Of the two parameters: learning rate, noise, steps, where t1 t2 = y = 1.
ETA, SIGMA, STEPS, START = 0.05, 0.5, 400, (1.6, 0.625)


class Drift(NamedTuple):
    """A regression under label noise of one strength; arrays ``[seeds, records]``.

    Attributes:
        learning_rate: ``eta``.
        scale: ``sigma``.
        time: ``eta^2 sigma^2`` times the steps, ``[records]``.
        trace: ``tr H`` of the minimum that each run is at, mean over runs.
        decrease: What the regulariser has fallen by since the start, mean over runs.
        predicted: The same, from `label_noise_drift` at these minima.
        leading: The same, if the drift were that of ``tr H / 4``.
        sharpness: ``eta / 2`` times the largest eigenvalue at the start; below 1.
    """

    learning_rate: float
    scale: float
    time: np.ndarray
    trace: np.ndarray
    decrease: np.ndarray
    predicted: np.ndarray
    leading: np.ndarray
    sharpness: np.ndarray


def half_square(outputs: Any, y: Any) -> Any:
    """Half the squared distance of each example."""
    return jnp.sum(jnp.reshape((outputs - y) ** 2, (y.shape[0], -1)), axis=1) / 2


def own_product(params: Any, x: Any) -> Any:
    """The model ``t1 t2``, with parameters of its own for each example: many runs."""
    del x
    return params[:, 0] * params[:, 1]


def two_parameters(num_runs: int, key: Any) -> np.ndarray:
    """``D = t1^2 - t2^2`` at the end of each of many runs of the exact model."""
    history = dynamics.train(
        implicit.label_noise(own_product, half_square, scale=SIGMA),
        # The mean over examples divides the gradient of each run by their number.
        dynamics.init(
            optax.sgd(ETA * num_runs), jnp.tile(jnp.array(START), (num_runs, 1))
        ),
        optax.sgd(ETA * num_runs),
        (jnp.zeros(num_runs), jnp.ones(num_runs)),
        num_steps=STEPS,
        key=key,
        progress=False,
    )
    first, second = np.asarray(history.state.params, np.float64).T
    return first**2 - second**2


def two_parameters_predicted(*, full: bool) -> float:
    """``D`` as the full regulariser has it, or as ``tr H / 4`` has it."""
    gap = START[0] ** 2 - START[1] ** 2
    for _ in range(STEPS):
        h = (gap**2 + 4) ** 0.5  # t1^2 + t2^2 where t1 t2 = 1
        gap *= 1 - ETA**2 * SIGMA**2 / ((1 - ETA * h / 2) if full else 1)
    return gap


def regressions(config: Any, key: Any) -> list[Drift]:
    """Runs under each strength of the noise, from the same minima."""
    return [
        _regression(config, eta, sigma, jax.random.fold_in(key, i))
        for i, (eta, sigma) in enumerate(config.strengths)
    ]


@functools.cache
def _model(width):
    return models.MLP((width,), 1, activation=jnp.tanh)


def _regression(config, eta, sigma, key):
    """One strength, for all seeds."""
    every = round(config.time / (eta**2 * sigma**2) / config.num_records)
    found = []
    for seed in range(config.num_seeds):
        params, x, y = _start(config, seed)
        rows = _follow(
            config, (eta, sigma), every, params, x, y, jax.random.fold_in(key, seed)
        )
        found.append(jax.tree.map(np.asarray, _decreases(rows, every)))
    trace, sharpness, decrease, predicted, leading = map(
        np.stack, zip(*found, strict=True)
    )
    time = eta**2 * sigma**2 * every * np.arange(config.num_records + 1)
    return Drift(
        eta, sigma, time, trace, decrease, predicted, leading, eta / 2 * sharpness
    )


def _start(config, seed):
    """A minimum of zero loss: labels are what the network says at random weights."""
    # The same for every strength of the noise.
    key = jax.random.fold_in(jax.random.key(config.seed + 1), seed)
    first, second = jax.random.split(key)
    x = jax.random.normal(first, (config.num_points, config.dim))
    params = _model(config.width).init(second, x)
    return params, x, _model(config.width).apply(params, x)


def _follow(config, strength, every, params, x, y, key):
    """Repeated runs from one minimum; what `_at_minimum` says of each."""
    eta, sigma = strength
    count = config.num_repeats
    model = _model(config.width)
    stacked = jax.tree.map(lambda a: jnp.repeat(a[None], count, axis=0), params)
    history = dynamics.train_population(
        implicit.label_noise(model.apply, half_square, scale=sigma),
        dynamics.init_population(
            OPTIMIZER, stacked, hyperparams={"learning_rate": jnp.full(count, eta)}
        ),
        OPTIMIZER,
        (x, y),
        num_steps=every * config.num_records,
        keys=jax.random.split(key, count),
        record={"params": lambda state: state.params},
        record_every=every,
        progress=False,
    )
    return _at_minima(model.apply, history.records["params"], x, y, sigma, eta)


@functools.partial(jax.jit, static_argnums=0)
def _at_minima(apply_fn, params, x, y, sigma, eta):
    """`_at_minimum` for each record and run."""
    one = lambda params: _at_minimum(apply_fn, params, x, y, sigma, eta)
    return jax.lax.map(jax.vmap(one), params)


def _at_minimum(apply_fn, params, x, y, sigma, eta):
    """Regulariser, and how fast it should fall, at the minimum that descent finds."""
    params = minimum(apply_fn, params, x, y, eta)
    noise = {"scale": sigma, "learning_rate": eta}
    found = implicit.label_noise_drift(apply_fn, half_square, params, x, y, **noise)
    drift, gradient = ravel_pytree(found.drift)[0], ravel_pytree(found.gradient)[0]

    def trace(params):
        jacobian = jax.jacrev(lambda p: jnp.ravel(apply_fn(p, x)))(params)
        return optax.tree.norm(jacobian, squared=True) / x.shape[0]

    value, slope = jax.value_and_grad(trace)(params)
    # The drift of tr H / 4 along the minima, in the full regulariser.
    factor = eta * sigma**2 / (4 * x.shape[0])
    return {
        "regulariser": found.regulariser,
        "fall": -jnp.vdot(gradient, drift),
        "leading": -factor * jnp.vdot(ravel_pytree(slope)[0], drift),
        "trace": value,
        "sharpness": found.sharpness,
    }


def minimum(apply_fn: Any, params: Any, x: Any, y: Any, eta: Any) -> Any:
    """Where gradient descent without noise ends: many steps, then Gauss-Newton's."""
    flat, unravel = ravel_pytree(params)
    residual = lambda w: jnp.ravel(apply_fn(unravel(w), x) - y)
    loss = lambda w: jnp.sum(residual(w) ** 2) / (2 * x.shape[0])
    flat = jax.lax.fori_loop(0, 500, lambda _, w: w - eta * jax.grad(loss)(w), flat)

    def newton(_, w):
        jacobian = jax.jacrev(residual)(w)
        return w - jnp.linalg.lstsq(jacobian, residual(w), rcond=1e-5)[0]

    return unravel(jax.lax.fori_loop(0, 3, newton, flat))


def _decreases(rows, every):
    """Means over runs: trace, sharpness, and what the regulariser fell by."""
    mean = {
        name: np.mean(np.asarray(a, np.float64), axis=1) for name, a in rows.items()
    }

    def total(rate):
        steps = every * (rate[1:] + rate[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(steps)])

    decrease = mean["regulariser"][0] - mean["regulariser"]
    totals = total(mean["fall"]), total(mean["leading"])
    return mean["trace"], mean["sharpness"][0], decrease, *totals
