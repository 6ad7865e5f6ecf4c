"""Kernel regression against SciPy solves, refits without each example, scikit-learn."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from sklearn.kernel_ridge import KernelRidge

from jaxtheory import kernels

N, M, K = 12, 5, 2


def problem(num_features=30, duplicate=False):
    """Linear-kernel regression in float64: kernel, targets, test kernel."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, num_features)) / np.sqrt(num_features)
    z = rng.normal(size=(M, num_features)) / np.sqrt(num_features)
    if duplicate:
        x[1] = x[0]
    return x @ x.T, rng.normal(size=(N, K)), z @ x.T


def regress(kernel, targets, kernel_test, ridge, dtype=jnp.float32):
    """The regression under test, on arrays of `dtype`."""
    arrays = (jnp.asarray(a, dtype) for a in (kernel, targets, kernel_test))
    return kernels.kernel_regression(*arrays, ridge=ridge)


def refit(kernel, targets, ridge):
    """Leave-one-out residuals, one pseudo-inverse for each example."""
    residuals = np.empty_like(targets)
    for i in range(len(targets)):
        rest = np.delete(np.arange(len(targets)), i)
        inner = kernel[np.ix_(rest, rest)] + ridge * np.eye(len(rest))
        solution = scipy.linalg.pinvh(inner, rtol=1e-10) @ targets[rest]
        residuals[i] = targets[i] - kernel[i, rest] @ solution
    return residuals


def tolerance(fit, factor=10):
    """`factor` times the documented relative error, ``eps * condition``."""
    return factor * float(jnp.finfo(fit.coefficients.dtype).eps * fit.condition)


def assert_close(found, expected, relative):
    """Agreement to `relative` of the largest entry."""
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * scale)


@pytest.mark.parametrize("ridge", [0, 0.01, 10.0])
def test_matches_direct_solve(ridge):
    kernel, targets, kernel_test = problem()
    fit = regress(kernel, targets, kernel_test, ridge)
    shifted = kernel + ridge * np.eye(N)
    coefficients = scipy.linalg.solve(shifted, targets, assume_a="pos")
    assert_close(fit.coefficients, coefficients, tolerance(fit))
    assert_close(fit.predictions, kernel_test @ coefficients, tolerance(fit))
    assert_close(fit.leave_one_out, refit(kernel, targets, ridge), tolerance(fit))
    np.testing.assert_allclose(fit.condition, np.linalg.cond(shifted), rtol=1e-4)
    assert fit.num_dropped == 0
    assert fit.num_nonfinite == 0


def test_double_precision(x64):
    kernel, targets, kernel_test = problem()
    fit = regress(kernel, targets, kernel_test, 0.01, jnp.float64)
    coefficients = scipy.linalg.solve(kernel + 0.01 * np.eye(N), targets)
    assert_close(fit.coefficients, coefficients, 1e-12)
    assert_close(fit.predictions, kernel_test @ coefficients, 1e-12)
    assert_close(fit.leave_one_out, refit(kernel, targets, 0.01), 1e-12)


def cross_validation(kernel, targets, ridge):
    """Generalised cross-validation through an explicit inverse."""
    inverse = np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
    return np.mean((inverse @ targets) ** 2, axis=0) / np.mean(np.diag(inverse)) ** 2


def test_generalised_cross_validation(x64):
    kernel, targets, kernel_test = problem()
    fit = regress(kernel, targets, kernel_test, 0.3, jnp.float64)
    expected = cross_validation(kernel, targets, 0.3)
    np.testing.assert_allclose(fit.generalised_cross_validation, expected, rtol=1e-12)
    # Where every example is worth the same, it is the mean leave-one-out error.
    ring = np.cos(2 * np.pi * np.subtract.outer(np.arange(N), np.arange(N)) / N)
    fit = regress(np.exp(ring), targets, kernel_test, 0.3, jnp.float64)
    leave_one_out = np.mean(fit.leave_one_out**2, axis=0)
    np.testing.assert_allclose(
        fit.generalised_cross_validation, leave_one_out, rtol=1e-12
    )


