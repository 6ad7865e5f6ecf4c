"""Measures of a path and of its null models, against closed forms and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree as scipy_tree
from scipy.spatial.distance import cdist

from jaxtheory.dynamics import topology
from jaxtheory.dynamics.topology import _measure, ornstein_uhlenbeck, sign_flipped
from jaxtheory.dynamics.topology._nulls import distances_along

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


def brownian(num, dim, seed=0):
    """A random walk with standard normal steps."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(num, dim)), axis=0).astype(np.float32)


def measured(points, seed=0, **options):
    return topology.measure_path(points, key=new_key(seed), **options)


def test_a_straight_path_is_its_own_tree():
    points = np.arange(600)[:, None] * np.linspace(0.1, 0.8, 8, dtype=np.float32)
    got = measured(points.astype("f4"), num_nulls=2)
    e_1, ratio, dimension = got.measures.values()
    assert abs(float(ratio.value) - 1) < 1e-5
    assert abs(float(e_1.value) / float(topology.path_length(points)) - 1) < 1e-5
    assert abs(float(dimension.value) - 1) < 0.01
    # Signs undo the drift: the walk on a line comes back to its places.
    assert float(ratio.sign_flipped.mean) < 0.2


def test_dimension_of_brownian_motion_is_within_the_draws_of_its_nulls():
    got = measured(brownian(600, 8), num_nulls=10)
    _, ratio, dimension = got.measures.values()
    # As of any slowly diffusing path, whatever the number of its coordinates.
    assert 2 < float(dimension.value) < 2.5
    for null in (dimension.sign_flipped, dimension.ou):
        # Over 40 paths the deviation is .07, known to 1 / sqrt(18) here.
        assert 0.07 / 2 < float(null.standard_deviation) < 0.07 * 2
        away = abs(float(dimension.value) - float(null.mean))
        assert away < 4 * float(null.standard_deviation)
        # The error that one path states of itself is a third of that.
        assert 2 * float(dimension.standard_error) < float(null.standard_deviation)
    assert 0.9 < float(ratio.value) <= 1 + 10 * EPS32


def test_same_key_same_draws_and_one_trace(monkeypatch):
    traced = []
    evaluate = _measure._evaluate
    monkeypatch.setattr(
        _measure, "_evaluate", lambda *args: traced.append(0) or evaluate(*args)
    )
    # The path is traced once, and both nulls of all draws once.
    got = measured(brownian(70, 3), num_nulls=3)
    assert len(traced) == 2
    again = measured(brownian(70, 3), num_nulls=3)
    jax.tree.map(np.testing.assert_array_equal, again, got)
    other = measured(brownian(70, 3, seed=1), seed=1, num_nulls=3)
    assert float(other.measures["e_1"].value) != float(got.measures["e_1"].value)
    assert len(traced) == 2
    ratio = "e_1_over_path_length"
    redrawn = measured(brownian(70, 3), seed=1, num_nulls=3)
    assert redrawn.measures[ratio].value == got.measures[ratio].value
    assert redrawn.measures[ratio].ou.mean != got.measures[ratio].ou.mean


def test_nulls_are_summarised_over_their_draws():
    # On a line of two steps, signs either keep on (E_1 / length 1) or return (1/2).
    line = np.array([[0.0], [1.0], [2.0]], np.float32)
    got = measured(line, num_nulls=30, measures=["e_1_over_path_length"])
    null = got.measures["e_1_over_path_length"].sign_flipped
    returned = round(60 * (1 - float(null.mean)))
    assert 3 < returned < 27
    draws = np.repeat([0.5, 1.0], [returned, 30 - returned])
    np.testing.assert_allclose(
        [null.mean, null.standard_deviation],
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


def test_a_path_is_measured_as_its_parts_are_and_inside_jit():
    points = brownian(60, 8)
    got = measured(points)
    e_1, ratio, dimension = got.measures.values()
    exact = oracle_lengths(cdist(points.astype(float), points.astype(float))).sum()
    np.testing.assert_allclose(e_1.value, exact, rtol=20 * EPS32)
    np.testing.assert_allclose(got.path_length, topology.path_length(points))
    np.testing.assert_allclose(
        ratio.value, exact / float(got.path_length), rtol=20 * EPS32
    )
    assert got.too_few
    assert got.num_points == 60
    assert np.isnan([dimension.value, dimension.ou.mean]).all()
    assert np.isfinite(ratio.sign_flipped.mean)
    assert e_1.standard_error is None
    jitted = jax.jit(lambda p, k: topology.measure_path(p, key=k))(points, new_key())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=10 * EPS32), jitted, got
    )


