"""NC1 to NC4 of training and test images along training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.collapse.networks import CLASSES, read
from jaxtheory import collapse

# NC1 in three forms, NC2 in four, NC3 in two, NC4.
STATISTICS = {
    "nc1": "NC1",
    "nc1_ratio": "NC1 ratio",
    "cdnv": "CDNV",
    "nc2": "NC2",
    "nc2_equinorm": "equinorm",
    "nc2_equiangular": "equiangular",
    "nc2_classifier": "NC2 of W",
    "nc3": "NC3",
    "nc3_cosine": "NC3 cosine",
    "nc4": "NC4",
}
FALLING = tuple(STATISTICS)[:-1]  # NC4 is 0 soon


class Curves(NamedTuple):
    """One loss along training; arrays are ``[s, r]``: seeds and records.

    Attributes:
        train: By name of the statistic, of training images.
        test: The same of test images, around their own class means.
        across: NC1 of test images around the means of training images.
        error: Training error.
        test_error: Test error.
        gram: Gram matrix of centred class means over its norm, ``[s, r, k, k]``.
        terminal: First record from which on there is no training error; NaN where
            there is none, as it then is in what is measured from there on. ``[s]``.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    across: np.ndarray
    error: np.ndarray
    test_error: np.ndarray
    gram: np.ndarray
    terminal: np.ndarray


def make_look(model: Any, task: Any) -> Callable[[Any], dict[str, Any]]:
    """The measurement that is recorded along training."""

    def look(state):
        """The statistics of training and test images, and the frame of the means."""
        features, classifier = read(model, state, task.x_train)
        sets = {
            "train": (features, task.y_train),
            "test": (read(model, state, task.x_test)[0], task.y_test),
        }
        found = collapse.compare_sets(sets, reference="train", classifier=classifier)
        by_class = jnp.reshape(features, (CLASSES, -1, features.shape[1]))
        means = jnp.mean(by_class, axis=1)
        means -= jnp.mean(means, axis=0, keepdims=True)
        gram = jnp.matmul(means, means.T, precision="highest")
        return found | {"gram": gram / jnp.linalg.norm(gram)}

    return look


def curves_of(records: Any) -> Curves:
    """What was recorded of one seed."""
    train, test = records["train"].own, records["test"].own
    wrong = np.flatnonzero(train.classifier_error > 0)
    first = wrong[-1] + 1 if wrong.size else 0
    return Curves(
        {name: getattr(train, name) for name in STATISTICS},
        {name: getattr(test, name) for name in STATISTICS},
        records["test"].across.nc1,
        train.classifier_error,
        test.classifier_error,
        records["gram"],
        np.array(first if first < len(train.nc1) else np.nan),
    )
