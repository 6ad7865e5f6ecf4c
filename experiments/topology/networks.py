"""Networks trained until they fit every label, and a window of iterates after that."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.population.networks import (
    Network,
    cross_entropy,
    evaluate,
    make_network,
)
from jaxtheory import curvature, dynamics, linalg

_STEPS_A_CHECK = 25  # from one look at the training accuracy to the next
_STEPS_A_RECORD = 100  # of the window: a chunk of the trace, and one gap
_POINTS_AT_ONCE = 20_000  # of the test set


class Setting(NamedTuple):
    """What the training of all networks shares; made once, so that programs are too.

    Attributes:
        network: The architecture.
        objective: Mean cross-entropy.
        optimizer: SGD without momentum; its learning rate is data.
        fits: Whether a state classifies every training example correctly.
        trace: What is recorded at every step of the window.
        task: The data.
        max_steps: Networks that do not fit after as many steps are left out.
        num_steps: Steps of the window.
    """

    network: Network
    objective: Any
    optimizer: Any
    fits: Any
    trace: dict[str, Any]
    task: Any
    max_steps: int
    num_steps: int


class Window(NamedTuple):
    """Networks ``m`` of one batch size, in the window after they fit.

    Attributes:
        path: Sketches of successive iterates, ``[r, m, dim]``.
        losses: Losses of the same training examples, ``[r, m, n]``.
        step_lengths: Exact lengths of the steps between them, ``[r-1, m]``.
        params: Parameters at the end.
        fitted: Whether the network fitted every label before the window, ``[m]``.
        num_steps: Steps until then.
        found: By name, one number a network.
    """

    path: np.ndarray
    losses: np.ndarray
    step_lengths: np.ndarray
    params: Any
    fitted: np.ndarray
    num_steps: np.ndarray
    found: dict[str, np.ndarray]


def make_setting(
    task: Any,
    *,
    width: int,
    sketch_dim: int,
    num_losses: int,
    max_steps: int,
    num_steps: int,
    key: Any,
) -> Setting:
    """The setting of a task; arguments as in the configuration of the script."""
    network = make_network(width, 2, task.num_classes)
    x, y = task.x_train, task.y_train

    def fits(state):
        return jnp.all(jnp.argmax(network.apply_fn(state.params, x), axis=1) == y)

    losses = dynamics.example_losses(
        network.apply_fn, cross_entropy, x, y, num=num_losses, key=key
    )
    return Setting(
        network,
        dynamics.supervised(network.apply_fn, cross_entropy),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        fits,
        {"path": dynamics.sketch(dim=sketch_dim), "losses": losses},
        task,
        max_steps,
        num_steps,
    )


def train(setting: Setting, batch_size: int, rates: np.ndarray, key: Any) -> Window:
    """Train one network for each learning rate until it fits, and through the window.

    Args:
        setting: What they share.
        batch_size: Examples a step.
        rates: Learning rates ``[m]``.
        key: For starts and batches.
    """
    key_start, key_batches = jax.random.split(key)
    task = setting.task
    # Jitted: op by op, programs of many small operations would be compiled.
    start = jax.jit(jax.vmap(setting.network.model.init, (0, None)))
    params = start(jax.random.split(key_start, len(rates)), task.x_train[:1])
    states = dynamics.init_population(
        setting.optimizer, params, hyperparams={"learning_rate": rates}
    )
    on = functools.partial(
        dynamics.train_population,
        setting.objective,
        optimizer=setting.optimizer,
        data=(task.x_train, task.y_train),
        keys=jax.random.split(key_batches, len(rates)),
        batch_size=batch_size,
        progress=False,
    )
    first = on(
        states=states,
        num_steps=setting.max_steps,
        record_every=_STEPS_A_CHECK,
        stop_when=setting.fits,
    )
    window = on(
        states=first.state,
        num_steps=setting.num_steps,
        record_every=_STEPS_A_RECORD,
        record={"params": _params},
        trace=setting.trace,
    )
    return Window(
        window.trace["path"],
        window.trace["losses"],
        window.trace["step_length"][:-1],
        window.state.params,
        (np.asarray(first.stopped_at) >= 0) & (np.asarray(window.diverged_at) < 0),
        np.asarray(first.state.step),
        _found(setting, window),
    )


def _params(state):
    return state.params


def _found(setting, window):
    """Gaps and norms; of error and loss the largest over the records of the window."""
    task, apply_fn = setting.task, setting.network.apply_fn
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), window.records["params"])
    per_record = lambda values: np.reshape(values, (len(window.steps), -1))
    train_error, train_loss = map(
        per_record, evaluate(apply_fn, flat, task.x_train, task.y_train)
    )
    test_error, test_loss = map(
        per_record, _in_chunks(apply_fn, flat, task.x_test, task.y_test)
    )
    norm, moved = map(np.asarray, _norms(window.state))
    return {
        "gap": np.max(test_error - train_error, axis=0),
        "loss gap": np.max(test_loss - train_loss, axis=0),
        "norm": norm,
        "distance moved": moved,
        "train loss": train_loss[-1],
    }


@jax.jit
def _norms(state):
    """Norm of the parameters of each network, and of their way from the start."""
    norm = jax.vmap(optax.tree.norm)
    moved = optax.tree.sub(state.params, state.initial_params)
    return norm(state.params), norm(moved)


def _in_chunks(apply_fn, params, x, y):
    """Share of errors and mean loss over many test points."""
    starts = range(0, len(x), _POINTS_AT_ONCE)
    parts = [slice(start, start + _POINTS_AT_ONCE) for start in starts]
    sizes = [len(x[part]) for part in parts]
    found = [evaluate(apply_fn, params, x[part], y[part]) for part in parts]
    return np.average(np.asarray(found), axis=0, weights=sizes)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def sharpness_dimension(
    apply_fn: Any,
    params: Any,
    x: Any,
    y: Any,
    rates: Any,
    num_probes: int,
    num_iterations: int,
    key: Any,
) -> dynamics.stability.SharpnessDimension:
    """The Sharpness Dimension of stacked networks, from the full-batch Hessian.

    Args:
        apply_fn: The network.
        params: Parameters, stacked.
        x: Training inputs.
        y: Training labels.
        rates: Learning rates.
        num_probes: Random probes of the density.
        num_iterations: Lanczos iterations for each.
        key: The same for all networks: all meet the same probes.
    """

    def one(pair):
        params, rate = pair
        density = linalg.spectral_density(
            curvature.hessian(apply_fn, cross_entropy, params, x, y),
            key=key,
            num_probes=num_probes,
            num_iterations=num_iterations,
        )
        return dynamics.stability.sharpness_dimension_from_density(
            density, learning_rate=rate
        )

    return jax.lax.map(one, (params, jnp.asarray(rates)))
