"""Distances, trees, dimensions and nulls against SciPy, closed forms and a table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.csgraph import minimum_spanning_tree as scipy_tree
from scipy.spatial.distance import cdist

from jaxtheory.dynamics import topology
from jaxtheory.dynamics.topology._nulls import (
    distances_along,
    ornstein_uhlenbeck,
    sign_flipped,
)

EPS32 = float(np.finfo(np.float32).eps)


def new_key(seed=0):
    return jax.random.key(seed)


def oracle_lengths(distances):
    """Sorted edge lengths by SciPy, which takes a zero for an absent edge: shift by 1.

    The tree depends on the order of the distances only.
    """
    shifted = np.asarray(distances, np.float64) + 1
    np.fill_diagonal(shifted, 0)
    return np.sort(scipy_tree(shifted).data - 1)


def cloud(num, dim, seed=0):
    """Uniform points in the unit cube, in the first `dim` of three coordinates."""
    points = np.zeros((num, 3), np.float32)
    points[:, :dim] = np.random.default_rng(seed).uniform(size=(num, dim))
    return points


def brownian(num, dim, seed=0):
    """A random walk with standard normal steps."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(num, dim)), axis=0).astype(np.float32)


def tree_length(points):
    tree = topology.minimum_spanning_tree(topology.pairwise_distances(points))
    return float(topology.e_alpha(tree.lengths))


# Path


def test_path_length_and_displacement():
    points = brownian(50, 7)
    exact = np.linalg.norm(np.diff(points.astype(np.float64), axis=0), axis=1).sum()
    np.testing.assert_allclose(topology.path_length(points), exact, rtol=10 * EPS32)
    straight = np.linalg.norm(points[-1].astype(np.float64) - points[0])
    np.testing.assert_allclose(topology.displacement(points), straight, rtol=8 * EPS32)
    assert float(topology.path_length(points[:1])) == 0
    assert float(topology.displacement(points[:1])) == 0


# Distances


@pytest.mark.parametrize("dim", [3, 2500])
def test_distances_are_symmetric_and_right(dim):
    # 2,500 coordinates are three chunks, the last one ragged.
    points = np.random.default_rng(0).normal(size=(40, dim)).astype(np.float32)
    got = np.asarray(topology.pairwise_distances(points))
    exact = cdist(points.astype(np.float64), points.astype(np.float64))
    # Each square is rounded to eps, and the sum of positive terms to a few eps.
    np.testing.assert_allclose(got, exact, rtol=10 * EPS32)
    assert (got == got.T).all()
    assert (np.diag(got) == 0).all()


def test_distances_in_double_and_half_precision(x64):
    points = np.random.default_rng(0).normal(size=(9, 5))
    got = topology.pairwise_distances(points)
    np.testing.assert_allclose(got, cdist(points, points), rtol=1e-14, atol=0)
    half = points.astype(np.float16)
    exact = cdist(half.astype(np.float64), half.astype(np.float64))
    single = topology.pairwise_distances(half)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, rtol=10 * EPS32)


def test_late_training_steps_far_from_the_origin_are_seen():
    # Steps of 1.4e-5 |w| in single precision: a Gram matrix of w gives E_1 = 0.
    start = np.random.default_rng(1).normal(size=500)
    start /= np.linalg.norm(start)
    steps = 1.4e-5 * brownian(200, 500).astype(np.float64) / np.sqrt(500)
    points = (start + steps).astype(np.float32)
    got = tree_length(points)
    stored = oracle_lengths(cdist(points.astype(float), points.astype(float))).sum()
    np.testing.assert_allclose(got, stored, rtol=20 * EPS32)
    # Storing the weights in single precision costs this path three of its digits.
    np.testing.assert_allclose(
        got, oracle_lengths(cdist(steps, steps)).sum(), rtol=0.02
    )


def test_distances_of_nonfinite_and_equal_points():
    points = np.array([[0.0, 1.0], [0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]], "f4")
    got = np.asarray(topology.pairwise_distances(points))
    assert (got[:2, :2] == 0).all()
    assert np.isnan(got[2]).all()
    assert np.isinf(got[3, :2]).all()


# Trees


