"""What studies of populations share besides `bounds.evaluate`.

Arrays of a population are ``[c, s]``: cells and seeds.
"""

from typing import NamedTuple

import numpy as np

from jaxtheory.bounds.evaluate import (
    differ_in_one,
    noise_ceiling,
    pair_sums,
    tau_b,
)


def tau(left: np.ndarray, right: np.ndarray) -> float:
    """Kendall's tau-b of two arrays; NaN where one of them is constant."""
    return tau_b(pair_sums(left[:, None], right[:, None]))


def resamples(num_cells: int, number: int, draw: np.random.Generator) -> np.ndarray:
    """Counts ``[b, c]`` of cells drawn with replacement."""
    share = np.full(num_cells, 1 / num_cells)
    return draw.multinomial(num_cells, share, size=number).astype(float)


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
    return Ceiling(*noise_ceiling(gap, same_width)[:3])


def alone(cells: np.ndarray) -> np.ndarray:
    """Pairs of cells that differ in one hyperparameter alone, ``[h, c, c]`` of bool.

    Args:
        cells: Hyperparameters, ``[c, h]``.
    """
    return differ_in_one({str(i): column for i, column in enumerate(cells.T)})


def equal(cells: np.ndarray, place: int) -> np.ndarray:
    """Pairs of networks that share one hyperparameter, ``[c, c]`` of bool."""
    return cells[:, None, place] == cells[None, :, place]
