"""Neural collapse statistics against dense scatters in NumPy, float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import CollapseStatistics, _statistics, statistics


def oracle(features, labels, weight, bias):
    """Every statistic from d x d scatters and loops, over the classes that occur."""
    h, labels = np.asarray(features, np.float64), np.asarray(labels)
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    classes = np.unique(labels)
    count = len(classes)
    means = np.array([h[labels == c].mean(0) for c in classes])
    centred = means - means.mean(0)
    within = np.zeros((h.shape[1], h.shape[1]))
    for c, mean in zip(classes, means, strict=True):
        for row in h[labels == c]:
            within += np.outer(row - mean, row - mean) / len(h)
    between = centred.T @ centred / count
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-11)) / count
    norms = np.linalg.norm(centred, axis=1)
    angles = [
        abs(centred[i] @ centred[j] / (norms[i] * norms[j]) + 1 / (count - 1))
        for i in range(count)
        for j in range(count)
        if i != j
    ]
    gram = centred @ centred.T
    frame = (np.eye(count) - 1 / count) / np.sqrt(count - 1)
    rows = weight[classes]
    unit = lambda a: a / np.linalg.norm(a)
    cosines = [unit(w) @ unit(m) for w, m in zip(rows, centred, strict=True)]
    disagree = 0
    for row in h:
        nearest = classes[np.argmin(((row - means) ** 2).sum(1))]
        disagree += np.argmax(weight @ row + bias) != nearest
    return {
        "nc1": nc1,
        "nc2": np.linalg.norm(unit(gram) - frame),
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangular": np.mean(angles),
        "nc3": np.linalg.norm(unit(rows) - unit(centred)),
        "nc3_cosine": 1 - np.mean(cosines),
        "nc4": disagree / len(h),
        "within_class_trace": np.trace(within),
        "between_class_trace": np.trace(between),
    }


def cloud(labels, num_classes, dim, *, noise=0.5, offset=0.0, seed=0):
    """Gaussian classes, and a classifier with a bias that matters."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(num_classes, dim))
    features = means[labels] + noise * rng.normal(size=(len(labels), dim)) + offset
    weight = means + 0.3 * rng.normal(size=(num_classes, dim))
    return features, weight, rng.normal(size=num_classes)


