"""Persistent homology dimension against a table, closed forms and its conditions."""

import jax
import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.sparse.csgraph import minimum_spanning_tree as scipy_tree
from scipy.spatial.distance import cdist

from jaxtheory.dynamics import topology


def new_key(seed=0):
    return jax.random.key(seed)


def cloud(num, dim, seed=0):
    """Uniform points in the unit cube, in the first `dim` of three coordinates."""
    points = np.zeros((num, 3), np.float32)
    points[:, :dim] = np.random.default_rng(seed).uniform(size=(num, dim))
    return points


def e_1(points):
    """By SciPy, for which a zero is an absent edge."""
    return scipy_tree(cdist(points, points)).sum()


def measured(points, **options):
    distances = topology.pairwise_distances(points)
    return topology.persistent_homology_dimension(distances, key=new_key(), **options)


def fractal(maps, ratio, num=1000, seed=0):
    """Points of the set that is made of shrunken copies of itself, at `maps`."""
    choice = np.random.default_rng(seed).integers(len(maps), size=(num, 16))
    return np.einsum("nld,l->nd", np.array(maps)[choice], ratio ** np.arange(1.0, 17))


def levy(alpha, num=1000, dim=100, seed=0):
    """A walk with isotropic stable steps sqrt(2 phi) G, phi positive (alpha/2)-stable.

    Kanter's formula: E exp(-s phi) = exp(-s^(alpha/2)).
    """
    rng = np.random.default_rng(seed)
    a, angle, mean = alpha / 2, np.pi * rng.uniform(size=num), rng.exponential(size=num)
    ratio = np.sin(a * angle) / np.sin(angle) ** (1 / a)
    phi = ratio * (np.sin((1 - a) * angle) / mean) ** ((1 - a) / a)
    return np.cumsum(np.sqrt(2 * phi)[:, None] * rng.normal(size=(num, dim)), axis=0)


def cube(dim):
    return np.random.default_rng(0).uniform(size=(1000, dim))


