"""The law of data separation against dense scatters, closed forms and a linear net."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import (
    bootstrap_separation_law,
    choose_layer,
    effective_depth,
    fit_layer_line,
    fit_separation_law,
    layer_statistics,
    separation,
    separation_law,
    statistics,
    suggest_depth,
)


def oracle(features, labels):
    """Tr(SS_W SS_B^+) from d x d scatters, classes weighted by their examples."""
    h = np.asarray(features, np.float64).reshape(len(features), -1)
    within = np.zeros((h.shape[1], h.shape[1]))
    between = np.zeros_like(within)
    for c in np.unique(labels):
        members = h[labels == c]
        mean = members.mean(0)
        for row in members:
            within += np.outer(row - mean, row - mean) / len(h)
        offset = mean - h.mean(0)
        between += len(members) * np.outer(offset, offset) / len(h)
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-11))


def cloud(labels, shape, *, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(4, *shape))
    return (
        means[np.asarray(labels)] + noise * rng.normal(size=(len(labels), *shape)) + 3
    )


BALANCED, IMBALANCED = (
    jnp.arange(30) % 3,
    jnp.repeat(jnp.array([0, 1, 3]), jnp.array([20, 9, 1])),
)


@pytest.mark.parametrize(
    ("labels", "shape", "dtype"),
    [
        (BALANCED, (5,), np.float32),
        (IMBALANCED, (2, 3, 2), np.float32),
        (IMBALANCED, (2, 3, 2), np.float64),
        (IMBALANCED, (), np.float32),
    ],
)
def test_matches_the_dense_oracle(labels, shape, dtype):
    features = cloud(labels, shape).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = separation(jnp.asarray(features), labels)
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(found, oracle(features, labels), rtol=tolerance)


def test_weighs_classes_by_their_examples():
    # Balanced, it is NC1 without 1/K; imbalanced, it is not.
    for labels, same in [(BALANCED, True), (IMBALANCED, False)]:
        features = jnp.asarray(cloud(labels, (4,)), jnp.float32)
        found = separation(features, labels, num_classes=4)
        nc1 = statistics(features, labels, num_classes=4, normalize_by_classes=False)[0]
        assert np.isclose(found, nc1, rtol=1e-5) == same


def test_two_points_on_a_line_have_a_closed_form():
    # Classes of 3 and 1 examples at 0 and 4: SS_B = 3/4 * 1/4 * 16 = 3, SS_W = 1/4.
    features = jnp.array([[0.0], [0.5**0.5], [-(0.5**0.5)], [4.0]])
    found = separation(features, jnp.array([0, 0, 0, 1]))
    np.testing.assert_allclose(found, 0.25 / 3, rtol=1e-6)


def test_a_bare_number_says_nan_where_examples_would_be_left_out():
    features = jnp.asarray(cloud(BALANCED, (4,)), jnp.float32)
    measure = jax.jit(lambda h, y: separation(h, y, num_classes=3))
    assert jnp.isfinite(measure(features, BALANCED))
    assert jnp.isnan(measure(features.at[0, 0].set(jnp.inf), BALANCED))
    assert jnp.isnan(measure(features, BALANCED.at[0].set(5)))


def test_no_between_class_scatter_is_infinite():
    features = jnp.repeat(jnp.array([[0.1], [0.7]]), 3, axis=0)
    assert separation(features, jnp.arange(6) % 3) == jnp.inf


def test_transforms():
    features = jnp.asarray(cloud(BALANCED, (4,)), jnp.float32)
    measure = lambda h: separation(h, BALANCED, num_classes=3)
    value = measure(features)
    stacked = jax.vmap(measure)(jnp.stack([features, features * 2]))
    np.testing.assert_allclose(stacked, [value, value], rtol=1e-5)
    slope = jnp.vdot(jax.grad(measure)(features), features)
    np.testing.assert_allclose(slope, 0, atol=1e-4)  # homogeneous of degree 0


def test_eight_devices_give_what_one_gives(eight_devices):
    labels = jnp.arange(40) % 3
    features = jnp.asarray(cloud(labels, (2, 3)), jnp.float32)
    sharding = jax.NamedSharding(eight_devices, jax.P("data"))
    found = separation(*jax.device_put((features, labels), sharding))
    np.testing.assert_allclose(found, separation(features, labels), rtol=1e-5)


def test_fit_matches_numpy():
    values = np.array([30.0, 11.0, 6.0, 1.5, 0.9, 0.2])
    law = fit_separation_law(jnp.asarray(values, jnp.float32))
    logs, layer = np.log(values), np.arange(6)
    slope, intercept = np.polyfit(layer, logs, 1)
    drops = -np.diff(logs)
    expected = [
        slope,
        intercept,
        np.exp(slope),
        np.corrcoef(layer, logs)[0, 1],
        1 - np.var(logs - slope * layer - intercept) / np.var(logs),
        np.std(drops) / np.mean(drops),
    ]
    np.testing.assert_allclose(law[1:7], expected, rtol=5e-6)
    assert int(law.num_undefined) == 0
    assert law.ranks is None
    assert law.names is None


def test_correlation_is_nearly_free_and_drops_are_not():
    # Drops between 0 and 1: a correlation of -0.98 and no law at all.
    drops = np.random.default_rng(3).uniform(size=8)
    logs = -np.concatenate([[0], np.cumsum(drops)])
    law = fit_separation_law(jnp.asarray(np.exp(logs), jnp.float32))
    assert law.pearson_r < -0.98
    assert law.drop_variation > 0.3


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan, -1.0])
def test_an_undefined_layer_is_counted_and_leaves_no_line(bad):
    law = fit_separation_law(jnp.array([4.0, 2.0, bad, 0.5]))
    assert int(law.num_undefined) == 1
    np.testing.assert_array_equal(law[1:7], np.full(6, np.nan))
    np.testing.assert_array_equal(law.values, jnp.array([4, 2, bad, 0.5]))


def test_constant_separation():
    law = fit_separation_law(jnp.ones(5))
    expected = [0, 0, 1, 0, 0, 0]
    np.testing.assert_array_equal(law[1:7], expected)


@pytest.fixture(scope="module")
def layers():
    """Three layers of different shapes, in an order that is not the alphabet's."""
    shapes = {"pixels": (2, 4), "hidden": (6,), "features": (5,)}
    return {
        name: jnp.asarray(cloud(BALANCED, shape, noise=0.5**i), jnp.float32)
        for i, (name, shape) in enumerate(shapes.items())
    }


