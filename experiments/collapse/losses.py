"""Four losses that lead to a simplex frame, and networks beside their optima."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.collapse.networks import CLASSES, fitting_decay, read_exactly
from jaxtheory.collapse import theory

SMOOTHING, FOCUSING = 0.1, 3.0


class Optimum(NamedTuple):
    """Trained networks beside the optimum of free features; arrays are ``[s]``.

    Features are centred, which the free bias undoes, and decay as much as makes both
    penalties equal, as they are at every critical point.

    Attributes:
        margin: Mean over training images of the own output less the next.
        predicted_margin: Its value at the optimum.
        means: Distance of the class means' normalised Gram matrix from the predicted.
        classifier: The same of the classifier.
        mean_scale: Length of class means over the predicted length.
        classifier_scale: The same of rows of the classifier.
        excess: Objective over that of the optimum, less 1.
        gap: How much lower than that of the optimum any objective could be, proved by
            duality; NaN for the focal loss, which is not convex.
    """

    margin: np.ndarray
    predicted_margin: np.ndarray
    means: np.ndarray
    classifier: np.ndarray
    mean_scale: np.ndarray
    classifier_scale: np.ndarray
    excess: np.ndarray
    gap: np.ndarray


def squared_error(outputs, labels):
    """Half the squared distance from unit vectors."""
    return jnp.sum((outputs - jax.nn.one_hot(labels, CLASSES)) ** 2, axis=1) / 2


def smoothed(outputs, labels):
    """Cross-entropy with smoothed labels."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), SMOOTHING)
    return optax.softmax_cross_entropy(outputs, targets)


def focal(outputs, labels):
    """Cross-entropy times a power of the probability of all other classes."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return (-jnp.expm1(-cross_entropy)) ** FOCUSING * cross_entropy


# The function, and how the theory knows it.
LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cross-entropy": (
        optax.softmax_cross_entropy_with_integer_labels,
        {"loss": "cross_entropy"},
    ),
    "squared error": (squared_error, {"loss": "squared_error"}),
    "label smoothing": (
        smoothed,
        {"loss": "cross_entropy", "label_smoothing": SMOOTHING},
    ),
    "focal": (focal, {"loss": "cross_entropy", "focusing": FOCUSING}),
}


def beside_optimum(config: Any, model: Any, name: str, state: Any, task: Any) -> Any:
    """One trained network beside the optimum of its loss and decays: an `Optimum`."""
    loss_fn, known = LOSSES[name]
    features, weight, bias = read_exactly(model, state, task.x_train)
    labels, mean = np.asarray(task.y_train), features.mean(axis=0)
    features, bias = features - mean, bias + weight @ mean
    predicted = theory.predicted_geometry(
        class_counts=[config.examples_per_class] * CLASSES,
        weight_decay=config.weight_decay,
        feature_decay=fitting_decay(config.weight_decay, weight, features),
        bias_decay=0.0,
        **known,
    )
    distance = theory.geometry_distance(
        predicted, features, labels, classifier=(weight, None)
    )
    outputs = features @ weight.T + bias
    losses = jax.jit(loss_fn)(jnp.asarray(outputs), task.y_train)
    penalty = config.weight_decay * np.sum(weight**2)  # of both factors, as they agree
    own = np.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    np.put_along_axis(outputs, labels[:, None], -np.inf, axis=1)
    found = Optimum(
        margin=own - outputs.max(axis=1),
        predicted_margin=predicted.optimum.margins,
        **{name: np.array(value) for name, value in distance._asdict().items()},
        excess=(np.mean(losses) + penalty) / predicted.optimum.objective - 1,
        gap=np.array(math.nan if predicted.gap is None else predicted.gap),
    )
    return Optimum(*(np.asarray(np.mean(values)) for values in found))
