"""Regression collapse: zero at the optimum of the theory, NumPy away from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import _regression as module
from jaxtheory.collapse import regression_statistics
from jaxtheory.collapse.theory import regression_optimum

rng = np.random.default_rng(0)
TARGETS = rng.normal(size=(40, 3)) @ np.diag([2.0, 1, 0.5]) + [1.0, -2, 0]
TURN = np.linalg.qr(rng.normal(size=(7, 7)))[0][:3]


def optimum(weight_decay, feature_decay):
    """Weight and features of the closed form, in seven dimensions."""
    found = regression_optimum(
        TARGETS, weight_decay=weight_decay, feature_decay=feature_decay
    )
    values, vectors = np.linalg.eigh(found.classifier_gram)
    weight = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T @ TURN
    features = (found.fitted - TARGETS.mean(0)) @ np.linalg.pinv(weight, 1e-7).T
    return weight, features


def single(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize(
    ("decays", "num_clipped"), [((0.2, 0.1), 0), ((1e-4, 1e-4), 0), ((0.6, 0.5), 1)]
)
def test_the_optimum_of_the_theory_has_collapsed(decays, num_clipped):
    weight, features, targets = single(*optimum(*decays), TARGETS)
    found = regression_statistics(features, targets, weight=weight)
    np.testing.assert_allclose([*found[:3]], 0, atol=1e-10)
    assert int(found.num_clipped) == num_clipped  # pyright: ignore
    shift = np.sqrt(found.gamma)  # against targets of size 2, in single precision
    np.testing.assert_allclose(shift, np.sqrt(decays[0] * decays[1]), atol=2e-6)
    assert int(found.num_zero) == int(found.num_nonfinite) == 0


def published(features, targets, weight, centre):
    """Section 3.1 of the paper, with a fine search over gamma."""
    centred = features - features.mean(0)
    directions = centred if centre else features
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    components = np.linalg.svd(centred)[2][:3]
    results = []
    for basis in (components, weight):
        away = directions.T - basis.T @ np.linalg.pinv(basis.T) @ directions.T
        results.append(np.mean(np.sum(away**2, axis=0)))
    values, vectors = np.linalg.eigh(np.cov(targets.T, bias=True))
    unit = lambda a: a / np.linalg.norm(a)
    gammas = np.linspace(0, values[0], 20001)[:-1]
    distances = [
        np.sum(
            (
                unit(weight @ weight.T)
                - unit((vectors * (np.sqrt(values) - np.sqrt(g))) @ vectors.T)
            )
            ** 2
        )
        for g in gammas
    ]
    return [*results, np.min(distances)], gammas[np.argmin(distances)]


@pytest.mark.parametrize("centre", [True, False])
def test_away_from_the_optimum_matches_the_paper(centre, x64):
    weight, features = optimum(0.2, 0.1)
    noise = np.random.default_rng(1)
    weight = weight + 0.05 * noise.normal(size=weight.shape)
    features = features + 0.3 * noise.normal(size=features.shape) + 1
    expected, gamma = published(features, TARGETS, weight, centre)
    arrays = map(jnp.asarray, (features, TARGETS, weight))
    features, targets, weight = arrays
    found = regression_statistics(
        features, targets, weight=weight, centre_features=centre
    )
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-10)
    np.testing.assert_allclose(found.nrc3, expected[2], rtol=1e-6)
    np.testing.assert_allclose(found.gamma, gamma, atol=1e-4)
    assert float(found.nrc3) <= expected[2]  # pyright: ignore


def test_the_least_distance_is_least_for_any_weight(x64):
    # A search over all shifts, with the positive part.
    values, vectors = np.linalg.eigh(np.cov(TARGETS.T, bias=True))
    unit = lambda a: a / np.linalg.norm(a)
    shifts = np.linspace(0, np.sqrt(values[-1]), 4001)[:-1]
    kept = np.maximum(np.sqrt(values)[None] - shifts[:, None], 0)
    predicted = np.array([unit((vectors * row) @ vectors.T) for row in kept])
    features, targets = jnp.ones((40, 7)).at[0].set(2.0), jnp.asarray(TARGETS)
    for seed in range(5):
        weight = np.random.default_rng(seed).normal(size=(3, 7))
        gram = unit(weight @ weight.T)
        least = np.min(np.sum((predicted - gram) ** 2, axis=(1, 2)))
        found = regression_statistics(features, targets, weight=jnp.asarray(weight))
        np.testing.assert_allclose(found.nrc3, least, rtol=1e-6)
        assert float(found.nrc3) <= least + 1e-14  # pyright: ignore


def test_broken_and_empty_examples_take_no_part():
    weight, features = optimum(0.2, 0.1)
    features = features + 0.1 * rng.normal(size=features.shape)
    weight, h, y = single(weight, features, TARGETS)
    clean = regression_statistics(h[4:], y[4:], weight=weight)
    dirty = regression_statistics(
        h.at[:2].set(jnp.nan), y.at[2:4].set(jnp.inf), weight=weight
    )
    np.testing.assert_allclose(dirty[:4], clean[:4], rtol=1e-5)
    assert int(dirty.num_nonfinite) == 4
    zero = regression_statistics(h.at[0].set(0), y, weight=weight)
    assert int(zero.num_zero) == 1
    assert jnp.isfinite(zero.nrc1)


def test_a_small_target_of_many_examples_counts():
    targets = np.random.default_rng(0).normal(size=(40_000, 2)) * [500, 1]
    features = targets @ np.random.default_rng(1).normal(size=(2, 3))
    found = regression_statistics(*single(features, targets))
    np.testing.assert_allclose(found.nrc1, 0, atol=1e-8)


def test_what_has_no_value_is_nan_and_scale_is_free():
    weight, features = optimum(0.2, 0.1)
    weight, h, y = single(weight, features, TARGETS)
    constant = regression_statistics(h, jnp.ones_like(y), weight=weight)
    assert jnp.isnan(constant.nrc3)  # pyright: ignore
    assert jnp.isnan(regression_statistics(h, y, weight=0 * weight).nrc3)  # pyright: ignore
    extreme = regression_statistics(h * 1e-30, y * 1e30, weight=weight * 1e30)
    np.testing.assert_allclose([*extreme[:3]], 0, atol=1e-10)
    assert regression_statistics(h, y).nrc2 is None


def test_the_same_shapes_are_traced_once():
    weight, features = optimum(0.2, 0.1)
    weight, h, y = single(weight, features, TARGETS)
    regression_statistics(h, y, weight=weight)
    before = module._regression_statistics._cache_size()
    jax.jit(lambda h: regression_statistics(h, y, weight=weight))(h)
    regression_statistics(2 * h, y, weight=3 * weight)
    assert module._regression_statistics._cache_size() == before


H, Y = jnp.ones((6, 4)), jnp.ones((6, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression_statistics(H, Y[:, 0]), r"`targets` must be a matrix"),
        (lambda: regression_statistics(H, Y + 1j), r"`targets` must be real.*complex"),
        (
            lambda: regression_statistics(H, Y, weight=jnp.ones((2, 4), complex)),
            r"`weight` must be floating.*complex",
        ),
        (lambda: regression_statistics(H, Y[:4]), r"`targets` must have as many"),
        (lambda: regression_statistics(H, Y[:, :0]), r"`targets` must have at least"),
        (
            lambda: regression_statistics(H, Y, weight=(jnp.ones((2, 4)), None)),  # pyright: ignore
            r"`weight` must be the weight .* alone.*the first",
        ),
        (
            lambda: regression_statistics(H, Y, weight=jnp.ones((4, 2))),
            r"`weight` must have shape \(2, 4\).*\(4, 2\).*transpose it",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_last_layer_that_is_not_finite_has_no_measures():
    weight = jnp.ones((2, 4)).at[0, 0].set(jnp.nan)
    found = regression_statistics(H, Y, weight=weight)
    assert np.isnan(found.nrc2)
    assert np.isnan(found.nrc3)
