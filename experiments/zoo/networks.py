"""Networks of the zoo: trained to the same loss, followed a little, and measured."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.population.networks import cross_entropy, evaluate, make_task
from experiments.zoo.design import Group
from jaxtheory import bounds, dynamics, models

_STEPS_A_CHECK = 10  # from one look at the training loss to the next
_MOMENTUM = 0.9


class Task(NamedTuple):
    """Data of one task at one label noise.

    Attributes:
        x: Training inputs.
        y: Training labels, some of them drawn at random.
        x_test: Test inputs.
        y_test: Test labels.
        stop_when: Whether a state has reached the training loss.
        num_classes: Number of classes.
    """

    x: Any
    y: Any
    x_test: Any
    y_test: Any
    stop_when: Any
    num_classes: int


class Network(NamedTuple):
    """An architecture, always by the same functions, so that programs compile once.

    Attributes:
        model: The module.
        apply_fn: ``apply_fn(params, x) -> outputs``.
        layers: ``layers(params, x)``, features of all layers.
        classifier: ``classifier(params)``, the last layer.
        objective: Mean cross-entropy.
    """

    model: models.MLP
    apply_fn: Callable[..., Any]
    layers: Callable[..., Any]
    classifier: Callable[..., Any]
    objective: Callable[..., Any]


@functools.cache
def make_network(width: int, num_outputs: int) -> Network:
    """A ReLU network of two hidden layers, with He's initialisation."""
    model = models.MLP((width, width), num_outputs)
    return Network(
        model,
        model.apply,
        functools.partial(models.features, model),
        functools.partial(models.classifier, model),
        dynamics.supervised(model.apply, cross_entropy),
    )


