"""Measures of generalization on a zoo: ``python -m experiments.generalization_bounds``.

Which of the numbers that `bounds.measures` reads off a trained network says how well it
generalises? A full factorial design of two tasks, four shares of random labels, two
optimizers, and two levels each of learning rate, batch size, width and weight decay,
five seeds a cell, all trained to the same loss; every measure of every network; and the
protocol of `bounds.evaluate`: Kendall's tau with the gap of the error, granulated,
conditional mutual information, partial tau given the learning rate, sign error in the
worst environment (Jiang et al., arXiv:1912.02178; Dziugaite et al., arXiv:2010.11924),
each beside what chance does to the best of so many measures and what the noise of seeds
allows; where the variance of gap and measures comes from; and what it costs to choose
among the networks of one data set by a measure.

The ledger (``networks.csv``, one row a network) grows by groups of networks that share
a program, a file each: started again with the same ``--out``, the script goes on where
it was stopped, and ends with the same ledger. ``mbe_eval.csv`` is the same population
as the package mbe-eval reads it.
"""

import os

# NumPy's many small products here are three times slower on several threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from experiments.folder import run_command
from experiments.zoo import design, ledger, networks, page, ranking
from experiments.zoo.ranking import Ranking


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        tasks: "digits", 300 of them for training and 1,497 for testing; "mixture", ten
            Gaussian clouds in 64 dimensions and fresh test points.
        label_noises: Shares of training labels that are drawn at random.
        optimizers: "sgd" (momentum .9, coupled decay) and "adam" (decoupled decay).
        rate_factors: Times the base learning rate, .005 and .001.
        batch_sizes: Examples a step, without replacement within an epoch.
        widths: Units of each of the two hidden layers.
        decay_factors: Times the base weight decay, .001 and .1.
        num_seeds: Initialisations and batch orders of each cell.
        num_train: Training examples.
        num_test: Test points of the mixture.
        num_validation: Test examples that validation sees, for model selection.
        separation: Distance of the mixture's means, in standard deviations.
        stop_loss: Training ends when the mean training loss is at or below it.
        max_steps: Networks that have not got there by then stay in the ledger and out
            of the rankings.
        num_path_steps: Iterates after that, recorded as sketches.
        sketch_dim: Length of a sketch.
        num_resamples: Bootstrap resamples, and permutations.
        quick: A tenth of the networks, in place of those asked for.
        seed: Seed of everything.
        out: Folder for ledger, numbers and figure.
    """

    tasks: tuple[Literal["digits", "mixture"], ...] = ("digits", "mixture")
    label_noises: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)
    optimizers: tuple[Literal["sgd", "adam"], ...] = ("sgd", "adam")
    rate_factors: tuple[float, ...] = (1.0, 4.0)
    batch_sizes: tuple[int, ...] = (15, 75)
    widths: tuple[int, ...] = (32, 64)
    decay_factors: tuple[float, ...] = (0.0, 1.0)
    num_seeds: int = 5
    num_train: int = 300
    num_test: int = 100_000
    num_validation: int = 100
    separation: float = 4.0
    stop_loss: float = 0.05
    max_steps: int = 8000
    num_path_steps: int = 200
    sketch_dim: int = 128
    num_resamples: int = 200
    quick: bool = False
    seed: int = 0
    out: Path = Path("runs/generalization_bounds")


class Result(NamedTuple):
    """What was measured; ``c`` cells, ``s`` seeds.

    Attributes:
        cells: Hyperparameters by name, ``[c]``.
        gap: Test less training error ``[c, s]``, NaN for networks left out.
        test_error: Likewise.
        rows: Measures by name, likewise.
        excluded: Networks that did not reach the training loss: cell and seed.
        num_diverged: Those of them whose loss was not finite.
        num_nonfinite: By measure, networks in which it is not finite; of the others.
        ranking: What the measures tell of the gap.
    """

    cells: dict[str, np.ndarray]
    gap: np.ndarray
    test_error: np.ndarray
    rows: dict[str, np.ndarray]
    excluded: list[tuple[int, int]]
    num_diverged: int
    num_nonfinite: dict[str, int]
    ranking: Ranking


def shortened(config: Config) -> Config:
    """The configuration that ``quick`` stands for."""
    if not config.quick:
        return config
    return dataclasses.replace(
        config,
        tasks=("digits",),
        label_noises=(0.0, 0.5),
        widths=(32,),
        num_seeds=3,
        max_steps=3000,
    )


def run(config: Config) -> Result:
    """Train and measure what the ledger lacks, and rank the measures.

    Raises:
        ValueError: The configuration cannot be run.
    """
    config = shortened(config)
    _check(config)
    rows = population(config)
    ledger.write_rows(Path(config.out) / "networks.csv", rows)
    column = lambda name: ledger.table(rows, name)
    excluded = ~(column("reached") > 0)
    known = lambda values: np.where(excluded, np.nan, values)
    names = [*rows[0]][[*rows[0]].index("gap") + 1 :]
    names = [name for name in names if name != "num_nonfinite"]
    found = {name: known(column(name)) for name in names}
    infinite = {n: int(np.sum(~np.isfinite(v) & ~excluded)) for n, v in found.items()}
    found = {n: np.where(np.isfinite(v), v, np.nan) for n, v in found.items()}
    cells = design.all_cells(config)
    columns = [np.array(values) for values in zip(*cells, strict=True)]
    factors: dict[str, np.ndarray] = dict(zip(design.FACTORS, columns, strict=True))
    gap = known(column("gap"))
    errors = ranking.Errors(
        gap,
        known(column("error beside validation")),
        known(column("validation error")),
    )
    ranked = ranking.rank(
        found, errors, factors, num_resamples=config.num_resamples, seed=config.seed
    )
    ranking.write_csv(Path(config.out) / "mbe_eval.csv", found, gap, factors)
    return Result(
        factors,
        gap,
        known(column("test error")),
        found,
        [(int(c), int(s)) for c, s in np.argwhere(excluded)],
        int(np.sum(column("diverged"))),
        {name: number for name, number in infinite.items() if number},
        ranked,
    )


def population(config: Config) -> list[dict[str, Any]]:
    """Rows of all networks; trains those whose group has no file yet."""
    folder = Path(config.out) / "groups"
    settings = dataclasses.asdict(config)
    free = ("out", "quick", "num_resamples")
    ledger.begin(folder, _plain({n: v for n, v in settings.items() if n not in free}))
    to_task, to_groups = jax.random.split(jax.random.key(config.seed))
    groups, tasks, rows = design.all_groups(config), {}, []
    for group in groups:
        file = folder / f"{group.number:03d}-{group.name}.csv"
        if not file.exists():
            cell = next(iter(group.cells.values()))
            data = (cell.task, cell.label_noise)
            if data not in tasks:
                own = jax.random.fold_in(to_task, config.tasks.index(cell.task))
                tasks[data] = networks.make_data(config, *data, own)
            key, start = jax.random.fold_in(to_groups, group.number), time.monotonic()
            ledger.write_rows(file, networks.run_group(config, group, tasks[data], key))
            seconds = time.monotonic() - start
            print(f"{group.name}, of {len(groups)} groups: {seconds:.1f} s", flush=True)
        rows += ledger.read_rows(file)
    return sorted(rows, key=lambda row: (row["cell"], row["seed"]))


def _plain(settings):
    """As JSON gives it back."""
    return {n: [*v] if isinstance(v, tuple) else v for n, v in settings.items()}


def _check(config):
    cells = design.all_cells(config)
    if len(cells) < 4 or config.num_seeds < 2:
        raise ValueError(
            "there must be at least four cells and two seeds, to correlate, but there "
            f"were {len(cells)} cells and {config.num_seeds} seeds."
        )
    if len({*cells}) < len(cells):
        raise ValueError("the levels of a factor must be distinct, but some were not.")
    if max(config.batch_sizes) > config.num_train:
        raise ValueError(
            f"`batch_sizes` must be at most the {config.num_train} training examples, "
            f"but were {config.batch_sizes}."
        )


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows."""
    return page.report(shortened(config), result)


def draw(config: Config, result: Result) -> Any:
    """Taus, variance by source, and the best measure against the gap."""
    del config
    return page.draw(result)


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
