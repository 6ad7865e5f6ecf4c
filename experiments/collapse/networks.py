"""Perceptrons on digits, trained far beyond zero training error, and what is read."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jaxtheory import dynamics, interop, models

CLASSES = 10


def check_records(config: Any, num_steps: int) -> None:
    """Refuse too few seeds, and steps that cannot be divided into the records."""
    if config.num_seeds < 2 or num_steps % config.num_records:
        raise ValueError(
            "`num_seeds` must be at least 2 and `num_records` divide the steps, but "
            f"there were {config.num_seeds}, {config.num_records} and {num_steps}."
        )


@partial(jax.jit, static_argnums=1)
def split_keys(seed: Any, num_seeds: int) -> tuple[Any, list[list[Any]]]:
    """The key of the images, and for each seed those of its start and its training."""
    key, *keys = jax.random.split(jax.random.key(seed), 1 + num_seeds)
    return key, [list(jax.random.split(key)) for key in keys]


def balanced_rows(labels: np.ndarray, name: str, count: int) -> np.ndarray:
    """The first so many examples of every class, class by class.

    Raises:
        ValueError: The rarest class has fewer; `name` is the option to change.
    """
    least = np.bincount(labels).min()
    if least < count:
        raise ValueError(
            f"`{name}` must be at most {least}, the training images of the rarest "
            f"digit, but was {count}."
        )
    return np.concatenate([np.flatnonzero(labels == k)[:count] for k in range(CLASSES)])


class Trainer:
    """What all networks of an experiment share, so that programs are compiled once.

    SGD with momentum .9, weight decay and a rate that falls to 0 as a cosine.

    Attributes:
        model: Perceptron of the widths in the configuration.
        start: ``start(key, x)``, the state before training.
    """

    def __init__(
        self, config: Any, num_steps: int, *, batch_norm: bool, free_bias: bool
    ):
        """With `free_bias`, the biases of the outputs do not decay."""
        self._rate, self._num_steps = config.learning_rate, num_steps
        self._optimizer = optax.chain(
            optax.add_decayed_weights(
                config.weight_decay, mask=_all_but_output_bias if free_bias else None
            ),
            optax.sgd(optax.cosine_decay_schedule(self._rate, num_steps), momentum=0.9),
        )
        self.model: Any = models.MLP(config.widths, CLASSES, batch_norm=batch_norm)
        # One program: the zeros of the momentum would be one for each shape.
        self.start = jax.jit(self._start)

    def _start(self, key, x):
        params, model_state = interop.flax.split(self.model.init(key, x[:1]))
        return dynamics.init(self._optimizer, params, model_state=model_state)

    def train(self, objective: Any, state: Any, data: Any, **options: Any) -> Any:
        """The history of `dynamics.train`, which takes the options.

        Raises:
            ValueError: Training diverges.
        """
        history = dynamics.train(
            objective,
            state,
            self._optimizer,
            data,
            num_steps=self._num_steps,
            progress=False,
            **options,
        )
        if history.diverged_at is not None:
            raise ValueError(
                f"`learning_rate` {self._rate} must be lower: a network diverged at "
                f"step {history.diverged_at}."
            )
        return history


def _all_but_output_bias(params):
    is_free = lambda path: [entry.key for entry in path] == ["output", "bias"]
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_free(path), params)


@partial(jax.jit, static_argnums=0)
def read(model: Any, state: Any, x: Any) -> tuple[Any, tuple[Any, Any]]:
    """Last features of `x`, and the classifier: its weight and its bias."""
    variables = {"params": state.params, **dict(state.model_state)}
    features = list(models.features(model, variables, x).values())[-1]
    return features, models.classifier(model, variables)


def read_exactly(
    model: Any, state: Any, x: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, weight and bias as NumPy arrays in double precision."""
    features, classifier = jax.device_get(read(model, state, x))
    return tuple(np.asarray(values, np.float64) for values in (features, *classifier))  # pyright: ignore[reportReturnType]


def fitting_decay(
    weight_decay: float, weight: np.ndarray, features: np.ndarray
) -> float:
    """Decay of free features with which both penalties are equal.

    As they are at every critical point. Features are taken around their mean, which a
    free bias undoes.
    """
    squares = np.sum((features - features.mean(axis=0)) ** 2)
    return float(weight_decay * np.sum(weight**2) / squares)
