"""Solvers a little below and above the thresholds of minority collapse."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import collapse
from jaxtheory.collapse import theory

# Majority and minority classes, examples of each.
FREE = ((3, 3, 30, 5), (5, 5, 100, 10), (2, 6, 40, 4), (7, 3, 200, 2))
# Majority and minority classes, energy of features and of weights.
PEELED = ((5, 5, 5, 1), (7, 3, 5, 1), (3, 7, 5, 1), (5, 5, 10, 1))
SIDES = (0.98, 1.02)
_SIZES = ("num_majority", "num_minority", "feature_energy", "weight_energy")
_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Bracket(NamedTuple):
    """A model below and above its threshold: entries are those of `SIDES`.

    Attributes:
        name: What is solved.
        apart: How far minority rows are from being collapsed: their largest distance
            over the longest row.
        gap: How much lower the objective could be, proved by duality; NaN for weighted
            losses.
    """

    name: str
    apart: np.ndarray
    gap: np.ndarray


def brackets() -> list[Bracket]:
    """Free features with three losses, and the layer-peeled model."""
    losses = ("cross_entropy", "squared_error", "weighted")
    free = [_free(*case, loss=loss) for case in FREE for loss in losses]
    return free + [_peeled(case) for case in PEELED]


def _free(majority, minority, many, few, *, loss) -> Bracket:
    """Free features where `few` is 2 % less and more than the threshold.

    For the weighted loss the decays are four times too strong for `few` (but not for
    `many`), and its weight is 2 % less and more than what brings it back.
    """
    counts = np.array([many] * majority + [few] * minority)
    total, labels = int(counts.sum()), np.arange(len(counts))
    apart, gaps = [], []
    for side in SIDES:
        strength = 4.0 if loss == "weighted" else 1 / side
        decay = math.sqrt(strength * few) / total
        decays: dict[str, Any] = {"weight_decay": decay, "feature_decay": decay}
        solved: Any = loss
        if loss == "weighted":
            least = np.asarray(collapse.escape_weights(counts, **decays), float)
            solved = _Weighted(tuple(np.where(counts == few, side * least, 1.0)))
        else:
            bound = theory.minority_collapse_threshold(loss, total, **decays)
            np.testing.assert_allclose(few, side * bound)
        options = {"counts": counts, **decays}
        found = theory.unconstrained_features(
            solved, labels, num_outputs=len(counts), key=jax.random.key(0), **options
        )
        rows = found.layers[0]
        apart.append(_apart(rows, majority))
        both = {"classifier": (rows, None), "features": found.features}
        gap = math.nan
        if loss != "weighted":
            gap = theory.optimality_gap(loss, labels, **both, **options).gap
        gaps.append(gap)
    name = f"{loss.replace('_', ' ')}, {majority} x {many} + {minority} x {few}"
    return Bracket(name, np.array(apart), np.array(gaps))


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """Cross-entropy with a weight for each class."""

    weights: tuple[float, ...]

    def __call__(self, outputs, labels):
        return jnp.asarray(self.weights)[labels] * _cross_entropy(outputs, labels)


def _apart(rows, majority):
    """Largest distance of two minority rows over the longest row of all."""
    few = rows[majority:]
    distances = np.linalg.norm(few[:, None] - few[None], axis=2)
    return np.max(distances) / np.max(np.linalg.norm(rows, axis=1))


def _peeled(case) -> Bracket:
    """The layer-peeled model at its threshold; more imbalance collapses."""
    threshold, sizes = peeled_threshold(case)
    found = [theory.layer_peeled(threshold / side, **sizes) for side in SIDES]
    grams = [model.geometry.classifier_gram for model in found]
    # Of equal lengths and cosines: the square of the distance from the Gram matrix.
    apart = [
        math.sqrt(max(2 * (g[-1, -1] - g[-1, -2]), 0) / np.max(np.diag(g)))
        for g in grams
    ]
    name = f"layer-peeled, {case[0]} + {case[1]}, R0 = {threshold:.6g}"
    return Bracket(name, np.array(apart), np.array([m.optimality_gap for m in found]))


def peeled_threshold(case: tuple[float, ...]) -> tuple[float, dict[str, Any]]:
    """The ratio ``R_0`` from which on minority rows are one, and the sizes by name."""
    sizes: dict[str, Any] = dict(zip(_SIZES, case, strict=True))
    return theory.layer_peeled_threshold(**sizes), sizes
