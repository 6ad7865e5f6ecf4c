"""Multi-label collapse: the optimum of the theory, NumPy loops, refused labels."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import _multilabel as module
from jaxtheory.collapse import multi_label_statistics, statistics
from jaxtheory.collapse.theory import pick_all_label_optimum

K = 4
SETS = [s for m in (1, 2) for s in combinations(range(K), m)]
HOT = np.array([[c in s for c in range(K)] for s in SETS])
REPEATS = np.array([5] * K + [3] * 6)
LABELS = np.repeat(HOT, REPEATS, axis=0)


def cloud(offset=0.0, noise=0.3, seed=0):
    """Features that are scaled sums up to noise, and a classifier."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(K, 6))
    scales = np.where(LABELS.sum(1) == 1, 1.0, 0.8)[:, None]
    features = scales * (LABELS @ weight) + noise * rng.normal(size=(len(LABELS), 6))
    return (features + offset).astype(np.float32), weight.astype(np.float32)


def oracle(features, labels, size, centre):
    """Angle ratio, angle, scale and residual of one size from loops over sets."""
    h = np.asarray(features, np.float64)
    mean_of = lambda s: h[np.all(labels == [c in s for c in range(K)], axis=1)].mean(0)
    offset = np.mean([mean_of((c,)) for c in range(K)], axis=0) if centre else 0
    sets = list(combinations(range(K), size))
    actual = [mean_of(s) - offset for s in sets]
    sums = [sum(mean_of((c,)) - offset for c in s) for s in sets]
    angle = lambda a, b: np.arccos(
        np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)
    )
    own = np.mean([angle(a, t) for a, t in zip(actual, sums, strict=True)])
    every = np.mean([angle(a, t) for a in actual for t in sums])
    a, t = np.ravel(actual), np.ravel(sums)
    scale = a @ t / (t @ t)
    return own / every, own, scale, np.linalg.norm(a - scale * t) / np.linalg.norm(a)


