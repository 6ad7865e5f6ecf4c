"""Imbalanced geometry: zero at each predicted frame, and NumPy away from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import _imbalance as module
from jaxtheory.collapse import imbalance_statistics
from jaxtheory.collapse.theory import (
    general_orthogonal_frame,
    simplex_encoded_labels,
    simplex_frame,
)

COUNTS = np.array([12, 7, 2, 1])
LABELS = jnp.asarray(np.repeat(np.arange(4), COUNTS))
FRAMES = {
    "etf": simplex_frame(4),
    "seli": simplex_encoded_labels(COUNTS),
    "orthogonal": general_orthogonal_frame(COUNTS),
}


def rows_of(gram):
    """Six-dimensional rows with a given Gram matrix, in a random orientation."""
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.maximum(values, 0))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    return jnp.asarray(root @ turn[:4], jnp.float32)


def unit(gram):
    return gram / np.linalg.norm(gram)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("name", FRAMES)
def test_each_frame_is_at_distance_zero_from_itself(name, centre):
    weight, means = map(rows_of, FRAMES[name])
    found = imbalance_statistics(
        1e-12 * means[LABELS], LABELS, classifier=(weight, None), centre_means=centre
    )
    middle = np.eye(4) - 0.25 if centre else np.eye(4)
    for other, (weight_target, mean_target) in FRAMES.items():
        assert found.classifier is not None
        expected = np.linalg.norm(
            unit(FRAMES[name].classifier_gram) - unit(weight_target)
        )
        np.testing.assert_allclose(
            getattr(found.classifier, other), expected, atol=2e-6
        )
        gram = middle @ FRAMES[name].mean_gram @ middle
        target = middle @ mean_target @ middle
        expected = np.linalg.norm(unit(gram) - unit(target))
        np.testing.assert_allclose(getattr(found.means, other), expected, atol=2e-6)


def test_minority_of_arbitrary_rows_matches_loops():
    rng = np.random.default_rng(0)
    weight, features = rng.normal(size=(4, 6)), rng.normal(size=(22, 6)) + 2
    found = imbalance_statistics(
        jnp.asarray(features, jnp.float32),
        LABELS,
        classifier=(jnp.asarray(weight, jnp.float32), None),
    )
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_array_equal(found.minority, [False, False, True, True])
    np.testing.assert_array_equal(found.class_counts, COUNTS)
    np.testing.assert_allclose(
        found.minority_cosine, cosine(weight[2], weight[3]), rtol=1e-5
    )
    norms = np.linalg.norm(weight, axis=1)
    np.testing.assert_allclose(
        found.minority_norm_ratio, norms[2:].mean() / norms[:2].mean(), rtol=1e-5
    )
    means = np.array([features[np.asarray(LABELS) == c].mean(0) for c in range(4)])
    means -= means.mean(0)
    np.testing.assert_allclose(
        found.minority_mean_cosine, cosine(means[2], means[3]), rtol=1e-5
    )
    target = np.eye(4) - 0.25
    np.testing.assert_allclose(
        found.means.etf,
        np.linalg.norm(unit(means @ means.T) - unit(target)),
        rtol=1e-5,
    )


def test_an_offset_of_the_features_changes_no_angle_of_centred_means():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(4, 6))[np.asarray(LABELS)] + rng.normal(size=(22, 6))
    shifted = (features + 1e4).astype(np.float32)
    found = imbalance_statistics(jnp.asarray(shifted), LABELS)
    rows = shifted.astype(np.float64)
    means = np.array([rows[np.asarray(LABELS) == c].mean(0) for c in range(4)])
    means -= means.mean(0)
    target = np.eye(4) - 0.25
    expected = np.linalg.norm(unit(means @ means.T) - unit(target))
    np.testing.assert_allclose(found.means.etf, expected, rtol=1e-5)
    a, b = means[2:]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found.minority_mean_cosine, cosine, atol=2e-6)


def test_a_given_minority_and_one_without_pairs():
    weight = rows_of(FRAMES["etf"].classifier_gram)
    three = imbalance_statistics(
        weight[LABELS],
        LABELS,
        classifier=(weight, None),
        minority=jnp.array([False, True, True, True]),
    )
    np.testing.assert_allclose(three.minority_cosine, -1 / 3, atol=1e-6)
    np.testing.assert_allclose(three.minority_norm_ratio, 1, atol=1e-6)
    one = jnp.array([False, False, False, True])
    alone = imbalance_statistics(
        weight[LABELS], LABELS, classifier=(weight, None), minority=one
    )
    assert jnp.isnan(alone.minority_cosine)


def test_absent_classes_and_broken_examples_take_no_part():
    weight, means = map(rows_of, FRAMES["seli"])
    features = jnp.concatenate([means[LABELS], jnp.full((3, 6), jnp.nan)])
    labels = jnp.concatenate([LABELS, jnp.array([0, 9, -1])]) + 1  # class 0 is absent
    measure = jax.jit(lambda h, y, w: imbalance_statistics(h, y, classifier=(w, None)))
    found = measure(features, labels, jnp.concatenate([9 * weight[:1], weight]))
    np.testing.assert_array_equal(found.class_counts, [0, *COUNTS])
    assert int(found.num_nonfinite) == 3
    assert int(found.num_out_of_range) == 1
    np.testing.assert_allclose(found.means.seli, 0, atol=2e-6)
    np.testing.assert_allclose(found.classifier.seli, 0, atol=2e-6)
    np.testing.assert_array_equal(found.minority, [False, False, False, True, True])


def test_no_means_at_all_have_no_distance():
    found = imbalance_statistics(
        jnp.full((22, 6), 0.3), LABELS, classifier=(jnp.zeros((4, 6)), None)
    )
    np.testing.assert_array_equal(found.means, np.full(3, np.nan))
    assert found.classifier is not None
    assert jnp.isnan(found.classifier.etf)
    assert float(found.minority_cosine) == 0  # pyright: ignore


def test_the_same_shapes_are_traced_once():
    features = jnp.ones((22, 6)).at[0].set(2)
    imbalance_statistics(features, LABELS)
    before = module._imbalance._cache_size()
    imbalance_statistics(3 * features, LABELS)
    assert module._imbalance._cache_size() == before


H = jnp.ones((22, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: imbalance_statistics(H[:, :, None], LABELS),
            r"`features` must be a matrix",
        ),
        (
            lambda: imbalance_statistics(
                H, LABELS, classifier=(jnp.ones((6, 4)), None)
            ),
            r"`classifier\[0\]` .* must have shape \[k, d\].*\(6, 4\).*transpose it",
        ),
        (
            lambda: imbalance_statistics(
                H, LABELS, classifier=(jnp.ones((5, 6)), None), num_classes=4
            ),
            r"`num_classes` must be 5, the number of rows",
        ),
        (
            lambda: imbalance_statistics(H, LABELS, minority=jnp.ones((4, 1), bool)),
            r"`minority` must have shape \[k\]",
        ),
        (
            lambda: imbalance_statistics(H, LABELS, minority=jnp.arange(4)),
            r"`minority` must be an array of True .*int.*isin",
        ),
        (
            lambda: imbalance_statistics(H, LABELS, num_classes=3),
            r"`labels` must lie in \[0, 3\)",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
