"""Rank correlation over a grid of hyperparameters with several seeds a cell.

Arrays of a population are ``[c, s]``: cells and seeds. A pair of networks counts for a
correlation by its signs; sums of those over the seeds of two cells are blocks
``[c, c]``, from which every resampling of cells follows without ranking again.
"""

import itertools
from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """Pairs of networks, summed over the seeds of each pair of cells.

    Attributes:
        agreement: Pairs in the same order less those in the opposite, ``[c, c]``.
        untied_left: Pairs that differ in the first quantity.
        untied_right: Pairs that differ in the second.
    """

    agreement: np.ndarray
    untied_left: np.ndarray
    untied_right: np.ndarray


def signs(values: np.ndarray) -> np.ndarray:
    """Order of each pair of networks, ``[c, s, c, s]`` of -1, 0 and 1.

    NaN is tied with everything: a network that has none counts in no pair.
    """
    flat = np.ravel(values)
    found = np.greater(flat[:, None], flat) * np.float32(1)
    found -= np.less(flat[:, None], flat)
    return found.reshape(*values.shape, *values.shape)


def blocks(left: np.ndarray, right: np.ndarray) -> Blocks:
    """Blocks of two quantities ``[c, s]``; networks that lack one count in no pair."""
    known = ~(np.isnan(left) | np.isnan(right))
    a, b = (signs(np.where(known, values, np.nan)) for values in (left, right))
    over = lambda pairs: np.asarray(np.sum(pairs, axis=(1, 3), dtype=np.float64))
    return Blocks(over(a * b), over(np.abs(a)), over(np.abs(b)))


def kendall(found: Blocks, mask: np.ndarray | None = None) -> float:
    """Kendall's tau-b over all pairs, or those in a mask ``[c, c]``."""
    sums = [np.sum(b if mask is None else b * mask) for b in found]
    return _ratio(*sums)


def _ratio(agreement, left, right):
    with np.errstate(invalid="ignore", divide="ignore"):
        return agreement / np.sqrt(left * right)


def tau(left: np.ndarray, right: np.ndarray) -> float:
    """Kendall's tau-b of two arrays; NaN where one of them is constant."""
    return float(kendall(blocks(left[:, None], right[:, None])))


def bootstrap(found: Blocks, counts: np.ndarray) -> np.ndarray:
    """Tau in resamples of cells, all seeds of a cell together.

    Args:
        found: Blocks.
        counts: How often each resample holds each cell, ``[b, c]``.

    Returns:
        ``[b]``. Copies of a network are tied with each other in both quantities, which
        tau-b leaves out.
    """
    return _ratio(*(np.sum((counts @ b) * counts, axis=1) for b in found))


def resamples(num_cells: int, number: int, draw: np.random.Generator) -> np.ndarray:
    """Counts ``[b, c]`` of cells drawn with replacement."""
    share = np.full(num_cells, 1 / num_cells)
    return draw.multinomial(num_cells, share, size=number).astype(float)


def permutation_band(
    rows: np.ndarray, gap: np.ndarray, number: int, draw: np.random.Generator
) -> np.ndarray:
    """The largest of all rows' ``|tau|`` when gaps belong to other cells.

    Args:
        rows: `signs` of each row of the table, ``[m, c, s, c, s]``.
        gap: `signs` of the gap.
        number: Permutations of cells; the seeds of a cell stay together.
        draw: Their source.

    Returns:
        ``[number]``. What chance alone does to the best of so many rows.
    """
    flat = rows.reshape(len(rows), -1)
    untied = np.sum(np.abs(flat), axis=1, dtype=np.float64)
    all_gaps = np.sum(np.abs(gap), dtype=np.float64)
    scale = np.sqrt(untied * all_gaps)
    largest = []
    for _ in range(number):
        order = draw.permutation(len(gap))
        shuffled = gap[order][:, :, order].ravel()
        with np.errstate(invalid="ignore", divide="ignore"):
            largest.append(np.nanmax(np.abs(flat @ shuffled) / scale))
    return np.array(largest)


class Ceiling(NamedTuple):
    """How well a gap can be predicted at all, through the noise of its seed.

    Attributes:
        between_seeds: Mean tau between the gaps of two seeds.
        from_other_seeds: Mean tau between the gap of one seed and the mean of others.
        fixed_width: As `between_seeds`, over pairs of cells of the same width.
    """

    between_seeds: float
    from_other_seeds: float
    fixed_width: float


def ceiling(gap: np.ndarray, same_width: np.ndarray) -> Ceiling:
    """The noise ceiling of a gap ``[c, s]``, and within pairs of cells ``[c, c]``."""
    seeds = range(gap.shape[1])
    found = [
        blocks(gap[:, [a]], gap[:, [b]]) for a, b in itertools.combinations(seeds, 2)
    ]
    pairs, narrow = ([kendall(f, m) for f in found] for m in (None, same_width))
    others = lambda seed: cell_means(np.delete(gap, seed, axis=1))
    rest = [tau(gap[:, seed], others(seed)) for seed in seeds]
    return Ceiling(*(float(np.mean(taus)) for taus in (pairs, rest, narrow)))


def cell_means(values: np.ndarray) -> np.ndarray:
    """Mean over the seeds of a cell that have a value; NaN where none has."""
    known = ~np.isnan(values)
    number = np.sum(known, axis=1)
    total = np.sum(np.where(known, values, 0), axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def alone(cells: np.ndarray) -> np.ndarray:
    """Pairs of cells that differ in one hyperparameter alone, ``[h, c, c]`` of bool.

    Args:
        cells: Hyperparameters, ``[c, h]``.
    """
    differ = cells[:, None] != cells[None]
    single = np.sum(differ, axis=2, keepdims=True) == 1
    return np.moveaxis(differ & single, 2, 0)


def equal(cells: np.ndarray, place: int) -> np.ndarray:
    """Pairs of networks that share one hyperparameter, ``[c, c]`` of bool."""
    return cells[:, None, place] == cells[None, :, place]
