"""Networks on a torus and on digits, and how elastic training made them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import collapse, data, dynamics, kernels, models

KINDS = ("ReLU", "linear")
_SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)


class Elastic(NamedTuple):
    """Networks on one task; the first axis is the seed.

    Attributes:
        kernel: What is measured (correlation with the distance, or the index of same
            over different class) of the relative similarity by the tangent kernel.
        step: The same by the changes of a step at each example.
        loss: Mean squared error at the end.
        similarity: By the kernel, of the last seed ``[n, n]``.
    """

    kernel: np.ndarray
    step: np.ndarray
    loss: np.ndarray
    similarity: np.ndarray


def _stacked(rows):
    kernel, step, loss, similarity = zip(*rows, strict=True)
    last = np.asarray(similarity[-1])
    return Elastic(np.array(kernel), np.array(step), np.array(loss), last)


def torus(num: int, key: Any) -> tuple[Any, Any, np.ndarray]:
    """Points on two curves that wind 4 times around a torus of radius 8."""
    angle = jax.random.uniform(key, (num,), minval=-np.pi, maxval=np.pi)
    y = jnp.arange(num) % 2
    sign = 2.0 * y - 1
    out = 8 + sign * jnp.sin(4 * angle)
    places = out * jnp.cos(angle), out * jnp.sin(angle), sign * jnp.cos(4 * angle)
    gap = np.abs(np.subtract.outer(np.asarray(angle), np.asarray(angle)))
    return jnp.stack(places, axis=1), y, np.minimum(gap, 2 * np.pi - gap)


def correlation(similarity: Any, distance: np.ndarray, y: Any) -> float:
    """Pearson's, over all pairs on the curve of class 1."""
    on = np.flatnonzero(np.asarray(y) == 1)
    pairs = np.ix_(on, on)
    flat = np.asarray(similarity)[pairs].ravel(), distance[pairs].ravel()
    return float(np.corrcoef(*flat)[0, 1])


def on_torus(config: Any, kind: str, keys: list[Any]) -> tuple[Elastic, np.ndarray]:
    """Networks on two curves around a torus, and the distances of the last seed."""
    rows, distance = [], np.zeros(0)
    for key in keys:
        key_data, key_init = jax.random.split(key)
        x, y, distance = torus(config.num_torus, key_data)
        network = _model(kind, config.width, 3)
        rate = config.torus_rate * 40_960 / config.width
        both, loss = _elastic(x, y, key_init, network, rate, config.torus_steps)
        along = [correlation(b.similarity, distance, y) for b in both]
        rows.append((*along, loss, both[0].similarity))
    return _stacked(rows), distance


def on_digits(
    config: Any, pair: tuple[int, int], kind: str, keys: list[Any]
) -> Elastic:
    """Networks on two digits, of pixels from 0 to 1."""
    rows, half = [], config.num_digits // 2
    for key in keys:
        key_data, key_init = jax.random.split(key)
        task = data.digits(num_train=1796, key=key_data)
        labels = np.asarray(task.y_train)
        chosen = np.concatenate([np.flatnonzero(labels == c)[:half] for c in pair])
        y = jnp.asarray(labels[chosen] == pair[1], jnp.int32)
        x = (task.x_train[chosen] * task.std + task.mean) / 16
        network = _model(kind, config.digits_width, 64)
        both, loss = _elastic(x, y, key_init, network, None, config.digits_steps)
        indices = [float(b.elasticity) for b in both]
        rows.append((*indices, loss, both[0].similarity))
    return _stacked(rows)


def _identity(h):
    return h


@functools.cache
def _model(kind, width, dim):
    """A network with PyTorch's scales: its start, itself, what is differentiated."""
    activation = jax.nn.relu if kind == "ReLU" else _identity
    start = {"weight_std": 3**-0.5, "bias_std": (3 * dim) ** -0.5}
    model = models.MLP((width,), 1, activation=activation, **start)
    apply_fn: Any = model.apply
    return jax.jit(model.init), apply_fn, dynamics.supervised(apply_fn, _square)


def _square(outputs, y):
    return (outputs[:, 0] - y) ** 2


def _elastic(x, y, key, network, rate, num_steps):
    """Elasticity by the kernel and by steps of a trained network, and its loss."""
    init, apply_fn, objective = network
    params = init(key, x[:1])
    if rate is None:
        # Half of what is stable at the start, where the Hessian is 2 K / n.
        start = kernels.empirical_ntk(apply_fn, params, x)
        rate = len(x) / jnp.linalg.eigvalsh(start)[-1] / 2
    state = dynamics.init(_SGD, params)
    opt_state = optax.tree.set(state.opt_state, learning_rate=rate)
    state = state._replace(opt_state=opt_state)
    history = dynamics.train(
        objective,
        state,
        _SGD,
        (x, y),
        num_steps=num_steps,
        key=jax.random.key(0),
        progress=False,
    )
    if history.diverged_at is not None:
        raise ValueError("training diverged: lower `torus_rate`.")
    trained = history.state.params
    gram = kernels.empirical_ntk(apply_fn, trained, x)
    changes = _changes(apply_fn, trained, x, y, 0.01 / jnp.max(jnp.diagonal(gram)))
    both = (
        collapse.local_elasticity(gram, y),
        collapse.elasticity_of_changes(changes, y),
    )
    return both, float(history.trace["loss"][-1])


@functools.partial(jax.jit, static_argnums=0)
def _changes(apply_fn, params, x, y, rate):
    """Changes of all outputs by a step at each example, in its row.

    The step is towards the other label: at its own the residual is nearly zero, and
    the ratio of two changes, which does not depend on it, is lost to rounding.
    """
    before = apply_fn(params, x)

    def change(pair):
        x_i, y_i = pair
        loss = lambda p: jnp.sum(_square(apply_fn(p, x_i[None]), 1 - y_i[None])) / 2
        step = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))
        return apply_fn(step, x) - before

    return jax.lax.map(change, (x, y))
