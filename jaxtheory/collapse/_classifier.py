"""What the classifier adds: the split of the squared error, and what lies outside."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_examples, check_number
from jaxtheory.collapse._frames import unit
from jaxtheory.collapse._moments import (
    check_feature_matrix,
    check_labels,
    class_moments,
    power_of_two_below,
)
from jaxtheory.collapse._statistics import check_classifier

_matmul = partial(jnp.matmul, precision="highest")


class SquaredErrorSplit(NamedTuple):
    """The regularised squared error of a linear classifier in three parts.

    Attributes:
        nc1: What within-class scatter costs the best classifier of these features.
        nc23: What its class means cost it, by not being an aligned frame.
        perpendicular: What this classifier loses to the best one; 0 on the central
            path.
        total: The loss itself, computed from the outputs. The three add up to it.
        weight: The best classifier's weight, ``W_LS``. Shape ``[k, d]``.
        bias: Its bias; None where the classifier has none. Shape ``[k]``.
        num_left_out: Examples left out, for a feature that is not finite or a (traced)
            label out of range.
    """

    nc1: Float[Array, ""]
    nc23: Float[Array, ""]
    perpendicular: Float[Array, ""]
    total: Float[Array, ""]
    weight: Float[Array, "k d"]
    bias: Float[Array, " k"] | None
    num_left_out: Int[Array, ""]


def squared_error_split(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None],
    weight_decay: float,
) -> SquaredErrorSplit:
    """Split the squared error into NC1, NC2 with NC3, and the distance to the best.

    With one-hot targets ``e_y`` and ``N`` examples, the loss

        L(W, b) = (1/2N) sum_i ||W h_i + b - e_{y_i}||^2
                  + (lambda/2) (||W||^2 + ||b||^2)

    is quadratic with minimum ``(W_LS, b_LS)`` for given features, so that exactly

        L = L_NC1 + L_NC2/3 + L_perp
        L_NC1   = tr(W_LS (Sigma_W + lambda I) W_LS^T) / 2 + lambda ||b_LS||^2 / 2
        L_NC2/3 = (1/2) sum_k (n_k/N) ||W_LS mu_k + b_LS - e_k||^2
        L_perp  = tr((W~ - W~_LS) ((1/N) sum_i h~_i h~_i^T + lambda I) (...)^T) / 2

    with ``h~ = (h, 1)`` and ``W~ = (W, b)``. Published for balanced classes, where
    ``n_k/N`` is ``1/K``; so it holds for any. The published bias is decayed as the
    weight is. Optax's decay of ``0.5 * mean((...)**2)`` over outputs is another scale:
    this loss *sums* over outputs.

    Args:
        features: Last-layer features, one row for each example.
        labels: Class index of each example.
        classifier: ``(weight, bias)``, rows of the weight are classes; the bias may be
            None, then the split is that of the loss without one.
        weight_decay: ``lambda > 0`` of the loss above.

    Returns:
        The parts, in the units of the loss (NaN where no example could be used), and
        the best classifier.

    Raises:
        ValueError: Shapes or dtypes do not fit, `classifier` is None, `weight_decay` is
            not positive, or concrete labels are out of range or all the same.

    Memory:
        A singular value decomposition of the features: three copies of them, and time
        ``O(n d min(n, d))``.

    Example:
        >>> import jax.numpy as jnp
        >>> features, labels = jnp.array([[-1.1], [-0.9], [1.0]]), jnp.array([0, 0, 1])
        >>> classifier = (jnp.array([[-0.5], [0.5]]), jnp.array([0.5, 0.5]))
        >>> found = squared_error_split(
        ...     features, labels, classifier=classifier, weight_decay=0.01
        ... )
        >>> parts = found.nc1 + found.nc23 + found.perpendicular
        >>> print(f"{found.total:.5f} {parts:.5f}")
        0.00667 0.00667

    References:
        Han, Papyan & Donoho 2022, arXiv:2106.02073 (central path).
    """
    _check_split(features, labels, classifier, weight_decay)
    return _split(features, labels, classifier, weight_decay)


def _check_split(features, labels, classifier, weight_decay):
    """Raise where something does not fit."""
    check_feature_matrix(features)
    check_examples(features=features, labels=labels)
    if classifier is None:
        raise ValueError(
            "`classifier` must be a pair `(weight, bias)`, but was None: there is no "
            "error to split without one."
        )
    num_classes = check_classifier(classifier, jnp.shape(features)[1], None)
    check_labels(labels, num_classes)
    check_number("weight_decay", weight_decay, lambda v: 0 < v < jnp.inf, "positive")


@jax.jit
def _split(features, labels, classifier, weight_decay):
    features = jnp.asarray(features)
    weight, bias = jnp.asarray(classifier[0]), classifier[1]
    moments = class_moments(features, jnp.asarray(labels), weight.shape[0])
    dtype, used = moments.means.dtype, moments.used
    decay = jnp.asarray(weight_decay, dtype)
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    rows = jnp.where(used[:, None], features, 0).astype(dtype)
    joined = weight.astype(dtype)
    if bias is not None:
        rows = jnp.concatenate([rows, used[:, None].astype(dtype)], axis=1)
        joined = jnp.concatenate([joined, jnp.asarray(bias, dtype)[:, None]], axis=1)
    classes = jnp.arange(weight.shape[0])
    member = used[:, None] & (moments.labels[:, None] == classes[None, :])
    targets = member.astype(dtype)
    best = _ridge(rows, targets, decay * total)

    square = lambda a: jnp.sum(jnp.square(a))
    fitted = _matmul(rows, best.T)
    shares = moments.counts.astype(dtype)
    means = _matmul(targets.T, fitted) / jnp.maximum(shares, 1)[:, None]
    within = jnp.where(used[:, None], fitted - means[moments.labels], 0)
    identity = jnp.eye(weight.shape[0], dtype=dtype)
    between = _matmul(shares, jnp.sum(jnp.square(means - identity), axis=1))
    away = square(_matmul(rows, (joined - best).T)) / total
    loss = square(_matmul(rows, joined.T) - targets) / total
    dim = features.shape[1]
    # Of no examples at all only the decay would be left, which is no loss.
    measured = lambda value: jnp.where(jnp.any(used), value, jnp.nan)
    return SquaredErrorSplit(
        nc1=measured(square(within) / total + decay * square(best)) / 2,
        nc23=measured(between / total) / 2,
        perpendicular=measured(away + decay * square(joined - best)) / 2,
        total=measured(loss + decay * square(joined)) / 2,
        weight=best[:, :dim],
        bias=None if bias is None else best[:, dim],
        num_left_out=jnp.sum(~used),
    )


def _ridge(rows, targets, decay):
    """``targets^T rows (rows^T rows + decay I)^-1``, without squaring the condition."""
    left, values, right = jnp.linalg.svd(rows, full_matrices=False)
    # s / (s^2 + decay) for large and small singular values.
    largest = jnp.maximum(values, jnp.sqrt(decay))
    ratio = values / largest
    factors = ratio / (ratio * values + decay / largest)
    return _matmul(_matmul(targets.T, left) * factors[None, :], right)


class OutlierOrthogonality(NamedTuple):
    """NC5: how far features from elsewhere are from orthogonal to the classes.

    Attributes:
        value: ``(1/K) sum_k |cos(mu_k, mu_out)|`` over the classes that occur; 0 is
            orthogonal.
        cosines: The cosines with their sign; NaN for a class without examples. Shape
            ``[k]``.
        num_left_out: Examples of either set left out as not finite, or (traced labels)
            out of range.
    """

    value: Float[Array, ""]
    cosines: Float[Array, " k"]
    num_left_out: Int[Array, ""]


def outlier_orthogonality(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    outliers: Float[Array, "m d"],
    *,
    origin: str = "zero",
    num_classes: int | None = None,
) -> OutlierOrthogonality:
    """Measure NC5, the cosine of class means with the mean of other data's features.

    Args:
        features: Features of the classes, one row for each example.
        labels: Class index of each example.
        outliers: Features of data that belong to none of the classes.
        origin: Where vectors start: ``"zero"``, as published, or ``"global_mean"``, the
            mean of class means, from which ``mu_k`` are the vectors of NC2. With the
            second a network whose outliers fall on the global mean has no direction to
            be orthogonal to.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        Mean absolute cosine and the cosines. A mean of length 0 has cosine 0; NaN
        where no example, or no outlier, is finite.

    Raises:
        ValueError: Shapes or dtypes do not fit, `origin` is another word, or labels are
            out of range or all the same.

    Example:
        >>> import jax.numpy as jnp
        >>> found = outlier_orthogonality(
        ...     jnp.eye(2, 3), jnp.arange(2), jnp.array([[0.0, 3.0, 4.0]])
        ... )
        >>> print(f"{found.value:.3f}")
        0.300

    References:
        Ben Ammar et al. 2024, arXiv:2310.06823 (NECO, NC5).
    """
    check_feature_matrix(features)
    check_feature_matrix(outliers, "outliers")
    check_examples(features=features, labels=labels)
    _check_outliers(jnp.shape(features)[1], outliers, origin)
    num_classes = check_labels(labels, num_classes)
    return _orthogonality(features, labels, outliers, origin, num_classes)


def _check_outliers(dim: int, outliers: Any, origin: Any) -> None:
    """Raise unless outliers have the features' dimension and the origin is a word."""
    if jnp.shape(outliers)[1] != dim:
        raise ValueError(
            f"`outliers` must have the {dim} features of `features`, but has shape "
            f"{jnp.shape(outliers)}."
        )
    if origin not in ("zero", "global_mean"):
        raise ValueError(
            f'`origin` must be "zero" or "global_mean", but was {origin!r}.'
        )


