"""Sharpness Dimension and sharpness of random systems against explicit spectra."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from oracles import dense_hessian

from jaxtheory import curvature, dynamics, linalg
from jaxtheory.dynamics import stability
from jaxtheory.linalg import SpectralDensity

EPS32 = float(np.finfo(np.float32).eps)


def new_key(seed=0):
    return jax.random.key(seed)


def oracle(exponents):
    """Kaplan-Yorke by the book, in double precision."""
    ordered = np.sort(np.asarray(exponents, np.float64))[::-1]
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    most = max(j for j in range(len(sums)) if sums[j] >= 0)
    if most == len(ordered):
        return float(most)
    return most + sums[most] / abs(ordered[most])


def test_henon():
    got = stability.sharpness_dimension(jnp.array([-1.62319, 0.41922]))
    assert abs(float(got.value) - 1.25827) < 6e-6
    np.testing.assert_allclose(got.gap, 2 - 1.258269, rtol=2e-6)
    assert float(got.standard_error) == 0
    assert not got.saturated
    assert not got.truncated


@pytest.mark.parametrize(
    ("exponents", "value"),
    [
        ([-0.1, -1.0, -2.0], 0.0),
        ([1.0, 0.5, -1.5], 3.0),
        ([1.0, 0.5, -0.5], 3.0),
        ([0.0, 0.0, -1.0], 2.0),
        ([2.0, -np.inf, -1.0], 2.0),
        ([-np.inf, -np.inf, 0.5], 1.0),
        ([0.5, -2.0, -2.0], 1.25),
    ],
)
def test_edges(exponents, value):
    got = stability.sharpness_dimension(np.array(exponents, np.float32))
    assert float(got.value) == value
    assert float(got.gap) == 3 - value
    assert bool(got.saturated) == (value == 3)


def test_random_exponents_against_the_definition():
    draws = np.random.default_rng(0).normal(size=(50, 30)) - 0.3
    got = jax.vmap(stability.sharpness_dimension)(jnp.asarray(draws, jnp.float32))
    expected = [oracle(row) for row in draws]
    # A sum of 30 terms over an exponent that may be small.
    np.testing.assert_allclose(got.value, expected, atol=2e-4)


def test_leading_exponents_alone_give_a_lower_bound():
    some = jnp.array([1.0, 0.2, -0.1])
    got = stability.sharpness_dimension(some, dimension=10)
    assert got.truncated
    assert float(got.value) == 3
    assert float(got.gap) == 7
    assert not got.saturated
    enough = stability.sharpness_dimension(some - 0.75, dimension=10)
    assert not enough.truncated
    np.testing.assert_allclose(enough.value, 1 + 0.25 / 0.55, rtol=10 * EPS32)


def test_what_is_not_a_number_stays_so():
    got = stability.sharpness_dimension(jnp.array([1.0, jnp.nan, -3.0]))
    assert np.isnan(got.value)
    assert not got.saturated


def circulant(half, x):
    return jnp.fft.irfft(half * jnp.fft.rfft(x), n=x.size)


def saturating_spectrum(rng):
    """2,000 eigenvalues: a bulk near zero, some tens below 1, two beyond 2 / .1."""
    half = np.abs(rng.normal(size=1001)) * 1e-5
    half[1:17] = rng.uniform(0.2, 0.8, size=16)
    half[[0, -1]] = 25.0, 22.0
    return half, np.concatenate([half[:1], np.repeat(half[1:-1], 2), half[-1:]])


def test_a_spectrum_whose_dimension_saturates():
    half, eigenvalues = saturating_spectrum(np.random.default_rng(0))
    exact = oracle(np.log(np.abs(1 - 0.1 * eigenvalues)))
    assert 1980 < exact < 1995
    operator = linalg.function_operator(
        circulant,
        jnp.asarray(half, jnp.float32),
        structure=jnp.zeros(2000),
        tags=lx.symmetric_tag,
    )
    density = linalg.spectral_density(
        operator, key=new_key(1), num_probes=32, num_iterations=30
    )
    got = stability.sharpness_dimension_from_density(density, learning_rate=0.1)
    error = float(got.standard_error)
    # Comparable to the signal, and said so.
    assert 0.5 < error < 5
    assert abs(float(got.value) - exact) < 3 * error
    assert abs(float(got.gap) - (2000 - exact)) < 3 * error
    assert got.saturated


def quadrature(exponents, weights, dimension):
    """A density of given exponents of a step with learning rate 1."""
    exponents, weights = np.atleast_2d(exponents), np.atleast_2d(weights)
    nothing = jnp.zeros(len(weights))
    whole = jnp.zeros(len(weights), jnp.int32)
    nodes = -np.expm1(exponents)
    arrays = [jnp.asarray(a, jnp.float32) for a in (nodes, weights)]
    return SpectralDensity(*arrays, dimension, nothing, whole, whole)


def test_jackknife_over_probes():
    # Three probes that disagree on the share of a contracting node.
    exponents = np.tile([0.1, -0.2], (3, 1))
    shares = np.array([[0.3, 0.7], [0.4, 0.6], [0.5, 0.5]])
    got = stability.sharpness_dimension_from_density(
        quadrature(exponents, shares, 100), learning_rate=1.0
    )
    dimension = lambda up: 100 * (up + 0.1 * up / 0.2)
    np.testing.assert_allclose(got.value, dimension(0.4), rtol=20 * EPS32)
    left = np.array([dimension(up) for up in (0.45, 0.4, 0.35)])
    error = np.sqrt(2 / 3 * np.sum((left - left.mean()) ** 2))
    np.testing.assert_allclose(got.standard_error, error, rtol=1e-4)
    assert not got.saturated


def test_the_gap_keeps_its_digits_in_single_precision():
    # Half a direction is missing to thirty million, where floats are 2 apart.
    dimension, lost = 30_000_000, 1e-7
    shares = np.array([1e-6, 1 - 1e-6 - lost, lost])
    up = 0.5 * lost / 1e-6
    exponents = np.array([up, -1e-30, -1.0])
    got = stability.sharpness_dimension_from_density(
        quadrature(np.tile(exponents, (2, 1)), np.tile(shares, (2, 1)), dimension),
        learning_rate=1.0,
    )
    np.testing.assert_allclose(got.gap, 0.5 * lost * dimension, rtol=1e-4)
    assert got.saturated


def test_the_value_keeps_its_digits_among_many_parameters():
    # Between neighbours of single precision at 3e9 there are 256.
    got = stability.sharpness_dimension(
        np.array([0.5, -1.0], np.float32), dimension=3_000_000_000
    )
    assert float(got.value) == 1.5
    # Ten directions grow by .2; the others shrink by .1.
    density = quadrature([[0.2, -0.1]] * 2, [[1e-7, 1 - 1e-7]] * 2, 100_000_000)
    got = stability.sharpness_dimension_from_density(density, learning_rate=1.0)
    expected = 10 * (1 + 0.2 / 0.1)
    np.testing.assert_allclose(got.value, expected, rtol=1e-5)


def test_weightless_singular_nodes_do_not_matter():
    got = stability.sharpness_dimension_from_density(
        quadrature([[0.1, -0.2, -np.inf]] * 2, [[0.5, 0.5, 0.0]] * 2, 4),
        learning_rate=1.0,
    )
    np.testing.assert_allclose(got.value, 3.0, rtol=20 * EPS32)
    broken = stability.sharpness_dimension_from_density(
        quadrature([[0.1, np.nan]] * 2, [[0.5, 0.5]] * 2, 4), learning_rate=1.0
    )
    assert np.isnan(broken.value)


def net(params, x):
    hidden = jnp.tanh(x @ params["in"])
    return jnp.tanh(hidden @ params["mid"]) @ params["out"]


def squared_error(outputs, y):
    return jnp.sum((outputs - y) ** 2, axis=-1)


def network():
    rng = np.random.default_rng(3)
    shapes = {"in": (6, 5), "mid": (5, 5), "out": (5, 3)}
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }
    x = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32)
    return params, x, jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)


def test_density_and_dense_hessian_of_a_network_agree():
    params, x, y = network()
    eigenvalues = np.linalg.eigvalsh(dense_hessian(net, squared_error, params, x, y))
    rate = 2.2 / eigenvalues[-1]
    exact = stability.sharpness_dimension(
        jnp.asarray(np.log(np.abs(1 - rate * eigenvalues)))
    )
    density = linalg.spectral_density(
        curvature.hessian(net, squared_error, params, x, y),
        key=new_key(),
        num_probes=32,
        num_iterations=40,
    )
    got = stability.sharpness_dimension_from_density(density, learning_rate=rate)
    assert 5 < float(exact.value) < 65
    assert 0 < float(got.standard_error) < 5
    assert abs(float(got.value - exact.value)) < 3 * float(got.standard_error)

    # The same from the Jacobian of the optimizer's step.
    optimizer = optax.sgd(rate)
    state = dynamics.init(optimizer, params)
    sharpness = stability.rds_sharpness(
        dynamics.supervised(net, squared_error),
        jax.tree.map(lambda a: a[None], state),
        optimizer,
        (x, y),
        num_batches=1,
        key=new_key(),
    )
    again = stability.sharpness_dimension(sharpness.sharpness.value)
    np.testing.assert_allclose(again.value, exact.value, rtol=1e-4)


def quartic(w, model_state, batch, key):
    (h,) = batch
    return jnp.sum(jnp.mean(h, axis=0) * w**4) / 12, model_state


def numpy_jacobian(h, w, eta, beta):
    """Heavy ball at `w` under the Hessian ``diag(h w^2)``, in (parameters, trace)."""
    curved, eye = np.diag(h.mean(0) * w**2), np.eye(len(w))
    return np.block([[eye - eta * curved, -eta * beta * eye], [curved, beta * eye]])


def test_rds_sharpness_is_the_mean_of_the_largest(x64):
    rng = np.random.default_rng(0)
    h, points = rng.uniform(1, 9, size=(6, 2)), rng.normal(size=(3, 2))
    eta, beta = 0.3, 0.8
    optimizer = optax.sgd(eta, momentum=beta)
    starts = [dynamics.init(optimizer, jnp.asarray(w)) for w in points]
    got = stability.rds_sharpness(
        quartic,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
        optimizer,
        (jnp.asarray(h),),
        num_batches=4,
        batch_size=2,
        key=new_key(5),
    )
    largest = []
    for index in range(4):
        draw, _ = jax.random.split(jax.random.fold_in(new_key(5), index))
        batch = h[np.asarray(jax.random.permutation(draw, 6))[:2]]
        jacobians = [numpy_jacobian(batch, w, eta, beta) for w in points]
        values = np.log([np.linalg.svd(j, compute_uv=False) for j in jacobians])
        largest.append(values.max(0))
    np.testing.assert_allclose(got.sharpness.value, np.mean(largest, 0), rtol=1e-10)
    error = np.std(largest, axis=0, ddof=1) / 2
    np.testing.assert_allclose(got.sharpness.standard_error, error, rtol=1e-8)
    assert int(got.num_nonfinite) == 0


def test_one_batch_has_no_error_and_bad_points_are_counted():
    optimizer = optax.sgd(0.1)
    state = dynamics.init(optimizer, jnp.array([[1.0, 2.0], [jnp.nan, 1.0]]))
    states = state._replace(step=jnp.zeros(2, jnp.int32))
    got = stability.rds_sharpness(
        quartic, states, optimizer, (jnp.ones((3, 2)),), num_batches=1, key=new_key()
    )
    assert int(got.num_nonfinite) == 1
    assert np.isnan(got.sharpness.value).all()
    assert np.isposinf(got.sharpness.standard_error).all()


def test_one_trace_and_inside_jit():
    optimizer, traces = optax.sgd(0.1), []

    def counted(w, model_state, batch, key):
        traces.append(1)
        return quartic(w, model_state, batch, key)

    def dimension(points):
        states = jax.vmap(lambda w: dynamics.init(optimizer, w))(points)
        got = stability.rds_sharpness(
            counted,
            states,
            optimizer,
            (jnp.full((3, 2), 40.0),),
            num_batches=2,
            batch_size=1,
            key=new_key(),
        )
        return stability.sharpness_dimension(got.sharpness.value).value

    points = jnp.array([[1.0, 0.25], [0.5, 0.25]])
    eager = dimension(points)
    before = len(traces)
    dimension(points + 1)
    assert len(traces) == before
    # |1 - eta h|: 3 and .75 at the first point, 0 and .75 at the second.
    exact = oracle(np.log([3, 0.75]))
    np.testing.assert_allclose(eager, exact, rtol=10 * EPS32)
    np.testing.assert_allclose(jax.jit(dimension)(points), eager, rtol=10 * EPS32)


def test_refusals(user_land):
    with pytest.raises(ValueError, match="`exponents` must be a vector"):
        stability.sharpness_dimension(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="`dimension` must be at least"):
        stability.sharpness_dimension(jnp.ones(3), dimension=2)
    for dimension in (2.5, "all", True):
        with pytest.raises(ValueError, match="`dimension` must be an integer"):
            stability.sharpness_dimension(jnp.ones(1), dimension=dimension)
    with pytest.raises(ValueError, match="`exponents` must be real numbers"):
        stability.sharpness_dimension(1j * jnp.ones(3))
    density = quadrature([[0.1, -0.2]] * 2, [[0.5, 0.5]] * 2, 4)
    for rate in (0.0, -1.0, "fast"):
        with pytest.raises(ValueError, match="`learning_rate` must be"):
            stability.sharpness_dimension_from_density(density, learning_rate=rate)
    optimizer = optax.sgd(0.1)
    state = dynamics.init(optimizer, jnp.ones(2))
    with pytest.raises(ValueError, match="`states` must be a `TrainState` whose"):
        stability.rds_sharpness(
            quartic, state, optimizer, (jnp.ones((3, 2)),), num_batches=1, key=new_key()
        )
    one = jax.tree.map(lambda a: a[None], state)
    ragged = one._replace(params=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`states\.params` must have as many"):
        stability.rds_sharpness(
            quartic,
            ragged,
            optimizer,
            (jnp.ones((3, 2)),),
            num_batches=1,
            key=new_key(),
        )
