"""Few-shot bounds and pairwise errors against closed forms and simulated shots."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxtheory.bounds import few_shot, linear_margin
from jaxtheory.collapse import (
    PairMoments,
    geometric_complexity,
    pair_moments,
    pairwise_errors,
)
from jaxtheory.collapse import _few_shot as module

LABELS = np.repeat([0, 1, 3], [14, 9, 7])


def oracle(features):
    """Loops over pairs of classes; class 2 of 4 does not occur."""
    shape = (4, 4)
    v, axis, fourth, errors = (np.full(shape, np.nan) for _ in range(4))
    for i in (0, 1, 3):
        for j in (0, 1, 3):
            if i == j:
                continue
            a, b = features[i == LABELS], features[j == LABELS].mean(0)
            mean = a.mean(0)
            d = np.linalg.norm(b - mean)
            covariance = np.cov(a.T, bias=True)
            u = (b - mean) / d
            v[i, j] = np.trace(covariance) / d**2
            axis[i, j] = u @ covariance @ u / d**2
            fourth[i, j] = (((a - mean) ** 2).sum(1) ** 2).mean() / d**4
            near = np.linalg.norm(a - b, axis=1) < np.linalg.norm(a - mean, axis=1)
            errors[i, j] = near.mean()
    return v, axis, fourth, errors


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 6))[LABELS]
    return means + 1.2 * rng.normal(size=(30, 6)) + 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matches_numpy(features, dtype):
    with jax.enable_x64(dtype == np.float64):
        found = pair_moments(jnp.asarray(features, dtype), jnp.asarray(LABELS))
    tolerance = 200 * np.finfo(dtype).eps
    for matrix, expected in zip(found[:4], oracle(features), strict=True):
        np.testing.assert_allclose(matrix, expected, rtol=tolerance)
    assert found.variance.dtype == dtype
    assert np.nanmax(found.measured_error) > 0
    np.testing.assert_array_equal(found.counts, [14, 9, 0, 7])


def test_units_do_not_matter(features):
    base, labels = jnp.asarray(features, jnp.float32), jnp.asarray(LABELS)
    for scale in (2.0**70, 2.0**-70):
        found = pair_moments(base * scale, labels)
        for matrix, expected in zip(
            found[:4], pair_moments(base, labels), strict=False
        ):
            np.testing.assert_allclose(matrix, expected, rtol=1e-5)


def test_what_is_left_out_is_counted(features):
    base = jnp.asarray(features, jnp.float32).at[0, 0].set(jnp.nan)
    found = pair_moments(base, jnp.asarray(LABELS))
    assert int(found.num_left_out) == 1
    assert int(found.counts[0]) == 13
    assert np.isfinite(found.variance[0, 1])


def test_coinciding_means_are_infinite_and_vacuous():
    features = jnp.repeat(jnp.array([[0.1, 1.0], [0.7, 2.0]]), 2, axis=0)
    found = pair_moments(features, jnp.arange(4) % 2)
    assert found.variance[0, 1] == jnp.inf
    assert pairwise_errors(found).cantelli[0, 1] == 1
    np.testing.assert_allclose(pairwise_errors(found).gaussian[0, 1], 0.5)
    for shots in (3, None):
        bound = few_shot(found, shots)
        assert (bound.value, bound.vacuous) == (1.0, True)


def isotropic(dim=20, noise=0.1):
    """Two isotropic Gaussian classes at distance 1, with their exact moments."""
    off = lambda value: jnp.array([[jnp.nan, value], [value, jnp.nan]])
    v, fourth = dim * noise**2, (dim**2 + 2 * dim) * noise**4
    zero = jnp.array(0)
    return PairMoments(
        off(v), off(noise**2), off(fourth), off(0.0), jnp.array([1, 1]), zero
    )


def simulate(dim, noise, shots, trials=40_000):
    """Error of the nearest mean of a few shots, drawn."""
    rng = np.random.default_rng(0)
    means = np.stack([np.zeros(dim), np.eye(dim)[0]])
    centre = means + noise / np.sqrt(shots) * rng.normal(size=(trials, 2, dim))
    x = noise * rng.normal(size=(trials, dim))
    distances = ((x[:, None] - centre) ** 2).sum(-1)
    return np.mean(distances[:, 0] > distances[:, 1])


@pytest.mark.parametrize(("shots", "value"), [(5, 0.752), (20, 0.198), (100, 0.069)])
def test_published_formula_and_simulation(shots, value):
    bound = few_shot(isotropic(), shots)
    assert round(bound.value, 3) == value
    assert simulate(20, 0.1, shots) < bound.value
    tighter = few_shot(isotropic(), shots, inequality="cantelli")
    np.testing.assert_allclose(tighter.value, bound.value / (1 + bound.value))
    # The isotropic classes know less when only their total variance is known.
    assert few_shot(isotropic(), shots, axis_variance="total").value > bound.value
    np.testing.assert_allclose(bound.complexity, bound.value - 0.04, rtol=1e-6)


def test_holds_where_noise_is_not_small():
    for dim, noise, shots in [(3, 0.5, 4), (50, 0.15, 2), (2, 0.3, 50)]:
        found = simulate(dim, noise, shots)
        moments = isotropic(dim, noise)
        assert found < few_shot(moments, shots, inequality="cantelli").value


@pytest.mark.parametrize("axis_variance", ["directional", "total"])
def test_from_source_classes_to_new_ones(axis_variance):
    """Tasks of three new classes, drawn as the 12 source classes were."""
    rng, dim, noise, shots = np.random.default_rng(0), 6, 0.3, 20
    sample = lambda means, n: (
        means[:, None] + noise * rng.normal(size=(len(means), n, dim))
    )
    source = sample(rng.normal(size=(12, dim)), 100).reshape(-1, dim)
    moments = pair_moments(jnp.asarray(source), jnp.arange(1200) // 100)
    shared = dict(axis_variance=axis_variance)
    bound = few_shot(moments, shots, **shared, num_target_classes=3)
    own = few_shot(moments, shots, **shared)
    np.testing.assert_allclose(bound.value, own.value * 2 / 11, rtol=1e-12)
    same = few_shot(moments, shots, **shared, num_target_classes=12)
    assert same.value == own.value
    assert any("taken on trust: target classes" in text for text in bound.assumptions)
    wrong = []
    for _ in range(200):
        means = rng.normal(size=(3, dim))
        centres, x = sample(means, shots).mean(1), sample(means, 20)
        gaps = ((x[:, :, None] - centres[None, None]) ** 2).sum(-1)
        wrong.append(np.mean(np.argmin(gaps, axis=2) != np.arange(3)[:, None]))
    assert 0 < np.mean(wrong) < bound.value < 1


def test_variance_of_the_difference_of_distances():
    """The theorem's S is an upper limit of the variance, and its mean is exact."""
    rng, trials, shots = np.random.default_rng(3), 200_000, 3
    scales = np.array([[0.5, 0.2, 0.1], [0.1, 0.4, 0.3]])
    draw = lambda c, n: scales[c] * rng.standard_t(9, size=(n, 3)) * np.sqrt(7 / 9)
    means = np.stack([np.zeros(3), np.eye(3)[0]])
    centre = [
        means[c] + draw(c, trials * shots).reshape(trials, shots, 3).mean(1)
        for c in (0, 1)
    ]
    x = draw(0, trials)
    difference = ((x - centre[1]) ** 2).sum(1) - ((x - centre[0]) ** 2).sum(1)
    v = (scales**2).sum(1)
    error = difference.std() / np.sqrt(trials)
    np.testing.assert_allclose(
        difference.mean(), 1 + (v[1] - v[0]) / shots, atol=5 * error
    )
    both = v.sum()
    fourths = [(draw(c, trials) ** 2).sum(1).__pow__(2).mean() for c in (0, 1)]
    parts = [
        4 / shots * (both**2 + both / 4),
        both / shots,
        (sum(fourths) + 2 * (shots - 1) * both**2) / shots**3,
    ]
    assert difference.var() < 4 * scales[0, 0] ** 2 + sum(np.sqrt(parts)) ** 2


