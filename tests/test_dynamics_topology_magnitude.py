"""Magnitude against closed forms, in double precision without JAX having it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxtheory.dynamics import topology

LINE = np.ones((2, 2), np.float32)


def line(num, seed=0):
    """Sorted points on a line, and their distances in double precision."""
    points = np.sort(np.random.default_rng(seed).uniform(size=num))
    return points, np.abs(np.subtract.outer(points, points))


def test_equidistant_points():
    scales = np.array([0.01, 1.0, 30.0])
    got = topology.magnitude(2 * (1 - np.eye(40)), scales=scales)
    exact = 40 / (1 + 39 * np.exp(-2 * scales))
    np.testing.assert_allclose(got.magnitude, exact, rtol=1e-12)
    np.testing.assert_allclose(got.positive_magnitude, exact, rtol=1e-12)
    np.testing.assert_array_equal(got.saturated, [False, False, True])
    assert got.num_points == 40
    assert (got.share_negative == 0).all()


def test_points_on_a_line_and_the_condition_that_is_reported():
    points, distances = line(60)
    scales = [0.1, 3.0, 1000.0]
    got = topology.magnitude(distances, scales=scales)
    for i, scale in enumerate(scales):
        exact = 1 + np.sum(np.tanh(scale * np.diff(points) / 2))
        assert abs(got.magnitude[i] - exact) < 1e-12
        condition = np.linalg.cond(np.exp(-scale * distances), 1)
        assert 1 / 3 < got.condition_number[i] / condition <= 1 + 1e-6
    assert got.magnitude.dtype == np.float64
    assert (got.residual < 1e-12).all()


def test_single_precision_distances_are_solved_in_double():
    _, distances = line(60)
    single = jnp.asarray(distances, jnp.float32)
    got = topology.magnitude(single, scales=[0.1])
    # The condition number is above 1 / eps of single precision times ten.
    assert got.condition_number[0] > 1e6
    stored = np.asarray(single, np.float64)
    weights = np.linalg.solve(np.exp(-0.1 * stored), np.ones(60))
    np.testing.assert_allclose(got.magnitude[0], weights.sum(), rtol=1e-9)
    # Sums of weights of both signs: condition times eps of double.
    positive = weights[weights > 0].sum()
    np.testing.assert_allclose(got.positive_magnitude[0], positive, rtol=1e-6)
    assert got.share_negative[0] == np.mean(weights < 0)
    assert not jax.config.read("jax_enable_x64")


def test_brownian_cloud_saturates_at_large_scales_and_cancels_at_small_ones():
    path = np.cumsum(np.random.default_rng(0).normal(size=(400, 100)), axis=0)
    # From above one step per unit to far below, and the published sqrt(n), n = 10,000.
    scales = [100.0, 1.0, 0.1, 1e-4]
    got = topology.magnitude(cdist(path, path), scales=scales)
    np.testing.assert_array_equal(got.saturated, [True, True, False, False])
    assert abs(got.positive_magnitude[0] - 400) < 1e-9
    assert got.condition_number[3] > 1e5
    assert got.share_negative[3] > 0.4
    assert got.positive_magnitude[3] > 3 * got.magnitude[3]


def test_coincident_points_count_once():
    points = np.random.default_rng(1).normal(size=(20, 3))
    twice = np.concatenate([points, points[5:8]])
    alone = topology.magnitude(cdist(points, points), scales=[1.0])
    got = topology.magnitude(cdist(twice, twice), scales=[1.0])
    np.testing.assert_allclose(got.magnitude, alone.magnitude, rtol=1e-12)
    assert (got.num_points, got.num_coincident) == (23, 3)
    together = topology.magnitude(np.zeros((4, 4)), scales=[1.0])
    assert together.magnitude[0] == 1


def test_metric_that_makes_no_positive_definite_matrix():
    # The path metric of the complete bipartite graph of 3 and 2 points: at distance 1
    # across and 2 within. At s = log sqrt(2) Z is singular (Leinster, example 2.2.8).
    side = np.arange(5) < 3
    distances = np.where(np.not_equal.outer(side, side), 1.0, 2.0)
    np.fill_diagonal(distances, 0)
    scale = 0.2
    kernel = np.exp(-scale * distances)
    assert np.linalg.eigvalsh(kernel)[0] < 0
    got = topology.magnitude(distances, scales=[scale])
    np.testing.assert_allclose(got.magnitude[0], np.linalg.inv(kernel).sum(), rtol=1e-9)


def test_what_double_precision_cannot_solve_is_said():
    # exp(-s d) is 1 to the last digit.
    _, distances = line(10)
    got = topology.magnitude(distances, scales=[1e-18])
    assert np.isinf(got.condition_number[0])
    assert np.isnan(got.magnitude[0])
    assert not got.saturated[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_what_is_no_distance_is_counted_and_nothing_is_claimed(value):
    _, distances = line(10)
    distances[2, 3] = distances[3, 2] = value
    got = topology.magnitude(distances, scales=[1.0, 2.0])
    assert got.num_invalid == 2
    assert np.isnan([got.magnitude, got.positive_magnitude, got.residual]).all()


def test_asymmetric_matrix_is_no_distance():
    _, distances = line(10)
    distances[2, 3] *= 1.1
    assert topology.magnitude(distances, scales=[1.0]).num_invalid == 2
    _, distances = line(10)
    distances[4, 4] = 0.5
    assert topology.magnitude(distances, scales=[1.0]).num_invalid == 1


@pytest.mark.parametrize(
    ("distances", "scales", "match"),
    [
        (np.ones((2, 3)), [1.0], "`distances` must be a square"),
        (np.ones((1, 1)), [1.0], "two points"),
        (np.ones((2, 2), int), [1.0], "`distances` must be floating"),
        (np.ones((2, 2)), 1.0, r"`scales` must be a non-empty vector.*\[scale\]"),
        (np.ones((2, 2)), [0.0], "`scales` must be positive"),
        (np.ones((2, 2)), [np.inf], "`scales` must be positive"),
    ],
)
def test_bad_distances_and_scales(user_land, distances, scales, match):
    with pytest.raises(ValueError, match=match):
        topology.magnitude(distances, scales=scales)


def test_traced_distances_are_refused(user_land):
    with pytest.raises(ValueError, match="call it outside"):
        jax.jit(lambda d: topology.magnitude(d, scales=[1.0]).magnitude)(LINE)
