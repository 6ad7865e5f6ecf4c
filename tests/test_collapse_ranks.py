"""Effective ranks against singular values in NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import effective_ranks


def oracle(matrix):
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    values = values[values > 1e-9 * values[0]]
    shares = values / values.sum()
    return [
        values.sum() ** 2 / (values**2).sum(),
        (values**2).sum() / values[0] ** 2,
        np.exp(-(shares * np.log(shares)).sum()),
    ]


@pytest.mark.parametrize("scale", [1.0, 2.0**90, 2.0**-90])
def test_ranks_against_singular_values(scale):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 5)) * np.array([4.0, 2.0, 1.0, 0.5, 0.1])
    found = effective_ranks(jnp.asarray(scale * matrix, jnp.float32))
    np.testing.assert_allclose(jnp.stack(found[:3]), oracle(matrix), rtol=1e-5)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.singular_values / scale, values, rtol=1e-5)


def test_a_simplex_frame_has_one_direction_less_than_vectors():
    frame = np.zeros((12, 5))
    frame[:5] = np.eye(5) - 1 / 5
    ranks = effective_ranks(jnp.asarray(frame, jnp.float32))
    np.testing.assert_allclose(jnp.stack(ranks[:3]), 4, rtol=1e-5)
    far = effective_ranks(jnp.asarray(frame + 100, jnp.float32))
    np.testing.assert_allclose(jnp.stack(far[:3]), 1, rtol=0.1)


def test_nothing_to_measure_is_nan():
    zero = jnp.zeros((12, 5))
    for matrix in [zero, zero.at[0, 0].set(jnp.nan), zero.at[0, 0].set(jnp.inf)]:
        assert all(jnp.isnan(value) for value in effective_ranks(matrix)[:3])


def test_half_precision_is_measured_in_float32():
    matrix = np.random.default_rng(1).normal(size=(12, 5))
    half = jnp.asarray(matrix, jnp.bfloat16)
    found = effective_ranks(half)
    assert found.numerical.dtype == jnp.float32
    np.testing.assert_allclose(jnp.stack(found[:3]), oracle(half), rtol=1e-5)


def test_bad_input_names_the_fix(user_land):
    vector: Any = jnp.ones(3)
    with pytest.raises(ValueError, match=r"`features` must be a matrix.*\(3,\)"):
        effective_ranks(vector)
