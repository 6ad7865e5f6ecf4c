"""The law of data separation: ``python -m experiments.separation_law``.

He & Su (arXiv:2210.17020): in a trained classifier each layer multiplies the fuzziness
``D = tr(SS_W SS_B^+)`` of the classes by the same factor, if the learning rate is
right. On 100 digits of each class, with BatchNorm and ReLU, at every point of a sweep;
and two controls that should break it, one without BatchNorm and one without ReLU.

A correlation near -1 is nearly free: beside it stand how much the drops vary, how often
random drops vary as little, and how far the line is bent.
"""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from experiments.folder import run_command
from experiments.separation import networks, page
from experiments.separation.networks import LAW, LINEAR, NO_NORM, Point


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        depths: Numbers of hidden layers, at least 3; the controls have the first.
        momentum: Learning rates of SGD with momentum .9, also those of the controls.
        sgd: Of SGD without.
        adam: Of Adam.
        controls: Networks that should not obey the law: "no BN", "linear+BN".
        num_seeds: Initialisations and orders of the batches, at least 2.
        num_per_class: Training images of each class; of the rest 297 are for testing.
        width: Units of each hidden layer.
        num_epochs: Passes over the images; the rate falls to a tenth at 1/3 and 2/3.
        batch_size: Images a step.
        weight_decay: Added to the gradient, times the parameters.
        num_resamples: Of the bootstrap, at the best point of each depth.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    depths: tuple[int, ...] = (6, 8)
    momentum: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    sgd: tuple[float, ...] = (0.1, 0.3)
    adam: tuple[float, ...] = (1e-3,)
    controls: tuple[Literal["no BN", "linear+BN"], ...] = (NO_NORM, LINEAR)
    num_seeds: int = 3
    num_per_class: int = 100
    width: int = 100
    num_epochs: int = 600
    batch_size: int = 128
    weight_decay: float = 5e-4
    num_resamples: int = 200
    seed: int = 0
    out: Path = Path("runs/separation_law")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        points: All of the sweep.
        best: By depth, the place in `points` of the lowest mean correlation among
            those with BatchNorm and ReLU.
        bend: By depth, mean over seeds of `quadratic` there, and its 95 % interval
            over training images and seeds ``[3]``.
    """

    points: list[Point]
    best: dict[int, int]
    bend: dict[int, np.ndarray]


def run(config: Config) -> Result:
    """Train every point of the sweep and measure its layers.

    Raises:
        ValueError: There are fewer than two seeds, fewer than three layers or no rate
            of momentum, or too few images.
    """
    if config.num_seeds < 2 or not config.momentum or min(config.depths) < 3:
        raise ValueError(
            "there must be two seeds, a rate of momentum and three layers, but there "
            f"were {config.num_seeds}, {len(config.momentum)} and {config.depths}."
        )
    task = networks.make_task(config)
    jobs = [
        (LAW, optimizer, depth, rate)
        for depth in config.depths
        for optimizer in ("momentum", "sgd", "adam")
        for rate in getattr(config, optimizer)
    ] + [
        (control, "momentum", config.depths[0], rate)
        for control in config.controls
        for rate in config.momentum
    ]
    found = [networks.measure(config, task, job) for job in jobs]
    points = [point for point, _ in found]
    best = {
        depth: min(
            (i for i, job in enumerate(jobs) if job[0] == LAW and job[2] == depth),
            key=lambda i: np.nan_to_num(points[i].pearson_r.mean(), nan=np.inf),
        )
        for depth in config.depths
    }
    bend = {
        depth: networks.bend(config, task, found[i][1]) for depth, i in best.items()
    }
    return Result(points, best, bend)


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
