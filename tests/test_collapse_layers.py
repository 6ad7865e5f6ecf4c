"""Measures of every layer against NumPy loops, and what laws are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import _layers as layers_module
from jaxtheory.collapse import (
    bootstrap_separation_law,
    effective_depth,
    fit_layer_line,
    fit_separation_law,
    layer_statistics,
    random_drop_test,
    separation_law,
    statistics,
    suggest_depth,
)

LABELS = np.repeat([0, 1, 3], [14, 9, 7])


def cloud(noise, seed=0, dtype=np.float32):
    """Class 2 of 4 does not occur."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(4, 2, 3)) + 1
    features = means[LABELS] + noise * rng.normal(size=(30, 2, 3))
    return features.astype(dtype)


def oracle(features):
    """Each measure from d x d scatters and loops over classes and pairs."""
    h = np.asarray(features, np.float64).reshape(30, -1)
    classes = np.unique(LABELS)
    means = {c: h[c == LABELS].mean(0) for c in classes}
    residuals = h - np.array([means[c] for c in LABELS])
    within = residuals.T @ residuals / 30
    stacked = np.array(list(means.values()))
    centred = stacked - stacked.mean(0)
    between = centred.T @ centred / 3
    offsets = np.array([means[c] for c in LABELS]) - h.mean(0)
    weighted = offsets.T @ offsets / 30
    cosines, ratios = [], []
    for i in classes:
        for j in classes[classes > i]:
            a, b = means[i], means[j]
            cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            spread = sum((residuals[c == LABELS] ** 2).sum(1).mean() for c in (i, j))
            ratios.append(spread / (2 * ((a - b) ** 2).sum()))
    wrong = [
        classes[np.argmin(((row - stacked) ** 2).sum(1))] != label
        for row, label in zip(h, LABELS, strict=True)
    ]
    values = np.linalg.svd(centred, compute_uv=False)
    return [
        np.trace(within @ np.linalg.pinv(weighted, rcond=1e-10)),
        np.trace(within) / np.trace(between),
        1 - max(cosines),
        np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3,
        np.mean(ratios),
        values.sum() ** 2 / (values**2).sum(),
        np.mean(wrong),
    ]


@pytest.fixture(scope="module")
def layers():
    return {f"layer_{l}": jnp.asarray(cloud(1.5 / 2**l)) for l in range(4)}


@pytest.fixture(scope="module")
def measured(layers):
    return layer_statistics(layers, jnp.asarray(LABELS), num_classes=4)


def test_matches_numpy(layers, measured):
    for l, features in enumerate(layers.values()):
        found = [column[l] for column in measured[:7]]
        np.testing.assert_allclose(found, oracle(features), rtol=3e-5, atol=1e-6)
    assert measured.nearest_mean_error[0] > 0.05
    np.testing.assert_array_equal(measured.ranks, [2] * 4)
    np.testing.assert_array_equal(measured.num_left_out, [0] * 4)
    assert measured.names == tuple(layers)


def test_matches_numpy_in_double(x64):
    features = cloud(0.7, dtype=np.float64)
    found = layer_statistics([jnp.asarray(features)], jnp.asarray(LABELS))
    np.testing.assert_allclose(jnp.stack(found[:7])[:, 0], oracle(features), rtol=1e-12)


def test_agrees_with_the_other_measures(layers, measured):
    law = separation_law(layers, jnp.asarray(LABELS), num_classes=4)
    np.testing.assert_allclose(measured.separation, law.values, rtol=1e-6)
    flat = jnp.reshape(layers["layer_1"], (30, 6))
    nc1 = statistics(flat, jnp.asarray(LABELS), num_classes=4).nc1
    np.testing.assert_allclose(measured.nc1[1], nc1, rtol=1e-5)


def test_rank_of_features_counts_all_directions():
    features, labels = jnp.eye(6)[jnp.arange(30) % 6], jnp.arange(30) % 2
    for which, rank in [("class_means", 1), ("features", 5)]:  # centred: 6 - 1
        found = layer_statistics([features], labels, rank_of=which)
        np.testing.assert_allclose(found.numerical_rank, [rank], rtol=1e-5)


def test_what_is_left_out_is_counted(layers, measured):
    features = layers["layer_1"].reshape(30, 6)
    broken = jnp.concatenate([features, jnp.full((1, 6), jnp.nan)])
    labels = jnp.concatenate([jnp.asarray(LABELS), jnp.zeros(1, int)])
    found = layer_statistics([broken], labels, num_classes=4)
    np.testing.assert_array_equal(found.num_left_out, [1])
    for column, expected in zip(found[:7], measured[:7], strict=True):
        np.testing.assert_allclose(column[0], expected[1], rtol=1e-5)


