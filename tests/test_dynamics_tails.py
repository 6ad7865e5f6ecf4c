"""Tail indices against NumPy loops, simulation, and the published failure modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.dynamics import tails

EPS32 = float(np.finfo(np.float32).eps)


def new_key(seed=0):
    return jax.random.key(seed)


def pareto(alpha, size, seed=0):
    """Pareto samples, P(X > x) = x^-alpha, in single precision."""
    uniform = np.random.default_rng(seed).uniform(size=size)
    return np.asarray(uniform ** (-1 / alpha), np.float32)


# Order statistics


def hill_oracle(x, k):
    x = np.sort(np.asarray(x, np.float64))[::-1]
    return 1 / np.mean([np.log(x[i] / x[k]) for i in range(k)])


def moments_oracle(x, k):
    x = np.sort(np.asarray(x, np.float64))[::-1]
    excess = np.log(x[:k] / x[k])
    first, second = excess.mean(), (excess**2).mean()
    return first + 1 - 0.5 / (1 - first**2 / second)


def pickands_oracle(x, k):
    x = np.sort(np.asarray(x, np.float64))[::-1]
    k = np.array([1, 2, 4]) * k - 1
    return np.log2((x[k[0]] - x[k[1]]) / (x[k[1]] - x[k[2]]))


def test_estimators_are_their_formulas():
    x = pareto(1.5, 400)
    got = tails.hill(x, num_tail=50)
    np.testing.assert_allclose(got.value, hill_oracle(x, 50), rtol=20 * EPS32)
    np.testing.assert_allclose(got.standard_error, got.value / 50**0.5, rtol=1e-6)
    assert got.num_tail == 50
    got = tails.dedh(x, num_tail=50)
    np.testing.assert_allclose(got.inverse, moments_oracle(x, 50), rtol=1e-5)
    got = tails.pickands(x, num_tail=50)
    np.testing.assert_allclose(got.inverse, pickands_oracle(x, 50), rtol=1e-5)
    assert got.num_tail == 200


@pytest.mark.parametrize(
    ("name", "deviations"),
    # The table measured elsewhere, for 500 of 10,000: Hill alpha / sqrt(k).
    [
        ("hill", (0.033, 0.068, 0.135)),
        ("dedh", (0.044, 0.118, 0.535)),
        ("pickands", (0.069, 0.214, 0.949)),
    ],
)
def test_pareto_at_three_indices(name, deviations):
    many = jax.jit(jax.vmap(lambda x: getattr(tails, name)(x, num_tail=500)))
    for alpha, deviation in zip((0.8, 1.5, 3.0), deviations, strict=True):
        got = many(pareto(alpha, (60, 10_000)))
        # xi is nearly Gaussian; alpha is skewed where its error is large.
        xi, error = np.asarray(got.inverse), float(np.mean(got.inverse_standard_error))
        assert abs(xi.mean() - 1 / alpha) < 4 * error / 60**0.5 + 0.002
        # 60 repetitions know a deviation to 1 / sqrt(118) = 9 %.
        np.testing.assert_allclose(xi.std(ddof=1), error, rtol=4 * 0.09)
        np.testing.assert_allclose(np.median(got.standard_error), deviation, rtol=0.25)


def test_tails_of_norms_entries_and_sides():
    x = np.asarray(np.random.default_rng(1).standard_t(2, size=(300, 2)), np.float32)
    x = x - np.median(x, axis=0)
    sizes = {
        "norm": np.linalg.norm(x, axis=1),
        "absolute": np.abs(x).ravel(),
        "upper": x.ravel()[x.ravel() > 0],
        "lower": -x.ravel()[x.ravel() < 0],
    }
    for word, size in sizes.items():
        want = hill_oracle(size, 40)
        # Wherever the data are; and sizes, which have one sign, are not centred.
        moved = tails.hill(x + 3, num_tail=40, size=word)
        np.testing.assert_allclose(moved.value, want, rtol=1e-4)
        plain = tails.hill(x, num_tail=40, size=word, centre="none")
        np.testing.assert_allclose(plain.value, want, rtol=1e-5)
        of_sizes = tails.hill(size, num_tail=40)
        np.testing.assert_allclose(of_sizes.value, want, rtol=1e-5)


def test_a_location_left_in_is_a_wrong_index():
    x = np.asarray(np.random.default_rng(4).standard_t(2, size=4000) + 20, np.float32)
    got, wrong = (tails.hill(x, num_tail=100, centre=c) for c in ("median", "none"))
    assert abs(got.value - 2) < 3 * got.standard_error
    assert abs(wrong.value - 2) > 3 * wrong.standard_error


def test_hill_plot_holds_every_estimate():
    x = pareto(1.5, 400)
    curve = tails.hill_plot(x)
    assert curve.value.shape == (399,)
    for k in (1, 50, 399):
        np.testing.assert_allclose(curve.value[k - 1], hill_oracle(x, k), rtol=1e-4)
    np.testing.assert_allclose(curve.threshold[49], np.sort(x)[-51], rtol=1e-5)
    assert np.all(curve.usable)
    # The intervals at k = 20 cover in 95 % of 400 samples, +- 4 standard errors.
    many = jax.vmap(lambda x: tails.hill_plot(x, max_tail=20))(pareto(1.5, (400, 100)))
    covered = np.mean((many.lower[:, -1] < 1.5) & (many.upper[:, -1] > 1.5))
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 400) ** 0.5


def test_light_tails_and_flags():
    x = np.asarray(np.random.default_rng(2).uniform(size=1000), np.float32)
    got = tails.dedh(x, num_tail=200)
    # A uniform law has xi = -1.
    assert abs(got.inverse + 1) < 4 * got.inverse_standard_error
    assert np.isinf(got.value)
    assert np.isinf(got.standard_error)
    zeros = tails.hill(jnp.zeros(1000).at[:20].set(1.0), num_tail=200)
    assert np.isnan(zeros.value)
    assert int(zeros.num_zero) == 181
    tied = tails.hill(jnp.ones(1000), num_tail=200)
    assert np.isinf(tied.value)
    assert int(tied.num_ties) == 200
    broken = tails.hill(jnp.asarray(x).at[3].set(jnp.nan), num_tail=200)
    assert np.isnan(broken.value)
    assert int(broken.num_nonfinite) == 1
    curve = tails.hill_plot(jnp.zeros(1000).at[:20].set(1.0), max_tail=30)
    assert curve.usable.tolist() == [True] * 19 + [False] * 11


def test_sizes_whose_squares_would_overflow():
    x = 1e30 * pareto(1.5, (400, 1)) * np.ones((1, 3), np.float32)
    want = hill_oracle(x[:, 0], 50)
    np.testing.assert_allclose(tails.hill(x, num_tail=50).value, want, rtol=1e-4)


def test_double_precision(x64):
    x = np.random.default_rng(1).pareto(1.5, size=400) + 1
    got = tails.hill(x, num_tail=50)
    assert got.value.dtype == jnp.float64
    np.testing.assert_allclose(got.value, hill_oracle(x, 50), rtol=1e-12)


# Clauset


def clauset_oracle(x, min_tail):
    """Every threshold, with the two-sided distance of the empirical steps."""
    x = np.sort(np.asarray(x, np.float64))
    best = (np.inf, 0, 0, 0)
    for start in range(len(x) - min_tail + 1):
        if start and x[start] == x[start - 1]:
            continue
        tail = x[start:]
        alpha = len(tail) / np.sum(np.log(tail / tail[0]))
        fitted = 1 - (tail / tail[0]) ** -alpha
        steps = np.arange(len(tail) + 1) / len(tail)
        gap = np.maximum(abs(steps[1:] - fitted), abs(steps[:-1] - fitted)).max()
        best = min(best, (gap, alpha, tail[0], len(tail)))
    return best


def test_clauset_is_every_threshold_tried():
    body = np.random.default_rng(3).uniform(size=150)
    x = np.asarray(np.concatenate([body, pareto(2.0, 150)]), np.float32)
    gap, alpha, threshold, num = clauset_oracle(x, 10)
    got = tails.clauset(x, max_candidates=300)
    np.testing.assert_allclose(got.ks_distance, gap, rtol=1e-4)
    np.testing.assert_allclose(got.value, alpha, rtol=1e-5)
    np.testing.assert_allclose(got.exponent, alpha + 1, rtol=1e-5)
    np.testing.assert_allclose(got.threshold, threshold, rtol=1e-5)
    assert int(got.num_tail) == num
    np.testing.assert_allclose(got.standard_error, alpha / num**0.5, rtol=1e-5)
    # The threshold was found where the law begins.
    assert 0.9 < threshold < 1.2


def test_clauset_of_pareto_has_the_exponent_of_the_density():
    many = jax.vmap(tails.clauset)(pareto(1.5, (30, 500)))
    # The page has 2.506 +- .057 for 500 tail points.
    assert abs(np.mean(many.exponent) - 2.5) < 4 * 0.09 / 30**0.5
    assert 0.04 < np.std(many.exponent) < 0.15


def test_clauset_with_ties_zeros_and_nothing():
    x = np.repeat(pareto(1.5, 30), 4)
    gap, alpha, *_ = clauset_oracle(x, 10)
    got = tails.clauset(x)
    np.testing.assert_allclose(got.ks_distance, gap, rtol=1e-4)
    np.testing.assert_allclose(got.value, alpha, rtol=1e-4)
    half = tails.clauset(jnp.asarray(x).at[:60].set(0.0))
    assert int(half.num_zero) == 60
    assert int(half.num_tail) <= 60
    assert np.isfinite(half.value)
    nothing = tails.clauset(jnp.ones(120))
    assert np.isnan(nothing.value)
    assert np.isnan(nothing.ks_distance)
    broken = tails.clauset(jnp.asarray(x).at[0].set(jnp.inf))
    assert np.isnan(broken.value)
    assert int(broken.num_nonfinite) == 1


def test_power_law_test_keeps_pareto_and_rejects_an_exponential():
    test = lambda x: tails.power_law_test(x, key=new_key(), min_tail=200)
    kept = test(pareto(1.5, 400))
    assert float(kept.p_value.value) > 0.1
    assert 0 < float(kept.p_value.standard_error) < 0.05
    exponential = np.random.default_rng(4).exponential(size=400)
    assert float(test(np.asarray(exponential, np.float32)).p_value.value) < 0.02


# Log-moments


def log_moment_oracle(x, m):
    """Of data that are centred and in their order already."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    blocks = [x[i : i + m].sum(0) for i in range(0, len(x) - m + 1, m)]
    norms = lambda rows: np.linalg.norm(rows, axis=1)
    sums, ones = np.log(norms(blocks)), np.log(norms(x))
    return np.log(m) / (sums.mean() - ones.mean())


