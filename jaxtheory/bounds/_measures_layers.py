"""Measures of features: neural collapse, the law of separation, their ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory import collapse, kernels
from jaxtheory._types import Params

_STATISTICS = (
    "nc1",
    "nc1_ratio",
    "nc2",
    "nc2_equinorm",
    "nc2_equiangular",
    "nc3",
    "nc4",
    "cdnv",
    "directional_cdnv",
)


def layer_measures(
    layers: Callable[[Any, Any], Any],
    classifier: Callable[[Any], Any] | None,
    params: Params,
    x: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    num_classes: int,
) -> dict[str, Array]:
    """What features tell of classes.

    Args:
        layers: Features of all layers, from the input side.
        classifier: The last layer as a pair, or None.
        params: Parameters.
        x: Inputs.
        labels: Class of each example.
        num_classes: Number of outputs.

    Returns:
        One number for each name.
    """
    found = layers(params, x)
    features = [*(found.values() if isinstance(found, Mapping) else found)]
    flat = [jnp.reshape(h, (h.shape[0], -1)) for h in features]
    last = flat[-1]
    head = None if classifier is None else classifier(params)
    numbers = collapse.statistics(
        last, labels, classifier=head, num_classes=num_classes
    )
    named = {name: getattr(numbers, name) for name in _STATISTICS}
    named = {name: value for name, value in named.items() if value is not None}
    gram = jnp.matmul(last, last.T, precision="highest")
    targets = jax.nn.one_hot(labels, num_classes, dtype=gram.dtype)
    centred = last - jnp.mean(last, axis=0, keepdims=True)
    named |= {
        "feature_alignment": kernels.centred_alignment(gram, targets),
        "feature_rank": collapse.effective_ranks(centred).entropy,
    }
    if len(flat) < 3:
        return named
    law = collapse.separation_law(flat, labels, num_classes=num_classes)
    return named | {
        "separation": law.values[-1],
        "separation_ratio": law.ratio,
        "separation_drop_variation": law.drop_variation,
    }
