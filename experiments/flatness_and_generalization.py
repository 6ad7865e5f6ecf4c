"""Flatness and generalization: ``python -m experiments.flatness_and_generalization``.

Does flatness rank networks by how well they generalise? A grid of small networks over
learning rate, batch size, width and weight decay, several seeds a cell, on one training
set, each trained until its training loss falls to the same value; every measure of
`curvature.flatness` on each of them; Kendall's tau of each measure with the gap between
test and training error. Beside it stand the taus that Bisla, Wang & Choromanska
(arXiv:2201.08025) found in 2,916 narrow ResNets on CIFAR-10, what chance does to the
best of so many rows (gaps permuted among cells), and the noise ceiling: the tau between
the gaps of two seeds. Networks here have no normalisation layers, so that measures that
scale with the weights are taken as they are; the study scaled filters to norm one. At
its s = .01 the loss of these networks rises by a tenth only: `lpf` is nearly the loss
at which a network happened to stop (`train loss`, a control), `lpf_rise` is what is
left. Tau-b leaves out pairs that a row holds equal, often the closest ones: rows of few
values (`width`) may lie above the noise ceiling.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.folder import run_command
from experiments.population import networks, page
from experiments.population.ranking import Ranking, rank
from jaxtheory.curvature import flatness

# Fields that stand in the table beside the first one of each measure.
_FURTHER = ("pac_bayes.published", "local_entropy.gradient_norm_squared")
_CONTROLS = ("distance moved", "norm")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        task: "digits", 300 of them for training and the others for testing; or
            "mixture", ten Gaussian clouds in 64 dimensions and fresh test points.
        learning_rates: Of SGD with momentum .9.
        batch_sizes: Examples a step, without replacement within an epoch.
        widths: Units of each of the two hidden layers.
        weight_decays: Coupled: added to the gradient.
        num_seeds: Initialisations and batch orders of each cell.
        num_train: Training examples.
        num_test: Test points of the mixture.
        separation: Distance of its means, in standard deviations.
        stop_loss: Training ends after the first epoch that ends at or below this loss.
        max_steps: Networks that have not got there by then are left out, and counted.
        num_resamples: Bootstrap resamples of cells, and permutations of gaps.
        measures: Rows of `flatness.MEASURES`; empty for all.
        quick: A quarter of the cells, in place of those asked for.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    task: Literal["digits", "mixture"] = "digits"
    learning_rates: tuple[float, ...] = (0.003, 0.007, 0.02, 0.05)
    batch_sizes: tuple[int, ...] = (10, 25, 60, 150)
    widths: tuple[int, ...] = (16, 32, 64)
    weight_decays: tuple[float, ...] = (0.0, 1e-3)
    num_seeds: int = 5
    num_train: int = 300
    num_test: int = 100_000
    separation: float = 4.0
    stop_loss: float = 0.01
    max_steps: int = 6000
    num_resamples: int = 1000
    measures: tuple[str, ...] = ()
    quick: bool = False
    seed: int = 0
    out: Path = Path("runs/flatness_and_generalization")


class Result(NamedTuple):
    """What was measured; ``c`` cells, ``s`` seeds.

    Attributes:
        cells: Hyperparameters, `networks.Cell`, ``[c, 4]``.
        gap: Test less training error ``[c, s]``, NaN for networks that are left out.
        test_loss: Mean test loss, likewise.
        rows: Measures and controls by name, likewise.
        num_excluded: Networks that did not reach the training loss.
        unreliable: By name, how often a measure says of itself that it failed.
        ranking: Correlations with the gap.
    """

    cells: np.ndarray
    gap: np.ndarray
    test_loss: np.ndarray
    rows: dict[str, np.ndarray]
    num_excluded: int
    unreliable: dict[str, int]
    ranking: Ranking


def shortened(config: Config) -> Config:
    """The configuration that ``quick`` stands for."""
    if not config.quick:
        return config
    return dataclasses.replace(
        config,
        learning_rates=(0.003, 0.01, 0.03),
        batch_sizes=(10, 100),
        widths=(16, 32),
        weight_decays=(0.0, 1e-3),
    )


def run(config: Config) -> Result:
    """Train the population, measure it, and rank it.

    Raises:
        ValueError: The configuration cannot be run.
    """
    config = shortened(config)
    _check(config)
    task_key, train_key, measure_key = jax.random.split(jax.random.key(config.seed), 3)
    task = networks.make_task(config, task_key)
    names = tuple(config.measures) or None
    shapes = [*itertools.product(config.widths, config.batch_sizes)]
    keys = jax.random.split(train_key, len(shapes))
    parts = [
        _same_shape(config, task, *shape, names, key, measure_key)
        for shape, key in zip(shapes, keys, strict=True)
    ]
    cells = np.array([cell for part in parts for cell in part[0]], float)
    found = {
        name: np.concatenate([part[1][name] for part in parts]) for name in parts[0][1]
    }
    excluded = ~(found["train loss"] <= config.stop_loss)
    gap = np.where(excluded, np.nan, found["test error"] - found["train error"])
    columns = dict(zip(networks.Cell._fields, cells.T, strict=True))
    rows = {name: found[name] for name in _shown(names)} | {
        name.replace("_", " "): np.broadcast_to(column[:, None], gap.shape)
        for name, column in columns.items()
    }
    rows = {name: np.where(excluded, np.nan, row) for name, row in rows.items()}
    test_loss = np.where(excluded, np.nan, found["test loss"])
    ranking = rank(
        rows,
        gap,
        test_loss,
        cells,
        num_resamples=config.num_resamples,
        seed=config.seed,
    )
    return Result(
        cells,
        gap,
        test_loss,
        rows,
        int(np.sum(excluded)),
        _unreliable(found, ~excluded),
        ranking,
    )


def _check(config):
    cells = [*map(len, (config.learning_rates, config.batch_sizes))]
    cells += [*map(len, (config.widths, config.weight_decays))]
    if np.prod(cells) < 4 or config.num_seeds < 2:
        raise ValueError(
            "there must be at least four cells and two seeds, to correlate, but there "
            f"were {np.prod(cells)} cells and {config.num_seeds} seeds."
        )
    if max(config.batch_sizes) > config.num_train:
        raise ValueError(
            f"`batch_sizes` must be at most the {config.num_train} training examples, "
            f"but were {config.batch_sizes}."
        )


def _shown(names):
    """Rows of the table, but for hyperparameters."""
    chosen = [name for name in flatness.MEASURES if names is None or name in names]
    further = [name for name in _FURTHER if name.split(".")[0] in chosen]
    published = [name for name in networks.AS_PUBLISHED if name.split(".")[0] in chosen]
    return [*chosen, *further, *published, *_CONTROLS, "train loss"]


def _same_shape(config, task, width, batch_size, names, train_key, measure_key):
    """Cells of one width and batch size, and what was found, ``[c, s]`` by name."""
    network = networks.make_network(width, 2, task.num_classes)
    per_epoch = config.num_train // batch_size
    setting = networks.Setting(
        network, batch_size, 0.9, config.stop_loss, -(-config.max_steps // per_epoch)
    )
    decays = jnp.repeat(jnp.array(config.weight_decays), config.num_seeds)
    # Nothing is shared between cells: their noise is independent.
    keys = jax.random.split(train_key, (len(config.learning_rates), len(decays)))
    x, y = task.x_train, task.y_train
    cells, parts = [], []
    # Learning rates apart: all side by side would run as long as the slowest.
    for rate, some in zip(config.learning_rates, keys, strict=True):
        rates = jnp.full(len(decays), rate)
        trained = networks.train(setting, x, y, rates, decays, some)
        found = _found(network.apply_fn, names, trained, task, measure_key)
        parts.append({name: _by_cell(v, config.num_seeds) for name, v in found.items()})
        cells += [
            networks.Cell(rate, batch_size, width, decay)
            for decay in config.weight_decays
        ]
    return cells, {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}


def _found(apply_fn: Any, names: Any, trained: networks.Trained, task: Any, key: Any):
    """Everything about stacked networks, one number each."""
    x, y = task.x_train, task.y_train
    params = trained.params
    found = networks.measure(apply_fn, names, params, trained.initial_params, x, y, key)
    train_error, _ = networks.evaluate(apply_fn, params, x, y)
    test_error, test_loss = networks.evaluate(
        apply_fn, params, task.x_test, task.y_test
    )
    return found | {
        "train loss": trained.loss,
        "train error": train_error,
        "test error": test_error,
        "test loss": test_loss,
    }


def _by_cell(values, num_seeds):
    return np.asarray(values, float).reshape(-1, num_seeds)


def _unreliable(found, counted):
    """How many of the networks that count have a measure that says it failed."""
    says = {
        "epsilon_sharpness: no rise found": (
            "epsilon_sharpness.found",
            lambda v: v < 1,
        ),
        "pac_bayes: no rise found": ("pac_bayes.found", lambda v: v < 1),
        "local_entropy: weights too uneven": (
            "local_entropy.log_weight_deviation",
            lambda v: v > 1,
        ),
    }
    return {
        label: int(np.sum(test(found[name]) & counted))
        for label, (name, test) in says.items()
        if name in found
    }


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows."""
    config = shortened(config)
    num_cells, num_seeds = result.gap.shape
    head = [
        f"{config.task}: {num_cells} cells x {num_seeds} seeds = {result.gap.size} "
        f"networks, {result.num_excluded} of them left out (training loss above "
        f"{config.stop_loss:g} after {config.max_steps:,} steps)",
        f"gap between test and training error {np.nanmin(result.gap):.3f} to "
        f"{np.nanmax(result.gap):.3f}, mean {np.nanmean(result.gap):.3f}",
        *(f"{label}: {number} networks" for label, number in result.unreliable.items()),
    ]
    return "\n".join([*head, "", page.report(result.ranking)])


def draw(config: Config, result: Result) -> Any:
    """Taus with their intervals, and two measures against the gap."""
    return page.draw(result.ranking, result.rows, result.gap, result.cells)


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
