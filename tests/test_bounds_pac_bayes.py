from decimal import Decimal, localcontext
from math import comb

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from jaxtheory.bounds import pac_bayes_kl
from jaxtheory.bounds._gaussian_kl import gaussian_kl, squared_distance

EPS = np.finfo(float).eps


def test_pac_bayes_kl_known_value():
    bound = pac_bayes_kl(0.02, 5000.0, num_examples=60_000, delta=0.05)
    assert abs(bound.value - 0.134340) < 5e-7
    assert (bound.empirical_risk, bound.complexity, bound.delta) == (0.02, 5000.0, 0.05)
    assert not bound.vacuous
    assert not bound.certificate
    assert sum("taken on trust:" in text for text in bound.assumptions) == 2
    assert pac_bayes_kl(0.5, 1e9, num_examples=100, delta=0.05).vacuous


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
        (dict(delta=1.0), "`delta` must be strictly between 0 and 1"),
        (dict(kl="1"), "`kl` must be finite and >= 0"),
        (dict(empirical_risk=np.ones(2)), r"`empirical_risk` .* shape \(2,\)"),
        (dict(delta=None), "`delta` must be strictly between 0 and 1"),
        (dict(delta=np.nan), "`delta` must be strictly between 0 and 1"),
    ],
)
def test_pac_bayes_kl_refuses(user_land, changes, message):
    arguments = dict(empirical_risk=0.1, kl=1.0, num_examples=10, delta=0.05) | changes
    risk, kl = arguments.pop("empirical_risk"), arguments.pop("kl")
    with pytest.raises(ValueError, match=message):
        pac_bayes_kl(risk, kl, **arguments)
