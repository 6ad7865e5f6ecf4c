"""Posteriors trained for their bound, and what is certified of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import bounds, dynamics
from jaxtheory.bounds import GaussianPosterior

N = 400


def linear(w, x):
    return x @ w


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 10))
    y = x[:, 0] + 0.2 * rng.normal(size=N) > 0
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, int)


PRIOR = jnp.zeros((10, 2))


@pytest.fixture(scope="module")
def objective():
    return bounds.pac_bayes_objective(linear, prior_scale=1.0, num_examples=N)


@pytest.fixture(scope="module")
def trained(objective, data):
    optimizer = optax.adam(0.03)
    start = bounds.init_posterior(PRIOR, scale=1.0)
    state = dynamics.init(optimizer, start, model_state=PRIOR)
    history = dynamics.train(
        objective, state, optimizer, data, num_steps=300, key=jax.random.key(1)
    )
    return start, history.state.params


def certify(data, posterior, **changes):
    return bounds.gaussian_pac_bayes(
        linear,
        posterior.params,
        PRIOR,
        *data,
        posterior_scales=1.0,
        posterior_spread=posterior.spread,
        prior_scales=1.0,
        num_samples=300,
        delta=0.05,
        key=jax.random.key(2),
        **changes,
    )


def test_training_lowers_the_certificate(trained, data):
    start, posterior = trained
    before, after = certify(data, start), certify(data, posterior)
    assert after.certificate
    assert before.complexity == pytest.approx(0, abs=1e-6)
    assert after.complexity > 1
    assert after.value < 0.6 * before.value
    # What the data decide is known better than before.
    assert np.asarray(posterior.spread).max() < 1
    assert any("KL = " in text for text in after.assumptions)


def test_spread_of_one_size_is_no_spread(trained, data):
    _, posterior = trained
    ones = posterior._replace(log_scale=jax.tree.map(jnp.zeros_like, PRIOR))
    plain = bounds.gaussian_pac_bayes(
        linear,
        posterior.params,
        PRIOR,
        *data,
        posterior_scales=1.0,
        prior_scales=1.0,
        num_samples=300,
        delta=0.05,
        key=jax.random.key(2),
    )
    spread = certify(data, ones)
    assert spread.empirical_risk == plain.empirical_risk
    assert spread.complexity == pytest.approx(plain.complexity, rel=1e-9)


def test_draws_have_the_spread(data):
    # Of one weight that is zero in the mean, sign(w) is a fair coin; with a spread of
    # nearly nothing around 1 it is right always.
    x, y = jnp.ones((N, 1)), jnp.ones(N, int)
    sign = lambda w, x: (
        jnp.stack([-w["a"] * w["b"] * x[:, 0]] * 2, 1) * jnp.array([[1.0, -1.0]])
    )
    ask = lambda wide: (
        bounds.gaussian_pac_bayes(
            sign,
            {"a": jnp.zeros(()), "b": jnp.ones(())},
            {"a": jnp.zeros(()), "b": jnp.ones(())},
            x,
            y,
            posterior_scales=1.0,
            posterior_spread={"a": jnp.array(1.0), "b": jnp.array(wide)},
            num_samples=400,
            delta=0.05,
            key=jax.random.key(3),
        ).empirical_risk
    )
    assert abs(ask(1e-3) - 0.5) < 4 * 0.5 / 20
    centred = {"a": jnp.ones(()), "b": jnp.ones(())}
    sure = bounds.gaussian_pac_bayes(
        sign,
        centred,
        centred,
        x,
        y,
        posterior_scales=1.0,
        posterior_spread=jax.tree.map(lambda a: 1e-3 * a, centred),
        num_samples=400,
        delta=0.05,
        key=jax.random.key(3),
    )
    assert sure.empirical_risk == 0


def test_objective_is_the_quadratic_bound(objective, data):
    log_scale = jnp.linspace(-30.0, -29.0, 20).reshape(10, 2)
    mean = jnp.linspace(-1, 1, 20).reshape(10, 2)
    # So narrow that the draw is the mean.
    posterior = GaussianPosterior(mean, log_scale)
    value, _ = objective(posterior, PRIOR, data, jax.random.key(0))
    risk = float(jnp.mean(bounds.bounded_cross_entropy(data[0] @ mean, data[1])))
    s = np.exp(np.asarray(log_scale, np.float64))
    kl = np.sum(s**2 - 1 - 2 * np.log(s) + np.asarray(mean, np.float64) ** 2) / 2
    shared = dict(num_examples=N, delta=0.05)
    expected = bounds.pac_bayes(risk, kl, form="quadratic", **shared).value
    assert float(value) == pytest.approx(expected, rel=1e-5)
    again = bounds.pac_bayes_objective(linear, prior_scale=1.0, num_examples=N)
    assert (again, hash(again)) == (objective, hash(objective))


def test_bounded_cross_entropy():
    outputs = jnp.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    found = bounds.bounded_cross_entropy(outputs, jnp.array([1, 1, 1]))
    expected = [np.log(2) / np.log(1e4), 1.0, 0.0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bad_input(objective, data, trained, user_land):
    start, _ = trained
    with pytest.raises(ValueError, match="`scale` must be positive"):
        bounds.init_posterior(PRIOR, scale=0.0)
    with pytest.raises(ValueError, match="`prior_scale` must be positive"):
        bounds.pac_bayes_objective(linear, prior_scale=-1.0, num_examples=N)
    with pytest.raises(ValueError, match="`num_examples` must be an integer"):
        bounds.pac_bayes_objective(linear, prior_scale=1.0, num_examples=1)
    with pytest.raises(ValueError, match="`delta` must be strictly"):
        bounds.pac_bayes_objective(linear, prior_scale=1.0, num_examples=N, delta=1.0)
    other = bounds.init_posterior(jnp.zeros((9, 2)), scale=1.0)
    with pytest.raises(ValueError, match="`model_state` must have the structure"):
        objective(other, PRIOR, data, jax.random.key(0))
    bad = start._replace(log_scale=jnp.full((10, 2), -jnp.inf))
    with pytest.raises(ValueError, match="`posterior_spread` must be positive and fin"):
        certify(data, bad)
    with pytest.raises(ValueError, match="`posterior_spread` must have the structure"):
        certify(data, start._replace(log_scale={"w": PRIOR}))