def test_law_of_layers(layers):
    law = separation_law(layers, BALANCED)
    expected = [oracle(features, BALANCED) for features in layers.values()]
    np.testing.assert_allclose(law.values, expected, rtol=2e-5)
    np.testing.assert_array_equal(law.ranks, [2, 2, 2])
    assert law.names == ("pixels", "hidden", "features")
    np.testing.assert_array_equal(law[1:7], fit_separation_law(law.values)[1:7])
    sequence = separation_law(list(layers.values()), BALANCED)
    np.testing.assert_array_equal(sequence.values, law.values)
    assert sequence.names is None


def test_law_passes_through_jit_with_its_names(layers):
    names, features = list(layers), list(layers.values())
    measure = jax.jit(
        lambda hs: separation_law(dict(zip(names, hs, strict=True)), BALANCED)
    )
    law = measure(features)
    assert law.names == ("pixels", "hidden", "features")
    np.testing.assert_allclose(
        law.values, separation_law(layers, BALANCED).values, rtol=1e-5
    )


def deep_linear_layers(shared, rate, steps):
    """Layers of a trained deep linear network, from the inputs to the last hidden one.

    50-dimensional orthonormal inputs (plus `shared` over sqrt(10) times one more
    direction), 3 classes of 10, five orthogonal hidden layers of scale 0.3 and a
    classifier, gradient descent on the squared error of 100 outputs.
    """
    rng = np.random.default_rng(0)
    orthogonal = lambda k: np.linalg.qr(rng.normal(size=(k, k)))[0]
    basis = orthogonal(50)
    x = jnp.asarray(basis[:30] + shared * basis[30] / 10**0.5, jnp.float32)
    labels = jnp.arange(30) // 10
    hidden = jnp.asarray([0.3 * orthogonal(50) for _ in range(5)], jnp.float32)
    head = jnp.asarray(0.3 * orthogonal(3) @ np.eye(3, 50), jnp.float32)

    def forward(params):
        layers = [x]
        for weight in params[0]:
            layers.append(layers[-1] @ weight.T)
        return layers, layers[-1] @ params[1].T

    def loss(params):
        errors = 100 * forward(params)[1] - jnp.eye(3)[labels]
        return jnp.sum(jnp.square(errors)) / 30

    def descend(params, _):
        slope = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, slope), 0

    descend_all = jax.jit(lambda p: jax.lax.scan(descend, p, length=steps)[0])
    params = descend_all((hidden, head))
    assert loss(params) < 1e-8
    return forward(params)[0], labels


