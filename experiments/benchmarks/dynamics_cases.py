"""The cases of the dynamics benchmark; NumPy alone, read where there is no JAX.

Names are ``tree N``, ``Gram N x D``, ``population M x W`` and ``recording P``.
"""

from typing import Any, NamedTuple

import numpy as np


class Points(NamedTuple):
    """Points, one a row, and their distances where a tree is asked for.

    Attributes:
        points: ``[n, d]``.
        distances: ``[n, n]``; empty for Gram matrices.
    """

    points: np.ndarray
    distances: np.ndarray


class Runs(NamedTuple):
    """Perceptrons 64-w-w-10 on images of digits, by SGD with momentum.

    Attributes:
        x: ``[n, 64]``.
        y: Labels.
        num_runs: Networks.
        width: ``w``.
        num_steps: Of each.
    """

    x: np.ndarray
    y: np.ndarray
    num_runs: int
    width: int
    num_steps: int


class Recording(NamedTuple):
    """A perceptron 784-w-w-10 on noise.

    Attributes:
        x: ``[n, 784]``.
        y: Labels.
        width: ``w``; 700 makes 1,048,610 parameters.
        num_steps: Steps in a call.
    """

    x: np.ndarray
    y: np.ndarray
    width: int
    num_steps: int


BATCH, RATE, MOMENTUM = 64, 0.05, 0.9
NAMES = (
    "tree 5000",
    "Gram 1000 x 1000000",
    "population 64 x 32",
    "population 64 x 128",
    "recording 700",
)


def tree(num: int) -> Points:
    """A cloud in ten dimensions and its distances in single precision."""
    points = np.random.default_rng(0).standard_normal((num, 10))
    norms = np.sum(points**2, axis=1)
    squares = norms[:, None] + norms[None, :] - 2 * points @ points.T
    distances = np.sqrt(np.maximum(squares, 0)).astype(np.float32)
    np.fill_diagonal(distances, 0)
    return Points(points, distances)


def gram(num: int, dim: int) -> Points:
    """A cloud in many dimensions."""
    points = np.random.default_rng(0).standard_normal((num, dim), np.float32)
    return Points(points, np.zeros((0, 0), np.float32))


def population(num_runs: int, width: int, num_steps: int) -> Runs:
    """Networks to be trained on the digits of scikit-learn, 1,437 of them."""
    from sklearn.datasets import load_digits

    images: Any = load_digits()
    x = (images.data[:1437] / 16).astype(np.float32)
    return Runs(x, images.target[:1437].astype(np.int32), num_runs, width, num_steps)


def recording(width: int, num_steps: int) -> Recording:
    """A network to be trained on noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1024, 784), np.float32)
    return Recording(x, rng.integers(0, 10, 1024).astype(np.int32), width, num_steps)


def make(name: str, *, small: bool = False) -> Any:
    """Make a case by its name; `small` cuts its sizes for a rehearsal."""
    kind, *rest = name.split()
    sizes = [int(word) for word in rest if word != "x"]
    if small:
        sizes = [max(2, min(size, 40)) for size in sizes]
    first, second = sizes[0], sizes[-1]
    if kind == "tree":
        return tree(first)
    if kind == "Gram":
        return gram(first, second)
    if kind == "population":
        return population(first, second, 4 if small else 500)
    return recording(first, 4 if small else 50)
