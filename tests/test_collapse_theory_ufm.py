"""The unconstrained-features solver against closed forms worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxtheory.collapse.theory import _objective, unconstrained_features

LABELS = np.repeat(np.arange(4), 10)
DECAY = {"weight_decay": 5e-3, "feature_decay": 5e-3}
SHARED = {"targets": np.arange(4), "counts": [10] * 4}


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def numpy_objective(found, labels, decay, counts):
    """Cross-entropy and decay, example by example."""
    total, n = 0.0, np.sum(counts)
    for h, y, count in zip(found.features, labels, counts, strict=True):
        z = found.layers[0] @ h
        total += count * (logsumexp(z) - z[y]) / n + count * decay / 2 * h @ h
    return total + decay / 2 * np.sum(found.layers[0] ** 2)


@pytest.mark.parametrize(
    ("options", "margin", "norm"),
    [
        ({}, 4.0984288, 38.881109),
        ({"label_smoothing": 0.1}, 3.0681908, 29.10741),
        ({"focusing": 3.0}, 1.7470293, 16.573774),
    ],
)
def test_the_full_problem_collapses_to_the_simplex_frame(options, margin, norm):
    found = unconstrained_features(
        "cross_entropy", LABELS, **DECAY, **options, key=jax.random.key(0)
    )
    assert found.converged
    assert found.gradient_norm < 1e-12
    assert found.imbalance < 1e-12
    means = found.features.reshape(4, 10, -1).mean(1)
    np.testing.assert_allclose(found.features, means[LABELS], atol=1e-10)
    z = found.outputs
    np.testing.assert_allclose(z[LABELS == 0, 0] - z[LABELS == 0, 1], margin, atol=1e-7)
    np.testing.assert_allclose(np.sum(found.layers[0] ** 2), norm, rtol=3e-7)
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(cosines(found.layers[0])[off], -1 / 3, atol=1e-9)
    np.testing.assert_allclose(cosines(means)[off], -1 / 3, atol=1e-9)


def test_shared_features_a_flow_and_a_warm_start_find_the_same_optimum():
    full = unconstrained_features(
        "cross_entropy", LABELS, **DECAY, key=jax.random.key(1)
    )
    np.testing.assert_allclose(
        full.objective,
        numpy_objective(full, LABELS, 5e-3, np.ones(40)),
        rtol=1e-14,
    )
    shared = unconstrained_features(
        "cross_entropy", **SHARED, **DECAY, key=jax.random.key(2)
    )
    np.testing.assert_allclose(
        shared.objective,
        numpy_objective(shared, range(4), 5e-3, [10] * 4),
        rtol=1e-14,
    )
    flow = unconstrained_features(
        "cross_entropy",
        **SHARED,
        **DECAY,
        key=jax.random.key(3),
        method="gradient_flow",
    )
    warm = unconstrained_features(
        "cross_entropy", **SHARED, **DECAY, start=(*shared[:2], None)
    )
    for found in (full, shared, flow, warm):
        np.testing.assert_allclose(found.objective, 0.2430016019850538, rtol=1e-14)
        assert found.converged
    assert warm.num_evaluations < shared.num_evaluations / 3


@pytest.mark.parametrize(("product", "norm"), [(0.98, 0.744), (1.02, 0.0)])
def test_the_origin_is_optimal_from_k_epsilon_one(product, norm):
    decay = product / 4 / 10**0.5  # K eps = K sqrt(n lw lh)
    found = unconstrained_features(
        "cross_entropy",
        **SHARED,
        weight_decay=decay,
        feature_decay=decay,
        key=jax.random.key(1),
    )
    assert found.converged
    np.testing.assert_allclose(np.sum(found.layers[0] ** 2), norm, atol=5e-4)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_minority_classes_merge_at_the_threshold(ratio):
    decay = (ratio * 5) ** 0.5 / 105  # N^2 lw lh = ratio n_B
    found = unconstrained_features(
        "cross_entropy",
        np.arange(6),
        counts=[30] * 3 + [5] * 3,
        weight_decay=decay,
        feature_decay=decay,
        key=jax.random.key(0),
    )
    assert found.converged
    lowest = cosines(found.layers[0][3:]).min()
    apart = np.linalg.norm(found.layers[0][3] - found.layers[0][4])
    if ratio < 1:
        np.testing.assert_allclose(lowest, 0.892, atol=5e-4)
        assert apart > 0.4
    else:
        assert lowest > 1 - 1e-12
        assert apart < 1e-10


def test_squared_error_thresholds_the_square_roots_of_the_counts():
    found = unconstrained_features(
        "squared_error",
        np.arange(4),
        counts=[200, 100, 50, 50],
        weight_decay=5e-4,
        feature_decay=5e-4,
        key=jax.random.key(0),
    )
    expected = np.diag([13.94213562, 9.8, 6.87106781, 6.87106781])
    np.testing.assert_allclose(found.layers[0] @ found.layers[0].T, expected, atol=1e-7)
    np.testing.assert_allclose(
        np.sum(found.features**2, 1),
        [0.06971068, 0.098, 0.13742136, 0.13742136],
        atol=1e-8,
    )


def test_a_function_a_bias_and_a_target_vector_do_the_same_as_the_names():
    def own_loss(outputs, y):
        return jax.nn.logsumexp(outputs, axis=1) - jnp.sum(outputs * y, axis=1)

    options = {"counts": [5, 3, 2], "bias_decay": 0.02, **DECAY}
    options["key"] = jax.random.key(0)
    eye = np.eye(3)
    named = unconstrained_features("cross_entropy", np.arange(3), **options)
    options["key"] = jax.random.key(1)
    vectors = unconstrained_features("cross_entropy", eye, **options)
    options["key"] = jax.random.key(2)
    own = unconstrained_features(own_loss, eye, **options)
    assert named.bias is not None
    for found in (vectors, own):
        np.testing.assert_allclose(found.objective, named.objective, rtol=1e-13)
        np.testing.assert_allclose(found.bias, named.bias, atol=1e-9)
    # In the bias, the gradient is mean(p) - share + lb b.
    p = np.exp(named.outputs - logsumexp(named.outputs, 1, keepdims=True))
    shares = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(shares @ p - shares + 0.02 * named.bias, 0, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_decays_that_differ_by_orders_of_magnitude_cost_little(num_layers):
    # Rescaled factors have the same outputs: only W's decay to the power M times that
    # of H matters.
    options = {"counts": [100, 10, 1], "num_layers": num_layers}
    even = {"weight_decay": 1e-4, "feature_decay": 1e-4}
    uneven = {"weight_decay": 1e-2, "feature_decay": 1e-4 / 100**num_layers}
    same, skewed = (
        unconstrained_features(
            "squared_error", np.arange(3), key=jax.random.key(0), **options, **decays
        )
        for decays in (even, uneven)
    )
    assert same.converged
    assert skewed.converged
    assert skewed.num_evaluations < 3 * same.num_evaluations
    np.testing.assert_allclose(skewed.outputs, same.outputs, atol=1e-8)


def test_precision_does_not_depend_on_the_global_switch(x64):
    found = unconstrained_features(
        "cross_entropy", **SHARED, **DECAY, key=jax.random.key(2)
    )
    np.testing.assert_allclose(found.objective, 0.2430016019850538, rtol=1e-14)
    assert found.features.dtype == np.float64


def test_new_numbers_of_the_same_shapes_cost_no_new_trace():
    solve = lambda decay: unconstrained_features(
        "cross_entropy",
        **SHARED,
        weight_decay=decay,
        feature_decay=1e-2,
        key=jax.random.key(0),
    )
    solve(1e-2)
    before = _objective.value_and_grad._cache_size()
    solve(2e-2)
    assert _objective.value_and_grad._cache_size() == before


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss": "hinge"}, "`loss` must be"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be .* \[0, 1\)"),
        ({"label_smoothing": 0.1, "focusing": 1.0}, "must not both"),
        ({"loss": "squared_error", "focusing": 1.0}, "must be 0 unless"),
        ({"weight_decay": 0.0}, "`weight_decay` must be a positive"),
        ({"bias_decay": -1.0}, "`bias_decay` must be None or"),
        ({"counts": [1, 0, 1, 1]}, "`counts` must be a vector of positive"),
        ({"counts": [1, 1]}, "as many examples"),
        ({"targets": np.arange(4) > 1}, "`targets` must be class indices"),
        ({"targets": np.zeros((4, 2, 2))}, "`num_outputs` must be given"),
        ({"num_outputs": 3}, r"`targets` must lie in \[0, 3\)"),
        ({"key": None}, "Exactly one of `key` and `start`"),
        ({"key": 0}, "`key` must be one typed random key"),
        ({"key": None, "start": (1, 2)}, r"`start` must be `\(layers"),
        (
            {"key": None, "start": ((np.eye(3),), np.eye(3), None)},
            "`start` must hold factors of shapes",
        ),
        ({"method": "newton"}, "`method` must be"),
        ({"loss": lambda z, y: z}, "`loss_fn` must return one loss"),
    ],
)
def test_bad_input_is_named(change, match):
    options = {"loss": "cross_entropy", **SHARED, **DECAY, "key": jax.random.key(0)}
    options |= change
    with pytest.raises(ValueError, match=match):
        unconstrained_features(options.pop("loss"), options.pop("targets"), **options)


@pytest.mark.usefixtures("user_land")
def test_traced_input_is_refused():
    solve = lambda y: unconstrained_features(
        "cross_entropy", y, **DECAY, key=jax.random.key(0)
    )[3]
    with pytest.raises(ValueError, match="`targets` must be concrete"):
        jax.jit(solve)(jnp.arange(3))
