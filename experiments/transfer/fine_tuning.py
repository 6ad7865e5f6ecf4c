"""Fine-tuning of stacked networks: of everything, or of one layer with a skip."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.transfer.pool import Networks, cross_entropy, descend
from experiments.transfer.targets import Task
from jaxtheory import collapse, interop, models


class FineTuned(NamedTuple):
    """What became of stacked networks.

    Attributes:
        accuracy: On the target's test set.
        train_accuracy: On its training set.
        parameters: Those trained and all, the same for each.
    """

    accuracy: np.ndarray
    train_accuracy: np.ndarray
    parameters: collapse.ParameterCount


class Schedule(NamedTuple):
    """Adam with a rate that falls to 0 along a cosine; hashable.

    Attributes:
        learning_rate: At the start.
        num_epochs: Epochs.
        batch_size: Examples a step; what is left over in an epoch is dropped.
    """

    learning_rate: float
    num_epochs: int
    batch_size: int


def fine_tune_all(
    networks: Networks, task: Task, schedule: Schedule, key: Any
) -> FineTuned:
    """Train all parameters with a new classifier; BatchNorm in training mode."""
    model = networks.shape.model(task.num_classes)
    start_key, order_key = jax.random.split(key)
    fresh = _start(model, start_key, task.x_train[:1])["params"]["output"]
    old = networks.variables
    params = old["params"] | {"output": _repeat(fresh, len(networks.recipes))}
    mask = jax.tree.map(lambda _: True, params)
    return _fine_tune(model, {**old, "params": params}, mask, task, schedule, order_key)


def fine_tune_layer(
    networks: Networks,
    layer: str,
    num_source_classes: int,
    task: Task,
    schedule: Schedule,
    key: Any,
) -> FineTuned:
    """Train one hidden layer, a skip from it to the end and a new classifier."""
    body = networks.shape.model(num_source_classes)
    model = models.SkipConnection(body, layer=layer, num_outputs=task.num_classes)
    start_key, order_key = jax.random.split(key)
    fresh = _start(model, start_key, task.x_train[:1])["params"]
    fresh = _repeat(fresh, len(networks.recipes))
    variables = {
        "params": {**fresh, "model": networks.variables["params"]},
        "batch_stats": {"model": networks.variables["batch_stats"]},
    }
    mask = collapse.trainable_mask(variables["params"], model.trainable)
    return _fine_tune(model, variables, mask, task, schedule, order_key)


@functools.partial(jax.jit, static_argnums=0)
def _start(model, key, x):
    return model.init(key, x)


def _repeat(tree, count):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), tree)


def _fine_tune(model, variables, mask, task, schedule, key):
    """Any module, with the parameters that a mask marks."""
    marks, structure = jax.tree.flatten(mask)
    one = jax.tree.map(lambda a: a[0], variables["params"])
    data = (task.x_train, task.y_train, task.x_test, task.y_test)
    found = _train(model, tuple(marks), structure, schedule, variables, data, key)
    return FineTuned(
        accuracy=np.asarray(found[0]),
        train_accuracy=np.asarray(found[1]),
        parameters=collapse.count_parameters(one, mask),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _train(model, marks, structure, schedule, variables, data, key):
    x_train, y_train, x_test, y_test = data
    mask = jax.tree.unflatten(structure, marks)
    num_batches = len(x_train) // schedule.batch_size
    rate = optax.cosine_decay_schedule(
        schedule.learning_rate, max(schedule.num_epochs * num_batches, 1)
    )
    optimizer = collapse.train_only(optax.adam(rate), mask)
    objective = interop.flax.objective(model, cross_entropy)
    step = functools.partial(descend, objective, optimizer, x_train, y_train)

    def epoch(carry, index):
        order = jax.random.permutation(jax.random.fold_in(key, index), len(x_train))
        rows = order[: num_batches * schedule.batch_size].reshape(num_batches, -1)
        return jax.lax.scan(step, carry, rows)[0], None

    def one(variables):
        params, state = interop.flax.split(variables)
        carry = (params, state, optimizer.init(params))
        epochs = jnp.arange(schedule.num_epochs)
        (params, state, _), _ = jax.lax.scan(epoch, carry, epochs)

        def accuracy(x, y):
            outputs = model.apply({"params": params, **state}, x)
            return jnp.mean(jnp.argmax(outputs, axis=1) == y)

        return accuracy(x_test, y_test), accuracy(x_train, y_train)

    return jax.vmap(one)(variables)
