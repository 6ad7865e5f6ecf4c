"""Closed forms and thresholds against the solver, from both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import theory

DECAY = {"weight_decay": 5e-3, "feature_decay": 5e-3}


def solved(loss, counts, seed=0, **options):
    if "start" not in options:
        options["key"] = jax.random.key(seed)
    found = theory.unconstrained_features(
        loss, np.arange(len(counts)), counts=counts, **options
    )
    assert found.converged
    return found


def assert_same(optimum, found, atol=1e-9):
    """One optimum: objective, outputs and Gram matrices do not turn with features."""
    np.testing.assert_allclose(optimum.objective, found.objective, rtol=1e-13)
    np.testing.assert_allclose(optimum.logits, found.outputs, atol=atol)
    gram = found.layers[0] @ found.layers[0].T
    np.testing.assert_allclose(optimum.classifier_gram, gram, atol=atol)
    means = found.features
    for layer in found.layers[:0:-1]:
        means = means @ layer.T
    np.testing.assert_allclose(optimum.class_means_gram, means @ means.T, atol=atol)


@pytest.mark.parametrize(
    ("options", "margin", "norm"),
    [
        ({}, 4.0984288, 38.881109),
        ({"label_smoothing": 0.1}, 3.0681908, 29.10741),
        ({"focusing": 3.0}, 1.7470293, 16.573774),
    ],
)
def test_simplex_frames_are_what_the_solver_finds(options, margin, norm):
    best = theory.balanced_optimum("cross_entropy", 4, 10, **DECAY, **options)
    np.testing.assert_allclose(best.margins, margin, atol=5e-8)
    np.testing.assert_allclose(np.trace(best.classifier_gram), norm, rtol=3e-7)
    assert not best.collapsed.any()
    assert_same(best, solved("cross_entropy", [10] * 4, **DECAY, **options))


def test_decays_that_differ_and_a_loss_of_ones_own():
    def pairwise(outputs, labels):  # convex, symmetric and blind to shifts
        own = jnp.take_along_axis(outputs, labels[:, None], axis=1)
        return jnp.sum(jax.nn.softplus(outputs - own), axis=1)

    decays = {"weight_decay": 2e-3, "feature_decay": 7e-4}
    best = theory.balanced_optimum(pairwise, 3, 6, **decays)
    assert_same(best, solved(pairwise, [6] * 3, seed=1, **decays))
    # -loss'(a) = (K-1) / (1 + e^a) = (K-1) eps.
    eps = (6 * 2e-3 * 7e-4) ** 0.5
    np.testing.assert_allclose(best.margins, np.log(1 / eps - 1), rtol=1e-12)


@pytest.mark.parametrize("product", [0.98, 1.02])
def test_cross_entropy_leaves_the_origin_at_k_epsilon_one(product):
    decay = product / 4 / 10**0.5
    decays = {"weight_decay": decay, "feature_decay": decay}
    best = theory.balanced_optimum("cross_entropy", 4, 10, **decays)
    norm = np.trace(best.classifier_gram)
    np.testing.assert_allclose(norm, 0.744 if product < 1 else 0, atol=5e-4)
    assert best.collapsed.all() == (product > 1)
    threshold = theory.minority_collapse_threshold("cross_entropy", 40, **decays)
    assert (threshold > 10) == (product > 1)


def test_a_focal_loss_is_searched_as_a_whole():
    # With 30 classes its slope at equal outputs is not its steepest: over a range of
    # decays both the origin and a frame are local optima.
    margins = np.linspace(0, 20, 200_001)
    p = 1 / (1 + 29 * np.exp(-margins))
    losses = -((1 - p) ** 3) * np.log(p)
    steepest = -np.gradient(losses, margins).min()
    for share, origin in [(0.5, False), (0.9, None), (1.01, True)]:
        eps = share * steepest / 29
        best = theory.balanced_optimum(
            "cross_entropy", 30, 1, weight_decay=eps, feature_decay=eps, focusing=3.0
        )
        heights = losses + 29 * eps * margins
        np.testing.assert_allclose(best.objective, heights.min(), rtol=1e-9)
        found = margins[heights.argmin()]
        np.testing.assert_allclose(best.margins, found, atol=2e-4)
        assert origin is None or (found == 0) == origin


COUNTS = [20, 10, 5, 2]


@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_squared_error_from_any_start_and_from_the_closed_form(num_layers, bias):
    options = {"weight_decay": 5e-3, "feature_decay": 5e-4, "num_layers": num_layers}
    best = theory.squared_error_optimum(COUNTS, **options, bias=bias)
    options["bias_decay"] = 0 if bias == "free" else None
    near = [0.9 * layer for layer in best.layers]
    start = (near, 1.2 * best.features, best.bias)
    assert_same(best, solved("squared_error", COUNTS, start=start, **options))
    if num_layers == 1:
        assert_same(best, solved("squared_error", COUNTS, **options))
    if bias == "none":
        off = best.classifier_gram - np.diag(np.diag(best.classifier_gram))
        np.testing.assert_allclose(off, 0, atol=1e-14)


def test_published_numbers_of_one_layer():
    best = theory.squared_error_optimum(
        [200, 100, 50, 50], weight_decay=5e-4, feature_decay=5e-4
    )
    np.testing.assert_allclose(
        best.classifier_norms**2, [13.94214, 9.8, 6.87107, 6.87107], atol=5e-6
    )
    np.testing.assert_allclose(
        best.class_mean_norms**2, [0.0697107, 0.098, 0.1374214, 0.1374214], atol=5e-8
    )


def test_balanced_squared_error_with_a_bias_makes_a_simplex_frame():
    best = theory.squared_error_optimum([10] * 4, **DECAY, bias="free")
    gram = best.classifier_gram / best.classifier_gram[0, 0]
    expected = (np.eye(4) - 1 / 4) * 4 / 3
    np.testing.assert_allclose(gram, expected, atol=1e-12)
    # What is left of the margin is 1 - K eps.
    np.testing.assert_allclose(best.margins, 1 - 4 * 10**0.5 * 5e-3, rtol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_rare_class_vanishes_where_zero_is_no_worse(num_layers):
    # The smallest class at 3 % above and below its threshold, by the decay of features.
    counts = np.array([30.0, 20.0, 6.0])
    options = {"weight_decay": 4e-3, "num_layers": num_layers}
    threshold = theory.minority_collapse_threshold(
        "squared_error", 56, feature_decay=1e-3, **options
    )
    critical = 1e-3 * (6 / threshold) ** num_layers
    if num_layers > 1:
        peak = (num_layers - 1) ** ((num_layers - 1) / num_layers) / num_layers
        known = {2: 0.5, 3: 0.5291}[num_layers]
        np.testing.assert_allclose(peak, known, atol=5e-5)
        b = num_layers * 56 * (56 * 4e-3**num_layers * critical) ** (1 / num_layers)
        np.testing.assert_allclose(b / 6, peak, rtol=1e-12)
    for ratio in (0.97, 1.03):
        options["feature_decay"] = critical * ratio**num_layers
        best = theory.squared_error_optimum(counts, **options)
        assert best.collapsed.tolist() == [False, False, ratio > 1]
        # From the optimum just below the threshold: with more layers it lives on
        # above, where it is a local one and loses.
        below = options | {"feature_decay": critical * 0.97**num_layers}
        start = theory.squared_error_optimum(counts, **below)
        found = solved("squared_error", counts, start=start[:3], **options)
        lost = found.objective - best.objective
        if num_layers > 1 and ratio > 1:
            assert lost > 1e-4
        else:
            assert abs(lost) < 1e-12
            assert_same(best, found)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_classes_of_equal_counts_merge_whatever_the_others_are(ratio):
    # Three sizes, a bias and smoothed labels; the threshold of the smallest.
    counts = [30, 12, 12, 5, 5]
    decay = 0.9 * (5 * ratio) ** 0.5 / 64
    options = {"weight_decay": 2 * decay, "feature_decay": decay / 2}
    options["label_smoothing"] = 0.1
    threshold = theory.minority_collapse_threshold("cross_entropy", 64, **options)
    np.testing.assert_allclose(threshold, 5 * ratio, rtol=1e-12)
    found = solved("cross_entropy", counts, bias_decay=0.01, **options)
    rows = found.layers[0]
    assert np.linalg.norm(rows[1] - rows[2]) > 0.5
    apart = np.linalg.norm(rows[3] - rows[4])
    assert apart > 0.1 if ratio < 1 else apart < 1e-9


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: theory.balanced_optimum("squared_error", 3, 5, **DECAY),
            "Use `squared_error_optimum`",
        ),
        (
            lambda: theory.balanced_optimum(
                lambda z, y: jnp.sum(z**2, axis=1), 3, 5, **DECAY
            ),
            "`loss` must treat all classes alike",
        ),
        (
            lambda: theory.balanced_optimum("cross_entropy", 1, 5, **DECAY),
            "`num_classes` must be an integer of at least 2",
        ),
        (
            lambda: theory.squared_error_optimum([3, 0], **DECAY),
            "`class_counts` must be positive",
        ),
        (
            lambda: theory.squared_error_optimum([3], **DECAY),
            "`class_counts` must be a vector of at least two",
        ),
        (
            lambda: theory.squared_error_optimum([3, 3], **DECAY, bias="some"),
            "`bias` must be",
        ),
        (
            lambda: theory.minority_collapse_threshold(
                "cross_entropy", 50, **DECAY, num_layers=2
            ),
            "`num_layers` must be 1",
        ),
        (
            lambda: theory.minority_collapse_threshold(lambda z, y: 0, 50, **DECAY),
            "`loss` must be 'cross_entropy' or 'squared_error'",
        ),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("k", [2, 3, 5, 7, 10])
def test_beyond_the_threshold_nothing_is_learnt(k):
    best = theory.balanced_optimum(
        "cross_entropy", k, 5, weight_decay=1e3, feature_decay=1e3
    )
    np.testing.assert_array_equal(best.logits, 0)
    np.testing.assert_allclose(best.objective, np.log(k), rtol=1e-12)
