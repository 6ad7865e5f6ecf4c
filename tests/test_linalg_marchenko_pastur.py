"""The Marchenko-Pastur law, its edge and outliers, against integrals and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxtheory import linalg

EPS32 = float(np.finfo(np.float32).eps)


def oracle_density(x, ratio, variance):
    """The density, written out again in double precision."""
    low, high = variance * (1 - ratio**0.5) ** 2, variance * (1 + ratio**0.5) ** 2
    inside = (high - x) * (x - low)
    return np.sqrt(max(inside, 0)) / (2 * np.pi * ratio * variance * x)


@pytest.mark.parametrize(
    ("ratio", "variance"), [(0.1, 1.0), (0.5, 2.0), (1.0, 1.0), (3.0, 0.5)]
)
def test_density_and_distribution_function(ratio, variance, x64):
    low, high = linalg.marchenko_pastur_edges(ratio, variance=variance)
    low, high = float(low), float(high)
    points = low + (high - low) * np.array([0.01, 0.3, 0.5, 0.9, 0.999])
    options = {"ratio": ratio, "variance": variance}
    density = linalg.marchenko_pastur_density(points, **options)
    want = [oracle_density(x, ratio, variance) for x in points]
    np.testing.assert_allclose(density, want, rtol=1e-12)
    atom = max(0, 1 - 1 / ratio)
    integral = lambda end: quad(oracle_density, low, end, (ratio, variance))[0]
    want = [atom + integral(x) for x in points]
    np.testing.assert_allclose(
        linalg.marchenko_pastur_cdf(points, **options), want, atol=1e-6
    )
    ends = linalg.marchenko_pastur_cdf(
        np.array([-1.0, low * 0.99, high, 2 * high]), **options
    )
    np.testing.assert_allclose(ends, [0, atom, 1, 1], atol=1e-12)
    back = linalg.marchenko_pastur_quantile(
        linalg.marchenko_pastur_cdf(points, **options), **options
    )
    np.testing.assert_allclose(back, points, rtol=1e-6)
    outside = linalg.marchenko_pastur_density(np.array([0.0, 2 * high]), **options)
    np.testing.assert_array_equal(outside, [0, 0])


@pytest.mark.parametrize("ratio", [1e-6, 1e-5, 9e-4, 1e-2])
def test_many_samples_a_column_in_single_precision(ratio):
    # Rounding over the ratio: .16 off at 1e-5, .89 at 1e-6.
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    points = np.linspace(low, high, 11).astype(np.float32)[1:-1]
    want = [quad(oracle_density, low, float(x), (ratio, 1.0))[0] for x in points]
    got = linalg.marchenko_pastur_cdf(points, ratio=ratio)
    np.testing.assert_allclose(got, want, atol=2 * EPS32 * ratio**-0.5)


def test_what_is_no_probability_has_no_quantile():
    got = linalg.marchenko_pastur_quantile(np.array([-0.1, 0.0, 1.1], "f4"), ratio=0.5)
    np.testing.assert_array_equal(np.isnan(got), [True, False, True])


def test_single_precision():
    x = np.linspace(0.1, 2.9, 50).astype(np.float32)
    with jax.enable_x64(True):
        want = linalg.marchenko_pastur_cdf(x.astype(np.float64), ratio=0.5)
    got = linalg.marchenko_pastur_cdf(x, ratio=0.5)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=30 * EPS32)


@pytest.mark.parametrize("shape", [(300, 100), (100, 300)])
def test_the_law_is_that_of_sampled_noise(shape):
    n, p = shape
    noise = 3 * np.random.default_rng(0).normal(size=shape)
    eigenvalues = np.linalg.svd(noise, compute_uv=False)[::-1] ** 2 / n
    share = linalg.marchenko_pastur_cdf(eigenvalues, ratio=p / n, variance=9.0)
    empirical = 1 - (1 - (np.arange(100) + 0.5) / 100) * min(1, n / p)
    # Eigenvalues repel: they are within some 1/p of the law, not 1/sqrt(p).
    assert np.max(abs(np.asarray(share) - empirical)) < 0.02
    variance = linalg.marchenko_pastur_variance(eigenvalues[-100:], ratio=p / n)
    np.testing.assert_allclose(variance, 9, rtol=0.03)
    # Five outliers of any size move it by little.
    eigenvalues[-5:] = 1e4
    variance = linalg.marchenko_pastur_variance(eigenvalues[-100:], ratio=p / n)
    np.testing.assert_allclose(variance, 9, rtol=0.05)


@pytest.mark.parametrize("ratio", [0.25, 2.0])
def test_spikes_appear_where_they_are_predicted(ratio):
    p = 400
    n = int(p / ratio)
    rng = np.random.default_rng(1)
    for spike in (1.5 * ratio**0.5, 4.0):
        noise = 2**0.5 * rng.normal(size=(n, p))
        noise[:, 0] *= (1 + spike) ** 0.5
        _, values, vectors = np.linalg.svd(noise, full_matrices=False)
        got = linalg.outlier_of_spike(spike, ratio=ratio, variance=2.0)
        assert got.visible
        # Fluctuations of the top eigenvalue are of order sqrt(2 / n) times l + 1.
        location = values[0] ** 2 / n
        np.testing.assert_allclose(
            location, got.location, atol=4 * 2 * (1 + spike) * (2 / n) ** 0.5
        )
        np.testing.assert_allclose(vectors[0, 0] ** 2, got.overlap_squared, atol=0.15)
        back = linalg.spike_of_outlier(got.location, ratio=ratio, variance=2.0)
        np.testing.assert_allclose(back.spike, spike, rtol=1e-4)
        np.testing.assert_allclose(back.overlap_squared, got.overlap_squared, rtol=1e-3)


def test_spikes_below_the_threshold_are_not_seen():
    got = linalg.outlier_of_spike(jnp.array([0.0, 0.4, 0.5, 0.6]), ratio=0.25)
    assert got.visible.tolist() == [False, False, False, True]
    np.testing.assert_allclose(got.location[:3], 2.25, rtol=1e-6)
    np.testing.assert_array_equal(got.overlap_squared[:3], 0)
    back = linalg.spike_of_outlier(jnp.array([0.1, 2.25, 2.3]), ratio=0.25)
    assert back.visible.tolist() == [False, False, True]
    np.testing.assert_allclose(back.spike[:2], 0.5, rtol=1e-6)
    n, p = 1600, 400
    noise = np.random.default_rng(2).normal(size=(n, p))
    noise[:, 0] *= 1.3**0.5
    _, values, vectors = np.linalg.svd(noise, full_matrices=False)
    assert abs(values[0] ** 2 / n - 2.25) < 0.05
    assert vectors[0, 0] ** 2 < 0.05


@pytest.mark.parametrize("shape", [(120, 40), (40, 120)])
def test_edge_test_has_its_level(shape):
    n, p = shape
    noise = np.random.default_rng(3).normal(size=(1000, n, p))
    largest = np.linalg.svd(noise, compute_uv=False)[:, 0] ** 2 / n
    got = linalg.edge_test(largest, num_samples=n, dimension=p)
    # The limit law's moments, within the error of 1,000 and of a finite size.
    assert abs(np.mean(got.statistic) + 1.2065) < 4 * 1.268 / 1000**0.5
    assert abs(np.std(got.statistic) - 1.268) < 0.15
    for level in (0.01, 0.05, 0.5):
        error = (level * (1 - level) / 1000) ** 0.5
        assert abs(np.mean(got.p_value < level) - level) < 4 * error


def test_edge_test_knows_published_quantiles():
    # Tracy-Widom of order 1 at its 5, 50, 95, 99 % points (Bejan 2005, table).
    points = np.array([-3.1808, -1.2686, 0.9793, 2.0234])
    n, p = 200, 50
    root = (n - 0.5) ** 0.5 + (p - 0.5) ** 0.5
    scale = root * ((n - 0.5) ** -0.5 + (p - 0.5) ** -0.5) ** (1 / 3)
    got = linalg.edge_test((root**2 + scale * points) / n, num_samples=n, dimension=p)
    np.testing.assert_allclose(got.statistic, points, atol=1e-3)
    np.testing.assert_allclose(got.p_value, [0.95, 0.5, 0.05, 0.01], atol=2e-3)


def test_ratios_may_be_traced():
    both = jax.jit(
        lambda r: (
            linalg.marchenko_pastur_cdf(1.0, ratio=r),
            linalg.outlier_of_spike(2.0, ratio=r).location,
        )
    )
    np.testing.assert_allclose(both(1.0)[1], 4.5)
    np.testing.assert_allclose(
        both(0.5)[0], linalg.marchenko_pastur_cdf(1.0, ratio=0.5), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: linalg.marchenko_pastur_edges(0.0), "`ratio` must be a positive"),
        (lambda: linalg.marchenko_pastur_cdf(1.0, ratio=-1.0), "`ratio` must be"),
        (
            lambda: linalg.marchenko_pastur_density(1.0, ratio=1.0, variance=0.0),
            "`variance` must be",
        ),
        (
            lambda: linalg.marchenko_pastur_variance(np.ones((2, 2)), ratio=1.0),
            "`eigenvalues` must be a vector",
        ),
        (lambda: linalg.spike_of_outlier(1.0, ratio=jnp.ones(2)), "`ratio` must be"),
        (
            lambda: linalg.edge_test(1.0, num_samples=1, dimension=2),
            "`num_samples` must be",
        ),
        (
            lambda: linalg.edge_test(1.0, num_samples=9, dimension=2.5),
            "`dimension` must be",
        ),
    ],
)
def test_bad_input(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()
