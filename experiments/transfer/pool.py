"""A pool of pretrained networks, those of one shape trained side by side."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtheory import interop, models

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
MOMENTUM = 0.9


class Shape(NamedTuple):
    """An architecture with BatchNorm; hashable.

    Attributes:
        kind: "mlp" or "cnn".
        widths: Units or channels of each hidden layer.
    """

    kind: Literal["mlp", "cnn"]
    widths: tuple[int, ...]

    def __str__(self):
        return f"{self.kind} {'-'.join(map(str, self.widths))}"

    def model(self, num_outputs: int) -> models.MLP | models.CNN:
        """The network with so many outputs."""
        make = models.MLP if self.kind == "mlp" else models.CNN
        return make(self.widths, num_outputs, batch_norm=True)


class Recipe(NamedTuple):
    """How one network is pretrained, but for when it stops.

    Attributes:
        loss: "cross entropy" or "squared error" (to one-hot labels, summed over them).
        learning_rate: Of SGD with momentum .9.
        weight_decay: Coupled: added to the gradient.
    """

    loss: str
    learning_rate: float
    weight_decay: float


class Networks(NamedTuple):
    """Networks of one shape.

    Attributes:
        shape: The shape.
        variables: Parameters and BatchNorm statistics, stacked: recipes outside, stops
            inside.
        recipes: One for each network.
        stops: Epochs that each was trained.
    """

    shape: Shape
    variables: Any
    recipes: tuple[Recipe, ...]
    stops: tuple[int, ...]


def pretrain(
    shape: Shape,
    recipes: tuple[Recipe, ...],
    stops: tuple[int, ...],
    task: Any,
    *,
    batch_size: int,
    key: Any,
) -> Networks:
    """Train one network by each recipe and keep it at each stop.

    Args:
        shape: Of all of them.
        recipes: One for each run.
        stops: Epochs, increasing.
        task: The source.
        batch_size: Examples a step; what is left over in an epoch is dropped.
        key: For starts and batches.
    """
    rates = jnp.array([recipe.learning_rate for recipe in recipes])
    decays = jnp.array([recipe.weight_decay for recipe in recipes])
    squared = jnp.array([recipe.loss == "squared error" for recipe in recipes])
    keys = jax.random.split(key, len(recipes))
    model = shape.model(task.num_classes)
    data = (jnp.asarray(task.x_train), jnp.asarray(task.y_train))
    found = _runs(model, batch_size, stops, data, rates, decays, squared, keys)
    # From recipes outside and stops inside to one axis.
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
    every = tuple(recipe for recipe in recipes for _ in stops)
    return Networks(shape, flat, every, stops * len(recipes))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _runs(model, batch_size, stops, data, rates, decays, squared, keys):
    run = functools.partial(_run, model, batch_size, stops, data)
    return jax.vmap(run)(rates, decays, squared, keys)


def _run(model, batch_size, stops, data, rate, decay, squared, key):
    """One network at each stop."""
    x, y = data
    start_key, order_key = jax.random.split(key)
    params, state = interop.flax.split(model.init(start_key, x[:1]))

    def loss_fn(outputs, labels):
        onehot = jax.nn.one_hot(labels, outputs.shape[1])
        distance = jnp.sum(jnp.square(outputs - onehot), axis=1)
        # Two losses in one program: runs of both are side by side.
        return jnp.where(squared, distance, cross_entropy(outputs, labels))

    optimizer = optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(rate, momentum=MOMENTUM)
    )
    objective = interop.flax.objective(model, loss_fn)
    num_batches = len(x) // batch_size
    carry, kept, begin = (params, state, optimizer.init(params)), [], 0

    def epoch(carry, index):
        order = jax.random.permutation(jax.random.fold_in(order_key, index), len(x))
        rows = order[: num_batches * batch_size].reshape(num_batches, -1)
        step = functools.partial(descend, objective, optimizer, x, y)
        return jax.lax.scan(step, carry, rows)[0], None

    for stop in stops:
        carry, _ = jax.lax.scan(epoch, carry, jnp.arange(begin, stop))
        kept.append({"params": carry[0], **carry[1]})
        begin = stop
    return jax.tree.map(lambda *a: jnp.stack(a), *kept)


def descend(objective, optimizer, x, y, carry, rows):
    """One step on some rows, as `jax.lax.scan` takes it."""
    params, state, moments = carry
    gradient, state = jax.grad(objective, has_aux=True)(
        # No dropout, so nothing draws from this key.
        params,
        state,
        (x[rows], y[rows]),
        jax.random.key(0),
    )
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), state, moments), None


@functools.partial(jax.jit, static_argnums=0)
def read(model: Any, variables: Any, x: Any) -> tuple[dict[str, Any], Any]:
    """Features of every layer, flat, and outputs of stacked networks."""

    def one(variables):
        layers = models.features(model, variables, x)
        flat = {name: h.reshape(len(x), -1) for name, h in layers.items()}
        return flat, model.apply(variables, x)

    return jax.lax.map(one, variables)
