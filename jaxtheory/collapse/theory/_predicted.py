"""The geometry that theory predicts for a loss, class counts and decays."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxtheory._types import KeyArray, LossFn
from jaxtheory.batching import check_count, check_examples, check_key, check_number
from jaxtheory.collapse._record import CollapseStatistics
from jaxtheory.collapse._statistics import check_classifier, statistics
from jaxtheory.collapse.theory._closed_forms import (
    balanced_optimum,
    squared_error_optimum,
)
from jaxtheory.collapse.theory._gap import optimality_gap
from jaxtheory.collapse.theory._losses import (
    Counts,
    CrossEntropy,
    LossName,
    Number,
    SquaredError,
    check_class_counts,
    check_concrete,
    check_decay,
    resolve_loss,
)
from jaxtheory.collapse.theory._optimum import Optimum, make_optimum
from jaxtheory.collapse.theory._unconstrained import unconstrained_features


class PredictedGeometry(NamedTuple):
    """The geometry of an optimum, to be laid beside a measured one.

    Class means are those that enter the last layer, minus their unweighted mean, as
    `collapse.statistics` has them by default. A row of length zero counts as cosine 0,
    and a matrix of zeros is not divided by its norm.

    Attributes:
        mean_gram: Gram matrix of the centred class means over its Frobenius norm.
            Shape ``[k, k]``.
        classifier_gram: ``W W^T`` over its Frobenius norm. Shape ``[k, k]``.
        mean_cosines: Cosines of the centred class means. Shape ``[k, k]``.
        classifier_cosines: Cosines of the classifier's rows. Shape ``[k, k]``.
        mean_norms: Lengths of the centred class means. Shape ``[k]``.
        classifier_norms: Lengths of the classifier's rows. Shape ``[k]``.
        statistics: What `collapse.statistics` measures at this optimum in float64, so
            `nc1` is 0 and most others need not be. NaN where all class means coincide.
        optimum: The optimum itself, with lengths, margins and collapsed classes.
        method: ``"closed_form"`` or ``"solver"``.
        converged: Whether the solver reached its tolerance; True for a closed form.
        gap: How much lower the objective could be at most (`optimality_gap`): about
            1e-15 proves a global optimum. None where there is no such proof, for more
            than one layer or a loss that is not convex or not known by name.
    """

    mean_gram: Float[np.ndarray, "k k"]
    classifier_gram: Float[np.ndarray, "k k"]
    mean_cosines: Float[np.ndarray, "k k"]
    classifier_cosines: Float[np.ndarray, "k k"]
    mean_norms: Float[np.ndarray, " k"]
    classifier_norms: Float[np.ndarray, " k"]
    statistics: CollapseStatistics
    optimum: Optimum
    method: Literal["closed_form", "solver"]
    converged: bool
    gap: float | None


class GeometryDistance(NamedTuple):
    """How far a measured geometry is from a predicted one.

    Attributes:
        means: Frobenius distance of the Gram matrices of the centred class means, each
            over its own norm; between 0 and 2.
        classifier: The same of ``W W^T``. None without a classifier, as the next.
        mean_scale: Root mean square length of the centred class means over the
            predicted one; 1 where also the lengths are as predicted.
        classifier_scale: The same of the classifier's rows.
    """

    means: float
    classifier: float | None
    mean_scale: float
    classifier_scale: float | None


class _Setting(NamedTuple):
    """Checked arguments of `predicted_geometry`."""

    loss_fn: LossFn
    counts: Float[np.ndarray, " k"]
    weight_decay: float
    feature_decay: float
    bias_decay: float | None
    num_layers: int
    num_features: int


def predicted_geometry(
    loss: LossName | LossFn,
    class_counts: Counts,
    weight_decay: Number,
    *,
    feature_decay: Number,
    bias_decay: Number | None = None,
    num_layers: int = 1,
    num_features: int | None = None,
    label_smoothing: Number = 0.0,
    focusing: Number = 0.0,
    key: KeyArray | None = None,
) -> PredictedGeometry:
    r"""Predict angles and lengths of class means and classifier at the optimum.

    The optimum of the unconstrained-features model (the objective that
    `unconstrained_features` writes out), by closed form where there is one:

    - squared error without bias or with a free one, any imbalance, any number of
      layers (`squared_error_optimum`);
    - cross-entropy, label smoothing or focal loss, balanced classes, one layer
      (`balanced_optimum`);

    as long as the features are wide enough for it. Everything else is solved. With one
    layer and a convex loss that is the optimum, and `gap` proves it; with more layers
    it is a local one that depends on the key, and may be zero.

    The decay ``lh`` of free features has no counterpart in most networks. Measured at a
    network's last layer, ``lw ||W||^2 / sum_i ||h_i||^2`` is the ``lh`` that fits,
    because at every critical point the two decay terms are equal. Take the features
    around their mean where the bias is free: it takes up any common shift, and at the
    optimum there is none.

    Args:
        loss: ``"cross_entropy"``, ``"squared_error"`` (``||z - y||^2 / 2``), or a JAX
            function ``loss_fn(outputs[n, k], labels[n]) -> losses[n]``, a mixture of
            losses for example.
        class_counts: Examples of each class.
        weight_decay: ``lw``: ``lw/2 ||W||^2`` is added to the mean loss. SGD with
            ``weight_decay=lw`` does that.
        feature_decay: ``lh``, for each example: ``lh/2 sum_i ||h_i||^2``, not a mean.
        bias_decay: ``lb``, 0 for a bias without decay; None for no bias.
        num_layers: Number of linear layers above the free features.
        num_features: Width of the features; None takes the number of classes.
        label_smoothing: Weight of the uniform distribution (cross-entropy).
        focusing: Exponent of the focal factor (cross-entropy).
        key: Random start of the solver; needed only where it is used.

    Returns:
        Normalised Gram matrices, cosines, lengths and the optimum they come from.

    Raises:
        ValueError: A number is out of range, or `key` is needed and missing.

    Example:
        >>> found = predicted_geometry(
        ...     "squared_error", [200, 100, 50, 50], 5e-4, feature_decay=5e-4
        ... )
        >>> found.method, [round(float(norm), 4) for norm in found.classifier_norms]
        ('closed_form', [3.7339, 3.1305, 2.6213, 2.6213])

    References:
        As for `balanced_optimum`, `squared_error_optimum` and `unconstrained_features`.
    """
    setting = _check_setting(
        resolve_loss(loss, label_smoothing, focusing),
        class_counts,
        weight_decay,
        feature_decay,
        bias_decay,
        num_layers,
        num_features,
    )
    if key is not None:
        check_key(key)
    optimum, method, converged = _closed_form(setting), "closed_form", True
    if optimum is None:
        if key is None:
            raise ValueError(
                "`key` must be given for this loss, these counts, layers and bias: no "
                "closed form is known, and the solver needs a random start."
            )
        (optimum, converged), method = _solve(setting, key), "solver"
    means = optimum.class_means - optimum.class_means.mean(axis=0)
    classifier = optimum.layers[0]
    return PredictedGeometry(
        _normalised(means @ means.T),
        _normalised(optimum.classifier_gram),
        _cosines(means),
        _cosines(classifier),
        np.linalg.norm(means, axis=1),
        optimum.classifier_norms,
        _statistics(optimum),
        optimum,
        method,
        converged,
        _gap(setting, optimum),
    )


def geometry_distance(
    predicted: PredictedGeometry,
    features: Float[Array | np.ndarray, "n d"],
    labels: Integer[Array | np.ndarray, " n"],
    *,
    classifier: tuple[Float[Array | np.ndarray, "k d"], Any] | None = None,
) -> GeometryDistance:
    """Measure how far features and classifier are from a predicted geometry.

    Args:
        predicted: The prediction.
        features: Last-layer features, one row for each example.
        labels: Class index of each example; every class must occur.
        classifier: ``(weight, bias)`` of the last layer, as `collapse.statistics` takes
            it; the bias has no part in this.

    Returns:
        Distances of the normalised Gram matrices, and ratios of lengths. In float64 on
        the host.

    Raises:
        ValueError: Shapes do not fit, or a class has no examples.

    Example:
        >>> import numpy as np
        >>> found = predicted_geometry(
        ...     "cross_entropy", [5] * 3, 0.01, feature_decay=0.01
        ... )
        >>> frame = np.eye(3) - 1 / 3
        >>> distance = geometry_distance(
        ...     found, 2 * frame, np.arange(3), classifier=(frame, None)
        ... )
        >>> round(distance.means, 6), round(distance.classifier, 6)
        (0.0, 0.0)
    """
    check_concrete(features=features, labels=labels, classifier=classifier)
    check_examples(features=features, labels=labels)
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    k = len(predicted.mean_gram)
    if features.ndim != 2:
        raise ValueError(
            f"`features` must be a matrix [n, d], but has shape {features.shape}."
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or set(labels) != {*range(k)}:
        raise ValueError(
            f"`labels` must be a vector of integers that holds every class of 0 to "
            f"{k - 1}, as the prediction has them, but has shape {labels.shape}, dtype "
            f"{labels.dtype} and {len(set(labels.ravel().tolist()))} different entries."
        )
    means = np.stack([features[labels == c].mean(axis=0) for c in range(k)])
    means = means - means.mean(axis=0)
    apart, scale = _apart(predicted.mean_gram, predicted.mean_norms, means)
    if classifier is None:
        return GeometryDistance(apart, None, scale, None)
    if check_classifier(classifier, features.shape[1], None) != k:
        raise ValueError(
            f"`classifier[0]` (the weight) must have {k} rows, one for each class of "
            f"the prediction, but has shape {np.shape(classifier[0])}."
        )
    rows = np.asarray(classifier[0], np.float64)
    row_apart, row_scale = _apart(
        predicted.classifier_gram, predicted.classifier_norms, rows
    )
    return GeometryDistance(apart, row_apart, scale, row_scale)


def _check_setting(loss_fn, counts, weight_decay, feature_decay, bias_decay, m, d):
    """The arguments of `predicted_geometry`, checked."""
    counts = check_class_counts(counts)
    check_concrete(bias_decay=bias_decay)
    if bias_decay is not None:
        must = "None or a finite number of at least 0"
        check_number("bias_decay", bias_decay, lambda v: 0 <= v < np.inf, must)
    return _Setting(
        loss_fn,
        counts,
        check_decay(weight_decay=weight_decay),
        check_decay(feature_decay=feature_decay),
        None if bias_decay is None else float(bias_decay),
        check_count(num_layers=m),
        check_count(num_features=len(counts) if d is None else d),
    )


def _closed_form(setting):
    """The optimum by closed form, or None where none is known."""
    decays = {
        "weight_decay": setting.weight_decay,
        "feature_decay": setting.feature_decay,
    }
    optimum, loss_fn = None, setting.loss_fn
    if isinstance(loss_fn, SquaredError) and setting.bias_decay in (None, 0.0):
        optimum = squared_error_optimum(
            setting.counts,
            **decays,
            num_layers=setting.num_layers,
            bias="none" if setting.bias_decay is None else "free",
        )
    balanced = np.ptp(setting.counts) == 0
    if isinstance(loss_fn, CrossEntropy) and balanced and setting.num_layers == 1:
        optimum = balanced_optimum(
            loss_fn, len(setting.counts), setting.counts[0], **decays
        )
        if setting.bias_decay is not None:
            optimum = optimum._replace(bias=np.zeros(len(setting.counts)))
    if optimum is None:
        return None
    # Nothing can stop features that are narrower than what they have to span.
    gram = optimum.classifier_gram
    largest = np.linalg.norm(gram, 2)
    needed = np.linalg.matrix_rank(gram, tol=1e-12 * largest, hermitian=True)
    return optimum if needed <= setting.num_features else None


def _solve(setting, key):
    """The optimum by the solver, and whether it converged."""
    found = unconstrained_features(
        setting.loss_fn,
        np.arange(len(setting.counts)),
        counts=setting.counts,
        weight_decay=setting.weight_decay,
        feature_decay=setting.feature_decay,
        bias_decay=setting.bias_decay,
        num_features=setting.num_features,
        num_layers=setting.num_layers,
        key=key,
    )
    return make_optimum(*found[:3], found.objective), found.converged


def _gap(setting, optimum):
    """The duality gap of one layer and a convex loss that is known by name."""
    loss_fn = setting.loss_fn
    known = isinstance(loss_fn, SquaredError) or (
        isinstance(loss_fn, CrossEntropy) and not loss_fn.focusing
    )
    if not known or setting.num_layers > 1:
        return None
    smoothing = loss_fn.label_smoothing if isinstance(loss_fn, CrossEntropy) else 0.0
    return optimality_gap(
        "squared_error" if isinstance(loss_fn, SquaredError) else "cross_entropy",
        np.arange(len(setting.counts)),
        counts=setting.counts,
        weight_decay=setting.weight_decay,
        feature_decay=setting.feature_decay,
        bias_decay=setting.bias_decay,
        classifier=(optimum.layers[0], optimum.bias),
        features=optimum.class_means,
        label_smoothing=smoothing,
    ).gap


def _statistics(optimum):
    """`collapse.statistics` of the optimum in float64, fetched to the host."""
    with jax.enable_x64(True):
        bias = None if optimum.bias is None else jnp.asarray(optimum.bias)
        measured = statistics(
            jnp.asarray(optimum.class_means),
            jnp.arange(len(optimum.class_means)),
            classifier=(jnp.asarray(optimum.layers[0]), bias),
        )
        return jax.device_get(measured)


def _normalised(gram):
    norm = np.linalg.norm(gram)
    return gram / norm if norm > 0 else gram


def _cosines(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # Far below what a class keeps that is not zero, and above rounding.
    zero = norms <= 1e-12 * norms.max()
    unit = np.where(zero, 0.0, rows / np.where(zero, 1.0, norms))
    return unit @ unit.T


def _apart(gram, norms, rows):
    """Distance of normalised Gram matrices, and ratio of root mean square lengths."""
    apart = float(np.linalg.norm(_normalised(rows @ rows.T) - gram))
    predicted = np.sqrt(np.sum(norms**2))
    measured = np.linalg.norm(rows)
    return apart, float(measured / predicted) if predicted > 0 else np.inf
