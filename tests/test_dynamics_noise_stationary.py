"""Stationary covariances against closed forms and simulated chains."""

import itertools

import jax
import numpy as np
import pytest

from jaxtheory.dynamics import noise


def quadratic(rng, size):
    """A random curvature and a random noise covariance."""
    a, b = rng.normal(size=(2, size, size))
    return a @ a.T / size + 0.1 * np.eye(size), b @ b.T


def simulate(h, sigma, rate, momentum, num_chains, num_steps, rng):
    """Sample covariance of many chains of SGD with additive noise."""
    root = np.linalg.cholesky(sigma)
    w = before = np.zeros((num_chains, len(h)))
    for _ in range(num_steps):
        gradient = w @ h + rng.normal(size=w.shape) @ root.T
        w, before = w - rate * gradient + momentum * (w - before), w
    return np.cov(w.T)


@pytest.mark.parametrize(
    ("h", "rate", "noise_scale", "expected"),
    [(5.0, 0.1, 0.7, 0.1 * 0.49 / (5 * 1.5)), (1.0, 1.5, 2.0, 1.5 * 4 / 0.5)],
)
def test_one_dimension_in_closed_form(h, rate, noise_scale, expected):
    # eta s^2 / (h (2 - eta h)), and not eta s^2 / (2 h).
    got = noise.stationary_covariance(
        np.array([[h]]), np.array([[noise_scale**2]]), learning_rate=rate, batch_size=1
    )
    np.testing.assert_allclose(got.covariance, [[expected]], rtol=1e-12)
    np.testing.assert_allclose(got.contraction, (1 - rate * h) ** 2, rtol=1e-12)
    assert got.exists
    assert got.residual < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_additive_noise_against_simulated_chains(momentum):
    rng = np.random.default_rng(0)
    h, sigma = quadratic(rng, 3)
    got = noise.stationary_covariance(
        h, 4 * sigma, learning_rate=0.2, batch_size=4, momentum=momentum
    )
    sampled = simulate(h, sigma, 0.2, momentum, 20_000, 400, rng)
    scale = np.sqrt(np.outer(np.diag(got.covariance), np.diag(got.covariance)))
    # The deviation of a sample covariance is at most sqrt(2 / 20,000) of this scale.
    assert np.max(np.abs(sampled - got.covariance) / scale) < 4 * np.sqrt(2 / 20_000)
    assert got.residual < 1e-10


