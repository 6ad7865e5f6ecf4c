"""Streamed class moments and statistics against NumPy in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import (
    CollapseStatistics,
    _accumulator,
    accumulator,
    statistics,
    statistics_from_batches,
)

EPS = float(np.finfo(np.float32).eps)
K, D, N = 4, 6, 48


def cloud(*, offset=0.0, noise=0.5, gap=1.0, seed=0):
    """Gaussian classes of 25, 13, 9 and 1 examples, in any order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(K), [25, 13, 9, 1]))
    means = gap * rng.normal(size=(K, D))
    features = means[labels] + noise * rng.normal(size=(N, D)) + offset
    return features.astype(np.float32), labels.astype(np.int32)


def truth(features, labels):
    """Counts, class means and class variances in double precision."""
    h = np.asarray(features, np.float64)
    means = np.array([h[labels == c].mean(0) for c in range(K)])
    variances = [((h[labels == c] - means[c]) ** 2).sum(1).mean() for c in range(K)]
    return np.bincount(labels, minlength=K), means, np.array(variances)


def stream(features, labels, size=12):
    """The accumulator of all, in batches of one size."""
    acc = accumulator.init(K, D)
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        h, y = jnp.asarray(features[rows]), jnp.asarray(labels[rows])
        acc = accumulator.update(acc, h, y)
    return acc


def in_units(summary):
    """Class means and variances in the units of the features."""
    unit = float(summary.unit)
    double = lambda a: np.asarray(a, np.float64)
    means = double(summary.origin)[None, :] + double(summary.means)
    return unit * means, unit**2 * double(summary.variances)


@pytest.mark.parametrize("scale", [1.0, 2.0**80, 2.0**-80])
def test_streamed_moments_are_those_of_all(scale):
    features, labels = cloud(offset=3.0)
    summary = accumulator.finalize(stream(features * np.float32(scale), labels))
    counts, means, variances = truth(features, labels)
    found_means, found_variances = in_units(summary)
    np.testing.assert_array_equal(summary.counts, counts)
    np.testing.assert_allclose(found_means / scale, means, atol=20 * EPS)
    np.testing.assert_allclose(
        found_variances / scale**2, variances, rtol=40 * EPS, atol=1e-12
    )
    power = np.sqrt((np.float64(features) ** 2).sum(1).mean())
    np.testing.assert_allclose(
        summary.resolution, power * scale / summary.unit, rtol=1e-6
    )


