"""Spectrum summaries against their definitions in float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import kernels

EPS = float(np.finfo(np.float32).eps)


def expected(values, ridge):
    p = values / values.sum()
    return {
        "eigenvalues": values,
        "trace": values.sum(),
        "effective_dimension": np.sum(values / (values + ridge)),
        "participation_ratio": values.sum() ** 2 / np.sum(values**2),
        "stable_rank": values.sum() / values[0],
        "effective_rank": np.exp(-np.sum(p * np.log(p))),
        "condition_number": values[0] / values[-1],
        "num_negative": 0,
        "num_nonfinite": 0,
    }


def check(summary, values, ridge, rtol):
    for name, value in expected(values, ridge).items():
        np.testing.assert_allclose(getattr(summary, name), value, rtol, err_msg=name)


def decaying(n=8):
    values = 2.0 ** -np.arange(n)
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    return values, vectors * values @ vectors.T


def test_kernel_and_eigenvalues_give_the_definitions():
    values, kernel = decaying()
    summarise = jax.jit(kernels.spectrum_summary)
    # The smallest eigenvalue is 1/128: a relative error of 128 eps times a few.
    check(summarise(jnp.asarray(kernel), ridge=0.1), values, 0.1, 128 * 10 * EPS)
    shuffled = jnp.asarray(np.random.default_rng(0).permutation(values))
    check(summarise(shuffled, ridge=0.1), values, 0.1, 10 * EPS)


def test_in_double_precision(x64):
    values, kernel = decaying()
    summary = kernels.spectrum_summary(jnp.asarray(kernel), ridge=0.1)
    check(summary, values, 0.1, 1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_flat_spectrum_has_every_dimension(scale):
    summary = kernels.spectrum_summary(scale * jnp.eye(5))
    names = "effective_dimension participation_ratio stable_rank effective_rank"
    for name in names.split():
        np.testing.assert_allclose(getattr(summary, name), 5, rtol=10 * EPS)
    assert summary.condition_number == 1


def test_singular_and_indefinite_kernels_say_so():
    x = jax.random.normal(jax.random.key(0), (20, 3))
    summary = kernels.spectrum_summary(jnp.matmul(x, x.T, precision="highest"))
    assert summary.effective_dimension == 3
    assert jnp.isinf(summary.condition_number)
    assert summary.num_negative == 0
    summary = kernels.spectrum_summary(jnp.array([-0.5, 1.0, 0.0, 1.0]))
    assert summary.num_negative == 1
    assert summary.effective_rank.round(5) == summary.trace == 2
    summary = kernels.spectrum_summary(jnp.zeros((2, 2)))
    assert jnp.isnan(summary.stable_rank)
    assert jnp.isnan(summary.effective_rank)
    assert summary.effective_dimension == 0


def test_what_is_not_finite_is_counted():
    summary = kernels.spectrum_summary(jnp.eye(4).at[0, 1].set(jnp.nan))
    assert summary.num_nonfinite == 1
    assert all(jnp.all(jnp.isnan(value)) for value in summary[:-2])


def test_works_under_vmap_over_ridges_and_in_grad():
    values, _ = decaying()
    ridges = jnp.array([0.0, 0.1, 1.0])
    dimension = lambda ridge: (
        kernels.spectrum_summary(jnp.asarray(values), ridge=ridge).effective_dimension
    )
    found = jax.vmap(dimension)(ridges)
    expected = [np.sum(values / (values + ridge)) for ridge in np.asarray(ridges)]
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)
    slope = -np.sum(values / (values + 0.1) ** 2)
    np.testing.assert_allclose(jax.grad(dimension)(0.1), slope, rtol=20 * EPS)


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.spectrum_summary(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"`ridge` must be 0 or positive, but was -1"):
        kernels.spectrum_summary(jnp.eye(2), ridge=-1.0)
    with pytest.raises(ValueError, match=r"`kernel` must be an array of real numbers"):
        kernels.spectrum_summary(1j * jnp.eye(2))
    with pytest.raises(ValueError, match=r"`kernel` must hold at least one example"):
        kernels.spectrum_summary(jnp.zeros((0, 0)))
