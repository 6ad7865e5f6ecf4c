"""Conditional mutual information of a measure and the gap, given hyperparameters."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory.bounds.evaluate._checks import (
    check_hyperparameters,
    check_table,
    group_numbers,
)
from jaxtheory.bounds.evaluate._pairs import level_codes, signs

_LARGEST = 2  # hyperparameters given at once, as published


class ConditionalInformation(NamedTuple):
    """What the order by a measure tells of the order by the gap, in [0, 1].

    Attributes:
        value: The smallest of `by_subset`; NaN if none is defined.
        given: The hyperparameters at which it is the smallest.
        subsets: Every choice of hyperparameters that was given.
        by_subset: Of each, ``I(V_mu; V_g | U_S) / H(V_g | U_S)``; NaN where the order
            by the gap follows from the hyperparameters.
        num_pairs: Pairs of networks that count.
        num_left_out: Pairs of networks of different cells that do not: a value is
            missing, or the gaps are equal.
    """

    value: float
    given: tuple[str, ...]
    subsets: tuple[tuple[str, ...], ...]
    by_subset: Float[np.ndarray, " q"]
    num_pairs: int
    num_left_out: int


def conditional_mutual_information(
    measure: Real[ArrayLike, "c s"],
    gap: Real[ArrayLike, "c s"],
    hyperparameters: Mapping[str, Any],
) -> ConditionalInformation:
    """Normalised information on the gap's order, at the worst given hyperparameters.

    ``min over |S| <= 2 of I(V_mu; V_g | U_S) / H(V_g | U_S)``, where ``V`` is the sign
    of the difference of two networks and ``U_S`` the values that both have of the
    hyperparameters in ``S``. Ordered pairs of networks of different cells count alike,
    entropies are those of their frequencies. A tie in the measure is a symbol of its
    own; pairs with equal gaps are left out. ``S`` leaves at least one hyperparameter
    that varies: given all of them only seeds differ.

    The sign of the relation is not seen: a measure that ranks in reverse scores as
    one that ranks right. Frequencies of few pairs make information out of chance:
    `evaluate` says how much.

    Args:
        measure: Of each network, cells by seeds; NaN where it has none.
        gap: Test less training error or loss, likewise.
        hyperparameters: By name, its value (a number or a word) in each cell.

    Returns:
        The value, where it is taken, and those of all subsets.

    Raises:
        ValueError: The tables do not match each other or the hyperparameters.

    Memory:
        ``O((c s)^2)``.

    Example:
        >>> cells = {"learning rate": [0.1, 0.1, 0.2, 0.2], "width": [8, 16, 8, 16]}
        >>> gap = np.array([[0.1], [0.2], [0.3], [0.4]])
        >>> rate = np.array([[0.1], [0.1], [0.2], [0.2]])  # not what the width does
        >>> found = conditional_mutual_information(rate, gap, cells)
        >>> found.given, round(found.value, 4)
        (('learning rate',), 0.0)

    References:
        Jiang et al. 2019, arXiv:1912.02178, section 2.2 (conditional independence
        test).
    """
    measure, gap = check_table(measure=measure, gap=gap)
    names = tuple(check_hyperparameters(hyperparameters, len(gap)))
    codes = level_codes(hyperparameters)
    joint = joint_signs(measure, gap)
    subsets = _subsets(codes)
    values = np.array([_normalised(joint, codes[:, subset]) for subset in subsets])
    named = tuple(tuple(names[place] for place in subset) for subset in subsets)
    best = -1 if np.isnan(values).all() else int(np.nanargmin(values))
    pairs = int(np.sum(joint)) // 2
    all_pairs = len(gap) * (len(gap) - 1) // 2 * gap.shape[1] ** 2
    return ConditionalInformation(
        float("nan") if best < 0 else float(values[best]),
        () if best < 0 else named[best],
        named,
        values,
        pairs,
        all_pairs - pairs,
    )


def joint_signs(measure: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Ordered pairs of networks by both signs, ``[3, 2, c, c]``.

    Signs of the measure are -1, 0, 1 and those of the gap -1, 1; pairs within a cell
    count as none.
    """
    known = ~(np.isnan(measure) | np.isnan(gap))
    masked = np.where(known, gap, np.nan)
    left, right = signs(measure), signs(masked)
    found = [
        [np.sum((left == a) & (right == b), axis=(1, 3)) for b in (-1, 1)]
        for a in (-1, 0, 1)
    ]
    return np.array(found, np.float64) * ~np.eye(len(gap), dtype=bool)


def _subsets(codes):
    """Places of at most two hyperparameters, never all of those that vary."""
    varying = np.flatnonzero(np.ptp(codes, axis=0) > 0).tolist()
    most = min(_LARGEST, max(len(varying) - 1, 0))
    sizes = (itertools.combinations(varying, size) for size in range(most + 1))
    return [list(subset) for subset in itertools.chain(*sizes)]


def _normalised(joint, codes):
    """Information over entropy given the columns of `codes`."""
    group = group_numbers(codes)
    member = np.eye(int(np.max(group)) + 1)[group]
    counts = member.T @ joint @ member  # [3, 2, u, u]
    given = np.sum(counts, axis=(0, 1))
    target = np.sum(counts, axis=0)
    entropy = _log_sum(given) - _log_sum(target)
    if not entropy > 1e-12 * np.sum(given):
        return np.nan
    left = np.sum(counts, axis=1)
    information = _log_sum(counts) - _log_sum(left) + entropy
    return max(information / entropy, 0.0)


def _log_sum(counts):
    """Sum of ``n ln n``."""
    counts = counts[counts > 0]
    return np.sum(counts * np.log(counts))
