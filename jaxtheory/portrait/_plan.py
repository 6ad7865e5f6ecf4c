"""What a portrait is of: the configuration, and everything that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtheory import data, models
from jaxtheory._types import ApplyFn, KeyArray, LossFn, Objective, TrainState
from jaxtheory.dynamics import init
from jaxtheory.interop import flax as interop_flax

NUM_RECORDS = 50
MOMENTUM = 0.9
ADAM: Mapping[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
WEIGHT_DECAY = 0.1
RADIUS = 0.05
OPTIMIZERS = {
    "sgd": "gradient descent",
    "momentum": "heavy ball",
    "nesterov": "Nesterov's momentum",
    "adam": "Adam",
    "adamw": "AdamW",
    "sam": "SAM",
}
_LEARNING_RATES = {
    "squared-error": {"sgd": 0.1, "sam": 0.1},
    "cross-entropy": {"sgd": 0.5, "sam": 0.5},
}
# The same under both losses.
_OTHERS = {"momentum": 0.05, "nesterov": 0.05, "adam": 0.003, "adamw": 0.003}


@dataclass(frozen=True)
class Config:
    """One training run and where its portrait goes.

    Attributes:
        data: Handwritten digits (8x8 images, 10 classes), a Gaussian mixture (10
            classes in 20 dimensions), or regression on a single-index target.
        model: Fully connected (4 hidden layers of 64) or convolutional (16 and 32
            channels, images only), with tanh.
        loss: Half the squared distance to one-hot labels (or to the target), under
            which the theory of kernels and of the edge of stability is exact, or
            cross-entropy (classes only).
        optimizer: Gradient descent, momentum (0.9; heavy-ball or Nesterov's), Adam,
            AdamW (weight decay 0.1), or SAM over gradient descent (radius 0.05).
        learning_rate: Step size; by default one that trains digits.
        batch_size: Examples per step; by default all of them (full batch).
        num_steps: Optimizer steps, a multiple of 50: there are 50 records.
        seed: Seed of the data split, initial weights and batches.
        out: Folder of the portrait; by default one under `runs/` named after the rest.
    """

    data: Literal["digits", "mixture", "single-index"] = "digits"
    model: Literal["mlp", "cnn"] = "mlp"
    loss: Literal["squared-error", "cross-entropy"] = "squared-error"
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "sam"] = "sgd"
    learning_rate: float | None = None
    batch_size: int | None = None
    num_steps: int = 2000
    seed: int = 0
    out: Path | None = None


class Plan(NamedTuple):
    """Everything that follows from a configuration, ready to train and measure.

    Attributes:
        config: The configuration, its defaults filled in.
        x_train: Training inputs ``[n, ...]``.
        y_train: Labels ``[n]``, or regression targets ``[n, 1]``.
        x_test: Test inputs ``[m, ...]``.
        y_test: Test targets.
        num_classes: Number of classes, None for regression.
        module: The Flax module, an `MLP` or a `CNN`.
        apply_fn: ``apply_fn(params, x) -> outputs[n, k]``.
        loss_fn: Loss per example: cross-entropy or half the squared error.
        objective: What training differentiates.
        optimizer: The optax optimizer.
        state: The state in which training begins.
        edge: What `curvature.stability_threshold` takes to say where the edge of this
            optimizer is; without the gradient's norm, which SAM's moves with.
        key: Random key for training and measurements.
    """

    config: Config
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    num_classes: int | None
    module: models.MLP | models.CNN
    apply_fn: ApplyFn
    loss_fn: LossFn
    objective: Objective
    optimizer: optax.GradientTransformation
    state: TrainState
    edge: Mapping[str, Any]
    key: KeyArray

    def targets(self, y: Array) -> Float[Array, "n k"]:
        """Targets of a regression by kernels: one-hot rows, or the targets."""
        return y if self.num_classes is None else jax.nn.one_hot(y, self.num_classes)

    def error(self, outputs: Array, y: Array) -> Float[Array, ""]:
        """Fraction of misclassified examples, or squared error over the variance.

        An example whose outputs are not finite is misclassified, whatever `argmax`
        would make of it.
        """
        if self.num_classes is None:
            return jnp.mean((outputs - y) ** 2) / jnp.var(y)
        finite = jnp.isfinite(outputs).all(axis=1)
        return jnp.mean((jnp.argmax(outputs, axis=1) != y) | ~finite)


def complete(config: Config) -> Config:
    """Fill in what a configuration leaves open, and refuse what cannot be run.

    Args:
        config: A configuration.

    Returns:
        The same with learning rate and folder given.

    Raises:
        ValueError: An argument is out of its range or does not fit another.
    """
    if config.num_steps < 1 or config.num_steps % NUM_RECORDS:
        below = max(NUM_RECORDS, config.num_steps // NUM_RECORDS * NUM_RECORDS)
        raise ValueError(
            f"`num_steps` must be a positive multiple of {NUM_RECORDS}, the number of "
            f"records, but was {config.num_steps}. Try {below}."
        )
    if config.model == "cnn" and config.data != "digits":
        raise ValueError(
            "`model` must be 'mlp' for data without images, but was 'cnn' with "
            f"`data` {config.data!r}."
        )
    if config.loss == "cross-entropy" and config.data == "single-index":
        raise ValueError(
            "`loss` must be 'squared-error' for regression, but was 'cross-entropy' "
            "with `data` 'single-index'."
        )
    rate = config.learning_rate
    usual = _OTHERS | _LEARNING_RATES[config.loss]
    rate = usual[config.optimizer] if rate is None else rate
    if not 0 < rate < float("inf"):
        raise ValueError(
            f"`learning_rate` must be positive and finite, but was {rate}."
        )
    batch = "full" if config.batch_size is None else f"batch{config.batch_size}"
    name = (
        f"portrait-{config.data}-{config.model}-{config.loss}-{config.optimizer}"
        f"-lr{rate:g}-{batch}-{config.num_steps}steps-seed{config.seed}"
    )
    out = Path("runs") / name if config.out is None else config.out
    settings = config.__dict__ | {"learning_rate": rate, "out": out}
    return Config(**settings)


def make_plan(config: Config) -> Plan:
    """Build data, model, optimizer and initial state.

    Args:
        config: A completed configuration.

    Returns:
        The plan.

    Raises:
        ValueError: `batch_size` is not between 1 and the number of training examples.
    """
    data_key, init_key, key = jax.random.split(jax.random.key(config.seed), 3)
    dataset = _dataset(config, data_key)
    _check_batch(config, len(dataset.x_train))
    num_classes = getattr(dataset, "num_classes", None)
    num_outputs = num_classes or 1
    # Weights of variance 1 / fan-in start flat enough to watch the loss sharpen.
    shared = {"num_outputs": num_outputs, "activation": jnp.tanh, "weight_std": 1.0}
    if config.model == "cnn":
        module = models.CNN((16, 32), **shared)
    else:
        module = models.MLP((64,) * 4, **shared)
    variables = module.init(init_key, dataset.x_train[:1])
    apply_fn, params = interop_flax.evaluate(module, variables)
    if config.loss == "cross-entropy":
        loss_fn = optax.softmax_cross_entropy_with_integer_labels
    else:
        loss_fn = _half_square if num_classes is None else _half_square_one_hot
    optimizer, edge = _optimizer(config)
    return Plan(
        config=config,
        x_train=dataset.x_train,
        y_train=dataset.y_train,
        x_test=dataset.x_test,
        y_test=dataset.y_test,
        num_classes=num_classes,
        module=module,
        apply_fn=apply_fn,
        loss_fn=loss_fn,
        objective=interop_flax.objective(module, loss_fn),
        optimizer=optimizer,
        state=init(optimizer, params),
        edge=edge,
        key=key,
    )


def _dataset(config: Config, key: KeyArray) -> Any:
    if config.data == "digits":
        return data.digits(num_train=1000, image=config.model == "cnn", key=key)
    if config.data == "mixture":
        return data.gaussian_mixture(
            num_classes=10,
            dim=20,
            num_train=1000,
            num_test=10_000,
            separation=4.0,
            key=key,
        )
    return data.single_index(
        dim=20, num_train=1000, num_test=10_000, link="he2", key=key
    )


def _check_batch(config: Config, num_train: int) -> None:
    if config.batch_size is not None and not 1 <= config.batch_size <= num_train:
        raise ValueError(
            f"`batch_size` must be between 1 and the {num_train:,} training examples, "
            f"but was {config.batch_size}. Leave it out for full batches."
        )


def _optimizer(config: Config) -> tuple[Any, dict[str, Any]]:
    """The optimizer, and what `stability_threshold` has to know of it."""
    rate = config.learning_rate
    assert rate is not None  # a completed configuration has one
    plain: dict[str, Any] = {"learning_rate": rate}
    if config.optimizer == "sgd":
        return optax.sgd(rate), plain | {"method": "gradient_descent"}
    if config.optimizer == "sam":
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RADIUS))
        # Opaque: every step climbs and descends.
        sam = optax.contrib.sam(optax.sgd(rate), ascent, opaque_mode=True)
        return sam, plain | {"method": "sam", "radius": RADIUS}
    if config.optimizer in ("adam", "adamw"):
        edge = plain | {"method": "adam", "momentum": ADAM["b1"]}
        if config.optimizer == "adam":
            return optax.adam(rate, **ADAM), edge
        adamw = optax.adamw(rate, **ADAM, weight_decay=WEIGHT_DECAY)
        return adamw, edge | {"weight_decay": WEIGHT_DECAY}
    ahead = config.optimizer == "nesterov"
    edge = {"method": "nesterov" if ahead else "heavy_ball", "momentum": MOMENTUM}
    return optax.sgd(rate, momentum=MOMENTUM, nesterov=ahead), plain | edge


def _half_square(outputs, targets):
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def _half_square_one_hot(outputs, labels):
    return _half_square(outputs, jax.nn.one_hot(labels, outputs.shape[-1]))