@pytest.mark.parametrize("metric", ["euclidean", "loss"])
def test_every_measure_is_that_of_its_function_beside_nulls(metric):
    # The nulls of a straight line that moves on: in both metrics far from the path.
    points = brownian(500, 4) + 3 * np.arange(500, dtype="f4")[:, None]
    names = ["e_1", "ph_dimension", "correlation_dimension", "two_nn_dimension"]
    names += ["levina_bickel_dimension", "magnitude", "positive_magnitude"]
    got = measured(points, metric=metric, measures=names, num_nulls=2)
    assert list(got.measures) == names
    exact = cdist(points.astype(float), points.astype(float))
    if metric == "loss":
        exact = cdist(points.astype(float), points.astype(float), "cityblock") / 4
    single = exact.astype(np.float32)
    value = {name: float(measure.value) for name, measure in got.measures.items()}
    length = np.trace(exact, 1)
    np.testing.assert_allclose(got.path_length, length, rtol=20 * EPS32)
    np.testing.assert_allclose(
        value["e_1"], oracle_lengths(exact).sum(), rtol=20 * EPS32
    )
    for name in names[2:5]:
        expected = getattr(topology, name)(single)
        # A distance that is rounded the other way changes a count.
        np.testing.assert_allclose(value[name], expected.value, rtol=1e-3)
        error = got.measures[name].standard_error
        np.testing.assert_allclose(error, expected.standard_error, rtol=0.02)
    assert got.magnitude is not None
    scale = float(got.magnitude.scales[0])
    np.testing.assert_allclose(scale, 1 / exact.mean(), rtol=20 * EPS32)
    expected = topology.magnitude(exact, scales=[scale])
    assert not got.magnitude.saturated[0]
    for name in names[5:]:
        np.testing.assert_allclose(value[name], getattr(expected, name)[0], rtol=1e-4)
    assert value["ph_dimension"] < 1.1
    for name, measure in got.measures.items():
        for null in (measure.sign_flipped, measure.ou):
            assert np.isfinite([null.mean, null.standard_deviation]).all(), name
            assert float(null.standard_deviation) > 0, name
    # The increments keep their lengths: sqrt(mean |step|^2 r) is how far the walk gets.
    assert value["e_1"] > 0.99 * length
    assert float(got.measures["e_1"].sign_flipped.mean) < length


def test_published_scale_of_magnitude_saturates_on_a_path_and_its_nulls():
    # sqrt(n) at n = 10,000 examples.
    got = measured(
        brownian(100, 8),
        measures=["positive_magnitude"],
        magnitude_scale=100.0,
        num_nulls=2,
    )
    assert got.magnitude is not None
    assert got.magnitude.saturated[0]
    measure = got.measures["positive_magnitude"]
    assert float(measure.value) > 99.99
    assert float(measure.sign_flipped.mean) > 99.99
    assert measure.standard_error is None


def test_path_that_stands_still_has_magnitude_one():
    got = measured(np.ones((9, 2), "f4"), measures=["magnitude"], num_nulls=2)
    assert float(got.measures["magnitude"].value) == 1
    assert got.magnitude is not None
    assert got.magnitude.num_coincident == 8


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
    plain = measured(sketch)
    rescaled = measured(sketch, step_lengths=steps)
    assert abs(float(plain.measures["e_1"].value) / exact - 1) > 0.01
    assert abs(float(rescaled.measures["e_1"].value) / exact - 1) < 1e-3
    np.testing.assert_allclose(rescaled.path_length, steps.sum(), rtol=10 * EPS32)
    ratio = "e_1_over_path_length"
    assert rescaled.measures[ratio].value == plain.measures[ratio].value


def test_points_that_are_not_finite_are_counted_and_nothing_is_claimed():
    points = brownian(60, 8)
    points[5, 3] = np.inf
    got = measured(points)
    assert int(got.num_nonfinite) == 1
    numbers = [got.path_length, *jax.tree.leaves(got.measures)]
    assert np.isnan(numbers).all()
    got = measured(points, measures=["magnitude"], num_nulls=2)
    assert np.isnan(jax.tree.leaves(got.measures)).all()


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


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metric": "l2"}, "`metric` must be 'euclidean' or 'loss'"),
        ({"measures": ["e_2"]}, "`measures` must be names out of e_1, .*was .'e_2'."),
        ({"measures": "e_1"}, "`measures` must be names"),
        ({"magnitude_scale": 0.0}, "`magnitude_scale` must be positive"),
        ({"num_sizes": 1}, "`num_sizes` must be"),
        ({"num_nulls": 1}, "`num_nulls` must be"),
        ({"num_repeats": 2.0}, "`num_repeats` must be"),
        ({"step_lengths": np.ones(9, "f4")}, r"shape \(8,\), but has shape \(9,\)"),
        ({"step_lengths": np.ones(9, "f4")}, r"`history.trace\[.*\]\[:-1\]`"),
    ],
)
def test_bad_options_of_a_path(user_land, options, match):
    with pytest.raises(ValueError, match=match):
        measured(np.ones((9, 2), "f4"), **options)


