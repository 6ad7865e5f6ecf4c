"""Certificates fail at most as often as they say, and every term in them is needed.

A valid PAC-Bayes bound fails far less often than delta, so a coverage test alone would
pass many a broken one. Each test here also breaks the bound in one place and shows an
adversary that then makes it fail more often than delta. Every label is a fair coin
unless said otherwise, so that the true risk of any predictor is exactly 1/2.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.bounds import gaussian_pac_bayes, kl_inverse, prior_bound
from jaxtheory.bounds._pac_bayes import certified_risk, maurer_budget

DELTA = 0.05
TRUTH = 0.5


def failure_rate(mean_risks, complexity=0.0, **changes):
    """How often the bound of these risks lies below the truth."""
    shared = dict(num_examples=10, num_samples=np.inf, num_posteriors=1, delta=DELTA)
    _, values = certified_risk(mean_risks, complexity, **(shared | changes))
    return np.mean(values < TRUTH)


def test_choosing_the_best_of_many_priors_must_be_paid():
    num_priors, rng = 512, np.random.default_rng(0)
    errors = rng.binomial(10, TRUTH, size=(2000, num_priors))
    best = errors.min(axis=1) / 10
    assert failure_rate(best, complexity=np.log(num_priors)) <= DELTA
    assert failure_rate(best, complexity=0.0) > 4 * DELTA


def test_choosing_the_best_of_many_posteriors_must_be_paid():
    # Every draw errs on all examples or on none, so the estimates are noise; there are
    # so many examples that the second step costs nothing.
    num_posteriors, m, rng = 256, 10, np.random.default_rng(1)
    best = rng.binomial(m, TRUTH, size=(2000, num_posteriors)).min(axis=1) / m
    shared = dict(num_examples=10**6, num_samples=m)
    assert failure_rate(best, num_posteriors=num_posteriors, **shared) <= DELTA
    assert failure_rate(best, num_posteriors=1, **shared) > 3 * DELTA


def test_confidence_must_be_paid():
    # Uniform prior over three hypotheses; the posterior is the best of them.
    rng = np.random.default_rng(2)
    best = rng.binomial(4, TRUTH, size=(4000, 3)).min(axis=1) / 4
    shared = dict(num_examples=4, complexity=np.log(3.0))
    assert failure_rate(best, **shared) <= DELTA
    # delta = 2 is how the formula reads without 1/delta in either step.
    assert failure_rate(best, delta=2.0, **shared) > 3 * DELTA


def test_the_monte_carlo_error_must_be_paid():
    # sign(w) with w ~ N(0, 1): each weight draw is right everywhere or nowhere.
    sign = lambda w, x: jnp.stack([-w * x, w * x], axis=-1)
    x, y = jnp.ones(2000), jnp.ones(2000, int)
    with_term, without = [], []
    for seed in range(60):
        bound = prior_bound(
            sign,
            jnp.zeros(()),
            x,
            y,
            scales=1.0,
            num_samples=10,
            delta=DELTA,
            key=jax.random.key(seed),
        )
        with_term.append(bound.value)
        without.append(bound.empirical_risk)
    without = kl_inverse(np.array(without), maurer_budget(0.0, 2000, DELTA))
    assert np.mean(np.array(with_term) < TRUTH) <= DELTA
    assert np.mean(without < TRUTH) > 4 * DELTA


def linear(w, x):
    score = x @ w
    return jnp.stack([-score, score], axis=-1)


def test_the_prior_must_not_see_the_data():
    honest, cheating = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(40, 64)), rng.integers(0, 2, 40)
        # More weights than examples: memorises coin flips.
        fitted = jnp.asarray(np.linalg.pinv(x) @ (2.0 * y - 1.0))
        data = (jnp.asarray(x), jnp.asarray(y))
        shared = dict(num_samples=200, delta=DELTA, key=jax.random.key(seed))
        bound = gaussian_pac_bayes(
            linear, fitted, jnp.zeros(64), *data, posterior_scales=0.02, **shared
        )
        honest.append(bound.value)
        bound = prior_bound(linear, fitted, *data, scales=0.02, **shared)
        cheating.append(bound.value)
    assert np.mean(np.array(honest) < TRUTH) <= DELTA
    assert np.mean(np.array(cheating) < TRUTH) > 4 * DELTA


def test_a_learned_classifier_with_a_known_gibbs_risk():
    # y = sign(x_1), flipped with probability 0.1; x isotropic. A linear classifier at
    # an angle a to the first axis errs with probability 0.1 + 0.8 a / pi.
    n, dim, scale, repetitions = 500, 4, 0.1, 30
    failures, values = 0, []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, dim))
        y = (x[:, 0] > 0) ^ (rng.random(n) < 0.1)
        fitted = np.linalg.lstsq(x, 2.0 * y - 1.0)[0]
        bound = gaussian_pac_bayes(
            linear,
            jnp.asarray(fitted),
            jnp.zeros(dim),
            jnp.asarray(x),
            jnp.asarray(y, int),
            posterior_scales=scale,
            num_samples=200,
            delta=DELTA,
            key=jax.random.key(seed),
        )
        failures += bound.value < gibbs_risk(fitted, scale, rng)
        values.append(bound.value)
    assert failures <= DELTA * repetitions
    # Safe, and not for being vacuous.
    assert np.mean(values) < TRUTH


def gibbs_risk(centre, scale, rng):
    """True Gibbs risk of ``N(centre, scale^2 I)``, to a standard error below .003."""
    draws = centre + scale * rng.normal(size=(4000, centre.size))
    angles = np.arccos(draws[:, 0] / np.linalg.norm(draws, axis=1))
    return 0.1 + 0.8 * np.mean(angles) / np.pi
