"""Kernel distance and alignment against float64 formulas and closed forms."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import kernels

EPS = float(np.finfo(np.float32).eps)


def distance(kernel1, kernel2):
    """The definition, in float64."""
    a, b = np.asarray(kernel1, np.float64), np.asarray(kernel2, np.float64)
    return 1 - np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


def biased_alignment(kernel, targets):
    """The definition with explicit ``H`` and label kernel, in float64."""
    n = len(targets)
    h = np.eye(n) - 1 / n
    a = h @ np.asarray(kernel, np.float64) @ h
    b = h @ np.asarray(targets, np.float64) @ np.asarray(targets, np.float64).T @ h
    return np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


def unbiased_hsic(kernel1, kernel2):
    """HSIC_1 as a sum over tuples of examples that are all different."""
    n = len(kernel1)
    pairs = np.mean([kernel1[t] * kernel2[t] for t in permutations(range(n), 2)])
    threes = permutations(range(n), 3)
    triples = np.mean([kernel1[i, j] * kernel2[i, k] for i, j, k in threes])
    fours = permutations(range(n), 4)
    quadruples = np.mean([kernel1[i, j] * kernel2[k, m] for i, j, k, m in fours])
    return pairs - 2 * triples + quadruples


def alignment(kernel, targets):
    """The definition: a ratio of U-statistics, in float64."""
    a = np.asarray(kernel, np.float64)
    b = np.asarray(targets, np.float64) @ np.asarray(targets, np.float64).T
    norms = unbiased_hsic(a, a) * unbiased_hsic(b, b)
    return unbiased_hsic(a, b) / np.sqrt(norms)


ORACLES = {"debiased": alignment, "biased": biased_alignment}


@pytest.fixture(params=ORACLES)
def estimator(request):
    return request.param


@pytest.fixture(scope="module")
def kernel():
    features = jax.random.normal(jax.random.key(0), (10, 6))
    return features @ features.T


@pytest.fixture(scope="module")
def labels():
    return jax.nn.one_hot(jnp.arange(10) % 3, 3)


@pytest.mark.parametrize("shape", [(8, 8), (5, 3), (3, 3, 2, 2)])
def test_distance_is_its_definition(shape):
    keys = jax.random.split(jax.random.key(1))
    kernel1, kernel2 = (jax.random.normal(key, shape) for key in keys)
    found = kernels.kernel_distance(kernel1, kernel2)
    np.testing.assert_allclose(found, distance(kernel1, kernel2), atol=10 * EPS)


def test_distance_closed_forms():
    identity, ones = jnp.eye(4), jnp.ones((4, 4))
    # <I, 11^T> = 4, |I| = 2, |11^T| = 4.
    found = kernels.kernel_distance(identity, ones)
    np.testing.assert_allclose(found, 0.5, atol=4 * EPS)
    np.testing.assert_allclose(kernels.kernel_distance(ones, -ones), 2, atol=4 * EPS)
    assert kernels.kernel_distance(ones, ones) == 0


def test_close_kernels_keep_their_digits(kernel):
    # The definition in float32 would give multiples of 6e-8.
    other = kernel * (1 + 1e-4 * jnp.sin(jnp.arange(10.0)))[:, None]
    expected = distance(kernel, other)
    assert expected < 1e-8
    found = kernels.kernel_distance(kernel, other)
    # Relative error: rounding of the difference, eps / sqrt(2 S).
    np.testing.assert_allclose(found, expected, rtol=4 * EPS / np.sqrt(2 * expected))


def test_distance_in_double_precision(x64, kernel):
    kernel = kernel.astype(jnp.float64)
    other = kernel + jnp.eye(10)
    found = kernels.kernel_distance(kernel, other)
    np.testing.assert_allclose(found, distance(kernel, other), rtol=1e-13)


def test_velocity_is_distance_per_time(kernel):
    other = kernel + jnp.eye(10)
    found = jax.jit(kernels.kernel_velocity)(kernel, other, time=0.25)
    np.testing.assert_allclose(found, 4 * distance(kernel, other), rtol=100 * EPS)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_change_is_its_definition(kernel, scale):
    other = kernel + jnp.eye(10)
    a, b = np.asarray(kernel, np.float64), np.asarray(other, np.float64)
    expected = np.linalg.norm(b - a) / np.linalg.norm(a)
    found = kernels.kernel_change(scale * kernel, scale * other)
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)
    assert kernels.kernel_change(kernel, 3 * kernel).round(5) == 2
    assert kernels.kernel_change(kernel, kernel) == 0
    assert jnp.isnan(kernels.kernel_change(0 * kernel, kernel))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_uncentred_alignment_is_its_definition(kernel, labels, scale):
    a = np.asarray(kernel, np.float64)
    b = np.asarray(labels, np.float64) @ np.asarray(labels, np.float64).T
    expected = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    found = jax.jit(kernels.uncentred_alignment)(scale * kernel, labels)
    np.testing.assert_allclose(found, expected, atol=10 * EPS)
    y = labels[:, :1] - 0.5
    found = kernels.uncentred_alignment(kernel + 3, y)
    expected = y[:, 0] @ (a + 3) @ y[:, 0] / (np.linalg.norm(a + 3) * np.sum(y**2))
    np.testing.assert_allclose(found, expected, atol=10 * EPS)
    assert jnp.isnan(kernels.uncentred_alignment(kernel, 0 * labels))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_overflow(kernel, labels, estimator, scale):
    found = kernels.kernel_distance(scale * kernel, jnp.eye(10))
    expected = distance(kernel, np.eye(10))
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)
    measure = partial(kernels.centred_alignment, estimator=estimator)
    expected = ORACLES[estimator](kernel, labels)
    for found in (measure(scale * kernel, labels), measure(kernel, scale * labels)):
        np.testing.assert_allclose(found, expected, atol=100 * EPS)


def test_alignment_is_its_definition(kernel, labels, estimator):
    found = kernels.centred_alignment(kernel, labels, estimator=estimator)
    # 100 eps: the centred product is a small part of its summands.
    expected = ORACLES[estimator](kernel, labels)
    np.testing.assert_allclose(found, expected, atol=100 * EPS)


def test_alignment_in_double_precision(x64, kernel, labels, estimator):
    kernel, labels = kernel.astype(jnp.float64), labels.astype(jnp.float64)
    found = kernels.centred_alignment(kernel, labels, estimator=estimator)
    np.testing.assert_allclose(found, ORACLES[estimator](kernel, labels), atol=1e-14)


def test_alignment_closed_forms(labels, estimator):
    measure = partial(kernels.centred_alignment, estimator=estimator)
    # A product and two norms, each of 100 terms.
    assert abs(measure(labels @ labels.T, labels) - 1) < 3 * np.sqrt(100) * EPS
    # H against the projection on the m - 1 = 4 directions between 5 balanced classes;
    # debiased, the identity is no kernel at all.
    balanced = jax.nn.one_hot(jnp.arange(10) % 5, 5)
    found = measure(jnp.eye(10), balanced)
    expected = {"biased": np.sqrt(4 / 9), "debiased": np.nan}[estimator]
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)


def test_alignment_ignores_constants(kernel, labels, estimator):
    measure = partial(kernels.centred_alignment, estimator=estimator)
    # Adding 1,000 rounds the kernel's entries to 1000 eps.
    np.testing.assert_allclose(
        measure(kernel + 1000, labels - 3), measure(kernel, labels), atol=1000 * EPS
    )


def test_debiased_alignment_ignores_the_diagonal(kernel, labels):
    found = kernels.centred_alignment(kernel + jnp.eye(10), labels)
    expected = kernels.centred_alignment(kernel, labels)
    np.testing.assert_allclose(found, expected, atol=100 * EPS)


def test_labels_that_say_nothing_give_zero_on_average(kernel):
    """Over all orders of the labels, exactly; the biased form is far above."""
    orders = jnp.array(list(permutations(range(6))))
    labels = jax.nn.one_hot(jnp.arange(6) % 2, 2)

    def mean(estimator):
        measure = partial(kernels.centred_alignment, estimator=estimator)
        each = jax.vmap(lambda order: measure(kernel[:6, :6], labels[order]))(orders)
        return jnp.mean(each), jnp.min(each)

    average, smallest = mean("debiased")
    assert abs(average) < 10 * EPS
    assert smallest < -0.1
    assert mean("biased")[0] > 0.3


def test_biased_alignment_of_independent_features():
    keys = jax.random.split(jax.random.key(2))
    x, y = (jax.random.normal(key, (100, 1000)) for key in keys)
    # .91 on the reference page, with a spread below .01 between draws; the debiased
    # one is of the order of 1 / n.
    biased = kernels.centred_alignment(x @ x.T, y, estimator="biased")
    assert abs(biased - 0.91) < 0.01
    assert abs(kernels.centred_alignment(x @ x.T, y)) < 0.05


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool, jnp.float16])
def test_types_in_which_differences_go_wrong(kernel, labels, estimator, dtype):
    """An unsigned 0 - 1 is 255."""
    measure = partial(kernels.centred_alignment, estimator=estimator)
    expected = measure(kernel, labels)
    np.testing.assert_allclose(measure(kernel, labels.astype(dtype)), expected)
    same = (labels @ labels.T + jnp.eye(10)).astype(dtype)
    expected = measure(same.astype(jnp.float32), labels)
    np.testing.assert_allclose(measure(same, labels), expected)
    distance = kernels.kernel_distance(same, jnp.eye(10, dtype=dtype))
    assert distance.dtype == jnp.float32


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_undefined_is_nan(kernel, labels, estimator, value):
    measure = partial(kernels.centred_alignment, estimator=estimator)
    assert jnp.isnan(measure(jnp.full((10, 10), value), labels))
    assert jnp.isnan(measure(kernel, jnp.full((10, 2), value)))
    assert jnp.isnan(measure(kernel.at[0, 1].set(jnp.nan), labels))
    assert jnp.isnan(measure(kernel.at[0, 0].set(jnp.inf), labels))
    assert jnp.isnan(kernels.kernel_distance(kernel, 0 * kernel))
    assert jnp.isnan(kernels.kernel_distance(kernel.at[0, 0].set(jnp.inf), kernel))


def test_rounding_errors_are_not_aligned(kernel, labels):
    """A class for each example, and a kernel that is one up to rounding."""
    assert jnp.isnan(kernels.centred_alignment(kernel, jnp.eye(10)))
    identity = jnp.linalg.qr(kernel)[0]
    identity = 3 * identity @ identity.T
    assert jnp.any(identity[0, 1:] != 0)
    assert jnp.isnan(kernels.centred_alignment(identity, labels))


def test_works_under_jit_vmap_and_grad(kernel, labels, estimator):
    scales = jnp.array([0.0, 0.5])
    other = labels @ labels.T

    def measure(scale):
        changed = kernel + scale * other
        return (
            kernels.kernel_distance(changed, kernel),
            kernels.centred_alignment(changed, labels, estimator=estimator),
        )

    distances, alignments = jax.jit(jax.vmap(measure))(scales)
    changed = kernel + 0.5 * other
    assert distances[0] <= (10 * EPS) ** 2
    expected = distance(changed, kernel)
    np.testing.assert_allclose(distances[1], expected, rtol=1e-4)
    expected = ORACLES[estimator](changed, labels)
    np.testing.assert_allclose(alignments[1], expected, atol=100 * EPS)
    slopes = jax.jacfwd(measure)(0.5), jax.jacrev(measure)(0.5)
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-4)


@pytest.mark.usefixtures("user_land")
def test_bad_input(kernel, labels):
    with pytest.raises(ValueError, match=r"`kernel2` must have the shape of `kernel1`"):
        kernels.kernel_distance(kernel, kernel[:3])
    with pytest.raises(ValueError, match=r"`kernel2` must hold at least one example"):
        kernels.kernel_distance(kernel, kernel[:0])
    with pytest.raises(ValueError, match=r"`kernel2` must have the shape of `kernel1`"):
        kernels.kernel_change(kernel, kernel[:3])
    for time in (0, -1.0, jnp.inf, jnp.ones(2)):
        with pytest.raises(ValueError, match="`time` must be positive and finite"):
            kernels.kernel_velocity(kernel, kernel, time=time)
    with pytest.raises(ValueError, match=r"`targets` must be \[n, k\]"):
        kernels.uncentred_alignment(kernel, labels[:, 0])
    with pytest.raises(ValueError, match=r"`kernel1\[0\]\[0\]` must have examples"):
        kernels.kernel_distance([[1.0]], kernel)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`kernel1` must be an array of real .*64"):
        kernels.kernel_distance(1j * kernel, kernel)
    with pytest.raises(ValueError, match="`kernel` must be an array of real numbers"):
        kernels.centred_alignment(1j * kernel, labels)
    with pytest.raises(ValueError, match="`targets` must be an array of real numbers"):
        kernels.centred_alignment(kernel, 1j * labels)
    with pytest.raises(ValueError, match=r"`targets` must be \[n, k\].*\(10, 0\)"):
        kernels.centred_alignment(kernel, labels[:, :0])
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.centred_alignment(kernel[:, :3], labels)
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.centred_alignment(jnp.ones((3, 3, 2, 2)), labels[:3])
    with pytest.raises(ValueError, match=r"`targets` must have as many examples"):
        kernels.centred_alignment(kernel, labels[:3])
    with pytest.raises(ValueError, match=r"`targets` must be \[n, k\].*one_hot"):
        kernels.centred_alignment(kernel, labels[:, 0])
    with pytest.raises(ValueError, match=r"`estimator` must be one of .*'plain'"):
        kernels.centred_alignment(kernel, labels, estimator="plain")
    with pytest.raises(ValueError, match=r"at least 4 examples .*\(3, 3\)"):
        kernels.centred_alignment(kernel[:3, :3], labels[:3])
