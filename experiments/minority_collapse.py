"""Minority collapse and what undoes it: ``python -m experiments.minority_collapse``.

With free features, classifier rows of minority classes are equal exactly where such a
class has at most ``N^2 lw lh`` examples, and in the layer-peeled model where the
imbalance ratio reaches ``R_0`` (Fang, He, Long & Su, arXiv:2101.12699; Dang et al.,
arXiv:2301.00437; Hong & Ling, arXiv:2309.09725). Solvers are held against these
thresholds at 2 % below and 2 % above. A network has no decay of its features: for
digits of which five are rare, the cosine of the rare rows against the imbalance ratio
is a trend, beside the model of free features at the decay that would balance both
penalties. Then weights of the loss and oversampling, which are to undo it.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from experiments.collapse import minority_page as page
from experiments.collapse.remedies import REMEDIES, Networks, Problem
from experiments.collapse.thresholds import Bracket, brackets
from experiments.folder import run_command


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        minority_counts: Training images of each of five rare digits, falling, the first
            as many as of the others.
        widths: Units of the hidden layers, with BatchNorm.
        num_steps: Steps of SGD with momentum .9.
        batch_size: Images in a step, drawn with replacement.
        learning_rate: At the start; it falls to 0 as a cosine.
        weight_decay: Of all parameters.
        num_seeds: Splits, initialisations and batches, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    minority_counts: tuple[int, ...] = (100, 30, 10, 5, 2, 1)
    widths: tuple[int, ...] = (64, 64)
    num_steps: int = 3000
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-3
    num_seeds: int = 5
    seed: int = 0
    out: Path = Path("runs/minority_collapse")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        brackets: Solvers at their thresholds.
        trend: Networks without remedy, at every imbalance ratio.
        remedies: By name, at the largest ratio; ``"none"`` is the last row of `trend`.
    """

    brackets: list[Bracket]
    trend: Networks
    remedies: dict[str, Networks]


def run(config: Config) -> Result:
    """Solve at the thresholds, and train at every ratio and with every remedy.

    Raises:
        ValueError: There are fewer than two seeds, or counts do not fall from that of
            the majority, of which there are images enough.
    """
    counts = config.minority_counts
    if config.num_seeds < 2:
        raise ValueError(f"`num_seeds` must be at least 2, but was {config.num_seeds}.")
    if len(counts) < 2 or any(np.diff(counts) >= 0) or min(counts) < 1:
        raise ValueError(
            "`minority_counts` must be two or more positive numbers that fall, but "
            f"were {counts}."
        )
    problem = Problem(config)
    train = lambda count, remedy: [
        problem.network(count, remedy, seed) for seed in range(config.num_seeds)
    ]
    stack = lambda rows: Networks(*np.moveaxis(np.array(rows), -1, 0))
    trend = stack([train(count, "none") for count in counts])
    remedies = {"none": Networks(*(values[-1:] for values in trend))}
    for name in REMEDIES[1:]:
        remedies[name] = stack([train(counts[-1], name)])
    return Result(brackets(), trend, remedies)


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, page.report, page.draw)


if __name__ == "__main__":
    main()
