"""Stable laws against SciPy and their characteristic function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import cauchy, levy, levy_stable, norm

from jaxtheory import linalg
from jaxtheory.linalg import _stable


def new_key(seed=0):
    return jax.random.key(seed)


def ks_distance(x, cdf):
    """Kolmogorov-Smirnov distance times the root of the number of points."""
    share = cdf(np.sort(np.asarray(x, np.float64)))
    steps = np.arange(len(x) + 1) / len(x)
    gap = np.maximum(abs(steps[1:] - share), abs(steps[:-1] - share)).max()
    return gap * len(x) ** 0.5


def test_stable_numbers_have_the_law():
    # 2.2 is passed with a probability of 1e-4.
    draw = lambda alpha: linalg.stable(new_key(), alpha, (20_000,))
    assert ks_distance(draw(2.0), norm(scale=2**0.5).cdf) < 2.2
    assert ks_distance(draw(1.0), cauchy.cdf) < 2.2
    points = np.linspace(-6, 6, 7)
    share = np.mean(np.asarray(draw(1.5))[:, None] <= points, axis=0)
    want = levy_stable.cdf(points, 1.5, 0.0)
    assert np.all(abs(share - want) < 4 * np.sqrt(want * (1 - want) / 20_000) + 1e-4)
    x = np.asarray(draw(0.5), np.float64)
    for t in (0.3, 1.0, 3.0):
        assert abs(np.mean(np.cos(t * x)) - np.exp(-(t**0.5))) < 4 / 20_000**0.5


def test_isotropic_vectors_have_the_law():
    for alpha in (0.8, 1.5, 2.0):
        x = linalg.isotropic_stable(new_key(), alpha, 20_000, 3)
        x = np.asarray(x, np.float64)
        for t in np.array([[1.0, 0, 0], [0.6, 0.0, 0.8], [0.5, -1.0, 0.5]]):
            want = np.exp(-(np.linalg.norm(t) ** alpha))
            assert abs(np.mean(np.cos(x @ t)) - want) < 4 * (0.5 / 20_000) ** 0.5
    # The square of the scale at alpha = 1 is twice a Levy variable of scale 1/2:
    # x / |g| entry by entry cannot be seen, but vectors of Cauchy type can.
    x = np.asarray(linalg.isotropic_stable(new_key(1), 1.0, 20_000, 1))[:, 0]
    assert ks_distance(x, cauchy.cdf) < 2.2
    assert levy(scale=0.5).cdf(1.0) == pytest.approx(2 * norm.sf(0.5**0.5))


def test_far_tails_are_not_cut():
    # P(|X| > 1e7) = 2 / (pi 1e7) for Cauchy: one coarse draw stops at 5e6.
    x = np.abs(np.asarray(linalg.stable(new_key(), 1.0, (4_000_000,))))
    assert np.all(np.isfinite(x))
    expected = 4e6 * 2 / (np.pi * 1e5)
    assert abs(np.sum(x > 1e5) - expected) < 4 * expected**0.5
    assert len(np.unique(x[x > 1e5])) == np.sum(x > 1e5)


@pytest.mark.parametrize("small", [1e-9, 1e-7])
def test_ends_of_the_angle_are_gaussian_at_index_two(monkeypatch, small):
    # There the cosine was -4e-8 in place of 1e-9: NaN, one number of some 5e7.
    monkeypatch.setattr(
        _stable, "_fine_uniform", lambda key, shape, dtype: jnp.full(shape, small)
    )
    with jax.disable_jit():
        got = float(jnp.abs(linalg.stable(new_key(), 2.0)))
    want = 2 * np.cos(0.5 * np.pi * small) * np.sqrt(-np.log1p(-small))
    assert got == pytest.approx(want, rel=1e-5)


def test_stable_in_double_precision_and_with_a_traced_index(x64):
    draw = jax.jit(lambda a: linalg.stable(new_key(), a, (5,), dtype=jnp.float64))
    got = draw(1.5)
    assert got.dtype == jnp.float64
    np.testing.assert_array_equal(
        got, linalg.stable(new_key(), 1.5, (5,), dtype=jnp.float64)
    )


@pytest.mark.parametrize("alpha", [2.5, -1.0, 0.0])
def test_a_traced_index_out_of_range_is_no_law(alpha):
    # Some numbers were finite: of no law at all.
    numbers = jax.jit(lambda a: linalg.stable(new_key(), a, (5,)))
    vectors = jax.jit(lambda a: linalg.isotropic_stable(new_key(), a, 4, 2))
    for draw in (numbers, vectors):
        assert np.all(np.isfinite(draw(1.9)))
        assert np.all(np.isnan(draw(alpha)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: linalg.stable(new_key(), 1.0, (3, -1)), "`shape` must be an integer"),
        (lambda: linalg.stable(new_key(), 2.5, (3,)), r"`alpha` must be .*\(0, 2\]"),
        (lambda: linalg.stable(new_key(), 0.0, (3,)), "`alpha` must be"),
        (lambda: linalg.stable(0, 1.0, (3,)), "`key` must be one typed"),
        (lambda: linalg.stable(new_key(), 1.0, (3,), dtype=jnp.float16), "`dtype`"),
        (lambda: linalg.isotropic_stable(new_key(), 1.0, 0, 3), "`num` must be"),
        (lambda: linalg.isotropic_stable(new_key(), 3.0, 1, 3), "`alpha` must be"),
    ],
)
def test_bad_input(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()