def test_deep_linear_net_collapses_geometrically():
    """Progressive collapse: every layer multiplies tr Sigma_W / tr Sigma_B alike.

    Theory: 0.3^2 / (sqrt(10) / 100)^(2/6) = 0.2846 per layer; the published run has
    0.2902, 0.2827, 0.2807, 0.2803, 0.2803 from 13.5 (without noise on the inputs).
    """
    layers, labels = deep_linear_layers(0.0, 0.1, 60)
    measured = [statistics(h, labels) for h in layers]
    ratios = jnp.stack([m.within_class_trace / m.between_class_trace for m in measured])
    np.testing.assert_allclose(ratios[0], 13.5, rtol=1e-5)
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], 0.2846, rtol=0.03)
    law = fit_separation_law(ratios)
    assert law.pearson_r < -0.9999
    assert law.drop_variation < 0.02


def test_deep_linear_net_turns_class_means_apart_linearly():
    """Cosines of class means go down by the same amount at every layer.

    Balanced layers of least norm that solve ``W M^T = I`` share it out evenly, so that
    the Gram matrix of the means after ``l`` of ``L + 1`` layers is the power ``1 - l /
    (L + 1)`` of the first one: to first order in the cosines they are a line to 0. Here
    it is ``1 + c^2 J`` with cosine 0.3; what differs is what the initial weights leave.
    """
    squared = 3 / 7
    layers, labels = deep_linear_layers(squared**0.5, 0.08, 100)
    found = layer_statistics(layers, labels).angular_separation
    eigenvalue = (1 + 3 * squared) ** (1 - np.arange(6) / 6)
    expected = 1 - (eigenvalue - 1) / (eigenvalue + 2)
    np.testing.assert_allclose(found[0], 0.7, rtol=1e-5)
    np.testing.assert_allclose(found, expected, atol=0.012)
    line = fit_layer_line(found)
    assert line.pearson_r > 0.9995
    assert line.drop_variation < 0.06
    np.testing.assert_allclose(line.slope, 0.3 / 6, rtol=0.04)


H = jnp.ones((6, 2))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([H, H], r"`layers` must hold at least three layers.*holds 2"),
        ([H, (H, H), H], r"`layers\[1\]` must be one array, but is a tuple"),
        ([H, None, H], r"no array was given as `layers\[1\]`"),
        ([H, H, H[:4]], r"`labels` must have as many examples.*`layers\[2\]`"),
        ({"a": H, "b": H.astype(int), "c": H}, r"`layers\['b'\]` must be floating"),
        (
            {"layer_1": H, "layer_10": H, "layer_2": H},
            r"`layers` must be in network order.*layer_10.*alphabetical",
        ),
    ],
)
def test_bad_layers_name_the_fix(layers, message, user_land):
    with pytest.raises(ValueError, match=message):
        separation_law(layers, jnp.arange(6) % 2)


def test_bad_values_and_labels_name_the_fix(user_land):
    with pytest.raises(ValueError, match=r"`values` must hold at least three"):
        fit_separation_law(jnp.ones(2))
    with pytest.raises(ValueError, match=r"`values` must be a vector.*\(2, 2\)"):
        fit_separation_law(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`labels` must be a vector.*is a list"):
        separation_law([H, H, H], [0, 1, 0, 1, 0, 1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 2\)"):
        separation(H, jnp.arange(6), num_classes=2)
    with pytest.raises(ValueError, match=r"`num_classes` must be given"):
        jax.jit(separation)(H, jnp.arange(6) % 2)


@pytest.mark.parametrize("layers", [None, jnp.ones((3, 6, 4)), (x for x in ())])
def test_layers_that_are_no_layers_name_the_fix(layers: Any, user_land):
    for call in (separation_law, layer_statistics, choose_layer):
        with pytest.raises(ValueError, match=r"`layers` must be a mapping.*but is a"):
            call(layers, jnp.arange(6) % 3)


def test_values_that_are_no_real_numbers_name_the_fix(user_land):
    values: Any
    for values in (None, "abc", jnp.ones(3) + 1j, np.array([None] * 3)):
        for call in (fit_separation_law, fit_layer_line):
            with pytest.raises(ValueError, match=r"`values` must be real.*dtype"):
                call(values)
        with pytest.raises(ValueError, match=r"`errors` must be real.*dtype"):
            effective_depth(values)
    law: Any = fit_separation_law(jnp.array([4.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match=r"`values` must be one.*Pass its `values`"):
        fit_separation_law(law)
    with pytest.raises(ValueError, match=r"`law` must be a `SeparationLaw`"):
        suggest_depth(values, 0.1)


def test_resamples_without_scatter_are_not_negative():
    features = jnp.arange(12.0).reshape(6, 2)[:, ::-1] ** 2
    layers, labels = [features, 2 * features, 3 * features], jnp.arange(6) % 3
    found = bootstrap_separation_law(layers, labels, key=jax.random.key(0))
    assert jnp.all(found.resampled_values >= 0)
