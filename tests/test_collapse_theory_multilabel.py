"""The pick-all-label optimum against descent on the full model, set by set."""

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from jaxtheory.collapse.theory import pick_all_label_optimum

DECAY = 2e-3


def descend(per_set, k, weight_decay, feature_decay, seed=0):
    """Minimise over W and one feature vector for each label set (they may share it)."""
    sets = [
        (s, per_set[m - 1])
        for m in range(1, len(per_set) + 1)
        for s in combinations(range(k), m)
        if per_set[m - 1]
    ]
    hot = np.array([[float(c in s) for c in range(k)] for s, _ in sets])
    counts = np.array([count for _, count in sets], float)[:, None]
    total = counts.sum()

    def objective(flat):
        w, h = flat[: k * k].reshape(k, k), flat[k * k :].reshape(-1, k)
        log_p = log_softmax(h @ w.T, axis=1)
        value = -np.sum(counts * hot * log_p) / total
        value += weight_decay / 2 * np.sum(w**2)
        value += feature_decay / 2 * np.sum(counts * h**2)
        error = counts * (hot.sum(1)[:, None] * np.exp(log_p) - hot) / total
        gradients = (
            error.T @ h + weight_decay * w,
            error @ w + feature_decay * counts * h,
        )
        return value, np.concatenate([g.ravel() for g in gradients])

    start = np.random.default_rng(seed).normal(size=k * k + k * len(sets))
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-10}
    end = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    w, h = end.x[: k * k].reshape(k, k), end.x[k * k :].reshape(-1, k)
    return end.fun, w, h, hot


@pytest.mark.parametrize(
    ("per_set", "k", "decays"),
    [((5, 3), 4, (2e-3, 2e-3)), ((2, 4, 1), 5, (1e-3, 3e-3)), ((0, 3), 4, (2e-3,) * 2)],
)
def test_descent_ends_there(per_set, k, decays):
    found = pick_all_label_optimum(
        per_set, num_classes=k, weight_decay=decays[0], feature_decay=decays[1]
    )
    value, w, h, hot = descend(per_set, k, *decays)
    np.testing.assert_allclose(found.objective, value, rtol=1e-10)
    np.testing.assert_allclose(found.classifier_gram, w @ w.T, atol=2e-4)
    sizes = hot.sum(1).astype(int)
    np.testing.assert_allclose(h, found.scales[sizes - 1, None] * (hot @ w), atol=1e-4)
    logits = h @ w.T
    for s in range(len(hot)):
        tags = hot[s] > 0
        margins = logits[s][tags].min() - logits[s][~tags].max()
        np.testing.assert_allclose(margins, found.margins[sizes[s] - 1], rtol=1e-4)


def test_published_numbers():
    found = pick_all_label_optimum(
        [5, 3], num_classes=4, weight_decay=DECAY, feature_decay=DECAY
    )
    np.testing.assert_allclose(found.margins, [5.08277, 4.51552], atol=5e-6)
    np.testing.assert_allclose(found.scales[1] / found.scales[0], 0.88840, atol=5e-6)
    # The stationarity of W and of each h_S, written out with probabilities.
    rho = found.classifier_gram[0, 0] / 0.75
    inside = 1 / (np.arange(1, 3) + (4 - np.arange(1, 3)) * np.exp(-found.margins))
    outside = np.exp(-found.margins) * inside
    np.testing.assert_allclose(
        38 * DECAY * found.scales,
        1 - np.arange(1, 3) * (inside - outside),
        rtol=1e-10,
    )
    np.testing.assert_allclose(found.margins, found.scales * rho, rtol=1e-12)
    assert 5 * found.scales[0] ** 2 + 3 * 2 * found.scales[1] ** 2 == pytest.approx(1)


def test_single_tags_are_the_balanced_classes_of_cross_entropy():
    # alpha = log(1/eps - K + 1) with eps = sqrt(n lambda_W lambda_H): K=4, n=10.
    found = pick_all_label_optimum(
        [10], num_classes=4, weight_decay=5e-3, feature_decay=5e-3
    )
    np.testing.assert_allclose(found.margins, 4.0984288, atol=5e-8)
    np.testing.assert_allclose(np.trace(found.classifier_gram), 38.881109, atol=5e-7)
    np.testing.assert_allclose(found.objective, 0.24300160198505, rtol=1e-13)


def test_strong_decay_leaves_nothing():
    # n_1 + 2 n_2 = N^2 lambda_W lambda_H.
    critical = np.sqrt(5 + 2 * 3) / 38
    for factor, zero in [(0.98, False), (1.02, True)]:
        decay = factor * critical
        found = pick_all_label_optimum(
            [5, 3], num_classes=4, weight_decay=decay, feature_decay=decay
        )
        assert (found.margins[0] == 0) == zero
        assert np.isnan(found.scales[0]) == zero
        least = (20 * np.log(4) + 18 * 2 * np.log(4)) / 38
        assert (found.objective == pytest.approx(least, rel=1e-12)) == zero


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[5, 3]], r"`examples_per_set` must be a vector.*\(1, 2\)"),
        ([1, 1, 1, 1], r"`examples_per_set` must have 1 to 3 entries.*has 4"),
        ([0, -1], r"`examples_per_set` must be finite, at least 0"),
        ([0, 0], r"`examples_per_set` must be finite, at least 0 and not all 0"),
    ],
)
def test_bad_counts_name_the_fix(counts, message, user_land):
    with pytest.raises(ValueError, match=message):
        pick_all_label_optimum(
            counts, num_classes=4, weight_decay=1e-3, feature_decay=1e-3
        )
