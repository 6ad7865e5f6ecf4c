"""Lyapunov exponents against closed forms and products of explicit matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import stability

EPS32 = float(np.finfo(np.float32).eps)
CURVATURE = np.array([0.5, 2.0, 7.0, 30.0])


def new_key(seed=0):
    return jax.random.key(seed)


def quadratic(w, model_state, batch, key):
    return jnp.sum(batch[0] * w**2) / 2, model_state


def exponents_on_quadratic(optimizer, *, num, num_steps, start=None, warm_up=None):
    h = jnp.asarray(CURVATURE)[None]
    start = jnp.ones(4, h.dtype) if start is None else jnp.asarray(start)
    return stability.lyapunov_exponents(
        quadratic,
        dynamics.init(optimizer, start),
        optimizer,
        h,
        num=num,
        num_steps=num_steps,
        warm_up=warm_up,
        key=new_key(),
    )


def numpy_exponents(jacobians, frame, warm_up):
    """Benettin's method in double precision, from the same directions."""
    growth = []
    for jacobian in jacobians:
        frame, r = np.linalg.qr(jacobian @ frame)
        growth.append(np.log(np.abs(np.diag(r))))
    return np.mean(growth[warm_up:], axis=0)


def test_gradient_descent_on_a_quadratic():
    # eta h_max = 3: unstable.
    got = exponents_on_quadratic(optax.sgd(0.1), num=4, num_steps=60, warm_up=120)
    exact = np.sort(np.log(np.abs(1 - 0.1 * CURVATURE)))[::-1]
    # exp(-.17 t) separates the two that are nearest; each step rounds to a few eps.
    np.testing.assert_allclose(got.exponents.value, exact, atol=60 * EPS32)
    assert (got.exponents.standard_error < 20 * EPS32).all()
    np.testing.assert_allclose(got.total.value, exact.sum(), atol=60 * EPS32)
    assert got.growth.shape == got.running.shape == (60, 4)
    np.testing.assert_allclose(got.running[-1], got.exponents.value, rtol=60 * EPS32)
    assert got.settled.all()
    assert got.too_short
    # The run doubles in each step; 30 * 2^t is no float32 from t = 124 on.
    assert int(got.nonfinite_step) == 124


def test_heavy_ball_has_the_exponents_of_its_companion_matrix(x64):
    # Two complex pairs among them, whose exponents are both log(beta) / 2.
    eta, beta = 0.04, 0.9
    optimizer = optax.sgd(eta, momentum=beta)
    got = exponents_on_quadratic(optimizer, num=8, num_steps=2000)
    blocks = [np.array([[1 - eta * h, -eta * beta], [h, beta]]) for h in CURVATURE]
    moduli = np.abs(np.concatenate([np.linalg.eigvals(block) for block in blocks]))
    exact = np.sort(np.log(moduli))[::-1]
    # Rotating pairs converge only like 1 / T, by about log(condition) / T.
    np.testing.assert_allclose(got.exponents.value, exact, atol=6 / 2000)
    np.testing.assert_allclose(got.total.value, 4 * np.log(beta), atol=1e-12)
    assert not got.too_short


def adam_jacobians(h, w, num_steps, eta, b1, b2, eps, eps_root):
    """Adam on a quadratic by hand, and the Jacobian of each step in (m, v, w)."""
    d = len(h)
    m, v, eye = np.zeros(d), np.zeros(d), np.eye(len(h))
    jacobians = []
    for t in range(1, num_steps + 1):
        g = h * w
        m_new, v_new = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        dm = np.hstack([b1 * eye, 0 * eye, np.diag((1 - b1) * h)])
        dv = np.hstack([0 * eye, b2 * eye, np.diag(2 * (1 - b2) * g * h)])
        c1, c2 = 1 - b1**t, 1 - b2**t
        root = np.sqrt(v_new / c2 + eps_root)
        below = root + eps
        along_m = eta / c1 / below
        along_v = -eta * m_new / c1 / below**2 / (2 * root * c2)
        dw = np.hstack([0 * eye, 0 * eye, eye])
        dw = dw - along_m[:, None] * dm - along_v[:, None] * dv
        jacobians.append(np.vstack([dw, dm, dv]))
        w = w - eta * m_new / c1 / below
        m, v = m_new, v_new
    # Columns in the order of the rows: parameters, first and second moments.
    order = np.r_[2 * d : 3 * d, 0 : 2 * d]
    return [jacobian[:, order] for jacobian in jacobians], w


