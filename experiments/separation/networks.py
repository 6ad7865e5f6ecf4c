"""Networks of the sweep: trained, and measured layer by layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import collapse, data, dynamics, interop, models

LAW, NO_NORM, LINEAR = "BN+ReLU", "no BN", "linear+BN"
_loss = optax.softmax_cross_entropy_with_integer_labels
_CLASSES = 10


class Point(NamedTuple):
    """One point of the sweep; arrays have one entry a seed, ``l`` layers.

    Attributes:
        network: "BN+ReLU", or one of the controls.
        optimizer: As in `Config`.
        depth: Hidden layers.
        rate: Learning rate.
        separation: ``D`` of the input and every hidden layer, on training images, in
            eval mode ``[s, l]``.
        pearson_r: Of ``log D`` and the layer; NaN where some ``D`` is not finite.
        hidden_r: The same without the raw input.
        ratio: Fitted factor of a layer.
        drop_variation: Coefficient of variation of the drops of ``log D``.
        quadratic: Coefficient of the square of the layer.
        p_correlation: Share of laws with random drops whose correlation is as low.
        p_variation: Share of them whose drops vary as little.
        train_loss: Mean over the steps of the last epoch.
        test_accuracy: Of the network.
    """

    network: str
    optimizer: str
    depth: int
    rate: float
    separation: np.ndarray
    pearson_r: np.ndarray
    hidden_r: np.ndarray
    ratio: np.ndarray
    drop_variation: np.ndarray
    quadratic: np.ndarray
    p_correlation: np.ndarray
    p_variation: np.ndarray
    train_loss: np.ndarray
    test_accuracy: np.ndarray


class Task(NamedTuple):
    """Images as rows of pixels from 0 to 1, and their labels."""

    x: Any
    y: Any
    x_test: Any
    y_test: Any


def make_task(config: Any) -> Task:
    """As many images of each class as asked for, pixels from 0 to 1."""
    split = data.digits(num_train=1500, key=jax.random.key(config.seed))
    pixels = lambda x: (x * split.std + split.mean) / 16
    labels = np.asarray(split.y_train)
    chosen = [np.flatnonzero(labels == c)[: config.num_per_class] for c in range(10)]
    if min(map(len, chosen)) < config.num_per_class:
        raise ValueError(
            f"`num_per_class` must be at most {min(map(len, chosen))}, as there are "
            f"training images, but was {config.num_per_class}."
        )
    rows = np.concatenate(chosen)
    x, y = pixels(split.x_train[rows]), split.y_train[rows]
    return Task(x, y, pixels(split.x_test), split.y_test)


def _linear(h):
    return h


def _model(config, network, depth):
    """The network, with the scale of weights that PyTorch starts from."""
    return models.MLP(
        (config.width,) * depth,
        _CLASSES,
        activation=_linear if network == LINEAR else jax.nn.relu,
        batch_norm=network != NO_NORM,
        weight_std=3**-0.5,
    )


@functools.cache
def _optimizer(name, weight_decay, num_steps):
    """An optimizer whose state holds the rate: one program for all rates."""
    falls = {num_steps // 3: 0.1, 2 * num_steps // 3: 0.1}
    rules = {
        "momentum": optax.trace(0.9),
        "sgd": optax.identity(),
        "adam": optax.scale_by_adam(),
    }
    share = optax.piecewise_constant_schedule(-1.0, falls)
    return optax.inject_hyperparams(
        lambda rate: optax.chain(
            optax.add_decayed_weights(weight_decay),
            rules[name],
            optax.scale_by_schedule(share),
            optax.scale(rate),
        )
    )(rate=1.0)


@functools.partial(jax.jit, static_argnums=0)
def _start(model, key, x):
    return model.init(key, x[:1])


@functools.partial(jax.jit, static_argnums=0)
def _accuracy(model, variables, x, y):
    return jnp.mean(jnp.argmax(model.apply(variables, x), axis=1) == y)


@functools.partial(jax.jit, static_argnums=0)
def _layers(model, variables, x):
    return models.features(model, variables, x)


def measure(
    config: Any, task: Task, job: tuple[str, str, int, float]
) -> tuple[Point, list[Any]]:
    """A point of the sweep, and the layers of its networks."""
    network, optimizer, depth, rate = job
    model = _model(config, network, depth)
    rows, layers = [], []
    for seed in range(config.num_seeds):
        key = jax.random.fold_in(jax.random.key(config.seed), 1 + seed)
        variables, loss = _trained(config, task, model, optimizer, rate, key)
        layers.append(list(_layers(model, variables, task.x).values()))
        accuracy = _accuracy(model, variables, task.x_test, task.y_test)
        rows.append((*_law(layers[-1], task.y, key), loss, accuracy))
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    return Point(*job, *columns), layers


def _trained(config, task, model, optimizer, rate, key):
    """Variables at the end, and the training loss of the last epoch."""
    key_init, key_train = jax.random.split(key)
    an_epoch = len(task.x) // config.batch_size
    num_steps = an_epoch * config.num_epochs
    rule = _optimizer(optimizer, config.weight_decay, num_steps)
    start = interop.flax.split(_start(model, key_init, task.x))
    state = dynamics.init(rule, start[0], model_state=start[1])
    state = state._replace(opt_state=optax.tree.set(state.opt_state, rate=rate))
    history = dynamics.train(
        interop.flax.objective(model, _loss),
        state,
        rule,
        (task.x, task.y),
        num_steps=num_steps,
        batch_size=config.batch_size,
        key=key_train,
        progress=False,
    )
    end = history.state
    if history.diverged_at is not None:
        # The last finite state of a run that diverged means nothing.
        end = end._replace(params=jax.tree.map(lambda a: a * jnp.nan, end.params))
    variables = {"params": end.params, **dict(end.model_state)}
    return variables, history.trace["loss"][-an_epoch:].mean()


def _law(layers, labels, key):
    """The fields of `Point` from `separation` to `p_variation`."""
    law = collapse.separation_law(layers, labels, num_classes=_CLASSES)
    hidden = collapse.fit_separation_law(law.values, input_layer="exclude")
    chance = collapse.random_drop_test(law.values, key=jax.random.fold_in(key, 2))
    return (
        law.values,
        law.pearson_r,
        hidden.pearson_r,
        law.ratio,
        law.drop_variation,
        law.quadratic,
        chance.pearson_r.value,
        chance.drop_variation.value,
    )


def bend(config: Any, task: Task, networks: list[Any]) -> np.ndarray:
    """Quadratic coefficient of the mean of ``log D``; images and seeds drawn again."""
    key, rng = jax.random.key(config.seed), np.random.default_rng(config.seed)
    draws = [
        collapse.bootstrap_separation_law(
            layers,
            task.y,
            key=jax.random.fold_in(key, 100 + seed),
            num_resamples=config.num_resamples,
            num_classes=_CLASSES,
        ).resampled_values
        for seed, layers in enumerate(networks)
    ]
    logs = np.log(np.stack(draws))  # [s, resamples, l]
    num_seeds = len(networks)
    who = rng.integers(num_seeds, size=(num_seeds, config.num_resamples))
    drawn = logs[who, np.arange(config.num_resamples)].mean(0)
    squares = np.polyfit(np.arange(logs.shape[2]), drawn.T, 2)[0]
    laws = [
        collapse.separation_law(layers, task.y, num_classes=_CLASSES)
        for layers in networks
    ]
    measured = np.log([law.values for law in laws])
    middle = np.polyfit(np.arange(logs.shape[2]), measured.mean(0), 2)[0]
    return np.array([middle, *np.quantile(squares, (0.025, 0.975))])