def sphere():
    points = np.random.default_rng(0).normal(size=(1000, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


SPONGE = [
    (a, b, c) for a, b, c in np.ndindex(3, 3, 3) if (a == 1) + (b == 1) + (c == 1) < 2
]
TRIANGLE = [(0, 0), (1, 0), (0.5, np.sqrt(0.75))]
DUST = [(0, 0), (0, 2), (2, 0), (2, 2)]


@pytest.mark.parametrize(
    ("points", "expected", "spread"),
    [
        (cube(1), 1.007, 0.002),
        (cube(2), 1.947, 0.015),
        (cube(3), 2.852, 0.069),
        (cube(5), 4.52, 0.093),
        (cube(10), 8.64, 0.258),
        (cube(20), 15.6, 0.416),
        (sphere(), 2.03, 0.020),
        (fractal(TRIANGLE, 1 / 2), 1.577, 0.023),
        (fractal(DUST, 1 / 3), 1.378, 0.010),
        (fractal(SPONGE, 1 / 3), 2.58, 0.033),
        (levy(1.2), 1.36, 0.097),
        (levy(1.5), 1.72, 0.087),
        (levy(1.8), 2.04, 0.057),
    ],
)
def test_dimension_of_known_sets(points, expected, spread):
    # The expected number is one set's too; the spread is over ten.
    got = measured(points.astype(np.float32))
    assert abs(float(got.value) - expected) < 4 * np.sqrt(2) * spread
    assert 0 < float(got.standard_error) < 1.1 * spread
    assert got.alpha_too_large == (expected < 1.1)
    assert got.num_points == 1000
    assert not got.too_few


@pytest.mark.parametrize("lag", [None, 0.99])
def test_slow_walks_have_dimension_two_and_a_quarter(lag):
    # Brownian motion and an Ornstein-Uhlenbeck process in a hundred coordinates: what
    # a path's number must be held against. A fast process is no such thing.
    steps = np.random.default_rng(0).normal(size=(1000, 100))
    path = np.cumsum(steps, axis=0)
    if lag:
        path = lfilter([1], [1, -lag], steps, axis=0)
    got = measured(np.asarray(path, np.float32))
    assert abs(float(got.value) - 2.25) < 0.1
    assert float(measured(steps.astype(np.float32)).value) > 20


def test_tree_of_the_uniform_square():
    # .654 to .665 for 500 to 4,000 points; deviation .0061 over 40 clouds of 1,000.
    distances = topology.pairwise_distances(cloud(1000, 2))
    lengths = topology.minimum_spanning_tree(distances).lengths
    ratio = float(topology.e_alpha(lengths)) / np.sqrt(1000)
    assert 0.654 - 3 * 0.0061 < ratio < 0.665 + 3 * 0.0061


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [(1.0, 0.99, 1.01), (0.25, 0.63, 0.69)]
)
def test_alpha_above_the_dimension_returns_alpha(alpha, low, high):
    # Cantor dust on a line has dimension log 2 / log 3 = .631, seen at alpha below it.
    digits = 2 * np.random.default_rng(7).integers(0, 2, size=(1000, 14))
    points = np.zeros((1000, 3), np.float32)
    points[:, 0] = digits @ 3.0 ** -np.arange(1, 15)
    got = measured(points, alpha=alpha)
    assert low < float(got.value) < high
    assert got.alpha_too_large == (alpha == 1)


def test_too_few_points_give_no_number():
    got = measured(cloud(499, 2))
    assert got.too_few
    assert np.isnan([got.value, got.standard_error, got.slope]).all()


def test_a_slope_of_one_is_an_infinite_dimension(x64):
    # Equidistant points: E_1(n) = (n - 1) sqrt 2, steeper than n.
    points = np.eye(500)
    got = measured(points, num_sizes=2, num_repeats=2)
    expected = np.log(499 / 99) / np.log(500 / 100)
    np.testing.assert_allclose(got.slope, expected, rtol=1e-13)
    assert np.isinf(got.value)


def test_dimension_of_points_with_duplicates_and_of_broken_points():
    points = cloud(1000, 2)
    points[1::2] = points[::2]
    got = measured(points)
    # A subset of n has m = 500 (1 - (1 - n/1000)^2) places, E_1 ~ sqrt m: about
    # log(500 / 180) / log(1000 / 200) / 2 = .317 of slope instead of .5.
    assert abs(float(got.slope) - 0.317) < 0.03
    points[3] = np.nan
    points[8, 1] = np.inf
    broken = measured(points)
    assert int(broken.num_invalid) > 1000
    assert np.isnan([broken.value, broken.standard_error, broken.slope]).all()
    equal = measured(np.ones_like(points))
    assert np.isnan(equal.value)


# Penalty


def test_penalty_is_the_slope_over_one_subset_of_each_size(x64):
    points = np.random.default_rng(0).normal(size=(100, 5))
    distances = topology.pairwise_distances(points)
    # Of all points there is one subset, so that two sizes leave one to be drawn.
    got = topology.ph_dimension_penalty(distances, key=new_key(), sizes=(99, 100))
    whole = np.log(e_1(points))
    without = [np.log(e_1(np.delete(points, i, axis=0))) for i in range(100)]
    exact = 1 / (1 - (whole - np.array(without)) / np.log(100 / 99))
    assert np.min(np.abs(exact - float(got))) < 1e-9
    default = topology.ph_dimension_penalty(distances, key=new_key())
    assert 2 < float(default) < 12


def test_gradient_of_the_penalty_in_the_newest_iterate(x64):
    points = np.cumsum(np.random.default_rng(1).normal(size=(100, 5)), axis=0)
    others, newest = points[:-1], points[-1]
    known = topology.pairwise_distances(others)

    def penalty(newest):
        distances = topology.append_point(known, others, newest)
        return topology.ph_dimension_penalty(distances, key=new_key(3))

    value, gradient = jax.jit(jax.value_and_grad(penalty))(newest)
    assert np.isfinite(value)
    assert np.linalg.norm(gradient) > 1e-4
    direction = np.random.default_rng(2).normal(size=5)
    ahead, back = (penalty(newest + h * direction) for h in (1e-5, -1e-5))
    slope = (float(ahead) - float(back)) / 2e-5
    # Central differences: h^2 of truncation, eps / h of rounding.
    np.testing.assert_allclose(np.dot(gradient, direction), slope, rtol=1e-7, atol=1e-9)


def test_bad_options_of_the_dimension(user_land):
    distances = np.ones((60, 60), "f4")
    with pytest.raises(ValueError, match="`alpha` must be positive"):
        topology.persistent_homology_dimension(distances, key=new_key(), alpha=-1.0)
    with pytest.raises(ValueError, match="`distances` must be a square"):
        topology.persistent_homology_dimension(distances[:1], key=new_key())
    for sizes in ([10, 61], [10], [10, 10]):
        with pytest.raises(ValueError, match="`sizes` must hold two different"):
            topology.ph_dimension_penalty(distances, key=new_key(), sizes=sizes)
