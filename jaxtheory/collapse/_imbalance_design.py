"""Against minority collapse: what to do with class counts before training."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from jaxtheory.batching import check_number
from jaxtheory.collapse._moments import check_floating, check_label_vector
from jaxtheory.collapse.theory._losses import check_class_counts
from jaxtheory.collapse.theory._seli import ClassCounts


def adjust_logits(
    logits: Float[Array, "n k"],
    class_counts: ClassCounts,
    *,
    temperature: float = 1.0,
) -> Float[Array, "n k"]:
    """Add ``temperature * log(n_k / N)`` to logits, in the training loss only.

    With temperature 1 cross-entropy of the adjusted logits is consistent for the
    *balanced* error: what the network itself puts out estimates ``log p(x | y)`` up to
    a constant, so that rare classes need no threshold afterwards.

    Args:
        logits: Outputs.
        class_counts: Examples of each class, positive.
        temperature: Strength; 0 changes nothing.

    Returns:
        The adjusted logits.

    Raises:
        ValueError: `class_counts` has another length or is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> adjusted = adjust_logits(jnp.zeros((1, 2)), [3, 1])
        >>> [f"{value:.3f}" for value in adjusted[0]]
        ['-0.288', '-1.386']

    References:
        Menon et al. 2021, arXiv:2007.07314, eq. 10.
    """
    counts = check_class_counts(class_counts)
    check_floating(logits, "logits")
    if jnp.ndim(logits) != 2 or logits.shape[1] != len(counts):
        raise ValueError(
            f"`logits` must have shape [n, {len(counts)}], a column for each entry of "
            f"`class_counts`, but has shape {jnp.shape(logits)}."
        )
    check_number("temperature", temperature, np.isfinite, "finite")
    prior = jnp.asarray(np.log(counts / counts.sum()), logits.dtype)
    return logits + temperature * prior[None, :]


def class_weights(
    class_counts: ClassCounts,
    *,
    rule: Literal["inverse", "square_root"] = "inverse",
) -> Float[Array, " k"]:
    """Weights of each example's loss by class, with mean 1 over examples.

    Args:
        class_counts: Examples of each class, positive.
        rule: "inverse": ``w_k`` proportional to ``1 / n_k``, every class weighs the
            same. "square_root": proportional to ``1 / sqrt(n_k)``, by which all are
            equally far from the threshold of `escape_weights`.

    Returns:
        The weights; take ``weights[labels]`` of them. Shape ``[k]``.

    Raises:
        ValueError: `class_counts` is not positive, or `rule` another word.

    Example:
        >>> [f"{weight:.3f}" for weight in class_weights([30, 10])]
        ['0.667', '2.000']
    """
    counts = check_class_counts(class_counts)
    if rule not in ("inverse", "square_root"):
        raise ValueError(
            f'`rule` must be "inverse" or "square_root", but was {rule!r}.'
        )
    weights = 1 / (counts if rule == "inverse" else np.sqrt(counts))
    return jnp.asarray(weights * counts.sum() / (weights * counts).sum(), float)


def sampling_probabilities(
    labels: Integer[Array, " n"], weights: Float[Array, " k"]
) -> Float[Array, " n"]:
    """Probabilities of drawing each example that oversample as `weights` weigh.

    Drawing with them has, in expectation, the weighted loss (over its mean weight).
    They are what ``jax.random.choice(key, n, (batch_size,), p=...)`` takes.

    Args:
        labels: Class index of each example.
        weights: Weight of each class, such as `class_weights`.

    Returns:
        Probabilities that sum to 1; NaN if a traced label has no weight.

    Raises:
        ValueError: Shapes or dtypes do not fit, a concrete label has no weight, or
            concrete weights are negative, not finite or all zero.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([0, 0, 0, 1])
        >>> drawn = sampling_probabilities(labels, class_weights([3, 1]))
        >>> [f"{probability:.3f}" for probability in drawn]
        ['0.167', '0.167', '0.167', '0.500']
    """
    check_label_vector(labels)
    check_class_weights(weights)
    num_classes = weights.shape[0]
    if not isinstance(labels, Tracer):
        with jax.ensure_compile_time_eval():
            lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= num_classes:
            raise ValueError(
                f"`labels` must lie in [0, {num_classes}) for {num_classes} `weights`, "
                f"but range from {lowest} to {highest}. Pass one weight for each class."
            )
    labels, weights = jnp.asarray(labels), jnp.asarray(weights)
    known = (labels >= 0) & (labels < num_classes)
    chosen = jnp.where(known, weights[jnp.where(known, labels, 0)], jnp.nan)
    return chosen / jnp.sum(chosen)


def check_class_weights(weights: Any) -> None:
    """Raise unless `weights` is a vector that examples can be drawn by.

    Args:
        weights: What the user passed.

    Raises:
        ValueError: It is no floating-point vector; or (concrete weights only) one is
            negative or not finite, or all are zero.
    """
    check_floating(weights, "weights")
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(
            "`weights` must be a vector, one entry for each class, but has shape "
            f"{weights.shape}."
        )
    if isinstance(weights, Tracer):
        return
    with jax.ensure_compile_time_eval():
        lowest, total = float(weights.min()), float(weights.sum())
    if not (lowest >= 0 and 0 < total < np.inf):
        raise ValueError(
            "`weights` must be finite, not negative and not all zero, but their least "
            f"is {lowest} and their sum {total}. Pass `class_weights(class_counts)`."
        )


def escape_weights(
    class_counts: ClassCounts,
    *,
    weight_decay: float,
    feature_decay: float,
) -> Float[Array, " k"]:
    r"""The weight above which the loss of a class keeps it from minority collapse.

    Unconstrained features with weighted cross-entropy,

        (1/N) sum_i w_{y_i} CE(W h_i, y_i) + weight_decay/2 ||W||^2
            + feature_decay/2 sum_i ||h_i||^2 ,

    ``N`` the number of examples, unweighted. Classes of one size ``n`` and weight ``w``
    have the same classifier row and outputs (and no example of them can be told apart)
    exactly where ``w <= N sqrt(weight_decay * feature_decay / n)``. For ``w = 1`` that
    is ``n <= N^2 weight_decay feature_decay``. It is derived by scaling the features of
    a class by ``sqrt(n)``, which turns both penalties into ``sqrt(weight_decay
    feature_decay) ||Z||_*``: at the collapsed point the gradient along differences of
    such classes has norm ``w sqrt(n) / N``, and the class differences stay 0 while this
    is not above the penalty's slope.

    Repeating each example ``w`` times *as the same feature* is the same as weighting.
    Exact for this model; a network has no decay of its features, and there it is a
    trend. Weights in proportion to ``1/sqrt(n)`` keep all classes equally far from it.

    Args:
        class_counts: Examples of each class, positive.
        weight_decay: Penalty of the classifier, positive.
        feature_decay: Penalty of the features, positive.

    Returns:
        The threshold of each class. Shape ``[k]``.

    Raises:
        ValueError: `class_counts` is not positive, or a decay is not.

    Example:
        >>> thresholds = escape_weights([90, 10], weight_decay=0.1, feature_decay=0.1)
        >>> [f"{threshold:.3f}" for threshold in thresholds]
        ['1.054', '3.162']

    References:
        Fang et al. 2021, arXiv:2101.12699 (minority collapse, oversampling); the
        threshold without weights is that of `theory.minority_collapse_threshold`.
    """
    counts = check_class_counts(class_counts)
    for name, decay in [
        ("weight_decay", weight_decay),
        ("feature_decay", feature_decay),
    ]:
        check_number(name, decay, lambda v: 0 < v < float("inf"), "positive")
    product = float(weight_decay) * float(feature_decay)
    return jnp.asarray(counts.sum() * np.sqrt(product / counts), float)