def test_log_moment_is_its_formula():
    x = np.asarray(np.random.default_rng(5).standard_cauchy((1003, 2)), np.float32)
    got = tails.log_moment(x, key=new_key(), centre="none", shuffle=False)
    assert got.block_sizes.tolist() == [2, 5, 10, 20, 31]
    want = [log_moment_oracle(x, m) for m in (2, 5, 10, 20, 31)]
    np.testing.assert_allclose(got.block_values, want, rtol=1e-4)
    np.testing.assert_allclose(got.value, np.median(want), rtol=1e-4)
    one = tails.log_moment(
        x, key=new_key(), centre="none", shuffle=False, block_size=10
    )
    np.testing.assert_allclose(one.value, want[2], rtol=1e-4)
    mean = tails.log_moment(x, key=new_key(), centre="mean", shuffle=False)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    want = [log_moment_oracle(centred, m) for m in (2, 5, 10, 20, 31)]
    np.testing.assert_allclose(mean.block_values, want, rtol=1e-3)


@pytest.mark.parametrize("dimension", [1, 10])
def test_log_moment_of_stable_laws(dimension):
    def one(key, alpha):
        key_draw, key_shuffle = jax.random.split(key)
        x = tails.isotropic_stable(key_draw, alpha, 4000, dimension)
        return tails.log_moment(x, key=key_shuffle)

    many = jax.jit(jax.vmap(one, in_axes=(0, None)))
    for alpha in (1.0, 1.5, 2.0):
        got = many(jax.random.split(new_key(), 30), alpha)
        deviation = np.std(got.value, ddof=1)
        # The page allows a bias of .016 besides the error of the mean.
        assert abs(np.mean(got.value) - alpha) < 0.016 + 4 * deviation / 30**0.5
        assert 0.5 < deviation / np.mean(got.standard_error) < 1.4


