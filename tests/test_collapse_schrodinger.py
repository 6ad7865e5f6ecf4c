"""The Schrodinger gap: exact cases, a dense operator, Kramers' law far below eps."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import schrodinger_gap


def double_well(x):
    return (x**2 - 1) ** 2 / 4


def test_a_parabola_has_its_curvature_for_any_rate():
    for rate in (0.01, 0.3):
        end = 12 * np.sqrt(rate / 6)  # twelve stationary standard deviations
        found = schrodinger_gap(
            lambda x: 1.5 * x**2, learning_rate=rate, interval=(-end, end)
        )
        np.testing.assert_allclose(found.gap, 3, rtol=1e-7)
        assert found.converged


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_matches_the_dense_operator(rate):
    # The Schrodinger form on a fine grid, not the flux form of the module.
    x, h = np.linspace(-3, 3, 801, retstep=True)
    slope, curvature = x * (x**2 - 1), 3 * x**2 - 1
    well = slope**2 / rate**2 - curvature / rate
    dense = np.diag(2 / h**2 + well)
    dense -= (np.eye(801, k=1) + np.eye(801, k=-1)) / h**2
    values = rate / 2 * np.linalg.eigvalsh(dense)[:2]
    found = schrodinger_gap(double_well, learning_rate=rate, interval=(-3, 3))
    np.testing.assert_allclose(found.gap, values[1] - values[0], rtol=5e-4)
    assert found.edge_mass < 1e-12


def test_published_value_and_slope():
    found = schrodinger_gap(double_well, learning_rate=0.05, interval=(-2.5, 2.5))
    np.testing.assert_allclose(found.gap, 1.9589e-5, atol=5e-10)
    finer = schrodinger_gap(
        double_well, learning_rate=0.05, interval=(-2.5, 2.5), num_points=4001
    )
    np.testing.assert_allclose(found.gap, finer.gap, rtol=1e-9)
    assert found.discretization_error > abs(found.gap - finer.gap)
    other = schrodinger_gap(double_well, learning_rate=0.04, interval=(-2.5, 2.5))
    slope = np.log(other.gap / found.gap) / (1 / 0.04 - 1 / 0.05)
    assert -0.5 < slope < -0.49  # -2 H = -1/2 in the limit


def test_kramers_law_far_below_rounding():
    # sqrt(f''(1) |f''(0)|) / pi exp(-2 H / s), with a correction of first order in s.
    ratios = []
    for rate in (0.005, 0.0025):
        found = schrodinger_gap(
            double_well, learning_rate=rate, interval=(-1.6, 1.6), num_points=8001
        )
        assert found.converged
        ratios.append(found.gap * np.pi / np.sqrt(2) / np.exp(-0.5 / rate))
    assert found.gap < 1e-80
    np.testing.assert_allclose(ratios, 1, atol=0.01)
    np.testing.assert_allclose(2 * ratios[1] - ratios[0], 1, atol=1e-4)


def test_jax_and_numpy_potentials_agree_and_offsets_are_free():
    functions = (
        double_well,
        lambda x: (jnp.square(jnp.asarray(x)) - 1) ** 2 / 4,
        lambda x: double_well(x) + 1e3,
    )
    gaps = [
        schrodinger_gap(f, learning_rate=0.1, interval=(-2.5, 2.5)).gap
        for f in functions
    ]
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)


def test_what_cannot_be_trusted_shows():
    broken = schrodinger_gap(
        lambda x: np.where(x > 1, np.nan, x), learning_rate=0.1, interval=(-2, 2)
    )
    assert np.isnan(broken.gap)
    assert not broken.converged
    found = schrodinger_gap(double_well, learning_rate=0.1, interval=(-2.5, 1.0))
    assert found.edge_mass > 0.01
    with np.errstate(over="ignore"):
        steep = schrodinger_gap(
            lambda x: 1e10 * x**4, learning_rate=0.1, interval=(-3, 3), num_points=201
        )
    assert np.isfinite(steep.gap) or not steep.converged


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.0}, r"`learning_rate` must be a positive"),
        ({"num_points": 100}, r"`num_points` must be odd"),
        ({"num_points": 3}, r"`num_points` must be an integer of at least 9"),
        ({"interval": (1.0, 1.0)}, r"`interval` must be two finite numbers in order"),
        ({"interval": None}, r"`interval` must be two numbers, but was None"),
        ({"interval": ("a", "b")}, r"`interval` must be two numbers"),
        ({"potential": None}, r"`potential` must be a function"),
        ({"potential": lambda x: x + 1j}, r"`potential` must return real.*complex"),
        ({"potential": np.sum}, r"`potential` must return one value for each point"),
    ],
)
def test_bad_input_names_the_fix(changed, message, user_land):
    arguments = {
        "potential": double_well,
        "learning_rate": 0.1,
        "interval": (-2.0, 2.0),
        **changed,
    }
    with pytest.raises(ValueError, match=message):
        schrodinger_gap(arguments.pop("potential"), **arguments)
