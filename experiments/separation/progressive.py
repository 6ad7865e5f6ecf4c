"""Deep linear and ReLU networks, trained, with the collapse of every layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import collapse, data, dynamics, models

_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Layers(NamedTuple):
    """One kind of network, layer by layer from the input; the first axis is the seed.

    Attributes:
        loss: Training loss at the end.
        trace_ratio: ``C`` of every layer ``[s, l]``.
        angular_separation: ``1 - max cos`` of class means, not centred ``[s, l]``.
        theory: The factor of a layer, by theory; NaN where there is none.
    """

    loss: np.ndarray
    trace_ratio: np.ndarray
    angular_separation: np.ndarray
    theory: float


def factors(layers: Layers) -> np.ndarray:
    """By how much each layer multiplies ``C`` ``[s, l - 1]``."""
    return layers.trace_ratio[:, 1:] / layers.trace_ratio[:, :-1]


def _identity(h):
    return h


def linear(config: Any, scale: float, noise: float) -> Layers:
    """Linear networks of all seeds, side by side: their axis comes after examples."""
    num, seeds = config.num_classes * config.num_per_class, config.num_seeds
    key_x, key_noise, key_w = jax.random.split(jax.random.key(config.seed), 3)
    draw: Any = jax.nn.initializers.orthogonal()
    draw_all = jax.vmap(lambda key: draw(key, (num, config.dim)))
    x = draw_all(jax.random.split(key_x, seeds))
    shifts = jax.random.normal(key_noise, x.shape)
    shifts /= jnp.linalg.norm(shifts, axis=(1, 2), keepdims=True)
    x = x + noise * shifts  # [s, n, d]
    labels = jnp.arange(num) % config.num_classes
    targets = jax.nn.one_hot(labels, config.num_classes)
    model = models.MLP(
        (config.dim,) * config.depth,
        config.num_classes,
        activation=_identity,
        use_bias=False,
    )
    draw_all = jax.vmap(lambda key: _orthogonal(model, key, scale, x[0]))
    # Not jitted: several batched QR decompositions in one program wait for each other
    # for ever on two CPU cores (jax 0.10.2).
    start = draw_all(jax.random.split(key_w, seeds))

    def outputs(params, x):
        all_seeds = jax.vmap(model.apply, in_axes=(0, 1), out_axes=1)(params, x)
        return config.output_scale * jnp.asarray(all_seeds)

    def loss(outputs, targets):
        return jnp.sum((outputs - targets[:, None]) ** 2, axis=(1, 2))

    optimizer = optax.sgd(config.learning_rate)
    inputs = jnp.swapaxes(x, 0, 1)
    history = dynamics.train(
        dynamics.supervised(outputs, loss),
        dynamics.init(optimizer, start),
        optimizer,
        (inputs, targets),
        num_steps=config.num_steps,
        key=jax.random.key(0),
        progress=False,
    )
    trained = history.state.params
    errors = outputs(trained, inputs) - targets[:, None]
    losses = jnp.sum(errors**2, axis=(0, 2)) / num
    theory = (config.num_per_class**0.5 / config.output_scale) ** (
        2 / (config.depth + 1)
    )
    of_seed = lambda s: jax.tree.map(lambda a: a[s], trained)
    pairs = [(of_seed(s), x[s]) for s in range(seeds)]
    return _measured(model, pairs, labels, losses, scale**2 / theory)


def _orthogonal(model, key, scale, x):
    """Parameters of matrices with orthonormal rows or columns, times `scale`."""
    shapes = jax.eval_shape(model.init, key, x[:1])
    leaves, structure = jax.tree.flatten(shapes)
    draw: Any = jax.nn.initializers.orthogonal(scale)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [draw(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


def relu(config: Any) -> Layers:
    """ReLU networks on digits."""
    key = jax.random.key(config.seed)
    digits = data.digits(num_train=1000, key=jax.random.fold_in(key, 1))
    model = models.MLP((config.relu_width,) * config.depth, digits.num_classes)
    apply_fn: Any = model.apply
    objective = dynamics.supervised(apply_fn, _cross_entropy)
    optimizer, batch_size = optax.adam(1e-3), 50
    x, y, pairs, losses = digits.x_train, digits.y_train, [], []
    for seed in range(min(config.num_seeds, 5)):
        key_init, key_train = jax.random.split(jax.random.fold_in(key, 2 + seed))
        history = dynamics.train(
            objective,
            dynamics.init(optimizer, model.init(key_init, x[:1])),
            optimizer,
            (x, y),
            num_steps=config.relu_epochs * (len(x) // batch_size),
            batch_size=batch_size,
            key=key_train,
            progress=False,
        )
        params = history.state.params
        pairs.append((params, x))
        losses.append(jnp.mean(_cross_entropy(apply_fn(params, x), y)))
    return _measured(model, pairs, y, jnp.stack(losses), np.nan)


@functools.partial(jax.jit, static_argnums=0)
def _features(model, variables, x):
    return models.features(model, variables, x)


def _measured(model, pairs, labels, losses, theory):
    """Measures of every layer, a row for each pair of variables and inputs."""
    found = []
    for variables, x in pairs:
        layers = _features(model, variables, x)
        measured = collapse.layer_statistics(layers, labels)
        found.append((measured.trace_ratio, measured.angular_separation))
    ratios, angles = (np.stack(column) for column in zip(*found, strict=True))
    return Layers(np.asarray(losses), ratios, angles, float(theory))