def test_published_failures_are_avoided_by_default():
    rng = np.random.default_rng(6)
    chain = np.asarray(rng.normal(size=10_000), np.float32)
    for i in range(1, 10_000):
        chain[i] += 0.9 * chain[i - 1]
    shifted = np.asarray(rng.normal(size=10_000) + 0.5, np.float32)
    skewed = np.asarray(rng.exponential(size=10_000), np.float32)
    published = lambda x: tails.log_moment(
        x, key=new_key(), centre="none", shuffle=False
    )
    default = lambda x: tails.log_moment(x, key=new_key(1))
    for x, wrong in ((chain, 1.3), (shifted, 1.5)):
        assert float(published(x).value) < wrong
        got = default(x)
        assert abs(got.value - 2) < 4 * got.standard_error
        assert got.capped
    # An exponential has a location too; its differences are Laplace, a scale mixture,
    # which is for the diagnosis to find.
    assert float(published(skewed).value) < 1.3
    assert float(default(skewed).value) > 1.5
    # Shuffling does not make a chain independent, and the result says so.
    assert float(default(chain).serial_correlation) > 0.5
    assert abs(default(shifted).serial_correlation) < 4 / 100


def test_indices_below_one_are_centred_rightly():
    x = tails.stable(new_key(), 0.7, (4000,)) + 5.0
    got = tails.log_moment(x, key=new_key(1))
    assert abs(got.value - 0.7) < 4 * got.standard_error
    assert not got.capped


