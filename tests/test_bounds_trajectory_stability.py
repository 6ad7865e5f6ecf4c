"""Uniform stability and the heavy-tailed diffusion against gaps that are known."""

from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import dawsn, gamma

from jaxtheory.bounds import heavy_tail_sde, uniform_stability
from jaxtheory.bounds._heavy_tail import stable_constant
from jaxtheory.bounds._stability import nonconvex_gap

COINS: Any = dict(max_gradient_norm=1.0, smoothness=1.0, loss_bound=0.5)


INJECTED: Any = dict(
    tail_index=1.5, noise_scale=0.1, weight_decay=0.1, num_examples=100
)


def coin_gap(rates, n):
    """Gap of full-batch descent on ``(w - z)^2 / 2`` from 0, fair coins z in {0, 1}.

    It is the covariance of the last weight, ``a mean(z)``, and one example.
    """
    return (1 - np.prod(1 - rates)) / (4 * n)


@pytest.mark.parametrize("convexity", ["convex", "nonconvex"])
def test_is_above_the_gap_of_mean_estimation(convexity: Any):
    for n in (2, 10, 100):
        for rates in (np.full(1, 1.0), np.full(30, 0.1), 0.5 / np.arange(1, 200)):
            bound = uniform_stability(
                0.1,
                rates,
                num_examples=n,
                convexity=convexity,
                training_batch_size=n if convexity == "nonconvex" else 1,
                **COINS,
            )
            assert coin_gap(rates, n) < bound.complexity
            assert not bound.certificate


def test_convex_form():
    bound = uniform_stability(
        0.1,
        np.array([0.5, 0.25]),
        max_gradient_norm=3.0,
        smoothness=2.0,
        num_examples=10,
        loss_bound=9.0,
        convexity="convex",
    )
    assert bound.complexity == pytest.approx(2 * 9 * 0.75 / 10)


def distance(rates, lipschitz, smoothness, n, start):
    """The recursion, step by step."""
    far = 0.0
    for rate in rates[start:]:
        far = (1 + (1 - 1 / n) * rate * smoothness) * far + 2 * rate * lipschitz / n
    return far


def test_nonconvex_form_is_the_recursion():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0, 0.3, size=40)
    rates[7] = 0.0
    for n, batch in ((5, 1), (100, 1), (100, 7)):
        tried = [
            0.7 * batch * start / n + 2 * distance(rates, 2.0, 3.0, n, start)
            for start in range(41)
        ]
        found = nonconvex_gap(rates, 2.0, 3.0, n, 0.7, batch)
        assert found == pytest.approx(min(tried), rel=1e-12)


@pytest.mark.parametrize("largest", [1.0, 2.5])
def test_nonconvex_form_and_the_published_one(largest):
    # eta_t = c/t; the published one takes t0 for a real number.
    for n, steps, c, smoothness, lipschitz in (
        (1000, 500, 0.1, 1.0, 1.0),
        (10_000, 5000, 0.05, 10.0, 2.0),
        (50, 100, 0.5, 1.0, 0.3),
    ):
        q = smoothness * c
        start = (2 * c * lipschitz**2 / largest) ** (1 / (q + 1))
        start *= steps ** (q / (q + 1))
        published = largest * (1 + 1 / q) / (n - 1) * start
        rates = c / np.arange(1, steps + 1)
        found = nonconvex_gap(rates, lipschitz, smoothness, n, largest, 1)
        assert found <= published + largest / n
        assert found > published / 20


def test_diverging_runs_are_bounded_by_the_loss():
    # Enormous growth: the runs may differ as soon as the example is drawn.
    rates = np.full(2000, 10.0)
    found = nonconvex_gap(rates, 1.0, 10.0, 100_000, 1.0, 1)
    assert found == pytest.approx(2000 / 100_000, rel=0.01)
    rates[5:9] = 0.0
    assert np.isfinite(nonconvex_gap(rates, 1.0, 10.0, 100_000, 1.0, 1))


def test_monotone_in_examples_and_steps():
    rates = np.full(50, 0.05)
    gap = lambda n, steps: nonconvex_gap(rates[:steps], 1.0, 2.0, n, 1.0, 1)
    assert gap(100, 50) > gap(1000, 50) > gap(1000, 10) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(learning_rates=np.full(3, 2.5)), "`learning_rates` must be at most 2 /"),
        (dict(learning_rates=np.zeros(0)), "`learning_rates` must hold one real"),
        (dict(max_gradient_norm=0.0), "`max_gradient_norm` must be positive"),
        (dict(smoothness=np.nan), "`smoothness` must be positive"),
        (dict(convexity="flat"), "`convexity` must be"),
        (dict(training_batch_size=11), "`training_batch_size` must be at most"),
        (dict(num_examples=1), "`num_examples` must be an integer of at least 2"),
        (dict(loss_bound=0.05), "`empirical_risk` must be between 0 and"),
    ],
)
def test_bad_input(user_land, arguments, message):
    good: Any = dict(learning_rates=np.ones(3), num_examples=10, convexity="convex")
    good |= COINS | arguments
    with pytest.raises(ValueError, match=message):
        uniform_stability(0.1, good.pop("learning_rates"), **good)


