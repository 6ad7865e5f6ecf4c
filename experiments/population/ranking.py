"""How well each measure ranks the networks of a population by their gap."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.population.correlation import (
    Ceiling,
    alone,
    ceiling,
    equal,
    resamples,
    tau,
)
from jaxtheory.bounds.evaluate import (
    PairSums,
    cell_means,
    pair_sums,
    permutation_band,
    resampled_tau,
    tau_b,
)


class Correlation(NamedTuple):
    """Kendall tau-b of one measure, all with the gap unless said otherwise.

    Attributes:
        pooled: Over all pairs of networks.
        error: Its standard error, over resamples of cells.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        test_loss: With the test loss in place of the gap.
        cell_means: Of means over the seeds of a cell.
        within_seeds: Mean over seeds of that among the networks of one seed.
        within_error: Standard error of it, over seeds.
        fixed_rate: Over pairs of networks with the same learning rate.
        fixed_width: Over pairs of networks with the same width.
        alone: Over pairs whose cells differ in one hyperparameter alone, mean over
            hyperparameters (the granulated coefficient of Jiang et al.).
        learning_rate: Of the measure with the learning rate.
    """

    pooled: float
    error: float
    low: float
    high: float
    test_loss: float
    cell_means: float
    within_seeds: float
    within_error: float
    fixed_rate: float
    fixed_width: float
    alone: float
    learning_rate: float


class Ranking(NamedTuple):
    """Correlations of all rows, and what chance and noise do.

    Attributes:
        correlations: By row of the table.
        alone: By row, that over pairs of cells that differ in each hyperparameter.
        samples: By row, `pooled` in resamples of cells, the same for all rows.
        band: 95 % quantile of the largest ``|pooled|`` of all rows under permuted gaps.
        ceiling: How well gaps predict gaps.
        rate_samples: By row, `learning_rate` in the same resamples.
    """

    correlations: dict[str, Correlation]
    alone: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    band: float
    ceiling: Ceiling
    rate_samples: dict[str, np.ndarray]


def rank(
    rows: dict[str, np.ndarray],
    gap: np.ndarray,
    test_loss: np.ndarray,
    cells: np.ndarray,
    *,
    num_resamples: int,
    seed: int,
) -> Ranking:
    """Correlate every row with the gap.

    Args:
        rows: Measures by name, ``[c, s]``.
        gap: Test less training error, NaN for networks that are left out.
        test_loss: Mean test loss.
        cells: Hyperparameters ``[c, h]``: learning rate, batch size, width, others.
        num_resamples: Resamples of cells, and permutations of gaps.
        seed: Of those.
    """
    draw = np.random.default_rng(seed)
    counts = resamples(len(gap), num_resamples, draw)
    rate = np.broadcast_to(cells[:, :1], gap.shape)
    pairs = {name: pair_sums(values, gap) for name, values in rows.items()}
    rates = {name: pair_sums(values, rate) for name, values in rows.items()}
    single = alone(cells)
    granulated = {
        name: np.array([tau_b(found, mask) for mask in single])
        for name, found in pairs.items()
    }
    samples = {name: resampled_tau(found, counts) for name, found in pairs.items()}
    correlations = {
        name: _correlation(
            values, gap, test_loss, cells, pairs[name], samples[name], granulated[name]
        )._replace(learning_rate=tau_b(rates[name]))
        for name, values in rows.items()
    }
    band = permutation_band(
        rows, gap, num_permutations=num_resamples, key=jax.random.key(seed)
    )
    return Ranking(
        correlations,
        granulated,
        samples,
        band.band,
        ceiling(gap, equal(cells, 2)),
        {name: resampled_tau(found, counts) for name, found in rates.items()},
    )


def _correlation(
    values: np.ndarray,
    gap: np.ndarray,
    test_loss: np.ndarray,
    cells: np.ndarray,
    found: PairSums,
    samples: np.ndarray,
    granulated: np.ndarray,
) -> Correlation:
    """All but that with the learning rate."""
    seeds = range(gap.shape[1])
    known = np.where(np.isnan(gap), np.nan, values)
    within = np.array([tau(known[:, seed], gap[:, seed]) for seed in seeds])
    samples = samples[~np.isnan(samples)]
    low, high = np.quantile(samples, (0.025, 0.975)) if len(samples) else [np.nan] * 2
    means = tau(cell_means(known), cell_means(gap))
    # A row that is a hyperparameter is constant where that does not vary.
    varying = granulated[~np.isnan(granulated)]
    return Correlation(
        pooled=tau_b(found),
        error=float(np.std(samples, ddof=1)) if len(samples) > 1 else np.nan,
        low=float(low),
        high=float(high),
        test_loss=tau_b(pair_sums(known, test_loss)),
        cell_means=means,
        within_seeds=float(np.mean(within)),
        within_error=float(np.std(within, ddof=1) / np.sqrt(len(within))),
        fixed_rate=tau_b(found, equal(cells, 0)),
        fixed_width=tau_b(found, equal(cells, 2)),
        alone=float(np.mean(varying)) if len(varying) else np.nan,
        learning_rate=np.nan,
    )
