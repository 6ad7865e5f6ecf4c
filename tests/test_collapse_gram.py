"""The kernel form of NC1 against features with the same inner products."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import nc1_ratio_from_gram

LABELS = np.repeat([0, 2, 3, 4], [22, 12, 5, 1])


@pytest.mark.parametrize("class_weights", ["equal", "counts"])
def test_imbalanced_classes_against_features(class_weights):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 6))
    features = means[LABELS] + 0.4 * rng.normal(size=(40, 6)) + 2
    classes = np.unique(LABELS)
    own = np.array([features[c == LABELS].mean(0) for c in classes])
    shares = np.array([(c == LABELS).mean() for c in classes])
    weights = shares if class_weights == "counts" else np.full(4, 1 / 4)
    within = sum(
        ((features[c == LABELS] - m) ** 2).sum() / 40
        for c, m in zip(classes, own, strict=True)
    )
    between = weights @ ((own - weights @ own) ** 2).sum(1)
    gram = jnp.asarray(features @ features.T, jnp.float32)
    found = nc1_ratio_from_gram(gram, jnp.asarray(LABELS), class_weights=class_weights)
    np.testing.assert_allclose(found, within / between, rtol=1e-5)


@pytest.mark.parametrize(
    ("activation", "published"), [("erf", (0.105, 0.211)), ("relu", (0.115, 0.229))]
)
def test_infinitely_wide_networks_on_two_gaussians(x64, activation, published):
    """Of a network with one hidden layer: its limiting kernel, and its tangent kernel.

    Classes N(-2, 0.5^2) and N(2, 0.5^2) in each of 128 directions, 1024 examples, as
    published; their draw is another one, and differs by a percent.
    """
    rng, labels = np.random.default_rng(0), np.arange(1024) % 2
    x = (4.0 * labels - 2)[:, None] + 0.5 * rng.normal(size=(1024, 128))
    inner = x @ x.T / 128
    own = np.diag(inner)
    if activation == "erf":
        square = np.outer(1 + 2 * own, 1 + 2 * own)
        kernel = 2 / np.pi * np.arcsin(2 * inner / np.sqrt(square))
        slope = 4 / np.pi / np.sqrt(square - 4 * inner**2)
    else:
        norms = np.sqrt(np.outer(own, own))
        angle = np.arccos(np.clip(inner / norms, -1, 1))
        slope = (np.pi - angle) / (2 * np.pi)
        kernel = norms * np.sin(angle) / (2 * np.pi) + inner * slope
    for gram, value in zip((kernel, kernel + inner * slope), published, strict=True):
        found = nc1_ratio_from_gram(jnp.asarray(gram), jnp.asarray(labels))
        np.testing.assert_allclose(found, value, rtol=0.015)


def test_what_has_no_ratio():
    gram = np.eye(40, dtype=np.float32)
    labels = jnp.asarray(LABELS)
    same = jnp.asarray(np.ones((40, 40), np.float32))
    assert nc1_ratio_from_gram(same, labels) == jnp.inf
    gram[3, 4] = np.nan
    assert jnp.isnan(nc1_ratio_from_gram(jnp.asarray(gram), labels))


def test_bad_input_names_the_fix(user_land):
    gram: Any = jnp.eye(6)
    labels: Any = jnp.arange(6) % 3
    with pytest.raises(ValueError, match=r"`gram` must be square.*\(6, 4\)"):
        nc1_ratio_from_gram(gram[:, :4], labels)
    with pytest.raises(ValueError, match=r"`labels` must have as many examples"):
        nc1_ratio_from_gram(gram, labels[:5])
    with pytest.raises(ValueError, match=r"`class_weights` must be one of"):
        nc1_ratio_from_gram(gram, labels, class_weights="mean")