def test_a_mean_of_the_wrong_sign_says_nothing():
    wide = isotropic()._replace(variance=jnp.array([[jnp.nan, 9.0], [0.1, jnp.nan]]))
    narrow = isotropic()._replace(variance=jnp.array([[jnp.nan, 0.1], [0.1, jnp.nan]]))
    other = few_shot(narrow, 4).value
    assert few_shot(wide, 4).value > 0.5
    assert other < 1
    assert few_shot(wide, 4).value <= 1


def test_plug_in_moments_are_a_correlate():
    bound = few_shot(isotropic(), 20)
    assert not bound.certificate
    assert any(text.startswith("estimated: the moments") for text in bound.assumptions)
    assert bound.delta is None
    assert np.isnan(bound.empirical_risk)


def test_gaussian_prediction_beside_cantelli_and_measured():
    rng = np.random.default_rng(0)
    labels = np.arange(60_000) % 2
    features = 0.6 * rng.normal(size=(60_000, 4)) + np.eye(2, 4)[labels]
    errors = pairwise_errors(
        pair_moments(jnp.asarray(features, jnp.float32), jnp.asarray(labels))
    )
    expected = norm.cdf(-np.sqrt(2) / 2 / 0.6)
    np.testing.assert_allclose(errors.gaussian[0, 1], expected, atol=0.004)
    np.testing.assert_allclose(errors.measured[0, 1], expected, atol=0.006)
    np.testing.assert_allclose(errors.cantelli[0, 1], 0.72 / 1.72, atol=0.006)
    assert np.isnan(errors.measured[0, 0])