CASES = {
    "balanced": (np.arange(40) % 4, 4, 6, np.float32),
    "imbalanced": (np.repeat([0, 1, 2, 3], [25, 9, 5, 1]), 4, 6, np.float32),
    "absent_classes": (np.repeat([1, 3, 4], [9, 7, 6]), 6, 5, np.float64),
    "more_classes_than_dimensions": (np.arange(63) % 9, 9, 3, np.float32),
    "more_classes_in_double": (np.arange(63) % 9, 9, 3, np.float64),
    "one_dimension": (np.arange(12) % 3, 3, 1, np.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_matches_the_dense_oracle(case):
    labels, num_classes, dim, dtype = CASES[case]
    arrays = [a.astype(dtype) for a in cloud(labels, num_classes, dim, offset=3.0)]
    with jax.enable_x64(dtype == np.float64):
        features, weight, bias = map(jnp.asarray, arrays)
        found = statistics(features, jnp.asarray(labels), classifier=(weight, bias))
    assert found.nc1.dtype == dtype
    for name, value in oracle(arrays[0], labels, *arrays[1:]).items():
        tolerance = 100 * np.finfo(dtype).eps * max(1, abs(value))
        np.testing.assert_allclose(
            getattr(found, name), value, rtol=0, atol=tolerance, err_msg=name
        )
    np.testing.assert_array_equal(
        found.class_counts, np.bincount(labels, minlength=num_classes)
    )
    assert int(found.rank) == min(len(np.unique(labels)) - 1, dim)


# Nearly all that follows has 40 examples, 4 classes, 6 features: one compilation.
LABELS = jnp.arange(40) % 4
FRAME = (jnp.eye(4) - 1 / 4) @ jnp.eye(4, 6)


def measure(
    features: Any, labels: Any = LABELS, weight: Any = FRAME, bias: Any = None
) -> Any:
    """All statistics, with a classifier in single precision."""
    bias = jnp.zeros(4) if bias is None else bias
    single = lambda a: jnp.asarray(a, jnp.float32)
    labels, classifier = jnp.asarray(labels), (single(weight), single(bias))
    return statistics(single(features), labels, classifier=classifier)


def numbers(nc):
    """The statistics that are real numbers, in one vector."""
    return jnp.array([getattr(nc, name) for name in CollapseStatistics._fields[:9]])


MORE = (
    "nc1_ratio",
    "cdnv",
    "directional_cdnv",
    "nearest_mean_error",
    "nc2_classifier",
    "nc2_classifier_equinorm",
    "nc2_classifier_equiangular",
    "nc3_frame",
    "classifier_error",
)


def more_numbers(nc):
    """The other numbers without a unit, in one vector."""
    return jnp.array([getattr(nc, name) for name in MORE])


@pytest.fixture(scope="module")
def example():
    """Balanced data with its classifier, float32."""
    arrays = cloud(np.asarray(LABELS), 4, 6)
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def frame_features(noise):
    """A simplex frame with noise ``+-noise`` along each class's own direction."""
    sign = jnp.where(jnp.arange(40) < 20, 1.0, -1.0)
    return FRAME[LABELS] * (1 + noise * sign)[:, None]


def test_exact_frame_is_zero_everywhere():
    nc = measure(frame_features(0.0) + 2, weight=7 * FRAME)
    for name in ["nc2", "nc2_equinorm", "nc2_equiangular", "nc3", "nc3_cosine"]:
        np.testing.assert_allclose(getattr(nc, name), 0, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(nc.nc1, 0, atol=1e-12)
    assert nc.nc4 == 0
    assert int(nc.rank) == 3


def test_orthogonal_class_means_have_a_closed_form():
    # h = (a +- s) e_k: Sigma_W = (s^2/K) I and Sigma_B = (a^2/K)(I - J/K).
    a, s = 2.0, 0.3
    length = jnp.where(jnp.arange(40) < 20, a + s, a - s)
    nc = measure(length[:, None] * jnp.eye(4, 6)[LABELS])
    np.testing.assert_allclose(nc.nc1, s**2 / a**2 * 3 / 4, rtol=1e-5)
    np.testing.assert_allclose(nc.within_class_trace, s**2, rtol=1e-5)
    np.testing.assert_allclose(nc.between_class_trace, a**2 * 3 / 4, rtol=1e-5)


def test_between_scatter_is_not_the_total_scatter():
    # With the total scatter in place of Sigma_B, nc1 stays near 1 at any collapse.
    clouds = [cloud(np.asarray(LABELS), 4, 6, noise=noise)[0] for noise in [1e-2, 1e-4]]
    weak, strong = (measure(features).nc1 for features in clouds)
    assert weak < 1e-3
    np.testing.assert_allclose(strong, 1e-4 * weak, rtol=1e-2)


def test_bias_takes_part_in_nc4():
    # A shift of the features that the bias undoes leaves the nearest mean in place.
    shift = jnp.array([3.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    features, bias = frame_features(0.1) + shift[None, :], -FRAME @ shift
    assert measure(features, bias=bias).nc4 == 0
    assert measure(features).nc4 == 0.75


def test_nearest_mean_of_close_classes_far_from_the_others():
    # Rounding of squared lengths (50^2 eps = 3e-4) exceeds the squared gap of 1e-4.
    means = jnp.zeros((4, 6)).at[2:, 0].set(jnp.array([100, 100.01])).at[1, 0].set(1.0)
    features = means[LABELS] + 1e-3 * jax.random.normal(jax.random.key(0), (40, 6))
    nc = measure(features, weight=jnp.zeros((4, 6)), bias=jnp.array([0, 0, 1, 0]))
    assert nc.nc4 == 0.75


def test_absent_classes_are_not_means_at_zero():
    # Five classes of which one is absent, against the four that occur.
    labels = np.asarray(LABELS)
    features, weight, bias = cloud(labels, 4, 6, offset=5.0)
    dense = measure(features, labels, weight, bias)
    rows = np.insert(np.concatenate([weight, bias[:, None]], axis=1), 2, 9.0, axis=0)
    rows[2, 6] = -1e6  # never predicted
    rows = jnp.asarray(rows, jnp.float32)
    sparse = statistics(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(labels + (labels >= 2)),
        classifier=(rows[:, :6], rows[:, 6]),
    )
    np.testing.assert_allclose(numbers(sparse), numbers(dense), rtol=1e-5)
    np.testing.assert_array_equal(sparse.class_counts, [10, 10, 0, 10, 10])


def test_spreads_are_not_signed():
    # A square: equal norms, cosines 0, 0, -1. The signed mean of cos + 1/3 is zero.
    square = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    nc = measure((square @ jnp.eye(2, 6))[LABELS])
    np.testing.assert_allclose(nc.nc2_equiangular, 4 / 9, rtol=1e-6)
    np.testing.assert_allclose(nc.nc2_equinorm, 0, atol=1e-6)
    # Three classes on a line, norms 1, 0, 1. The zero mean has cosine 0 with the rest.
    for line in [[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]:
        nc = measure((jnp.array(line)[:, None] @ jnp.eye(1, 6))[LABELS % 3], LABELS % 3)
        np.testing.assert_allclose(nc.nc2_equinorm, np.sqrt(0.5), rtol=1e-6)
        np.testing.assert_allclose(nc.nc2_equiangular, 0.5, rtol=1e-6)


def test_invariances(example):
    features, weight, bias = map(np.asarray, example)
    rng = np.random.default_rng(1)
    rename, order = rng.permutation(4), rng.permutation(40)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    inverse, labels = np.argsort(rename), np.asarray(LABELS)
    changed = {
        "relabelled": (features, rename[labels], weight[inverse], bias[inverse]),
        "permuted": (features[order], labels[order], weight, bias),
        "rotated": (features @ rotation, labels, weight @ rotation, bias),
        "translated": (features + 4, labels, weight, bias - 4 * weight.sum(1)),
        "huge": (features * 2.0**80, labels, weight, bias * 2.0**80),
        "tiny": (features * 2.0**-80, labels, weight, bias * 2.0**-80),
    }
    expected = measure(features, labels, weight, bias)
    for name, arrays in changed.items():
        found = measure(*arrays)
        for vector in [lambda nc: numbers(nc)[:7], more_numbers]:
            np.testing.assert_allclose(
                vector(found), vector(expected), rtol=1e-5, err_msg=name
            )


def test_small_scatter_far_from_the_origin():
    # The mean of squares minus the square of the mean gives 0 here.
    labels = np.asarray(LABELS)
    noise = np.sqrt(1.28e-6 / 6) * np.random.default_rng(0).normal(size=(40, 6))
    features = (20 + 0.01 * np.eye(4, 6)[labels] + noise).astype(np.float32)
    expected = oracle(features, labels, np.eye(4, 6), np.zeros(4))
    found = measure(features)
    assert 1e-6 < found.within_class_trace < 1.6e-6
    for name in ["nc1", "within_class_trace", "between_class_trace"]:
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=2e-5)


def test_means_that_coincide_lower_the_rank():
    means = jnp.eye(4, 6).at[3].set(jnp.eye(4, 6)[2]) + 3
    assert int(measure(means[LABELS] * 1.1).rank) == 2


def test_no_between_class_scatter_is_infinite():
    noise = np.repeat(np.random.default_rng(0).normal(size=(10, 6)), 4, axis=0)
    nc = measure(noise + 0.3)
    assert int(nc.rank) == 0
    assert nc.nc1 == jnp.inf
    assert nc.within_class_trace > 1
    np.testing.assert_array_equal(numbers(nc)[1:7], np.full(6, np.nan))
    infinite = [nc.nc1_ratio, nc.cdnv, nc.directional_cdnv]
    np.testing.assert_array_equal(infinite, np.full(3, np.inf))
    assert jnp.isnan(nc.nearest_mean_error)


def test_classes_of_one_example_have_no_scatter():
    nc = statistics(jnp.eye(4), jnp.arange(4))
    np.testing.assert_allclose([nc.nc1, nc.nc2], [0, 0], atol=1e-6)


def test_examples_that_are_not_finite_are_left_out_and_counted(example):
    features, weight, bias = example
    broken = features.at[3, 2].set(jnp.nan).at[10, 0].set(-jnp.inf)
    found = measure(broken, LABELS, weight, bias)
    keep = np.delete(np.arange(40), [3, 10])
    expected = measure(features[keep], LABELS[keep], weight, bias)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-5)
    np.testing.assert_array_equal(found.class_counts, expected.class_counts)
    assert int(found.num_nonfinite) == 2
    assert int(expected.num_nonfinite) == 0
    nothing = measure(jnp.full_like(features, jnp.nan))
    assert (int(nothing.num_nonfinite), int(nothing.rank)) == (40, 0)
    # A network that has diverged must not look like one without errors.
    names = ["classifier_error", "bias_collapse", "nearest_mean_error"]
    names += ["within_class_trace", "between_class_trace"]
    assert all(np.isnan(getattr(nothing, name)) for name in names)


def test_outputs_that_are_not_finite_disagree(example):
    assert measure(example[0], weight=FRAME.at[0].set(jnp.nan)).nc4 == 1


def test_traced_labels_out_of_range_are_left_out_and_counted(example):
    features, weight, bias = example
    traced = jax.jit(lambda h, y: statistics(h, y, classifier=(weight, bias)))
    found = traced(features, LABELS.at[3].set(-1).at[10].set(4))
    keep = np.delete(np.arange(40), [3, 10])
    expected = measure(features[keep], LABELS[keep], weight, bias)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-5)
    assert int(found.num_out_of_range) == 2


def test_without_a_classifier_and_without_one_over_k(example):
    nc = statistics(example[0], LABELS, normalize_by_classes=False)
    assert (nc.nc3, nc.nc3_cosine, nc.nc4) == (None, None, None)
    needs = [name for name in CollapseStatistics._fields if getattr(nc, name) is None]
    assert len(needs) == 9
    expected = measure(example[0])
    np.testing.assert_allclose(nc.nc1, 4 * expected.nc1, rtol=1e-6)
    np.testing.assert_allclose(nc[1:4], expected[1:4], rtol=1e-5)


def test_low_precision_features_are_measured_in_float32(example):
    half = example[0].astype(jnp.bfloat16)
    found = statistics(half, LABELS.astype(jnp.uint8))
    np.testing.assert_allclose(found[:4], measure(half)[:4], rtol=1e-6)


def test_precision_is_that_of_the_features(example, x64):
    shapes = jax.eval_shape(measure, example[0])
    for name in CollapseStatistics._fields[:9]:
        assert getattr(shapes, name).dtype == jnp.float32, name


def test_numpy_in_user_land(example, user_land):
    arrays: list[Any] = [np.asarray(a) for a in (LABELS, *example)]
    labels, features, weight, bias = arrays
    found = statistics(features, labels, classifier=(weight, bias))
    expected = measure(features, labels, weight, bias)
    np.testing.assert_array_equal(numbers(found), numbers(expected))


def test_vmap(example):
    stacked = jnp.stack([example[0], 2 * example[0] + example[0] ** 2])
    found = jax.vmap(lambda h: numbers(measure(h)))(stacked)
    expected = jnp.stack([numbers(measure(h)) for h in stacked])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_is_the_difference_quotient(x64):
    labels = jnp.arange(40) % 4
    features, weight, bias = map(jnp.asarray, cloud(np.arange(40) % 4, 4, 6))
    direction = jnp.asarray(np.random.default_rng(2).normal(size=(40, 6)))

    @jax.jit
    def total(h):
        nc: Any = statistics(h, labels, classifier=(weight, bias))
        return jnp.sum(numbers(nc)) + jnp.sum(more_numbers(nc)) + nc.bias_collapse

    slope = jnp.vdot(jax.grad(total)(features), direction)
    step = 1e-6
    up, down = total(features + step * direction), total(features - step * direction)
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-7)


def test_gradient_is_finite_at_a_perfect_frame():
    # All singular values coincide: the derivative of singular vectors is infinite.
    features = frame_features(0.1)
    jacobian = jax.jit(jax.jacrev(lambda h: numbers(measure(h))))(features)
    assert jnp.all(jnp.isfinite(jacobian))
    # nc1 does not change with scale, and is quadratic in the noise.
    slope = lambda direction: jnp.vdot(jacobian[0], direction)
    np.testing.assert_allclose(slope(features), 0, atol=1e-6)
    nc1 = measure(features).nc1
    np.testing.assert_allclose(slope(features - FRAME[LABELS]), 2 * nc1, rtol=1e-4)


def test_traces_once_for_the_same_shapes(example, monkeypatch):
    traces = []
    original = _statistics.report
    monkeypatch.setattr(
        _statistics, "report", lambda *a: traces.append(1) or original(*a)
    )
    for scale in [1.0, 2.0]:
        measure(scale * example[0][:33], LABELS[:33])
    assert len(traces) == 1


def test_eight_devices_give_what_one_gives(example, eight_devices):
    features, weight, bias = example
    sharding = jax.NamedSharding(eight_devices, jax.P("data"))
    h, y = jax.device_put(features, sharding), jax.device_put(LABELS, sharding)
    found = measure(h, y, weight, bias)
    expected = measure(features, LABELS, weight, bias)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-5)
    np.testing.assert_array_equal(found.class_counts, expected.class_counts)


def test_explicit_mesh_axes_are_refused_by_name(example, user_land):
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=explicit)
    features = jax.device_put(example[0], jax.NamedSharding(mesh, jax.P("data")))
    with pytest.raises(ValueError, match=r"automatic axes.*make_mesh"):
        statistics(features, LABELS)
    labels = jax.device_put(LABELS, jax.NamedSharding(mesh, jax.P("data")))
    with pytest.raises(ValueError, match=r"automatic axes.*make_mesh"):
        statistics(example[0], labels)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_more_classes_than_the_type_of_the_labels_counts(example, dtype):
    """Compared in their own type, labels below 256 are never below 0 = 256 mod 256."""
    labels = jnp.asarray(LABELS)
    few = statistics(example[0], labels.astype(dtype), num_classes=256)
    many = statistics(example[0], labels, num_classes=256)
    np.testing.assert_array_equal(few.class_counts, many.class_counts)
    assert int(few.num_out_of_range) == 0
    assert float(few.nc1) == float(many.nc1)


