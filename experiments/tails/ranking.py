"""How the tails of networks rank with eta over b and with their gap."""

from typing import Any, NamedTuple

import numpy as np

from experiments.population.correlation import alone, resamples
from jaxtheory.bounds.evaluate import pair_sums, resampled_tau, tau_b

LEVEL = 0.05  # of the test of the stable law
OBSERVED = {
    "steps": "log-moments of steps",
    "steps_hill": "Hill of steps",
    "weights": "log-moments of mean weights",
    "spectrum": "exponent of the spectrum",
}


class Rank(NamedTuple):
    """Kendall tau-b of an index, mean over layers.

    Attributes:
        ratio: With ``eta / b``.
        error: Its standard error, over resamples of cells.
        low: Lower end of its 95 % interval.
        high: Upper end.
        layers: With ``eta / b``, layer by layer.
        rate: Over pairs of cells that differ in ``eta`` alone, with ``eta``.
        batch: In ``b`` alone, with ``1 / b``.
        gap: With test less training error.
        gap_error: Its standard error.
    """

    ratio: float
    error: float
    low: float
    high: float
    layers: list[float]
    rate: float
    batch: float
    gap: float
    gap_error: float


def fitted(found: Any) -> np.ndarray:
    """Networks that came to 100 % training accuracy, ``[c, s]``."""
    return found.reached >= 0


def gap(found: Any) -> np.ndarray:
    """Test less training error; NaN of networks that were not fitted."""
    return np.where(fitted(found), found.test_error - found.train_error, np.nan)


def ranks(config: Any, found: Any) -> dict[str, Rank]:
    """Rank correlation of each index with eta over b and with the gap."""
    draws = np.random.default_rng(config.seed)
    counts = resamples(len(found.cells), config.num_resamples, draws)
    return {name: _rank(found, getattr(found, name), counts) for name in OBSERVED}


def _rank(found, index, counts):
    rate_alone, batch_alone = alone(found.cells)
    ratio = (found.cells[:, :1] / found.cells[:, 1:]) + 0 * gap(found)
    layers, samples, rates, batches, gaps, gap_samples = [], [], [], [], [], []
    for layer in range(index.shape[-1]):
        values = np.where(fitted(found), index[..., layer], np.nan)
        if np.all(np.isnan(values)):  # no spectrum of so few eigenvalues
            continue
        pairs, with_gap = pair_sums(values, ratio), pair_sums(values, gap(found))
        layers.append(float(tau_b(pairs)))
        samples.append(resampled_tau(pairs, counts))
        rates.append(tau_b(pairs, rate_alone))
        batches.append(tau_b(pairs, batch_alone))
        gaps.append(tau_b(with_gap))
        gap_samples.append(resampled_tau(with_gap, counts))
    if not layers:
        nan = float("nan")
        return Rank(nan, nan, nan, nan, [], nan, nan, nan, nan)
    means = np.mean(samples, axis=0)
    means = means[np.isfinite(means)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Rank(
        float(np.mean(layers)),
        float(np.std(means, ddof=1)),
        float(low),
        float(high),
        layers,
        float(np.mean(rates)),
        float(np.mean(batches)),
        float(np.mean(gaps)),
        float(np.nanstd(np.mean(gap_samples, axis=0), ddof=1)),
    )


def accepted(found: Any, name: str) -> tuple[float, float]:
    """Share of layers whose stable law is not rejected, and its error over cells."""
    p = getattr(found, name)
    known = np.isfinite(p) & fitted(found)[..., None]
    by_cell = [
        np.mean(row[use] >= LEVEL)
        for row, use in zip(p, known, strict=True)
        if use.any()
    ]
    return float(np.mean(by_cell)), float(np.std(by_cell, ddof=1) / len(by_cell) ** 0.5)