def test_constant_four_cannot_be_improved():
    # Two atoms: 1/2 towards the other mean with probability p, the rest behind.
    p = 0.2
    points = np.repeat([0.5 + 1e-4, -0.5 * p / (1 - p) - 1e-4], [200, 800])
    features = np.concatenate([points, 1 + points - points.mean() * 0])[:, None]
    features[:1000] -= features[:1000].mean()
    features[1000:] -= features[1000:].mean() - 1
    found = pairwise_errors(
        pair_moments(
            jnp.asarray(features, jnp.float32), jnp.repeat(jnp.arange(2), 1000)
        )
    )
    np.testing.assert_allclose(found.measured[0, 1], p, rtol=1e-6)
    np.testing.assert_allclose(found.cantelli[0, 1], p, rtol=1e-3)


def test_traces_once_for_the_same_shapes(features, monkeypatch):
    traces = []
    original = module.class_moments
    monkeypatch.setattr(
        module, "class_moments", lambda *a: traces.append(1) or original(*a)
    )
    for scale in (1.0, 2.0):
        some = jnp.asarray(scale * features[:25], jnp.float32)
        pair_moments(some, jnp.asarray(LABELS[:25]), num_classes=4)
    assert len(traces) == 1


def network(params, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ params)[:, :, None]


def squared_jacobians(params, x):
    """The squared norm of the Jacobian at each input, one after the other."""
    jacobian = jax.jit(jax.jacobian(lambda row: network(params, row[None])[0]))
    return np.array([np.sum(np.square(jacobian(row))) for row in np.asarray(x)])


