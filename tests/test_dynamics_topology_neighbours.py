"""Correlation, TwoNN, Levina-Bickel and box dimensions against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxtheory.dynamics import topology

FROM_DISTANCES = [
    topology.correlation_dimension,
    topology.two_nn_dimension,
    topology.levina_bickel_dimension,
]


def uniform(num, dim, seed=0):
    return np.random.default_rng(seed).uniform(size=(num, dim))


def distances(points):
    return cdist(points, points).astype(np.float32)


def on_torus(num, dim, seed=0):
    """Distances of uniform points with opposite sides glued: no edge, no curvature."""
    points = uniform(num, dim, seed)
    gaps = np.abs(points[:, None] - points[None])
    return np.linalg.norm(np.minimum(gaps, 1 - gaps), axis=-1).astype(np.float32)


def fractal(maps, ratio, num, seed=0):
    """Points of the set that is made of shrunken copies of itself, at `maps`."""
    choice = np.random.default_rng(seed).integers(len(maps), size=(num, 16))
    shrunk = ratio ** np.arange(1.0, 17)
    return np.einsum("nld,l->nd", np.asarray(maps, float)[choice], shrunk)


def triangle(num):
    return fractal([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]], 0.5, num)


def dust(num):
    return fractal([[a, b] for a in (0, 2) for b in (0, 2)], 1 / 3, num)


@pytest.mark.parametrize(
    ("dim", "pairs"),
    [
        (1, lambda radius: 2 * radius - radius**2),
        (2, lambda radius: np.pi * radius**2 - 8 / 3 * radius**3 + radius**4 / 2),
    ],
)
def test_correlation_dimension_of_a_cube_with_its_edges(dim, pairs):
    got = topology.correlation_dimension(distances(uniform(1000, dim)))
    # The share of pairs of the interval and the square within a radius, exactly.
    exact = np.polyfit(np.log(got.radii), np.log(pairs(np.asarray(got.radii))), 1)[0]
    assert abs(float(got.value) - exact) < 4 * float(got.standard_error)
    assert 0 < float(got.standard_error) < 0.015 * dim
    assert dim - 0.12 < float(got.value) < dim + 0.02
    assert float(got.residual) < 0.02
    ends = np.asarray(got.fractions)[[0, -1]]
    np.testing.assert_allclose(ends, [0.005, 0.05], atol=2.1 / 999_000)  # one pair
    counted = np.sum(distances(uniform(1000, dim)) <= got.radii[7]) - 1000
    np.testing.assert_allclose(got.fractions[7], counted / 999_000, rtol=1e-4)


def test_correlation_dimension_of_self_similar_sets():
    # Deviations over 10 clouds .018 and .013; the dust steps at powers of three.
    got = topology.correlation_dimension(distances(triangle(1000)))
    assert abs(float(got.value) - np.log2(3)) < 4 * 0.018
    got = topology.correlation_dimension(distances(dust(1000)))
    assert abs(float(got.value) - np.log(4) / np.log(3)) < 4 * 0.013
    assert float(got.residual) > 0.03  # which the residual shows


def test_correlation_dimension_of_brownian_motion_is_two():
    # Whatever the number of coordinates: near pairs are near in time.
    path = np.cumsum(np.random.default_rng(0).normal(size=(1000, 100)), axis=0)
    got = topology.correlation_dimension(distances(path))
    assert 2 < float(got.value) < 2.2


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_two_nearest_neighbours_of_uniform_points(dim):
    got = topology.two_nn_dimension(on_torus(1000, dim))
    # Mutual neighbours share a distance: the deviation is 1.3 errors.
    assert abs(float(got.value) - dim) < 4 * 1.3 * float(got.standard_error)
    np.testing.assert_allclose(got.standard_error, got.value / 30, rtol=0.01)
    assert float(got.residual) < 1.4 / np.sqrt(1000)


def test_discarding_changes_the_sample_not_the_exponent():
    kept = topology.two_nn_dimension(on_torus(1000, 2), discard=0.0)
    # Nothing cut: the plain maximum-likelihood exponent, less its bias.
    nearest = np.sort(on_torus(1000, 2).astype(float), axis=1)
    logs = np.log(nearest[:, 2] / nearest[:, 1])
    np.testing.assert_allclose(kept.value, 999 / logs.sum(), rtol=1e-4)
    half = topology.two_nn_dimension(on_torus(1000, 2), discard=0.5)
    assert abs(float(half.value) - 2) < 4 * 1.3 * float(half.standard_error)
    # On a path the neighbours in time are nearest, and the model does not hold.
    path = np.cumsum(np.random.default_rng(0).normal(size=(1000, 100)), axis=0)
    on_path = topology.two_nn_dimension(distances(path))
    assert float(on_path.value) > 10
    assert float(on_path.residual) > 1.6 / np.sqrt(1000)


def test_levina_bickel_with_and_without_the_correction():
    matrix = on_torus(1000, 2)
    got = topology.levina_bickel_dimension(matrix)
    # Neighbourhoods overlap: the deviation is 1.5 errors.
    assert abs(float(got.value) - 2) < 4 * 1.5 * float(got.standard_error)
    plain = topology.levina_bickel_dimension(matrix, correction="none")
    k = np.arange(10, 21)
    # 1 / m_k is a mean of k - 1 exponential variables.
    bias = np.mean((k - 1) / (k - 2))
    assert abs(float(plain.value) / bias - 2) < 4 * 1.5 * float(plain.standard_error)
    nearest = np.sort(matrix.astype(float), axis=1)[:, 1:]
    inverses = [
        np.mean(np.log(nearest[:, [m - 1]] / nearest[:, : m - 1]), axis=1) for m in k
    ]
    exact = [1 / np.mean(i) for i in inverses], [np.mean(1 / i) for i in inverses]
    np.testing.assert_allclose(got.value, np.mean(exact[0]), rtol=1e-5)
    np.testing.assert_allclose(plain.value, np.mean(exact[1]), rtol=1e-5)
    np.testing.assert_allclose(got.residual, np.std(exact[0]), rtol=1e-3)
    # One number of neighbours: the error is the delta method's.
    one = topology.levina_bickel_dimension(matrix, num_neighbours=(12, 12))
    spread = inverses[2].std() / np.sqrt(1000) * exact[0][2] ** 2
    np.testing.assert_allclose(one.standard_error, spread, rtol=1e-4)


def test_dimension_of_the_sphere():
    points = np.random.default_rng(0).normal(size=(1000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for estimate, spread in zip(FROM_DISTANCES, (0.017, 0.091, 0.021), strict=True):
        # Deviations over 10 clouds.
        assert abs(float(estimate(distances(points)).value) - 2) < 4 * spread


def test_boxes_of_cubes_and_of_self_similar_sets():
    for dim in (1, 2, 3):
        got = topology.box_dimension(uniform(1000, dim).astype("f4"))
        # Whole numbers of divisions: no box is cut, and all hold a point.
        assert abs(float(got.value) - dim) < 0.01 * dim
    got = topology.box_dimension(triangle(5000).astype("f4"))
    assert abs(float(got.value) - np.log2(3)) < 0.05
    # Dust: divisions that are no power of three cut it, which the residual shows.
    got = topology.box_dimension(dust(5000).astype("f4"))
    assert abs(float(got.value) - np.log(4) / np.log(3)) < 4 * float(got.standard_error)
    assert float(got.residual) > 0.1
    # The counts, one box after another.
    points = dust(5000).astype("f4")
    share = (points - points.min(0)) / np.max(points - points.min(0))
    for divisions, count in zip(got.divisions[:12], got.counts, strict=False):
        boxes = np.minimum(np.floor(share * divisions), divisions - 1)
        assert count == len(np.unique(boxes, axis=0))
    # In many dimensions no window is left, and no number is made up.
    high = topology.box_dimension(uniform(600, 12).astype("f4"))
    assert np.sum(high.in_window) < 3
    assert np.isnan(high.value)


def test_a_unit_does_not_change_a_dimension():
    matrix = on_torus(600, 2)
    for estimate in FROM_DISTANCES:
        # A radius that is rounded the other way changes a count of some hundreds.
        large, small = estimate(matrix), estimate(matrix * np.float32(2.0**-50))
        np.testing.assert_allclose(large.value, small.value, rtol=1e-3)
    points = uniform(600, 2).astype("f4")
    scaled = topology.box_dimension(points * np.float32(2.0**-50))
    np.testing.assert_allclose(scaled.value, topology.box_dimension(points).value)


def test_points_that_coincide_are_counted():
    points = uniform(1000, 2)
    points[:50] = points[50:100]
    for estimate in FROM_DISTANCES:
        got = estimate(distances(points))
        assert int(got.num_coincident) == 100
        assert abs(float(got.value) - 2) < 0.4
        assert float(got.standard_error) > 0
        equal = estimate(np.zeros((600, 600), np.float32))
        assert int(equal.num_coincident) == 600
        assert np.isnan(equal.value)
    # As many as the window has pairs: no radius, no number.
    points[:200] = points[0]
    assert np.isnan(topology.correlation_dimension(distances(points)).value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_what_is_no_distance_is_counted_and_nothing_is_claimed(value):
    broken = on_torus(600, 2)
    broken[3, 5] = broken[5, 3] = value
    unlike = on_torus(600, 2)
    unlike[3, 5] *= 1.1
    for estimate in FROM_DISTANCES:
        for matrix in (broken, unlike):
            got = estimate(matrix)
            assert int(got.num_invalid) == 2
            assert np.isnan([got.value, got.standard_error, got.residual]).all()
    points = uniform(600, 2).astype("f4")
    points[4, 1] = value
    got = topology.box_dimension(points)
    assert int(got.num_nonfinite) == (not np.isfinite(value))
    assert np.isnan(got.value) == (not np.isfinite(value))


def test_too_few_points_give_no_number():
    points = uniform(499, 2)
    results = [estimate(distances(points)) for estimate in FROM_DISTANCES]
    for got in [*results, topology.box_dimension(points.astype("f4"))]:
        assert got.too_few
        assert got.num_points == 499
        assert np.isnan([got.value, got.standard_error, got.residual]).all()


def test_dimensions_inside_jit_and_in_double_precision(x64):
    matrix = on_torus(600, 2).astype(float)
    matrix = (matrix + matrix.T) / 2
    for estimate in FROM_DISTANCES:
        eager, jitted = estimate(matrix), jax.jit(estimate)(matrix)
        assert jitted.value.dtype == jnp.float64
        np.testing.assert_allclose(eager.value, jitted.value, rtol=1e-12)


SQUARE = np.ones((9, 9), np.float32)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: topology.correlation_dimension(SQUARE[1:]), "must be a square matrix"),
        (lambda: topology.two_nn_dimension(SQUARE[:, :3]), "must be a square matrix"),
        (lambda: topology.box_dimension(SQUARE[0]), "`points` must be a matrix"),
        (
            lambda: topology.correlation_dimension(SQUARE, window=(0.1, 0.1)),
            "`window` must be two shares",
        ),
        (
            lambda: topology.correlation_dimension(SQUARE, num_radii=2),
            "`num_radii` must be",
        ),
        (lambda: topology.two_nn_dimension(SQUARE, discard=1.0), "`discard` must be"),
        (
            lambda: topology.levina_bickel_dimension(SQUARE, num_neighbours=(2, 5)),
            "`num_neighbours` must be an integer of at least 3",
        ),
        (
            lambda: topology.levina_bickel_dimension(SQUARE, num_neighbours=(3, 9)),
            "`num_neighbours` must be a smallest and a largest",
        ),
        (
            lambda: topology.levina_bickel_dimension(SQUARE, correction="mg"),
            "`correction` must be 'mackay_ghahramani' or 'none'",
        ),
        (lambda: topology.box_dimension(SQUARE, num_sizes=2), "`num_sizes` must be"),
        (lambda: topology.box_dimension(SQUARE, window=(0.0, 1.0)), "`window` must"),
    ],
)
def test_bad_options(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()
