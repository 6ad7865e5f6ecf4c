"""Diagonal networks against gradient flow integrated in time, and both limits."""

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from jaxtheory import kernels


def problem():
    """Check H: d = 40, n = 15, three coordinates matter."""
    x = np.random.default_rng(0).standard_normal((15, 40))
    beta = np.zeros(40)
    beta[:3] = [1, -0.8, 0.6]
    return x, x @ beta


def least_l1(x, y):
    twice = np.hstack([x, -x])
    found = scipy.optimize.linprog(np.ones(80), A_eq=twice, b_eq=y, bounds=(0, None))
    return found.fun


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.03])
def test_it_is_where_gradient_flow_ends(scale):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3, 6)), rng.standard_normal(3)

    def flow(_, weights):
        u, v = np.split(weights, 2)
        gradient = x.T @ (x @ (u**2 - v**2) - y)
        return np.concatenate([-2 * u * gradient, 2 * v * gradient])

    start = np.full(12, scale)
    end = scipy.integrate.solve_ivp(
        flow, (0, 300), start, method="LSODA", rtol=1e-9, atol=1e-12
    ).y[:, -1]
    expected = end[:6] ** 2 - end[6:] ** 2
    assert np.linalg.norm(x @ expected - y) < 1e-6  # the flow has arrived
    found = kernels.diagonal_network_limit(x, y, scale=scale)
    assert found.converged
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-5)
    formula = 2 * scale**2 * np.sinh(x.T @ found.dual)
    np.testing.assert_allclose(found.coefficients, formula, rtol=1e-12)


def test_from_least_squares_to_the_fewest_coordinates():
    x, y = problem()
    found = {
        scale: kernels.diagonal_network_limit(x, y, scale=scale)
        for scale in (100.0, 5.0, 1.0, 0.1, 0.01, 1e-4, 1e-8)
    }
    for limit in found.values():
        assert limit.converged
        np.testing.assert_allclose(x @ limit.coefficients, y, atol=1e-9)
    l1 = [np.sum(np.abs(limit.coefficients)) for limit in found.values()]
    l2 = [np.linalg.norm(limit.coefficients) for limit in found.values()]
    assert np.all(np.diff(l1) < 0)
    assert np.all(np.diff(l2) > 0)
    least_squares = np.linalg.lstsq(x, y, rcond=None)[0]
    # Corrections fall with scale^-4 on one side, with 1 / log(1 / scale) on the other.
    np.testing.assert_allclose(found[100.0].coefficients, least_squares, atol=1e-8)
    np.testing.assert_allclose(l2[1], np.linalg.norm(least_squares), rtol=1e-4)
    np.testing.assert_allclose(least_l1(x, y), 2.4, rtol=1e-8)
    np.testing.assert_allclose(l1[-2], 2.4, rtol=1e-3)
    np.testing.assert_allclose(l1[-1], 2.4, rtol=1e-5)


def test_units_do_not_matter():
    """In other units of the targets, the same with another scale."""
    x, y = problem()
    one = kernels.diagonal_network_limit(x, y, scale=0.1)
    other = kernels.diagonal_network_limit(x, 1e6 * y, scale=100.0)
    np.testing.assert_allclose(other.coefficients, 1e6 * one.coefficients, rtol=1e-8)


def test_what_cannot_be_interpolated_is_not_converged():
    x = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = kernels.diagonal_network_limit(x, np.array([1.0, 2.0]), scale=0.1)
    assert not found.converged
    assert found.residual > 0.1


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    x, y = problem()
    for scale in (0.0, -1, np.inf, np.ones(2)):
        with pytest.raises(ValueError, match="`scale` must be positive and finite"):
            kernels.diagonal_network_limit(x, y, scale=scale)
    with pytest.raises(ValueError, match=r"`x` must be \[n, d\] and `y` be \[n\]"):
        kernels.diagonal_network_limit(x, y[:, None], scale=1.0)
    for wrong, message in (
        (0 * y, "`y` must not be all zero"),
        (np.nan * y, "`y` must be finite"),
        (1j * y, "`y` must be an array of real numbers, but has dtype complex128"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.diagonal_network_limit(x, wrong, scale=1.0)
