"""Local elasticity: ``python -m experiments.local_elasticity --help``.

He & Su (arXiv:1910.06943): a training step at one example moves the predictions at
similar examples more than those at others, and that in nonlinear networks. On two
curves around a torus the similarity falls with the distance along the curve; on pairs
of digits it is larger within a class than between the two. Both from the tangent kernel
and from the changes that a step makes. Then the model that follows from it (Zhang, Wang
& Su, arXiv:2110.05960): classes become separable if and only if an example moves its
own class more than the others.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.elasticity import networks, page
from experiments.elasticity.networks import KINDS, Elastic
from experiments.folder import run_command
from jaxtheory import collapse


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        num_seeds: Data sets and initialisations, at least 2.
        width: Hidden units of the networks on the torus.
        num_torus: Points on it, half on each curve.
        torus_steps: Steps of gradient descent there.
        torus_rate: Their rate at the paper's width of 40,960, as in its code; at other
            widths in proportion to the inverse. For linear networks that is beyond what
            is stable at the start: they catapult to flatter weights first.
        digits_width: Hidden units of the networks on digits.
        num_digits: Images, half of each of two digits.
        digits_steps: Steps of gradient descent there.
        pairs: Pairs of digits.
        impacts: Of an example on its own class, and on each other one: below, at and
            above the boundary.
        num_features: Features of each of three classes in that model.
        noise: Of that model.
        duration: Time that is simulated, in 200 steps.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    num_seeds: int = 4
    width: int = 4096
    num_torus: int = 100
    torus_steps: int = 20_000
    torus_rate: float = 1e-5
    digits_width: int = 512
    num_digits: int = 200
    digits_steps: int = 20_000
    pairs: tuple[tuple[int, int], ...] = ((5, 8), (4, 9), (7, 9))
    impacts: tuple[tuple[float, float], ...] = ((1.0, 2.0), (1.5, 1.5), (2.0, 1.0))
    num_features: int = 2000
    noise: float = 0.3
    duration: float = 10.0
    seed: int = 0
    out: Path = Path("runs/local_elasticity")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        torus: By kind of network, correlations.
        distance: On the curve, between points of the last seed ``[n, n]``.
        digits: By pair of digits and kind of network, indices.
        paths: By impacts, separation ``[s, r]`` and its prediction ``[s, r]``.
        times: Of `paths`.
    """

    torus: dict[str, Elastic]
    distance: np.ndarray
    digits: dict[tuple[int, int], dict[str, Elastic]]
    paths: dict[tuple[float, float], tuple[np.ndarray, np.ndarray]]
    times: np.ndarray


def run(config: Config) -> Result:
    """Train all networks and simulate the model.

    Raises:
        ValueError: There are fewer than two seeds, or training diverges.
    """
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    torus, distance = {}, np.zeros(0)
    for kind in KINDS:
        torus[kind], distance = networks.on_torus(config, kind, _keys(config, 0))
    digits = {
        pair: {
            kind: networks.on_digits(config, pair, kind, _keys(config, 1))
            for kind in KINDS
        }
        for pair in config.pairs
    }
    paths, times = {}, np.zeros(0)
    for impacts in config.impacts:
        found = [_path(config, impacts, key) for key in _keys(config, 2)]
        times = np.asarray(found[0].times)
        measured = np.stack([path.separation for path in found])
        predicted = np.stack([path.predicted_separation for path in found])
        paths[impacts] = measured, predicted
    return Result(torus, distance, digits, paths, times)


def _keys(config, stream):
    key = jax.random.fold_in(jax.random.key(config.seed), stream)
    return [jax.random.fold_in(key, seed) for seed in range(config.num_seeds)]


def _path(config, impacts, key):
    """A path of the locally elastic equation; classes overlap at the start."""
    key_start, key_path = jax.random.split(key)
    labels = jnp.arange(3 * config.num_features) % 3
    spread = jax.random.normal(key_start, (len(labels), 3))
    return collapse.locally_elastic_sde(
        jnp.eye(3)[labels] + spread / 2,
        labels,
        intra_class=impacts[0],
        inter_class=impacts[1],
        noise=config.noise,
        duration=config.duration,
        num_steps=200,
        record_every=10,
        key=key_path,
    )


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