@pytest.mark.parametrize("centre", [False, True])
def test_matches_loops_over_label_sets(centre):
    features, _ = cloud(offset=1.0)
    found = multi_label_statistics(
        jnp.asarray(features), jnp.asarray(LABELS), centre_means=centre
    )
    expected = oracle(features, LABELS, 2, centre)
    np.testing.assert_allclose([c[1] for c in found[:4]], expected, rtol=2e-5)
    np.testing.assert_allclose([c[0] for c in found[:4]], [0, 0, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(found.label_sets, HOT)
    np.testing.assert_array_equal(found.set_counts, REPEATS)


def test_an_offset_changes_no_centred_composition():
    features, _ = cloud(offset=1e4)
    h, y = jnp.asarray(features), jnp.asarray(LABELS)
    found = multi_label_statistics(h, y, centre_means=True)
    expected = oracle(features, LABELS, 2, centre=True)
    np.testing.assert_allclose([c[1] for c in found[:4]], expected, rtol=2e-5)


@pytest.mark.parametrize("centre", [False, True])
def test_gradients_are_finite_and_those_of_differences(x64, centre):
    features, _ = cloud()
    kept = ~np.all(HOT[4] == LABELS, axis=1)  # a set that does not occur
    h, y = jnp.asarray(features[kept], float), jnp.asarray(LABELS[kept])

    def total(h):
        found = multi_label_statistics(h, y, label_sets=HOT, centre_means=centre)
        return sum(jnp.sum(column) for column in found[:4])

    slope = jax.grad(total)(h)
    along = jnp.asarray(np.random.default_rng(3).normal(size=h.shape))
    difference = (total(h + 1e-6 * along) - total(h - 1e-6 * along)) / 2e-6
    np.testing.assert_allclose(jnp.sum(slope * along), difference, rtol=1e-6)


def test_single_tags_are_single_label_collapse():
    features, weight = cloud()
    bias = jnp.arange(4.0)
    h, y = jnp.asarray(features), jnp.asarray(LABELS)
    found = multi_label_statistics(h, y, classifier=(jnp.asarray(weight), bias))
    labels = jnp.argmax(y[:20], 1)
    expected = statistics(h[:20], labels, classifier=(jnp.asarray(weight), bias))
    for name in ("nc1", "nc2", "nc3", "nc4", "cdnv"):
        np.testing.assert_allclose(
            getattr(found.single, name), getattr(expected, name), rtol=1e-5
        )
    np.testing.assert_array_equal(found.set_index, np.repeat(np.arange(10), REPEATS))


def test_the_optimum_of_the_theory_has_collapsed():
    optimum = pick_all_label_optimum(
        [5, 3], num_classes=K, weight_decay=2e-3, feature_decay=2e-3
    )
    values, vectors = np.linalg.eigh(optimum.classifier_gram)
    weight = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    features = optimum.scales[LABELS.sum(1) - 1, None] * (LABELS @ weight)
    found = multi_label_statistics(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(LABELS),
        classifier=(jnp.asarray(weight, jnp.float32), None),
    )
    np.testing.assert_allclose(found.angle_ratio[1], 0, atol=1e-6)
    np.testing.assert_allclose(found.scales[1], 0.88840, atol=5e-6)
    np.testing.assert_allclose(found.residuals[1], 0, atol=1e-6)
    np.testing.assert_allclose(found.single.nc2, 0, atol=2e-6)
    np.testing.assert_allclose(found.single.nc3, 0, atol=2e-6)


def test_examples_that_cannot_be_used_are_counted_and_left_out():
    features, _ = cloud()
    clean = multi_label_statistics(jnp.asarray(features), jnp.asarray(LABELS))
    extra = np.vstack([LABELS[:1], 0 * LABELS[:1], [[1, 1, 1, 0]], [[2, 0, 0, 0]]])
    h = jnp.asarray(np.vstack([features, [[np.nan] * 6], 9 * np.ones((3, 6))]), float)
    y = jnp.asarray(np.vstack([LABELS, extra]), jnp.int32)
    measure = jax.jit(lambda h, y: multi_label_statistics(h, y, label_sets=HOT))
    found = measure(h, y)
    assert int(found.num_nonfinite) == 1
    assert int(found.num_untagged) == 1
    assert int(found.num_unknown) == 2
    for a, b in zip(found[:4], clean[:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_tag_that_never_stands_alone():
    features, _ = cloud()
    kept = ~np.all(HOT[0] == LABELS, axis=1)
    h, y = jnp.asarray(features[kept]), LABELS[kept]
    found = multi_label_statistics(h, jnp.asarray(y))
    # Only the three pairs of the other tags can be sums.
    mean_of = lambda s: np.asarray(h)[np.all(y == s, axis=1)].mean(0)
    pairs = [s for s in HOT[4:] if not s[0]]
    actual = np.ravel([mean_of(s) for s in pairs])
    sums = np.ravel([sum(mean_of(row) for row in HOT[1:4][s[1:]]) for s in pairs])
    scale = actual @ sums / (sums @ sums)
    np.testing.assert_allclose(found.scales[1], scale, rtol=1e-5)


def test_the_same_shapes_are_traced_once():
    features, _ = cloud()
    multi_label_statistics(jnp.asarray(features), jnp.asarray(LABELS))
    before = module._multi_label._cache_size()
    multi_label_statistics(3 * jnp.asarray(features), jnp.asarray(LABELS))
    assert module._multi_label._cache_size() == before


H, Y = jnp.ones((len(LABELS), 6)), jnp.asarray(LABELS, jnp.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: multi_label_statistics(H, jnp.argmax(Y, 1)),  # pyright: ignore
            r"`labels` must be multi-hot rows.*`statistics`",
        ),
        (
            lambda: multi_label_statistics(H[:20], Y[:20]),
            r"every example has one tag at most. Use `statistics",
        ),
        (lambda: multi_label_statistics(H, 2 * Y), r"`labels` must hold 0 and 1 only"),
        (
            lambda: jax.jit(multi_label_statistics)(H, Y),
            r"`label_sets` must be given where `labels` are traced",
        ),
        (
            lambda: multi_label_statistics(H, Y, label_sets=HOT[:, :3]),
            r"`label_sets` must be a NumPy array \[s, 4\]",
        ),
        (lambda: multi_label_statistics(H[:4], Y), r"`labels` must have as many"),
        (lambda: statistics(H, Y), r"`labels` must be a vector of integer class"),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
