"""One set measured with another's class means, against NumPy loops."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import compare_sets, statistics

K, D = 4, 6


def make(seed, counts, shift=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = np.random.default_rng(9).normal(size=(len(counts), D))
    features = means[labels] + 0.6 * rng.normal(size=(len(labels), D)) + shift
    return features.astype(np.float32), labels


def arrays(pair):
    return jnp.asarray(pair[0]), jnp.asarray(pair[1])


TRAIN, TEST = make(0, [12, 10, 9, 9]), make(1, [11, 10, 10, 9], shift=0.2)
CLASSIFIER = np.random.default_rng(2).normal(size=(K, D)).astype(np.float32)


def oracle(train, test):
    """NC1, nearest-mean error, NC4 and mean shift with the training means."""
    (h, y), (g, z) = train, test
    means = np.array([h[y == c].mean(0) for c in range(K)], np.float64)
    centred = means - means.mean(0)
    between = centred.T @ centred / K
    rest = g - means[z]
    nc1 = np.trace(rest.T @ rest / len(g) @ np.linalg.pinv(between, rcond=1e-10)) / K
    nearest = ((g[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    predicted = (g @ CLASSIFIER.T).argmax(1)
    own = np.array([g[z == c].mean(0) for c in range(K)], np.float64)
    shift = ((own - means) ** 2).sum(1).mean() / np.trace(between)
    return nc1, np.mean(nearest != z), np.mean(predicted != nearest), shift


def test_sets_side_by_side():
    sets = {"train": arrays(TRAIN), "test": arrays(TEST)}
    classifier = (jnp.asarray(CLASSIFIER), None)
    found = compare_sets(sets, reference="train", classifier=classifier)
    for name, pair in sets.items():
        alone = statistics(*pair, classifier=classifier)
        np.testing.assert_array_equal(found[name].own.nc1, alone.nc1)
        np.testing.assert_array_equal(found[name].own.nc4, alone.nc4)
    assert found["train"].across is None
    across: Any = found["test"].across
    expected = oracle(TRAIN, TEST)
    fields = (across.nc1, across.nearest_mean_error, across.nc4, across.mean_shift)
    np.testing.assert_allclose(fields, expected, rtol=2e-5)
    chunked: Any = compare_sets(
        sets, reference="train", classifier=classifier, batch_size=16
    )["test"].across
    np.testing.assert_allclose(chunked[:4], across[:4], rtol=1e-5)


def test_a_target_of_other_classes_has_its_own_means_alone():
    target = make(3, [20, 20])
    sets = {"train": arrays(TRAIN), "test": arrays(TEST), "target": arrays(target)}
    found = compare_sets(
        sets,
        reference="train",
        other_classes=("target",),
        classifier=(jnp.asarray(CLASSIFIER), None),
    )["target"]
    assert (found.across, found.own.nc4) == (None, None)
    assert found.own.class_counts.size == 2
    np.testing.assert_array_equal(found.own.nc1, statistics(*arrays(target)).nc1)


def test_classes_that_the_reference_lacks_are_left_out_and_counted():
    keep = TRAIN[1] != 2
    few = (TRAIN[0][keep], TRAIN[1][keep])
    sets = {"train": arrays(few), "test": arrays(TEST)}
    across: Any = compare_sets(sets, reference="train")["test"].across
    assert int(across.num_left_out) == 10
    rename = np.array([0, 1, -1, 2])
    inside = TEST[1] != 2
    renamed = {
        "train": arrays((few[0], rename[few[1]])),
        "test": arrays((TEST[0][inside], rename[TEST[1][inside]])),
    }
    expected: Any = compare_sets(renamed, reference="train")["test"].across
    np.testing.assert_allclose(across[:2], expected[:2], rtol=1e-5)
    np.testing.assert_allclose(across.mean_shift, expected.mean_shift, rtol=1e-5)


H: Any = jnp.ones((6, 4))
Y: Any = jnp.arange(6) % 3


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({"a": (H, Y)}, {"reference": "b"}, r"`sets` must hold 'b'.*\['a'\]"),
        ({"a": H}, {"reference": "a"}, r"`sets` must be a dictionary of pairs"),
        (
            {"a": (H, Y), "b": (H[:, :2], Y)},
            {"reference": "a"},
            r"`sets\['b'\]\[0\]` must have the 4 features",
        ),
        (
            {"a": (H, Y)},
            {"reference": "a", "other_classes": "a"},
            r"`other_classes` must be a sequence of names",
        ),
        (
            {"a": (H, Y)},
            {"reference": "a", "other_classes": ["a"]},
            r"`other_classes` must not hold the reference",
        ),
        ({"a": (H[0], Y)}, {"reference": "a"}, r"`sets\['a'\]\[0\]` must be a matrix"),
    ],
)
def test_bad_input_names_the_fix(sets: Any, options: Any, message, user_land):
    with pytest.raises(ValueError, match=message):
        compare_sets(sets, **options)
