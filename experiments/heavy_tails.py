"""Do tails get heavier with eta/b? ``python -m experiments.heavy_tails --help``.

Gurbuzbalaban, Simsekli & Zhu (arXiv:2006.04740) prove it where they can: SGD on linear
regression with fresh Gaussian batches is a random recursion, and its stationary law has
the power-law tail that Kesten's equation says, of infinite variance from a learning
rate on that full-batch gradient descent would not notice. Here chains are held against
that equation. On networks they fit a stable law to what SGD leaves behind and read the
same off its index. Here the index stands beside a test of that law.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro

from experiments.folder import run_command
from experiments.tails import networks, page, regression
from jaxtheory import data
from jaxtheory.dynamics import tails


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        dimensions: Of the regressions, each at each batch size.
        regression_batch_sizes: Their batch sizes.
        rates: Learning rates, over the one at which the index is 2; at the last there
            should be no stationary law.
        num_chains: Independent chains of each.
        num_steps: Their steps; 20 records are taken.
        num_tails: Numbers of tail points of Hill's estimator.
        variance_rates: Learning rates at which the stationary variance is compared, at
            ten dimensions and batch size 5.
        widths: Hidden layers of the networks on digits.
        learning_rates: Of SGD.
        batch_sizes: Of SGD.
        num_seeds: Networks of each cell of the grid, at least 2.
        num_train: Digits to train on; the others are the test set.
        max_steps: By which training accuracy has to be 100 %.
        window: Steps after that, all of whose iterates are kept.
        num_bootstrap: Samples of the test of the stable law.
        num_resamples: Resamples of cells, for the intervals of rank correlations.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    dimensions: tuple[int, ...] = (1, 2)
    regression_batch_sizes: tuple[int, ...] = (1, 2)
    rates: tuple[float, ...] = (0.7, 1.0, 1.2, 1.4, 5.0)
    num_chains: int = 100_000
    num_steps: int = 200
    num_tails: tuple[int, ...] = (100, 400, 1600)
    variance_rates: tuple[float, ...] = (0.46875, 0.5625)
    widths: tuple[int, ...] = (32, 32)
    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    batch_sizes: tuple[int, ...] = (5, 10, 20, 50)
    num_seeds: int = 3
    num_train: int = 300
    max_steps: int = 6000
    window: int = 2000
    num_bootstrap: int = 199
    num_resamples: int = 1000
    seed: int = 0
    out: Path = Path("runs/heavy_tails")


class Result(NamedTuple):
    """What was measured and predicted.

    Attributes:
        chains: Every regression.
        curves: By dimension and batch size, learning rates and Kesten's index.
        hill: Hill plot of the first regression with a rate of 1 (index 2).
        variances: Stationary variances.
        networks: The networks on digits.
    """

    chains: list[regression.Tail]
    curves: dict[tuple[int, int], np.ndarray]
    hill: tails.HillPlot
    variances: list[regression.Variance]
    networks: networks.Networks


def run(config: Config) -> Result:
    """Run the chains, then the networks.

    Raises:
        ValueError: There are fewer than two seeds, no rate is 1, or steps do not make
            20 records.
    """
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for a noise ceiling, but was "
            f"{config.num_seeds}."
        )
    if 1.0 not in config.rates:
        raise ValueError(
            "`rates` must hold 1, where the index is 2 exactly, but was "
            f"{config.rates}."
        )
    if config.num_steps % 20 or config.num_steps < 20:
        raise ValueError(
            f"`num_steps` must be a multiple of 20, but was {config.num_steps}."
        )
    keys = jax.random.split(jax.random.key(config.seed), 4)
    chains, curves, hill = _regressions(config, keys[0])
    variances = regression.stationary_variance(
        config.variance_rates,
        10,
        5,
        num_chains=config.num_chains // 5,
        num_steps=config.num_steps,
        key=keys[1],
    )
    digits = data.digits(num_train=config.num_train, key=keys[2])
    return Result(
        chains, curves, hill, variances, networks.grid(config, digits, keys[3])
    )


def _regressions(config, key):
    """Every regression, curves of theory, and a Hill plot where the index is 2."""
    chains, curves, plots = [], {}, []
    shapes = [(d, b) for d in config.dimensions for b in config.regression_batch_sizes]
    for index, (d, b) in enumerate(shapes):
        rates = regression.critical_rate(d, b) * np.asarray(config.rates)
        found, last = regression.measure(
            rates.tolist(),
            d,
            b,
            num_tails=config.num_tails,
            num_chains=config.num_chains,
            num_steps=config.num_steps,
            key=jax.random.fold_in(key, index),
        )
        chains += found
        at_two = last[config.rates.index(1.0)]
        plots.append(
            tails.hill_plot(at_two, max_tail=config.num_chains // 10, centre="none")
        )
        stationary = [tail for tail in found if np.isfinite(tail.theory)]
        ends = [tail.learning_rate for tail in stationary]
        grid = np.linspace(min(ends), max(ends), 9)
        index_at = lambda rate, d=d, b=b: (
            tails.linear_regression_tail_index(rate, dimension=d, batch_size=b).value
        )
        curves[d, b] = np.array([(rate, index_at(rate)) for rate in grid])
    return chains, curves, plots[0]


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
