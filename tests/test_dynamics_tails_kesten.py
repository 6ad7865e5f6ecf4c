"""Kesten's equation: closed forms, simulated chains, and the Lyapunov gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln

from jaxtheory.dynamics import tails


def new_key(seed=0):
    return jax.random.key(seed)


def simple(learning_rate, **options):
    options = {"dimension": 1, "batch_size": 1} | options
    return tails.linear_regression_tail_index(learning_rate, **options)


@pytest.mark.parametrize(
    ("learning_rate", "alpha"),
    [(0.4667, 3.161), (0.6667, 2.0), (0.8, 1.546), (0.9333, 1.221)],
)
def test_indices_in_one_dimension(learning_rate, alpha):
    got = simple(learning_rate)
    # The published rates have four digits.
    assert abs(got.value - alpha) < 6e-4
    assert got.stationary
    # The equation itself, by two million numbers.
    x = np.random.default_rng(0).normal(size=2_000_000) ** 2
    logs = np.log(abs(1 - learning_rate * x))
    powers = np.exp(got.value * logs)
    assert abs(powers.mean() - 1) < 4 * powers.std() / 2e6**0.5
    assert abs(logs.mean() - got.lyapunov_exponent) < 4 * logs.std() / 2e6**0.5


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5), (100, 1)])
def test_the_critical_rate_has_index_two(shape):
    d, b = shape
    rate = 2 * b / (3.0 * (d + b + 1))
    got = simple(rate, dimension=d, batch_size=b, variance=3.0)
    assert got.value == pytest.approx(2, abs=1e-8)


def test_lyapunov_exponent_in_two_dimensions():
    rng = np.random.default_rng(0)
    x, y = rng.chisquare(3, size=(1_000_000)), rng.chisquare(1, size=1_000_000)
    c = 0.6 / 3
    logs = 0.5 * np.log((1 - c * x) ** 2 + c**2 * x * y)
    got = simple(0.6, dimension=2, batch_size=3)
    assert abs(logs.mean() - got.lyapunov_exponent) < 4 * logs.std() / 1e3
    powers = np.exp(got.value * logs)
    assert abs(powers.mean() - 1) < 4 * powers.std() / 1e3


def test_no_stationary_law_is_flagged():
    # Rates that a published grid uses: from .0235 on SGD diverges.
    for rate in (0.0235, 0.2):
        got = simple(rate, dimension=100)
        assert not got.stationary
        assert got.lyapunov_exponent > 0
        assert np.isnan(got.value)
    # Every index in (0, 2) lies in [.019608, .019632].
    for rate, low, high in ((0.019608, 1.9, 2), (0.01963, 0, 0.2), (0.0196, 2, 4)):
        assert low < simple(rate, dimension=100).value < high
    assert not simple(0.019633, dimension=100).stationary


def test_small_rates_have_large_indices():
    assert 100 < simple(0.01).value < 300
    # A sum over the plane, in logarithms: densities there are below 1e-308. (437 and
    # 358, where weights that were cut at 1e-300 gave 334 and 302.)
    for d, b, rate in ((5, 5, 0.02), (2, 1, 0.005)):
        s = simple(rate, dimension=d, batch_size=b).value
        r, t = (np.arange(600) + 0.5) / 600 * 60, (np.arange(600) + 0.5) / 600 * 60
        chi = lambda x, k: (k - 1) * np.log(x) - x**2 / 2 - gammaln(k / 2)
        logs = s * np.log(
            np.hypot(1 - rate / b * r[:, None] ** 2, rate / b * r[:, None] * t)
        )
        logs += chi(r, b)[:, None] + chi(t, d - 1) + (2 - (b + d - 1) / 2) * np.log(2)
        assert abs(np.logaddexp.reduce(logs.ravel()) + 2 * np.log(0.1)) < 1e-3
    assert np.isinf(simple(1e-4).value)
    assert simple(1e-4).stationary


def test_simulated_chains_have_the_tail():
    # 40,000 chains at twelve times, in the page's ranges.
    rng = np.random.default_rng(1)
    for rate, low, high in ((2 / 3, 1.94, 2.06), (0.9333, 1.24, 1.36)):
        x, seen = np.zeros(40_000, np.float32), []
        for step in range(60):
            a, noise = rng.standard_normal((2, 40_000), np.float32)
            x = (1 - rate * a**2) * x + rate * a * noise
            if step % 4 == 0 and step > 12:
                seen.append(x)
        got = tails.hill(np.concatenate(seen), num_tail=2000)
        assert low - 0.1 < got.value < high + 0.1
        # Hill's bias at a finite threshold is part of the range.
        assert abs(got.value - simple(rate).value) < 4 * got.standard_error


def test_samples_of_scalars():
    x = np.random.default_rng(2).normal(size=20_000) ** 2
    got = tails.kesten_tail_index(jnp.asarray(1 - 0.8 * x, jnp.float32))
    exact = simple(0.8)
    assert 0 < got.standard_error < 0.1
    assert abs(got.value - exact.value) < 4 * got.standard_error
    error = float(got.lyapunov_standard_error)
    assert abs(got.lyapunov_exponent - exact.lyapunov_exponent) < 4 * error
    assert got.effective_samples > 1000
    # At a small rate a handful of samples decide, and the result says so.
    few = tails.kesten_tail_index(jnp.asarray(1 - 0.3 * x, jnp.float32))
    assert few.effective_samples < 100


def test_standard_error_of_scalars_is_the_spread():
    x = np.random.default_rng(3).normal(size=(200, 2000)) ** 2
    many = jax.vmap(tails.kesten_tail_index)(jnp.asarray(1 - 0.9333 * x, jnp.float32))
    # 200 repetitions know a deviation to 5 %; the weights are heavy-tailed besides.
    spread = np.std(many.value, ddof=1)
    np.testing.assert_allclose(spread, np.median(many.standard_error), rtol=0.25)


def test_multipliers_that_never_exceed_one_or_always_do():
    contracting = tails.kesten_tail_index(jnp.array([0.5, -0.9, 0.0, 1.0]))
    assert np.isinf(contracting.value)
    assert np.isnan(contracting.standard_error)
    assert contracting.stationary
    exploding = tails.kesten_tail_index(jnp.array([0.5, 3.0, 3.0, 1.0]))
    assert np.isnan(exploding.value)
    assert not exploding.stationary
    broken = tails.kesten_tail_index(jnp.array([0.5, jnp.nan, 2.0]))
    assert np.isnan(broken.value)
    assert not broken.stationary


@pytest.fixture(scope="module")
def matrices():
    a = np.random.default_rng(4).normal(size=(4000, 2)).astype(np.float32)
    m = np.eye(2, dtype=np.float32)[None] - 0.5 * a[:, :, None] * a[:, None, :]
    return m


def of_matrices(stack):
    return tails.matrix_kesten_tail_index(
        stack, key=new_key(), num_particles=500, num_steps=100
    )


def test_samples_of_matrices(matrices):
    got = of_matrices(matrices)
    exact = simple(0.5, dimension=2)
    assert exact.value == pytest.approx(2)
    # Of these 4,000 matrices, by rotation invariance: the error of the samples.
    sampled = tails.kesten_tail_index(np.linalg.norm(matrices[:, :, 0], axis=1))
    error = np.hypot(float(got.standard_error), float(sampled.standard_error))
    assert 0 < error < 0.15
    assert abs(got.value - 2) < 4 * error
    assert abs(got.lyapunov_exponent - exact.lyapunov_exponent) < 0.03
    assert got.stationary


def test_matrices_that_contract_or_explode(matrices):
    contracting = of_matrices(0 * matrices)
    assert np.isinf(contracting.value)
    assert contracting.stationary
    exploding = of_matrices(5 * matrices)
    assert np.isnan(exploding.value)
    assert not exploding.stationary


def test_what_does_not_commute_is_not_its_norms():
    # Shrinking one axis and growing the other, then swapped: no growth in the end.
    one, two = np.diag([0.2, 1.5]), np.diag([1.5, 0.2])
    stack = np.asarray([one, two] * 2000, np.float32)
    got = of_matrices(stack)
    # Diagonal, so h(s) is (.2^s + 1.5^s) / 2, for either axis.
    want = tails.kesten_tail_index(np.asarray([0.2, 1.5] * 10, np.float32))
    assert abs(got.value - want.value) < 4 * got.standard_error + 0.02


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_matrices_whose_squares_leave_the_range(scale):
    # Growth of 1e25 a step was called a stationary law with no power law.
    stack = np.random.default_rng(0).normal(size=(20, 2, 2)).astype("f4")
    plain, got = of_matrices(stack), of_matrices(stack * np.float32(scale))
    assert bool(got.stationary) == (scale < 1)
    want = plain.lyapunov_exponent + np.log(scale)
    np.testing.assert_allclose(got.lyapunov_exponent, want, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: simple([0.5]), "`learning_rate` must be a positive"),
        (lambda: jax.jit(simple)(0.5), "`learning_rate` must be a concrete number"),
        (lambda: tails.kesten_tail_index([0.5, 2.0]), "`multipliers` must be an array"),
        (lambda: simple(0.0), "`learning_rate` must be a positive"),
        (lambda: simple(1.0, variance=-1.0), "`variance` must be"),
        (lambda: simple(1.0, dimension=0), "`dimension` must be"),
        (lambda: simple(1.0, batch_size=1.5), "`batch_size` must be"),
        (lambda: tails.kesten_tail_index(np.ones((2, 2), "f4")), "vector of at least"),
        (lambda: tails.kesten_tail_index(np.ones(1, "f4")), "at least two samples"),
        (
            lambda: tails.matrix_kesten_tail_index(np.ones((5, 2, 3)), key=new_key()),
            "two square",
        ),
        (
            lambda: tails.matrix_kesten_tail_index(np.ones((5, 2, 2), "f4"), key=3),
            "`key` must be",
        ),
        (
            lambda: tails.matrix_kesten_tail_index(
                np.ones((5, 2, 2), "f4"), key=new_key(), num_steps=10
            ),
            "`num_steps` must be",
        ),
    ],
)
def test_bad_input(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()
