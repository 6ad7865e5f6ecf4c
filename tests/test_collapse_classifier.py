"""Classifier statistics against NumPy in float64, and an identity that is exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import (
    outlier_orthogonality,
    squared_error_split,
    statistics,
)

K, D, N = 4, 6, 40


def problem(*, balanced=True):
    rng = np.random.default_rng(0)
    labels = np.arange(N) % K if balanced else np.repeat(range(K), [22, 12, 5, 1])
    means = rng.normal(size=(K, D))
    features = means[labels] + 0.4 * rng.normal(size=(N, D)) + 1
    weight = 0.2 * means + 0.1 * rng.normal(size=(K, D))
    return features, labels, weight, 0.3 * rng.normal(size=K)


def loss(features, labels, weight, bias, decay):
    """Half the mean squared error plus half the decay, in NumPy."""
    errors = features @ weight.T + bias - np.eye(K)[labels]
    penalty = (weight**2).sum() + (bias**2).sum()
    return ((errors**2).sum(1).mean() + decay * penalty) / 2


def published_split(features, labels, weight, bias, decay):
    """The formulas for balanced classes, with d x d matrices."""
    means = np.array([features[labels == c].mean(0) for c in range(K)])
    centre, rest = means.mean(0), features - means[labels]
    within = rest.T @ rest / N
    total = (features - centre).T @ (features - centre) / N
    inner = total + decay / (1 + decay) * np.outer(centre, centre)
    inverse = np.linalg.inv(inner + decay * np.eye(D))
    best = (means - centre / (1 + decay)) @ inverse / K
    best_bias = (1 / K - best @ centre) / (1 + decay)
    nc1 = np.trace(best @ (within + decay * np.eye(D)) @ best.T)
    nc1 += decay * (best_bias**2).sum()
    nc23 = ((best @ means.T + best_bias[:, None] - np.eye(K)) ** 2).sum() / K
    joined = np.concatenate([weight - best, (bias - best_bias)[:, None]], axis=1)
    rows = np.concatenate([features, np.ones((N, 1))], axis=1)
    gram = rows.T @ rows / N + decay * np.eye(D + 1)
    return nc1 / 2, nc23 / 2, np.trace(joined @ gram @ joined.T) / 2, best, best_bias


@pytest.mark.parametrize("balanced", [True, False])
def test_split_adds_up_to_the_loss(x64, balanced):
    features, labels, weight, bias = problem(balanced=balanced)
    h, y, w, b = map(jnp.asarray, (features, labels, weight, bias))
    for decay in [5e-3, 2.0]:
        found = squared_error_split(h, y, classifier=(w, b), weight_decay=decay)
        expected = loss(features, labels, weight, bias, decay)
        parts = found.nc1 + found.nc23 + found.perpendicular
        np.testing.assert_allclose(found.total, expected, rtol=1e-14)
        np.testing.assert_allclose(parts, expected, rtol=1e-13)
        if balanced:
            published = published_split(features, labels, weight, bias, decay)
            fields = ["nc1", "nc23", "perpendicular", "weight", "bias"]
            for name, value in zip(fields, published, strict=True):
                np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9)
        assert found.bias is not None
        best = loss(
            features, labels, np.asarray(found.weight), np.asarray(found.bias), decay
        )
        np.testing.assert_allclose(best + found.perpendicular, expected, rtol=1e-13)
        assert best < expected


def test_split_without_a_bias_and_at_the_best_classifier():
    features, labels, weight, _ = problem()
    h, w = jnp.asarray(features, jnp.float32), jnp.asarray(weight, jnp.float32)
    y = jnp.asarray(labels)
    found = squared_error_split(h, y, classifier=(w, None), weight_decay=0.01)
    assert found.bias is None
    expected = loss(features, labels, weight, np.zeros(K), 0.01)
    parts = found.nc1 + found.nc23 + found.perpendicular
    np.testing.assert_allclose([found.total, parts], expected, rtol=1e-5)
    best = squared_error_split(h, y, classifier=(found.weight, None), weight_decay=0.01)
    np.testing.assert_allclose(best.perpendicular, 0, atol=1e-11)
    broken = jnp.concatenate([h[:-1], jnp.full((1, D), jnp.nan)])
    left = squared_error_split(broken, y, classifier=(w, None), weight_decay=0.01)
    keep = loss(features[:-1], labels[:-1], weight, np.zeros(K), 0.01)
    np.testing.assert_allclose(left.total, keep, rtol=1e-5)
    assert int(left.num_left_out) == 1


def measure(h, y, weight, bias, **options) -> Any:
    """The statistics with a classifier."""
    return statistics(h, y, classifier=(weight, bias), **options)


def test_three_forms_of_self_duality_and_bias_collapse():
    features, labels, weight, bias = problem(balanced=False)
    means = np.array([features[labels == c].mean(0) for c in range(K)])
    unit = lambda a: a / np.linalg.norm(a)
    frame = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    h, w, b = (jnp.asarray(a, jnp.float32) for a in (features, weight, bias))
    y = jnp.asarray(labels)
    for word, centre in [("equal", means.mean(0)), ("counts", features.mean(0))]:
        found = measure(h, y, w, b, class_weights=word)
        centred = means - centre
        cosines = [unit(u) @ unit(v) for u, v in zip(weight, centred, strict=True)]
        expected = {
            "nc3": np.linalg.norm(unit(weight) - unit(centred)),
            "nc3_cosine": 1 - np.mean(cosines),
            "nc3_frame": np.linalg.norm(unit(weight @ centred.T) - frame),
            "bias_collapse": np.linalg.norm(weight @ centre + bias),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found, name), value, rtol=2e-5)
    outputs = features @ weight.T + bias
    gaps = ((features[:, None] - means[None]) ** 2).sum(-1)
    found, plain = measure(h, y, w, b), measure(h, y, w, None)
    chosen = {
        "classifier_error": outputs.argmax(1),
        "nearest_mean_error": gaps.argmin(1),
    }
    for name, classes in chosen.items():
        expected = np.mean(classes != labels)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-6)
    np.testing.assert_allclose(
        plain.bias_collapse, np.linalg.norm(weight @ means.mean(0)), rtol=1e-5
    )


def test_bias_collapse_is_zero_where_the_bias_only_centres():
    features, labels, weight, _ = problem()
    h, w = jnp.asarray(features, jnp.float32), jnp.asarray(weight, jnp.float32)
    centre = jnp.mean(h, axis=0)
    found = measure(h, jnp.asarray(labels), w, -w @ centre)
    np.testing.assert_allclose(found.bias_collapse, 0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12])
def test_classifiers_of_any_size_have_a_geometry(scale):
    frame = np.eye(K) - 1 / K
    labels, bias = jnp.arange(2 * K) % K, jnp.full(K, scale, jnp.float32)
    features = jnp.asarray(frame[labels], jnp.float32)
    found = measure(features, labels, jnp.asarray(scale * frame, jnp.float32), bias)
    zero = [found.nc2_classifier, found.nc3, found.nc3_cosine, found.nc3_frame]
    zero += [found.nc2_classifier_equinorm, found.nc2_classifier_equiangular]
    np.testing.assert_allclose(zero, 0, atol=1e-6)
    np.testing.assert_allclose(found.bias_collapse / scale, np.sqrt(K), rtol=1e-5)


@pytest.mark.parametrize("origin", ["zero", "global_mean"])
def test_outlier_orthogonality_against_loops(origin):
    features, labels, _, _ = problem(balanced=False)
    outliers = np.random.default_rng(4).normal(size=(9, D)) + 0.5
    means = np.array([features[labels == c].mean(0) for c in range(K)])
    start = means.mean(0) if origin == "global_mean" else 0
    outside = outliers.mean(0) - start
    unit = lambda a: a / np.linalg.norm(a)
    cosines = [unit(m - start) @ unit(outside) for m in means]
    h, out = (jnp.asarray(a, jnp.float32) for a in (features, outliers))
    y = jnp.asarray(labels)
    found = outlier_orthogonality(h, y, out, origin=origin)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
    np.testing.assert_allclose(found.value, np.mean(np.abs(cosines)), rtol=1e-5)
    # An absent class has no cosine, and what is not finite does not count.
    broken = jnp.concatenate([out[:-1], out[-1:] * jnp.nan])
    less = outlier_orthogonality(h, y, broken, origin=origin, num_classes=K + 1)
    assert jnp.isnan(less.cosines).tolist() == [False] * K + [True]
    assert int(less.num_left_out) == 1
    assert jnp.isfinite(less.value)


H: Any = jnp.ones((6, 4))
Y: Any = jnp.arange(6) % 3
W: Any = jnp.ones((3, 4))


@pytest.mark.parametrize(
    ("classifier", "decay", "message"),
    [
        (None, 0.1, r"`classifier` must be a pair.*None"),
        (W, 0.1, r"`classifier`.*pair.*but was a"),
        ((W.T, None), 0.1, r"`classifier\[0\]`.*transpose"),
        ((W, None), 0.0, r"`weight_decay` must be positive, but was 0.0"),
        ((W[:2], None), 0.1, r"`labels` must lie in \[0, 2\)"),
    ],
)
def test_bad_classifier_names_the_fix(classifier: Any, decay, message, user_land):
    with pytest.raises(ValueError, match=message):
        squared_error_split(H, Y, classifier=classifier, weight_decay=decay)


def test_bad_outliers_name_the_fix(user_land):
    with pytest.raises(ValueError, match=r"`outliers` must have the 4 features"):
        outlier_orthogonality(H, Y, jax.numpy.ones((3, 5)))
    with pytest.raises(ValueError, match=r"`outliers` must be a matrix"):
        outlier_orthogonality(H, Y, H[0])
    with pytest.raises(ValueError, match=r"`origin` must be.*'mean'"):
        outlier_orthogonality(H, Y, H, origin="mean")


def test_no_example_at_all_has_no_loss():
    nothing = squared_error_split(
        jnp.full((6, 4), jnp.nan),
        jnp.arange(6) % 3,
        classifier=(jnp.ones((3, 4)), None),
        weight_decay=0.1,
    )
    assert np.isnan(nothing[:4]).all()
    assert nothing.num_left_out == 6


def test_outliers_of_any_size_and_none_at_all():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    outliers = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    measure = lambda h, other: outlier_orthogonality(h, jnp.arange(6) % 3, other)
    expected = measure(features, outliers).cosines
    # Squares of such ratios of lengths leave the range of float32.
    for big, small in [(2.0**60, 2.0**-60), (2.0**-60, 2.0**60)]:
        found = measure(big * features, small * outliers).cosines
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(measure(features, outliers * jnp.nan).value)
