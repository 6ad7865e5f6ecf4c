"""Collapse with several tags an example: ``python -m experiments.multilabel_collapse``.

Images show one digit or two beside each other, and the loss is the sum of the
cross-entropies of their tags (pick all labels). Claims of Li, Wang, Li & Qu,
arXiv:2310.15903: in the terminal phase the examples of every set of tags collapse to
its mean; means of single tags and the classifier go to a simplex frame; and the mean of
two tags goes to the scaled sum of the means of each. Beside the networks is the optimum
of free features in closed form, and a solver that knows nothing of it.
"""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro

from experiments.collapse import multilabel_page as page
from experiments.collapse import sums
from experiments.collapse.networks import (
    CLASSES,
    Trainer,
    check_records,
    split_keys,
)
from experiments.collapse.sums import Solved, pick_all_label
from experiments.collapse.tags import (
    STATISTICS,
    beside_optimum,
    make_images,
    make_look,
)
from experiments.folder import run_command
from jaxtheory import interop


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        single_examples: Training images of each digit alone.
        pair_examples: Training images of each pair of different digits.
        test_share: Test images of each over training images.
        widths: Units of the hidden layers, with BatchNorm.
        num_epochs: Passes over the training images.
        batch_size: Images in a step of SGD with momentum .9.
        learning_rate: At the start; it falls to 0 as a cosine.
        weight_decay: Of all parameters but the biases of the outputs.
        num_records: Looks at the network along training.
        num_seeds: Initialisations and orders of batches, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    single_examples: int = 60
    pair_examples: int = 20
    test_share: float = 0.5
    widths: tuple[int, ...] = (128, 128)
    num_epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-3
    num_records: int = 20
    num_seeds: int = 4
    seed: int = 0
    out: Path = Path("runs/multilabel_collapse")


class Result(NamedTuple):
    """What was measured; arrays are ``[s, r]``, seeds and records, or ``[s]``.

    Attributes:
        solved: The solver against the closed form.
        steps: Step of each record.
        train: By name of the statistic, of training images.
        test: The same of test images.
        error: Share of training images whose tags are not the largest outputs.
        test_error: Share of test images.
        scale: Tag-wise scale of pairs, along training.
        uncentred: Residual at the end where no offset is taken off.
        predicted_scale: That of free features whose decay makes both penalties equal.
        margins: Mean output of an image's tags less that of the others, for one tag
            and two, ``[s, 2]``.
        predicted_margins: The same of free features.
    """

    solved: list[Solved]
    steps: np.ndarray
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    error: np.ndarray
    test_error: np.ndarray
    scale: np.ndarray
    uncentred: np.ndarray
    predicted_scale: np.ndarray
    margins: np.ndarray
    predicted_margins: np.ndarray


def run(config: Config) -> Result:
    """Solve, and train from every seed.

    Raises:
        ValueError: There are fewer than two seeds, or the steps cannot be divided into
            the records.
    """
    num_images = CLASSES * config.single_examples
    num_images += math.comb(CLASSES, 2) * config.pair_examples
    steps = config.num_epochs * (num_images // config.batch_size)
    check_records(config, steps)
    key, keys = split_keys(config.seed, config.num_seeds)
    train, test = make_images(config, key)
    trainer = Trainer(config, steps, batch_norm=True, free_bias=True)
    objective = interop.flax.objective(trainer.model, pick_all_label)
    look = make_look(trainer.model, train, test)
    rows, recorded = [], np.zeros(0)
    for key_init, key_train in keys:
        history = trainer.train(
            objective,
            trainer.start(key_init, train[0]),
            train,
            batch_size=config.batch_size,
            key=key_train,
            record={"look": look},
            record_every=steps // config.num_records,
        )
        recorded = history.steps
        beside = beside_optimum(config, trainer.model, history.state, train)
        rows.append((history.records["look"], beside))
    records, ends = jax.tree.map(lambda *seeds: np.stack(seeds), *rows)
    pick = lambda of: {name: records[of][name] for name in STATISTICS}
    return Result(
        [sums.solve(*case) for case in sums.FREE],
        recorded,
        pick("train"),
        pick("test"),
        records["train"]["error"],
        records["test"]["error"],
        records["train"]["scale"],
        records["train"]["uncentred"][:, -1],
        *ends,
    )


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, page.report, page.draw)


if __name__ == "__main__":
    main()