def test_adam_against_explicit_jacobians(x64):
    start = np.array([1.0, -2.0, 0.5, 1.5])
    optimizer = optax.adam(0.02, eps_root=1e-6)
    got = exponents_on_quadratic(
        optimizer, num=12, num_steps=50, start=start, warm_up=0
    )
    jacobians, end = adam_jacobians(CURVATURE, start, 50, 0.02, 0.9, 0.999, 1e-8, 1e-6)
    np.testing.assert_allclose(got.state.params, end, rtol=1e-11)
    # All twelve growth rates add up to the logarithm of the determinant.
    volumes = [np.linalg.slogdet(jacobian)[1] for jacobian in jacobians]
    np.testing.assert_allclose(got.growth.sum(1), volumes, rtol=1e-9)
    draws = jax.random.normal(jax.random.fold_in(new_key(), 2), (12, 12))
    frame = np.linalg.qr(np.asarray(draws).T)[0]
    exact = numpy_exponents(jacobians, frame, 0)
    np.testing.assert_allclose(got.exponents.value, exact, atol=1e-9)


def test_adam_at_a_second_moment_of_zero_is_flagged():
    start = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    broken = exponents_on_quadratic(optax.adam(0.02), num=2, num_steps=10, start=start)
    assert int(broken.nonfinite_step) == 0
    kept = exponents_on_quadratic(
        optax.adam(0.02, eps_root=1e-6), num=2, num_steps=10, start=start
    )
    assert int(kept.nonfinite_step) == -1
    assert np.isfinite(kept.exponents.value).all()


class Regression(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def regression():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 3)) * np.array([1.0, 2.0, 0.5])
    return Regression(x, x @ np.ones(3) + rng.normal(size=20))


def squared_error(outputs, y):
    return (outputs - y) ** 2 / 2


def linear(w, x):
    return x @ w


LINEAR = dynamics.supervised(linear, squared_error)


def along_regression(optimizer, state, data, **options):
    return stability.lyapunov_exponents(
        LINEAR,
        state,
        optimizer,
        (jnp.asarray(data.x), jnp.asarray(data.y)),
        num=3,
        key=new_key(7),
        batch_size=4,
        **options,
    )


