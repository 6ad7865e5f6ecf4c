"""Flatness measures on quadratics and other losses with closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.curvature import flatness


def new_key():
    """The same fresh key each time: one that was used may not be used again."""
    return jax.random.key(0)


def linear(w, x):
    return x @ w


def half_square(outputs, targets):
    return (outputs - targets) ** 2 / 2


def quadratic(minimum=True, n=8, p=4):
    """A problem whose loss is ``t^T Q t / 2``; its parameters, and ``Q`` and ``t``."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(n, p)) * np.sqrt(np.arange(1, p + 1))
    t = np.zeros(p) if minimum else draw.normal(size=p)
    single = lambda a: jnp.asarray(a, jnp.float32)
    problem = (linear, half_square, single(t), single(x), jnp.zeros(n))
    return problem, x.T @ x / n, t


def bounded(w, x):
    """Outputs between -0.1 and 0.1."""
    return 0.1 * jnp.tanh(x @ w)


def check(estimate, expected, width=4):
    assert estimate.standard_error > 0
    assert abs(estimate.value - expected) < width * estimate.standard_error


def test_filtered_loss_of_a_quadratic():
    """``L + s^2 tr(Q) / 2``, also where the examples come in ragged chunks."""
    problem, Q, t = quadratic(minimum=False)
    options = {"key": new_key(), "std": 0.1, "num_samples": 400}
    found = flatness.lpf(*problem, **options)
    check(found, t @ Q @ t / 2 + 0.1**2 * np.trace(Q) / 2)
    assert found.standard_error < 0.1 * t @ Q @ t / 2
    rise = flatness.lpf(*problem, quantity="rise", **options)
    np.testing.assert_allclose(found.value - rise.value, t @ Q @ t / 2, rtol=1e-5)
    chunked = flatness.lpf(*problem, batch_size=3, **options)
    np.testing.assert_allclose(chunked.value, found.value, rtol=1e-5)
    problem, Q, _ = quadratic()
    rise = flatness.lpf(*problem, quantity="rise", **options)
    check(rise, 0.1**2 * np.trace(Q) / 2)
    assert rise.standard_error < 0.1 * rise.value


def test_filter_scaled_filtered_loss():
    """Each column of a kernel is perturbed in proportion to its own norm."""
    draw = np.random.default_rng(1)
    x, kernel = draw.normal(size=(6, 3)), draw.normal(size=(3, 2)) * [1.0, 20.0]
    single = lambda a: jnp.asarray(a, jnp.float32)
    loss = lambda outputs, y: jnp.sum(half_square(outputs, y), axis=-1)
    y = single(x) @ single(kernel)
    problem = (linear, loss, single(kernel), single(x), y)
    found = flatness.lpf(
        *problem, key=new_key(), std=0.1, num_samples=400, scale="filters"
    )
    norms = (kernel**2).sum(0)
    check(found, 0.1**2 * norms.sum() * np.trace(x.T @ x / 6) / 2)
    assert found.standard_error < 0.1 * found.value


def test_epsilon_sharpness_of_a_quadratic():
    """``|g| r + u^T Q u r^2 / 2`` is the rise at distance ``r`` along ``u``."""
    problem, Q, t = quadratic(minimum=False)
    g = Q @ t
    length, u = np.linalg.norm(g), g / np.linalg.norm(g)
    distance = max(np.roots([u @ Q @ u / 2, length, -0.1]))
    found = flatness.epsilon_sharpness(*problem, rise=0.1)
    assert found.found
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)
    np.testing.assert_allclose(found.value, 1 / distance, rtol=1e-4)


