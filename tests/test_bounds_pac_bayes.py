from decimal import Decimal, localcontext
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

from jaxtheory.bounds import kl_inverse, pac_bayes
from jaxtheory.bounds._gaussian_kl import anisotropy, gaussian_kl, squared_distance
from jaxtheory.bounds._pac_bayes import _catoni

EPS = np.finfo(float).eps


def test_pac_bayes_known_value():
    bound = pac_bayes(0.02, 5000.0, num_examples=60_000, delta=0.05)
    assert abs(bound.value - 0.134340) < 5e-7
    assert (bound.empirical_risk, bound.complexity, bound.delta) == (0.02, 5000.0, 0.05)
    assert not bound.vacuous
    assert not bound.certificate
    assert sum("taken on trust:" in text for text in bound.assumptions) == 2
    assert pac_bayes(0.5, 1e9, num_examples=100, delta=0.05).vacuous


def forms(risk, kl, n):
    return {
        form: pac_bayes(risk, kl, num_examples=n, delta=0.05, form=form).value
        for form in ("kl", "quadratic", "mcallester", "catoni")
    }


def test_forms_have_their_known_values():
    found = forms(0.02, 5000.0, 60_000)
    assert found["mcallester"] == pytest.approx(0.224312, abs=5e-7)
    # Thiemann's, minimised over its parameter.
    c = (5000 + np.log(2 * np.sqrt(60_000) / 0.05)) / 60_000
    thiemann = lambda u: 0.02 / (1 - u / 2) + c / (u * (1 - u / 2))
    least = minimize_scalar(thiemann, bounds=(0.01, 1.99), method="bounded").fun
    assert found["quadratic"] == pytest.approx(0.205022, abs=5e-7)
    assert found["quadratic"] == pytest.approx(least, rel=1e-9)


def test_forms_in_order():
    for risk in (0.0, 0.02, 0.3, 0.9):
        for kl in (0.0, 3.0, 4000.0):
            for n in (20, 60_000):
                found = forms(risk, kl, n)
                tight = found["kl"] * (1 - 1e-12)
                assert tight <= min(found["quadratic"], found["mcallester"], 1)
                # Without its price, Catoni's best temperature is the inverse of kl.
                budget = (kl + np.log(241 / 0.05)) / n
                exact = kl_inverse(risk, budget)
                assert exact * (1 - 1e-9) <= found["catoni"]
                if 0.05 < exact < 0.95:
                    assert found["catoni"] <= exact * 1.001


@pytest.mark.parametrize("form", ["kl", "quadratic", "mcallester", "catoni"])
def test_forms_fail_as_rarely_as_they_say(form):
    # Thirty throws each of 1e8 fair coins under a uniform prior; the posterior is the
    # luckiest, whose law is that of a smallest order statistic.
    uniform = np.random.default_rng(0).random(1000)
    share = -np.expm1(np.log1p(-uniform) / 1e8)
    levels, counts = np.unique(binom.ppf(share, 30, 0.5) / 30, return_counts=True)

    def failures(kl):
        bound = lambda risk: (
            pac_bayes(risk, kl, num_examples=30, delta=0.05, form=form).value
        )
        return np.sum(counts * [bound(level) < 0.5 for level in levels]) / 1000

    assert failures(np.log(1e8)) <= 0.05
    # A prior that sat on it has seen the data.
    assert failures(0.0) > 0.1


def test_catoni_without_its_confidence_fails():
    rng = np.random.default_rng(1)
    risks = rng.binomial(30, 0.5, size=1000) / 30
    complexity = -np.log(241 / 0.05)
    free = [_catoni(risk, complexity, 30, 0.05) < 0.5 for risk in risks]
    assert np.mean(free) > 0.4
    paid = [_catoni(risk, 0.0, 30, 0.05) < 0.5 for risk in risks]
    assert np.mean(paid) <= 0.05


def test_the_constant_of_the_theorem():
    # Maurer's lemma: the moment that Markov's inequality needs is at most 2 sqrt(n).
    for n in (2, 3, 10, 100, 400):
        k = np.arange(n + 1)
        weights = np.array([float(comb(n, int(i))) for i in k])
        moment = np.sum(weights * (k / n) ** k * (1 - k / n) ** (n - k))
        assert np.sqrt(n) <= moment <= 2 * np.sqrt(n)