@pytest.mark.parametrize("dim", [2, 50])
def test_tree_is_that_of_scipy_and_spans(dim):
    points = np.random.default_rng(2).normal(size=(150, dim)).astype(np.float32)
    distances = np.asarray(topology.pairwise_distances(points))
    tree = topology.minimum_spanning_tree(distances)
    exact = oracle_lengths(distances)
    # The shift by one costs the oracle eps (double) of one, not of a length.
    np.testing.assert_allclose(np.sort(tree.lengths), exact, rtol=1e-12, atol=1e-15)
    edges = np.asarray(tree.edges)
    np.testing.assert_array_equal(distances[edges[:, 0], edges[:, 1]], tree.lengths)
    graph = coo_array((np.ones(149), edges.T), shape=(150, 150))
    assert connected_components(graph)[0] == 1


def test_tree_of_a_thousand_points_has_the_length_of_scipys():
    points = cloud(1000, 2)
    exact = oracle_lengths(cdist(points.astype(float), points.astype(float))).sum()
    assert abs(tree_length(points) / exact - 1) < 2e-5


def test_tree_with_ties_and_zero_distances():
    rng = np.random.default_rng(3)
    points = rng.integers(0, 3, size=(60, 2)).astype(np.float32)  # nine places
    distances = topology.pairwise_distances(points)
    tree = topology.minimum_spanning_tree(distances)
    np.testing.assert_allclose(np.sort(tree.lengths), oracle_lengths(distances))
    assert int(np.sum(np.asarray(tree.lengths) == 0)) == 60 - 9
    graph = coo_array((np.ones(59), np.asarray(tree.edges).T), shape=(60, 60))
    assert connected_components(graph)[0] == 1


def test_tree_in_double_precision_and_under_vmap(x64):
    points = np.random.default_rng(4).normal(size=(3, 30, 2))
    lengths = jax.vmap(
        lambda p: topology.minimum_spanning_tree(topology.pairwise_distances(p)).lengths
    )(points)
    assert lengths.dtype == jnp.float64
    for got, cloud_ in zip(lengths, points, strict=True):
        exact = oracle_lengths(cdist(cloud_, cloud_))
        np.testing.assert_allclose(np.sort(got), exact, rtol=1e-12)


def test_absent_edges():
    far = np.abs(np.subtract.outer([0.0, 1, 10, 12], [0.0, 1, 10, 12]))
    for absent in (np.inf, np.nan):
        broken = far.astype(np.float32)
        broken[:2, 2:] = broken[2:, :2] = absent
        tree = topology.minimum_spanning_tree(broken)
        np.testing.assert_array_equal(tree.lengths, [1, absent, 2])
        # One edge left between the two halves is found.
        broken[1, 2] = broken[2, 1] = 9
        tree = topology.minimum_spanning_tree(broken)
        np.testing.assert_array_equal(tree.edges, [[0, 1], [1, 2], [2, 3]])


def test_e_alpha_and_its_gradient(x64):
    points = np.random.default_rng(5).normal(size=(12, 2))

    @jax.jit
    def value(points):
        tree = topology.minimum_spanning_tree(topology.pairwise_distances(points))
        return topology.e_alpha(tree.lengths, alpha=2.0)

    exact = np.sum(oracle_lengths(cdist(points, points)) ** 2)
    np.testing.assert_allclose(value(points), exact, rtol=1e-12)
    gradient = jax.grad(value)(points)
    direction = np.random.default_rng(6).normal(size=points.shape)
    rise = value(points + 1e-5 * direction) - value(points - 1e-5 * direction)
    # Central differences: h^2 of truncation, eps / h of rounding.
    np.testing.assert_allclose(np.sum(gradient * direction), rise / 2e-5, rtol=1e-8)
    points[2] = points[1]  # an edge of length zero must not poison the others
    assert np.isfinite(jax.grad(value)(points)).all()


# Dimension


@pytest.mark.parametrize(("dim", "expected"), [(1, 1.007), (2, 1.947), (3, 2.852)])
def test_dimension_of_a_cube(dim, expected):
    got = topology.persistent_homology_dimension(cloud(1000, dim), key=new_key())
    assert not got.too_few
    assert got.num_points == 1000
    # Subsets overlap: the standard error is .6 of the deviation over clouds (60 seeds),
    # and the expected number is one cloud's too.
    spread = np.sqrt(2) * float(got.standard_error) / 0.6
    assert 0 < spread < 0.05 * dim
    assert abs(float(got.value) - expected) < 4 * spread


