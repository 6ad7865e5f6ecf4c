"""Learning curves against published values, conservation and small experiments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from jaxtheory import kernels


def relu_ntk(cosine, num_layers=4, bias_variance=0.01):
    """NTK of a ReLU network of He weights and small biases, on |x|^2 = d."""
    q, k = 2 + bias_variance, 2 * cosine + bias_variance
    ntk = k
    for _ in range(num_layers):
        angle = np.arccos(np.clip(k / q, -1, 1))
        slope = (np.pi - angle) / np.pi
        moment = q * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
        q, k = q + bias_variance, moment + bias_variance
        ntk = slope * ntk + k
    return ntk


D = 8
CUBE = 1 - 2.0 * ((np.arange(2**D)[:, None] >> np.arange(D)) & 1)


@pytest.fixture(scope="module")
def cube():
    """Spectrum of the ReLU NTK on the cube."""
    return kernels.hypercube_spectrum(relu_ntk(1 - 2 * np.arange(D + 1) / D))


# Computed with an independent program before this one was written.
@pytest.mark.parametrize(
    ("degree", "expected"),
    [
        (1, [0.4184, 0.0465, 0.0070]),
        (2, [0.9012, 0.3362, 0.0868]),
        (3, [1.1100, 0.8148, 0.4028]),
    ],
)
def test_parities_on_the_hypercube(cube, degree, expected):
    curve = kernels.learning_curve(
        cube.eigenvalues,
        np.eye(D + 1)[degree],
        num_examples=[16, 64, 128],
        multiplicities=cube.multiplicities,
    )
    np.testing.assert_allclose(curve.test_error, expected, rtol=0, atol=1e-4)
    total = np.sum(curve.learnabilities * cube.multiplicities, axis=1)
    np.testing.assert_allclose(total, [16, 64, 128], rtol=1e-13)
    np.testing.assert_array_equal(curve.train_error, 0)


def test_spectrum_is_that_of_the_gram_matrix(cube):
    gram = relu_ntk(CUBE @ CUBE.T / D)
    parity = np.prod(CUBE[:, :2], axis=1, keepdims=True)
    sample = kernels.target_spectrum(gram, parity)
    repeated = np.repeat(cube.eigenvalues, cube.multiplicities.astype(int))
    np.testing.assert_allclose(sample.eigenvalues, np.sort(repeated)[::-1], atol=1e-13)
    options = {"num_examples": 64, "ridge": 0.1, "noise_variance": 0.2}
    found = kernels.learning_curve(*sample, **options)
    expected = kernels.learning_curve(
        cube.eigenvalues,
        np.eye(D + 1)[2],
        multiplicities=cube.multiplicities,
        **options,
    )
    for name in ("test_error", "train_error", "kappa", "overfitting"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_experiment_on_the_hypercube(cube, ridge):
    gram, parity = relu_ntk(CUBE @ CUBE.T / D), np.prod(CUBE[:, :2], axis=1)
    n, errors, rng = 64, [], np.random.default_rng(0)
    for _ in range(100):
        chosen = rng.choice(2**D, n, replace=False)
        inner = gram[np.ix_(chosen, chosen)] + ridge * np.eye(n)
        outputs = gram[:, chosen] @ np.linalg.solve(inner, parity[chosen])
        errors.append(np.mean((outputs - parity) ** 2))
    curve = kernels.learning_curve(
        cube.eigenvalues,
        np.eye(D + 1)[2],
        num_examples=n,
        ridge=ridge,
        multiplicities=cube.multiplicities,
    )
    np.testing.assert_allclose(np.mean(errors), curve.test_error, rtol=0.05)


def test_experiment_with_noise():
    i, noise, n = np.arange(1.0, 501), 0.1, 50
    eigenvalues, coefficients = i**-1.5, 1 / i
    curve = kernels.learning_curve(
        eigenvalues, coefficients, num_examples=n, ridge=0.1, noise_variance=noise
    )
    errors, rng = [], np.random.default_rng(0)
    for _ in range(200):
        features = rng.normal(size=(n, i.size))
        y = features @ coefficients + np.sqrt(noise) * rng.normal(size=n)
        gram = (features * eigenvalues) @ features.T
        dual = np.linalg.solve(gram + 0.1 * np.eye(n), y)
        learnt = eigenvalues * (dual @ features)
        errors.append(
            [np.sum((learnt - coefficients) ** 2), np.mean((0.1 * dual) ** 2)]
        )
    expected = np.array([curve.test_error, curve.train_error])
    np.testing.assert_allclose(np.mean(errors, axis=0), expected, rtol=0.05)
    noisy = curve.test_error + noise
    np.testing.assert_allclose(curve.noisy_test_error, noisy, rtol=1e-14)


def test_spectrum_of_a_product_kernel_in_many_dimensions():
    """``a^h``, a product over coordinates, in closed form; sums of size 2^80 cancel."""
    d, a = 80, 0.9
    found = kernels.hypercube_spectrum(a ** np.arange(d + 1))
    j = np.arange(d + 1)
    expected = ((1 - a) / 2) ** j * ((1 + a) / 2) ** (d - j)
    np.testing.assert_allclose(found.eigenvalues[:5], expected[:5], rtol=1e-6)
    np.testing.assert_allclose(found.multiplicities @ found.eigenvalues, 1, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 6])
def test_learnabilities_on_the_circle_are_conserved(n):
    m = 10
    ring = np.exp(np.cos(2 * np.pi * np.arange(m) / m))
    spectrum = kernels.circle_spectrum(ring)
    curve = kernels.learning_curve(
        spectrum.eigenvalues,
        np.zeros(m // 2 + 1),
        num_examples=n,
        multiplicities=spectrum.multiplicities,
    )
    assert abs(curve.learnabilities @ spectrum.multiplicities - n) < 1e-12
    # In any one draw, too: the share of each eigenfunction that regression returns.
    gram = ring[np.subtract.outer(np.arange(m), np.arange(m)) % m]
    eigenvalues, functions = np.linalg.eigh(gram)
    repeated = np.repeat(spectrum.eigenvalues, spectrum.multiplicities.astype(int))
    np.testing.assert_allclose(np.sort(repeated), eigenvalues / m, atol=1e-15)
    chosen = np.random.default_rng(n).choice(m, n, replace=False)
    learnt = gram[:, chosen] @ np.linalg.solve(
        gram[np.ix_(chosen, chosen)], functions[chosen]
    )
    assert abs(np.sum(functions * learnt) - n) < 1e-12


def test_gaussian_features_and_what_the_data_say(x64):
    i = np.arange(1.0, 1001)
    eigenvalues, coefficients = i**-1.5, 1 / i
    curve = kernels.learning_curve(
        eigenvalues, coefficients, num_examples=[50, 100, 200], ridge=0.01
    )
    np.testing.assert_allclose(curve.test_error, [0.0529, 0.0253, 0.0114], atol=5e-5)
    n, errors, estimates, rng = 100, [], [], np.random.default_rng(0)
    regress = jax.jit(lambda *arrays: kernels.kernel_regression(*arrays, ridge=0.01))
    for _ in range(20):
        features = rng.normal(size=(n, i.size))
        fit = regress(
            jnp.asarray((features * eigenvalues) @ features.T),
            jnp.asarray((features @ coefficients)[:, None]),
            jnp.asarray((features * eigenvalues).T),  # of eigenfunction i
        )
        errors.append(np.sum((fit.predictions[:, 0] - coefficients) ** 2))
        leave_one_out = np.mean(fit.leave_one_out**2)
        estimates.append([fit.generalised_cross_validation[0], leave_one_out])
    spread = np.std(errors, ddof=1) / np.sqrt(20)
    assert abs(np.mean(errors) - curve.test_error[1]) < 4 * spread
    estimates = np.array(estimates)
    spread = np.std(estimates, axis=0, ddof=1) / np.sqrt(20)
    difference = np.mean(estimates, axis=0) - curve.test_error[1]
    # Cross-validation is for n - 1 examples: an error that is larger by 1 / n.
    assert np.all(np.abs(difference) < 4 * spread + 0.02 * curve.test_error[1])


@pytest.mark.parametrize(
    ("exponent", "ridge"), [(1.1, 0.0), (6.0, 0.0), (2.0, 1e-12), (2.0, 1e3)]
)
def test_effective_ridge_solves_its_equation(exponent, ridge):
    i = np.arange(1.0, 400)
    lam = i**-exponent
    left = lambda log: np.sum(lam / (lam + np.exp(log))) + ridge / np.exp(log) - 37
    expected = np.exp(brentq(left, -80, 20, xtol=1e-14))
    curve = kernels.learning_curve(lam, lam, num_examples=37, ridge=ridge)
    np.testing.assert_allclose(curve.kappa, expected, rtol=1e-11)
    total = np.sum(curve.learnabilities) + ridge / curve.kappa
    np.testing.assert_allclose(total, 37, rtol=1e-13)
    direct = 37 / (37 - np.sum(curve.learnabilities**2))
    np.testing.assert_allclose(curve.overfitting, direct, rtol=1e-9)


def test_linear_regression_has_its_known_limits():
    """Isotropic features: the risk of least squares, and double descent."""
    p, noise = 200, 0.3
    curve = kernels.learning_curve(
        np.ones(p),
        np.full((p, 2), np.sqrt(0.5 / p)),
        num_examples=[100, 200, 400],
        noise_variance=noise,
    )
    half = 0.5 + noise * (100 / p) / (1 - 100 / p)
    assert curve.test_error[1] == math.inf
    np.testing.assert_allclose(curve.test_error[0], half, rtol=1e-12)
    np.testing.assert_allclose(curve.test_error[2], noise * 200 / 200, rtol=1e-12)
    np.testing.assert_allclose(curve.train_error, [0, 0, noise / 2], atol=1e-13)
    quiet = kernels.learning_curve(np.ones(p), np.ones(p), num_examples=p)
    assert quiet.test_error == 0


def test_multiplicities_and_outputs_add_up():
    many = kernels.learning_curve(
        np.repeat([1.0, 0.1, 0.0], [1, 30, 2]),
        np.repeat([[1.0, 2], [0.1, 0], [0, 0.5]], [1, 30, 2], axis=0),
        num_examples=10.0,
        ridge=0.2,
    )
    grouped = kernels.learning_curve(
        np.array([1.0, 0.1, 0.0]),
        np.sqrt([5.0, 0.3, 0.5]),
        num_examples=10.0,
        ridge=0.2,
        multiplicities=np.array([1, 30, 2]),
    )
    for name in ("test_error", "train_error", "kappa", "overfitting"):
        a, b = getattr(many, name), getattr(grouped, name)
        np.testing.assert_allclose(a, b, rtol=1e-12)


SPECTRUM = {"eigenvalues": np.ones(3), "coefficients": np.ones(3), "num_examples": 2}
WRONG_INPUTS = {
    "complex": (
        {"coefficients": 1j * np.ones(3)},
        r"`coefficients` must be an array of real numbers, but has dtype complex128",
    ),
    "matrix": ({"eigenvalues": np.ones((2, 2))}, r"`eigenvalues` must be a vector"),
    "negative": ({"eigenvalues": -np.ones(3)}, r"`eigenvalues` must be at least 0"),
    "nan": ({"eigenvalues": np.full(3, np.nan)}, r"`eigenvalues` must be finite"),
    "length": ({"coefficients": np.ones(2)}, r"`coefficients` must be \[p\].* p = 3"),
    "none": ({"num_examples": 0}, r"`num_examples` must be a positive number"),
    "ridge": ({"ridge": -1.0}, r"`ridge` must be finite and at least 0"),
    "noise": ({"noise_variance": np.inf}, r"`noise_variance` must be finite"),
    "counts": ({"multiplicities": np.ones(2)}, r"`multiplicities` must be 3 numbers"),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        kernels.learning_curve(**{**SPECTRUM, **changes})


@pytest.mark.usefixtures("user_land")
def test_bad_kernels():
    with pytest.raises(ValueError, match=r"`kernel` must be finite"):
        kernels.target_spectrum(np.full((2, 2), np.nan), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.target_spectrum(np.ones((2, 3)), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"`kernel` must be a vector"):
        kernels.hypercube_spectrum(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`kernel` must be positive semidefinite"):
        kernels.hypercube_spectrum(np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"`kernel` must be precise enough for its 99"):
        kernels.hypercube_spectrum(np.exp(-np.arange(100, dtype=np.float32) / 3))
    with pytest.raises(ValueError, match=r"`kernel` must be symmetric"):
        kernels.circle_spectrum(np.array([3.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match=r"`eigenvalues` must be .* traced"):
        jax.jit(lambda e: kernels.learning_curve(e, e, num_examples=2).kappa)(
            jnp.ones(3)
        )
