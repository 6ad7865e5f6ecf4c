"""The optimum of multi-label classification with free features, in closed form."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar

from jaxtheory.batching import check_count
from jaxtheory.collapse.theory._losses import check_concrete, check_decay


class PickAllLabelOptimum(NamedTuple):
    """Margins, scales and classifier at the optimum of the pick-all-label loss.

    Entry ``m - 1`` is that of the label sets with ``m`` tags.

    Attributes:
        margins: Logit of a tag in the set minus that of a tag outside. Shape ``[m]``.
        scales: ``a_m`` in ``h_S = a_m W^T 1_S``; NaN where everything is zero, or where
            there are no such sets. ``a_m / a_1`` is the tag-wise scale. Shape ``[m]``.
        classifier_gram: ``W W^T = rho (I - J/K)``. Shape ``[k, k]``.
        objective: Value of the penalised objective.
    """

    margins: Float[np.ndarray, " m"]
    scales: Float[np.ndarray, " m"]
    classifier_gram: Float[np.ndarray, "k k"]
    objective: float


def pick_all_label_optimum(
    examples_per_set: Sequence[float] | Sequence[int],
    *,
    num_classes: int,
    weight_decay: float | int,
    feature_decay: float | int,
) -> PickAllLabelOptimum:
    """Solve the unconstrained-features model of the pick-all-label loss.

    An example with tags ``S`` costs the sum over ``k`` in ``S`` of the cross-entropy of
    its logits with class ``k``, not divided by the number of tags. The objective is

        (1/N) sum_i cost_i + (lambda_W / 2) ||W||^2 + (lambda_H / 2) sum_i ||h_i||^2

    without a bias, with as many examples in each of the label sets of one size. At the
    optimum ``h_S = a_m W^T 1_S``, ``W W^T = rho (I - J/K)`` and, for ``t = a_m rho``,

        N lambda_H a_m = K e^-t / (m + (K - m) e^-t) ,
        lambda_W = lambda_H sum_m n_m binom(K - 2, m - 1) a_m^2 .

    Both sides are monotone, so that two nested root searches have all of it; where the
    decays are too strong, everything is zero. Solved on the host in float64.

    Args:
        examples_per_set: ``n_m``, the examples of *each* label set with ``m = 1, 2,
            ...`` tags; zero where no set of that size occurs.
        num_classes: Number ``K`` of tags, more than the largest set has.
        weight_decay: ``lambda_W > 0``.
        feature_decay: ``lambda_H > 0``.

    Returns:
        The optimum; features in at least ``K - 1`` dimensions reach it.

    Raises:
        ValueError: An argument is out of its range, or there are no examples.

    Example:
        >>> optimum = pick_all_label_optimum(
        ...     [5, 3], num_classes=4, weight_decay=2e-3, feature_decay=2e-3
        ... )
        >>> optimum.margins.round(5).tolist()
        [5.08277, 4.51552]

    References:
        Li, Wang, Li & Qu 2023, arXiv:2310.15903 (the geometry). The two
        equations are derived here.
    """
    k = check_count(num_classes=num_classes, at_least=2)
    weight_decay = check_decay(weight_decay=weight_decay)
    feature_decay = check_decay(feature_decay=feature_decay)
    counts = _check_counts(examples_per_set, k)
    sizes = np.arange(1, counts.size + 1)
    num_sets = np.array([comb(k, m) for m in sizes], np.float64)
    total = np.sum(counts * num_sets)
    shared = counts * np.array([comb(k - 2, m - 1) for m in sizes], np.float64)
    penalty = total * feature_decay

    def margins(rho):
        return np.array([_margin(rho / penalty, k, m) for m in sizes])

    def excess(log_rho):
        scales = margins(np.exp(log_rho)) / np.exp(log_rho)
        return np.log(np.sum(shared * scales**2)) - np.log(weight_decay / feature_decay)

    rho = 0.0
    if np.sum(shared) > penalty**2 * weight_decay / feature_decay:
        low = high = np.log(penalty)
        while excess(low) < 0:
            low -= 4
        while excess(high) > 0:
            high += 4
        rho = np.exp(root_scalar(excess, bracket=(low, high), xtol=1e-14).root)
    found = margins(rho)
    scales = np.where(counts > 0, found / rho, np.nan) if rho else found * np.nan
    costs = sizes * np.log(sizes + (k - sizes) * np.exp(-found))
    lengths = np.nan_to_num(scales) ** 2 * rho * sizes * (k - sizes) / k
    objective = np.sum(
        counts * num_sets * (costs / total + feature_decay / 2 * lengths)
    )
    objective += weight_decay / 2 * rho * (k - 1)
    found = np.where(counts > 0, found, np.nan)
    return PickAllLabelOptimum(found, scales, rho * (np.eye(k) - 1 / k), objective)


def _margin(slope, k, m):
    """The margin ``t`` with ``t = slope K e^-t / (m + (K - m) e^-t)``."""
    if slope == 0:
        return 0.0
    excess = lambda t: t * (m * np.exp(t) + k - m) - slope * k
    # At the right end the left-hand side alone is as large as the right one.
    right = min(slope, np.log1p(slope * k / m))
    return root_scalar(excess, bracket=(0, max(right, 1.0)), xtol=1e-15).root


def _check_counts(examples_per_set, num_classes):
    """The examples of each set, by its size, after checking them."""
    check_concrete(examples_per_set=examples_per_set)
    counts = np.asarray(examples_per_set)
    if counts.ndim != 1 or counts.dtype.kind not in "iuf":
        raise ValueError(
            "`examples_per_set` must be a vector of numbers, one for each number of "
            f"tags, but has shape {counts.shape} and dtype {counts.dtype}."
        )
    if not 1 <= counts.size < num_classes:
        raise ValueError(
            f"`examples_per_set` must have 1 to {num_classes - 1} entries, because a "
            f"set of all {num_classes} tags tells nothing apart, but has {counts.size}."
        )
    valid = np.all((counts >= 0) & np.isfinite(counts)) and np.sum(counts) > 0
    if not valid:
        raise ValueError(
            "`examples_per_set` must be finite, at least 0 and not all 0, but is not."
        )
    return counts.astype(np.float64)
