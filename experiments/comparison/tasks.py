"""The tasks on which kernels and networks are compared, with nested training sets."""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxtheory import data

TaskName: TypeAlias = Literal[
    "he2", "he3", "multi2", "multi3", "parity3", "staircase3", "digits"
]

_NUM_DIGITS = 1797

# What each is, for the figure.
TITLES: dict[str, str] = {
    "he2": "one index, $h_2(z_1)$",
    "he3": "one index, $h_3(z_1)$",
    "multi2": "two indices, $h_2(z_1) + z_1 z_2$",
    "multi3": "three indices, $z_1 z_2 z_3$",
    "parity3": "signs, $x_1 x_2 x_3$",
    "staircase3": "signs, $x_1 + x_1 x_2 + x_1 x_2 x_3$",
    "digits": "digits",
}
_TERMS = {"multi2": ((2, 0), (1, 1)), "multi3": ((1, 1, 1),)}


class Task(NamedTuple):
    """One data set; smaller training sets are the first rows of `x_train`.

    Attributes:
        x_train: Training inputs ``[n, d]``, float32.
        y_train: Targets ``[n, k]``.
        x_validation: Inputs on which every method's options are chosen.
        y_validation: Their targets.
        x_test: Test inputs.
        y_test: Their targets.
        directions: Columns that span what targets depend on, or None if unknown.
        information_exponent: That of the targets, or None if unknown.
        classes: Whether targets stand for classes: signs, or one column a class.
    """

    x_train: Any
    y_train: Any
    x_validation: Any
    y_validation: Any
    x_test: Any
    y_test: Any
    directions: Any
    information_exponent: int | None
    classes: bool


class Sizes(NamedTuple):
    """How large a task is.

    Attributes:
        train: Most training examples.
        validation: Examples for choosing options.
        test: Test examples; of the digits, all others.
        gaussian_dim: Dimension of Gaussian inputs.
        boolean_dim: Dimension of inputs of signs.
    """

    train: int
    validation: int
    test: int
    gaussian_dim: int
    boolean_dim: int


def draw_task(name: TaskName, sizes: Sizes, *, key: Any) -> Task:
    """Draw a task: new examples, and new hidden directions, for each key.

    Targets have no noise.
    """
    if name == "digits":
        return _digits(sizes, key)
    numbers = {"num_train": sizes.train + sizes.validation, "num_test": sizes.test}
    gaussian = {"dim": sizes.gaussian_dim, "key": key, **numbers}
    boolean = {"dim": sizes.boolean_dim, "key": key, **numbers}
    if name in ("he2", "he3"):
        drawn = data.single_index(link=name, **gaussian)
        directions = drawn.direction[:, None]
    elif name == "parity3":
        drawn = data.sparse_parity(degree=3, **boolean)
        directions = drawn.directions
    elif name == "staircase3":
        drawn = data.staircase(**boolean)
        directions = drawn.directions
    else:
        drawn = data.multi_index(terms=_TERMS[name], **gaussian)
        directions = drawn.directions
    return Task(
        *_split(drawn.x_train, drawn.y_train, sizes.train),
        drawn.x_test,
        drawn.y_test,
        directions,
        drawn.information_exponent,
        classes=name == "parity3",
    )


def _digits(sizes, key):
    """The digits, one column of targets for each."""
    if sizes.train + sizes.validation > _NUM_DIGITS - 200:
        raise ValueError(
            "`sizes` and `num_validation` must leave 200 of the 1,797 digits for "
            f"testing, but {sizes.train} and {sizes.validation} do not. Leave out the "
            "digits with `--tasks`, or the largest size."
        )
    drawn = data.digits(num_train=sizes.train + sizes.validation, key=key)
    onehot = lambda labels: jax.nn.one_hot(labels, drawn.num_classes)
    return Task(
        *_split(drawn.x_train, onehot(drawn.y_train), sizes.train),
        drawn.x_test,
        onehot(drawn.y_test),
        None,
        None,
        classes=True,
    )


def _split(x, y, num_train):
    """Training examples, then those for validation."""
    return x[:num_train], y[:num_train], x[num_train:], y[num_train:]


def relative_error(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared error over the variance of the targets, both summed over outputs."""
    squares = np.mean((outputs - targets) ** 2, axis=-2)
    return np.sum(squares, axis=-1) / np.sum(np.var(targets, axis=0))


def accuracy(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Share of examples in the right class: by sign, or the largest of the outputs."""
    if targets.shape[-1] == 1:
        return np.mean((outputs > 0) == (targets > 0), axis=(-2, -1))
    right = np.argmax(outputs, axis=-1) == np.argmax(targets, axis=-1)
    return np.mean(right, axis=-1)
