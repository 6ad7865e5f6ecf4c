"""CKA against U-statistics over tuples and float64 formulas; target energy."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import kernels

EPS = float(np.finfo(np.float32).eps)


def gram(features):
    features = np.asarray(features, np.float64)
    return features @ features.T


def hsic(a, b, estimator):
    """Of kernels, as explicit sums."""
    n = len(a)
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return np.sum((h @ a @ h) * (h @ b @ h))
    tuples = lambda size: permutations(range(n), size)
    pairs = np.mean([a[t] * b[t] for t in tuples(2)])
    triples = np.mean([a[i, j] * b[i, k] for i, j, k in tuples(3)])
    quadruples = np.mean([a[i, j] * b[k, m] for i, j, k, m in tuples(4)])
    return pairs - 2 * triples + quadruples


def expected_cka(a, b, estimator):
    norms = hsic(a, a, estimator) * hsic(b, b, estimator)
    return hsic(a, b, estimator) / np.sqrt(norms)


@pytest.fixture(params=["debiased", "biased"])
def estimator(request):
    return request.param


def features(n, d1, d2):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (n, d1))
    z = 3 + x[:, :1] + jax.random.normal(keys[1], (n, d2))
    return x, z


@pytest.mark.parametrize("widths", [(3, 5), (3, 20)])  # through features, and kernels
def test_cka_is_its_definition(estimator, widths):
    x, z = features(9, *widths)
    expected = expected_cka(gram(x), gram(z), estimator)
    found = jax.jit(partial(kernels.cka, estimator=estimator))(x, z)
    np.testing.assert_allclose(found, expected, atol=100 * EPS)
    kernel1, kernel2 = jnp.asarray(gram(x)), jnp.asarray(gram(z))
    found = kernels.kernel_cka(kernel1, kernel2, estimator=estimator)
    np.testing.assert_allclose(found, expected, atol=100 * EPS)


def test_in_double_precision(x64, estimator):
    x, z = features(9, 3, 5)
    expected = expected_cka(gram(x), gram(z), estimator)
    found = kernels.cka(x, z, estimator=estimator)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_no_matrix_of_examples_where_features_are_narrow(estimator):
    x, z = features(50, 3, 5)
    measure = partial(kernels.cka, estimator=estimator)
    lines = str(jax.make_jaxpr(measure)(x, z))
    assert "[50,5]" in lines
    assert "[50,50]" not in lines


@pytest.mark.parametrize("width", [4, 30])
def test_rotation_scale_and_shift_do_not_matter(estimator, width):
    x, z = features(20, width, 6)
    rotation = jax.random.orthogonal(jax.random.key(1), width)
    other = 1e-12 * (jnp.matmul(x, rotation, precision="highest") + 2)
    measure = partial(kernels.cka, estimator=estimator)
    np.testing.assert_allclose(measure(other, z), measure(x, z), atol=300 * EPS)
    np.testing.assert_allclose(measure(other, x), 1, atol=300 * EPS)


def test_independent_wide_features():
    """The numbers of the reference page: (n, d) = (100, 1000)."""
    keys = jax.random.split(jax.random.key(2))
    x, z = (jax.random.normal(key, (100, 1000)) for key in keys)
    assert abs(kernels.cka(x, z, estimator="biased") - 0.91) < 0.01
    # The spread over draws is about sqrt(2) / n.
    assert abs(kernels.cka(x, z)) < 0.05


def test_with_labels_it_is_the_centred_alignment(estimator):
    x, _ = features(12, 3, 5)
    labels = jax.nn.one_hot(jnp.arange(12) % 3, 3)
    found = kernels.cka(x, labels, estimator=estimator)
    expected = kernels.centred_alignment(
        jnp.asarray(gram(x), jnp.float32), labels, estimator=estimator
    )
    np.testing.assert_allclose(found, expected, atol=100 * EPS)


@pytest.mark.parametrize("width", [3, 20])
def test_undefined_is_nan(estimator, width):
    x, _ = features(10, width, 1)
    measure = partial(kernels.cka, estimator=estimator)
    assert jnp.isnan(measure(x, jnp.full((10, width), 0.1)))
    assert jnp.isnan(measure(x.at[0, 0].set(jnp.inf), x))
    if estimator == "debiased":
        # One-hot rows up to rounding, and one example that stands out of a constant.
        assert jnp.isnan(measure(x, jax.random.orthogonal(jax.random.key(0), 10)))


def test_constant_off_the_diagonal_is_nan_also_through_features():
    # Rows of a regular simplex in n - 1 dimensions: K = I - 1/n.
    corners = np.linalg.svd(np.eye(10) - 0.1)[0][:, :9]
    assert jnp.isnan(kernels.cka(jnp.asarray(corners), jnp.asarray(corners)))


def test_target_energy_is_its_definition():
    x, z = features(12, 20, 2)
    kernel = gram(x)
    vectors = np.linalg.eigh(kernel)[1][:, ::-1]
    targets = np.asarray(z, np.float64)
    expected = np.cumsum(np.sum((vectors.T @ targets) ** 2, 1)) / np.sum(targets**2)
    found = jax.jit(kernels.target_energy)(1e-20 * jnp.asarray(kernel), 1e20 * z)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[-1] == 1
    assert jnp.all(jnp.isnan(kernels.target_energy(jnp.asarray(kernel), 0 * z)))
    holed = jnp.asarray(kernel).at[0, 0].set(jnp.nan)
    assert jnp.all(jnp.isnan(kernels.target_energy(holed, z)))


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    x, z = features(10, 3, 5)
    kernel = x @ x.T
    with pytest.raises(ValueError, match=r"`features2` must have as many examples"):
        kernels.cka(x, z[:5])
    with pytest.raises(ValueError, match=r"`features1` must be a matrix \[n, d\]"):
        kernels.cka(x[:, None], z)
    with pytest.raises(ValueError, match=r"`estimator` must be one of .*'plain'"):
        kernels.cka(x, z, estimator="plain")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`features1` must be on at least 4 examples"):
        kernels.cka(x[:3], z[:3])
    with pytest.raises(ValueError, match=r"`kernel1` must be on at least 4 examples"):
        kernels.kernel_cka(kernel[:3, :3], kernel[:3, :3])
    with pytest.raises(ValueError, match=r"`kernel2` must have as many examples"):
        kernels.kernel_cka(kernel, kernel[:5, :5])
    with pytest.raises(ValueError, match=r"`kernel` must be a square matrix"):
        kernels.kernel_cka(kernel, z)
    with pytest.raises(ValueError, match=r"`targets` must be \[n, k\]"):
        kernels.target_energy(kernel, z[:, 0])
