"""Kernel distance and alignment against float64 formulas and closed forms."""

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


def alignment(kernel, targets):
    """The definition with explicit ``H`` and label kernel, in float64."""
    n = len(targets)
    h = np.eye(n) - 1 / n
    a = h @ np.asarray(kernel, np.float64) @ h
    b = h @ np.asarray(targets, np.float64) @ np.asarray(targets, np.float64).T @ h
    return np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (20, 6))


@pytest.fixture(scope="module")
def kernel(features):
    return features @ features.T


@pytest.fixture(scope="module")
def labels():
    return jax.nn.one_hot(jnp.arange(20) % 3, 3)


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
    other = kernel * (1 + 1e-4 * jnp.sin(jnp.arange(20.0)))[:, None]
    expected = distance(kernel, other)
    assert expected < 1e-8
    found = kernels.kernel_distance(kernel, other)
    # Relative error: rounding of the difference, eps / sqrt(2 S).
    np.testing.assert_allclose(found, expected, rtol=4 * EPS / np.sqrt(2 * expected))


def test_distance_in_double_precision(x64, kernel):
    kernel = kernel.astype(jnp.float64)
    other = kernel + jnp.eye(20)
    found = kernels.kernel_distance(kernel, other)
    np.testing.assert_allclose(found, distance(kernel, other), rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_overflow(kernel, labels, scale):
    found = kernels.kernel_distance(scale * kernel, jnp.eye(20))
    expected = distance(kernel, np.eye(20))
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)
    found = kernels.centred_alignment(scale * kernel, labels)
    np.testing.assert_allclose(found, alignment(kernel, labels), rtol=100 * EPS)


def test_alignment_is_its_definition(kernel, labels):
    found = kernels.centred_alignment(kernel, labels)
    # 100 eps: the centred product is a small part of its summands.
    np.testing.assert_allclose(found, alignment(kernel, labels), atol=100 * EPS)


def test_alignment_in_double_precision(x64, kernel, labels):
    kernel, labels = kernel.astype(jnp.float64), labels.astype(jnp.float64)
    found = kernels.centred_alignment(kernel, labels)
    np.testing.assert_allclose(found, alignment(kernel, labels), rtol=1e-13)


def test_alignment_closed_forms(labels):
    assert abs(kernels.centred_alignment(labels @ labels.T, labels) - 1) < 4 * EPS
    # H against the projection on the m - 1 = 3 directions between 4 balanced classes.
    balanced = jax.nn.one_hot(jnp.arange(20) % 4, 4)
    found = kernels.centred_alignment(jnp.eye(20), balanced)
    np.testing.assert_allclose(found, np.sqrt(3 / 19), rtol=10 * EPS)


def test_alignment_ignores_constants(kernel, labels):
    expected = kernels.centred_alignment(kernel, labels)
    found = kernels.centred_alignment(kernel + 1000, labels - 3)
    # Adding 1,000 rounds the kernel's entries to 1000 eps.
    np.testing.assert_allclose(found, expected, atol=1000 * EPS)


def test_plain_alignment_is_biased_upwards():
    keys = jax.random.split(jax.random.key(2))
    x, y = (jax.random.normal(key, (100, 1000)) for key in keys)
    # .91 on the reference page, with a spread below .01 between draws.
    assert abs(kernels.centred_alignment(x @ x.T, y) - 0.91) < 0.01


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_undefined_is_nan(kernel, labels, value):
    constant = jnp.full((20, 20), value)
    assert jnp.isnan(kernels.centred_alignment(constant, labels))
    assert jnp.isnan(kernels.centred_alignment(kernel, jnp.full((20, 2), value)))
    assert jnp.isnan(kernels.kernel_distance(kernel, 0 * kernel))
    assert jnp.isnan(kernels.kernel_distance(kernel.at[0, 0].set(jnp.inf), kernel))
    assert jnp.isnan(kernels.centred_alignment(kernel.at[0, 1].set(jnp.nan), labels))


def test_works_under_jit_vmap_and_grad(kernel, labels):
    scales = jnp.array([0.0, 0.5])

    def measure(scale):
        changed = kernel + scale * jnp.eye(20)
        return (
            kernels.kernel_distance(changed, kernel),
            kernels.centred_alignment(changed, labels),
        )

    distances, alignments = jax.jit(jax.vmap(measure))(scales)
    changed = kernel + 0.5 * jnp.eye(20)
    assert distances[0] <= (10 * EPS) ** 2
    expected = distance(changed, kernel)
    np.testing.assert_allclose(distances[1], expected, rtol=1e-4)
    np.testing.assert_allclose(
        alignments[1], alignment(changed, labels), atol=100 * EPS
    )
    slopes = jax.jacfwd(measure)(0.5), jax.jacrev(measure)(0.5)
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-4)


@pytest.mark.usefixtures("user_land")
def test_bad_input(kernel, labels):
    with pytest.raises(ValueError, match=r"`kernel2` must have the shape of `kernel1`"):
        kernels.kernel_distance(kernel, kernel[:3])
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.centred_alignment(kernel[:, :3], labels)
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.centred_alignment(jnp.ones((3, 3, 2, 2)), labels[:3])
    with pytest.raises(ValueError, match=r"`targets` must have as many examples"):
        kernels.centred_alignment(kernel, labels[:3])
    with pytest.raises(ValueError, match=r"`targets` must be \[n, k\].*one_hot"):
        kernels.centred_alignment(kernel, labels[:, 0])