def test_heavy_tail_values_of_the_reference():
    alpha, d = 1.6444444444444446, 59_550
    np.testing.assert_allclose(stable_constant(alpha, d), 4.489667979627884, rtol=1e-14)
    bound = heavy_tail_sde(
        0.0,
        0.06052335212549989,
        tail_index=alpha,
        noise_scale=0.010000000000000004,
        weight_decay=0.001,
        num_params=d,
        num_examples=6044,
        loss_bound=1.0,
    )
    np.testing.assert_allclose(bound.value, 9.35084409333097, rtol=1e-13)
    assert bound.vacuous
    assert not bound.certificate


def test_the_constant_at_alpha_two():
    assert stable_constant(2.0, 10**6) == 0.5
    assert stable_constant(2 - 1e-9, 10**6) == pytest.approx(0.5, rel=1e-7)
    a = 1.3
    plain = (2 - a) * gamma(1 - a / 2) * 50 ** (1 - a / 2) / (a * 2 ** (a / 2))
    assert stable_constant(a, 50) == pytest.approx(plain, rel=1e-13)


def heavy(gradient, **changed):
    """The bound on the gap, of a loss in [0, 1] in one dimension."""
    shared: Any = dict(num_params=1, loss_bound=1.0) | changed
    return heavy_tail_sde(0.4, gradient, **shared).complexity


def test_is_above_the_gap_of_a_gaussian_diffusion():
    # Training loss mean (a/2)(w - z_i)^2, z standard normal; loss: whether w z < 0.
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(300):
        n = int(rng.integers(2, 100))
        a, decay, noise = 10 ** rng.uniform(-2, 1, size=3)
        slope, variance = a / (a + decay), noise**2 / (a + decay)
        gap = np.arcsin(slope / n / np.hypot(slope / np.sqrt(n), np.sqrt(variance)))
        gradient = a**2 * ((1 - slope) ** 2 / n + variance)
        bound = heavy(
            gradient,
            tail_index=2.0,
            noise_scale=noise,
            weight_decay=decay,
            num_examples=n,
        )
        ratios.append(gap / np.pi / bound)
    assert max(ratios) < 1


@pytest.mark.parametrize("alpha", [1.05, 1.3, 1.6, 1.9, 2.0])
def test_is_above_the_gap_of_a_stable_diffusion(alpha):
    # Training loss -a w mean(z): the weight is (a/decay) mean(z) plus stable noise of
    # scale sigma / (alpha decay)^(1/alpha). The probability that w and z_1 have one
    # sign follows from the characteristic function.
    ratios = []
    for n in (2, 20, 200):
        for a, decay, sigma in ((1.0, 1.0, 1.0), (0.1, 0.5, 2.0), (3.0, 0.2, 0.5)):
            slope, scale = a / decay, sigma / (alpha * decay) ** (1 / alpha)

            def integrand(t, n=n, slope=slope, scale=scale):
                spread = (slope * t) ** 2 * (n - 1) / (2 * n**2)
                decayed = np.exp(-((scale * t) ** alpha) - spread)
                return decayed * 2 / np.sqrt(np.pi) * dawsn(slope * t / n / 2**0.5) / t

            gap = quad(integrand, 0, np.inf, limit=200)[0] / np.pi
            bound = heavy(
                a**2 / n,
                tail_index=alpha,
                noise_scale=sigma,
                weight_decay=decay,
                num_examples=n,
            )
            ratios.append(gap / bound)
    assert max(ratios) < 1
    assert max(ratios) > 0.1


def test_heavy_tail_scales():
    shared: Any = dict(
        tail_index=1.5, noise_scale=0.1, weight_decay=0.1, num_examples=100
    )
    once = heavy(0.01, **shared)
    assert heavy(0.04, **shared) == pytest.approx(2 * once)
    assert heavy(0.01, **shared | dict(num_examples=400)) == pytest.approx(once / 2)
    assert heavy(0.01, **shared | dict(loss_bound=3.0)) == pytest.approx(3 * once)
    assert heavy(0.0, **shared) == 0.0
    assert heavy(0.01, **shared | dict(noise_scale=1e-200)) > 1e100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(gradient=np.inf), "`mean_squared_gradient_norm` must be finite"),
        (dict(gradient=np.nan), "`mean_squared_gradient_norm` must be finite"),
        (dict(tail_index=1.0), "`tail_index` must be in"),
        (dict(tail_index=2.01), "`tail_index` must be in"),
        (dict(noise_scale=0.0), "`noise_scale` must be positive"),
        (dict(weight_decay=0.0), "`weight_decay` must be positive"),
        (dict(num_params=0), "`num_params` must be an integer"),
        (dict(num_examples=1), "`num_examples` must be an integer of at least 2"),
    ],
)
def test_heavy_tail_bad_input(user_land, arguments, message):
    good: Any = dict(
        tail_index=1.5, noise_scale=0.1, weight_decay=0.1, num_examples=100
    )
    good |= dict(gradient=0.1) | arguments
    with pytest.raises(ValueError, match=message):
        heavy(good.pop("gradient"), **good)
