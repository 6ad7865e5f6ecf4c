"""Geometries that classifiers and class means take at the optimum, as Gram matrices."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Float, Real

from jaxtheory.batching import check_count, check_number
from jaxtheory.collapse.theory._losses import check_class_counts

ClassCounts: TypeAlias = (
    Sequence[int] | Sequence[float] | Real[np.ndarray, " k"] | Real[Array, " k"]
)


class Geometry(NamedTuple):
    """Inner products of classifier rows and of class means.

    A common scale of each of the two is free, and so is a rotation of both together:
    compare them after division by the Frobenius norm.

    Attributes:
        classifier_gram: ``W W^T``, with one row of ``W`` for each class. Shape
            ``[k, k]``.
        mean_gram: ``M M^T``, with one class mean in each row of ``M``. Shape
            ``[k, k]``.
    """

    classifier_gram: Float[np.ndarray, "k k"]
    mean_gram: Float[np.ndarray, "k k"]


def simplex_frame(num_classes: int) -> Geometry:
    """The simplex equiangular tight frame: ``I - J/K`` for both.

    What balanced classes collapse to under every loss of this package.

    Args:
        num_classes: Number ``K`` of classes, at least 2.

    Returns:
        The geometry. Rows have squared length ``1 - 1/K`` and cosine ``-1/(K-1)``.

    Raises:
        ValueError: `num_classes` is not an integer of at least 2.

    Example:
        >>> simplex_frame(4).classifier_gram[0].tolist()
        [0.75, -0.25, -0.25, -0.25]

    References:
        Papyan, Han & Donoho 2020, arXiv:2008.08186.
    """
    k = check_count(num_classes=num_classes, at_least=2)
    frame = np.eye(k) - 1 / k
    return Geometry(frame, frame)


def simplex_encoded_labels(class_counts: ClassCounts) -> Geometry:
    """The geometry that interpolates simplex-encoded labels (SELI), for any classes.

    The support-vector form of the unconstrained-features model,

        min ||W||^2 + ||H||^2   subject to   (w_y - w_c)^T h_i >= 1 for all c != y,

    has ``W H = Z`` with ``Z = (I - J/K) Y^T`` (``Y`` one-hot) at its optimum, whatever
    the class sizes. With ``Z = V S U^T``, ``W W^T = V S V^T`` and ``H^T H = U S U^T``.
    Examples of one class coincide, so that the decomposition of the ``K x K`` matrix
    ``(I - J/K) diag(sqrt(n_k))`` has all of it. Equal classes give `simplex_frame` up
    to scale. Neither Gram needs centring: the rows of each sum to zero.

    Cross-entropy with a ridge comes near it only as the ridge vanishes, and slowly: at
    a penalty of 1e-12 distances of some 0.03 are left.

    Args:
        class_counts: Examples ``n_k`` in each class, positive; need not be integers.

    Returns:
        The geometry, in the units of the problem above.

    Raises:
        ValueError: There are fewer than two classes, or a count is not positive.

    Example:
        >>> frame = simplex_encoded_labels([10, 10, 1, 1]).classifier_gram
        >>> norms = frame.diagonal() ** 0.5
        >>> [round(float(frame[i, i + 1] / norms[i] / norms[i + 1]), 5) for i in (2, 0)]
        [0.07945, -0.45899]

    References:
        Thrampoulidis, Kini, Vakilian & Behnia 2022, arXiv:2208.05512 (the SELI
        geometry, for any class sizes).
    """
    counts = check_class_counts(class_counts)
    roots = np.sqrt(counts)
    centred = (np.eye(counts.size) - 1 / counts.size) * roots[None, :]
    left, values, right = np.linalg.svd(centred)
    means = right.T / roots[:, None]
    return Geometry((left * values) @ left.T, (means * values) @ means.T)


def general_orthogonal_frame(
    class_counts: ClassCounts, *, regularization: float | int = 0
) -> Geometry:
    """The orthogonal frame (GOF) of the squared error without a bias.

    The optimum of ``(1/2N)||W H - Y||^2 + (lambda_W/2)||W||^2 + (lambda_H/2)||H||^2``
    has orthogonal rows, with ``s_k = max(sqrt(n_k) - N sqrt(lambda_W lambda_H), 0)``:

        W W^T = sqrt(lambda_H / lambda_W) diag(s_k)
        M M^T = sqrt(lambda_W / lambda_H) diag(s_k / n_k)

    Args:
        class_counts: Examples ``n_k`` in each class, positive.
        regularization: ``sqrt(lambda_W lambda_H)``; 0 is the limit of none.

    Returns:
        The geometry for ``lambda_W = lambda_H``; other ratios only scale it. A class
        with ``sqrt(n_k)`` below the threshold has a zero row: minority collapse.

    Raises:
        ValueError: There are fewer than two classes, a count is not positive, or
            `regularization` is negative.

    Example:
        >>> frame = general_orthogonal_frame([16, 4], regularization=0.15)
        >>> frame.classifier_gram.round(6).tolist()
        [[1.0, 0.0], [0.0, 0.0]]

    References:
        Dang et al. 2023, arXiv:2301.00437 (one layer of weights, no bias).
    """
    counts = check_class_counts(class_counts)
    check_number("regularization", regularization, lambda v: v >= 0, "a number >= 0")
    kept = np.maximum(np.sqrt(counts) - counts.sum() * float(regularization), 0)
    return Geometry(np.diag(kept), np.diag(kept / counts))