def test_small_scatter_far_from_the_origin_is_not_lost():
    """A sum of squares minus the square of the sum gives 0.0 in float32 here."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % K
    noise = np.sqrt(1.28e-6 / D) * rng.normal(size=(N, D))
    features = (20 + noise).astype(np.float32)
    naive = np.sum(features**2, axis=0) - np.sum(features, axis=0) ** 2 / N
    assert np.abs(naive).max() > 1e-4 or (naive == 0).all()  # nothing like 1e-5
    counts, means, variances = truth(features, labels)
    summary = accumulator.finalize(stream(features, labels))
    found_means, found = in_units(summary)
    np.testing.assert_allclose(found, variances, rtol=1e-5)
    assert 0.8e-6 < found @ counts / N < 1.6e-6
    # Class means differ by 1e-4: their differences keep five digits too.
    found_gaps = np.asarray(summary.means, np.float64) * float(summary.unit)
    np.testing.assert_allclose(
        found_gaps - found_gaps[:1], means - means[:1], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(found_means, means, atol=2e-6)


def test_merging_in_any_order_and_with_nothing():
    features, labels = cloud(offset=3.0)
    halves = stream(features[:24], labels[:24]), stream(features[24:], labels[24:])
    expected = in_units(accumulator.finalize(stream(features, labels)))
    empty = accumulator.init(K, D)
    for pair in [halves, halves[::-1]]:
        merged = accumulator.merge(*pair)
        for acc in [merged, accumulator.merge(empty, merged)]:
            found = in_units(accumulator.finalize(acc))
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    alone = accumulator.merge(empty, halves[0])
    for a, b in zip(alone, halves[0], strict=True):
        np.testing.assert_array_equal(a, b)
    nothing = accumulator.finalize(accumulator.merge(empty, empty))
    assert not np.any([np.any(nothing.counts), np.any(nothing.means)])


def test_what_cannot_be_used_is_counted():
    features, labels = cloud()
    broken, wrong = features.copy(), labels.copy()
    broken[3, 2], broken[20, 0], wrong[7], wrong[30] = np.nan, np.inf, -1, K
    acc = stream(broken, wrong)
    keep = np.delete(np.arange(N), [3, 20, 7, 30])
    counts, means, variances = truth(features[keep], labels[keep])
    assert (int(acc.num_nonfinite), int(acc.num_out_of_range)) == (2, 2)
    found_means, found_variances = in_units(accumulator.finalize(acc))
    np.testing.assert_array_equal(acc.counts, counts)
    np.testing.assert_allclose(found_means, means, atol=1e-5)
    np.testing.assert_allclose(found_variances, variances, rtol=1e-5, atol=1e-12)


def test_scan_vmap_and_jit():
    features, labels = cloud()
    h, y = jnp.reshape(features, (4, 12, D)), jnp.reshape(labels, (4, 12))
    step = lambda acc, batch: (accumulator.update(acc, *batch), None)
    scanned = jax.jit(lambda acc: jax.lax.scan(step, acc, (h, y))[0])
    expected = stream(features, labels)
    found = scanned(accumulator.init(K, D))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    empty = accumulator.init(K, D)
    many = jax.vmap(lambda h, y: accumulator.update(empty, h, y))(h, y)
    merged = many
    while merged.counts.shape[0] > 1:  # a tree of merges, as over devices
        half = merged.counts.shape[0] // 2
        parts = [
            jax.tree.map(lambda a, s=s: a[s], merged)
            for s in (slice(half), slice(half, None))
        ]
        merged = jax.vmap(accumulator.merge)(*parts)
    summary = accumulator.finalize(jax.tree.map(lambda a: a[0], merged))
    wanted = in_units(accumulator.finalize(expected))
    for a, b in zip(in_units(summary), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_update_traces_once_and_never_holds_a_d_by_d_matrix(monkeypatch):
    features, labels = cloud()
    traces = []
    original = _accumulator.class_moments
    monkeypatch.setattr(
        _accumulator, "class_moments", lambda *a: traces.append(1) or original(*a)
    )
    stream(features[:44], labels[:44], size=11)
    assert len(traces) == 1
    big = 3001
    shapes = jax.make_jaxpr(accumulator.update)(
        accumulator.init(3, big), jnp.ones((5, big)), jnp.zeros(5, int)
    )
    assert f"{big},{big}" not in str(shapes)


def test_double_precision(x64):
    features, labels = cloud(offset=3.0)
    double = np.float64(features) + 1e-9 * np.random.default_rng(1).normal(size=(N, D))
    summary = accumulator.finalize(stream(double, labels))
    assert summary.means.dtype == jnp.float64
    np.testing.assert_allclose(
        in_units(summary)[1], truth(double, labels)[2], rtol=1e-13
    )
    single = accumulator.init(K, D, dtype=jnp.float32)
    updated = accumulator.update(single, jnp.asarray(double), jnp.asarray(labels))
    assert updated.means.dtype == jnp.float32


def numbers(nc):
    """Every real number of the record, in one vector."""
    fields = [f for f in CollapseStatistics._fields if not f.startswith(("num", "cla"))]
    return np.array([float(getattr(nc, name)) for name in fields])


@pytest.fixture(scope="module")
def problem():
    """Features, labels and classifier, and their statistics in one batch."""
    features, labels = cloud(offset=1.0)
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(K, D)).astype(np.float32)
    bias = rng.normal(size=K).astype(np.float32)
    classifier = (jnp.asarray(weight), jnp.asarray(bias))
    whole = statistics(
        jnp.asarray(features), jnp.asarray(labels), classifier=classifier
    )
    return features, labels, classifier, whole


def test_statistics_from_batches_are_those_of_all(problem):
    features, labels, classifier, whole = problem
    order = np.random.default_rng(4).permutation(N)
    batches = [(features[r], labels[r]) for r in np.split(order, [20, 40])]
    found = statistics_from_batches(batches, classifier=classifier)
    np.testing.assert_allclose(numbers(found), numbers(whole), rtol=1e-5)
    for name in ["class_counts", "class_variances", "classifier_error"]:
        np.testing.assert_allclose(
            getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-9
        )
    halved = [(2 * h, y) for h, y in batches]
    again = statistics_from_batches(
        halved, classifier=classifier, features_fn=lambda x: x / 2
    )
    np.testing.assert_array_equal(numbers(again), numbers(found))
    anew = statistics_from_batches(lambda: iter(batches), classifier=classifier)
    np.testing.assert_array_equal(numbers(anew), numbers(found))


class Shrinking:
    """Batches of which one is lost each time."""

    def __init__(self, count):
        self.left = [(H, Y)] * count

    def __iter__(self):
        yield from self.left
        self.left = self.left[1:]


def test_chunks_and_eight_devices_give_the_same(problem, eight_devices):
    features, labels, classifier, whole = problem
    sharding = jax.NamedSharding(eight_devices, jax.P("data"))
    h, y = jax.device_put(features, sharding), jax.device_put(labels, sharding)
    local = jnp.asarray(features), jnp.asarray(labels)
    for data, size in [(local, 20), ((h, y), 4), ((h, y), None)]:
        found = statistics(*data, classifier=classifier, batch_size=size)
        np.testing.assert_allclose(numbers(found), numbers(whole), rtol=1e-5)
    acc = accumulator.update(accumulator.init(K, D), h, y)
    expected = accumulator.update(accumulator.init(K, D), *local)
    for a, b in zip(acc, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_keep_the_gradient(problem):
    features, labels, _, _ = problem
    h, y = jnp.asarray(features), jnp.asarray(labels)
    whole, chunked = (
        jax.grad(lambda h, s=size: statistics(h, y, batch_size=s).nc1)(h)
        for size in (None, 20)
    )
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(chunked, whole, rtol=0, atol=1e-5 * scale)


H: Any = jnp.ones((6, 4))
Y: Any = jnp.arange(6) % 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accumulator.init(1, 3), r"`num_classes`.*at least 2, but was 1"),
        (lambda: accumulator.init(2, 0), r"`dim`.*at least 1, but was 0"),
        (lambda: accumulator.init(2, 3, dtype=jnp.bfloat16), r"`dtype`.*bfloat16"),
        (lambda: accumulator.init(2, 3, dtype=jnp.int32), r"`dtype`.*int32"),
        (
            lambda: accumulator.update(accumulator.init(3, 5), H, Y),
            r"`features` must have the 5 features.*\(6, 4\)",
        ),
        (
            lambda: accumulator.update(accumulator.init(3, 4), H, jnp.eye(6, 3)),
            r"`labels` must be a vector.*argmax",
        ),
        (
            lambda: accumulator.merge(accumulator.init(3, 4), accumulator.init(3, 5)),
            r"`b` must have the shapes.*\(3, 5\).*\(3, 4\)",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (iter([(H, Y)]), {"num_classes": 3}, r"`batches`.*iterate over twice"),
        (5, {"num_classes": 3}, r"`batches`.*but was a int"),
        ([], {"num_classes": 3}, r"`batches`.*at least one"),
        (Shrinking(2), {"num_classes": 3}, r"`batches`.*held 12 and then 6"),
        (Shrinking(1), {"num_classes": 3}, r"`batches`.*held 6 and then 0"),
        ([(H, Y)], {}, r"`num_classes` must be given"),
        ([H], {"num_classes": 3}, r"`batches` must hold pairs"),
        ([(H, Y[:5])], {"num_classes": 3}, r"`labels` must have as many"),
        ([(H, Y)], {"num_classes": 3, "cdnv": "mean"}, r"`cdnv` must be one of.*mean"),
        ([(H, Y)], {"num_classes": 3, "class_weights": 1}, r"`class_weights`.*was 1"),
    ],
)
def test_bad_batches_name_the_fix(batches: Any, options, message, user_land):
    with pytest.raises(ValueError, match=message):
        statistics_from_batches(batches, **options)
