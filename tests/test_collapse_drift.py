"""Leaving one example out: closed forms against doing it."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import _drift as module
from jaxtheory.collapse import leave_one_out_drift

LABELS = np.repeat([0, 1, 3], [9, 7, 1])


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 5))[LABELS] + 0.8 * rng.normal(size=(17, 5)) + 2


@pytest.fixture(scope="module")
def drift(features):
    return leave_one_out_drift(
        jnp.asarray(features, jnp.float32), jnp.asarray(LABELS), ridge=0.1
    )


def test_class_means_move_as_when_computed_again(features, drift):
    means = {c: features[c == LABELS].mean(0) for c in (0, 1, 3)}
    for i, label in enumerate(LABELS[:16]):
        rest = np.delete(features, i, axis=0)[np.delete(LABELS, i) == label].mean(0)
        gap = min(np.linalg.norm(means[label] - means[c]) for c in means if c != label)
        moved = np.linalg.norm(rest - means[label]) / gap
        np.testing.assert_allclose(drift.class_mean[i], moved, rtol=1e-5)
    assert drift.class_mean[16] == jnp.inf


def test_nearest_mean_error_is_that_of_means_computed_again(features, drift):
    wrong = 1  # the only example of its class has no mean left
    for i, label in enumerate(LABELS[:16]):
        keep = np.arange(17) != i
        means = [features[keep & (c == LABELS)].mean(0) for c in (0, 1, 3)]
        nearest = np.argmin([np.linalg.norm(features[i] - m) for m in means])
        wrong += [0, 1, 3][nearest] != label
    np.testing.assert_allclose(drift.nearest_mean_error, wrong / 17, rtol=1e-6)
    assert wrong > 2


def test_classifier_moves_as_when_fitted_again(features, drift):
    x = features - features.mean(0)
    y = np.eye(4)[LABELS] - np.eye(4)[LABELS].mean(0)
    strength = 0.1 * np.trace(x.T @ x / 17) / 5

    def fit(keep):
        gram = x[keep].T @ x[keep] / 17 + strength * np.eye(5)
        return np.linalg.solve(gram, x[keep].T @ y[keep] / 17)

    whole, wrong = fit(np.arange(17) >= 0), 0
    for i in range(17):
        without = fit(np.arange(17) != i)
        moved = np.linalg.norm(without - whole) / np.linalg.norm(whole)
        np.testing.assert_allclose(drift.classifier[i], moved, rtol=1e-4)
        outputs = x[i] @ without + np.eye(4)[LABELS].mean(0)
        wrong += [0, 1, 3][np.argmax(outputs[[0, 1, 3]])] != LABELS[i]
    np.testing.assert_allclose(drift.classifier_error, wrong / 17, rtol=1e-6)


def test_collapsed_features_do_not_depend_on_one_example():
    labels = jnp.arange(30) % 3
    drift = leave_one_out_drift(jnp.eye(3)[labels], labels)
    np.testing.assert_allclose(drift.class_mean, np.zeros(30), atol=1e-6)
    assert (drift.nearest_mean_error, drift.classifier_error) == (0, 0)
    alike = leave_one_out_drift(jnp.ones((30, 3)), labels)
    np.testing.assert_array_equal(alike.classifier, np.zeros(30))


@pytest.mark.parametrize(
    ("n", "d", "noise", "ridge"), [(60, 200, 0.05, 1e-5), (120, 16, 0.01, 1e-4)]
)
def test_nearly_collapsed_features_and_a_small_ridge(n, d, noise, ridge):
    """In float64 from inverses; the covariance's condition is up to 1e8."""
    rng, labels = np.random.default_rng(1), np.arange(n) % 3
    rows = 3 * np.eye(3, d)[labels] + noise * rng.normal(size=(n, d))
    rows = rows.astype(np.float32)
    x = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    y = np.eye(3)[labels] - 1 / 3
    gram = x.T @ x / n
    inverse = np.linalg.inv(gram + ridge * np.trace(gram) / d * np.eye(d))
    weight = inverse @ x.T @ y / n
    leverage = np.einsum("nd,de,ne->n", x, inverse, x) / n
    errors = (y - x @ weight) / (1 - leverage)[:, None]
    moved = np.linalg.norm(x @ inverse, axis=1) * np.linalg.norm(errors, axis=1) / n
    found = leave_one_out_drift(jnp.asarray(rows), jnp.asarray(labels), ridge=ridge)
    expected = moved / np.linalg.norm(weight)
    np.testing.assert_allclose(found.classifier, expected, rtol=2e-3)
    missed = np.argmax(y - errors + 1 / 3, axis=1) != labels
    assert float(found.classifier_error) == missed.mean() == 0


@pytest.mark.parametrize("offset", [0.0, 20.3])
def test_coinciding_means_are_infinitely_near(offset):
    # The last two examples of the first case are at the mean that two classes share.
    rows = np.array([[0.0], [0.0], [0.0], [0.0], [1.0], [1.0]])
    if offset:
        one = np.random.default_rng(0).normal(size=(30, 6))
        rows = np.concatenate([one, one[::-1], one + 1])
    labels = np.repeat(np.arange(3), len(rows) // 3)
    order = np.random.default_rng(1).permutation(len(rows))
    found = leave_one_out_drift(
        jnp.asarray(rows[order] + offset, jnp.float32), jnp.asarray(labels[order])
    )
    near = labels[order] < 2
    assert np.isinf(found.class_mean[near]).all()
    assert np.isfinite(found.class_mean[~near]).all()


def test_what_is_left_out_is_counted(features, drift):
    rows = jnp.asarray(np.concatenate([features, [[np.nan] * 5]]), jnp.float32)
    labels = jnp.asarray(np.append(LABELS, 0))
    found = leave_one_out_drift(rows, labels, ridge=0.1)
    assert int(found.num_left_out) == 1
    np.testing.assert_allclose(found.class_mean[:16], drift.class_mean[:16], rtol=1e-5)
    np.testing.assert_allclose(found.classifier[:17], drift.classifier, rtol=1e-3)
    np.testing.assert_allclose(found[2:4], drift[2:4], rtol=1e-6)
    assert found.classifier[17] == 0


def test_traces_once_for_the_same_shapes(features, monkeypatch):
    traces = []
    original = module.class_moments
    monkeypatch.setattr(
        module, "class_moments", lambda *a: traces.append(1) or original(*a)
    )
    for ridge in (0.1, 0.2):
        some = jnp.asarray(features[:15], jnp.float32)
        leave_one_out_drift(some, jnp.asarray(LABELS[:15]), ridge=ridge)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (jnp.ones((6, 2, 2)), {}, r"`features` must be a matrix.*\(6, 2, 2\)"),
        (jnp.ones((6, 2)), {"ridge": 0.0}, r"`ridge` must be positive, but was 0.0"),
        (jnp.ones((5, 2)), {}, r"`labels` must have as many examples"),
    ],
)
def test_bad_input_names_the_fix(features, options, message, user_land):
    with pytest.raises(ValueError, match=message):
        leave_one_out_drift(features, jnp.arange(6) % 2, **options)


def test_features_that_are_all_alike_or_not_finite_are_not_without_errors():
    labels = jnp.arange(6) % 3
    alike = leave_one_out_drift(jnp.full((6, 2), 3.0), labels)
    assert alike.nearest_mean_error == 1  # ties
    np.testing.assert_allclose(alike.classifier_error, 2 / 3, rtol=1e-6)
    nothing = leave_one_out_drift(jnp.full((6, 2), jnp.nan), labels)
    assert np.isnan(nothing.nearest_mean_error)
    assert np.isnan(nothing.classifier_error)
