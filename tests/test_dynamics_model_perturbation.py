"""Gaussian model perturbation: exact where the loss is a polynomial, and in training.

A quadratic has a mean rise of sigma^2 tr(H) / 2; its variance is known too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics

SIGMA, NUM_DRAWS = 0.3, 4000
HESSIAN = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 4.0]])
SLOPE = np.array([1.0, -2.0, 0.5])
POINT = np.array([0.7, -0.2, 0.4])


def quadratic(params, model_state, batch, key):
    w = params["w"]
    value = w @ jnp.asarray(HESSIAN, w.dtype) @ w / 2 + jnp.asarray(SLOPE, w.dtype) @ w
    return value, model_state


def quartic(w, model_state, batch, key):
    return w**4, model_state


def noisy(w, model_state, batch, key):
    """Its noise is the key's own, and large."""
    return 3 * w + 100 * jax.random.normal(key), model_state + 1


def draws(objective, params):
    """Values and gradients of the objective at many keys."""
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    value = lambda params, key: objective(params, (), None, key)[0]
    both = jax.vmap(jax.value_and_grad(value), (None, 0))
    return jax.tree.map(np.asarray, jax.jit(both)(params, keys))


def mean_and_error(x):
    x = np.asarray(x, np.float64)
    return x.mean(axis=0), x.std(axis=0, ddof=1) / len(x) ** 0.5


def test_rise_of_a_quadratic_is_the_trace(x64):
    for num_samples in (1, 4):
        objective = dynamics.gaussian_model_perturbation(
            quadratic, scale=SIGMA, strength=0.5, num_samples=num_samples
        )
        values, gradients = draws(objective, {"w": jnp.asarray(POINT)})
        plain = POINT @ HESSIAN @ POINT / 2 + SLOPE @ POINT
        rises = (values - plain) / 0.5
        mean, error = mean_and_error(rises)
        assert abs(mean - SIGMA**2 * np.trace(HESSIAN) / 2) < 4 * error
        # Pairs of signs: the gradient, sigma^2 |g|^2 = 1.3, is not in the variance.
        want = SIGMA**4 * np.trace(HESSIAN @ HESSIAN) / 2 / num_samples
        spread = mean_and_error((rises - mean) ** 2)
        assert abs(spread[0] - want) < 4 * spread[1]
        # And the gradient of a quadratic is that without a penalty.
        gradient = np.broadcast_to(HESSIAN @ POINT + SLOPE, (NUM_DRAWS, 3))
        np.testing.assert_allclose(gradients["w"], gradient, atol=1e-12)


def test_rise_of_a_quartic_and_its_gradient(x64):
    objective = dynamics.gaussian_model_perturbation(quartic, scale=SIGMA)
    values, gradients = draws(objective, jnp.asarray(0.8))
    mean, error = mean_and_error(values)
    want = 0.8**4 + 6 * 0.8**2 * SIGMA**2 + 3 * SIGMA**4
    assert abs(mean - want) < 4 * error
    mean, error = mean_and_error(gradients)
    assert abs(mean - (4 * 0.8**3 + 12 * 0.8 * SIGMA**2)) < 4 * error


def test_other_randomness_is_the_same_in_all_and_the_state_is_the_first():
    objective = dynamics.gaussian_model_perturbation(noisy, scale=1.0, num_samples=3)
    value, state = objective(jnp.array(0.5), jnp.array(0), None, jax.random.key(2))
    key, _ = jax.random.split(jax.random.key(2))
    want = 1.5 + 100 * float(jax.random.normal(key))
    # The rise of what is linear is rounding, whatever the noise of the loss is.
    assert float(value) == pytest.approx(want, abs=1e-4)
    assert int(state) == 1


def test_no_strength_is_no_penalty_and_equals_are_equal():
    make = lambda **kw: dynamics.gaussian_model_perturbation(quadratic, **kw)
    params, key = {"w": jnp.asarray(POINT, jnp.float32)}, jax.random.key(0)
    value, _ = make(scale=SIGMA, strength=0.0)(params, (), None, key)
    assert float(value) == float(quadratic(params, (), None, None)[0])
    assert make(scale=1.0) == make(scale=1.0) != make(scale=2.0)


def test_training_resumes_and_goes_where_it_is_flat():
    # L = (1 - w1 w2)^2: at a minimum tr H = 2 (w1^2 + w2^2), least at (1, 1).
    valley = lambda w, model_state, batch, key: ((1 - w[0] * w[1]) ** 2, model_state)
    objective = dynamics.gaussian_model_perturbation(valley, scale=0.3, num_samples=2)
    optimizer = optax.sgd(0.05)
    options = {"key": jax.random.key(3), "progress": False}
    options |= {"record": {"w": lambda s: s.params}, "record_every": 200}
    train = lambda state, num: dynamics.train(
        objective, state, optimizer, jnp.zeros((1, 1)), num_steps=num, **options
    )
    start = dynamics.init(optimizer, jnp.array([3.0, 1 / 3]))
    whole = train(start, 400)
    rest = train(train(start, 200).state, 200)
    np.testing.assert_array_equal(rest.records["w"], whole.records["w"][1:])
    a, b = whole.records["w"].T
    imbalance = a**2 - b**2
    assert imbalance[0] > 8.8
    assert abs(imbalance[-1]) < 0.2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"objective": 1}, "`objective` must be a function"),
        ({"scale": 0.0}, "`scale` must be positive and finite, but was 0.0"),
        ({"scale": jnp.ones(2)}, "`scale` must be positive"),
        ({"strength": -0.1}, "`strength` must be finite, at least 0"),
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1"),
    ],
)
def test_bad_input(user_land, options, match):
    options = {"objective": quadratic, "scale": 0.1} | options
    with pytest.raises(ValueError, match=match):
        dynamics.gaussian_model_perturbation(**options)


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (lambda w: jnp.sum(w), r"`objective` must return a pair"),
        (lambda w: (w, ()), r"`objective` must return a scalar.*\(2,\)"),
        (lambda w: (jnp.sum(w), w), r"`objective` must return a model state like"),
    ],
)
def test_what_is_no_objective_is_named(user_land, result, match):
    objective = dynamics.gaussian_model_perturbation(
        lambda w, state, batch, key: result(w), scale=0.1
    )
    with pytest.raises(ValueError, match=match):
        objective(jnp.ones(2), (), None, jax.random.key(0))


def test_what_is_traced_cannot_be_compiled_in(user_land):
    build = lambda s: dynamics.gaussian_model_perturbation(quadratic, scale=s)
    with pytest.raises(ValueError, match="`scale` must"):
        jax.jit(lambda s: build(s)(jnp.ones(3), (), None, jax.random.key(0))[0])(0.1)
