"""Handwritten digits that come with scikit-learn: real data without a download."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key
from jaxtheory.data._checks import check_count

_NUM_IMAGES = 1_797


class Digits(NamedTuple):
    """Handwritten digits, split and standardised.

    Attributes:
        x_train: Training images ``[n, 64]``, or ``[n, 8, 8, 1]``.
        y_train: Training labels 0 to 9, int32 ``[n]``.
        x_test: Test images, standardised like `x_train`.
        y_test: Test labels.
        num_classes: 10.
        mean: The number subtracted from every pixel (0 to 16 before).
        std: The number that every pixel was then divided by.
    """

    x_train: Float[Array, "n ..."]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "m ..."]
    y_test: Int[Array, " m"]
    num_classes: int
    mean: Float[Array, ""]
    std: Float[Array, ""]


def digits(*, num_train: int = 1_297, key: KeyArray, image: bool = False) -> Digits:
    """The 1,797 handwritten 8x8 digits of scikit-learn, split at random.

    The split is a uniformly random permutation, not stratified: training and test
    examples are exchangeable, as generalization bounds assume, and class counts vary.
    Standardisation is ``(x - mean) / std`` with *one* mean and *one* standard deviation
    (1/n), over all pixels of all training images: some pixels are constant and have no
    standard deviation of their own.

    The generalization gap is small: with the default split its ranking over
    hyperparameters is noise. Correlation studies want ``num_train=300``.

    Args:
        num_train: Number of training images; the other ``1797 - num_train`` are for
            testing.
        key: Random key of the split.
        image: Whether to return images ``[n, 8, 8, 1]`` rather than vectors
            ``[n, 64]``.

    Returns:
        The data set.

    Raises:
        ValueError: `num_train` leaves no training or no test image.
        ImportError: scikit-learn is not installed.

    Example:
        >>> import jax
        >>> from jaxtheory import data
        >>> x, y, x_test, y_test, *_ = data.digits(num_train=300, key=jax.random.key(0))
        >>> x.shape, y.shape, x_test.shape
        ((300, 64), (300,), (1497, 64))

    References:
        Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine
        Learning Repository (its test set is what scikit-learn holds).
    """
    check_key(key)
    check_count(num_train=num_train)
    if num_train >= _NUM_IMAGES:
        raise ValueError(
            f"`num_train` must leave test images, so be at most {_NUM_IMAGES - 1}, but "
            f"was {num_train}."
        )
    x, y = _shuffled(key, *_load())
    mean, std = jnp.mean(x[:num_train]), jnp.std(x[:num_train])
    x = jnp.reshape((x - mean) / std, (-1, 8, 8, 1) if image else (-1, 64))
    return Digits(
        x_train=x[:num_train],
        y_train=y[:num_train],
        x_test=x[num_train:],
        y_test=y[num_train:],
        num_classes=10,
        mean=mean,
        std=std,
    )


@jax.jit
def _shuffled(key, pixels, labels):
    """In one program; standardised in it, numbers would round in another way."""
    order = jax.random.permutation(key, _NUM_IMAGES)
    return (
        jnp.asarray(pixels, float)[order],
        jnp.asarray(labels, jnp.int32)[order],
    )


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[1797, 64]`` from 0 to 16, and labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: "
            'pip install "jaxtheory[data]".'
        ) from error
    bunch: Any = load_digits()
    return bunch.data, bunch.target