def test_coinciding_means():
    features = jnp.repeat(jnp.array([[0.1, 1.0], [0.7, 2.0]]), 3, axis=0)
    found = layer_statistics([features], jnp.arange(6) % 3)
    assert found.separation == jnp.inf
    assert found.trace_ratio == jnp.inf
    assert found.cdnv == jnp.inf
    assert found.numerical_rank == 0
    assert jnp.isnan(found.nearest_mean_error)
    np.testing.assert_allclose(found.angular_separation, 0, atol=1e-6)


def test_traces_once_for_the_same_shapes(layers, monkeypatch):
    traces = []
    original = layers_module.class_moments
    monkeypatch.setattr(
        layers_module, "class_moments", lambda *a: traces.append(1) or original(*a)
    )
    for scale in [1.0, 2.0]:
        some = [scale * h[:17] for h in layers.values()]
        layer_statistics(some, jnp.asarray(LABELS[:17]), num_classes=4)
    assert len(traces) == 1


def test_eight_devices_give_what_one_gives(eight_devices):
    features, labels = jnp.asarray(cloud(0.5))[:24], jnp.asarray(LABELS[:24])
    alone = layer_statistics([features], labels, num_classes=4)
    sharding = jax.NamedSharding(eight_devices, jax.P("data"))
    placed = jax.device_put((features, labels), sharding)
    found = layer_statistics([placed[0]], placed[1], num_classes=4)
    for column, expected in zip(found[:9], alone[:9], strict=True):
        np.testing.assert_allclose(column, expected, rtol=1e-5)


def test_measures_do_not_depend_on_names_and_order_of_examples(layers, measured):
    order = np.random.default_rng(3).permutation(30)
    rename = np.array([3, 1, 0, 2])
    shuffled = [h[order] for h in layers.values()]
    found = layer_statistics(shuffled, jnp.asarray(rename[LABELS[order]]))
    for column, expected in zip(found[:7], measured[:7], strict=True):
        np.testing.assert_allclose(column, expected, rtol=1e-5, atol=1e-7)


def test_the_input_layer_is_in_or_out_as_said(layers):
    labels = jnp.asarray(LABELS)
    values = np.array([50.0, 4.0, 2.1, 0.9, 0.55])
    for first, rule in enumerate(["include", "exclude"]):
        law = fit_separation_law(jnp.asarray(values), input_layer=rule)
        index = np.arange(first, 5)
        curve = np.polyfit(index, np.log(values[first:]), 2)
        slope, intercept = np.polyfit(index, np.log(values[first:]), 1)
        np.testing.assert_allclose(law.log_slope, slope, rtol=1e-5)
        np.testing.assert_allclose(law.log_intercept, intercept, rtol=1e-5)
        np.testing.assert_allclose(law.quadratic, curve[0], rtol=2e-5, atol=1e-6)
        assert law.values.shape == (5,)
    without = separation_law(layers, labels, num_classes=4, input_layer="exclude")
    expected = fit_separation_law(without.values[1:])
    np.testing.assert_allclose(without.log_slope, expected.log_slope, rtol=1e-5)


def test_a_line_of_any_scale():
    values = np.array([1.0, 0.7, 0.5, 0.1])
    linear = fit_layer_line(jnp.asarray(values))
    slope, intercept = np.polyfit(np.arange(4), values, 1)
    np.testing.assert_allclose(linear[:2], [slope, intercept], rtol=1e-5)
    logs = fit_layer_line(jnp.asarray(values), scale="log")
    law = fit_separation_law(jnp.asarray(values))
    np.testing.assert_array_equal(logs[:5], [*law[1:3], *law[4:7]])
    assert int(fit_layer_line(jnp.array([1.0, 0, -1, 2]), scale="log").num_undefined)


def test_a_correlation_of_nine_layers_is_nearly_free():
    # r <= -0.98 is what random drops reach three times out of four.
    rng = np.random.default_rng(0)
    logs = -np.cumsum(rng.uniform(size=(4000, 9)), axis=1)
    fits = jax.vmap(fit_separation_law)(jnp.asarray(np.exp(logs)))
    share = np.mean(fits.pearson_r <= -0.98)
    np.testing.assert_allclose(share, 0.75, atol=0.03)


def test_p_values_are_uniform_under_the_null_and_small_for_a_law():
    rng = np.random.default_rng(1)
    logs = -np.cumsum(rng.uniform(size=(300, 7)), axis=1)
    test = jax.vmap(lambda v: random_drop_test(v, key=jax.random.key(0)))
    for found in test(jnp.asarray(np.exp(logs))):
        # Kolmogorov-Smirnov distance, 0.1 % level: 1.95 / sqrt(300).
        gaps = np.sort(found.value) - (np.arange(300) + 0.5) / 300
        assert np.abs(gaps).max() < 1.95 / np.sqrt(300)
    law = random_drop_test(jnp.exp(-1.3 * jnp.arange(7.0)), key=jax.random.key(1))
    assert law.pearson_r.value < 0.001
    assert law.drop_variation.value < 0.001
    assert law.drop_variation.num_samples == 10_000
    undefined = random_drop_test(jnp.array([1.0, 0.5, 0]), key=jax.random.key(1))
    assert jnp.isnan(undefined.pearson_r.value)


