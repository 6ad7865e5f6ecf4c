"""Sharpness over its threshold, followed through training with warm starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from jaxtheory import curvature, dynamics

LEARNING_RATE = 0.1


def mlp(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def half_square(outputs, y):
    return 0.5 * jnp.sum((outputs - y) ** 2, axis=-1)


def problem():
    """Parameters and data; 18 parameters, 13 examples."""
    draw = np.random.default_rng(0).normal
    array = lambda *shape: jnp.asarray(draw(size=shape), jnp.float32)
    x = array(13, 4)
    params = {"w1": array(4, 3), "w2": array(3, 2)}
    return params, x, jnp.stack([jnp.sin(x.sum(1)), x[:, 0]], axis=1)


def monitor(**changes):
    _, x, y = problem()
    arguments: dict[str, Any] = {
        "apply_fn": mlp,
        "loss_fn": half_square,
        "x": x,
        "y": y,
        "method": "gradient_descent",
        "learning_rate": LEARNING_RATE,
        "key": jax.random.key(3),
    } | changes
    return curvature.sharpness_over_threshold(**arguments)


SGD = optax.sgd(LEARNING_RATE)


def state_at(params, optimizer=SGD):
    return dynamics.init(optimizer, params)


def train(optimizer, edge):
    """Nine steps, recorded three times after the start."""
    params, x, y = problem()
    history = dynamics.train(
        dynamics.supervised(mlp, half_square),
        state_at(params, optimizer),
        optimizer,
        (x, y),
        num_steps=9,
        record={"edge": edge, "state": lambda s: (s.params, s.opt_state)},
        record_every=3,
        key=jax.random.key(2),
        progress=False,
    )
    return history, history.records["edge"]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def dense(params):
    _, x, y = problem()
    return oracles.dense_hessian(mlp, half_square, params, x, y)


def row(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_it_follows_the_top_eigenvalue_of_the_dense_hessian():
    history, edge = train(SGD, monitor())
    for index in (0, -1):
        matrix = dense(row(history.records["state"], index)[0])
        top = np.linalg.eigvalsh(matrix)[-1]
        np.testing.assert_allclose(edge.sharpness[index], top, rtol=1e-3)
        np.testing.assert_allclose(edge.ratio[index], top / 20, rtol=1e-3)
    np.testing.assert_allclose(edge.threshold, [20] * 4, rtol=1e-6)
    assert edge.converged.all()
    assert edge.defined.all()
    assert (edge.residual <= 0.01 * edge.sharpness).all()
    # What it remembers is the eigenvector.
    vector = flat(history.memory)
    np.testing.assert_allclose(matrix @ vector, top * vector, atol=0.01 * top)


def test_adam_as_its_state_and_its_schedule_say():
    options: dict[str, Any] = {"b1": 0.8, "b2": 0.99, "eps": 1e-3}
    schedule = optax.linear_schedule(0.02, 0.01, 9)
    edge = monitor(
        method="adam",
        momentum=0.8,
        learning_rate=lambda state: schedule(state.step),
        weight_decay=0.1,
        preconditioner=lambda state: curvature.preconditioner(
            state.opt_state, **options
        ),
    )
    history, edge = train(optax.adamw(schedule, weight_decay=0.1, **options), edge)
    # Before the first update there is no preconditioner.
    assert edge.defined.tolist() == [False, True, True, True]
    assert not edge.converged[0]
    assert np.isnan([edge.sharpness[0], edge.ratio[0], edge.residual[0]]).all()
    rates = np.linspace(0.02, 0.01, 4)
    thresholds = (2 - 0.1 * rates) * 1.8 / (0.2 * rates)
    np.testing.assert_allclose(edge.threshold[1:], thresholds[1:], rtol=1e-5)
    params, opt_state = row(history.records["state"], -1)
    moments = opt_state[0]
    root = np.sqrt(flat(moments.nu) / (1 - 0.99**9)) + 1e-3
    diagonal = (1 - 0.8**9) * root
    scaled = dense(params) / np.sqrt(np.outer(diagonal, diagonal))
    top = np.linalg.eigvalsh(scaled)[-1]
    np.testing.assert_allclose(edge.sharpness[-1], top, rtol=1e-3)
    np.testing.assert_allclose(edge.ratio[-1], top / thresholds[-1], rtol=1e-3)


def test_sam_at_the_norm_of_the_full_gradient():
    params, x, y = problem()
    edge = monitor(method="sam", radius=0.3, batch_size=4)
    measure = jax.jit(edge.measure)
    value, _ = measure(state_at(params), params)
    mean_loss = lambda p: jnp.mean(half_square(mlp(p, x), y))
    norm = np.linalg.norm(flat(jax.grad(mean_loss)(params)))
    expected = norm / 0.6 * (np.sqrt(1 + 8 * 0.3 / (LEARNING_RATE * norm)) - 1)
    np.testing.assert_allclose(value.threshold, expected, rtol=1e-5)
    top = np.linalg.eigvalsh(dense(params))[-1]
    np.testing.assert_allclose(value.ratio, top / expected, rtol=1e-2)
    # With no gradient to climb there is no edge, also where the caller does not jit.
    nothing = jax.tree.map(jnp.zeros_like, params)
    for function in (measure, edge.measure):
        value, _ = function(state_at(nothing), params)
        assert not value.defined
        assert np.isnan(value.threshold)


def test_a_rate_of_zero_has_no_edge_and_a_negative_one_no_threshold():
    params, *_ = problem()
    schedule = optax.linear_schedule(0.0, LEARNING_RATE, 10)
    edge = monitor(learning_rate=lambda state: schedule(state.step))
    value, _ = edge.measure(state_at(params), params)
    assert (value.threshold, value.ratio, value.defined) == (np.inf, 0, True)
    edge = monitor(learning_rate=lambda state: state.step - LEARNING_RATE)
    value, _ = edge.measure(state_at(params), params)
    assert not value.defined
    assert np.isnan(value.ratio)


def quartic(params, x):
    """The Hessian is diagonal, with the squares of the parameters."""
    return x @ (params**4 / 12)


def test_another_eigenvector_may_overtake():
    """From the exact eigenvector of a direction that the others know nothing of."""
    x = jnp.ones((1, 30))
    edge = monitor(apply_fn=quartic, loss_fn=lambda out, y: out, x=x, y=jnp.zeros(1))
    bulk = jnp.linspace(0.1, 1, 30)
    measure = jax.jit(edge.measure)
    vector = jnp.zeros(30).at[0].set(1.0)
    for top, value in ((0, 3.0), (1, 3.0)):
        params = bulk.at[:2].set(2.0).at[top].set(value)
        result, vector = measure(state_at(params), vector)
        np.testing.assert_allclose(result.sharpness, 9, rtol=1e-3)
        assert abs(vector[top]) > 0.99


def test_what_is_not_finite_is_said_and_not_remembered():
    params, *_ = problem()
    edge = monitor()
    measure = jax.jit(edge.measure)
    vector = jax.tree.map(jnp.ones_like, params)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    value, kept = measure(state_at(broken), vector)
    assert np.isnan(value.ratio)
    assert not value.converged
    np.testing.assert_array_equal(flat(kept), flat(vector))


def test_a_record_takes_fewer_than_ten_products(monkeypatch):
    """Counted where they are computed, by a callback in the model's tangent."""
    calls = []

    @jax.custom_jvp
    def counted(w):
        return w

    def count_tangent(primals, tangents):
        jax.debug.callback(lambda _: calls.append(1), tangents[0][0, 0])
        return primals[0], tangents[0]

    counted.defjvp(count_tangent)
    model = lambda p, x: mlp({**p, "w1": counted(p["w1"])}, x)
    params, x, y = problem()
    state = state_at(params)
    measurement = monitor(apply_fn=model)

    def products(function, *args):
        calls.clear()
        result = jax.block_until_ready(jax.jit(function)(*args))
        jax.effects_barrier()
        return len(calls), result

    per_product, _ = products(
        lambda state: curvature.hessian(model, half_square, state.params, x, y).mv(
            state.params
        ),
        state,
    )
    first, vector = products(measurement.init, state)
    warm, _ = products(measurement.measure, state, vector)
    assert warm == 9 * per_product
    assert first == (18 + 1) * per_product  # min(p, 44) and the residual