def test_unsigned_labels_of_64_bits(example, x64):
    labels = jnp.asarray(LABELS, jnp.uint64)
    found = statistics(jnp.asarray(example[0]), labels, num_classes=4)
    same = statistics(jnp.asarray(example[0]), labels.astype(int), num_classes=4)
    np.testing.assert_array_equal(found.class_counts, same.class_counts)


def test_ties_are_right_whatever_classes_are_called():
    features = jnp.array([[0.0], [2.0], [3.0], [3.0]])
    frame = jnp.array([[-1.0], [1.0]])
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        weight = frame[jnp.array(labels)[::2]]
        found = measure(features, jnp.array(labels), weight, -2 * weight[:, 0])
        assert found.nearest_mean_error == 0  # 2 lies in the middle of 1 and 3
        assert found.nc4 == 0


def test_a_classifier_that_is_not_finite_has_no_duality(example):
    features, weight, bias = example
    broken = jnp.asarray(weight).at[0, 0].set(jnp.nan)
    found = numbers(measure(features, LABELS, broken, bias))
    nan = np.isnan(found)
    fields = np.array(CollapseStatistics._fields[:9])
    assert fields[nan].tolist() == ["nc3", "nc3_cosine"]
    zero = measure(features, LABELS, 0 * jnp.asarray(weight), bias)
    np.testing.assert_allclose(numbers(zero)[nan], 1, rtol=1e-6)


