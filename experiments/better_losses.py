"""Implicit penalties, written out: ``python -m experiments.better_losses --help``.

Label noise drifts towards small traces of the Hessian (Damian et al.,
arXiv:2106.06530), large steps towards small gradients (Barrett & Dherin,
arXiv:2009.11162), gradient descent on separable data towards large margins (Lyu & Li,
arXiv:1906.05890), and at the end of training classes collapse (Papyan et al.,
arXiv:2008.08186). If these are what makes networks generalise, then a plain loss with
the penalty written out should do as well: each arm has as many candidates, chosen by
validation error on splits of their own, and is then judged on fresh splits. An arm that
does not help is shown as such.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.folder import run_command
from experiments.losses import page
from experiments.losses.arms import ARMS, best, errors, make_model, train
from jaxtheory import data


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        widths: Hidden layers of the network.
        num_train: Digits to train on, and as many to choose settings by.
        corrupted: Share of training labels that are wrong, once and for all.
        num_steps: Steps of each run.
        num_tuning: Splits on which settings are chosen.
        num_seeds: Fresh splits on which they are judged, at least 2.
        arms: Which ways to train; "plain" is what the others are held against.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    widths: tuple[int, ...] = (64, 64)
    num_train: int = 300
    corrupted: float = 0.0
    num_steps: int = 1000
    num_tuning: int = 4
    num_seeds: int = 10
    arms: tuple[str, ...] = tuple(ARMS)
    seed: int = 0
    out: Path = Path("runs/better_losses")


class Found(NamedTuple):
    """What an arm reached.

    Attributes:
        validation: Error of each candidate, ``[tuning splits, settings]``.
        chosen: Which of them was chosen.
        test: Test error on fresh splits ``[seeds]``.
        loss: Training loss there, without the penalty.
        train_error: Training error there.
    """

    validation: np.ndarray
    chosen: int
    test: np.ndarray
    loss: np.ndarray
    train_error: np.ndarray


class Result(NamedTuple):
    """What was measured, by arm."""

    found: dict[str, Found]


class _Split(NamedTuple):
    """Digits to train on, to choose by, and to judge by; and a key for the rest."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    key: jax.Array


def run(config: Config) -> Result:
    """Choose the settings of each arm and judge them.

    Raises:
        ValueError: There are fewer than two seeds, an arm is unknown, or "plain" is not
            among them.
    """
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    unknown = [name for name in config.arms if name not in ARMS]
    if unknown or "plain" not in config.arms:
        raise ValueError(
            f"`arms` must be of {tuple(ARMS)}, with 'plain' among them, but was "
            f"{config.arms}."
        )
    count = config.num_tuning + config.num_seeds
    splits = [_split(config, seed) for seed in range(count)]
    return Result({name: _arm(config, name, splits) for name in config.arms})


def _arm(config, name, splits):
    """Choose on the first splits, judge on the others."""
    arm, model = ARMS[name], make_model(config.widths)

    def trained(split, settings):
        x, y = split.train
        widths, steps = config.widths, config.num_steps
        return train(arm, settings, widths, x, y, steps, split.key)

    validation = []
    for split in splits[: config.num_tuning]:
        params = trained(split, arm.settings)
        validation.append(errors(model, params, *split.validation)[0])
    validation = np.stack(validation)
    chosen = best(validation)
    fresh = []
    for split in splits[config.num_tuning :]:
        params = trained(split, arm.settings[chosen : chosen + 1])
        wrong, loss = errors(model, params, *split.train)
        fresh.append((errors(model, params, *split.test)[0], loss, wrong))
    test, loss, wrong = np.asarray(fresh)[:, :, 0].T
    return Found(validation, chosen, test, loss, wrong)


def _split(config, seed):
    """A random split of all digits."""
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    key_split, key_wrong, key = jax.random.split(key, 3)
    digits = data.digits(num_train=config.num_train, key=key_split)
    x, y = digits.x_test, digits.y_test
    where, which = jax.random.split(key_wrong)
    wrong = jax.random.bernoulli(where, config.corrupted, digits.y_train.shape)
    shift = jax.random.randint(which, digits.y_train.shape, 1, 10)
    labels = jnp.where(wrong, (digits.y_train + shift) % 10, digits.y_train)
    half = config.num_train
    return _Split(
        (digits.x_train, labels), (x[:half], y[:half]), (x[half:], y[half:]), key
    )


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