def test_minibatch_sgd_is_a_product_of_random_matrices(x64):
    data, optimizer = regression(), optax.sgd(0.2)
    state = dynamics.init(optimizer, jnp.zeros(3))
    got = along_regression(optimizer, state, data, num_steps=400, warm_up=0)
    # The batches of training, as its documentation says they are drawn.
    jacobians = []
    for t in range(400):
        stream = jax.random.fold_in(new_key(7), 0)
        order = jax.random.permutation(jax.random.fold_in(stream, t // 5), 20)
        rows = data.x[np.asarray(order)[4 * (t % 5) : 4 * (t % 5) + 4]]
        jacobians.append(np.eye(3) - 0.2 * rows.T @ rows / 4)
    frame = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    exact = numpy_exponents(jacobians, frame, 100)
    # After a hundred steps the directions have forgotten where they started.
    np.testing.assert_allclose(got.growth[100:].mean(0), exact, atol=1e-10)
    error = np.asarray(got.exponents.standard_error)
    assert ((error > 0) & (error < 0.1)).all()
    assert got.exponents.num_samples == 20
    assert not got.too_short


def test_the_trajectory_is_that_of_training():
    data, optimizer = regression(), optax.sgd(0.05, momentum=0.9)
    data = Regression(*(a.astype(np.float32) for a in data))
    state = dynamics.init(optimizer, jnp.zeros(3))
    trained = dynamics.train(
        LINEAR,
        state,
        optimizer,
        (jnp.asarray(data.x), jnp.asarray(data.y)),
        num_steps=12,
        batch_size=4,
        key=new_key(7),
        progress=False,
    )
    # From the middle of an epoch on, in two pieces.
    first = along_regression(optimizer, state, data, num_steps=5, warm_up=1)
    second = along_regression(optimizer, first.state, data, num_steps=5, warm_up=1)
    assert int(second.state.step) == 12
    np.testing.assert_allclose(
        second.state.params, trained.state.params, rtol=100 * EPS32
    )
    assert second.state.initial_params.tolist() == [0, 0, 0]


def henon(x, key):
    return jnp.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def test_henon_map():
    start = jnp.array([0.1, 0.1])
    got = stability.lyapunov_exponents_of_map(
        henon, start, num=2, num_steps=20_000, key=new_key()
    )
    error = np.asarray(got.exponents.standard_error)
    assert ((error > 0) & (error < 0.01)).all()
    assert (
        np.abs(got.exponents.value - np.array([0.41922, -1.62319])) < 4 * error
    ).all()
    # The determinant is -0.3 everywhere.
    np.testing.assert_allclose(got.total.value, np.log(0.3), atol=1e-5)
    assert got.settled.all()
    assert int(got.nonfinite_step) == -1


def test_random_maps_and_singular_ones():
    scale = lambda x, key: x * jnp.array([jnp.exp(jax.random.normal(key)), 0.0])
    got = stability.lyapunov_exponents_of_map(
        scale, jnp.ones(2), num=2, num_steps=400, warm_up=0, key=new_key()
    )
    # The mean of 400 standard normals; then nothing is left.
    assert abs(float(got.exponents.value[0])) < 4 / np.sqrt(400)
    assert 0.5 < float(got.exponents.standard_error[0]) * np.sqrt(400) < 2
    assert np.isneginf(got.exponents.value[1])
    assert np.isposinf(got.exponents.standard_error[1])
    assert int(got.nonfinite_step) == -1


def test_an_orbit_that_is_still_on_its_way_is_not_settled():
    # The second entry contracts faster and faster by the clock in the first.
    slow = lambda x, key: jnp.stack([x[0] + 1, x[1] * jnp.exp(-0.001 * x[0])])
    got = stability.lyapunov_exponents_of_map(
        slow, jnp.array([0.0, 1.0]), num=2, num_steps=400, warm_up=0, key=new_key()
    )
    assert got.settled.tolist() == [True, False]
    # The clock runs from 0 to 399.
    np.testing.assert_allclose(got.exponents.value[1], -0.1995, atol=2e-3)


def test_one_trace_and_inside_jit():
    data, optimizer = regression(), optax.sgd(0.2)
    arrays = jnp.asarray(data.x, jnp.float32), jnp.asarray(data.y, jnp.float32)
    traces = []

    def counted(w, model_state, batch, key):
        traces.append(1)
        return LINEAR(w, model_state, batch, key)

    def run(params, arrays):
        state = dynamics.init(optimizer, params)
        return stability.lyapunov_exponents(
            counted, state, optimizer, arrays, num=2, num_steps=9, key=new_key()
        )

    eager = run(jnp.zeros(3), arrays)
    before = len(traces)
    run(jnp.ones(3), arrays)
    assert len(traces) == before
    jitted = jax.jit(run)(jnp.zeros(3), arrays)
    np.testing.assert_allclose(
        jitted.exponents.value, eager.exponents.value, rtol=50 * EPS32
    )


def test_lyapunov_exponents_refuse(user_land):
    optimizer = optax.sgd(0.1)
    state = dynamics.init(optimizer, jnp.ones(4))
    h = jnp.asarray(CURVATURE, jnp.float32)[None]
    good = {"num": 1, "num_steps": 8, "key": new_key()}

    def refuses(match, *arguments, **changed):
        with pytest.raises(ValueError, match=match):
            stability.lyapunov_exponents(*arguments, **(good | changed))

    refuses("`num` must be at most 4", quadratic, state, optimizer, h, num=5)
    refuses("`num_steps` must be", quadratic, state, optimizer, h, num_steps=3)
    refuses("`warm_up` must be", quadratic, state, optimizer, h, warm_up=-1)
    refuses("`key` must be", quadratic, state, optimizer, h, key=0)
    refuses("`state` must be a `TrainState`", quadratic, (), optimizer, h)
    two = jax.tree.map(lambda a: jnp.stack([a, a]), state)
    refuses("`state` must be of one run", quadratic, two, optimizer, h)
    refuses("`optimizer` must be an optax", quadratic, state, None, h)
    refuses("`state.opt_state` must", quadratic, state, optax.adam(0.1), h)
    refuses("`batch_size` must be", quadratic, state, optimizer, h, batch_size=2)
    of_map = stability.lyapunov_exponents_of_map
    with pytest.raises(ValueError, match="`x` must hold at least one array"):
        of_map(henon, (), **good)
    with pytest.raises(ValueError, match="`step` must return what it got"):
        of_map(lambda x, key: x[:1], jnp.ones(2), **good)