def test_tree_of_the_uniform_square():
    # .654 to .665 for 500 to 4,000 points; deviation .0061 over 40 clouds of 1,000.
    ratio = tree_length(cloud(1000, 2)) / np.sqrt(1000)
    assert 0.654 - 3 * 0.0061 < ratio < 0.665 + 3 * 0.0061


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [(1.0, 0.99, 1.01), (0.25, 0.63, 0.69)]
)
def test_alpha_above_the_dimension_returns_alpha(alpha, low, high):
    # Cantor dust on a line has dimension log 2 / log 3 = .631, seen at alpha below it.
    digits = 2 * np.random.default_rng(7).integers(0, 2, size=(1000, 14))
    points = np.zeros((1000, 3), np.float32)
    points[:, 0] = digits @ 3.0 ** -np.arange(1, 15)
    got = topology.persistent_homology_dimension(points, key=new_key(), alpha=alpha)
    assert low < float(got.value) < high


def test_too_few_points_give_no_number():
    got = topology.persistent_homology_dimension(cloud(499, 2), key=new_key())
    assert got.too_few
    assert np.isnan([got.value, got.standard_error, got.slope]).all()


def test_a_slope_of_one_is_an_infinite_dimension(x64):
    # Equidistant points: E_1(n) = (n - 1) sqrt 2, steeper than n.
    points = np.eye(500)
    got = topology.persistent_homology_dimension(
        points, key=new_key(), num_sizes=2, num_repeats=2
    )
    expected = np.log(499 / 99) / np.log(500 / 100)
    np.testing.assert_allclose(got.slope, expected, rtol=1e-13)
    assert np.isinf(got.value)


def test_dimension_of_points_with_duplicates_and_of_broken_points():
    points = cloud(1000, 2)
    points[1::2] = points[::2]
    got = topology.persistent_homology_dimension(points, key=new_key())
    # A subset of n has m = 500 (1 - (1 - n/1000)^2) places, E_1 ~ sqrt m: about
    # log(500 / 180) / log(1000 / 200) / 2 = .317 of slope instead of .5.
    assert abs(float(got.slope) - 0.317) < 0.03
    points[3] = np.nan
    points[8, 1] = np.inf
    broken = topology.persistent_homology_dimension(points, key=new_key())
    assert int(broken.num_nonfinite) == 2
    assert np.isnan([broken.value, broken.standard_error, broken.slope]).all()
    equal = topology.persistent_homology_dimension(np.ones_like(points), key=new_key())
    assert np.isnan(equal.value)


# Paths beside their nulls


def test_a_straight_path_is_its_own_tree():
    points = np.arange(600)[:, None] * np.linspace(0.1, 0.8, 8, dtype=np.float32)
    got = topology.path_topology(points.astype("f4"), key=new_key(), num_nulls=10)
    assert abs(float(got.e_1_over_path_length) - 1) < 1e-5
    assert abs(float(got.e_1) / float(topology.path_length(points)) - 1) < 1e-5
    assert abs(float(got.ph_dimension) - 1) < 0.01
    # Signs undo the drift: the walk on a line comes back to its places.
    assert float(got.null_sign_flipped.e_1_over_path_length) < 0.2


def test_dimension_of_brownian_motion_is_within_the_draws_of_its_nulls():
    got = topology.path_topology(brownian(600, 8), key=new_key(), num_nulls=10)
    for null in (got.null_sign_flipped, got.null_ou):
        # Over 40 paths the deviation is .07, known to 1 / sqrt(18) here.
        assert 0.07 / 2 < float(null.ph_standard_deviation) < 0.07 * 2
        away = abs(float(got.ph_dimension) - float(null.ph_dimension))
        assert away < 4 * float(null.ph_standard_deviation)
        # The error that one path states of itself is a third of that.
        assert 2 * float(got.ph_standard_error) < float(null.ph_standard_deviation)
    assert 0.9 < float(got.e_1_over_path_length) <= 1 + 10 * EPS32
    again = topology.path_topology(brownian(600, 8), key=new_key(), num_nulls=10)
    jax.tree.map(np.testing.assert_array_equal, got, again)
    other = topology.path_topology(brownian(600, 8), key=new_key(1), num_nulls=10)
    assert float(other.e_1) == float(got.e_1)
    assert float(other.null_ou.ph_dimension) != float(got.null_ou.ph_dimension)


def test_nulls_are_summarised_over_their_draws():
    # On a line of two steps, signs either keep on (E_1 / length 1) or return (1/2).
    line = np.array([[0.0], [1.0], [2.0]], np.float32)
    null = topology.path_topology(line, key=new_key(), num_nulls=30).null_sign_flipped
    returned = round(60 * (1 - float(null.e_1_over_path_length)))
    assert 3 < returned < 27
    draws = np.repeat([0.5, 1.0], [returned, 30 - returned])
    np.testing.assert_allclose(
        [null.e_1_over_path_length, null.ratio_standard_deviation],
        [draws.mean(), draws.std(ddof=1)],
        rtol=10 * EPS32,
    )


