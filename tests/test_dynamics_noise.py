"""Gradient noise scales against explicit Jacobians and simulated draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.dynamics import noise

EPS32 = float(np.finfo(np.float32).eps)


def net(params, x):
    hidden = jnp.tanh(x @ params["in"])
    return (hidden @ params["out"])[:, 0]


def squared_error(outputs, y):
    return (outputs - y) ** 2


def problem(n=11, dtype: type = np.float32):
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.normal(size=(3, 4)), dtype),
        "out": jnp.asarray(rng.normal(size=(4, 1)), dtype),
    }
    x = jnp.asarray(rng.normal(size=(n, 3)), dtype)
    return params, x, jnp.asarray(rng.normal(size=n), dtype)


def linear(w, x):
    """A model whose loss `first` has the examples themselves as gradients."""
    return x @ w


def first(outputs, y):
    return outputs


def statistics(gradients):
    """Noise scale, |G|^2 and tr Sigma of the rows, in double precision."""
    gradients = np.asarray(gradients, np.float64)
    square = np.sum(gradients.mean(0) ** 2)
    trace = np.trace(np.cov(gradients.T))
    return trace / square, square, trace


@pytest.mark.parametrize("batch_size", [None, 4])
def test_noise_scale_is_that_of_the_explicit_jacobian(batch_size):
    params, x, y = problem()
    jacobian = jax.jacobian(lambda p: squared_error(net(p, x), y))(params)
    rows = np.concatenate([np.reshape(j, (11, -1)) for j in jacobian.values()], axis=1)
    got = noise.noise_scale(net, squared_error, params, x, y, batch_size=batch_size)
    # Sums of 11 x 16 terms on values of order one.
    np.testing.assert_allclose(got[:3], statistics(rows), rtol=100 * EPS32)


def test_standard_error_is_the_spread_over_draws_of_the_examples():
    # Gradients of skewed noise around a mean: 400 samples of 300 examples each.
    draws = jax.random.gamma(jax.random.key(3), 2.0, (400, 300, 5)) - 1.5
    scale = lambda x: noise.noise_scale(linear, first, jnp.zeros(5), x, x[:, 0])
    found = jax.jit(jax.vmap(scale))(draws)
    spread = float(jnp.std(found.noise_scale, ddof=1))
    # Of 400 draws the spread itself is known to 1 / sqrt(800).
    assert float(jnp.mean(found.standard_error)) == pytest.approx(spread, rel=0.1)
    # And of one sample that of the jackknife, which leaves out an example at a time.
    x = np.asarray(draws[0], np.float64)
    left = [statistics(np.delete(x, i, axis=0))[0] for i in range(300)]
    jackknife = np.sqrt(299 / 300 * np.sum((left - np.mean(left)) ** 2))
    assert float(found.standard_error[0]) == pytest.approx(jackknife, rel=0.03)


def test_noise_scale_in_double_precision(x64):
    params, x, y = problem(dtype=np.float64)
    jacobian = jax.jacobian(lambda p: squared_error(net(p, x), y))(params)
    rows = np.concatenate([np.reshape(j, (11, -1)) for j in jacobian.values()], axis=1)
    got = noise.noise_scale(net, squared_error, params, x, y, batch_size=4)
    assert got.noise_scale.dtype == jnp.float64
    np.testing.assert_allclose(got[:3], statistics(rows), rtol=1e-13)


def test_noise_that_is_small_against_the_gradient_survives_single_precision():
    # tr Sigma / |G|^2 = 1e-6: a sum of squares minus a square is rounding error.
    rng = np.random.default_rng(1)
    x = np.asarray(1.0 + 1e-3 * rng.normal(size=(64, 50)), np.float32)
    got = noise.noise_scale(
        linear, first, jnp.zeros(50), jnp.asarray(x), jnp.zeros(64), batch_size=10
    )
    # The rounding of the mean enters squared; what is left is that of 3,200 terms.
    np.testing.assert_allclose(got[:3], statistics(x), rtol=100 * EPS32)


def test_noise_scale_traces_once_and_inside_jit():
    params, x, y = problem()
    traces = []

    def counted(params, x):
        traces.append(1)
        return net(params, x)

    eager = noise.noise_scale(counted, squared_error, params, x, y, batch_size=4)
    before = len(traces)
    doubled = jax.tree.map(lambda a: 2 * a, params)
    noise.noise_scale(counted, squared_error, doubled, x, y, batch_size=4)
    # The second call only checks the shapes of the losses.
    assert len(traces) == before + 1

    @jax.jit
    def jitted(params, x, y):
        return noise.noise_scale(net, squared_error, params, x, y, batch_size=4)

    np.testing.assert_allclose(jitted(params, x, y), eager, rtol=10 * EPS32)


def test_noise_scale_of_sharded_data(eight_devices):
    params, x, y = problem(n=16)
    sharding = jax.sharding.NamedSharding(eight_devices, jax.P("data"))
    sharded = jax.device_put((x, y), sharding)
    alone = noise.noise_scale(net, squared_error, params, x, y)
    got = noise.noise_scale(net, squared_error, params, *sharded, batch_size=1)
    np.testing.assert_allclose(got, alone, rtol=100 * EPS32)


def test_stationary_points_and_bad_gradients_show():
    x = jnp.array([[1.0], [-1.0]])
    at_minimum = noise.noise_scale(linear, first, jnp.zeros(1), x, x[:, 0])
    assert float(at_minimum.gradient_norm_squared) == 0
    assert float(at_minimum.covariance_trace) == 2
    assert np.isinf(at_minimum.noise_scale)
    assert np.isnan(at_minimum.standard_error)
    # No gradient at all leaves nothing to divide.
    interpolated = noise.noise_scale(linear, first, jnp.zeros(1), 0 * x, x[:, 0])
    assert float(interpolated.gradient_norm_squared) == 0
    assert float(interpolated.covariance_trace) == 0
    assert np.isnan(interpolated.noise_scale)
    broken = noise.noise_scale(
        linear, first, jnp.zeros(1), x.at[0].set(jnp.nan), x[:, 0]
    )
    assert np.isnan(broken).all()


def test_half_precision_is_squared_in_single():
    x = jnp.array([100.0, 500.0], jnp.float16)  # the per-example gradients
    got = noise.noise_scale(
        lambda w, x: w * x, lambda outputs, y: outputs, jnp.float16(0), x, x
    )
    assert float(got.gradient_norm_squared) == 90_000  # was inf
    assert float(got.noise_scale) == pytest.approx(80 / 90, rel=1e-6)


def test_noise_scale_refuses_what_it_cannot_use(user_land):
    params, x, y = problem()
    scale = noise.noise_scale
    with pytest.raises(ValueError, match="at least two examples"):
        scale(net, squared_error, params, x[:1], y[:1])
    with pytest.raises(ValueError, match="`y` must have as many examples"):
        scale(net, squared_error, params, x, y[:-1])
    with pytest.raises(ValueError, match="one loss per example"):
        scale(net, lambda o, y: squared_error(o, y).mean(), params, x, y)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        scale(net, squared_error, params, x, y, batch_size=0)
    with pytest.raises(ValueError, match="`params`"):
        scale(net, squared_error, {}, x, y)


def draw_norms(rng, gradient, scales, batch, num):
    """Squared norms of mean gradients over independent Gaussian examples."""
    kicks = rng.normal(size=(num, gradient.size)) * scales / np.sqrt(batch)
    return np.sum((gradient + kicks) ** 2, axis=1)


def test_two_batches_of_independent_draws_recover_the_truth():
    # Dimension 50, batches of 8 and 256, |G|^2 = 57.80 and a ratio of 8.36.
    rng = np.random.default_rng(2)
    gradient = rng.normal(size=50)
    gradient *= np.sqrt(57.80 / np.sum(gradient**2))
    scales = rng.uniform(0.5, 1.5, size=50)
    scales *= np.sqrt(8.36 * 57.80 / np.sum(scales**2))
    small = draw_norms(rng, gradient, scales, 8, 400)
    big = draw_norms(rng, gradient, scales, 256, 400)
    got = noise.two_batch_noise_scale(small, big, small=8, big=256)
    for estimate, truth in zip(got[:3], (8.36, 57.80, 8.36 * 57.80), strict=True):
        error = float(estimate.standard_error)
        assert 0 < error < 0.1 * truth
        assert abs(float(estimate.value) - truth) < 4 * error
    assert not got.undetermined


def test_delta_method_error_is_the_spread_of_the_ratio():
    rng = np.random.default_rng(3)
    gradient, scales = np.ones(10), np.full(10, 3.0)
    small = draw_norms(rng, gradient, scales, 4, 400 * 100).reshape(400, 100)
    big = draw_norms(rng, gradient, scales, 32, 400 * 100).reshape(400, 100)
    got = jax.vmap(
        lambda a, b: noise.two_batch_noise_scale(a, b, small=4, big=32).noise_scale
    )(small, big)
    # 400 repetitions know a standard deviation to 1/sqrt(800) = 3.5 %.
    spread = np.std(got.value, ddof=1)
    assert abs(np.mean(got.standard_error) / spread - 1) < 4 * 0.035


def test_a_gradient_lost_in_the_noise_is_called_undetermined():
    rng = np.random.default_rng(4)
    scales = np.ones(20)
    norms = [draw_norms(rng, np.zeros(20), scales, b, 50) for b in (2, 16)]
    got = noise.two_batch_noise_scale(*norms, small=2, big=16)
    assert got.undetermined
    broken = noise.two_batch_noise_scale(norms[0] * np.nan, norms[1], small=2, big=16)
    assert broken.undetermined


def test_epochs_estimate_less_than_the_stored_gradient():
    # 200 stored examples with |G_n|^2 = .0626 and S / n = .1488.
    rng = np.random.default_rng(5)
    n, d, num = 200, 30, 4000
    rows = rng.normal(size=(n, d))
    rows -= rows.mean(0)
    rows *= np.sqrt(0.1488 * n / np.trace(np.cov(rows.T)))
    rows += np.sqrt(0.0626 / d)
    order = np.argsort(rng.random((num, n)), axis=1)
    square = lambda batch: np.sum(rows[batch].mean(1) ** 2, axis=1)
    small, big = square(order[:, :10]), square(order[:, 10:60])
    got = noise.two_batch_noise_scale(small, big, small=10, big=50)
    estimate = got.gradient_norm_squared
    error = float(estimate.standard_error)
    assert error < 0.01
    assert abs(float(estimate.value) - (0.0626 - 0.1488)) < 4 * error
    assert got.undetermined
    trace = got.covariance_trace
    assert abs(float(trace.value) - 0.1488 * n) < 4 * float(trace.standard_error)

    exact = noise.noise_scale(
        linear, first, jnp.zeros(d), jnp.asarray(rows, jnp.float32), jnp.zeros(n)
    )
    np.testing.assert_allclose(exact[1:3], (0.0626, 0.1488 * n), rtol=100 * EPS32)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float16])
def test_norms_of_types_that_would_overflow(dtype, user_land):
    norms = jnp.full(2, 2**15, dtype)
    got = noise.two_batch_noise_scale(norms, norms, small=1, big=2**20)
    assert float(got.gradient_norm_squared.value) == 2**15
    assert float(got.noise_scale.value) == 0


def test_no_gradient_at_all_is_undetermined():
    zero = jnp.zeros(3)
    assert noise.two_batch_noise_scale(zero, zero, small=1, big=2).undetermined


@pytest.mark.parametrize(
    ("small_norms", "big_norms", "small", "big", "match"),
    [
        (np.ones(1), np.ones(1), 1, 2, "at least two draws"),
        (np.ones(3), np.ones(2), 1, 2, r"\(3,\) and \(2,\)"),
        (np.ones((2, 2)), np.ones((2, 2)), 1, 2, "one number per draw"),
        (np.ones(2), np.ones(2), 2, 2, "small < big"),
        (np.ones(2), 1j * np.ones(2), 1, 2, "`big_norms_squared` must hold real"),
        (np.ones(2), np.ones(2), 0, 2, "`small` must be an integer of at least 1"),
        (np.ones(2), np.ones(2), 1, 2.5, "`big` must be an integer of at least 1"),
    ],
)
def test_two_batches_refuse(user_land, small_norms, big_norms, small, big, match):
    with pytest.raises(ValueError, match=match):
        noise.two_batch_noise_scale(small_norms, big_norms, small=small, big=big)