def sgd(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    """SGD with momentum; decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=_MOMENTUM),
    )


def adam(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    """Adam with decoupled decay."""
    return optax.adamw(learning_rate, weight_decay=weight_decay)


OPTIMIZERS = {
    "sgd": optax.inject_hyperparams(sgd)(learning_rate=0.1, weight_decay=0.0),
    "adam": optax.inject_hyperparams(adam)(learning_rate=0.1, weight_decay=0.0),
}


class _Part(NamedTuple):
    """What `make_task` reads of a configuration."""

    task: str
    num_train: int
    num_test: int
    separation: float


def make_data(config: Any, task: str, noise: float, key: Any) -> Task:
    """The task; a larger noise changes the labels of a smaller one, and more.

    Args:
        config: Of the experiment.
        task: "digits" or "mixture".
        noise: Share of training labels that are drawn at random, from all classes.
        key: The same for all noises.
    """
    to_data, to_rows, to_labels = jax.random.split(key, 3)
    part = _Part(task, config.num_train, config.num_test, config.separation)
    data = make_task(part, to_data)
    n = len(data.y_train)
    order = jax.random.permutation(to_rows, n)
    drawn = jax.random.randint(to_labels, (n,), 0, data.num_classes)
    labels = jnp.where(order < round(noise * n), drawn, data.y_train)
    stop = functools.partial(_reached, config.stop_loss, data.x_train, labels)
    return Task(data.x_train, labels, data.x_test, data.y_test, stop, data.num_classes)


def _reached(stop_loss, x, y, state):
    """Whether the mean training loss is low enough; the network is read off."""
    params = state.params["params"]
    network = make_network(
        params["layer_1"]["kernel"].shape[1], params["output"]["bias"].shape[0]
    )
    return jnp.mean(cross_entropy(network.apply_fn(state.params, x), y)) <= stop_loss


def run_group(config: Any, group: Group, task: Task, key: Any) -> list[dict[str, Any]]:
    """Train and measure the networks of a group.

    Args:
        config: Of the experiment.
        group: Its cells.
        task: Its data.
        key: Of the group; seeds follow from it. Measures meet the same perturbations
            in all groups.

    Returns:
        Rows of the ledger.
    """
    cells = [cell for cell in group.cells.values() for _ in range(config.num_seeds)]
    numbers = np.repeat([*group.cells], config.num_seeds)
    network = make_network(cells[0].width, task.num_classes)
    first, window = _train(config, network, cells, task, key)
    params = first.state.params
    path = (jnp.moveaxis(jnp.asarray(window.trace["path"]), 0, 1), _lengths(window))
    found = _measured(config, network, first.state, path, task)
    train_error, train_loss = evaluate(network.apply_fn, params, task.x, task.y)
    held_out = task.x_test, task.y_test
    test_error, test_loss = evaluate(network.apply_fn, params, *held_out)
    few = [a[: config.num_validation] for a in held_out]
    rest = [a[config.num_validation :] for a in held_out]
    columns = {
        "num_steps": first.state.step,
        "reached": np.asarray(first.stopped_at) >= 0,
        "diverged": np.asarray(first.diverged_at) >= 0,
        "train loss": train_loss,
        "train error": train_error,
        "test loss": test_loss,
        "test error": test_error,
        "validation error": evaluate(network.apply_fn, params, *few)[0],
        "error beside validation": evaluate(network.apply_fn, params, *rest)[0],
        "gap": test_error - train_error,
        **found,
    }
    columns = {name: np.asarray(values, float) for name, values in columns.items()}
    return [
        {
            "cell": numbers[i],
            "seed": i % config.num_seeds,
            "task": cell.task,
            "label noise": cell.label_noise,
            "optimizer": cell.optimizer,
            "learning rate": cell.learning_rate,
            "batch size": cell.batch_size,
            "width": cell.width,
            "weight decay": cell.weight_decay,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, cell in enumerate(cells)
    ]


def _train(config, network, cells, task, key):
    """To the training loss; and a window of iterates from there on."""
    to_start, to_batches, to_window = jax.random.split(key, 3)
    optimizer = OPTIMIZERS[cells[0].optimizer]
    states = dynamics.init_population(
        optimizer,
        _start(network.model, jax.random.split(to_start, len(cells)), task.x[:1]),
        hyperparams={
            "learning_rate": np.array([cell.learning_rate for cell in cells]),
            "weight_decay": np.array([cell.weight_decay for cell in cells]),
        },
    )
    on = functools.partial(
        dynamics.train_population,
        network.objective,
        optimizer=optimizer,
        data=(task.x, task.y),
        batch_size=cells[0].batch_size,
        progress=False,
    )
    first = on(
        states=states,
        keys=jax.random.split(to_batches, len(cells)),
        num_steps=config.max_steps,
        record_every=_STEPS_A_CHECK,
        stop_when=task.stop_when,
    )
    window = on(
        states=first.state,
        keys=jax.random.split(to_window, len(cells)),
        num_steps=config.num_path_steps,
        record_every=config.num_path_steps,
        trace={"path": dynamics.sketch(dim=config.sketch_dim)},
    )
    return first, window


@functools.partial(jax.jit, static_argnums=0)
def _start(model, keys, x):
    return jax.vmap(model.init, (0, None))(keys, x)


def _lengths(window):
    """Exact lengths of the steps between the points of the trace, ``[m, r-1]``."""
    return jnp.asarray(window.trace["step_length"])[:-1].T


def _measured(config, network, state, path, task):
    """All measures of all networks of the group."""
    key = jax.random.key(config.seed)
    found = measure(
        network, state.params, state.initial_params, path, task.x, task.y, key
    )
    return jax.device_get(found)


@functools.partial(jax.jit, static_argnums=0)
def measure(
    network: Network, params: Any, start: Any, path: Any, x: Any, y: Any, key: Any
) -> dict[str, Any]:
    """`bounds.measures` of stacked networks, in one program.

    Args:
        network: The architecture.
        params: Parameters, stacked.
        start: Where training began, stacked.
        path: Sketches and lengths of steps, stacked.
        x: Training inputs.
        y: Training labels.
        key: The same for all.

    Returns:
        By name one number a network.
    """

    one = functools.partial(measure_one, network, x=x, y=y, key=key)
    return jax.vmap(one)(params, start, path)


def measure_one(
    network: Network, params: Any, start: Any, path: Any, *, x: Any, y: Any, key: Any
) -> dict[str, Any]:
    """`bounds.measures` of one network; arguments as of `measure`, not stacked."""
    return bounds.measures(
        network.apply_fn,
        cross_entropy,
        params,
        x,
        y,
        initial_params=start,
        key=key,
        layers=network.layers,
        classifier=network.classifier,
        path=path,
    )