def test_geometric_complexity_against_jacobians():
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(7, 2, 3)), jnp.float32)
    expected = squared_jacobians(params, x).mean()
    exact = geometric_complexity(network, params, x)
    chunked = geometric_complexity(network, params, x, batch_size=3)
    np.testing.assert_allclose([exact.value, chunked.value], expected, rtol=1e-5)
    assert exact.standard_error == 0
    drawn = [
        geometric_complexity(
            network, params, x, num_probes=400, key=jax.random.key(0), batch_size=size
        )
        for size in (None, 3)
    ]
    np.testing.assert_allclose(drawn[0].value, drawn[1].value, rtol=1e-5)
    assert abs(drawn[0].value - expected) < 4 * drawn[0].standard_error
    assert 0 < drawn[0].standard_error < 0.1 * expected


def test_geometric_complexity_of_each_class_forwards_and_backwards():
    rng = np.random.default_rng(0)
    labels = jnp.array([0, 0, 3, 1, 3, 3, 0])
    x = jnp.asarray(rng.normal(size=(7, 2, 3)), jnp.float32)
    for outputs in (3, 9):  # fewer than the inputs' six entries, and more
        params = jnp.asarray(rng.normal(size=(6, outputs)), jnp.float32)
        each = squared_jacobians(params, x)
        found = geometric_complexity(network, params, x, labels=labels, batch_size=3)
        expected = [each[np.asarray(labels) == c].mean() for c in (0, 1, 3)]
        np.testing.assert_allclose(found.value[jnp.array([0, 1, 3])], expected, 1e-5)
        assert jnp.isnan(found.value[2])
        assert found.standard_error.shape == (4,)
        whole = geometric_complexity(network, params, x)
        np.testing.assert_allclose(whole.value, each.mean(), rtol=1e-5)
    drawn = geometric_complexity(
        network, params, x, labels=labels, num_probes=400, key=jax.random.key(0)
    )
    gaps = np.abs(drawn.value - found.value)[jnp.array([0, 1, 3])]
    assert np.all(gaps < 4 * drawn.standard_error[jnp.array([0, 1, 3])])


