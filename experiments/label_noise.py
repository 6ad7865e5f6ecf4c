"""Label noise makes minima flat: ``python -m experiments.label_noise --help``.

Where a network interpolates, noise on its labels is all that still moves it, and in
the mean it drifts along the minima towards small traces of the Hessian (Blanc et al.,
arXiv:1904.09080; Damian, Ma & Lee, arXiv:2106.06530). Three scales: two parameters,
where theory has an exact number that the leading order misses; a small regression,
where the regulariser should fall as fast as predicted, in the time ``eta^2 sigma^2``
times steps; and digits, where networks that have seen label noise are held against
descent from the same weights, at equal loss.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro

from experiments.drift import digits, page, theory
from experiments.folder import run_command


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        num_runs: Runs of the model of two parameters.
        strengths: Of the regression: learning rates and noise levels.
        time: How long each of them runs: ``eta^2 sigma^2`` times the steps.
        num_points: Examples of the regression, all in each step.
        dim: Its inputs.
        width: Hidden units of its network.
        num_repeats: Runs of it from each minimum, with noise of their own.
        num_records: Records of it.
        num_seeds: Minima of it, at least 2.
        num_train: Digits to train on.
        digits_width: Hidden units of their network.
        num_networks: Initialisations, at least 2.
        rate: Learning rate to interpolation, with momentum .9.
        start_loss: Loss at which a network counts as interpolating: half the squared
            distance to one-hot targets, a tenth of an image's being .45 at the start.
        max_steps: Steps to it at most.
        noise: Standard deviation of the noise on targets of digits.
        noise_rate: Learning rate from then on.
        batch_size: Examples in a step with label noise.
        num_steps: Steps from then on, a multiple of 20.
        final_loss: Loss at which networks are compared.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    num_runs: int = 65_536
    strengths: tuple[tuple[float, float], ...] = (
        (0.2, 0.1),
        (0.1, 0.2),
        (0.1, 0.1),
        (0.05, 0.2),
    )
    time: float = 4.0
    num_points: int = 8
    dim: int = 3
    width: int = 10
    num_repeats: int = 16
    num_records: int = 20
    num_seeds: int = 4
    num_train: int = 300
    digits_width: int = 128
    num_networks: int = 8
    rate: float = 0.02
    start_loss: float = 0.01
    max_steps: int = 20_000
    noise: float = 0.5
    noise_rate: float = 0.02
    batch_size: int = 10
    num_steps: int = 20_000
    final_loss: float = 0.005
    seed: int = 0
    out: Path = Path("runs/label_noise")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        gaps: ``t1^2 - t2^2`` of the two parameters, for each run.
        predicted: What theory says of their mean: the full regulariser, ``tr H / 4``.
        drifts: The regression, by strength.
        arms: Digits, by what came after interpolation.
    """

    gaps: np.ndarray
    predicted: tuple[float, float]
    drifts: list[theory.Drift]
    arms: dict[str, digits.Arm]


def run(config: Config) -> Result:
    """Run all three.

    Raises:
        ValueError: There are fewer than two seeds or networks, or records do not fit
            the steps, or a network did not interpolate.
    """
    for name in ("num_seeds", "num_networks"):
        if getattr(config, name) < 2:
            raise ValueError(
                f"`{name}` must be at least 2, for standard errors, but was "
                f"{getattr(config, name)}."
            )
    if config.num_steps % 20:
        raise ValueError(
            f"`num_steps` must be a multiple of 20, but was {config.num_steps}."
        )
    first, second, third = jax.random.split(jax.random.key(config.seed), 3)
    predicted = theory.two_parameters_predicted
    return Result(
        theory.two_parameters(config.num_runs, first),
        (predicted(full=True), predicted(full=False)),
        theory.regressions(config, second),
        digits.run(config, third),
    )


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
