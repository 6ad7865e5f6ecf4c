"""The optimum of regression with free features, in closed form."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Real

from jaxtheory.collapse.theory._losses import check_concrete, check_decay


class RegressionOptimum(NamedTuple):
    """What last layer and features of a regression tend to.

    Attributes:
        classifier_gram: ``W W^T``, of the rows that make each target. Shape ``[t, t]``.
        fitted: Outputs ``W h_i + b``: the targets, shrunk. Shape ``[n, t]``.
        objective: Value of the penalised objective.
        rank: Directions of the targets that are fitted at all.
    """

    classifier_gram: Float[np.ndarray, "t t"]
    fitted: Float[np.ndarray, "n t"]
    objective: float
    rank: int


def regression_optimum(
    targets: Real[np.ndarray | Array, "n t"],
    *,
    weight_decay: float | int,
    feature_decay: float | int,
    bias: bool = True,
) -> RegressionOptimum:
    """Solve the unconstrained-features model of multivariate regression.

    The objective over ``W``, all features ``h_i`` and the bias ``b``,

        (1/2N) sum_i ||W h_i + b - y_i||^2
            + (lambda_H / 2N) sum_i ||h_i||^2 + (lambda_W / 2) ||W||^2 ,

    has at its optimum, with ``S = (1/N) sum_i (y_i - m)(y_i - m)^T``, ``m`` the mean of
    the targets (zero without a bias) and ``[.]_+`` acting on eigenvalues,

        W W^T = sqrt(lambda_H / lambda_W) [S^(1/2) - sqrt(lambda_W lambda_H) I]_+ .

    Note the ``1/N`` of the feature penalty, which the classification models here do
    not have. Solved on the host in float64.

    Args:
        targets: One row for each example, in their own units.
        weight_decay: ``lambda_W > 0``.
        feature_decay: ``lambda_H > 0``.
        bias: Whether there is an unpenalised bias.

    Returns:
        The optimum; features in at least ``t`` dimensions reach it.

    Raises:
        ValueError: `targets` is not a finite matrix, or a decay is not positive.

    Example:
        >>> import numpy as np
        >>> targets = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
        >>> optimum = regression_optimum(targets, weight_decay=0.04, feature_decay=1)
        >>> optimum.classifier_gram.diagonal().round(6).tolist()
        [6.071068, 2.535534]

    References:
        Andriopoulos, Dong, Guo, Zhao & Ross 2024, arXiv:2409.04180, section 4. The
        positive part, for decays so strong that directions are given up, is derived.
    """
    check_concrete(targets=targets)
    y = np.asarray(targets, np.float64)
    if y.ndim != 2 or 0 in y.shape or not np.all(np.isfinite(y)):
        raise ValueError(
            "`targets` must be a matrix [n, t] of finite numbers with at least one "
            f"entry, but has shape {y.shape}. One target is one column: "
            "`targets[:, None]`."
        )
    weight_decay = check_decay(weight_decay=weight_decay)
    feature_decay = check_decay(feature_decay=feature_decay)
    threshold = np.sqrt(weight_decay * feature_decay)
    mean = y.mean(axis=0) if bias else np.zeros(y.shape[1])
    left, scales, right = np.linalg.svd(y - mean, full_matrices=False)
    scales = scales / np.sqrt(len(y))
    kept = np.maximum(scales - threshold, 0)
    gram = np.sqrt(feature_decay / weight_decay) * (right.T * kept) @ right
    fitted = mean + np.sqrt(len(y)) * (left * kept) @ right
    objective = np.sum((scales - kept) ** 2) / 2 + threshold * np.sum(kept)
    return RegressionOptimum(gram, fitted, float(objective), int(np.sum(kept > 0)))
