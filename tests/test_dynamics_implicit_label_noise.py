"""Label noise: what the objective draws, and where it drives the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import implicit

ETA, SIGMA, STEPS, START = 0.05, 0.5, 400, (1.6, 0.625)


def identity(params, x):
    return x + 0 * params


def half_square(outputs, y):
    return (outputs - y) ** 2 / 2


def own_product(params, x):
    """Each example has its own two parameters: as many runs as there are examples."""
    del x
    return params[:, 0] * params[:, 1]


def product(params, x):
    return x * params[0] * params[1]


def gaps_by(rate):
    """``D = t1^2 - t2^2`` on the minima ``t1 t2 = 1``, shrunk by ``1 - rate(h)``."""
    gap = START[0] ** 2 - START[1] ** 2
    for _ in range(STEPS):
        gap *= 1 - rate(np.sqrt(gap**2 + 4))  # h = t1^2 + t2^2 where t1 t2 = 1
    return gap


def test_training_drifts_as_the_full_regulariser_says():
    runs = 4096
    objective = implicit.label_noise(own_product, half_square, scale=SIGMA)
    # The mean over examples divides each run's gradient by their number.
    optimizer = optax.sgd(ETA * runs)
    state = dynamics.init(optimizer, jnp.tile(jnp.array([START]), (runs, 1)))
    data = jnp.zeros(runs), jnp.ones(runs)
    history = dynamics.train(
        objective,
        state,
        optimizer,
        data,
        num_steps=STEPS,
        key=jax.random.key(0),
        record_every=STEPS,
        progress=False,
    )
    first, second = np.asarray(history.state.params, np.float64).T
    gaps = first**2 - second**2
    error = gaps.std(ddof=1) / runs**0.5
    full = gaps_by(lambda h: ETA**2 * SIGMA**2 / (1 - ETA * h / 2))
    leading = gaps_by(lambda h: ETA**2 * SIGMA**2)
    assert round(full, 4) == 1.6583
    assert round(leading, 4) == 1.6894
    assert error < 0.002
    assert abs(gaps.mean() - full) < 4 * error
    assert abs(gaps.mean() - leading) > 10 * error


def test_drift_is_the_closed_form_on_the_hyperbola(x64):
    point = jnp.array(START)
    one = jnp.ones(1)
    noise = {"scale": SIGMA, "learning_rate": ETA}
    got = implicit.label_noise_drift(product, half_square, point, one, one, **noise)
    h = START[0] ** 2 + START[1] ** 2
    strength = SIGMA**2 / 2
    assert got.rank == 1
    assert got.is_squared
    assert got.stable
    assert float(got.loss) < 1e-31
    np.testing.assert_allclose(got.sharpness, h, rtol=1e-12)
    np.testing.assert_allclose(got.leading, strength * ETA * h / 2, rtol=1e-12)
    np.testing.assert_allclose(
        got.regulariser, -strength * np.log(1 - ETA * h / 2), rtol=1e-12
    )
    gap, change = (
        point[0] ** 2 - point[1] ** 2,
        2 * (point[0] * got.drift[0] - point[1] * got.drift[1]),
    )
    rate = ETA**2 * SIGMA**2 / (1 - ETA * h / 2)
    np.testing.assert_allclose(change, -rate * gap, rtol=1e-12)
    # Along the minima: the product does not change to first order.
    assert abs(float(got.drift @ point[::-1])) < 1e-17


def net(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def mean_square(outputs, y):
    return jnp.mean((outputs - y) ** 2, axis=-1)


def net_problem():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(3, 4)), "out": rng.normal(size=(4, 2))}
    params = jax.tree.map(jnp.asarray, params)
    x = jnp.asarray(rng.normal(size=(5, 3)))
    return params, x, net(params, x)


def test_stationary_covariance_of_the_recursion_gives_the_gradient(x64):
    # S from a dense discrete Lyapunov iteration, and 1/2 <S, d H> by differences:
    # nothing of the logarithm's derivation is used.
    params, x, y = net_problem()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    eta, scale, batch = 0.3, 0.7, 5
    loss = lambda w: jnp.mean(mean_square(net(unravel(w), x), y))
    hessian = jax.jit(jax.hessian(loss))
    jacobian = np.asarray(jax.jacobian(lambda w: net(unravel(w), x).ravel())(flat))
    h = np.asarray(hessian(flat))
    # A target's noise enters the mean gradient as -2/(n k) times its Jacobian row.
    noise = scale**2 * (2 / (batch * 2)) ** 2 * jacobian.T @ jacobian
    keep = np.eye(len(flat)) - eta * h
    covariance, power = eta**2 * noise, keep
    for _ in range(40):  # doubling: sum of keep^i noise keep^i
        covariance = covariance + power @ covariance @ power.T
        power = power @ power
    third = jax.jit(jax.jacfwd(hessian))(flat)
    expected = np.einsum("ij,ijk->k", covariance, np.asarray(third)) / 2

    got = implicit.label_noise_drift(
        net, mean_square, params, x, y, scale=scale, learning_rate=eta
    )
    assert got.is_squared
    assert got.rank == 10
    # Off the minima H and J^T J part: the two agree along them.
    rows = np.linalg.svd(jacobian, full_matrices=False)[2]
    tangent = lambda v: v - rows.T @ (rows @ v)
    drift = np.asarray(jax.flatten_util.ravel_pytree(got.drift)[0])
    assert np.linalg.norm(drift) > 1e-4
    np.testing.assert_allclose(
        drift, -eta * tangent(expected), atol=1e-7 * np.linalg.norm(drift)
    )
    # Three of the five examples in a step: more noise, by 5/3.
    fewer = implicit.label_noise_regulariser(
        net, mean_square, params, x, y, scale=scale, learning_rate=eta, batch_size=3
    )
    np.testing.assert_allclose(fewer, got.regulariser * 5 / 3, rtol=1e-12)


def test_regulariser_in_single_precision_with_repeated_eigenvalues():
    # Two equal eigenvalues; more outputs than parameters.
    model = lambda w, x: x @ jnp.diag(w)
    params, x = jnp.array([2.0, 2.0]), jnp.concatenate([jnp.eye(2), jnp.eye(2)])
    value = lambda w: implicit.label_noise_regulariser(
        lambda w, x: model(w**2, x),
        lambda out, y: jnp.sum((out - y) ** 2, -1) / 2,
        w,
        x,
        jnp.zeros((4, 2)),
        scale=1.0,
        learning_rate=0.1,
    )
    got, gradient = jax.jit(jax.value_and_grad(value))(params)
    # H = diag(4 w^2 / 2): -1/8 sum log(1 - .05 * 2 w^2).
    np.testing.assert_allclose(got, -2 * np.log(1 - 0.4) / 8, rtol=1e-5)
    np.testing.assert_allclose(gradient, [0.4 / 0.6 / 8] * 2, rtol=1e-5)


def test_what_values_alone_can_tell_is_flagged():
    point, one = jnp.array([2.0, 0.5]), jnp.ones(1)
    measure = lambda loss, **options: implicit.label_noise_drift(
        product, loss, point, one, one, scale=0.5, **options
    )
    beyond = measure(half_square, learning_rate=0.5)  # eta h = 2.125
    assert not beyond.stable
    assert np.isposinf(beyond.regulariser)
    for loss in (lambda out, y: (out - y) ** 4, lambda out, y: jnp.cos(out - y)):
        assert not measure(loss, learning_rate=0.1).is_squared
        numbers = {"scale": 0.5, "learning_rate": 0.1}
        assert np.isnan(
            implicit.label_noise_regulariser(product, loss, point, one, one, **numbers)
        )
    assert measure(half_square, learning_rate=0.1).is_squared


def test_signs_gaussians_and_flips_have_their_moments():
    n, k = 20_000, 4
    params, key = jnp.zeros(()), lambda: jax.random.key(1)
    record = lambda outputs, y: (y - outputs) + 0 * outputs
    draws = {}
    for kind in ("sign", "gaussian"):
        noisy = implicit.label_noise(
            identity, lambda out, y: (y - out) ** 4, scale=2.0, kind=kind
        )
        draws[kind] = noisy(params, (), (jnp.zeros(n), jnp.zeros(n)), key())[0]
    np.testing.assert_allclose(draws["sign"], 16)
    # A normal number's fourth moment is 3, with a variance of 96.
    assert abs(draws["gaussian"] / 16 - 3) < 4 * np.sqrt(96 / n)
    mean = implicit.label_noise(identity, record, scale=2.0)
    (value, state) = mean(params, "kept", (jnp.zeros(n), jnp.zeros(n)), key())
    assert state == "kept"
    assert 0 < abs(float(value)) < 4 * 2 / n**0.5

    # What became of class 3: each other class equally often.
    x, y = jnp.zeros((n, k)), jnp.full(n, 3)
    for other, share in ((0, 0.1), (1, 0.1), (2, 0.1), (3, 0.7)):
        became = lambda outputs, y, c=other: (y == c) + 0 * outputs[:, 0]
        flip = implicit.label_noise(identity, became, scale=0.3, kind="flip")
        got = flip(params, (), (x, y), key())[0]
        assert abs(float(got) - share) < 4 * np.sqrt(share * (1 - share) / n)


def test_flipped_labels_of_eight_bits():
    n, k = 2_000, 100
    x, y = jnp.zeros((n, k)), jnp.full(n, 99, jnp.int8)
    for function in (
        lambda outputs, y: (y == 99) + 0 * outputs[:, 0],
        lambda outputs, y: ((y < 0) | (y >= k)) + 0 * outputs[:, 0],
    ):
        flip = implicit.label_noise(identity, function, scale=1.0, kind="flip")
        assert float(flip(jnp.zeros(()), (), (x, y), jax.random.key(1))[0]) == 0


def test_equal_arguments_give_equal_objectives():
    build = lambda scale: implicit.label_noise(identity, half_square, scale=scale)
    assert build(0.5) == build(jnp.array(0.5))
    assert hash(build(0.5)) == hash(build(0.5))
    assert build(0.5) != build(0.6)


def test_regulariser_and_drift_trace_once():
    traces = []

    def counted(params, x):
        traces.append(1)
        return product(params, x)

    one, noise = jnp.ones(1), {"scale": 0.1, "learning_rate": 0.1}
    for function in (implicit.label_noise_drift, implicit.label_noise_regulariser):
        function(counted, half_square, jnp.array([1.0, 1.0]), one, one, **noise)
        before = len(traces)
        again = {"scale": 0.2, "learning_rate": 0.3}
        function(counted, half_square, jnp.array([1.0, 2.0]), one, one, **again)
        assert len(traces) == before + 1  # the check of shapes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scale": -1.0}, "`scale` must be a finite number"),
        ({"scale": np.inf}, "`scale` must be a finite number"),
        ({"scale": np.ones(2)}, r"`scale` must be .* array of shape \(2,\)"),
        ({"scale": 1.5, "kind": "flip"}, "`scale` must be a probability"),
        ({"scale": 0.5, "kind": "uniform"}, "`kind` must be one of"),
    ],
)
def test_bad_noise(user_land, options, match):
    with pytest.raises(ValueError, match=match):
        implicit.label_noise(identity, half_square, **options)


def test_bad_functions_and_traced_scales(user_land):
    with pytest.raises(ValueError, match="`loss_fn` must be a function"):
        implicit.label_noise(identity, None, scale=0.5)  # type: ignore
    build = lambda scale: implicit.label_noise(identity, half_square, scale=scale)
    with pytest.raises(ValueError, match="`scale` must be a Python number"):
        jax.jit(lambda scale: build(scale)(jnp.zeros(()), (), (), None))(0.5)


@pytest.mark.parametrize(
    ("kind", "y", "match"),
    [
        ("sign", np.zeros(3, int), "`y` must be one floating-point array"),
        ("gaussian", {"a": np.zeros(3, "f4")}, "`y` must .* is a <class 'dict'>"),
        ("flip", np.zeros(3, "f4"), "`y` must hold one integer class .* float32"),
        ("flip", np.zeros((3, 2), int), r"shape \(3, 2\)"),
        ("sign", np.zeros(2, "f4"), "`y` must have as many examples"),
    ],
)
def test_bad_targets(user_land, kind, y, match):
    objective = implicit.label_noise(identity, half_square, scale=0.5, kind=kind)
    batch: Any = (jnp.zeros((3, 2)), y)
    with pytest.raises(ValueError, match=match):
        objective(jnp.zeros(()), (), batch, jax.random.key(0))


def test_bad_keys_and_outputs_that_broadcast(user_land):
    objective = implicit.label_noise(identity, half_square, scale=0.5)
    batch = jnp.zeros((3, 1)), jnp.zeros(3)
    with pytest.raises(ValueError, match="`key` must be"):
        objective(jnp.zeros(()), (), batch, 0)
    with pytest.raises(ValueError, match="`loss_fn` must compare"):
        objective(jnp.zeros(()), (), batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"learning_rate": np.nan}, "`learning_rate` must be positive"),
        ({"scale": -0.1}, "`scale` must be"),
        ({"batch_size": 2}, "`batch_size` must be at most"),
        ({"batch_size": 0}, "`batch_size` must be an integer"),
        ({"y": jnp.ones((1, 1))}, "`y` must have the shape of the outputs"),
        ({"y": jnp.ones(2)}, "as many examples"),
        ({"params": jnp.array([1, 2])}, "`params` must be floating-point"),
    ],
)
def test_bad_arguments_of_the_drift(user_land, change, match):
    given: Any = {
        "params": jnp.ones(2),
        "x": jnp.ones(1),
        "y": jnp.ones(1),
        "scale": 0.1,
        "learning_rate": 0.1,
    }
    for function in (implicit.label_noise_drift, implicit.label_noise_regulariser):
        with pytest.raises(ValueError, match=match):
            function(product, lambda o, y: o.ravel(), **{**given, **change})
