"""Neural collapse under four losses: ``python -m experiments.neural_collapse``.

A perceptron with BatchNorm is trained on digits far beyond zero training error, with
weight decay. Claims: in that terminal phase features and classifier collapse to a
simplex frame, each to the other, and the classifier to nearest class means (Papyan, Han
& Donoho, arXiv:2008.08186); cross-entropy, label smoothing, focal loss and squared
error lead to the same geometry and to much the same test error (Zhou et al.,
arXiv:2210.02192); test examples collapse less than training examples (Hui, Belkin &
Nakkiran, arXiv:2202.08384). Beside the networks is the optimum of free features.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.collapse import neural_page as page
from experiments.collapse.curves import Curves, curves_of, make_look
from experiments.collapse.losses import LOSSES, Optimum, beside_optimum
from experiments.collapse.networks import (
    CLASSES,
    Trainer,
    balanced_rows,
    check_records,
    split_keys,
)
from experiments.folder import run_command
from jaxtheory import data, interop


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        losses: Names of losses, among those of `LOSSES`; cross-entropy first.
        widths: Units of the hidden layers.
        batch_norm: Whether they have BatchNorm.
        examples_per_class: Training images of each digit.
        num_test: Test images, at most 500.
        num_epochs: Passes over them.
        batch_size: Images in a step of SGD with momentum .9.
        learning_rate: At the start; it falls to 0 as a cosine.
        weight_decay: Of all parameters but the biases of the outputs.
        num_records: Looks at the network along training.
        num_seeds: Initialisations and orders of batches, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    losses: tuple[str, ...] = (
        *("cross-entropy", "squared error"),
        *("label smoothing", "focal"),
    )
    widths: tuple[int, ...] = (128, 128, 128)
    batch_norm: bool = True
    examples_per_class: int = 100
    num_test: int = 500
    num_epochs: int = 300
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-3
    num_records: int = 30
    num_seeds: int = 4
    seed: int = 0
    out: Path = Path("runs/neural_collapse")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        steps: Step of each record.
        curves: By name of the loss.
        optima: By name of the loss.
    """

    steps: np.ndarray
    curves: dict[str, Curves]
    optima: dict[str, Optimum]


def run(config: Config) -> Result:
    """Train with every loss from every seed.

    Raises:
        ValueError: Losses are not known or do not begin with cross-entropy, there are
            fewer than two seeds, too many examples, or the steps cannot be divided into
            the records.
    """
    if config.losses[:1] != ("cross-entropy",) or not set(config.losses) <= set(LOSSES):
        raise ValueError(
            f"`losses` must begin with 'cross-entropy' and be of {list(LOSSES)}, but "
            f"were {config.losses}."
        )
    num_images = CLASSES * config.examples_per_class
    steps = config.num_epochs * num_images // config.batch_size
    check_records(config, steps)
    key, keys = split_keys(config.seed, config.num_seeds)
    task = _task(config, key)
    trainer = Trainer(config, steps, batch_norm=config.batch_norm, free_bias=True)
    starts = [(trainer.start(first, task.x_train), second) for first, second in keys]
    look = make_look(trainer.model, task)
    curves, optima, recorded = {}, {}, np.zeros(0)
    for name in config.losses:
        # The same functions for all seeds, so that programs are compiled once.
        objective = interop.flax.objective(trainer.model, LOSSES[name][0])
        rows = []
        for state, key_train in starts:
            history = trainer.train(
                objective,
                state,
                (task.x_train, task.y_train),
                batch_size=config.batch_size,
                key=jax.random.clone(key_train),  # the batches of all losses
                record={"look": look},
                record_every=steps // config.num_records,
            )
            recorded, end = history.steps, history.state
            beside = beside_optimum(config, trainer.model, name, end, task)
            rows.append((curves_of(history.records["look"]), beside))
        stacked = jax.tree.map(lambda *seeds: np.stack(seeds), *rows)
        curves[name], optima[name] = stacked
    return Result(recorded, curves, optima)


def _task(config: Config, key: Any) -> Any:
    """Digits with as many training images of every class."""
    digits = data.digits(num_train=1297, key=key)
    x, y, x_test, y_test = map(np.asarray, digits[:4])
    rows = balanced_rows(y, "examples_per_class", config.examples_per_class)
    return digits._replace(
        x_train=jnp.asarray(x[rows]),
        y_train=jnp.asarray(y[rows]),
        x_test=jnp.asarray(x_test[: config.num_test]),
        y_test=jnp.asarray(y_test[: config.num_test]),
    )


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, page.report, page.draw)


if __name__ == "__main__":
    main()