def test_small_rates_have_the_temperature_as_scale():
    h, sigma = np.diag([0.5, 2.0]), np.diag([3.0, 1.0])
    got = noise.stationary_covariance(
        h, sigma, learning_rate=1e-4, batch_size=8, momentum=0.9
    )
    temperature = noise.temperature(1e-4, 8, momentum=0.9)
    expected = temperature / 2 * sigma @ np.linalg.inv(h)
    np.testing.assert_allclose(got.covariance, expected, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize(("rate", "expected"), [(0.46875, 0.1875), (0.5625, 0.5625)])
def test_regression_has_multiplicative_noise(rate, expected):
    # Gaussian rows in 10 dimensions, batches of 5: eta / (b (2 - eta (b + d + 1) / b)),
    # measured .1872 and .5594 on 20,000 chains.
    size = 10
    got = noise.stationary_covariance(
        np.eye(size),
        np.eye(size),
        learning_rate=rate,
        batch_size=5,
        second_moment=lambda c: 2 * c + np.trace(c) * np.eye(size),
    )
    np.testing.assert_allclose(got.covariance, expected * np.eye(size), atol=1e-9)
    assert got.residual < 1e-10


@pytest.mark.parametrize(
    ("rate", "exists"), [(2 * 5 / 16 * 0.999, True), (2 * 5 / 16 * 1.001, False)]
)
def test_infinite_variance_is_told(rate, exists):
    # At eta = 2 b / (b + d + 1) the tail index of the iterates is 2.
    got = noise.stationary_covariance(
        np.eye(10),
        np.eye(10),
        learning_rate=rate,
        batch_size=5,
        second_moment=lambda c: 2 * c + np.trace(c) * np.eye(10),
    )
    assert got.exists == exists
    assert (got.contraction < 1) == exists
    assert np.isfinite(got.covariance).all() == exists


def test_divergence_of_the_mean_is_told():
    got = noise.stationary_covariance(
        np.diag([1.0, 30.0]), np.eye(2), learning_rate=0.1, batch_size=1
    )
    assert not got.exists
    assert np.isnan(got.covariance).all()
    np.testing.assert_allclose(got.contraction, 4)


@pytest.mark.parametrize("seed", [4, 5, 9])
@pytest.mark.parametrize("multiplicative", [False, True])
def test_flat_directions_have_no_stationary_law(seed, multiplicative):
    # Rounding made a covariance of 1e14 of it, said to exist, with a residual of 1e-16.
    a = np.random.default_rng(seed).normal(size=(5, 3))
    h = a @ a.T / 20
    second_moment = (lambda c: 1.5 * h @ c @ h) if multiplicative else None
    got = noise.stationary_covariance(
        h, np.eye(5), learning_rate=0.1, batch_size=2, second_moment=second_moment
    )
    assert not got.exists
    assert np.isnan(got.covariance).all()
    assert got.contraction == pytest.approx(1, abs=1e-12)


def test_slow_directions_are_told_from_flat_ones():
    # (1 - .1 h)^2 and its random part: powers of the map alone stop early.
    h = np.diag([1.0, 0.9, 1e-6])
    got = noise.stationary_covariance(
        h,
        np.eye(3),
        learning_rate=0.1,
        batch_size=1,
        second_moment=lambda c: 1.5 * h @ c @ h,
    )
    assert got.exists
    assert 1 - got.contraction == pytest.approx(2e-7, rel=1e-3)
    assert got.covariance[2, 2] == pytest.approx(0.01 / 2e-7, rel=1e-6)


def test_shuffled_epochs_have_less_noise_than_the_temperature():
    rng = np.random.default_rng(0)
    n, b, rate, chains = 64, 8, 0.1, 500
    gradients = rng.normal(size=n)
    gradients -= gradients.mean()
    w, squares = np.zeros(chains), []
    for epoch in range(60):
        order = rng.permuted(np.tile(gradients, (chains, 1)), axis=1)
        for batch in np.split(order, n // b, axis=1):
            w = (1 - rate) * w - rate * batch.mean(axis=1)
            squares += [np.mean(w**2)] if epoch >= 20 else []
    fresh = noise.temperature(rate, b, num_examples=n) / 2 * gradients.var(ddof=1)
    assert np.mean(squares) / fresh == pytest.approx(0.27, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((np.eye(2), -np.eye(2)), {}, "`noise_covariance` must have no eigenvalue"),
        ((np.eye(2) * (1 + 1j), np.eye(2)), {}, "`hessian` must hold real numbers"),
        ((np.eye(2), np.eye(2)), {"second_moment": 3}, "`second_moment` must be a fu"),
        ((np.ones((2, 3)), np.eye(2)), {}, "`hessian` must be a square"),
        ((np.eye(2), np.eye(3)), {}, "`noise_covariance` must have the shape"),
        ((np.triu(np.ones((2, 2))), np.eye(2)), {}, "`hessian` must be symmetric"),
        ((np.eye(2), np.full((2, 2), np.nan)), {}, "`noise_covariance` must be finite"),
        ((np.eye(2), np.eye(2)), {"learning_rate": 0.0}, "`learning_rate` must be"),
        ((np.eye(2), np.eye(2)), {"batch_size": 0}, "`batch_size` must be"),
        ((np.eye(2), np.eye(2)), {"momentum": 1.0}, "`momentum` must be"),
        (
            (np.eye(2), np.eye(2)),
            {"momentum": 0.5, "second_moment": lambda c: c},
            "`momentum` must be 0",
        ),
        (
            (np.eye(2), np.eye(2)),
            {"second_moment": lambda c: np.ones((3, 3))},
            "`second_moment` must",
        ),
    ],
)
@pytest.mark.usefixtures("user_land")
def test_bad_input(arguments, options, match):
    options = {"learning_rate": 0.1, "batch_size": 1} | options
    with pytest.raises(ValueError, match=match):
        noise.stationary_covariance(*arguments, **options)


@pytest.mark.usefixtures("user_land")
def test_a_traced_hessian_is_refused():
    solve = lambda h: noise.stationary_covariance(
        h, np.eye(2), learning_rate=0.1, batch_size=1
    )
    with pytest.raises(ValueError, match="`hessian` must be concrete"):
        jax.jit(lambda h: solve(h).covariance)(np.eye(2))


def test_temperature_of_batches_without_replacement():
    # The variance of the mean of b of n numbers is that of one, over b, times this.
    numbers = np.random.default_rng(5).normal(size=7)
    means = [np.mean(c) for c in itertools.combinations(numbers, 3)]
    factor = np.var(means) / (np.var(numbers, ddof=1) / 3)
    got = noise.temperature(0.6, 3, num_examples=7)
    np.testing.assert_allclose(got, 0.2 * factor, rtol=1e-12)
    assert noise.temperature(0.6, 7, num_examples=7) == 0
    with pytest.raises(ValueError, match="`num_examples` must be"):
        noise.temperature(0.6, 8, num_examples=7)