def test_values_that_rise_evenly_or_stay_are_no_law_of_drops():
    rising = jnp.exp(0.3 * jnp.arange(7.0))
    test = jax.vmap(lambda v: random_drop_test(v, key=jax.random.key(0)))
    found = test(jnp.stack([rising, jnp.ones(7), 1 / rising]))
    for p in found:
        np.testing.assert_allclose(p.value[:2], 1, rtol=1e-6)
        assert p.value[2] < 0.001


def test_depth_that_reaches_a_target():
    law = fit_separation_law(jnp.array([8.0, 4.0, 2.0, 1.0]))
    depths = [suggest_depth(law, target) for target in (10.0, 8.0, 1.0, 0.99)]
    np.testing.assert_array_equal(depths, [0, 0, 3, 4])
    assert suggest_depth(fit_separation_law(jnp.array([1.0, 2, 3])), 0.5) == jnp.inf
    assert jnp.isnan(suggest_depth(fit_separation_law(jnp.array([1.0, 0, 3])), 0.5))


def test_effective_depth(measured):
    errors = jnp.array([0.5, 0.1, jnp.nan, 0.05, 0.0])
    depths = [effective_depth(errors, tolerance=e) for e in (0.2, 0.05, 0.0)]
    np.testing.assert_array_equal(depths, [1, 3, 4])
    assert effective_depth(errors[:3]) == jnp.inf
    assert effective_depth(measured.nearest_mean_error) == 2


@pytest.fixture(scope="module")
def bootstrap(layers):
    key = jax.random.key(0)
    return bootstrap_separation_law(
        layers, jnp.asarray(LABELS), key=key, num_resamples=300, num_classes=4
    )


def test_bootstrap_draws_within_classes(layers, bootstrap):
    """Against resamples drawn and measured in NumPy: means and spreads agree."""
    rng, expected = np.random.default_rng(5), []
    h = np.asarray(layers["layer_1"], np.float64).reshape(30, 6)
    classes = [np.flatnonzero(c == LABELS) for c in (0, 1, 3)]
    for _ in range(300):
        rows = [rng.choice(a, len(a)) for a in classes]
        expected.append(oracle(h[np.concatenate(rows)])[0])
    found = bootstrap.resampled_values[:, 1]
    error = np.std(expected) / np.sqrt(300)
    np.testing.assert_allclose(found.mean(), np.mean(expected), atol=5 * error)
    np.testing.assert_allclose(found.std(), np.std(expected), rtol=0.3)


def test_bootstrap_intervals_are_quantiles(bootstrap, measured):
    laws = [fit_separation_law(row) for row in bootstrap.resampled_values]
    for name in ("log_slope", "quadratic", "pearson_r"):
        expected = np.quantile([getattr(law, name) for law in laws], [0.025, 0.975])
        np.testing.assert_allclose(getattr(bootstrap, name), expected, rtol=1e-4)
    ratio = fit_separation_law(measured.separation).ratio
    assert bootstrap.ratio[0] < ratio < bootstrap.ratio[1]


H = jnp.ones((6, 2))
Y = jnp.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_statistics([], Y), r"`layers` must hold at least one"),
        (lambda: layer_statistics([H, H[:4]], Y), r"`labels` must have as many.*\[1\]"),
        (lambda: layer_statistics([H], Y, rank_of="d"), r"`rank_of` must be.*'d'"),
        (
            lambda: separation_law([H] * 3, Y, input_layer="exclude"),
            r"`layers` must hold at least three layers after the input.*holds 2",
        ),
        (
            lambda: fit_layer_line(jnp.ones(4), input_layer="skip"),
            r"`input_layer` must be \"include\" or \"exclude\", but was 'skip'",
        ),
        (lambda: fit_layer_line(jnp.ones(4), scale="ln"), r"`scale` must be"),
        (lambda: random_drop_test(jnp.ones(4), key=0), r"`key` must be one typed"),
        (
            lambda: bootstrap_separation_law(
                [H] * 3, Y, key=jax.random.key(0), level=1.0
            ),
            r"`level` must be strictly between 0 and 1, but was 1.0",
        ),
        (lambda: suggest_depth(fit_separation_law(jnp.ones(3)), -1.0), r"`target`"),
        (lambda: effective_depth(jnp.ones((2, 2))), r"`errors` must be a vector"),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