H, Y, W = jnp.ones((6, 4)), jnp.arange(6) % 3, jnp.ones((3, 4))


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (jnp.ones(6), Y, {}, r"`features` must be a matrix.*\(6,\).*reshape"),
        (jnp.ones((6, 2, 2)), Y, {}, r"`features` must be a matrix.*\(6, 2, 2\)"),
        (jnp.ones((6, 0)), Y, {}, r"`features` must hold at least one feature"),
        (jnp.ones((0, 4)), Y, {}, r"`features` must hold at least one example"),
        (jnp.ones((6, 4), int), Y, {}, r"`features` must be floating.*int32.*Cast"),
        (np.ones((6, 4), object), Y, {}, r"`features` must be floating.*object"),
        (H, np.array(list("abcabc")), {}, r"`labels` must be a vector.*<U1"),
        (H, [0, 1, 2, 0, 1, 2], {}, r"`labels\[0\]` must have examples"),
        (H, Y, {"classifier": (W + 0j, None)}, r"`classifier\[0\]`.*complex64"),
        (H, Y, {"classifier": (W, Y[:3])}, r"`classifier\[1\]`.*int32"),
        (H, Y, {"classifier": ([[1.0] * 4] * 3, None)}, r"`classifier\[0\]`.*list"),
        (H, Y[:5], {}, r"`labels` must have as many examples.*`features`"),
        (H, jnp.eye(6, 3), {}, r"`labels` must be a vector.*\(6, 3\).*argmax"),
        (H, jnp.ones(6), {}, r"`labels` must be a vector.*float32"),
        (H, Y + 1, {"num_classes": 3}, r"`labels` must lie in \[0, 3\).*1 to 3"),
        (H, Y - 1, {}, r"`labels` must lie in \[0, 2\).*-1 to 1"),
        (H, Y * 0 + 1, {}, r"`labels` must hold at least two classes.*are 1"),
        (H, Y * 0, {"num_classes": 1}, r"`num_classes`.*at least 2, but was 1"),
        (H, Y, {"num_classes": True}, r"`num_classes`.*but was True"),
        (H, Y, {"num_classes": 3.0}, r"`num_classes`.*but was 3.0"),
        (H, Y, {"class_weights": "n"}, r"`class_weights` must be one of.*'n'"),
        (H, Y, {"cdnv": "mean"}, r"`cdnv` must be one of.*'mean'"),
        (H, Y, {"batch_size": 0}, r"`batch_size`.*but was 0"),
        (H, Y, {"classifier": W}, r"`classifier`.*pair.*but was a"),
        (H, Y, {"classifier": (W.T, None)}, r"`classifier\[0\]`.*\(4, 3\).*transpose"),
        (H, Y, {"classifier": (W[:, :2], None)}, r"d = 4 features.*\(3, 2\)\.$"),
        (H, Y, {"classifier": (W, jnp.ones(4))}, r"`classifier\[1\]`.*\(3,\).*\(4,\)"),
        (H, Y, {"classifier": (W, None), "num_classes": 4}, r"`num_classes` must be 3"),
        (H, Y, {"classifier": (W[:2], None)}, r"`labels` must lie in \[0, 2\)"),
    ],
)
def test_bad_input_names_the_fix(features, labels, options, message, user_land):
    with pytest.raises(ValueError, match=message):
        statistics(features, labels, **options)


def test_traced_labels_need_num_classes():
    with pytest.raises(ValueError, match=r"`num_classes` must be given"):
        jax.jit(statistics)(H, Y)
