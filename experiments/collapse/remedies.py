"""Networks on digits of which half are rare, and what undoes the imbalance."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.collapse.networks import (
    CLASSES,
    Trainer,
    balanced_rows,
    fitting_decay,
    read_exactly,
)
from jaxtheory import collapse, data
from jaxtheory.collapse import theory

MAJORITY = 5
REMEDIES = ("none", "square root", "inverse", "oversampling")
_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Networks(NamedTuple):
    """Networks of one remedy, by imbalance ratio and seed, ``[a, s]``.

    Attributes:
        row_cosine: Mean cosine of two minority rows of the classifier.
        mean_cosine: The same of centred class means of training images.
        length_ratio: Mean length of minority rows over that of the others.
        minority_error: Test error on the rare digits.
        majority_error: Test error on the others.
        train_error: On the images that were trained with.
        margin_of_collapse: Examples of a rare class over ``N^2 lw lh``: with free
            features, rows are equal where it is at most 1.
        predicted_cosine: `row_cosine` of free features with that ``lh``; NaN for
            remedies.
    """

    row_cosine: np.ndarray
    mean_cosine: np.ndarray
    length_ratio: np.ndarray
    minority_error: np.ndarray
    majority_error: np.ndarray
    train_error: np.ndarray
    margin_of_collapse: np.ndarray
    predicted_cosine: np.ndarray


class Problem:
    """What all networks share, so that programs are compiled once."""

    def __init__(self, config: Any):
        self.config = config
        self.trainer = Trainer(
            config, config.num_steps, batch_norm=True, free_bias=False
        )
        keys = [_split_key(config.seed, seed) for seed in range(config.num_seeds)]
        self._seeds = [
            (data.digits(num_train=1297, key=first), *others) for first, *others in keys
        ]

    def objective(self, params, model_state, batch, key):
        """Weighted mean loss of images drawn with given probabilities."""
        x, y, probabilities, weights = batch
        drawn = jax.random.choice(
            key, len(x), (self.config.batch_size,), p=probabilities
        )
        outputs, model_state = self.trainer.model.apply(
            {"params": params, **model_state},
            x[drawn],
            train=True,
            mutable=list(model_state),
        )
        return jnp.mean(weights[drawn] * _cross_entropy(outputs, y[drawn])), model_state

    def network(self, few: int, remedy: str, seed: int) -> tuple[float, ...]:
        """One network; the fields of `Networks`."""
        digits, key_init, key_train = self._seeds[seed]
        many, labels = self.config.minority_counts[0], np.asarray(digits.y_train)
        rows = balanced_rows(labels, "minority_counts", many)
        x, y = np.asarray(digits.x_train)[rows], labels[rows]
        counts = np.array([many] * MAJORITY + [few] * (CLASSES - MAJORITY))
        kept = np.arange(len(y)) % many < counts[y]
        history = self.trainer.train(
            self.objective,
            self.trainer.start(jax.random.clone(key_init), x),
            (x, y, *shares(remedy, counts, y, kept)),
            key=jax.random.clone(key_train),
        )
        test = np.asarray(digits.x_test), np.asarray(digits.y_test)
        found, decays = self._measured(history.state, (x, y, kept), test, counts)
        predicted = remedy == "none"
        return *found, _predicted_cosine(counts, decays) if predicted else math.nan

    def _measured(self, state, train, test, counts):
        """All fields of `Networks` but the last, and the decays of both factors."""
        x, y, kept = train
        decay = self.config.weight_decay
        # In one piece, so that one program reads networks of all counts.
        every = np.concatenate([x, test[0]])
        features, weight, bias = read_exactly(self.trainer.model, state, every)
        guess = np.argmax(features @ weight.T + bias, axis=1)
        wrong, rare = guess[len(x) :] != test[1], test[1] >= MAJORITY
        features = features[: len(x)][kept]
        found: Any = collapse.imbalance_statistics(
            jnp.asarray(features, jnp.float32),
            jnp.asarray(y[kept]),
            classifier=(jnp.asarray(weight, jnp.float32), None),
            minority=jnp.asarray(np.arange(CLASSES) >= MAJORITY),
        )
        decays = {
            "weight_decay": decay,
            "feature_decay": fitting_decay(decay, weight, features),
        }
        threshold = theory.minority_collapse_threshold(
            "cross_entropy", len(features), **decays
        )
        return (
            float(found.minority_cosine),
            float(found.minority_mean_cosine),
            float(found.minority_norm_ratio),
            wrong[rare].mean(),
            wrong[~rare].mean(),
            np.mean(guess[: len(x)][kept] != y[kept]),
            counts[-1] / threshold,
        ), decays


@jax.jit
def _split_key(seed, index):
    """Keys of the split, of the start and of training."""
    return list(jax.random.split(jax.random.fold_in(jax.random.key(seed), index), 3))


def shares(
    remedy: str, counts: np.ndarray, labels: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of drawing each image, and weight of its loss."""
    present, weights = kept.astype(np.float32), np.ones(len(kept), np.float32)
    if remedy == "oversampling":
        by_class = collapse.class_weights(counts)
        drawn = collapse.sampling_probabilities(jnp.asarray(labels), by_class)
        present *= np.asarray(drawn)
    elif remedy != "none":
        rule = "inverse" if remedy == "inverse" else "square_root"
        weights = np.asarray(collapse.class_weights(counts, rule=rule))[labels]
    return present / np.asarray(jnp.sum(present)), weights


def _predicted_cosine(counts, decays):
    """Mean cosine of two minority rows of free features."""
    cosines = theory.predicted_geometry(
        "cross_entropy",
        counts,
        **decays,
        bias_decay=decays["weight_decay"],
        key=jax.random.key(0),
    ).classifier_cosines[MAJORITY:, MAJORITY:]
    return cosines[np.triu_indices(len(cosines), 1)].mean()