def test_median_statistic_bears_zeros():
    x = np.asarray(np.random.default_rng(7).standard_cauchy(4000), np.float32)
    repeated = jnp.asarray(x).at[:200].set(0.0)
    mean = tails.log_moment(repeated, key=new_key(), centre="none")
    assert np.isnan(mean.value)
    assert int(mean.num_zero) >= 200
    median = tails.log_moment(
        repeated, key=new_key(), centre="none", statistic="median"
    )
    assert abs(median.value - 1) < 4 * median.standard_error + 0.1
    broken = tails.log_moment(jnp.asarray(x).at[5].set(jnp.nan), key=new_key())
    assert np.isnan(broken.value)
    assert int(broken.num_nonfinite) == 1


def test_pickands_of_sizes_far_apart_and_of_equal_sizes():
    x = np.array([8, 8, 4, 4, 3, 2, 2, 2, 1], "f4")
    far = x * np.float32(1e-3)
    far[0] = 1e38
    assert float(tails.pickands(far, num_tail=2).value) == pytest.approx(1, rel=1e-5)
    # A gap of zero was an index of 0, the heaviest tail there can be.
    got = tails.pickands(np.where(x > 4, x, np.float32(2)), num_tail=2)
    assert np.isnan(got.value)
    assert int(got.num_ties) > 0


def test_estimators_are_traced_once():
    traces = []

    @jax.jit
    def both(x):
        traces.append(1)
        index = tails.hill(x, num_tail=10).value
        return index, tails.log_moment(x, key=new_key()).value

    first, second = both(pareto(1.5, 100)), both(pareto(1.5, 100, seed=1))
    assert len(traces) == 1
    assert float(first[0]) != float(second[0])
    np.testing.assert_allclose(
        first[0], tails.hill(pareto(1.5, 100), num_tail=10).value, rtol=1e-5
    )


X = np.ones(100, np.float32)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tails.hill(X, num_tail=100), "`num_tail` must be below the number"),
        (lambda: tails.hill(X, num_tail=1), "`num_tail` must be an integer of at"),
        (lambda: tails.hill(np.ones(9, int), num_tail=2), "must be floating-point"),
        (lambda: tails.hill(X[None, None], num_tail=2), "one observation a row"),
        (lambda: tails.hill(X, num_tail=2, size="both"), "`size` must be one of"),
        (lambda: tails.hill(X, num_tail=2, centre="mean"), "`centre` must be one of"),
        (lambda: tails.pickands(X, num_tail=26), "at most a quarter"),
        (lambda: tails.hill_plot(X, max_tail=100), "`max_tail` must be below"),
        (lambda: tails.hill_plot(X, confidence=1.0), "`confidence` must be"),
        (
            lambda: jax.jit(lambda c: tails.hill_plot(X, confidence=c))(0.9),
            "`confidence` must be a concrete",
        ),
        (lambda: tails.hill([1.0, 2.0], num_tail=2), "`x` must be an array of JAX"),
        (lambda: tails.clauset(X[:9]), "at least `min_tail` sizes, 10, but holds 9"),
        (lambda: tails.clauset(X, min_tail=1), "`min_tail` must be an integer"),
        (lambda: tails.power_law_test(X, key=0), "`key` must be one typed"),
        (lambda: tails.log_moment(X, key=0), "`key` must be one typed"),
        (lambda: tails.log_moment(X[:39], key=new_key()), "at least 40 observations"),
        (lambda: tails.log_moment(X, key=new_key(), block_size=26), "at most 25"),
        (lambda: tails.log_moment(X, key=new_key(), centre="median"), "`centre` must"),
    ],
)
def test_bad_input(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()
