"""Label noise on digits: what it does to a network that interpolates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.drift.theory import OPTIMIZER, half_square
from jaxtheory import curvature, data, dynamics, linalg, models
from jaxtheory.dynamics import implicit

# For the way to interpolation, and for the last bit at the end, of all arms.
HEAVY_BALL = optax.inject_hyperparams(optax.sgd)(learning_rate=0.02, momentum=0.9)
NOISE, BATCHES, DESCENT = "label noise", "batches alone", "gradient descent"


class End(NamedTuple):
    """Networks after descent without noise to the final loss, one a seed.

    Attributes:
        trace: ``tr H``.
        loss: The loss on the record at which it was reached.
        error: Test error.
        reached: Whether it was reached.
    """

    trace: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    reached: np.ndarray


class Arm(NamedTuple):
    """What became of the interpolating networks; arrays have a column a seed.

    Attributes:
        steps: Of the records, since interpolation.
        trace: ``tr H`` of the mean network (of its last thousand steps or so).
        loss: Its training loss.
        noisy_loss: Training loss of the network itself.
        end: What it is at the final loss; None for what is below it anyway.
    """

    steps: np.ndarray
    trace: np.ndarray
    loss: np.ndarray
    noisy_loss: np.ndarray
    end: End | None


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Digits with one-hot targets, and what is measured on them.

    Attributes:
        model: The network.
        x: Images to train on.
        y: Their targets.
        x_test: Test images.
        labels: Their labels.
    """

    model: Any
    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    labels: jax.Array

    # One function for all arms: it is compiled once.
    @functools.cached_property
    def record(self) -> dict[str, Callable[..., Any]]:
        """What is recorded of a state whose model state is the mean network."""
        return {
            "trace": lambda state: self.trace(state.model_state),
            "loss": lambda state: self.loss(state.model_state),
            "noisy_loss": lambda state: self.loss(state.params),
        }

    @functools.cached_property
    def final(self) -> Callable[..., Any]:
        """Trace, loss and test error of many networks."""
        one = lambda p: (self.trace(p), self.loss(p), self.error(p))
        return jax.jit(jax.vmap(one))

    def loss(self, params: Any) -> jax.Array:
        """Mean loss on clean targets."""
        return jnp.mean(half_square(self.model.apply(params, self.x), self.y))

    def trace(self, params: Any) -> jax.Array:
        """``tr H``, with the same probes for all networks."""
        operator = curvature.hessian(
            self.model.apply, half_square, params, self.x, self.y
        )
        return linalg.trace(operator, key=jax.random.key(0), num_samples=32).value

    def error(self, params: Any) -> jax.Array:
        """Share of test digits that are taken for others."""
        outputs = self.model.apply(params, self.x_test)
        return jnp.mean(jnp.argmax(outputs, axis=1) != self.labels)


@dataclasses.dataclass(frozen=True)
class Averaged:
    """An objective whose model state is the mean network: a running mean of weights.

    Attributes:
        objective: The objective itself.
        decay: Weight of what was before.
    """

    objective: Callable[..., Any]
    decay: float = 0.999

    def __call__(self, params, model_state, batch, key):
        value, _ = self.objective(params, (), batch, key)
        mix = lambda old, new: self.decay * old + (1 - self.decay) * new
        return value, jax.lax.stop_gradient(jax.tree.map(mix, model_state, params))


def run(config: Any, key: Any) -> dict[str, Arm]:
    """Train to interpolation, then on, with and without noise.

    Raises:
        ValueError: A network did not interpolate in time.
    """
    key_data, key_init, *keys = jax.random.split(key, 5)
    task = _task(config, key_data)
    params = jax.vmap(task.model.init, (0, None))(
        jax.random.split(key_init, config.num_networks), task.x[:1]
    )
    start = _descend(config, task, params, config.start_loss, keys[0])
    if not np.all(start.stopped_at >= 0):
        raise ValueError(
            f"`max_steps` must suffice to reach a loss of {config.start_loss}, but "
            f"{config.max_steps} did not, in {np.sum(start.stopped_at < 0)} networks."
        )
    params = start.state.params
    arms = {
        NOISE: (config.noise, config.batch_size),
        BATCHES: (0.0, config.batch_size),
        DESCENT: (0.0, None),
    }
    # The same batches with noise and without.
    return {
        name: _arm(config, task, name, params, how, keys[1:3])
        for name, how in arms.items()
    }


def _task(config, key):
    digits = data.digits(num_train=config.num_train, key=key)
    model = models.MLP((config.digits_width,), 10, activation=jnp.tanh)
    targets = jax.nn.one_hot(digits.y_train, 10)
    return Task(model, digits.x_train, targets, digits.x_test, digits.y_test)


def _arm(config, task, name, params, how, keys):
    """One way to go on; then descent without noise to the final loss."""
    noise, batch_size = how
    # Each arm draws the same.
    key_noise, key_end = (jax.random.fold_in(key, 0) for key in keys)
    objective = implicit.label_noise(task.model.apply, half_square, scale=noise)
    history = _train(
        Averaged(objective),
        params,
        task,
        config.noise_rate,
        key_noise,
        model_state=params,
        batch_size=batch_size,
        num_steps=config.num_steps,
        record=task.record,
        record_every=config.num_steps // 20,
    )
    # Descent went on from where it was: what it has at that loss is met on its way.
    begin = params if name == DESCENT else history.state.model_state
    end = None if name == BATCHES else _end(config, task, begin, key_end)
    return Arm(steps=history.steps, end=end, **history.records)


def _end(config, task, params, key):
    """What networks are when they have come down to the final loss."""
    history = _descend(config, task, params, config.final_loss, key)
    trace, loss, error = map(np.asarray, task.final(history.state.params))
    return End(trace, loss, error, np.asarray(history.stopped_at) >= 0)


def _descend(config, task, params, level, key):
    """Descent with momentum until the loss is below a level, asked every 50 steps."""
    objective = implicit.label_noise(task.model.apply, half_square, scale=0.0)
    return _train(
        objective,
        params,
        task,
        config.rate,
        key,
        optimizer=HEAVY_BALL,
        num_steps=config.max_steps,
        record_every=50,
        stop_when=lambda state: task.loss(state.params) <= level,
    )


def _train(
    objective,
    params,
    task,
    rate,
    key,
    *,
    optimizer=OPTIMIZER,
    model_state=(),
    **options,
):
    """One population, a run a network."""
    count = len(jax.tree.leaves(params)[0])
    states = dynamics.init_population(
        optimizer,
        params,
        hyperparams={"learning_rate": jnp.full(count, rate)},
        model_state=model_state,
    )
    keys = jax.random.split(key, count)
    options = {"keys": keys, "progress": False, **options}
    return dynamics.train_population(
        objective, states, optimizer, (task.x, task.y), **options
    )
