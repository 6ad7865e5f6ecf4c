"""SGLD and virtual noise on Gaussian means, whose gap is known in closed form.

Examples are standard normal numbers, the gradient is that of ``(w - z)^2 / 2``, so the
weight is ``a mean(z)`` plus independent noise of variance ``v``. The loss is bounded:
whether ``w z < 0``. Its gap is ``arcsin(correlation of w and z_1) / pi``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.bounds import sgld_gradient_norm, sgld_incoherence, virtual_noise

BOTH = [sgld_gradient_norm, sgld_incoherence]


def run(n, rates, scales):
    """Gap of the last weight, and both arrays that the bounds take."""
    a = v = 0.0
    norms, incoherences = [], []
    for rate, scale in zip(rates, scales, strict=True):
        norms.append(a**2 / n + v + 1 - 2 * a / n)
        incoherences.append(1 + 1 / (n - 1))
        a, v = (1 - rate) * a + rate, (1 - rate) ** 2 * v + scale**2
    correlation = (a / n) / np.sqrt(a**2 / n + v)
    return np.arcsin(correlation) / np.pi, np.array(norms), np.array(incoherences)


def bounds(n, rates, scales):
    """The gap and what the two functions say."""
    gap, norms, incoherences = run(n, rates, scales)
    shared: Any = dict(num_examples=n, loss_bound=1.0)
    given = zip(BOTH, (norms, incoherences), strict=True)
    said = [f(0.5, rates, scales, values, **shared).complexity for f, values in given]
    return gap, said


def test_is_above_the_gap():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, steps = int(rng.integers(2, 100)), int(rng.integers(1, 30))
        rates = 10 ** rng.uniform(-3, 0, size=steps)
        scales = 10 ** rng.uniform(-2, 1, size=steps)
        gap, said = bounds(n, rates, scales)
        assert gap <= min(said)


def test_constant_is_tight_to_a_factor_of_two():
    # One noisy step: half of each bound is below the gap.
    gap, said = bounds(50, np.array([0.01]), np.array([1.0]))
    assert gap > 0.6 * max(said)
    assert gap < min(said)


def test_simulation_agrees_with_the_closed_form():
    n, rng = 4, np.random.default_rng(1)
    rates, scales = np.full(5, 0.4), np.full(5, 0.3)
    z = rng.normal(size=(200_000, n))
    w, norms = np.zeros(len(z)), []
    for rate, scale in zip(rates, scales, strict=True):
        norms.append(np.mean(np.square(w[:, None] - z)))
        w = w - rate * (w - z.mean(axis=1)) + scale * rng.normal(size=len(z))
    gap, expected, _ = run(n, rates, scales)
    found = 0.5 - np.mean(w[:, None] * z < 0)
    assert abs(found - gap) < 5 * 0.5 / np.sqrt(len(z))
    np.testing.assert_allclose(norms, expected, rtol=0.02)


def test_batches():
    # One step on one batch of b out of n: the example is in it with probability b/n.
    for n, b, rate, scale in (
        (100, 10, 0.01, 1.0),
        (20, 1, 0.3, 0.2),
        (9, 9, 1.0, 1.0),
    ):
        within = np.arcsin((rate / b) / np.hypot(rate / np.sqrt(b), scale)) / np.pi
        bound = sgld_gradient_norm(
            0.5,
            np.array([rate]),
            scale,
            1.0,
            num_examples=n,
            loss_bound=1.0,
            training_batch_size=b,
        )
        assert b / n * within < bound.complexity
        expected = 0.5 * rate / scale / np.sqrt(n * b)
        assert bound.complexity == pytest.approx(expected, rel=1e-12)


def flat_run(n, rates, scales):
    """Full-batch steps from 0: gap, flatness, squared norms of the gradients."""
    a, norms = 0.0, []
    for rate in rates:
        norms.append((1 - a) ** 2 / n)
        a = (1 - rate) * a + rate
    plain = np.arccos(1 / np.sqrt(n)) / np.pi
    spread = np.hypot(a / np.sqrt(n), np.sqrt(np.sum(np.square(scales))))
    noisy = np.arccos(a / n / spread) / np.pi
    # No noise makes a difference to fresh examples: the risk is 1/2 before and after.
    return 0.5 - plain, noisy - plain, np.array(norms)


@pytest.mark.parametrize("fresh", [None, 0.0])
def test_virtual_noise_is_above_the_gap(fresh):
    rng = np.random.default_rng(2)
    for n in (2, 10, 100):
        for steps in (20, 3, 1):
            rates = rng.uniform(0.1, 0.5, size=steps)
            scales = 10 ** rng.uniform(-2, 0, size=steps)
            gap, flatness, norms = flat_run(n, rates, scales)
            bound = virtual_noise(
                0.4,
                rates,
                scales,
                norms,
                flatness=flatness,
                num_examples=n,
                loss_bound=1.0,
                flatness_fresh=fresh,
            )
            assert gap < bound.complexity
            # Neither of the terms is enough.
            assert gap > flatness
            trusted = any("does not lower the risk" in a for a in bound.assumptions)
            assert trusted == (fresh is None)
    first = bound.complexity - flatness
    assert first == pytest.approx(0.5 * rates[0] / (100 * scales[0]), rel=1e-12)
    # Without the flatness the bound would fail.
    assert gap > first


def test_fresh_flatness_is_subtracted():
    shared: Any = dict(flatness=0.3, num_examples=10, loss_bound=1.0)
    arrays = (np.ones(3), 1.0, np.ones(3))
    without = virtual_noise(0.1, *arrays, **shared)
    given = virtual_noise(0.1, *arrays, flatness_fresh=0.25, **shared)
    assert given.complexity == pytest.approx(without.complexity - 0.25)
    assert not given.certificate


@pytest.mark.parametrize("function", BOTH)
def test_monotone_and_in_units_of_the_loss(function):
    arrays = (np.ones(4), np.ones(4), np.ones(4))
    gap = lambda n, largest, steps: (
        function(
            0.0, *(a[:steps] for a in arrays), num_examples=n, loss_bound=largest
        ).complexity
    )
    assert gap(10, 1.0, 4) == pytest.approx(2 * gap(20, 1.0, 4))
    assert gap(10, 3.0, 4) == pytest.approx(3 * gap(10, 1.0, 4))
    assert gap(10, 1.0, 4) == pytest.approx(2 * gap(10, 1.0, 1))
    bound = function(0.2, *arrays, num_examples=10, loss_bound=1.0)
    assert (bound.value, bound.delta) == (0.2 + bound.complexity, None)
    assert not bound.certificate
    # Vanishing noise: infinite and vacuous, not NaN.
    bound = function(0.2, arrays[0], 1e-300, arrays[0], num_examples=10, loss_bound=1.0)
    assert (bound.value, bound.vacuous) == (np.inf, True)


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        (0, np.zeros(0), "`learning_rates` must hold one real number"),
        (0, 0.1, "`learning_rates` must hold one real number"),
        (0, np.ones((3, 1)), "`learning_rates` must hold one real number"),
        (0, np.array([1, -1, 1]), "`learning_rates` must be at least 0"),
        (1, np.ones(2), "`noise_scales` must hold one real number"),
        (1, 0.0, "`noise_scales` must be positive and finite"),
        (1, np.array([1, np.inf, 1]), "`noise_scales` must be positive and finite"),
        (2, np.ones(4), "must hold one real number"),
        (2, np.array([1, np.nan, 1]), "must be at least 0 and finite"),
        (2, np.array([1, np.inf, 1]), "must be at least 0 and finite"),
        (2, np.ones(3, complex), "must hold one real number"),
    ],
)
def test_arrays_over_steps_are_checked(user_land, place, values, message):
    arrays: Any = [np.ones(3), 1.0, np.ones(3)]
    arrays[place] = values
    for function in BOTH:
        with pytest.raises(ValueError, match=message):
            function(0.1, *arrays, num_examples=10, loss_bound=1.0)
    with pytest.raises(ValueError, match=message):
        virtual_noise(0.1, *arrays, flatness=0.0, num_examples=10, loss_bound=1.0)


def test_other_bad_input(user_land):
    arrays: Any = (np.ones(3), 1.0, np.ones(3))
    good: Any = dict(num_examples=10, loss_bound=1.0)
    for function in BOTH:
        with pytest.raises(ValueError, match="`num_examples` must be an integer"):
            function(0.1, *arrays, num_examples=1, loss_bound=1.0)
        with pytest.raises(ValueError, match="`empirical_risk` must be between"):
            function(-0.1, *arrays, **good)
        with pytest.raises(ValueError, match="`training_batch_size` must be at most"):
            function(0.1, *arrays, training_batch_size=11, **good)
    with pytest.raises(ValueError, match="`training_batch_size` must be an int"):
        sgld_incoherence(0.1, *arrays, training_batch_size=1, **good)
    for flatness in (np.nan, 1.5):
        with pytest.raises(ValueError, match="`flatness` must be a difference"):
            virtual_noise(0.1, *arrays, flatness=flatness, **good)
    with pytest.raises(ValueError, match="`learning_rates` must be a concrete value"):
        jax.jit(lambda a: sgld_gradient_norm(0.1, a, 1.0, 1.0, **good).value)(
            jnp.ones(3)
        )
