"""The maximal inequality over a set of predictors: coverage, mutations, bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.bounds import finite_set
from jaxtheory.bounds._trajectory_finite_set import finite_set_gap

DELTA = 0.05


def test_is_the_mean_loss_and_the_inequality():
    rng = np.random.default_rng(0)
    losses = rng.uniform(0, 3, size=(40, 60))
    mean, root = losses[-1].mean(), np.sqrt(np.log(40) / 120)
    expected = finite_set(losses, loss_bound=3.0)
    np.testing.assert_allclose(expected.complexity, 3 * root, rtol=1e-14)
    np.testing.assert_allclose(expected.value, mean + 3 * root, rtol=1e-14)
    assert expected.delta is None
    likely = finite_set(losses, loss_bound=3.0, iterates="fixed", delta=DELTA)
    root = np.sqrt(np.log(40 / DELTA) / 120)
    np.testing.assert_allclose(likely.complexity, 3 * root, rtol=1e-14)
    assert likely.certificate
    # The value of the reference: T = 5,000 iterates, n = 50,000.
    assert round(finite_set_gap(5000, 50_000, 1.0, None), 4) == 0.0092


def test_certificate_only_for_a_fixed_set_with_a_probability():
    losses = np.full((3, 10), 0.5)
    certified = {
        (iterates, delta): finite_set(
            losses, loss_bound=1.0, iterates=iterates, delta=delta
        ).certificate
        for iterates in ("fixed", "data_dependent")
        for delta in (None, DELTA)
    }
    assert [key for key, value in certified.items() if value] == [("fixed", DELTA)]
    said = finite_set(losses, loss_bound=1.0).assumptions
    assert any("violated: " in text and "information term" in text for text in said)


def test_a_random_subset_of_the_examples_estimates():
    losses = np.full((3, 10), 0.5)
    shared: Any = dict(loss_bound=1.0, iterates="fixed", delta=DELTA)
    some = finite_set(losses, num_examples=40, **shared)
    whole = finite_set(losses, num_examples=10, **shared)
    assert some.complexity == pytest.approx(whole.complexity / 2)
    assert whole == finite_set(losses, **shared)
    assert (some.certificate, whole.certificate) == (False, True)
    with pytest.raises(ValueError, match="`num_examples` must be at least the 10"):
        finite_set(losses, num_examples=9, **shared)


def test_vacuous_is_measured_by_the_largest_loss():
    losses = np.full((3, 200), 1.5)
    assert not finite_set(losses, loss_bound=2.0).vacuous
    assert finite_set(losses, loss_bound=1.5).vacuous


def coin_errors(num_points, n, repetitions, seed):
    """Error counts of fixed predictors whose risk is 1/2, ``[repetitions, r]``."""
    rng = np.random.default_rng(seed)
    return rng.binomial(n, 0.5, size=(repetitions, num_points))


def failure_rate(risks, *, num_points, n, delta):
    """How often the bound of these empirical risks lies below 1/2."""
    return np.mean(risks + finite_set_gap(num_points, n, 1.0, delta) < 0.5)


def test_fails_no_more_often_than_it_says():
    # The learner returns the predictor of the fewest training errors.
    best = coin_errors(200, 50, 1000, 0).min(axis=1) / 50
    assert failure_rate(best, num_points=200, n=50, delta=DELTA) <= DELTA
    # Without the union.
    assert failure_rate(best, num_points=1, n=50, delta=DELTA) > 10 * DELTA


def test_confidence_must_be_paid():
    best = coin_errors(2, 400, 4000, 1).min(axis=1) / 400
    assert failure_rate(best, num_points=2, n=400, delta=DELTA) <= DELTA
    assert failure_rate(best, num_points=2, n=400, delta=None) > 3 * DELTA


@pytest.mark.parametrize("num_points", [1, 2, 30, 1000])
def test_bounds_the_expected_largest_gap(num_points):
    best = coin_errors(num_points, 100, 2000, 2).min(axis=1) / 100
    gaps, error = 0.5 - best, np.std(best) / np.sqrt(len(best))
    bound = finite_set_gap(num_points, 100, 1.0, None)
    assert gaps.mean() - 4 * error < bound
    # Tight to a factor of two for many points; a quarter of it would be violated.
    assert num_points == 1 or gaps.mean() > bound / 3


def test_trained_iterates_violate_it():
    # A learner that memorises: the risk is 1/2, its training error 0, one iterate.
    losses = np.zeros((1, 1000))
    bound = finite_set(losses, loss_bound=1.0, delta=DELTA)
    assert bound.value < 0.5
    assert not bound.certificate


def test_grows_with_the_set_and_shrinks_with_the_examples():
    gaps = [finite_set_gap(r, 100, 1.0, DELTA) for r in (1, 10, 100)]
    assert gaps == sorted(gaps)
    assert finite_set_gap(10, 400, 1.0, DELTA) == finite_set_gap(10, 100, 0.5, DELTA)


def test_takes_losses_of_any_make():
    single = np.full((4, 5), 0.1, np.float32)
    for losses in (single, jnp.asarray(single), jnp.asarray(single, jnp.bfloat16)):
        # In single precision 0.1 is above 0.1; that is rounding.
        assert finite_set(losses, loss_bound=0.1).empirical_risk <= 0.1
    errors = np.array([[0, 1, 1], [0, 0, 1]])
    assert finite_set(errors, loss_bound=1.0).empirical_risk == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "shape", [(0, 5), (3, 0), (3, 1), (5,), (2, 3, 4), ()], ids=str
)
def test_shapes_are_checked(user_land, shape):
    with pytest.raises(ValueError, match="`losses` must be the losses of at least 2"):
        finite_set(np.zeros(shape), loss_bound=1.0)


@pytest.mark.parametrize("value", [1.1, -1e-9, np.nan, np.inf])
def test_losses_outside_the_range_are_refused(user_land, value):
    losses = np.full((3, 4), 0.5)
    losses[1, 2] = value
    with pytest.raises(ValueError, match="`losses` must lie between 0 and"):
        finite_set(losses, loss_bound=1.0)


@pytest.mark.parametrize("loss_bound", [0.0, -1.0, np.inf, np.nan, "1", None])
def test_the_largest_loss_must_be_a_number(user_land, loss_bound):
    with pytest.raises(ValueError, match="`loss_bound` must be positive and finite"):
        finite_set(np.zeros((3, 4)), loss_bound=loss_bound)


@pytest.mark.parametrize("delta", [0.0, 1.0, np.nan, -0.1])
def test_delta_must_be_a_probability(user_land, delta):
    with pytest.raises(ValueError, match="`delta` must be strictly between 0 and 1"):
        finite_set(np.zeros((3, 4)), loss_bound=1.0, delta=delta)


def test_other_bad_input(user_land):
    with pytest.raises(ValueError, match="`iterates` must be"):
        finite_set(np.zeros((3, 4)), loss_bound=1.0, iterates="both")  # pyright: ignore
    with pytest.raises(ValueError, match="`losses` must be real"):
        finite_set(np.zeros((3, 4), complex), loss_bound=1.0)
    with pytest.raises(ValueError, match="`losses` must be a concrete value"):
        jax.jit(lambda a: finite_set(a, loss_bound=1.0).value)(jnp.zeros((3, 4)))
