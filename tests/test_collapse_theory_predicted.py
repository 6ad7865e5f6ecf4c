"""Predicted geometries: closed form or solver, with proof, beside measured ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from jaxtheory import collapse
from jaxtheory.collapse import theory
from jaxtheory.collapse.theory import predicted_geometry

FRAME = (np.eye(4) - 1 / 4) / 3**0.5


@pytest.mark.parametrize(
    ("loss", "options", "proved"),
    [
        ("cross_entropy", {}, True),
        ("cross_entropy", {"bias_decay": 0.0, "label_smoothing": 0.1}, True),
        ("cross_entropy", {"focusing": 2.0}, False),
        ("squared_error", {"bias_decay": 0.0}, True),
        ("squared_error", {"bias_decay": 0.0, "num_layers": 2}, False),
    ],
)
def test_balanced_classes_make_a_simplex_frame_under_four_losses(loss, options, proved):
    found = predicted_geometry(loss, [10] * 4, 5e-3, feature_decay=2e-3, **options)
    assert found.method == "closed_form"
    assert found.converged
    np.testing.assert_allclose(found.mean_gram, FRAME, atol=1e-12)
    np.testing.assert_allclose(found.classifier_gram, FRAME, atol=1e-12)
    cosines = 4 / 3 * np.eye(4) - 1 / 3
    np.testing.assert_allclose(found.mean_cosines, cosines, atol=1e-12)
    np.testing.assert_allclose(found.classifier_cosines, cosines, atol=1e-12)
    assert (found.gap is not None) == proved
    assert found.gap is None or abs(found.gap) < 1e-14
    predicted = found.statistics
    for name in ("nc1", "nc2", "nc2_equinorm", "nc2_equiangular", "nc3", "nc4"):
        np.testing.assert_allclose(getattr(predicted, name), 0, atol=1e-12)


def test_squared_error_without_bias_predicts_an_orthogonal_frame():
    counts = [200, 100, 50, 50]
    found = predicted_geometry("squared_error", counts, 5e-4, feature_decay=5e-4)
    expected = [13.94214, 9.8, 6.87107, 6.87107]
    np.testing.assert_allclose(found.classifier_norms**2, expected, atol=5e-6)
    np.testing.assert_allclose(found.classifier_cosines, np.eye(4), atol=1e-14)
    assert found.statistics.nc2 > 0.1  # no simplex frame, and it says so


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross_entropy", {"bias_decay": 0.01}),
        ("squared_error", {"bias_decay": 0.05}),
        ("cross_entropy", {"label_smoothing": 0.1}),
    ],
)
def test_without_a_closed_form_the_solver_proves_its_optimum(loss, options):
    counts = [30, 12, 5, 5]
    found = predicted_geometry(
        loss, counts, 5e-3, feature_decay=5e-3, key=jax.random.key(0), **options
    )
    assert found.method == "solver"
    assert found.converged
    assert found.gap is not None
    assert abs(found.gap) < 1e-13
    # A rarer class is harder to tell, and its features pay for it.
    assert np.all(np.diff(found.optimum.margins[:3]) < 0)
    # lw ||W||^2 = lh sum_i ||h_i||^2 is how a network's lh can be read off.
    squares = np.asarray(counts) @ found.optimum.class_mean_norms**2
    np.testing.assert_allclose(squares, np.sum(found.classifier_norms**2), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found.mean_gram), 1, rtol=1e-12)


def test_minority_collapse_is_predicted_at_its_threshold():
    for ratio in (0.98, 1.02):
        decay = (ratio * 5) ** 0.5 / 105
        found = predicted_geometry(
            "cross_entropy",
            [30] * 3 + [5] * 3,
            decay,
            feature_decay=decay,
            key=jax.random.key(0),
        )
        assert found.optimum.collapsed.tolist() == [False] * 3 + [ratio > 1] * 3
        lowest = found.classifier_cosines[3:, 3:].min()
        np.testing.assert_allclose(lowest, 0.892 if ratio < 1 else 1.0, atol=5e-4)


@pytest.mark.parametrize("decay", [1e-10, 1e-8])
def test_a_large_classifier_needs_no_more_features_than_a_small_one(decay):
    # Squared row norms near 1e6, and a simplex frame of 10 that 9 features hold.
    found = predicted_geometry(
        "cross_entropy", [100] * 10, decay, feature_decay=1e-2, num_features=9
    )
    assert found.method == "closed_form"
    assert found.classifier_norms.max() ** 2 > 1e4


def test_features_too_narrow_for_the_closed_form_are_solved():
    frame = predicted_geometry(
        "cross_entropy", [10] * 4, 5e-3, feature_decay=5e-3, num_features=3
    )
    assert frame.method == "closed_form"
    flat = predicted_geometry(
        "cross_entropy",
        [10] * 4,
        5e-3,
        feature_decay=5e-3,
        num_features=2,
        key=jax.random.key(0),
    )
    assert flat.method == "solver"
    assert flat.optimum.class_means.shape == (4, 2)
    # On a circle: four directions at right angles, and the wider optimum is better.
    assert flat.gap is not None
    assert flat.gap > 0.01
    np.testing.assert_allclose(
        np.sort(flat.mean_cosines, axis=1), [[-1, 0, 0, 1]] * 4, atol=1e-7
    )


def test_collapse_to_zero_has_no_directions():
    found = predicted_geometry("squared_error", [10] * 3, 0.2, feature_decay=0.2)
    assert found.optimum.collapsed.all()
    assert not found.mean_gram.any()
    assert not found.classifier_cosines.any()
    assert np.isnan(found.statistics.nc2)
    np.testing.assert_allclose(found.gap, 0, atol=1e-15)


def test_a_loss_of_ones_own_is_solved():
    def pairwise(outputs, labels):
        own = jnp.take_along_axis(outputs, labels[:, None], axis=1)
        return jnp.sum(jax.nn.softplus(outputs - own), axis=1)

    found = predicted_geometry(
        pairwise, [10] * 4, 5e-3, feature_decay=5e-3, key=jax.random.key(0)
    )
    assert found.method == "solver"
    assert found.gap is None
    np.testing.assert_allclose(found.mean_gram, FRAME, atol=1e-8)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_mixture_of_losses_has_the_optimum_of_its_two_eigenvalues(share):
    """Outputs of balanced classes are ``a I + b J``: two numbers to minimise over."""

    def mixture(outputs, labels):
        entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        apart = outputs - jax.nn.one_hot(labels, outputs.shape[1])
        return share * entropy + (1 - share) * jnp.sum(apart**2, axis=1) / 2

    def objective(numbers):
        a, b = numbers
        entropy = np.log1p(3 * np.exp(-a))
        square = ((a + b - 1) ** 2 + 3 * b**2) / 2
        nuclear = np.sqrt(10) * (3 * abs(a) + abs(a + 4 * b))
        return share * entropy + (1 - share) * square + 5e-3 * nuclear

    best = optimize.minimize(objective, [1.0, 0.0], method="Nelder-Mead", tol=1e-12)
    found = predicted_geometry(
        mixture, [10] * 4, 5e-3, feature_decay=5e-3, key=jax.random.key(0)
    )
    np.testing.assert_allclose(found.optimum.objective, best.fun, rtol=1e-8)
    np.testing.assert_allclose(found.optimum.margins, best.x[0], rtol=1e-5)
    np.testing.assert_allclose(found.mean_gram, FRAME, atol=1e-6)


def test_a_measured_optimum_lies_on_its_prediction():
    counts = [12, 6, 6]
    labels = np.repeat(np.arange(3), counts)
    decays = {"weight_decay": 5e-3, "feature_decay": 5e-3}
    predicted = predicted_geometry(
        "cross_entropy", counts, 5e-3, feature_decay=5e-3, key=jax.random.key(0)
    )
    full = theory.unconstrained_features(
        "cross_entropy", labels, key=jax.random.key(1), **decays
    )
    distance = theory.geometry_distance(
        predicted, full.features, labels, classifier=(full.layers[0], None)
    )
    np.testing.assert_allclose(distance[:2], 0, atol=1e-9)
    np.testing.assert_allclose(distance[2:], 1, rtol=1e-9)
    measured = collapse.statistics(
        jnp.asarray(full.features, jnp.float32),
        jnp.asarray(labels),
        classifier=(jnp.asarray(full.layers[0], jnp.float32), None),
    )
    for name in ("nc2", "nc2_equinorm", "nc2_equiangular", "nc3"):
        np.testing.assert_allclose(
            getattr(measured, name), getattr(predicted.statistics, name), atol=1e-5
        )
    # The frame of balanced classes is elsewhere, by a distance worked out by hand.
    frame = np.eye(3) - 1 / 3
    off = theory.geometry_distance(predicted, frame, np.arange(3))
    gram = predicted.mean_gram - frame / 2**0.5
    np.testing.assert_allclose(off.means, np.sqrt(np.sum(gram**2)), rtol=1e-12)
    assert off.means > 0.02
    assert off.classifier is None


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"class_counts": [5, 3]}, "`key` must be given"),
        ({"class_counts": [5, 3], "key": 3}, "`key` must be one typed"),
        ({"class_counts": [5]}, "`class_counts` must be a vector of at least two"),
        ({"weight_decay": -1.0}, "`weight_decay` must be a positive"),
        ({"bias_decay": -1.0}, "`bias_decay` must be None"),
        ({"num_layers": 0}, "`num_layers` must be"),
        ({"num_features": 1.5}, "`num_features` must be"),
    ],
)
def test_bad_input_is_named(change, match):
    options = {"class_counts": [5, 5], "weight_decay": 0.01, "feature_decay": 0.01}
    with pytest.raises(ValueError, match=match):
        predicted_geometry("cross_entropy", **options | change)


@pytest.mark.usefixtures("user_land")
def test_bad_measurements_are_named():
    found = predicted_geometry("cross_entropy", [5] * 3, 0.01, feature_decay=0.01)
    distance = theory.geometry_distance
    with pytest.raises(ValueError, match=r"`features` must be a matrix"):
        distance(found, np.zeros((3, 2, 2)), np.arange(3))
    with pytest.raises(ValueError, match=r"`labels` must be .* every class of 0 to 2"):
        distance(found, np.eye(3), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match=r"`classifier\[0\]` .* must have 3 rows"):
        distance(found, np.eye(3), np.arange(3), classifier=(np.eye(2, 3), None))
    with pytest.raises(ValueError, match=r"`classifier` must be None or a pair"):
        distance(found, np.eye(3), np.arange(3), classifier=np.eye(3))