@pytest.mark.parametrize("dim", [1, 300])
def test_distances_along_a_path(dim):
    path = brownian(200, dim) + 3 * np.arange(200, dtype="f4")[:, None]
    got = np.asarray(distances_along(jnp.asarray(path)))
    exact = cdist(path.astype(float), path.astype(float))
    # Differences of neighbours, and sums that start at the diagonal.
    steps = np.linalg.norm(np.diff(path.astype(float), axis=0), axis=1)
    np.testing.assert_allclose(np.diag(got, 1), steps, rtol=20 * EPS32)
    # Squares are sums of up to 199^2 products of steps.
    way = np.abs(np.subtract.outer(*[np.append(0, np.cumsum(steps))] * 2))
    assert (np.abs(got**2 - exact**2) <= 20 * EPS32 * way**2).all()
    assert (got == got.T).all()
    assert (np.diag(got) == 0).all()


def test_path_topology_measures_what_its_parts_do_and_inside_jit():
    points = brownian(60, 8)
    got = topology.path_topology(points, key=new_key())
    exact = oracle_lengths(cdist(points.astype(float), points.astype(float))).sum()
    np.testing.assert_allclose(got.e_1, exact, rtol=20 * EPS32)
    np.testing.assert_allclose(got.path_length, topology.path_length(points))
    np.testing.assert_allclose(
        got.e_1_over_path_length, exact / float(got.path_length), rtol=20 * EPS32
    )
    assert got.too_few
    assert got.num_points == 60
    assert np.isnan([got.ph_dimension, got.null_ou.ph_dimension]).all()
    assert np.isfinite(got.null_sign_flipped.e_1_over_path_length)
    jitted = jax.jit(lambda p, k: topology.path_topology(p, key=k))(points, new_key())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=10 * EPS32), jitted, got
    )


def test_exact_steps_rescale_a_sketched_tree():
    # A smooth path of rank two in 4,000 coordinates, signed into 8 buckets.
    rng = np.random.default_rng(8)
    time = np.linspace(0, 3, 60)
    course = np.stack([1 - np.exp(-time), 0.3 * np.sin(time)], axis=1)
    points = course @ rng.normal(size=(2, 4000))
    signs, buckets = rng.choice([-1, 1], size=4000), rng.integers(0, 8, size=4000)
    sketch = np.zeros((60, 8))
    np.add.at(sketch.T, buckets, (points * signs).T)
    sketch = sketch.astype(np.float32)

    exact = oracle_lengths(cdist(points, points)).sum()
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1).astype(np.float32)
    plain = topology.path_topology(sketch, key=new_key())
    rescaled = topology.path_topology(sketch, key=new_key(), step_lengths=steps)
    assert abs(float(plain.e_1) / exact - 1) > 0.01
    assert abs(float(rescaled.e_1) / exact - 1) < 1e-3
    np.testing.assert_allclose(rescaled.path_length, steps.sum(), rtol=10 * EPS32)
    assert rescaled.e_1_over_path_length == plain.e_1_over_path_length


def test_points_that_are_not_finite_are_counted_and_nothing_is_claimed():
    points = brownian(60, 8)
    points[5, 3] = np.inf
    got = topology.path_topology(points, key=new_key())
    assert int(got.num_nonfinite) == 1
    numbers = (got.path_length, got.e_1, *got.null_sign_flipped, *got.null_ou)
    assert np.isnan(numbers).all()


def test_sign_flips_keep_every_step_and_destroy_drift():
    points = jnp.asarray(brownian(400, 5) + 3 * np.arange(400, dtype="f4")[:, None])
    null = sign_flipped(points, key=new_key())
    steps, flipped = np.diff(points, axis=0), np.diff(null, axis=0)
    signs = np.sign(np.sum(steps * flipped, axis=1, keepdims=True))
    # Sums of 400 steps of size ten are rounded to eps of their size.
    np.testing.assert_allclose(signs * flipped, steps, atol=4000 * EPS32)
    assert abs(signs.mean()) < 4 / np.sqrt(399)