BAD = {
    "key": ({"key": 3}, "`key` must be one typed random key"),
    "iterations": ({"num_iterations": 0}, "`num_iterations` must be an integer of"),
    "batch size": ({"batch_size": 0}, "`batch_size` must be None"),
    "adam": (
        {"method": "adam", "momentum": 0.9},
        "`preconditioner` must be given for 'adam'",
    ),
    "preconditioner": (
        {"preconditioner": {"w1": 1.0}},
        "`preconditioner` must be a function of the state.* of type dict",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, user_land):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        monitor(**changes)


def test_functions_that_do_not_fit_the_state(user_land):
    params, *_ = problem()
    edge = monitor(learning_rate=optax.cosine_decay_schedule(0.1, 10))
    with pytest.raises(ValueError, match=r"pass `lambda state: schedule\(state.step\)"):
        edge.measure(state_at(params), params)
    edge = monitor(preconditioner=lambda state: None)
    with pytest.raises(ValueError, match="`preconditioner` must have the structure"):
        edge.measure(state_at(params), params)


def test_a_method_without_a_threshold_is_told_before_training_begins(user_land):
    with pytest.raises(ValueError, match="Lion, Muon and active clipping have no"):
        monitor(method="lion")
    with pytest.raises(ValueError, match=r"`momentum` must be in .* but was None"):
        monitor(method="heavy_ball", learning_rate=lambda state: 0.1)