@pytest.mark.parametrize("draw", [sign_flipped, ornstein_uhlenbeck])
def test_nulls_refuse_what_is_no_path(user_land, draw):
    with pytest.raises(ValueError, match=r"`points` must be a matrix .* \(4,\)"):
        draw(np.ones(4, "f4"), key=new_key())
    with pytest.raises(ValueError, match="`key` must be"):
        draw(np.ones((4, 2), "f4"), key=0)


def test_magnitude_of_a_path_inside_jit_is_refused(user_land):
    measure = jax.jit(lambda p: measured(p, measures=["magnitude"], num_nulls=2))
    with pytest.raises(ValueError, match="`measures` must hold no magnitude inside"):
        measure(np.ones((9, 2), "f4"))


def test_sums_of_half_precision_steps_do_not_overflow():
    line, lengths = jnp.arange(8.0)[:, None], jnp.full(7, 1e4, jnp.float16)
    assert float(measured(line, step_lengths=lengths).path_length) == 70_000


def test_step_lengths_that_are_none_show():
    # Negative ones made a tree of negative length.
    points = brownian(9, 2)
    got = measured(points, num_nulls=2, measures=["e_1"], step_lengths=-np.ones(8))
    assert np.isnan(got.path_length)
    assert np.isnan(got.measures["e_1"].value)


def test_magnitude_of_points_too_far_apart_is_nan():
    # The scale was 1 / inf, and the message about an argument that nobody gave.
    got = measured(brownian(9, 2) * 1e30, num_nulls=2, measures=["magnitude"])
    assert np.isnan(got.measures["magnitude"].value)
    assert got.magnitude.num_invalid > 0


def test_the_gradient_of_a_length_through_a_repeated_point_is_finite():
    points = jnp.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    slope = jax.grad(topology.path_length)(points)
    np.testing.assert_allclose(slope[2], [0.6, 0.8], rtol=4 * EPS32)
    np.testing.assert_array_equal(slope[0], 0)


FLAT = np.zeros((9, 9), "f4")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: topology.pairwise_distances(None), "`points` must be an array of"),
        (lambda: topology.minimum_spanning_tree("d"), "`distances` must be an array"),
        (lambda: topology.e_alpha(np.ones(3) * 1j), "`lengths` must be real"),
        (
            lambda: topology.append_point(FLAT, FLAT[:, :2], 1j * np.ones(2)),
            "`point` must be real",
        ),
        (
            lambda: topology.correlation_dimension(FLAT, window=(0.1, 0.2, 0.3)),
            "`window` must be a pair",
        ),
        (lambda: topology.box_dimension(FLAT, window=0.1), "`window` must be a pair"),
        (lambda: topology.box_dimension(FLAT, window=("a", 1.0)), "`window` must be"),
        (
            lambda: topology.levina_bickel_dimension(FLAT, num_neighbours=5),
            "`num_neighbours` must be a pair",
        ),
        (
            lambda: jax.jit(lambda a: topology.two_nn_dimension(FLAT, discard=a).value)(
                0.1
            ),
            "`discard` must be concrete",
        ),
        (
            lambda: topology.ph_dimension_penalty(FLAT, key=new_key(), sizes=5),
            "`sizes` must be several",
        ),
        (lambda: topology.magnitude(FLAT, scales="a"), "`scales` must be real"),
        (
            lambda: jax.jit(lambda a: topology.magnitude(FLAT, scales=[a]).scales)(1.0),
            "`scales` must be concrete",
        ),
        (lambda: measured(FLAT, measures=None), "`measures` must be names"),
        (
            lambda: measured(FLAT, num_nulls=2, step_lengths=1j * np.ones(8)),
            "`step_lengths` must be real",
        ),
    ],
)
def test_options_that_are_none(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_options_may_be_numbers_of_jax(user_land):
    # They are made static: JAX refused its own as unhashable.
    got = topology.two_nn_dimension(FLAT, discard=jnp.float32(0.1))
    assert got.too_few
    window = jnp.float32(0.01), jnp.float32(0.1)
    assert topology.correlation_dimension(FLAT, window=window).too_few
