"""How well each measure of a path ranks networks by their gap, and given what."""

import math
from typing import NamedTuple

import jax
import numpy as np

from experiments.population.correlation import alone, equal
from experiments.topology.paths import LENGTH, Measured, name
from jaxtheory.bounds.evaluate import (
    noise_ceiling,
    pair_sums,
    partial_tau,
    permutation_band,
    resampled_tau,
    tau_b,
)


class Correlation(NamedTuple):
    """Kendall's tau-b of one measure with the gap; NaN where there is none.

    Attributes:
        pooled: Over all pairs of networks.
        low: Lower end of its 95 % bootstrap interval, over seeds within cells.
        high: Upper end.
        learning_rates: Over pairs of cells that differ in the learning rate alone.
        batch_sizes: Over those that differ in the batch size alone.
        given_rate: Partial tau given the learning rate.
        given_length: Partial tau given the path length in the same metric.
        with_rate: Of the measure with the learning rate.
        loss_gap: With the gap of the loss in place of that of the error.
        flipped: Of the same measure of null A in place of the path.
        ou: Of that of null B.
    """

    pooled: float
    low: float
    high: float
    learning_rates: float
    batch_sizes: float
    given_rate: float
    given_length: float
    with_rate: float
    loss_gap: float
    flipped: float
    ou: float


class Samples(NamedTuple):
    """Some of that in resamples of seeds, the same for all rows, ``[b]`` each."""

    pooled: np.ndarray
    given_rate: np.ndarray
    given_length: np.ndarray


class Ceiling(NamedTuple):
    """How well gaps predict gaps.

    Attributes:
        between_seeds: Mean tau between the gaps of two seeds.
        from_other_seeds: Mean tau between the gap of a seed and the mean of others.
        fixed_rate: As `between_seeds`, over pairs of cells of one learning rate.
    """

    between_seeds: float
    from_other_seeds: float
    fixed_rate: float


class Ranking(NamedTuple):
    """Correlations of all rows, and what chance and noise do.

    Attributes:
        correlations: By row.
        samples: By row.
        band: 95 % quantile of the largest ``|pooled|`` of all rows when gaps belong to
            other cells.
        ceiling: How well gaps predict gaps.
    """

    correlations: dict[str, Correlation]
    samples: dict[str, Samples]
    band: float
    ceiling: Ceiling


def rank(
    rows: dict[str, Measured],
    gap: np.ndarray,
    loss_gap: np.ndarray,
    cells: np.ndarray,
    *,
    num_resamples: int,
    seed: int,
) -> Ranking:
    """Correlate every row with the gap.

    Args:
        rows: Measures by name, of arrays ``[c, s]``; path lengths among them.
        gap: Of the error, NaN for networks that are left out.
        loss_gap: Of the loss.
        cells: Learning rate and batch size, ``[c, 2]``.
        num_resamples: Resamples of seeds, and permutations of cells.
        seed: Of those.
    """
    draw = np.random.default_rng(seed)
    counts = _resamples(gap.shape, num_resamples, draw)
    rate = np.broadcast_to(cells[:, :1], gap.shape)
    by_rate, by_batch = alone(cells)
    correlations, samples = {}, {}
    for row, found in rows.items():
        length = rows[name(LENGTH, "loss" if "(losses)" in row else "euclidean")].value
        three = (found.value, gap, rate), (found.value, gap, length)
        pooled, given_rate = _partial(*three[0], counts)
        given_length = _partial(*three[1], counts)[1]
        samples[row] = Samples(pooled[1:], given_rate[1:], given_length[1:])
        whole = pair_sums(found.value, gap)
        tau = lambda a, b: tau_b(pair_sums(a, b))
        low, high = _interval(pooled[1:])
        correlations[row] = Correlation(
            float(pooled[0]),
            low,
            high,
            tau_b(whole, by_rate),
            tau_b(whole, by_batch),
            float(given_rate[0]),
            float(given_length[0]),
            tau(found.value, rate),
            tau(found.value, loss_gap),
            tau(found.flipped, gap),
            tau(found.ou, gap),
        )
    values = {row: found.value for row, found in rows.items()}
    band = permutation_band(
        values, gap, num_permutations=num_resamples, key=jax.random.key(seed)
    )
    limit = noise_ceiling(gap, equal(cells, 0))
    return Ranking(
        correlations,
        samples,
        band.band,
        Ceiling(limit.between_seeds, limit.from_other_seeds, limit.within),
    )


def _resamples(shape, number, draw):
    """How often each resample holds each network, ``[1 + b, c s]``; first all once."""
    num_cells, num_seeds = shape
    share = np.full(num_seeds, 1 / num_seeds)
    drawn = draw.multinomial(num_seeds, share, size=(number, num_cells))
    once = np.ones((1, num_cells * num_seeds))
    return np.concatenate([once, drawn.reshape(number, -1)])


def _interval(samples):
    """The 95 % interval; NaN for a constant row."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _partial(left, right, given, counts):
    """Tau and partial tau of two quantities given a third, in each resample."""
    known = ~np.isnan(left + right + given)
    columns = [
        np.where(known, values, np.nan).reshape(-1, 1)
        for values in (left, right, given)
    ]
    matrix = np.broadcast_to(np.eye(3), (len(counts), 3, 3)).copy()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        taus = resampled_tau(pair_sums(columns[a], columns[b]), counts)
        matrix[:, a, b] = matrix[:, b, a] = taus
    return matrix[:, 0, 1], partial_tau(matrix)
