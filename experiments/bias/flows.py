"""Gradient descent beside its flows: before the edge of stability, and on it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import curvature, dynamics, linalg, models
from jaxtheory.dynamics import implicit

FLOWS = {
    "gradient flow": implicit.gradient_flow,
    "modified flow": implicit.modified_flow,
}
OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


class Edge(NamedTuple):
    """A network at the edge of stability; arrays ``[seeds, records]`` but where said.

    Attributes:
        steps: Steps of the records, ``[records]``.
        loss: Of gradient descent, mean over the window that begins at each record.
        central_loss: Of the central flow, the average it predicts, over these windows.
        flow_loss: Of gradient flow, likewise.
        sharpness: Of the mean network of the window, over ``2 / eta``.
        central_sharpness: Of the central flow, over ``2 / eta``.
        flow_sharpness: Of gradient flow.
        to_central: Distance of window means of descent and central flow.
        to_flow: Of those of descent and gradient flow.
        late: Records from which on the central flow has been at the edge ``[seeds]``.
        converged: Whether the central flow is sure of itself throughout ``[seeds]``.
    """

    steps: np.ndarray
    loss: np.ndarray
    central_loss: np.ndarray
    flow_loss: np.ndarray
    sharpness: np.ndarray
    central_sharpness: np.ndarray
    flow_sharpness: np.ndarray
    to_central: np.ndarray
    to_flow: np.ndarray
    late: np.ndarray
    converged: np.ndarray


class Errors(NamedTuple):
    """How far gradient descent is from the flows at a fixed time.

    Attributes:
        rates: Learning rates.
        distance: By flow, ``[seeds, rates]``.
        slope: By flow, the power of the learning rate in it ``[seeds]``.
    """

    rates: np.ndarray
    distance: dict[str, np.ndarray]
    slope: dict[str, np.ndarray]


@functools.cache
def _model(width):
    return models.MLP((width, width), 1, activation=jnp.tanh)


def _square(outputs, y):
    return jnp.sum((outputs - y) ** 2, axis=1)


@functools.cache
def _loss(width):
    return lambda params, x, y: jnp.mean(_square(_model(width).apply(params, x), y))


def task() -> tuple[jax.Array, jax.Array]:
    """Twenty points of the cubic Chebyshev polynomial."""
    x = jnp.linspace(-1.0, 1.0, 20)[:, None]
    return x, 4 * x**3 - 3 * x


def _start(config, seed):
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    params = jax.jit(_model(config.edge_width).init)(key, task()[0])
    # In double precision, where that is on: errors of second order are small.
    return jax.tree.map(lambda leaf: leaf.astype(float), params)


def _descend(config, params, rate, num_steps):
    """Parameters and losses of gradient descent at steps ``0..num_steps``."""
    objective = dynamics.supervised(_model(config.edge_width).apply, _square)
    state = dynamics.init(OPTIMIZER, params)
    state.opt_state.hyperparams["learning_rate"] = jnp.asarray(rate)
    history = dynamics.train(
        objective,
        state,
        OPTIMIZER,
        task(),
        num_steps=num_steps,
        key=jax.random.key(0),  # of a full batch; nothing is drawn
        trace={"params": _params},
        progress=False,
    )
    return history.trace["params"], history.trace["loss"], history.state.params


def _params(state):
    return state.params


def edge(config: Any) -> Edge:
    """Gradient descent, central flow and gradient flow from the same starts."""
    rows = [_edge(config, seed) for seed in range(config.num_seeds)]
    window = config.window
    steps = np.arange(0, config.edge_steps - window, window)
    return Edge(steps, *map(np.stack, zip(*rows, strict=True)))


def _edge(config, seed):
    """One start; see `Edge` for the order."""
    params, data = _start(config, seed), task()
    loss, eta, num = _loss(config.edge_width), config.edge_rate, config.edge_steps
    path, losses, _ = _descend(config, params, eta, num)
    central = implicit.central_flow(
        loss,
        params,
        *data,
        learning_rate=eta,
        num_steps=num,
        num_directions=2,
        num_substeps=1,
        key=jax.random.key(seed),
    )
    flow = implicit.gradient_flow(loss, params, *data, learning_rate=eta, num_steps=num)
    window = config.window
    means = lambda a: np.convolve(a, np.ones(window) / window, "valid")
    rows = slice(0, num - window, window)
    apart = [
        implicit.path_distance(
            path, jax.tree.map(lambda a: a[:-1], other.path), window=window
        )
        for other in (central, flow)
    ]
    middle = jax.tree.map(lambda a: _means(a, window)[rows], (path, flow.path))
    sharp = [eta / 2 * _sharpness(config.edge_width, tree, data) for tree in middle]
    top = eta / 2 * np.asarray(central.sharpness[:, 0])
    at_edge = np.asarray(central.variances[:, 0]) > 0
    late = int(np.argmax(at_edge)) + 2 * window if np.any(at_edge) else num
    curves = (losses, central.average_losses[:-1], flow.losses[:-1])
    return (
        *(means(np.asarray(curve))[rows] for curve in curves),
        np.asarray(sharp[0]),
        means(top[:-1])[rows],
        np.asarray(sharp[1]),
        *(np.asarray(a)[rows] for a in apart),
        np.arange(0, num - window, window) >= late,
        bool(np.all(central.converged)),
    )


def _means(leaf, window):
    """Means over windows that begin at each record."""
    total = np.cumsum(np.concatenate([np.zeros_like(leaf[:1]), leaf]), axis=0)
    return (total[window:] - total[:-window]) / window


@functools.partial(jax.jit, static_argnums=0)
def _sharpness(width, path, data):
    """Largest eigenvalue of the Hessian along a path."""

    def one(params):
        operator = curvature.hessian(_model(width).apply, _square, params, *data)
        found = linalg.top_eigenpairs(operator, num=1, key=jax.random.key(0))
        return found.values[0]

    return jax.lax.map(one, path)


def errors(config: Any) -> Errors:
    """Distances at one time, before the edge, for falling learning rates."""
    data, loss = task(), _loss(config.edge_width)
    distance = {name: np.zeros((config.num_seeds, len(config.rates))) for name in FLOWS}
    for seed in range(config.num_seeds):
        params = _start(config, seed)
        for i, rate in enumerate(config.rates):
            num = round(config.error_time / rate)
            _, _, end = _descend(config, params, rate, num)
            options = {"learning_rate": rate, "num_steps": num, "record_every": num}
            for name, flow in FLOWS.items():
                path = flow(loss, params, *data, **options).path
                last = jax.tree.map(lambda a, b: a[-1] - b, path, end)
                distance[name][seed, i] = float(optax.tree.norm(last))
    logs = np.log(config.rates)
    slope = {n: np.polyfit(logs, np.log(d).T, 1)[0] for n, d in distance.items()}
    return Errors(np.array(config.rates), distance, slope)
