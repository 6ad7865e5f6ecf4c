import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from jaxtheory.bounds import holdout


@pytest.mark.parametrize(
    ("errors", "n", "delta"),
    [(3, 100, 0.05), (1, 2, 0.5), (57, 1000, 1e-3), (400, 10_000, 1e-9)],
)
def test_solves_the_binomial_tail(errors, n, delta):
    excess = lambda q: binom.cdf(errors, n, q) - delta
    root = brentq(excess, errors / n, 1.0, xtol=1e-15)
    bound = holdout(errors, n, delta=delta)
    # 1e-11 covers the root finder and the tail at delta = 1e-9.
    assert abs(bound.value - root) < 1e-11
    assert bound.empirical_risk == errors / n
    assert (bound.complexity, bound.delta) == (0.0, delta)
    assert bound.certificate
    assert not bound.vacuous
    assert sum("setting:" in text for text in bound.assumptions) == 2


def test_edges_are_exact():
    for delta in (0.05, 1e-12):
        exact = -np.expm1(np.log(delta) / 30)
        assert exact <= holdout(0, 30, delta=delta).value <= exact * (1 + 2e-12)
    everything = holdout(7, 7, delta=0.05)
    assert everything.value == 1.0
    assert everything.vacuous
    assert holdout(0, 1, delta=0.05).value == pytest.approx(0.95, rel=1e-11)


def test_takes_integers_of_any_make():
    counts = holdout(np.int64(3), np.asarray(100), delta=0.05)
    assert counts == holdout(3, 100, delta=0.05)


def test_fails_as_often_as_it_says():
    n, delta = 1000, 0.05
    outcomes = np.arange(n + 1)
    limits = np.array([holdout(int(k), n, delta=delta).value for k in outcomes])
    for truth in (0.02, 0.1, 0.3, 0.5, 0.9):
        # All n + 1 outcomes at once: the exact probability, not a simulation of it.
        failure = binom.pmf(outcomes, n, truth)[limits < truth].sum()
        assert delta / 3 < failure <= delta
        without_delta = binom.pmf(outcomes, n, truth)[outcomes / n < truth].sum()
        assert without_delta > delta


@pytest.mark.parametrize(
    ("errors", "n", "message"),
    [
        (11, 10, "`num_errors` must be at most `num_examples` = 10"),
        (-1, 10, "`num_errors` must be an integer of at least 0"),
        (1.5, 10, "`num_errors` must be an integer"),
        (True, 10, "`num_errors` must be an integer"),
        (0, 0, "`num_examples` must be an integer of at least 1"),
    ],
)
def test_counts_must_be_counts(user_land, errors, n, message):
    with pytest.raises(ValueError, match=message):
        holdout(errors, n, delta=0.05)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 1.5, np.nan, None, "0.1"])
def test_delta_must_be_a_probability(user_land, delta):
    with pytest.raises(ValueError, match="`delta` must be strictly between 0 and 1"):
        holdout(1, 10, delta=delta)


@pytest.mark.parametrize("kind", [np.float32, jnp.float32])
def test_delta_in_single_precision_is_used_in_double(user_land, kind):
    exact = float(np.float32(0.05))
    for errors in (0, 3):
        bound = holdout(errors, 100, delta=kind(0.05))
        assert bound == holdout(errors, 100, delta=exact)
        assert type(bound.delta) is float


def test_tracers_are_refused(user_land):
    with pytest.raises(ValueError, match="`num_errors` must be a concrete value"):
        jax.jit(lambda k: holdout(k, 10, delta=0.05).value)(1)
