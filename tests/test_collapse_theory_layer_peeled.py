"""The layer-peeled model: proved optimal on the full problem, thresholds bracketed."""

import numpy as np
import pytest

from jaxtheory.collapse.theory import layer_peeled, layer_peeled_threshold

SETTINGS = {  # majority, minority, feature energy, weight energy: threshold
    (5, 5, 5, 1): 12.192447,
    (7, 3, 5, 1): 4.000467,
    (3, 7, 5, 1): 245.496931,
    (5, 5, 10, 1): 81.102206,
}


def arguments(setting):
    names = ("num_majority", "num_minority", "feature_energy", "weight_energy")
    return dict(zip(names, setting, strict=True))


def loss_and_gradient(logits, ratio, num_majority):
    """Weighted cross-entropy of a matrix of logits, class by class."""
    k = len(logits)
    loss, gradient = 0.0, np.zeros_like(logits)
    weights = np.array([1.0] * num_majority + [1 / ratio] * (k - num_majority))
    for c, weight in enumerate(weights / weights.sum()):
        p = np.exp(logits[:, c] - logits[:, c].max())
        p /= p.sum()
        loss -= weight * np.log(p[c])
        gradient[:, c] = weight * (p - np.eye(k)[c])
    return loss, gradient


@pytest.mark.parametrize(
    ("setting", "ratio"),
    [((5, 5, 5, 1), 10), ((3, 7, 5, 1), 1000), ((8, 2, 1, 1), 3), ((2, 4, 20, 3), 7)],
)
def test_no_logits_in_the_budget_are_better(setting, ratio):
    model = layer_peeled(ratio, **arguments(setting))
    majority, minority, features, weights = setting
    k = majority + minority
    budget = k * np.sqrt(features * weights)
    np.testing.assert_allclose(np.linalg.norm(model.logits, "nuc"), budget, rtol=1e-12)
    loss, gradient = loss_and_gradient(model.logits, ratio, majority)
    np.testing.assert_allclose(model.loss, loss, rtol=1e-10)
    # A linear function on the ball of the nuclear norm is least at a corner.
    gap = np.sum(gradient * model.logits) + budget * np.linalg.norm(gradient, 2)
    assert abs(gap) < 1e-12
    assert abs(model.optimality_gap) < 1e-12
    # The Gram matrices spend both budgets and can make these logits.
    weight, means = model.geometry
    np.testing.assert_allclose(np.trace(weight), k * weights, rtol=1e-12)
    np.testing.assert_allclose(np.trace(means), k * features, rtol=1e-12)
    np.testing.assert_allclose(
        model.logits @ model.logits.T * weights, weight @ weight * features, atol=1e-9
    )


def test_a_worse_point_has_a_gap():
    # The certificate is not zero by construction: the optimum of another ratio fails.
    model = layer_peeled(3, **arguments((5, 5, 5, 1)))
    loss, gradient = loss_and_gradient(model.logits, 10, 5)
    gap = np.sum(gradient * model.logits) + 10 * 5**0.5 * np.linalg.norm(gradient, 2)
    best = layer_peeled(10, **arguments((5, 5, 5, 1))).loss
    assert loss > best
    assert gap > loss - best


def test_published_cosines():
    balanced = layer_peeled(1, **arguments((5, 5, 5, 1)))
    np.testing.assert_allclose(balanced.minority_cosine, -1 / 9, rtol=1e-10)
    np.testing.assert_allclose(balanced.majority_cosine, -1 / 9, rtol=1e-10)
    frame = np.eye(10) - 0.1
    np.testing.assert_allclose(
        balanced.geometry.classifier_gram, frame * 10 / 9, atol=1e-10
    )
    found = layer_peeled(10, **arguments((5, 5, 5, 1)))
    assert round(found.minority_cosine, 4) == 0.5175
    weight = found.geometry.classifier_gram
    np.testing.assert_allclose(
        found.minority_cosine, weight[5, 9] / weight[5, 5], rtol=1e-10
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_threshold_is_bracketed(setting):
    threshold = layer_peeled_threshold(**arguments(setting))
    np.testing.assert_allclose(threshold, SETTINGS[setting], rtol=1e-6)
    below = layer_peeled(threshold * (1 - 1e-4), **arguments(setting))
    above = layer_peeled(threshold * (1 + 1e-4), **arguments(setting))
    assert not below.collapsed
    assert 0.999 < below.minority_cosine < 1 - 1e-5
    assert above.collapsed
    assert above.minority_cosine == 1
    for model in (below, above):  # both are proved to be the optimum
        assert abs(model.optimality_gap) < 1e-13


def test_minority_rows_can_vanish():
    # Many majority classes and little energy: what separates the groups costs more
    # than it gains, and no direction is left for the minority.
    model = layer_peeled(10, **arguments((7, 3, 5, 1)))
    assert model.collapsed
    assert np.isnan(model.minority_cosine)
    np.testing.assert_allclose(model.geometry.classifier_gram[7:, 7:], 0, atol=1e-12)
    assert abs(model.optimality_gap) < 1e-12


def test_losses_far_below_rounding_keep_their_digits():
    threshold = layer_peeled_threshold(**arguments((3, 3, 60, 60)))
    assert 1e56 < threshold < 1e58
    model = layer_peeled(threshold * 1.01, **arguments((3, 3, 60, 60)))
    assert model.collapsed
    assert 0 < model.loss < 1e-55
    assert abs(model.optimality_gap) < 1e-9 * model.loss
    assert layer_peeled_threshold(**arguments((3, 3, 1e4, 1e4))) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layer_peeled(0.5, **arguments((5, 5, 5, 1))),
            r"`imbalance_ratio` must be a finite number of at least 1",
        ),
        (
            lambda: layer_peeled(2, **arguments((1, 5, 5, 1))),
            r"`num_majority` must be an integer of at least 2",
        ),
        (
            lambda: layer_peeled_threshold(**arguments((2, 2, 0, 1))),
            r"`feature_energy` must be a positive, finite number",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
