"""The law of next-token prediction against regressions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import _next_token as module
from jaxtheory.collapse import next_token_law, prediction_residual

TOKENS = np.random.default_rng(0).integers(0, 7, size=(12, 5))


def hidden(noise, seed=1):
    """Features of 12 sequences of 5 positions that know the next token to some part."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(7, 6))[TOKENS]
    return (known + noise * rng.normal(size=(12, 5, 6)) + 2).astype(np.float32)


def oracle(features, tokens, form):
    """Least squares with an intercept, on the numbers or on one-hot rows."""
    keep = tokens >= 0
    h = np.concatenate([features[keep].astype(float), np.ones((keep.sum(), 1))], 1)
    y = tokens[keep].astype(float)[:, None]
    if form == "one_hot":
        y = np.eye(7)[tokens[keep]]
    fit = h @ np.linalg.lstsq(h, y, rcond=None)[0]
    return ((y - fit) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


@pytest.mark.parametrize("form", ["integer", "one_hot"])
def test_matches_numpy(form):
    features = hidden(0.4)
    for tokens in (TOKENS, np.where(TOKENS == 3, -1, TOKENS)):
        found = prediction_residual(
            jnp.asarray(features), jnp.asarray(tokens), form=form, num_tokens=7
        )
        np.testing.assert_allclose(found, oracle(features, tokens, form), rtol=2e-5)


def test_only_the_integer_form_depends_on_the_numbering():
    features, order = jnp.asarray(hidden(0.4)), np.random.default_rng(2).permutation(7)
    renamed = jnp.asarray(order[TOKENS])
    values = {
        form: [
            prediction_residual(features, tokens, form=form, num_tokens=7)
            for tokens in (jnp.asarray(TOKENS), renamed)
        ]
        for form in ("one_hot", "integer")
    }
    before, after = values["one_hot"]
    np.testing.assert_allclose(after, before, rtol=1e-5)
    before, after = values["integer"]
    assert abs(after - before) > 0.1 * before


def test_one_hot_form_is_the_within_class_share():
    # Features that are the one-hot tokens themselves leave nothing; one line leaves
    # all directions but one of V - 1.
    tokens = jnp.arange(60) % 4
    exact = prediction_residual(jnp.eye(4)[tokens], tokens)
    np.testing.assert_allclose(exact, 0, atol=1e-6)
    line = prediction_residual(tokens[:, None].astype(float), tokens)
    np.testing.assert_allclose(line, 2 / 3, rtol=1e-5)


def test_law_drops_the_embedding():
    layers = {f"block_{l}": jnp.asarray(hidden(3 / 1.5**l)) for l in range(6)}
    law = next_token_law(layers, jnp.asarray(TOKENS), num_tokens=7)
    values = [oracle(np.asarray(h), TOKENS, "one_hot") for h in layers.values()]
    np.testing.assert_allclose(law.values, values, rtol=2e-5)
    index = np.arange(1, 6)
    slope, intercept = np.polyfit(index, np.log(values[1:]), 1)
    np.testing.assert_allclose(law.log_slope, slope, rtol=1e-4)
    np.testing.assert_allclose(law.log_intercept, intercept, rtol=1e-4)
    np.testing.assert_array_equal(law.ranks, [6] * 6)
    assert law.names == tuple(layers)
    whole = next_token_law(
        list(layers.values()), jnp.asarray(TOKENS), num_tokens=7, input_layer="include"
    )
    np.testing.assert_array_equal(whole.values, law.values)
    assert whole.log_slope != law.log_slope


def test_a_loud_direction_of_many_positions_hides_nothing():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 40_000)
    features = rng.normal(size=(40_000, 4))
    features[:, 0] += tokens
    features[:, 3] *= 500
    expected = 1 / (1 + 5 / 4)  # the variance of four equal steps is 5/4
    found = prediction_residual(
        jnp.asarray(features, jnp.float32), jnp.asarray(tokens), form="integer"
    )
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_features_that_are_all_the_same_explain_nothing():
    tokens = jnp.arange(1000) % 7
    for form in ("integer", "one_hot"):
        found = prediction_residual(jnp.full((1000, 3), 10000.1), tokens, form=form)
        np.testing.assert_allclose(found, 1, rtol=1e-5)


def test_undefined_residuals_are_nan():
    features = jnp.asarray(hidden(0.4))
    same = prediction_residual(features, jnp.zeros((12, 5), int), num_tokens=7)
    broken = features.at[2, 3, 0].set(jnp.nan)
    value = prediction_residual(broken, jnp.asarray(TOKENS), num_tokens=7)
    assert jnp.isnan(same)
    assert jnp.isnan(value)
    padded = jnp.asarray(TOKENS).at[2, 3].set(-1)
    assert jnp.isfinite(prediction_residual(broken, padded, num_tokens=7))


def test_traces_once_for_the_same_shapes(monkeypatch):
    traces = []
    original = jnp.linalg.svd
    monkeypatch.setattr(
        module.jnp.linalg, "svd", lambda *a, **k: traces.append(1) or original(*a, **k)
    )
    for seed in (1, 2, 3):
        features = jnp.asarray(hidden(0.4, seed)[:11])
        prediction_residual(features, jnp.asarray(TOKENS[:11]), num_tokens=7)
    assert len(traces) == 1
    residual = lambda t: prediction_residual(features, t, num_tokens=7)
    assert jnp.isfinite(jax.jit(residual)(jnp.asarray(TOKENS[:11])))


H, Y = jnp.ones((6, 2)), jnp.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prediction_residual(H, Y, form="two"), r"`form` must be \"one_hot\""),
        (lambda: prediction_residual(H, Y + 0.5), r"`tokens` must be integers.*float"),
        (lambda: prediction_residual(H, Y[:, None]), r"`tokens` must have the shape"),
        (lambda: prediction_residual(H, Y, num_tokens=1), r"`num_tokens`.*at least 2"),
        (
            lambda: prediction_residual(H, Y + 1, num_tokens=2),
            r"`num_tokens` must be above the largest token 2, but was 2",
        ),
        (
            lambda: jax.jit(prediction_residual)(H, Y),
            r"`num_tokens` must be given where `tokens` are traced",
        ),
        (lambda: next_token_law([H] * 3, Y), r"three layers after the input layer"),
        (lambda: next_token_law([H, H, H[:3], H], Y), r"`tokens` must have as many"),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
