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

EPS32 = float(np.finfo(np.float32).eps)
LINE = np.ones((2, 2), np.float32)


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


@pytest.mark.parametrize(("step", "lost"), [(1.4e-5, 0.02), (7e-7, 0.1)])
def test_late_training_steps_far_from_the_origin_are_seen(step, lost):
    # In single precision a Gram matrix of w gives E_1 = 0 and 45 times too much.
    start = np.random.default_rng(1).normal(size=500)
    start /= np.linalg.norm(start)
    steps = step * brownian(200, 500).astype(np.float64) / np.sqrt(500)
    points = (start + steps).astype(np.float32)
    got = tree_length(points)
    stored = oracle_lengths(cdist(points.astype(float), points.astype(float))).sum()
    np.testing.assert_allclose(got, stored, rtol=20 * EPS32)
    # Storing the weights in single precision costs the path some of its own digits.
    exact = oracle_lengths(cdist(steps, steps)).sum()
    np.testing.assert_allclose(got, exact, rtol=lost)


def test_distances_of_losses_are_a_mean_and_obey_the_triangle_inequality():
    # 2,500 examples are three chunks, the last one ragged.
    losses = np.random.default_rng(3).exponential(size=(40, 2500)).astype(np.float32)
    losses[7] = losses[3]
    got = np.asarray(topology.loss_distances(losses), np.float64)
    exact = cdist(losses.astype(float), losses.astype(float), "cityblock") / 2500
    np.testing.assert_allclose(got, exact, rtol=10 * EPS32)
    assert got[3, 7] == 0
    detours = np.min(got[:, :, None] + got.T[None], axis=1)
    assert (got <= detours * (1 + 10 * EPS32)).all()
    way = np.abs(np.diff(losses.astype(float), axis=0)).mean(1).sum()
    length = topology.path_length(losses, metric="loss")
    np.testing.assert_allclose(length, way, rtol=10 * EPS32)
    np.testing.assert_allclose(np.diag(got, 1).sum(), way, rtol=10 * EPS32)
    # A fifth of the examples: each distance within its own standard error, and the
    # tree, a sum of 39 of them, well within.
    few = np.asarray(topology.loss_distances(losses[:, ::5]), np.float64)
    gaps = np.abs(losses[0, ::5] - losses[1, ::5])
    error = gaps.std() / np.sqrt(500)
    assert (np.abs(few - exact) < 5 * error).all()
    assert abs(oracle_lengths(few).sum() - oracle_lengths(exact).sum()) < 39 * error


def test_gram_distances_are_as_exact_as_they_say():
    # 2,500 coordinates are three chunks, the last one ragged. Far from the origin.
    rng = np.random.default_rng(4)
    cloud_ = (100 + rng.normal(size=(30, 2500))).astype(np.float32)
    exact = cdist(cloud_.astype(float), cloud_.astype(float))
    got = np.asarray(topology.gram_distances(cloud_), np.float64)
    radius = np.linalg.norm(cloud_ - cloud_.mean(0, dtype=float), axis=1).max()
    # The means of coordinates of size 100 are rounded to 1e-5, the same for all points.
    assert (np.abs(got**2 - exact**2) < 20 * EPS32 * radius**2).all()
    assert (got == got.T).all()
    assert (np.diag(got) == 0).all()
    # A smooth path: what is near is lost, and the docstring sends it elsewhere.
    path = np.linspace(0, 1, 30)[:, None] ** np.linspace(1, 2, 50)
    path[20] = path[19] + 1e-6
    path = path.astype(np.float32)
    near = np.linalg.norm(path[20].astype(float) - path[19])
    assert abs(float(topology.pairwise_distances(path)[20, 19]) / near - 1) < 1e-5
    assert abs(float(topology.gram_distances(path)[20, 19]) / near - 1) > 0.1


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


def test_what_is_no_distance_is_counted_on_the_tree():
    line = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0))).astype("f4")
    assert int(topology.minimum_spanning_tree(line).num_invalid) == 0
    negative, unlike = line.copy(), line.copy()
    negative[2, 7] = negative[7, 2] = -1
    unlike[4, 3] = 2
    for broken in (negative, unlike):
        assert int(topology.minimum_spanning_tree(broken).num_invalid) == 1


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


def test_gradient_of_e_alpha_in_the_newest_point_alone(x64):
    points = np.random.default_rng(6).normal(size=(30, 4))
    others, newest = points[:-1], points[-1]
    known = topology.pairwise_distances(others)

    @jax.jit
    def value(known, others, newest):
        distances = topology.append_point(known, others, newest)
        tree = topology.minimum_spanning_tree(distances)
        return topology.e_alpha(tree.lengths, alpha=0.5)

    exact = np.sum(np.sqrt(oracle_lengths(cdist(points, points))))
    np.testing.assert_allclose(value(known, others, newest), exact, rtol=1e-12)
    gradient = jax.grad(value, argnums=2)(known, others, newest)
    assert np.linalg.norm(gradient) > 0.1
    for axis, direction in enumerate(np.eye(4)):
        ahead = value(known, others, newest + 1e-5 * direction)
        back = value(known, others, newest - 1e-5 * direction)
        # Central differences: h^2 of truncation, eps / h of rounding.
        np.testing.assert_allclose(gradient[axis], (ahead - back) / 2e-5, atol=1e-8)
    assert not np.any(jax.grad(value, argnums=1)(known, others, newest))
    # On top of another point: a length of zero, whose slope at alpha < 1 is infinite.
    assert np.isfinite(jax.grad(value, argnums=2)(known, others, others[3])).all()


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
        (lambda: topology.loss_distances(np.ones((1, 2), "f4")), "`losses` must be"),
        (lambda: topology.gram_distances(np.ones(2, "f4")), "`points` must be a"),
        (lambda: topology.path_length(LINE, metric="l1"), "`metric` must be"),
        (lambda: topology.append_point(LINE, LINE, np.ones(3, "f4")), "`points` must"),
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


def test_lists_are_points_too(user_land):
    points: Any = [[0.0, 0.0], [3.0, 4.0]]
    distances: Any = [[0.0, 2.0], [2.0, 0.0]]
    assert float(topology.path_length(points)) == 5
    assert float(topology.minimum_spanning_tree(distances).lengths[0]) == 2