def test_where_the_loss_never_rises_enough():
    problem, _, _ = quadratic(minimum=False)
    never = (bounded, *problem[1:])
    found = flatness.epsilon_sharpness(*never, rise=0.1)
    assert not found.found
    assert found.value == 0
    assert found.distance == jnp.inf
    start = problem[2]
    random = flatness.pac_bayes(
        *never, initial_params=start, key=new_key(), rise=0.1, num_samples=2
    )
    assert not random.found
    assert random.std.value == jnp.inf
    assert random.divergence == 0
    at_minimum, _, _ = quadratic()
    assert not flatness.epsilon_sharpness(*at_minimum, rise=0.1).found
    broken = (*problem[:2], problem[2].at[0].set(jnp.nan), *problem[3:])
    found = flatness.epsilon_sharpness(*broken, rise=0.1)
    assert not found.found
    assert np.isnan(found.value)  # not the flattest of all
    missing = (*problem[:3], problem[3].at[0].set(jnp.nan), problem[4])
    complexity = flatness.pac_bayes(
        *missing, initial_params=problem[2], key=new_key(), num_samples=2
    )
    assert not complexity.found
    assert np.isnan(complexity.value)


def test_single_precision_in_a_double_precision_session(x64):
    problem, _, _ = quadratic(minimum=False)
    problem = jax.tree.map(lambda a: a.astype(jnp.float32), problem[2:])
    problem = (linear, half_square, *problem)
    found = flatness.local_entropy(*problem, key=new_key(), num_chains=3)
    assert found.value.value.dtype == jnp.float32
    width = np.float64(0.01)
    assert flatness.keskar_sharpness(*problem, epsilon=width).dtype == jnp.float32
    names = ["sharpness"]  # of 4 parameters, with 30 iterations by default
    table = flatness.all_measures(*problem, key=new_key(), names=names)
    assert np.isfinite(table["sharpness"])


def test_pac_bayes_of_a_quadratic():
    """``s^2 tr(Q) / 2`` is the rise; the divergence that of two Gaussians."""
    problem, Q, _ = quadratic()
    start = jnp.arange(4.0)
    found = flatness.pac_bayes(
        *problem, initial_params=start, key=new_key(), rise=0.2, num_samples=300
    )
    assert found.found
    check(found.std, np.sqrt(2 * 0.2 / np.trace(Q)))
    assert found.std.standard_error < 0.1 * found.std.value
    variance, moved = float(found.std.value) ** 2, 14.0
    np.testing.assert_allclose(found.divergence, moved / (2 * variance), rtol=1e-4)
    published = moved / (4 * variance) + np.log(2 * 8 / 1e-6)
    np.testing.assert_allclose(found.published, published, rtol=1e-4)
    complexity = moved / (2 * variance) + np.log(2 * np.sqrt(8) / 1e-6)
    np.testing.assert_allclose(found.value, np.sqrt(complexity / 16), rtol=1e-4)


def test_local_entropy_of_a_quadratic():
    """Value and gradient have closed forms where L is quadratic."""
    problem, Q, t = quadratic(minimum=False)
    gamma = 2.0
    pull = gamma * Q @ np.linalg.inv(Q + gamma * np.eye(4))
    expected = np.linalg.slogdet(np.eye(4) + Q / gamma)[1] / 2 + t @ pull @ t / 2
    found = flatness.local_entropy(
        *problem,
        key=new_key(),
        gamma=gamma,
        num_chains=200,
        num_temperatures=60,
        num_steps=40,
    )
    check(found.value, expected)
    assert found.value.standard_error < 0.05
    assert found.log_weight_deviation < 1
    check(found.gradient_norm_squared, pull @ t @ (pull @ t))
    assert found.gradient_norm_squared.standard_error < 0.2 * (pull @ t) @ (pull @ t)
    assert 0.5 < found.acceptance < 1


def test_local_entropy_of_a_constant_loss():
    """The Gaussian is normalised: a flat loss is its own local entropy."""
    loss = lambda outputs, y: 0 * outputs + 5
    problem, _, _ = quadratic()
    found = flatness.local_entropy(linear, loss, *problem[2:], key=new_key())
    np.testing.assert_allclose(found.value.value, 5, atol=1e-5)
    assert found.gradient_norm_squared.value == 0
    assert found.acceptance == 1