def test_ou_null_has_the_fitted_autocorrelation_and_variances():
    rng = np.random.default_rng(9)
    phi, scales = 0.7, np.array([1.0, 10.0], np.float32)
    path = np.zeros((20_000, 2), np.float32)
    for t in range(1, len(path)):
        path[t] = phi * path[t - 1] + np.sqrt(1 - phi**2) * rng.normal(size=2) * scales
    null, decay = ornstein_uhlenbeck(jnp.asarray(path), key=new_key())
    # The larger coordinate dominates: its autocorrelation is known to
    # sqrt((1 - phi^2) / r), a variance to sqrt(2 (1 + phi^2) / (1 - phi^2) / r).
    error = np.sqrt((1 - phi**2) / len(path))
    assert abs(1 - float(decay) - phi) < 4 * error
    null = np.asarray(null, np.float64)
    drawn = np.sum(null[1:] * null[:-1], axis=0) / np.sum(null**2, axis=0)
    assert (np.abs(drawn - phi) < 8 * error).all()
    spread = np.sqrt(2 * (1 + phi**2) / (1 - phi**2) / len(path))
    assert (np.abs(null.var(0) / path.var(0) - 1) < 4 * spread).all()


def test_ou_decay_of_a_slow_path_keeps_its_digits():
    # 1 - phi is 2e-7 here: three times the spacing of single precision at one.
    angle = np.linspace(0, 1, 5000)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) - [1, 0]
    centred = points - points.mean(0)
    cross = 2 * np.sum(centred[1:] * centred[:-1])
    exact = 1 - cross / (np.sum(centred[1:] ** 2) + np.sum(centred[:-1] ** 2))
    decay = ornstein_uhlenbeck(jnp.asarray(points, jnp.float32), key=new_key())[1]
    assert 1e-7 < exact < 3e-7
    # A step of 2e-4 between coordinates of order one keeps three digits.
    np.testing.assert_allclose(decay, exact, rtol=1e-3)


# Bad input


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: topology.path_length(np.ones(3, "f4")), "`points` must be a matrix"),
        (lambda: topology.displacement(np.ones((0, 2), "f4")), "at least 1 points"),
        (lambda: topology.path_length(np.ones((3, 2), int)), "must be floating-point"),
        (lambda: topology.pairwise_distances(np.ones((1, 2), "f4")), "at least 2"),
        (lambda: topology.minimum_spanning_tree(np.ones((2, 3), "f4")), "square"),
        (lambda: topology.minimum_spanning_tree(np.ones((1, 1), "f4")), "two points"),
        (lambda: topology.minimum_spanning_tree(np.ones((2, 2), int)), "floating"),
        (lambda: topology.e_alpha(np.ones((2, 2), "f4")), "must be a vector"),
        (lambda: topology.e_alpha(np.ones(2, "f4"), alpha=0.0), "`alpha` must be"),
        (lambda: topology.e_alpha(np.ones(2, "f4"), alpha=jnp.array(-1.0)), "`alpha`"),
        (lambda: topology.e_alpha(np.ones(2, "f4"), alpha=jnp.ones(2)), "`alpha` must"),
    ],
)
def test_bad_points_distances_and_lengths(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_sums_of_half_precision_do_not_overflow():
    lengths = jnp.full(3000, 100.0, jnp.float16)
    assert float(topology.e_alpha(lengths)) == 300_000
    line, lengths = jnp.arange(8.0)[:, None], lengths[:7] * 100
    measured = topology.path_topology(line, key=new_key(), step_lengths=lengths)
    assert float(measured.path_length) == 70_000


def test_lists_are_points_too(user_land):
    points: Any = [[0.0, 0.0], [3.0, 4.0]]
    distances: Any = [[0.0, 2.0], [2.0, 0.0]]
    assert float(topology.path_length(points)) == 5
    assert float(topology.minimum_spanning_tree(distances).lengths[0]) == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_sizes": 1}, "`num_sizes` must be"),
        ({"num_nulls": 1}, "`num_nulls` must be"),
        ({"num_repeats": 2.0}, "`num_repeats` must be"),
        ({"step_lengths": np.ones(9, "f4")}, r"shape \(9,\), but|shape \(8,\)"),
    ],
)
def test_bad_options_of_a_path(user_land, options, match):
    with pytest.raises(ValueError, match=match):
        topology.path_topology(np.ones((9, 2), "f4"), key=new_key(), **options)


def test_bad_options_of_the_dimension(user_land):
    points = np.ones((600, 2), "f4")
    with pytest.raises(ValueError, match="`alpha` must be positive"):
        topology.persistent_homology_dimension(points, key=new_key(), alpha=-1.0)
    with pytest.raises(ValueError, match="`points` must be a matrix"):
        topology.persistent_homology_dimension(points[:1], key=new_key())