def test_gaussian_kl_by_quadrature():
    mean, s, t = 0.7, 0.4, 1.3
    density = lambda w: (
        norm.pdf(w, mean, s) * (norm.logpdf(w, mean, s) - norm.logpdf(w, 0, t))
    )
    integral, error = quad(density, mean - 12 * s, mean + 12 * s, epsabs=1e-13)
    closed = gaussian_kl(mean**2, 1, s, t)
    assert abs(closed - integral) < error + 1e-12


def test_gaussian_kl_survives_a_million_parameters():
    p = 1_000_000
    ratios = np.array([1e-6, 0.5, 0.7, 1 - 1e-9, 1.0, 1 + 1e-7, 1.2, 1.3, 40.0])
    t, distance = 0.3, 0.02
    s = ratios * t
    computed = gaussian_kl(distance, p, s, t)
    with localcontext() as context:
        context.prec = 60
        for scale, value in zip(s, computed, strict=True):
            rho = (Decimal(float(scale)) / Decimal(t)) ** 2
            shift = Decimal(distance) / Decimal(t) ** 2
            exact = (p * (rho - 1 - rho.ln()) + shift) / 2
            # Rounded up, by less than 100 eps.
            assert 0 <= Decimal(float(value)) / exact - 1 < Decimal(100 * EPS)
    assert gaussian_kl(0.0, p, t, t) == 0.0


def test_spread_costs_the_sum_over_parameters():
    rng = np.random.default_rng(0)
    spread = {"a": np.exp(rng.normal(size=(4, 5))), "b": np.exp(rng.normal(size=7))}
    spread = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), spread)
    params = jax.tree.map(jnp.zeros_like, spread)
    scales = np.array([0.25, 2.0])  # powers of two: products are exact
    size, excess = anisotropy(spread, params, scales)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(spread)])
    for t in (0.1, 1.0):
        found = gaussian_kl(3.0, 27, size, t) + excess
        for value, scale in zip(found, scales, strict=True):
            ratio = (scale * flat.astype(float) / t) ** 2
            exact = np.sum(ratio - 1 - np.log(ratio)) / 2 + 3 / (2 * t**2)
            assert exact <= value <= exact * (1 + 1e-10)
    ones = jax.tree.map(jnp.ones_like, spread)
    _, none = anisotropy(ones, params, scales)
    assert np.all(none <= 1e-10)


def test_distances_are_taken_in_float64():
    params = {"w": jnp.full(1000, 1.0 + 2**-23, jnp.float32)}
    prior = {"w": jnp.ones(1000, jnp.float32)}
    distance, size = squared_distance(params, prior)
    assert size == 1000
    assert abs(distance / (1000 * 2.0**-46) - 1) < 1e-14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(empirical_risk=1.2), r"`empirical_risk` must be in \[0, 1\]"),
        (dict(empirical_risk=np.nan), r"`empirical_risk` must be in \[0, 1\]"),
        (dict(kl=-1e-9), "`kl` must be finite and >= 0"),
        (dict(kl=np.nan), "`kl` must be finite and >= 0"),
        (dict(kl=np.inf), "`kl` must be finite and >= 0"),
        (dict(num_examples=1), "`num_examples` must be an integer of at least 2"),
        (dict(num_examples=10.5), "`num_examples` must be an integer of at least 2"),
        (dict(delta=0.0), "`delta` must be strictly between 0 and 1"),
        (dict(form="maurer"), "`form` must be one of 'kl', 'quadratic', 'mcall"),
        (dict(delta=1.0), "`delta` must be strictly between 0 and 1"),
        (dict(kl="1"), "`kl` must be finite and >= 0"),
        (dict(empirical_risk=np.ones(2)), r"`empirical_risk` .* shape \(2,\)"),
        (dict(delta=None), "`delta` must be strictly between 0 and 1"),
        (dict(delta=np.nan), "`delta` must be strictly between 0 and 1"),
    ],
)
def test_pac_bayes_refuses(user_land, changes, message):
    arguments = dict(empirical_risk=0.1, kl=1.0, num_examples=10, delta=0.05) | changes
    risk, kl = arguments.pop("empirical_risk"), arguments.pop("kl")
    with pytest.raises(ValueError, match=message):
        pac_bayes(risk, kl, **arguments)