def margin_problem(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    features = np.eye(3)[labels] + 0.15 * rng.normal(size=(n, 3))
    return jnp.asarray(features), jnp.asarray(labels)


def test_margin_bound_matches_loops():
    features, labels = margin_problem()
    weight, bias = jnp.eye(3) + 0.1, jnp.array([0.1, 0.0, 0.2])
    bound = linear_margin(features, labels, (weight, bias), delta=0.05)
    w = np.asarray(weight, float) - np.asarray(weight, float).mean(0)
    b = np.asarray(bias, float) - np.asarray(bias, float).mean()
    best = np.inf
    for q in range(-30, 31):
        factor = 2.0**q / np.sqrt((w**2).sum() + (b**2).sum())
        ramp, square = 0, 0
        for row, y in zip(np.asarray(features, float), np.asarray(labels), strict=True):
            outputs = factor * (w @ row + b)
            margin = outputs[y] - max(o for j, o in enumerate(outputs) if j != y)
            ramp += min(1, max(0, 1 - margin)) / 400
            square += (row @ row + 1) / 400
        value = ramp + 4 * 2.0**q * np.sqrt(3 * square / 400)
        best = min(best, value + 3 * np.sqrt(np.log(2 * 61 / 0.05) / 800))
    np.testing.assert_allclose(bound.value, best, rtol=1e-9)
    assert bound.certificate
    np.testing.assert_allclose(bound.value, bound.empirical_risk + bound.complexity)


def test_margin_bound_does_not_see_scale_and_holds_on_fresh_data():
    features, labels = margin_problem(6000)
    classifier = (jnp.eye(3), None)
    bound = linear_margin(features, labels, classifier, delta=0.05)
    scaled = linear_margin(features, labels, (64 * jnp.eye(3), None), delta=0.05)
    np.testing.assert_allclose(scaled.value, bound.value, rtol=1e-6)
    fresh, truth = margin_problem(4000, seed=1)
    error = np.mean(np.argmax(fresh, axis=1) != truth)
    assert error < bound.value < 1
    nothing = linear_margin(features, labels, (jnp.zeros((3, 3)), None), delta=0.05)
    assert nothing.vacuous


H, Y = jnp.ones((6, 2)), jnp.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_moments(H, Y[:4]), r"`labels` must have as many examples"),
        (lambda: few_shot(isotropic(), 0), r"`num_shots` must be an integer of at"),
        (lambda: few_shot((1, 2), 3), r"`moments` must be what.*is a tuple"),
        (lambda: few_shot(isotropic(), 3, inequality="x"), r"`inequality` must be"),
        (lambda: few_shot(isotropic(), 3, axis_variance="x"), r"`axis_variance` must"),
        (
            lambda: few_shot(isotropic(), 3, num_target_classes=1),
            r"`num_target_classes` must be an integer of at least 2",
        ),
        (lambda: geometric_complexity(network, H, Y), r"`x` must be floating-point"),
        (
            lambda: geometric_complexity(network, H, H, num_probes=3),
            r"`key` must be given where `num_probes` is",
        ),
        (
            lambda: geometric_complexity(network, H, H, num_classes=3),
            r"`num_classes` must be None without `labels`",
        ),
        (
            lambda: linear_margin(H, Y, (jnp.ones((2, 3)), None), delta=0.1),
            r"`features` must have shape.*\(6, 2\) and \(2, 3\)",
        ),
        (
            lambda: linear_margin(H, Y + 1, (jnp.ones((2, 2)), None), delta=0.1),
            r"`labels` must be a vector of integers in \[0, 2\)",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()


def test_complexity_of_what_is_not_finite():
    x = jnp.ones((3, 2)).at[1, 0].set(jnp.nan)
    relu = lambda w, x: jax.nn.relu(x @ w)  # whose slope at NaN is 0
    labels = jnp.array([0, 1, 0])
    found = geometric_complexity(relu, jnp.eye(2), x, labels=labels).value
    np.testing.assert_array_equal(found, [2, np.nan])
    probes = {"num_probes": 2, "key": jax.random.key(0)}
    assert jnp.isnan(geometric_complexity(relu, jnp.eye(2), x, **probes).value)


@pytest.mark.parametrize(
    ("apply_fn", "x", "message"),
    [
        (None, jnp.ones((3, 2)), r"`apply_fn` must be a function"),
        (lambda w, x: (x, x), jnp.ones((3, 2)), r"`apply_fn` must return.*tuple"),
        (lambda w, x: x[:2], jnp.ones((3, 2)), r"`apply_fn` must return.*\(2, 2\)"),
        (lambda w, x: jnp.sum(x), jnp.ones((3, 2)), r"`apply_fn` must return.*\(\)"),
        (lambda w, x: jnp.ones(3, int), jnp.ones((3, 2)), r"`apply_fn`.*int32"),
        (lambda w, x: x, jnp.ones((0, 2)), r"`x` must hold at least one example"),
        (lambda w, x: x, None, r"no array was given as `x`"),
        (lambda w, x: x, jnp.ones((3, 2), int), r"`x` must be floating.*int32"),
    ],
)
def test_bad_complexity_names_the_fix(apply_fn: Any, x: Any, message, user_land):
    with pytest.raises(ValueError, match=message):
        geometric_complexity(apply_fn, jnp.ones(()), x)


def test_examples_of_coinciding_means_are_told_apart_by_chance():
    found = pair_moments(jnp.ones((6, 4)), jnp.arange(6) % 3)
    measured = np.asarray(pairwise_errors(found).measured)
    np.testing.assert_array_equal(measured[~np.eye(3, dtype=bool)], 0.5)


@pytest.mark.parametrize("moments", [None, jnp.ones(3), "moments"])
def test_errors_of_something_else_name_the_fix(moments: Any, user_land):
    with pytest.raises(ValueError, match=r"`moments` must be `PairMoments`.*Pass"):
        pairwise_errors(moments)
