"""Kendall's tau of a measure with the gap: over all pairs, and granulated."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from jaxtheory.bounds.evaluate._checks import (
    check_hyperparameters,
    check_table,
    group_numbers,
)
from jaxtheory.bounds.evaluate._pairs import PairSums, level_codes, pair_sums, tau_b


class Kendall(NamedTuple):
    """Kendall's tau-b, and how much it rests on.

    Attributes:
        tau: In [-1, 1]; NaN where the measure or the gap is constant.
        num_pairs: Pairs of networks that have both values.
        num_tied: Those of them that are tied in the measure or in the gap.
        num_left_out: Networks that lack a value.
    """

    tau: float
    num_pairs: int
    num_tied: int
    num_left_out: int


class Granulated(NamedTuple):
    """Granulated Kendall coefficient, hyperparameter by hyperparameter.

    Attributes:
        value: Mean of `by_hyperparameter` over those that are defined; NaN if none is.
        by_hyperparameter: ``psi_i``, in the order given; NaN where no line has a tau.
        num_lines: Lines of cells whose tau is in the mean.
        num_undefined: Lines of at least two levels whose tau is undefined: measure or
            gap constant, or fewer than two networks with values.
        num_pairs: Pairs of networks that have both values and count.
        num_left_out: Pairs that a full grid of the same levels and seeds would have
            besides: missing cells, and networks that lack a value.
    """

    value: float
    by_hyperparameter: Float[np.ndarray, " h"]
    num_lines: Int[np.ndarray, " h"]
    num_undefined: Int[np.ndarray, " h"]
    num_pairs: Int[np.ndarray, " h"]
    num_left_out: Int[np.ndarray, " h"]


def kendall(measure: Real[ArrayLike, "c s"], gap: Real[ArrayLike, "c s"]) -> Kendall:
    """Kendall's tau-b of a measure with the gap over all pairs of networks.

    ``(concordant - discordant) / sqrt(untied in measure * untied in gap)``. Pairs of
    two seeds of one cell count as all others do.

    Args:
        measure: Of each network, cells by seeds; NaN where it has none.
        gap: Test less training error or loss, likewise.

    Returns:
        Tau and its counts.

    Raises:
        ValueError: The two are no tables of one shape.

    Memory:
        ``O((c s)^2)``.

    Example:
        >>> measure, gap = np.array([[1.0, 2, 3, 4], [1, 3, 2, 4]])[..., None]
        >>> found = kendall(measure, gap)
        >>> f"{found.tau:.4f} of {found.num_pairs} pairs"
        '0.6667 of 6 pairs'

    References:
        Kendall, Biometrika 33 (1945), tau-b.
    """
    measure, gap = check_table(measure=measure, gap=gap)
    flat = [values.reshape(-1, 1) for values in (measure, gap)]
    known = ~(np.isnan(measure) | np.isnan(gap))
    sums = pair_sums(*flat)
    number = int(np.sum(known))
    # A product of signs is odd where neither is tied.
    untied = _untied(*(values[known.ravel()] for values in flat))
    pairs = number * (number - 1) // 2
    return Kendall(tau_b(sums), pairs, pairs - untied, known.size - number)


def _untied(left, right):
    """Pairs that differ in both quantities."""
    differ = (left != left.T) & (right != right.T)
    return int(np.sum(differ)) // 2


def granulated_kendall(
    measure: Real[ArrayLike, "c s"],
    gap: Real[ArrayLike, "c s"],
    hyperparameters: Mapping[str, Any],
) -> Granulated:
    """Mean tau among networks that differ in one hyperparameter alone.

    A line holds the cells that agree in every hyperparameter but one. Tau-b of each
    line is taken over pairs of networks of different cells (all seeds with all seeds),
    ``psi_i`` is its mean over lines in which hyperparameter i varies, and the
    coefficient the mean of ``psi_i`` over hyperparameters. A measure that only tells
    the hyperparameters apart that the gap follows has a large tau and a small one of
    these.

    A run that failed takes its own pairs out and nothing else. Published is tau-a: a
    line whose measure is constant counts 0 there (a width along learning rates), and is
    left out and counted here; `num_undefined` tells.

    Args:
        measure: Of each network, cells by seeds; NaN where it has none.
        gap: Test less training error or loss, likewise.
        hyperparameters: By name, its value (a number or a word) in each cell.

    Returns:
        The coefficient, its parts and its counts.

    Raises:
        ValueError: The tables do not match each other or the hyperparameters.

    Example:
        >>> cells = {"learning rate": [0.1, 0.1, 0.2, 0.2], "width": [8, 16, 8, 16]}
        >>> gap = np.array([[0.1], [0.2], [0.3], [0.4]])
        >>> measure = np.array([[2.0], [1.0], [4.0], [np.nan]])  # one run failed
        >>> found = granulated_kendall(measure, gap, cells)
        >>> found.by_hyperparameter, found.num_left_out
        (array([ 1., -1.]), array([1, 1]))

    References:
        Jiang et al. 2019, arXiv:1912.02178, section 2.2 (granulated coefficient).
    """
    measure, gap = check_table(measure=measure, gap=gap)
    check_hyperparameters(hyperparameters, len(gap))
    codes = level_codes(hyperparameters)
    known = np.sum(~(np.isnan(measure) | np.isnan(gap)), axis=1)
    sums = pair_sums(measure, gap)
    levels = [len(np.unique(column)) for column in codes.T]
    rows = []
    for place, column in enumerate(codes.T):
        taus, pairs = _lines(sums, known, column, np.delete(codes, place, axis=1))
        lines = np.prod(np.delete(levels, place)).astype(int)
        full = lines * levels[place] * (levels[place] - 1) // 2 * gap.shape[1] ** 2
        kept = taus[~np.isnan(taus)]
        psi = np.mean(kept) if len(kept) else np.nan
        rows.append(
            (psi, len(kept), len(taus) - len(kept), pairs, max(full - pairs, 0))
        )
    psi, *counts = (np.array(column) for column in zip(*rows, strict=True))
    defined = psi[~np.isnan(psi)]
    return Granulated(
        float(np.mean(defined)) if len(defined) else float("nan"), psi, *counts
    )


def _lines(sums, known, levels, rest):
    """Tau of each line of at least two levels, and the pairs of all of them."""
    line = group_numbers(rest)
    taus, pairs = [], 0
    for number in range(np.max(line) + 1):
        inside = np.flatnonzero(line == number)
        other = levels[inside, None] != levels[inside]
        if not np.any(other):
            continue
        pick = np.ix_(inside, inside)
        taus.append(tau_b(PairSums(*(s[pick] for s in sums)), other))
        pairs += int(np.sum(np.outer(known[inside], known[inside])[other])) // 2
    return np.array(taus), pairs
