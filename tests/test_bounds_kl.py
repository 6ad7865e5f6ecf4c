from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import rel_entr

from jaxtheory.bounds import kl_inverse

EPS = np.finfo(float).eps


@pytest.mark.parametrize(
    ("risk", "budget", "expected"),
    [
        (0.0, 0.1, 0.0951625820),
        (0.02, 0.05, 0.0985721677),
        (0.1, 0.01, 0.1476755393),
    ],
)
def test_known_values(risk, budget, expected):
    assert abs(kl_inverse(risk, budget) - expected) < 5e-11


def test_edges_are_exact():
    for budget in (1e-300, 1e-9, 0.3, 5.0, 30.0):
        exact = -np.expm1(-budget)
        assert exact <= kl_inverse(0.0, budget) <= min(1.0, exact * (1 + 50 * EPS))
    for risk in (0.0, 1e-200, 0.3, 1.0):
        assert kl_inverse(risk, 0.0) == risk
        assert kl_inverse(risk, np.inf) == 1.0
    assert kl_inverse(1.0, 0.2) == 1.0
    assert kl_inverse(0.3, 1e300) == 1.0


def test_agrees_with_a_root_finder_on_the_textbook_form():
    def excess(q, risk, budget):
        return rel_entr(risk, q) + rel_entr(1 - risk, 1 - q) - budget

    for risk in (0.0, 0.003, 0.2, 0.5, 0.9):
        for budget in (1e-4, 0.01, 0.3, 2.0):
            root = brentq(excess, risk, 1 - 1e-15, args=(risk, budget), xtol=1e-15)
            # The oracle's kl is good to a few eps, over a slope of at least sqrt(c).
            tolerance = 50 * EPS / np.sqrt(budget)
            assert abs(kl_inverse(risk, budget) - root) < tolerance


def test_is_never_below_the_exact_inverse_and_within_a_few_ulp_of_it():
    rng = np.random.default_rng(0)
    tiny = 10 ** rng.uniform(-300, 0, 60)
    near_one = 1 - 10 ** rng.uniform(-16, 0, 60)
    risks = np.concatenate([rng.random(60), tiny, near_one])
    budgets = 10 ** rng.uniform(-25, 1.5, risks.shape)
    inverses = kl_inverse(risks, budgets)
    with localcontext() as context:
        context.prec = 60
        for risk, budget, q in zip(risks, budgets, inverses, strict=True):
            assert _exact_kl(risk, q) >= Decimal(budget)
            lower = q * (1 - 24 * EPS)
            if lower > risk:
                assert _exact_kl(risk, lower) <= Decimal(budget * (1 + 1e-13))


def _exact_kl(risk, q):
    """Binary relative entropy in decimal arithmetic; infinite at q = 1."""
    r, q = Decimal(float(risk)), Decimal(float(q))
    if q >= 1:
        return Decimal("Infinity")
    left = r * (r / q).ln() if r > 0 else Decimal(0)
    right = (1 - r) * ((1 - r) / (1 - q)).ln() if r < 1 else Decimal(0)
    return left + right


def test_never_decreases():
    budgets = np.sort(10 ** np.random.default_rng(1).uniform(-20, 2, 500))
    for risk in (0.0, 0.1, 0.9):
        assert np.all(np.diff(kl_inverse(risk, budgets)) >= 0)
    risks = np.linspace(0, 1, 500)
    for budget in (1e-12, 0.1, 3.0):
        inverses = np.asarray(kl_inverse(risks, budget))
        assert np.all(inverses >= risks)
        assert np.all(np.diff(inverses) >= -8 * EPS)


def test_is_float64_on_the_host_whatever_jax_uses():
    assert type(kl_inverse(0.1, 0.2)) is float
    assert type(kl_inverse(jnp.float32(0.5), 0.2)) is float
    array = kl_inverse(jnp.array([[0.25], [0.5]]), np.array([0.1, 0.2, 0.3]))
    assert isinstance(array, np.ndarray)
    assert array.shape == (2, 3)
    assert array.dtype == np.float64
    assert array[1, 2] == kl_inverse(0.5, 0.3)
    with jax.enable_x64(True):
        assert kl_inverse(jnp.float64(0.1), 0.2) == kl_inverse(0.1, 0.2)


@pytest.mark.parametrize("risk", [-1e-9, 1.1, np.nan, np.array([0.1, np.nan])])
def test_risk_must_be_a_risk(user_land, risk):
    with pytest.raises(ValueError, match=r"`risk` must lie in \[0, 1\]"):
        kl_inverse(risk, 0.1)


@pytest.mark.parametrize("budget", [-1e-9, np.nan, -np.inf])
def test_budget_must_not_be_negative(user_land, budget):
    with pytest.raises(ValueError, match="`budget` must be >= 0"):
        kl_inverse(0.1, budget)


def test_tracers_are_refused(user_land):
    with pytest.raises(ValueError, match="`risk` must be a concrete value"):
        jax.jit(lambda r: kl_inverse(r, 0.1))(0.2)
    with pytest.raises(ValueError, match="`budget` must be a concrete value"):
        jax.jit(lambda c: kl_inverse(0.2, c))(0.1)
