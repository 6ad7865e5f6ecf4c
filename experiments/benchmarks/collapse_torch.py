"""The way through d x d covariances as the PyTorch packages go it."""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from scipy.sparse.linalg import svds

from experiments.benchmarks.collapse_cases import FIELDS, Case

BATCH = 500


def _batches(*arrays):
    return zip(*(array.split(BATCH) for array in arrays), strict=True)


def _passes(h, y, weight, bias):
    """Class means, covariance, variances and decisions, a pass over batches each."""
    num_classes, dim = weight.shape
    counts = torch.bincount(y, minlength=num_classes).to(h.dtype)
    means = torch.zeros(num_classes, dim)
    for rows, labels in _batches(h, y):
        means.index_add_(0, labels, rows)
    means /= counts[:, None]
    within, variances = torch.zeros(dim, dim), torch.zeros(num_classes)
    for rows, labels in _batches(h, y):
        rest = rows - means[labels]
        within += rest.T @ rest
        variances.index_add_(0, labels, rest.square().sum(1))
    differ = 0
    for (rows,) in _batches(h):
        nearest = (means.square().sum(1) - 2 * rows @ means.T).argmin(1)
        differ += int((nearest != (rows @ weight.T + bias).argmax(1)).sum())
    return means, within / len(h), variances / counts, differ / len(h)


def statistics(case: Case, invert) -> list[float]:
    """NC1 to NC4 and CDNV, in the order of `FIELDS`."""
    h, y, weight, bias = (torch.from_numpy(array) for array in case)
    means, within, variances, nc4 = _passes(h, y, weight, bias)
    num_classes = len(means)
    centred = means - means.mean(0)
    inverse = invert(centred.T @ centred / num_classes, num_classes - 1)
    pairs = ~torch.eye(num_classes, dtype=torch.bool)
    squares = torch.cdist(means, means).square()[pairs]
    lengths = centred.norm(dim=1)
    cosines = (centred @ centred.T / torch.outer(lengths, lengths))[pairs]
    values = {
        "nc1": torch.trace(within @ inverse) / num_classes,
        "nc2_equinorm": lengths.std(correction=0) / lengths.mean(),
        "nc2_equiangular": (cosines + 1 / (num_classes - 1)).abs().mean(),
        "nc3": (weight / weight.norm() - centred / centred.norm()).norm(),
        "nc4": nc4,
        "cdnv": ((variances[:, None] + variances)[pairs] / (2 * squares)).mean(),
    }
    return [float(values[name]) for name in FIELDS]


def _pseudo_inverse(matrix, rank):
    return torch.linalg.pinv(matrix, rtol=1e-6)


def _truncated(matrix, rank):
    factors: Any = svds(matrix.numpy(), k=rank)  # with negative strides
    left, values, right = (torch.from_numpy(a.copy()) for a in factors)
    return right.T @ ((1 / values)[:, None] * left.T)


def _way(invert):
    return lambda case: lambda: statistics(case, invert)


TORCH = {
    "PyTorch pinv of d x d": _way(_pseudo_inverse),
    "PyTorch, svds of d x d": _way(_truncated),
}
