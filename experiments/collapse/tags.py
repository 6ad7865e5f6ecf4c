"""Images of one digit or two with their tags, and what networks make of them."""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.collapse.networks import CLASSES, fitting_decay, read, read_exactly
from jaxtheory import collapse, data
from jaxtheory.collapse import theory

STATISTICS = {
    "nc1_single": "NC1, one tag",
    "nc1_pair": "NC1 ratio, two tags",
    "nc2_single": "NC2, one tag",
    "nc2_classifier": "NC2 of the classifier",
    "nc3_single": "NC3, one tag",
    "angle_ratio": "two tags, angle to their sum / to all",
    "residual": "two tags, not in the sum",
    "seen": "the same where the classifier sees it",
}


def make_images(config: Any, key: Any) -> list[tuple[Any, Any]]:
    """Training and test images ``[n, 2, 64]`` and their tags ``[n, 10]``.

    One digit beside a blank, or two, in either order; single digits come first.
    """
    digits = data.digits(num_train=1297, key=key)
    draw = np.random.default_rng(config.seed)
    blank = -np.asarray(digits.mean) / np.asarray(digits.std)
    found = []
    for x, y, share in (
        (digits.x_train, digits.y_train, 1.0),
        (digits.x_test, digits.y_test, config.test_share),
    ):
        single = max(2, round(config.single_examples * share))
        pair = max(2, round(config.pair_examples * share))
        sets = [(k,) for k in range(CLASSES) for _ in range(single)]
        sets += [s for s in combinations(range(CLASSES), 2) for _ in range(pair)]
        found.append(_drawn(np.asarray(x), np.asarray(y), sets, blank, draw))
    return found


def _drawn(images, labels, sets, blank, draw):
    """An image of each set of digits, drawn at random, and its tags."""
    slots = np.full((len(sets), 2, 64), blank, np.float32)
    tags = np.zeros((len(sets), CLASSES), np.float32)
    for row, members in enumerate(sets):
        order = draw.permutation(2)
        for place, k in zip(order, members, strict=False):
            slots[row, place] = images[draw.choice(np.flatnonzero(labels == k))]
        tags[row, list(members)] = 1
    return jnp.asarray(slots), jnp.asarray(tags)


def make_look(model: Any, train: Any, test: Any) -> Callable[[Any], dict[str, Any]]:
    """The measurement that is recorded along training."""
    label_sets = np.unique(np.asarray(train[1]) > 0, axis=0)
    # Traced once where both sets have the same shapes.
    measure = jax.jit(partial(_measured, label_sets), static_argnums=2)

    def of_set(state, x, tags):
        num_single = int(np.sum(np.asarray(tags).sum(axis=1) == 1))
        # Else the compiler folds what follows from the tags alone, and takes seconds.
        x, tags = jax.lax.optimization_barrier((x, tags))
        return measure(read(model, state, x), tags, num_single)

    return lambda state: {"train": of_set(state, *train), "test": of_set(state, *test)}


def _measured(label_sets, network, tags, num_single):
    """The statistics, and what else is recorded, of a set that begins with one tag."""
    features, (weight, bias) = network
    compose = partial(
        collapse.multi_label_statistics, labels=tags, label_sets=label_sets
    )
    composed = compose(features, classifier=(weight, bias), centre_means=True)
    span = jnp.linalg.qr(weight.T)[0]
    seen = compose(jnp.matmul(features, span, precision="highest"), centre_means=True)
    pairs = collapse.statistics(
        features[num_single:],
        composed.set_index[num_single:] - CLASSES,
        num_classes=math.comb(CLASSES, 2),
    )
    outputs = jnp.matmul(features, weight.T) + bias[None, :]
    least = jnp.min(jnp.where(tags > 0, outputs, jnp.inf), axis=1)
    other = jnp.max(jnp.where(tags > 0, -jnp.inf, outputs), axis=1)
    return {
        "nc1_single": composed.single.nc1,
        "nc1_pair": pairs.nc1_ratio,
        "nc2_single": composed.single.nc2,
        "nc2_classifier": composed.single.nc2_classifier,
        "nc3_single": composed.single.nc3,
        "angle_ratio": composed.angle_ratio[1],
        "residual": composed.residuals[1],
        "scale": composed.scales[1],
        "seen": seen.residuals[1],
        "uncentred": compose(features).residuals[1],
        "error": jnp.mean(least <= other),
    }


def beside_optimum(
    config: Any, model: Any, state: Any, train: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted scale, margins, predicted margins of one trained network."""
    features, weight, bias = read_exactly(model, state, train[0])
    decay = config.weight_decay
    optimum = theory.pick_all_label_optimum(
        [config.single_examples, config.pair_examples],
        num_classes=CLASSES,
        weight_decay=decay,
        feature_decay=fitting_decay(decay, weight, features),
    )
    tags, outputs = np.asarray(train[1]), features @ weight.T + bias
    sizes = tags.sum(axis=1)
    apart = np.sum(outputs * tags, axis=1) / sizes
    apart -= np.sum(outputs * (1 - tags), axis=1) / (CLASSES - sizes)
    margins = np.array([apart[sizes == m].mean() for m in (1, 2)])
    scale = np.asarray(optimum.scales[1] / optimum.scales[0])
    return scale, margins, np.asarray(optimum.margins)