def test_sam_sharpness_of_a_quadratic():
    problem, Q, _ = quadratic()
    top = np.linalg.eigvalsh(Q)[-1]
    found = flatness.sam_sharpness(*problem, rho=0.1, num_steps=60, key=new_key())
    np.testing.assert_allclose(found, 0.1**2 * top / 2, rtol=1e-4)
    assert flatness.sam_sharpness(*problem, rho=0.1) == 0  # there is no gradient
    problem, Q, t = quadratic(minimum=False)
    one = flatness.sam_sharpness(*problem, rho=0.1)
    u = Q @ t / np.linalg.norm(Q @ t)
    expected = 0.1 * np.linalg.norm(Q @ t) + 0.1**2 * u @ Q @ u / 2
    np.testing.assert_allclose(one, expected, rtol=1e-4)
    assert flatness.sam_sharpness(*problem, rho=0.1, num_steps=20) >= one


def test_sam_sharpness_in_double_precision(x64):
    problem, Q, t = quadratic(minimum=False)
    x = jnp.asarray(np.linalg.cholesky(Q).T * 2.0)  # four examples: X^T X / 4 = Q
    double = (*problem[:2], jnp.asarray(t), x, jnp.zeros(4))
    u = Q @ t / np.linalg.norm(Q @ t)
    expected = 0.1 * np.linalg.norm(Q @ t) + 0.1**2 * u @ Q @ u / 2
    found = flatness.sam_sharpness(*double, rho=0.1)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_directions_of_gradients_whose_squares_leave_single_precision(scale):
    """A linear loss rises by ``rho |g|``; the distance to a rise is ``rise / |g|``."""
    slope = lambda outputs, y: scale * outputs
    x = jnp.array([[3.0, 4.0]])
    problem = (linear, slope, jnp.zeros(2), x, jnp.zeros(1))
    found = flatness.sam_sharpness(*problem, rho=0.5)
    np.testing.assert_allclose(found, 2.5 * scale, rtol=1e-5)
    away = flatness.epsilon_sharpness(*problem, rise=5e-3 * scale)
    np.testing.assert_allclose(away.distance, 1e-3, rtol=1e-4)


def test_asam_step():
    """The step is ``rho T^2 g / |T g|`` for each way to treat biases."""
    problem, Q, t = quadratic(minimum=False)
    g, rise = Q @ t, lambda e: (t + e) @ Q @ (t + e) / 2 - t @ Q @ t / 2
    for biases, T in (
        ("scaled", np.abs(t) + 0.01),
        ("unscaled", np.ones(4)),
        ("fixed", np.zeros(4)),
    ):
        step = 0.3 * T**2 * g / max(np.linalg.norm(T * g), 1e-30)
        found = flatness.asam_sharpness(*problem, rho=0.3, eta=0.01, biases=biases)
        np.testing.assert_allclose(found, rise(step), rtol=1e-4, atol=1e-6)


def test_keskar_sharpness_of_a_separable_quadratic():
    """Its maximum is at the corner away from zero, ``|t_i|`` increased by the width."""
    curvatures, t = np.array([1.0, 4.0]), np.array([0.5, -2.0])
    x = jnp.asarray(np.diag(np.sqrt(2 * curvatures)), jnp.float32)
    problem = (linear, half_square, jnp.asarray(t, jnp.float32), x, jnp.zeros(2))
    found = flatness.keskar_sharpness(*problem, epsilon=0.01, num_steps=3)
    loss = curvatures @ t**2 / 2
    highest = curvatures @ (np.abs(t) + 0.01 * (np.abs(t) + 1)) ** 2 / 2
    np.testing.assert_allclose(found, 100 * (highest - loss) / (1 + loss), rtol=1e-4)


def test_m_sharpness_is_the_mean_over_disjoint_minibatches():
    """The one example that does not fit is left out."""
    problem, _, _ = quadratic(minimum=False, n=7)
    *_, x, y = problem
    found = flatness.m_sharpness(
        *problem, minibatch_size=2, key=new_key(), rho=0.1, num_steps=3
    )
    order = np.asarray(jax.random.permutation(new_key(), 7))[:6].reshape(3, 2)
    each = [
        flatness.sam_sharpness(*problem[:3], x[rows], y[rows], rho=0.1, num_steps=3)
        for rows in order
    ]
    np.testing.assert_allclose(found.value, np.mean(each), rtol=1e-5)
    error = np.std(each, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-4)
    assert found.num_samples == 3
