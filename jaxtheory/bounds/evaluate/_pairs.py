"""Pairs of networks, summed by pairs of cells: what every rank correlation is made of.

A population is ``[c, s]``: cells (choices of hyperparameters) and seeds. A pair of
networks counts by its signs; sums of those over the seeds of two cells are matrices
``[c, c]``, from which every subset and every resampling of cells follows without
ranking again.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from jaxtheory.bounds.evaluate._checks import check_hyperparameters, check_table


class PairSums(NamedTuple):
    """Pairs of networks, summed over the seeds of each pair of cells.

    Attributes:
        agreement: Pairs in the same order less those in the opposite, ``[c, c]``.
        untied_left: Pairs that differ in the first quantity.
        untied_right: Pairs that differ in the second.
    """

    agreement: Float[np.ndarray, "c c"]
    untied_left: Float[np.ndarray, "c c"]
    untied_right: Float[np.ndarray, "c c"]


def signs(values: Real[np.ndarray, "c s"]) -> Float[np.ndarray, "c s c s"]:
    """Order of each pair of networks: 1 where the first is greater, -1, or 0.

    NaN is tied with everything: a network that has none counts in no pair.

    Args:
        values: A quantity of each network. Infinity is a value, the greatest one.

    Returns:
        The signs, as float32.

    Memory:
        ``O((c s)^2)``: 6 MB for 1,200 networks.
    """
    flat = np.ravel(values)
    found = np.greater(flat[:, None], flat) * np.float32(1)
    found -= np.less(flat[:, None], flat)
    return found.reshape(*values.shape, *values.shape)


def pair_sums(
    left: Real[np.ndarray, "c s"], right: Real[np.ndarray, "c s"]
) -> PairSums:
    """Agreement of two quantities, and their ties, by pairs of cells.

    Args:
        left: A quantity of each network.
        right: Another one. Networks that lack one (NaN) count in no pair.

    Returns:
        The sums, for `tau_b` and `resampled_tau`.

    Example:
        >>> sums = pair_sums(np.array([[1.0], [2], [3]]), np.array([[1.0], [3], [2]]))
        >>> round(tau_b(sums), 4)
        0.3333
    """
    left, right = check_table(left=left, right=right)
    known = ~(np.isnan(left) | np.isnan(right))
    a, b = (signs(np.where(known, values, np.nan)) for values in (left, right))
    over = lambda pairs: np.asarray(np.sum(pairs, axis=(1, 3), dtype=np.float64))
    return PairSums(over(a * b), over(np.abs(a)), over(np.abs(b)))


def tau_b(sums: PairSums, mask: Bool[np.ndarray, "c c"] | None = None) -> float:
    """Kendall's tau-b over all pairs of networks, or those of some pairs of cells.

    ``sum sign sign' / sqrt(#untied #untied')``: pairs that are tied in a quantity count
    in neither sum of it.

    Args:
        sums: What `pair_sums` returned.
        mask: Pairs of cells that count, symmetric; None for all.

    Returns:
        Tau; NaN where one of the quantities is constant.
    """
    found = [np.sum(pairs if mask is None else pairs * mask) for pairs in sums]
    return float(_ratio(*found))


def resampled_tau(
    sums: PairSums, counts: Float[np.ndarray, "b c"]
) -> Float[np.ndarray, " b"]:
    """Tau-b in resamples of cells, all seeds of a cell together.

    Args:
        sums: What `pair_sums` returned.
        counts: How often each resample holds each cell.

    Returns:
        Tau of each resample. Copies of a network are tied with each other in both
        quantities, which tau-b leaves out.
    """
    return _ratio(*(np.sum((counts @ pairs) * counts, axis=1) for pairs in sums))


def _ratio(agreement, left, right):
    with np.errstate(invalid="ignore", divide="ignore"):
        return agreement / np.sqrt(left * right)


def differ_in_one(hyperparameters: Mapping[str, Any]) -> Bool[np.ndarray, "h c c"]:
    """Pairs of cells that differ in one hyperparameter alone, for each of them.

    Args:
        hyperparameters: By name, its value (a number or a word) in each cell, ``[c]``.

    Returns:
        For each hyperparameter the pairs of cells that differ in it and no other.

    Example:
        >>> cells = {"learning rate": [0.1, 0.1, 0.2], "width": [8, 16, 16]}
        >>> differ_in_one(cells)[0].astype(int)
        array([[0, 0, 0],
               [0, 0, 1],
               [0, 1, 0]])
    """
    cells = level_codes(hyperparameters)
    differ = cells[:, None] != cells[None]
    single = np.sum(differ, axis=2, keepdims=True) == 1
    return np.moveaxis(differ & single, 2, 0)


def level_codes(hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """Which level of each hyperparameter a cell has, ``[c, h]`` of integers."""
    values = check_hyperparameters(hyperparameters).values()
    codes = [np.unique(column, return_inverse=True)[1] for column in values]
    return np.stack([np.ravel(code) for code in codes], axis=1)


def cell_means(values: Real[np.ndarray, "c s"]) -> Float[np.ndarray, " c"]:
    """Mean over the seeds of a cell that have a value; NaN where none has.

    Args:
        values: A quantity of each network, NaN where it is missing.

    Returns:
        The mean of each cell.
    """
    known = ~np.isnan(values)
    number = np.sum(known, axis=1)
    total = np.sum(np.where(known, values, 0), axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
