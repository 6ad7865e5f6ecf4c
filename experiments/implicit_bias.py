"""What is found without asking for it: ``python -m experiments.implicit_bias --help``.

Three biases with numbers. Of architecture: a diagonal linear network ends in the
interpolation of least l2 norm from large starts and of least l1 norm from small ones,
and at every scale in that of least closed-form penalty (Woodworth et al.,
arXiv:2002.09277). Of step size: gradient descent follows the flow of a modified loss
(Barrett & Dherin, arXiv:2009.11162), and at the edge of stability the central flow on
average (Cohen et al., arXiv:2410.24206). Of the algorithm's norm: on separable data
gradient descent goes to the largest l2 margin and sign descent to the largest
l-infinity margin (Soudry et al., arXiv:1710.10345; Gunasekar et al., arXiv:1802.08246).
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import tyro

from experiments.bias import diagonal, flows, margin, page
from experiments.folder import run_command


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        depths: Layers of diagonal networks, of which 2 is one.
        scales: Scales of their start, from large to small.
        num_points: Examples, fewer than features.
        num_features: Features, Gaussian.
        num_nonzero: Features that the teacher looks at, with coefficients 1 and -1.
        patience: How long gradient flow runs, in units of what it needs.
        edge_width: Units of each of two tanh layers.
        edge_rate: Learning rate that comes to the edge of stability.
        edge_steps: Steps with it.
        window: Steps over which gradient descent is averaged there.
        rates: Smaller learning rates, for the order of errors; two at least.
        error_time: Time (steps times rate) at which they are compared.
        margin_points: Examples with labels, which a direction separates.
        margin_dim: Their dimension.
        margin_rate: First step; step ``t`` is this over the root of ``t``.
        margin_steps: Steps, a multiple of `margin_records`.
        margin_records: Records.
        num_seeds: Data sets and networks, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    depths: tuple[int, ...] = (2, 3)
    scales: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)
    num_points: int = 20
    num_features: int = 40
    num_nonzero: int = 3
    patience: float = 100.0
    edge_width: int = 10
    edge_rate: float = 0.1
    edge_steps: int = 800
    window: int = 20
    rates: tuple[float, ...] = (0.02, 0.01, 0.005, 0.0025)
    error_time: float = 2.0
    margin_points: int = 30
    margin_dim: int = 10
    margin_rate: float = 0.1
    margin_steps: int = 100_000
    margin_records: int = 100
    num_seeds: int = 5
    seed: int = 0
    out: Path = Path("runs/implicit_bias")


class Result(NamedTuple):
    """What was measured, in double precision.

    Attributes:
        diagonal: Ends of diagonal linear networks.
        errors: Distances of gradient descent from its flows.
        edge: Gradient descent at the edge of stability, and its flows.
        margins: Margins that steepest descent reaches.
    """

    diagonal: diagonal.Diagonal
    errors: flows.Errors
    edge: flows.Edge
    margins: margin.Margins


def run(config: Config) -> Result:
    """Run all three.

    Raises:
        ValueError: There are fewer than two seeds or rates, or depth 2 is missing.
    """
    for name in ("num_seeds", "rates", "scales"):
        value = getattr(config, name)
        if (value if isinstance(value, int) else len(value)) < 2:
            raise ValueError(f"`{name}` must be at least two, but was {value}.")
    if 2 not in config.depths:
        raise ValueError(f"`depths` must have 2 among them, but was {config.depths}.")
    with jax.enable_x64(True):
        return Result(
            diagonal.run(config),
            flows.errors(config),
            flows.edge(config),
            margin.run(config),
        )


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
