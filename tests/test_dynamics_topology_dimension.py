"""Persistent homology dimension against a table, closed forms and its conditions."""

import jax
import numpy as np
import pytest

from jaxtheory.dynamics import topology


def new_key(seed=0):
    return jax.random.key(seed)


def cloud(num, dim, seed=0):
    """Uniform points in the unit cube, in the first `dim` of three coordinates."""
    points = np.zeros((num, 3), np.float32)
    points[:, :dim] = np.random.default_rng(seed).uniform(size=(num, dim))
    return points


def measured(points, **options):
    distances = topology.pairwise_distances(points)
    return topology.persistent_homology_dimension(distances, key=new_key(), **options)


@pytest.mark.parametrize(("dim", "expected"), [(1, 1.007), (2, 1.947), (3, 2.852)])
def test_dimension_of_a_cube(dim, expected):
    got = measured(cloud(1000, dim))
    assert not got.too_few
    assert got.num_points == 1000
    # Subsets overlap: the standard error is .6 of the deviation over clouds (60 seeds),
    # and the expected number is one cloud's too.
    spread = np.sqrt(2) * float(got.standard_error) / 0.6
    assert 0 < spread < 0.05 * dim
    assert abs(float(got.value) - expected) < 4 * spread


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


def test_bad_options_of_the_dimension(user_land):
    distances = np.ones((60, 60), "f4")
    with pytest.raises(ValueError, match="`alpha` must be positive"):
        topology.persistent_homology_dimension(distances, key=new_key(), alpha=-1.0)
    with pytest.raises(ValueError, match="`distances` must be a square"):
        topology.persistent_homology_dimension(distances[:1], key=new_key())
    for sizes in ([10, 61], [10], [10, 10]):
        with pytest.raises(ValueError, match="`sizes` must hold two different"):
            topology.ph_dimension_penalty(distances, key=new_key(), sizes=sizes)
