"""A population of small networks, all trained to the same loss, and their measures."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtheory import data, models
from jaxtheory._types import Estimate
from jaxtheory.curvature import flatness

cross_entropy = optax.softmax_cross_entropy_with_integer_labels

# Two rows of the published study that `MEASURES` defines differently.
AS_PUBLISHED = {"fisher_rao.hessian": ("fisher_rao", {"matrix": "hessian"})}


class Cell(NamedTuple):
    """Hyperparameters of some networks that differ in their seed alone.

    Attributes:
        learning_rate: Of SGD with momentum.
        batch_size: Examples a step.
        width: Units of each hidden layer.
        weight_decay: Added to the gradient, times the parameters, before momentum.
    """

    learning_rate: float
    batch_size: int
    width: int
    weight_decay: float


class Network(NamedTuple):
    """An architecture; the same object for equal sizes, so that programs compile once.

    Attributes:
        model: The module.
        apply_fn: ``apply_fn(params, x) -> outputs``.
    """

    model: models.MLP
    apply_fn: Callable[[Any, Any], Any]


class Setting(NamedTuple):
    """What the training of all networks of one shape shares; hashable.

    Attributes:
        network: The architecture.
        batch_size: Examples a step; what is left over in an epoch is dropped.
        momentum: Of SGD.
        stop_loss: Training stops after the first epoch that ends at or below it.
        max_epochs: Or after this many.
    """

    network: Network
    batch_size: int
    momentum: float
    stop_loss: float
    max_epochs: int


class Trained(NamedTuple):
    """Trained networks, stacked.

    Attributes:
        params: Parameters.
        initial_params: Where training began.
        loss: Mean training loss.
        num_epochs: Epochs until it stopped.
    """

    params: Any
    initial_params: Any
    loss: Any
    num_epochs: Any


def make_task(config: Any, key: Any) -> Any:
    """Digits, or a Gaussian mixture of ten classes in 64 dimensions.

    Args:
        config: Has `task`, `num_train`, `num_test` and `separation`.
        key: Random key.
    """
    if config.task == "digits":
        return data.digits(num_train=config.num_train, key=key)
    return data.gaussian_mixture(
        num_classes=10,
        dim=64,
        num_train=config.num_train,
        num_test=config.num_test,
        separation=config.separation,
        key=key,
    )


@functools.cache
def make_network(width: int, depth: int, num_outputs: int) -> Network:
    """A ReLU network of `depth` hidden layers, with He's initialisation."""
    model = models.MLP((width,) * depth, num_outputs)
    return Network(model, model.apply)


@functools.partial(jax.jit, static_argnums=0)
def train(
    setting: Setting,
    x: Any,
    y: Any,
    learning_rates: Any,
    weight_decays: Any,
    keys: Any,
) -> Trained:
    """Train networks side by side; each keeps its parameters once it has stopped.

    Args:
        setting: What they share.
        x: Inputs ``[n, d]``.
        y: Labels ``[n]``.
        learning_rates: One a network.
        weight_decays: One a network.
        keys: One a network, for its start and its batches.
    """

    def one(rate, decay, key):
        start_key, batches_key = jax.random.split(key)
        start = setting.network.model.init(start_key, x[:1])
        return _train_one(setting, start, x, y, rate, decay, batches_key)

    return jax.vmap(one)(learning_rates, weight_decays, keys)


def _train_one(setting, start, x, y, rate, decay, key):
    optimizer = optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(rate, momentum=setting.momentum)
    )
    loss = lambda p, x, y: jnp.mean(cross_entropy(setting.network.apply_fn(p, x), y))
    num_batches = len(x) // setting.batch_size

    def step(carry, rows):
        params, state = carry
        gradient = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry):
        params, state, _, index = carry
        order = jax.random.permutation(jax.random.fold_in(key, index), len(x))
        rows = order[: num_batches * setting.batch_size].reshape(num_batches, -1)
        (params, state), _ = jax.lax.scan(step, (params, state), rows)
        return params, state, loss(params, x, y), index + 1

    def going(carry):
        # A loss that is not finite any more stops too.
        _, _, now, index = carry
        finite = now < jnp.inf
        return finite & (now > setting.stop_loss) & (index < setting.max_epochs)

    begin = (start, optimizer.init(start), loss(start, x, y), jnp.zeros((), int))
    params, _, end, num_epochs = jax.lax.while_loop(going, epoch, begin)
    return Trained(params, start, end, num_epochs)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(apply_fn: Any, params: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Share of errors and mean loss of stacked networks."""

    def one(params):
        outputs = apply_fn(params, x)
        wrong = jnp.argmax(outputs, axis=1) != y
        return jnp.mean(wrong), jnp.mean(cross_entropy(outputs, y))

    return jax.lax.map(one, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(
    apply_fn: Any, names: Any, params: Any, start: Any, x: Any, y: Any, key: Any
) -> dict[str, Any]:
    """Every flatness measure of stacked networks, in one program.

    Args:
        apply_fn: The network.
        names: Rows of `flatness.MEASURES`, or None for all of them.
        params: Parameters, stacked.
        start: Where training began, stacked.
        x: Training inputs.
        y: Training labels.
        key: The same for all networks: all meet the same perturbations.

    Returns:
        By name one number a network; fields as `flatness.all_measures` names them.
    """

    def one(pair):
        args = (apply_fn, cross_entropy, pair[0], x, y)
        found = flatness.all_measures(
            *args, key=key, initial_params=pair[1], names=names
        )
        for label, (name, options) in AS_PUBLISHED.items():
            if names is None or name in names:
                published = flatness.all_measures(
                    *args, key=key, names=[name], options={name: options}
                )
                found[label] = published[name]
        moved = optax.tree.norm(optax.tree.sub(*pair))
        found |= {"distance moved": moved, "norm": optax.tree.norm(pair[0])}
        value = lambda entry: entry.value if isinstance(entry, Estimate) else entry
        return {name: value(entry) for name, entry in found.items()}

    return jax.lax.map(one, (params, start))
