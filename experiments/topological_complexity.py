"""Topology of training paths: ``python -m experiments.topological_complexity --help``.

Does the shape of the path that training takes rank networks by how well they
generalise? A grid of learning rate and batch size, several seeds a cell: SGD until a
network fits every training label, then a window of iterates, recorded as sketches of
the parameters and as losses of the same examples at every step. Of each window, in both
metrics, the lifetime sums E_1 and E_0.5 (Andreeva et al., arXiv:2407.08723), positive
magnitude, the persistent-homology dimension (Birdal et al., arXiv:2111.13171), the
correlation dimension; and the Sharpness Dimension (Tuci et al., arXiv:2604.19740). Each
measure of a path stands beside the same of two null models with the path's steps or its
autocorrelation and no geometry, the path's length, and the plain norm, which Tan et
al. (arXiv:2406.02234) found to rank better than the dimension, as the dimension follows
the learning rate. What chance does to the best of so many rows is printed (gaps
permuted among cells), and how well the gap of one seed predicts that of another.

Positive magnitude is taken at the published scale ``sqrt(n)``, ``n`` the training
examples. The gap is the largest in the window between test and training error, as
theory bounds it.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import tyro

from experiments.folder import run_command
from experiments.population.networks import make_task
from experiments.topology import networks, page, paths
from experiments.topology.paths import Measured, Trees
from experiments.topology.ranking import Ranking, rank

_CONTROLS = ("norm", "distance moved", "train loss")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        task: "digits", 300 of them for training and the others for testing; or
            "mixture", ten Gaussian clouds in 64 dimensions and fresh test points.
        learning_rates: Of plain SGD.
        batch_sizes: Examples a step, without replacement within an epoch.
        num_seeds: Initialisations and batch orders of each cell.
        width: Units of each of the two hidden layers.
        num_train: Training examples.
        num_test: Test points of the mixture.
        separation: Distance of its means, in standard deviations.
        max_steps: Networks that do not fit every label by then are left out.
        num_steps: Steps of the window after that; a multiple of 100, at least 500.
        sketch_dim: Length of a sketch.
        num_losses: Training examples whose losses are recorded.
        num_nulls: Draws of each null model of each path, at least 2.
        num_probes: Of the spectral density of the Hessian.
        num_iterations: Lanczos iterations of each.
        num_resamples: Bootstrap resamples of seeds, and permutations of cells.
        quick: A sixth of the cells and two seeds, in place of those asked for.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    task: Literal["digits", "mixture"] = "digits"
    learning_rates: tuple[float, ...] = (0.01, 0.02, 0.04, 0.07, 0.12, 0.2)
    batch_sizes: tuple[int, ...] = (8, 15, 30, 60, 100, 150)
    num_seeds: int = 5
    width: int = 32
    num_train: int = 300
    num_test: int = 100_000
    separation: float = 4.0
    max_steps: int = 3000
    num_steps: int = 500
    sketch_dim: int = 256
    num_losses: int = 100
    num_nulls: int = 2
    num_probes: int = 10
    num_iterations: int = 50
    num_resamples: int = 1000
    quick: bool = False
    seed: int = 0
    out: Path = Path("runs/topological_complexity")


class Result(NamedTuple):
    """What was measured; ``c`` cells, ``s`` seeds.

    Attributes:
        cells: Learning rate and batch size ``[c, 2]``.
        gap: Of the error ``[c, s]``, NaN for networks that are left out.
        loss_gap: Of the loss.
        rows: Measures and controls by name, of arrays ``[c, s]``.
        num_steps: Steps until every label was fitted.
        num_excluded: Networks that did not fit them, or diverged.
        num_saturated: By metric, magnitudes that saturate at the published scale.
        dimension: Number of parameters ``d``.
        sharpness_error: Standard error of the Sharpness Dimension.
        trees: Lifetimes of one path and of its nulls.
        ranking: Correlations with the gap.
    """

    cells: np.ndarray
    gap: np.ndarray
    loss_gap: np.ndarray
    rows: dict[str, Measured]
    num_steps: np.ndarray
    num_excluded: int
    num_saturated: dict[str, int]
    dimension: int
    sharpness_error: np.ndarray
    trees: Trees
    ranking: Ranking


def shortened(config: Config) -> Config:
    """The configuration that ``quick`` stands for."""
    if not config.quick:
        return config
    return dataclasses.replace(
        config,
        learning_rates=(0.02, 0.07, 0.2),
        batch_sizes=(15, 100),
        num_seeds=2,
        num_test=20_000,
    )


def run(config: Config) -> Result:
    """Train the networks, measure their windows, and rank the measures.

    Raises:
        ValueError: The configuration cannot be run.
    """
    config = shortened(config)
    _check(config)
    keys = jax.random.split(jax.random.key(config.seed), 4)
    task_key, losses_key, train_key, measure_key = keys
    setting = networks.make_setting(
        make_task(config, task_key),
        width=config.width,
        sketch_dim=config.sketch_dim,
        num_losses=config.num_losses,
        max_steps=config.max_steps,
        num_steps=config.num_steps,
        key=losses_key,
    )
    parts = [
        _same_batch_size(
            config,
            setting,
            size,
            jax.random.fold_in(train_key, i),
            jax.random.fold_in(measure_key, i),
        )
        for i, size in enumerate(config.batch_sizes)
    ]
    saturated = {m: sum(part["saturated"][m] for part in parts) for m in paths.METRICS}
    joined = jax.tree.map(
        lambda *arrays: np.concatenate(arrays), *(part["arrays"] for part in parts)
    )
    left_out = ~joined["fitted"]
    known = lambda values: np.where(left_out, np.nan, values)
    rows = {row: Measured(*map(known, m)) for row, m in joined["rows"].items()}
    cells = np.array([*itertools.product(config.batch_sizes, config.learning_rates)])
    cells = cells[:, ::-1]
    gap, loss_gap = known(joined["gap"]), known(joined["loss gap"])
    return Result(
        cells,
        gap,
        loss_gap,
        rows,
        joined["num_steps"],
        int(np.sum(left_out)),
        saturated,
        parts[0]["dimension"],
        known(joined["sharpness error"]),
        parts[len(parts) // 2]["trees"],
        rank(
            rows,
            gap,
            loss_gap,
            cells,
            num_resamples=config.num_resamples,
            seed=config.seed,
        ),
    )


def _check(config):
    num_cells = len(config.learning_rates) * len(config.batch_sizes)
    if num_cells < 4 or config.num_seeds < 2:
        raise ValueError(
            "there must be at least four cells and two seeds, to correlate, but there "
            f"were {num_cells} cells and {config.num_seeds} seeds."
        )
    if max(config.batch_sizes) > config.num_train:
        raise ValueError(
            f"`batch_sizes` must be at most the {config.num_train} training examples, "
            f"but were {config.batch_sizes}."
        )
    if config.num_steps < 500 or config.num_steps % 100:
        raise ValueError(
            "`num_steps` must be a multiple of 100 and at least 500, for dimensions, "
            f"but was {config.num_steps}."
        )


def _same_batch_size(config, setting, batch_size, train_key, measure_key):
    """Everything about the cells of one batch size, arrays ``[rates, s]``."""
    rates = np.repeat(np.array(config.learning_rates, np.float32), config.num_seeds)
    window = networks.train(setting, batch_size, rates, train_key)
    paths_key, tree_key, probes_key = jax.random.split(measure_key, 3)
    rows, saturated = paths.measure_all(
        window, config.num_nulls, config.num_train, paths_key
    )
    sharpness = networks.sharpness_dimension(
        setting.network.apply_fn,
        window.params,
        setting.task.x_train,
        setting.task.y_train,
        rates,
        config.num_probes,
        config.num_iterations,
        probes_key,
    )
    alone = {name: window.found[name] for name in _CONTROLS} | {
        "sharpness dimension": np.asarray(sharpness.value),
        "learning rate": rates,
        "batch size": np.full(len(rates), batch_size),
    }
    nothing = np.full(len(rates), np.nan)
    rows |= {name: Measured(v, nothing, nothing) for name, v in alone.items()}
    arrays = {
        "rows": rows,
        "fitted": window.fitted,
        "num_steps": window.num_steps,
        "gap": window.found["gap"],
        "loss gap": window.found["loss gap"],
        "sharpness error": np.asarray(sharpness.standard_error),
    }
    by_cell = lambda values: np.reshape(values, (-1, config.num_seeds))
    return {
        "arrays": jax.tree.map(by_cell, arrays),
        "saturated": saturated,
        "dimension": sum(a[0].size for a in jax.tree.leaves(window.params)),
        "trees": paths.trees(window, len(rates) // 2, config.num_nulls, tree_key),
    }


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows."""
    return page.report(shortened(config), result)


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, page.draw)


if __name__ == "__main__":
    main()
