"""Optima of the unconstrained-features model that can be written down.

Both follow from one fact: over all factors with ``W H = Z``,

    min  lw/2 ||W||_F^2 + lh/2 ||H||_F^2 = sqrt(lw lh) ||Z||_*   (nuclear norm),

so that the objective is a function of the outputs alone; with more layers the nuclear
norm becomes a sum of powers of the singular values.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from jaxtheory._types import LossFn
from jaxtheory.batching import check_count
from jaxtheory.collapse.theory._losses import (
    Counts,
    CrossEntropy,
    LossName,
    Number,
    SquaredError,
    check_class_counts,
    check_decay,
    resolve_loss,
)
from jaxtheory.collapse.theory._optimum import Optimum, make_optimum

_GRID = 4096  # points among which a loss that is not convex is searched


def balanced_optimum(
    loss: LossName | LossFn,
    num_classes: int,
    examples_per_class: Number,
    *,
    weight_decay: Number,
    feature_decay: Number,
    label_smoothing: Number = 0.0,
    focusing: Number = 0.0,
) -> Optimum:
    r"""Optimum of one layer and free features for balanced classes: a simplex frame.

    The objective is ``(1/N) sum_i loss(W h_i, y_i) + lw/2 ||W||^2 + lh/2 sum_i
    ||h_i||^2``. For a loss that treats classes alike and does not change when all
    outputs shift, the outputs are ``a (e_y - 1/K)`` with the margin ``a >= 0`` that
    minimises

        loss(a) + (K - 1) eps a ,    eps = sqrt(n lw lh) ,

    for ``n`` examples per class, so ``-loss'(a) = (K - 1) eps``, and ``a = 0`` where
    ``eps`` is too large for that. Further ``W W^T = a sqrt(n lh / lw) (I - J/K)`` and
    ``h_k = sqrt(lw / (n lh)) w_k``. For cross-entropy ``a = log(1/eps - K + 1)``, and
    the origin is optimal if and only if ``K eps >= 1``.

    This is the optimum for a convex loss. For one that is not (focal), it is the best
    point among simplex frames: the margin is searched on a grid and refined. A bias,
    free or decayed, stays at 0 and changes nothing.

    Args:
        loss: ``"cross_entropy"``, or a JAX function ``loss_fn(outputs[n, k],
            labels[n]) -> losses[n]`` bounded below. For ``"squared_error"``, which
            shifts change, use `squared_error_optimum`.
        num_classes: Number of classes ``K``; also the width of the features given back.
        examples_per_class: ``n``.
        weight_decay: ``lw``.
        feature_decay: ``lh``, for each example's features.
        label_smoothing: Weight of the uniform distribution (cross-entropy).
        focusing: Exponent of the focal factor (cross-entropy).

    Returns:
        The optimum.

    Raises:
        ValueError: A number is out of range, or the loss is not as described.

    Example:
        >>> best = balanced_optimum(
        ...     "cross_entropy", 4, 10, weight_decay=5e-3, feature_decay=5e-3
        ... )
        >>> round(float(best.margins[0]), 7), round(best.objective, 7)
        (4.0984288, 0.2430016)

    References:
        Zhu et al. 2021, arXiv:2105.02375, theorem 3.1 (the frame); Zhou et al. 2022,
        arXiv:2210.02192 (label smoothing and focal loss).
    """
    loss_fn = resolve_loss(loss, label_smoothing, focusing)
    k = check_count(num_classes=num_classes, at_least=2)
    n = check_decay(examples_per_class=examples_per_class)
    lw = check_decay(weight_decay=weight_decay)
    lh = check_decay(feature_decay=feature_decay)
    if isinstance(loss_fn, SquaredError):
        raise ValueError(
            "`loss` must not change when all outputs shift, but squared error does. "
            "Use `squared_error_optimum`."
        )
    pull = (k - 1) * (n * lw * lh) ** 0.5
    if isinstance(loss_fn, CrossEntropy) and not loss_fn.focusing:
        margin, value = _cross_entropy_margin(loss_fn.label_smoothing, k, pull)
    else:
        margin, value = _search_margin(loss_fn, k, pull)
    frame = np.eye(k) - 1 / k
    classifier = np.sqrt(margin * (n * lh / lw) ** 0.5) * frame
    features = (lw / (n * lh)) ** 0.5 * classifier
    return make_optimum((classifier,), features, None, value + pull * margin)


def _cross_entropy_margin(smoothing, k, pull):
    """The margin and the loss at it: the own probability is ``1 - s + s/K - pull``."""
    p = max(1 - smoothing + smoothing / k - pull, 1 / k)
    # Beyond the threshold nothing is learnt, and rounding must not make it negative.
    margin = max(np.log((k - 1) * p / (1 - p)), 0.0)
    own = 1 - smoothing + smoothing / k
    return margin, -own * np.log(p) - (1 - own) * np.log((1 - p) / (k - 1))


def _search_margin(loss_fn, k, pull):
    """The margin at which ``loss + pull margin`` is least, and the loss there."""
    with jax.enable_x64(True):
        check_symmetric_loss(loss_fn, k)
        margin_loss = lambda a: loss_fn(a * jnp.eye(1, k), jnp.array([0]))[0]
        value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(margin_loss)))

        def height(margins):
            values, slopes = value_and_grad(np.atleast_1d(margins))
            return np.asarray(values), np.asarray(slopes) + pull

        slope = lambda margin: height(margin)[1][0]
        highest = 1.0
        while highest < 2.0**40 and not slope(highest) > 0:
            highest *= 2
        # With all outputs equal a focal loss has a maximum, behind which it may fall
        # again before it rises: look where the slope changes sign.
        grid = np.concatenate([[0.0], np.geomspace(1e-6, 2 * highest, _GRID)])
        slopes = height(grid)[1]
        turns = np.flatnonzero((slopes[:-1] < 0) & (slopes[1:] >= 0))
        root = lambda i: optimize.brentq(slope, grid[i], grid[i + 1], xtol=1e-15)
        found = np.array([0.0, *(root(i) for i in turns)])
        values = np.concatenate([height(margin)[0] for margin in found])
    best = np.argmin(values + pull * found)
    return found[best], values[best]


def check_symmetric_loss(loss_fn: LossFn, num_classes: int) -> None:
    """Raise unless a loss treats classes alike and ignores a shift of all outputs.

    Args:
        loss_fn: ``loss_fn(outputs[n, k], labels[n]) -> losses[n]``.
        num_classes: Number of classes.

    Raises:
        ValueError: It does not, at a few points where that was tried.
    """
    labels = np.arange(num_classes)
    outputs = 0.7 * np.eye(num_classes)
    alike = np.asarray(loss_fn(jnp.asarray(outputs), labels))
    shifted = np.asarray(loss_fn(jnp.asarray(outputs + 1.3), labels))
    scale = 1e-9 * (1 + np.abs(alike[0]))
    if not (np.ptp(alike) < scale and np.ptp(shifted - alike[0]) < scale) or not (
        np.abs(shifted[0] - alike[0]) < scale
    ):
        raise ValueError(
            "`loss` must treat all classes alike and not change when all outputs of an "
            "example shift by the same number, but does not. Solve it with "
            "`unconstrained_features`."
        )


def squared_error_optimum(
    class_counts: Counts,
    *,
    weight_decay: Number,
    feature_decay: Number,
    num_layers: int = 1,
    bias: Literal["none", "free"] = "none",
) -> Optimum:
    r"""Optimum of linear layers and free features under squared error, any imbalance.

    The objective is ``(1/2N) sum_i ||W_M ... W_1 h_i + b - e_{y_i}||^2 + lw/2 sum_j
    ||W_j||^2 + lh/2 sum_i ||h_i||^2``. Let ``A`` have the columns ``sqrt(n_k) e_k``,
    minus their weighted mean if the bias is free. Factors and outputs share the
    singular vectors of ``A``, and each of its singular values ``s`` is on its own. With
    one layer the outputs keep ``max(s - N sqrt(lw lh), 0)`` of it. With ``M`` layers,
    the product of the layers has there the singular value ``sqrt(N lh x^M)`` for the
    largest root of

        b / s^2 = M x^(M-1) / (x^M + 1)^2 ,    b = M N (N lw^M lh)^(1/M) ,

    and 0 where that is no better, for ``s^2 <= b M / (M-1)^((M-1)/M)``. With ``M > 1``
    zero stays a local optimum above that, and the root a local one somewhat below.

    Without bias ``A`` is diagonal: classifier rows and class means are orthogonal (an
    orthogonal frame, not a simplex frame), and a class vanishes up to the count
    `minority_collapse_threshold`. With a free bias, which is then ``n_k / N``, balanced
    classes make a simplex frame, and up to that count classes of equal counts merge.

    Args:
        class_counts: Examples of each class.
        weight_decay: ``lw``, for every layer.
        feature_decay: ``lh``, for each example's features.
        num_layers: Number ``M`` of linear layers above the features.
        bias: ``"none"``, or ``"free"`` for one without decay.

    Returns:
        The optimum, with features as wide as there are classes.

    Raises:
        ValueError: A number is out of range, or `bias` is another word.

    Example:
        >>> best = squared_error_optimum(
        ...     [200, 100, 50, 50], weight_decay=5e-4, feature_decay=5e-4
        ... )
        >>> [round(float(norm), 5) for norm in best.classifier_norms**2]
        [13.94214, 9.8, 6.87107, 6.87107]

    References:
        Dang et al. 2023, arXiv:2301.00437, theorems 4.1 and 4.4 (without bias; the
        balanced case and the imbalanced one); Zhou et al. 2022, arXiv:2203.01238 (one
        layer with bias).
    """
    counts = check_class_counts(class_counts)
    lw = check_decay(weight_decay=weight_decay)
    lh = check_decay(feature_decay=feature_decay)
    m = check_count(num_layers=num_layers)
    if bias not in ("none", "free"):
        raise ValueError(f"`bias` must be 'none' or 'free', but was {bias!r}.")
    total = counts.sum()
    shares = counts / total
    offset = shares if bias == "free" else np.zeros_like(shares)
    targets = (np.eye(len(counts)) - offset[:, None]) * counts[None, :] ** 0.5
    left, values, right = np.linalg.svd(targets)
    solved = np.array([_spectral_optimum(s**2, total, lw, lh, m) for s in values])
    layer_values, feature_values, objectives = solved.T
    classifier = left * layer_values[None, :]
    inner = (np.diag(layer_values),) * (m - 1)
    features = right.T * feature_values[None, :] / counts[:, None] ** 0.5
    return make_optimum(
        (classifier, *inner),
        features,
        shares if bias == "free" else None,
        objectives.sum(),
    )


def _spectral_optimum(square, total, lw, lh, m):
    """Singular values of a layer and of the features, and the share of the objective.

    With ``square = s^2`` the objective is ``s^2 / 2N (1 / (x^M + 1) + b x / s^2)``.
    """
    scale = (total * lh) ** (1 / m)
    b = m * total * lw * scale
    peak = ((m - 1) / (m + 1)) ** (1 / m) if m > 1 else 0.0
    excess = lambda x: m * x ** (m - 1) * square - b * (x**m + 1) ** 2
    x = 0.0
    if excess(peak) > 0:
        highest = (m * square / b) ** (1 / (m + 1))
        x = optimize.brentq(excess, peak, highest, xtol=1e-300)
        if square * x**m / (x**m + 1) <= b * x:
            x = 0.0
    layer = np.sqrt(scale * x)
    product = layer**m
    feature = product * square**0.5 / (product**2 + total * lh)
    return layer, feature, (square / (x**m + 1) + b * x) / (2 * total)


def minority_collapse_threshold(
    loss: LossName,
    num_examples: Number,
    *,
    weight_decay: Number,
    feature_decay: Number,
    num_layers: int = 1,
    label_smoothing: Number = 0.0,
) -> float:
    r"""The number of examples up to which nothing tells a class apart.

    With ``N`` examples in all, ``M`` linear layers and free features:

    - cross-entropy, ``M = 1``: two or more classes of equal counts ``n`` have equal
      classifier rows and equal features if and only if
      ``(1 - s)^2 n <= N^2 lw lh``, whatever the other classes are, with or without
      bias; ``s`` is the label smoothing;
    - squared error, ``M = 1``: ``n <= N^2 lw lh`` likewise. Without bias such a class
      is zero, also if it is the only one of its size;
    - squared error, ``M > 1``: the same at the global optimum for
      ``n <= M^2 N (N lw^M lh)^(1/M) / (M-1)^((M-1)/M)``, which has the first as its
      limit.

    For balanced classes the first is ``K eps >= 1``: the origin is optimal.

    The reason, for one layer: at outputs that do not tell the classes apart, the
    gradient along their differences has the singular value ``(1 - s) sqrt(n) / N``
    whatever else the outputs are, and a nuclear norm of weight ``sqrt(lw lh)`` keeps a
    direction at zero as long as the gradient there is not larger than the weight.

    Networks have no ``lh``: there this is a trend, and no threshold.

    Args:
        loss: ``"cross_entropy"`` or ``"squared_error"``.
        num_examples: Number ``N`` of examples of all classes.
        weight_decay: ``lw``, for every layer.
        feature_decay: ``lh``, for each example's features.
        num_layers: Number ``M`` of linear layers above the features.
        label_smoothing: Weight of the uniform distribution (cross-entropy).

    Returns:
        The threshold, in examples per class.

    Raises:
        ValueError: A number is out of range, or there is no such result for the loss.

    Example:
        >>> threshold = minority_collapse_threshold(
        ...     "cross_entropy", 105, weight_decay=0.02, feature_decay=0.02
        ... )
        >>> round(threshold, 4)
        4.41

    References:
        Hong & Ling 2023, arXiv:2309.09725 (the block structure; this threshold is
        derived as above); Dang et al. 2023, arXiv:2301.00437, theorem 4.4 (squared
        error).
    """
    loss_fn = resolve_loss(loss, label_smoothing)
    n = check_decay(num_examples=num_examples)
    lw = check_decay(weight_decay=weight_decay)
    lh = check_decay(feature_decay=feature_decay)
    m = check_count(num_layers=num_layers)
    if isinstance(loss_fn, CrossEntropy):
        if m > 1:
            raise ValueError(
                "`num_layers` must be 1 for cross-entropy, but was "
                f"{m}: for more layers no threshold is known."
            )
        return n**2 * lw * lh / (1 - loss_fn.label_smoothing) ** 2
    if not isinstance(loss_fn, SquaredError):
        raise ValueError(
            "`loss` must be 'cross_entropy' or 'squared_error': for other losses the "
            "threshold depends on the outputs."
        )
    peak = np.exp(special.xlogy((m - 1) / m, m - 1)) / m
    return float(m * n * (n * lw**m * lh) ** (1 / m) / peak)