def test_singular_cross_validation_is_the_limit(x64):
    kernel, targets, kernel_test = problem(num_features=4)
    fit = regress(kernel, targets, kernel_test, 0, jnp.float64)
    expected = cross_validation(kernel, targets, 1e-7)
    np.testing.assert_allclose(fit.generalised_cross_validation, expected, rtol=1e-5)


def test_ridge_is_that_of_scikit_learn():
    kernel, targets, kernel_test = problem()
    peer = KernelRidge(alpha=1, kernel="precomputed").fit(kernel, targets)
    fit = regress(kernel, targets, kernel_test, 1)
    assert_close(fit.predictions, peer.predict(kernel_test), tolerance(fit))


def test_closed_form_of_identity_kernel():
    targets = np.arange(6.0).reshape(3, 2)
    fit = regress(np.eye(3), targets, np.ones((1, 3)), 1.0)
    np.testing.assert_allclose(fit.coefficients, targets / 2, rtol=1e-6)
    np.testing.assert_allclose(fit.predictions, [[3.0, 4.5]], rtol=1e-6)
    # The others say nothing about an orthogonal example.
    np.testing.assert_allclose(fit.leave_one_out, targets, rtol=1e-6)
    np.testing.assert_allclose(fit.condition, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("num_features", "duplicate", "dropped"), [(4, False, N - 4), (30, True, 1)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_singular_kernel_gives_minimum_norm(num_features, duplicate, dropped, dtype):
    kernel, targets, kernel_test = problem(num_features, duplicate)
    with jax.enable_x64(dtype == jnp.float64):
        fit = regress(kernel, targets, kernel_test, 0, dtype)
        relative = tolerance(fit)
    coefficients = scipy.linalg.pinvh(kernel, rtol=1e-10) @ targets
    assert int(fit.num_dropped) == dropped
    assert_close(fit.coefficients, coefficients, relative)
    assert_close(fit.predictions, kernel_test @ coefficients, relative)
    assert_close(fit.leave_one_out, refit(kernel, targets, 0), relative)
    spectrum = np.linalg.eigvalsh(kernel)[dropped:]
    np.testing.assert_allclose(fit.condition, spectrum[-1] / spectrum[0], rtol=1e-4)


def test_without_test_examples_it_predicts_those_of_training():
    kernel, targets, _ = problem()
    arrays = (jnp.asarray(a, jnp.float32) for a in (kernel, targets))
    found = kernels.kernel_regression(*arrays, ridge=0.5)
    expected = kernel @ np.linalg.solve(kernel + 0.5 * np.eye(len(kernel)), targets)
    np.testing.assert_allclose(found.predictions, expected, rtol=1e-4, atol=1e-4)


def test_zero_kernel_predicts_zero():
    targets = np.ones((N, K))
    fit = regress(np.zeros((N, N)), targets, np.zeros((M, N)), 0)
    assert fit.num_dropped == N
    assert fit.condition == 0
    np.testing.assert_array_equal(fit.predictions, np.zeros((M, K)))
    np.testing.assert_allclose(fit.leave_one_out, targets, rtol=1e-6)


def test_indefinite_kernel_drops_negative_directions():
    kernel = np.diag([2.0, 1.0, -1.0])
    fit = regress(kernel, np.ones((3, 1)), np.eye(3), 0)
    assert fit.num_dropped == 1
    np.testing.assert_allclose(fit.coefficients[:, 0], [0.5, 1, 0], rtol=1e-6)


def test_nonfinite_inputs_are_counted():
    kernel, targets, kernel_test = problem()
    targets[0, 1] = np.inf
    kernel_test[2, 0] = np.nan
    fit = regress(kernel, targets, kernel_test, 0.1)
    assert fit.num_nonfinite == 2
    spoilt = np.zeros((M, K), bool)
    spoilt[2], spoilt[:, 1] = True, True
    np.testing.assert_array_equal(~np.isfinite(fit.predictions), spoilt)

    kernel[3, 3] = np.nan
    fit = regress(kernel, targets, kernel_test, 0.1)
    assert fit.num_nonfinite == 3
    values = (fit.predictions, fit.coefficients, fit.leave_one_out, fit.condition)
    assert all(np.all(np.isnan(value)) for value in values)


def test_works_under_jit_vmap_and_grad():
    kernel, targets, kernel_test = (jnp.asarray(a, jnp.float32) for a in problem())
    ridges = jnp.array([0.1, 1.0])

    def score(ridge):
        fit = kernels.kernel_regression(kernel, targets, kernel_test, ridge=ridge)
        return jnp.mean(fit.leave_one_out**2)

    found = jax.jit(jax.vmap(score))(ridges)
    expected = [np.mean(refit(*problem()[:2], ridge) ** 2) for ridge in (0.1, 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    step = 1e-4
    refits = [np.mean(refit(*problem()[:2], 1 + s) ** 2) for s in (-step, step)]
    slope = (refits[1] - refits[0]) / (2 * step)
    np.testing.assert_allclose(jax.grad(score)(1.0), slope, rtol=1e-3)
    closed_over = jax.jit(lambda: score(ridges[0]))
    np.testing.assert_allclose(closed_over(), expected[0], rtol=1e-4)


def test_one_eigendecomposition_serves_all_ridges():
    kernel, targets, kernel_test = (jnp.asarray(a, jnp.float32) for a in problem())
    solve = lambda ridge: kernels.kernel_regression(
        kernel, targets, kernel_test, ridge=ridge
    )
    jaxpr = str(jax.make_jaxpr(jax.vmap(solve))(jnp.array([0.1, 1.0])))
    assert re.findall(r"f32\[(.*)\] \w+:f32\[.*\] = eigh\[", jaxpr) == [f"{N},{N}"]


WRONG_INPUTS = {
    "not square": ({"kernel": np.ones((3, 2))}, r"`kernel` must be a square matrix"),
    "scalar": ({"kernel": np.ones(())}, r"`kernel` must have examples"),
    "examples": ({"targets": np.ones((2, 1))}, r"`targets` must have as many examples"),
    "one output": ({"targets": np.ones(3)}, r"`targets` must be \[n, k\].*\[:, None\]"),
    "transposed": (
        {"kernel_test": np.ones((3, 4))},
        r"`kernel_test` must be \[m, n\].* shape \(3, 4\) with n = 3",
    ),
    "complex": ({"kernel": 1j * np.eye(3)}, r"`kernel` must be an array of real"),
    "list": (
        {"kernel_test": [[1.0, 0.0, 0.0]]},
        r"`kernel_test` must be an array of real numbers, but is a list",
    ),
    "no ridge": ({"ridge": None}, r"`ridge` must be a finite number.*but was None"),
    "test vector": ({"kernel_test": np.ones(3)}, r"`kernel_test` must be \[m, n\]"),
    "negative": (
        {"ridge": -1.0},
        r"`ridge` must be a finite number, at least 0.*-1\.0",
    ),
    "nan": (
        {"ridge": float("nan")},
        r"`ridge` must be a finite number, at least 0.*nan",
    ),
    "infinite": ({"ridge": float("inf")}, r"`ridge` must be a finite number.*inf"),
    "ridges": ({"ridge": np.ones(2)}, r"`ridge` must be one number.*jax\.vmap"),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    arguments = {
        "kernel": np.eye(3),
        "targets": np.ones((3, 1)),
        "kernel_test": np.ones((2, 3)),
        "ridge": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        kernels.kernel_regression(**{**arguments, **changes})


def test_too_many_examples_for_the_eigensolver():
    shapes = [(32_767, 32_767), (32_767, 1), (1, 32_767)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    solve = lambda *arrays: kernels.kernel_regression(*arrays, ridge=0.1)
    with pytest.raises(ValueError, match=r"fewer than 32767 examples.*lineax\.CG"):
        jax.eval_shape(solve, *arrays)
