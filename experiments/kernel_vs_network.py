"""Kernel against network: ``python -m experiments.kernel_vs_network --help``.

On the same training examples: a ReLU network trained with Adam, its linearisation
trained likewise, and kernel regression with its tangent kernel before and after
training, with both kernels of its infinite-width limit, and with a recursive feature
machine. Test error against the number of examples, on tasks of a few hidden directions
and on digits.

Fair by default: one architecture, of two hidden layers (of one, the ReLU tangent kernel
hardly sees odd functions beyond linear ones), gives network and kernels; all methods
choose among equally many candidates on the same validation examples, which nobody
trains on; every seed draws new data, hidden directions and initialisation, and
differences are paired over seeds.
"""

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import matplotlib.pyplot as plt
import tyro
from tqdm import tqdm

from experiments.comparison.learners import Candidates, Setting, compare
from experiments.comparison.page import draw, tables, write_rows
from experiments.comparison.summary import TaskResult, collect, verdict
from experiments.comparison.tasks import Sizes, TaskName, draw_task
from experiments.folder import write_folder


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        tasks: Which tasks: ``he2`` and ``he3`` (Hermite polynomials of one direction),
            ``multi2`` and ``multi3`` (of two and three directions; the digit is the
            information exponent), ``parity3``, ``staircase3`` (signs), ``digits``.
        sizes: Numbers ``n`` of training examples, ascending.
        num_seeds: Data sets and initialisations, at least 2.
        widths: Hidden layers of the network and, infinitely wide, of its limit.
        num_steps: Steps of training.
        batch_size: Examples a step.
        num_updates: Updates of the metric of recursive feature machines.
        gaussian_dim: Dimension of Gaussian inputs.
        boolean_dim: Dimension of inputs of signs.
        num_validation: Examples on which options are chosen, beside the ``n``.
        num_test: Test examples; of the digits, all others.
        quick: Two tasks, three seeds and small sizes, in place of those asked for.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    tasks: tuple[TaskName, ...] = (
        "he2",
        "he3",
        "multi2",
        "parity3",
        "staircase3",
        "digits",
    )
    sizes: tuple[int, ...] = (125, 250, 500, 1000)
    num_seeds: int = 5
    widths: tuple[int, ...] = (128, 128)
    num_steps: int = 4000
    batch_size: int = 32
    num_updates: int = 5
    gaussian_dim: int = 40
    boolean_dim: int = 30
    num_validation: int = 250
    num_test: int = 1000
    quick: bool = False
    seed: int = 0
    out: Path = Path("runs/kernel_vs_network")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        sizes: Numbers of training examples.
        tasks: Measurements by task.
        candidates: What every method chose among.
    """

    sizes: tuple[int, ...]
    tasks: dict[str, TaskResult]
    candidates: Candidates


def shortened(config: Config) -> Config:
    """The configuration that ``quick`` stands for."""
    if not config.quick:
        return config
    return dataclasses.replace(
        config,
        tasks=("he2", "staircase3"),
        sizes=(100, 400),
        num_seeds=3,
        num_steps=1000,
        gaussian_dim=20,
        boolean_dim=20,
    )


def run(
    config: Config, *, candidates: Candidates | None = None, progress: bool = False
) -> Result:
    """Learn every task in every way at every size.

    Raises:
        ValueError: The configuration cannot be run.
    """
    config = shortened(config)
    candidates = Candidates() if candidates is None else candidates
    _check(config)
    names = list(dict.fromkeys(config.tasks))
    tasks = {}
    with tqdm(total=len(names) * config.num_seeds, disable=not progress) as bar:
        for name in names:
            trials, exponent = [], None
            bar.set_description(name)
            for seed in range(config.num_seeds):
                task, found = _seed(config, candidates, name, seed)
                trials.append(found)
                exponent = task.information_exponent
                bar.update()
            tasks[name] = collect(trials, exponent)
    return Result(config.sizes, tasks, candidates)


def _seed(config, candidates, name, seed):
    """One data set and one initialisation, at every size."""
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    key_task, key_learn = jax.random.split(key)
    sizes = Sizes(
        config.sizes[-1],
        config.num_validation,
        config.num_test,
        config.gaussian_dim,
        config.boolean_dim,
    )
    task = draw_task(name, sizes, key=key_task)
    setting = Setting(
        config.widths,
        config.num_steps,
        config.batch_size,
        config.num_updates,
        candidates,
    )
    trials = compare(task, config.sizes, setting, key=key_learn)
    return task, trials


def _check(config: Config) -> None:
    """Raise unless there is something to compare."""
    if len(config.widths) < 2:
        raise ValueError(
            "`widths` must hold at least two hidden layers, but was "
            f"{config.widths}: the tangent kernel of one ReLU layer hardly sees odd "
            "functions beyond linear ones, which would be no fair kernel."
        )
    if not config.sizes or sorted(set(config.sizes)) != list(config.sizes):
        raise ValueError(f"`sizes` must ascend, but was {config.sizes}.")
    if config.sizes[0] < 2 or config.num_seeds < 2:
        raise ValueError(
            "`sizes` and `num_seeds` must be at least 2, but were "
            f"{config.sizes} and {config.num_seeds}: one seed gives no interval."
        )
    if not config.tasks:
        raise ValueError("`tasks` must name at least one task, but was empty.")


def report(result: Result) -> str:
    """What the terminal shows: tables, then the verdict."""
    shown = tables(result.tasks, result.sizes, result.candidates)
    return "\n".join([shown, "", *verdict(result.tasks, result.sizes)])


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    matplotlib.use("Agg")
    try:
        result = run(config, progress=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    figure = draw(result.tasks, result.sizes)
    numbers = result._replace(candidates=dataclasses.asdict(result.candidates))
    write_folder(shortened(config), numbers, report(result), figure)
    plt.close(figure)
    table = config.out / "table.csv"
    write_rows(table, result.tasks, result.sizes, result.candidates)
    print(f"\n{report(result)}\n\nNumbers and figure: {config.out}")


if __name__ == "__main__":
    main()
