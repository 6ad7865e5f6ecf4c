"""Digits to pretrain on, and tasks to transfer to: new classes and shifted images."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.ndimage

from jaxtheory import data


class Task(NamedTuple):
    """Images ``[n, 8, 8, 1]`` with labels from 0 on, for training and for testing.

    Attributes:
        name: What the tables call it.
        x_train: Training images.
        y_train: Their classes.
        x_test: Test images.
        y_test: Their classes.
        num_classes: Number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int


class Tasks(NamedTuple):
    """The task to pretrain on and those to transfer to.

    Attributes:
        source: The first classes, as they are.
        targets: The other classes first, then each shift of the first ones. No image is
            in the source's training set, nor in the training and the test set of one.
    """

    source: Task
    targets: tuple[Task, ...]


def rotate(images: np.ndarray, degrees: float, floor: float, _: Any) -> np.ndarray:
    """Turn around the centre (linear interpolation; `floor` comes in from outside)."""
    return scipy.ndimage.rotate(
        images, degrees, (2, 1), reshape=False, order=1, cval=floor
    )


def blur(images: np.ndarray, sigma: float, floor: float, _: Any) -> np.ndarray:
    """Gaussian blur of `sigma` pixels."""
    return scipy.ndimage.gaussian_filter(
        images, (0, sigma, sigma, 0), mode="constant", cval=floor
    )


def add_noise(images: np.ndarray, std: float, _: float, draw: Any) -> np.ndarray:
    """White noise of `std` standard deviations of a pixel."""
    return images + std * draw.standard_normal(images.shape)


def lower_contrast(images: np.ndarray, factor: float, _: float, __: Any) -> np.ndarray:
    """Shrink each image towards its mean grey."""
    mean = np.mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + factor * (images - mean)


# Standardised images, strength, the value of an empty pixel, source of noise.
SHIFTS: dict[str, Callable[[np.ndarray, float, float, Any], np.ndarray]] = {
    "rotation": rotate,
    "blur": blur,
    "noise": add_noise,
    "contrast": lower_contrast,
}


def make_tasks(
    num_classes: int,
    num_source: int,
    num_target: int,
    strengths: dict[str, tuple[float, ...]],
    seed: int,
) -> Tasks:
    """Split the digits class by class.

    Args:
        num_classes: Classes to pretrain on, from digit 0 on.
        num_source: Training images of each of them.
        num_target: Training images of each class of a target task.
        strengths: Strengths of each of `SHIFTS`.
        seed: Of the split and the noise.

    Returns:
        The tasks. Source and shifts share their test images before the shift.
    """
    digits = data.digits(key=jax.random.key(seed), image=True)
    x = np.concatenate([digits.x_train, digits.x_test])
    y = np.concatenate([digits.y_train, digits.y_test])
    floor = float(-digits.mean / digits.std)
    draw = np.random.default_rng(seed)
    first = [np.flatnonzero(y == digit) for digit in range(num_classes)]
    rest = [np.flatnonzero(y == digit) for digit in range(num_classes, 10)]
    end = num_source + num_target
    source = _task("source", x, first, slice(num_source), slice(end, None))
    clean = _task("clean", x, first, slice(num_source, end), slice(end, None))
    named = f"digits {num_classes} to 9"
    targets = [_task(named, x, rest, slice(num_target), slice(num_target, None))]
    pairs = [*itertools.chain(*([(s, a) for a in strengths[s]] for s in strengths))]
    for shift, strength in pairs:
        change = lambda images, s=shift, a=strength: np.asarray(
            SHIFTS[s](images, a, floor, draw), np.float32
        )
        targets.append(
            clean._replace(
                name=f"{shift} {strength:g}",
                x_train=change(clean.x_train),
                x_test=change(clean.x_test),
            )
        )
    return Tasks(source, tuple(targets))


def _task(name, x, rows_by_class, train, test):
    """Some rows of each class to train on and some to test on."""
    parts = []
    for part in (train, test):
        rows = [rows[part] for rows in rows_by_class]
        parts += [
            x[np.concatenate(rows)],
            np.repeat(range(len(rows)), [*map(len, rows)]),
        ]
    return Task(name, *parts, num_classes=len(rows_by_class))
