"""Data of the collapse benchmark, and the way through d x d covariances in NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# What all ways return, in this order.
FIELDS = ("nc1", "nc2_equinorm", "nc2_equiangular", "nc3", "nc4", "cdnv")


class Case(NamedTuple):
    """Features and a classifier near their class means.

    Attributes:
        features: ``[n, d]``, float32.
        labels: Class indices.
        weight: ``[k, d]``.
        bias: ``[k]``.
    """

    features: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def make(name: str, *, small: bool) -> Case:
    """A case.

    Args:
        name: ``"K, d, N"``, the numbers of classes, features and examples.
        small: A rehearsal: 4 classes, 8 features, 60 examples.

    Returns:
        The case, the same every time.
    """
    sizes = (4, 8, 60) if small else map(int, name.split(","))
    num_classes, dim, num_examples = sizes
    rng = np.random.default_rng(0)
    means = rng.standard_normal((num_classes, dim), np.float32)
    labels = rng.integers(0, num_classes, num_examples)
    noise = rng.standard_normal((num_examples, dim), np.float32)
    weight = means + 0.1 * rng.standard_normal(means.shape, np.float32)
    bias = 0.1 * rng.standard_normal(num_classes, np.float32)
    return Case(means[labels] + 0.3 * noise, labels, weight, bias)


def by_covariances(
    case: Case, invert: Callable[[np.ndarray, int], Any]
) -> dict[str, Any]:
    """NC1 to NC4 and CDNV by the covariance matrices and a pseudo-inverse.

    Args:
        case: The data.
        invert: ``invert(between, rank)``, the pseudo-inverse of a matrix.

    Returns:
        The statistics.
    """
    features, labels, weight, bias = case
    num_classes, dim = weight.shape
    counts = np.bincount(labels, minlength=num_classes)
    means = np.zeros((num_classes, dim), np.float32)
    np.add.at(means, labels, features)
    means /= counts[:, None]
    deviations = features - means[labels]
    within = deviations.T @ deviations / len(features)
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / num_classes
    inverse = invert(between, num_classes - 1)
    variances = np.bincount(labels, np.sum(deviations**2, axis=1)) / counts
    gram = means @ means.T
    squares = np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram
    pairs = ~np.eye(num_classes, dtype=bool)
    cdnv = (variances[:, None] + variances[None])[pairs] / (2 * squares[pairs])
    lengths = np.linalg.norm(centred, axis=1)
    cosines = (centred @ centred.T) / np.outer(lengths, lengths)
    scaled = lambda a: a / np.linalg.norm(a)
    nearest = np.argmin(-2 * features @ means.T + np.diag(gram)[None], axis=1)
    predicted = np.argmax(features @ weight.T + bias[None], axis=1)
    return {
        "nc1": np.sum(within * inverse.T) / num_classes,
        "nc2_equinorm": lengths.std() / lengths.mean(),
        "nc2_equiangular": np.abs(cosines[pairs] + 1 / (num_classes - 1)).mean(),
        "nc3": np.linalg.norm(scaled(weight) - scaled(centred)),
        "nc4": np.mean(nearest != predicted),
        "cdnv": cdnv.mean(),
    }


def pseudo_inverse(matrix: np.ndarray, rank: int) -> np.ndarray:
    """All of it, from a full decomposition."""
    return np.linalg.pinv(matrix, rcond=1e-6)


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """From the largest singular pairs, by ARPACK."""
    from scipy.sparse.linalg import svds

    factors: Any = svds(matrix, k=rank)
    left, values, right = factors
    return right.T @ ((1 / values)[:, None] * left.T)


def _way(invert):
    def build(case):
        def call():
            found = by_covariances(case, invert)
            return [found[name] for name in FIELDS]

        return call

    return build


NUMPY = {
    "NumPy pinv of d x d": _way(pseudo_inverse),
    "SciPy svds of d x d": _way(truncated),
}
