"""Free features with several tags: a solver against the closed form."""

from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import collapse
from jaxtheory.collapse import theory

# Classes, examples of each set with one tag, two tags and so on, decays of both.
FREE = (
    (4, (5, 3), (2e-3, 2e-3)),
    (5, (2, 4), (1e-3, 3e-3)),
    (5, (2, 4, 1), (1e-3, 1e-3)),
)


class Solved(NamedTuple):
    """A solver against the closed form.

    Attributes:
        name: What is solved.
        margins: At the optimum, by number of tags.
        scales: Of sums, over that of one tag.
        margin_error: Largest difference of a margin that the solver finds.
        scale_error: The same of a scale, as `multi_label_statistics` measures it.
        residual: Largest part of the mean of a set that is not in the sum.
    """

    name: str
    margins: np.ndarray
    scales: np.ndarray
    margin_error: float
    scale_error: float
    residual: float


def pick_all_label(outputs, tags):
    """The sum of the cross-entropies of all tags; rows of `tags` are 0 and 1."""
    return -jnp.sum(tags * jax.nn.log_softmax(outputs), axis=1)


def solve(num_classes, per_set, both) -> Solved:
    """The solver from a random start, one vector for each set of tags."""
    decays = dict(zip(("weight_decay", "feature_decay"), both, strict=True))
    optimum = theory.pick_all_label_optimum(per_set, num_classes=num_classes, **decays)
    sets = [
        members
        for m in range(1, len(per_set) + 1)
        for members in combinations(range(num_classes), m)
    ]
    tags = np.array([[float(k in s) for k in range(num_classes)] for s in sets])
    sizes = tags.sum(axis=1).astype(int)
    found = theory.unconstrained_features(
        pick_all_label,
        tags,
        counts=np.array(per_set)[sizes - 1],
        **decays,
        num_outputs=num_classes,
        key=jax.random.key(0),
    )
    inside = np.where(tags > 0, found.outputs, np.inf).min(axis=1)
    outside = np.where(tags > 0, -np.inf, found.outputs).max(axis=1)
    errors = np.abs(inside - outside - optimum.margins[sizes - 1])
    with jax.enable_x64(True):
        measured = jax.device_get(
            collapse.multi_label_statistics(
                jnp.asarray(found.features), jnp.asarray(tags)
            )
        )
    scales = optimum.scales / optimum.scales[0]
    counts = " and ".join(str(n) for n in per_set)
    return Solved(
        f"{num_classes} classes, {counts} examples a set",
        *(optimum.margins, scales),
        float(errors.max()),
        float(np.max(np.abs(measured.scales - scales))),
        float(np.max(measured.residuals)),
    )