@partial(jax.jit, static_argnums=(3, 4))
def _orthogonality(features, labels, outliers, origin, num_classes):
    moments = class_moments(jnp.asarray(features), jnp.asarray(labels), num_classes)
    dtype, present = moments.means.dtype, moments.counts > 0
    finite = jnp.all(jnp.isfinite(outliers), axis=1)
    rows = jnp.where(finite[:, None], outliers, 0).astype(dtype)
    # The two sets may differ in size by more than a square can hold. A power of two
    # that fits both is exact.
    larger = jnp.maximum(moments.unit, power_of_two_below(jnp.max(jnp.abs(rows))))
    shrink = moments.unit / larger
    start, away = -moments.origin, rows / larger
    if origin == "global_mean":
        away = away - moments.origin[None, :] * shrink
        start = _matmul(present.astype(dtype), moments.means) / jnp.sum(present)
    outside = jnp.sum(jnp.where(finite[:, None], away, 0), axis=0)
    outside = outside / jnp.where(jnp.any(finite), jnp.sum(finite), jnp.nan)
    if origin == "global_mean":
        outside = outside - start * shrink
    directions = unit(moments.means - start[None, :], axis=1)
    cosines = _matmul(directions, unit(outside / _longest(outside)))
    value = jnp.sum(jnp.where(present, jnp.abs(cosines), 0)) / jnp.sum(present)
    left_out = jnp.sum(~moments.used) + jnp.sum(~finite)
    return OutlierOrthogonality(value, jnp.where(present, cosines, jnp.nan), left_out)


def _longest(vector):
    """Its largest entry, by which it is divided before it is squared; 1 for zero."""
    largest = jnp.max(jnp.abs(vector))
    return jnp.where(largest == 0, 1, largest)
