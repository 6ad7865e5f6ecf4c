"""The record of an optimum whose examples share their class's features."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# Rows closer than this, relative to the longest, are one: far above what the solver
# leaves (1e-10) and far below what a class that is not collapsed keeps.
_SAME = 1e-6


class Optimum(NamedTuple):
    """An optimum of the unconstrained-features model, one row of features a class.

    Every rotation of the features, together with the layers, is an optimum as well;
    `class_means_gram`, `classifier_gram` and all below them do not depend on it.

    Attributes:
        layers: Weights from the last layer to the first, as `unconstrained_features`
            takes and gives them.
        features: The free features of each class. Shape ``[k, d]``.
        bias: Shape ``[k]``, or None.
        class_means: Inputs of the last layer for each class: `features` if it is the
            only layer. Shape ``[k, d]``.
        class_means_gram: ``M M^T`` of the class means, not centred. Shape ``[k, k]``.
        classifier_gram: ``W W^T`` of the last layer. Shape ``[k, k]``.
        logits: Outputs for the examples of each class (rows). Shape ``[k, k]``.
        margins: Output of the own class minus the largest other one. Shape ``[k]``.
        class_mean_norms: Lengths of the class means. Shape ``[k]``.
        classifier_norms: Lengths of the last layer's rows. Shape ``[k]``.
        objective: Value of the objective, decay included.
        collapsed: Whether the classifier's row is zero or equals that of another class,
            so that nothing tells the class apart. Shape ``[k]``.
    """

    layers: tuple[Float[np.ndarray, "_ _"], ...]
    features: Float[np.ndarray, "k d"]
    bias: Float[np.ndarray, " k"] | None
    class_means: Float[np.ndarray, "k d"]
    class_means_gram: Float[np.ndarray, "k k"]
    classifier_gram: Float[np.ndarray, "k k"]
    logits: Float[np.ndarray, "k k"]
    margins: Float[np.ndarray, " k"]
    class_mean_norms: Float[np.ndarray, " k"]
    classifier_norms: Float[np.ndarray, " k"]
    objective: float
    collapsed: Bool[np.ndarray, " k"]


def make_optimum(
    layers: tuple[Float[np.ndarray, "_ _"], ...],
    features: Float[np.ndarray, "k d"],
    bias: Float[np.ndarray, " k"] | None,
    objective: float,
) -> Optimum:
    """An `Optimum` of its factors.

    Args:
        layers: Weights from the last layer to the first.
        features: The free features of each class.
        bias: The bias, if there is one.
        objective: Value of the objective.

    Returns:
        The record, with all that follows from the factors.
    """
    means = features
    for layer in reversed(layers[1:]):
        means = means @ layer.T
    classifier = layers[0]
    logits = means @ classifier.T
    if bias is not None:
        logits = logits + bias[None, :]
    others = np.where(np.eye(len(logits), dtype=bool), -np.inf, logits)
    return Optimum(
        layers,
        features,
        bias,
        means,
        means @ means.T,
        classifier @ classifier.T,
        logits,
        np.diag(logits) - others.max(axis=1),
        np.linalg.norm(means, axis=1),
        np.linalg.norm(classifier, axis=1),
        float(objective),
        _collapsed(classifier),
    )


def _collapsed(classifier):
    """Which rows are zero or repeat another one."""
    norms = np.linalg.norm(classifier, axis=1)
    rounding = _SAME * norms.max()
    apart = np.array([np.linalg.norm(classifier - row, axis=1) for row in classifier])
    np.fill_diagonal(apart, np.inf)
    return (norms <= rounding) | (apart.min(axis=1) <= rounding)
