"""Rank correlations over a pool whose networks come from runs, with intervals.

Networks that one run left at several stops are not independent: resamples draw runs,
all stops of one together.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats


class Correlation(NamedTuple):
    """A number and what resampling makes of it.

    Attributes:
        value: The correlation.
        samples: The same in each resample; NaN where one of the two is constant there.
    """

    value: float
    samples: np.ndarray

    @property
    def error(self) -> float:
        """Standard error."""
        known = self.samples[~np.isnan(self.samples)]
        return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """From the 2.5 to the 97.5 % quantile of the samples."""
        if np.all(np.isnan(self.samples)):
            return float("nan"), float("nan")
        low, high = np.nanquantile(self.samples, (0.025, 0.975))
        return float(low), float(high)


def resamples(
    num_runs: int, num_stops: int, number: int, draw: np.random.Generator
) -> np.ndarray:
    """Indices ``[1 + number, networks]``: the pool itself, then draws of runs.

    Args:
        num_runs: Runs; a network's index is ``run * num_stops + stop``.
        num_stops: Networks that each run left.
        number: Resamples.
        draw: Their source.
    """
    drawn = draw.integers(0, num_runs, (number, num_runs))
    runs = np.concatenate([np.arange(num_runs)[None], drawn])
    rows = runs[:, :, None] * num_stops + np.arange(num_stops)
    return rows.reshape(len(runs), -1)


def ranks(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Standardised ranks in each resample; NaN where all values are equal."""
    # Ranks have the precision of what is ranked.
    values = np.asarray(values, np.float64)
    found = scipy.stats.rankdata(values[indices], axis=1)
    found = found - found.mean(axis=1, keepdims=True)
    scale = found.std(axis=1, keepdims=True)
    return np.where(scale > 0, found / np.where(scale > 0, scale, 1), np.nan)


def spearman(left: np.ndarray, right: np.ndarray) -> Correlation:
    """Spearman's correlation of two arrays of `ranks`."""
    found = np.mean(left * right, axis=1)
    return Correlation(float(found[0]), found[1:])


def partial_spearman(
    left: np.ndarray, right: np.ndarray, given: np.ndarray
) -> Correlation:
    """Correlation of what is left of two ranks when that of a third is regressed out.

    NaN where the third determines one of the two.
    """
    a, b, c = (
        np.mean(x * y, axis=1)
        for x, y in ((left, right), (left, given), (right, given))
    )
    scale = (1 - b**2) * (1 - c**2)
    safe = scale > 1e-12
    found = np.where(safe, (a - b * c) / np.sqrt(np.where(safe, scale, 1)), np.nan)
    return Correlation(float(found[0]), found[1:])


def average(correlations: list[Correlation]) -> Correlation:
    """Mean over tasks, in the same resamples; of those that have a number."""
    value = np.array([one.value for one in correlations])
    samples = np.array([one.samples for one in correlations])
    return Correlation(_mean(value), np.array([_mean(column) for column in samples.T]))


def _mean(numbers):
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if len(known) else float("nan")


def mean(values: np.ndarray, indices: np.ndarray) -> Correlation:
    """Mean over the pool of one number a network, in the same resamples."""
    found = np.mean(values[indices], axis=1)
    return Correlation(float(found[0]), found[1:])
