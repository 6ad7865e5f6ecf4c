"""Batch sharpness as a ratio of means: against every batch there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import curvature

# One parameter w = 1, outputs w a: gradients a (a - b), curvatures a^2.
A = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
B = A - np.array([1.0, -0.6, 0.25, 2.0, -1.0, 0.5])


def measure(a, b, weight=1.0, **changes):
    options = {"batch_size": 2, "num_batches": 10_000, "average": "means"} | changes
    return curvature.batch_sharpness(
        lambda w, x: w * x,
        lambda outputs, y: (outputs - y) ** 2 / 2,
        jnp.array(weight),
        jnp.asarray(a, jnp.float32),
        jnp.asarray(b, jnp.float32),
        key=jax.random.key(0),
        **options,
    )


def test_the_ratio_of_means_and_its_error():
    pairs = [(i, j) for i in range(6) for j in range(i)]
    gradients = [np.mean((A * (A - B))[list(pair)]) for pair in pairs]
    squares = np.array(gradients) ** 2
    curved = squares * [np.mean(A[list(pair)] ** 2) for pair in pairs]
    expected = curved.mean() / squares.mean()
    error = np.std(curved - expected * squares) / (squares.mean() * np.sqrt(10_000))
    estimate = measure(A, B)
    assert abs(estimate.value - expected) < 4 * error
    # The error of a standard deviation of 10,000 draws with heavy tails.
    np.testing.assert_allclose(estimate.standard_error, error, rtol=0.05)
    assert estimate.num_samples == 10_000
    assert abs(np.mean(curved / squares) - expected) > 10 * error


@pytest.mark.parametrize("scale", [1e-22, 1e18])
def test_gradients_whose_squares_leave_single_precision(scale):
    """Weight and targets scaled: the gradients with them, the curvatures not."""
    estimate = measure(A, scale * B, weight=scale)
    np.testing.assert_allclose(estimate.value, measure(A, B).value, rtol=1e-5)
    assert np.isfinite(estimate.standard_error)


def test_batches_without_a_gradient_count_as_nothing():
    estimate = measure([1.0, 2.0], [1.0, 0.0], batch_size=1, num_batches=20)
    assert float(estimate.value) == 4.0  # curvature of the other
    assert float(estimate.standard_error) == 0.0
    assert estimate.num_samples == 20
    nowhere = measure([1.0, 2.0], [1.0, 2.0], num_batches=2)
    assert np.isnan(nowhere.value)


def test_bad_input(user_land):
    with pytest.raises(ValueError, match="`average` must be 'ratios' or 'means', but"):
        measure(A, B, average="median")
    with pytest.raises(ValueError, match="`key` must be one typed random key"):
        curvature.batch_sharpness(
            lambda w, x: w * x,
            lambda outputs, y: outputs - y,
            jnp.ones(()),
            jnp.ones(2),
            jnp.ones(2),
            batch_size=1,
            num_batches=2,
            key=3,  # pyright: ignore[reportArgumentType]
        )
