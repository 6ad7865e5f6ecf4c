"""Flows beside gradient descent: orders, closed forms, bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import implicit


def saddle(w):
    return (w[0] * w[1] - 1) ** 2 / 2 + 0.1 * jnp.sin(w[0])


def descend(gradient, start, eta, num_steps):
    w = np.array(start)
    for _ in range(num_steps):
        w = w - eta * gradient(w)
    return w


def saddle_gradient(w):
    common = w[0] * w[1] - 1
    return np.array([common * w[1] + 0.1 * np.cos(w[0]), common * w[0]])


@pytest.mark.parametrize(("kind", "order"), [("gradient", 1), ("modified", 2)])
def test_orders_of_the_flows(x64, kind, order):
    start, horizon = np.array([1.5, 0.3]), 2.0
    flow = getattr(implicit, f"{kind}_flow")
    etas, errors = (0.1, 0.05, 0.025, 0.0125), []
    for eta in etas:
        num = round(horizon / eta)
        got = flow(
            saddle, jnp.array(start), learning_rate=eta, num_steps=num, record_every=num
        )
        assert got.converged.all()
        assert float(got.error[-1]) < 1e-8
        end = descend(saddle_gradient, start, eta, num)
        errors.append(np.linalg.norm(np.asarray(got.path[-1]) - end))
    slope = np.polyfit(np.log(etas), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15


def test_quadratics_have_closed_forms(x64):
    # exp(-t h) and exp(-t (h + eta h^2 / 2)), h over four decades.
    h = jnp.array([1e-2, 1.0, 100.0])
    loss = lambda w, h: jnp.sum(h * w["a"] ** 2) / 2
    options = {"learning_rate": 0.01, "num_steps": 60, "record_every": 20}
    for flow, rate in (
        (implicit.gradient_flow, h),
        (implicit.modified_flow, h + 0.005 * h**2),
    ):
        got = flow(loss, {"a": jnp.ones(3)}, h, **options)
        exact = np.exp(-np.outer(got.times, rate))
        np.testing.assert_allclose(got.steps, [0, 20, 40, 60])
        np.testing.assert_allclose(got.times, [0, 0.2, 0.4, 0.6])
        # The local errors that were let through, and no more than their sum.
        np.testing.assert_allclose(got.path["a"], exact, atol=3 * got.error[-1])
        assert 0 < float(got.error[-1]) < 1e-9
        losses = exact**2 @ np.asarray(h) / 2
        np.testing.assert_allclose(got.losses, losses, rtol=1e-6)


def test_looser_tolerances_cost_less_and_say_so(x64):
    flow = lambda tolerance: implicit.gradient_flow(
        saddle,
        jnp.array([1.5, 0.3]),
        learning_rate=0.5,
        num_steps=20,
        record_every=20,
        tolerance=tolerance,
    )
    loose, tight = flow(1e-4), flow(1e-10)
    gap = float(jnp.linalg.norm(loose.path[-1] - tight.path[-1]))
    assert 1e-9 < gap < float(loose.error[-1])
    assert loose.num_evaluations < tight.num_evaluations / 2


def test_single_precision_starts_at_zero_and_rests_there():
    loss = lambda w: jnp.sum((w - 1) ** 2) / 2
    zero = jnp.zeros(2)
    got = implicit.gradient_flow(loss, zero, learning_rate=0.5, num_steps=2)
    np.testing.assert_allclose(got.path[:, 0], 1 - np.exp([-0.0, -0.5, -1]), rtol=2e-5)
    rest = implicit.gradient_flow(
        lambda w: jnp.sum(w**2), zero, learning_rate=0.5, num_steps=2
    )
    assert rest.converged.all()
    assert not rest.path.any()


def test_a_constant_loss_moves_nothing():
    loss: Any = lambda w: 1.0
    flow = implicit.gradient_flow(loss, jnp.ones(2), learning_rate=0.5, num_steps=1)
    assert flow.path.tolist() == [[1, 1], [1, 1]]
    assert flow.losses.tolist() == [1, 1]


def test_a_flow_that_leaves_in_finite_time_is_flagged():
    # dw/dt = w^2 is infinite at t = 1.
    got = implicit.gradient_flow(
        lambda w: -jnp.sum(w**3) / 3,
        jnp.ones(1),
        learning_rate=0.3,
        num_steps=5,
        max_substeps=200,
    )
    assert got.converged.tolist() == [True, True, True, True, False, False]
    np.testing.assert_allclose(got.path[:4, 0], 1 / (1 - np.arange(4) * 0.3), rtol=1e-3)
    assert np.isfinite(got.path).all()


def test_distance_recorded_while_training(x64):
    loss = lambda w, batch: jnp.mean((batch @ w - 1) ** 2)
    data = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    optimizer, eta = optax.sgd(0.05), 0.05
    measures = {
        kind: implicit.flow_distance(loss, data, learning_rate=eta, flow=kind)
        for kind in ("gradient", "modified")
    }
    history = dynamics.train(
        lambda w, state, batch, key: (loss(w, batch), state),
        dynamics.init(optimizer, jnp.ones(3)),
        optimizer,
        data,
        num_steps=20,
        record_every=5,
        key=jax.random.key(0),
        record={"w": lambda s: s.params, **measures},
        progress=False,
    )
    for kind in measures:
        flow = getattr(implicit, f"{kind}_flow")(
            loss, jnp.ones(3), data, learning_rate=eta, num_steps=20, record_every=5
        )
        recorded = history.records[kind]
        assert recorded["converged"].all()
        apart = implicit.path_distance(history.records["w"], flow.path)
        np.testing.assert_allclose(recorded["distance"], apart, atol=1e-10)
        np.testing.assert_allclose(recorded["loss"], flow.losses, atol=1e-10)
    closer = history.records["modified"]["distance"][1:]
    assert (closer < history.records["gradient"]["distance"][1:] / 5).all()


def test_distances_of_windows():
    rng = np.random.default_rng(1)
    make = lambda: {"a": rng.normal(size=(7, 2, 3)), "b": rng.normal(size=7)}
    path, flow = make(), make()
    flat = lambda tree: np.concatenate([tree["a"].reshape(7, 6), tree["b"][:, None]], 1)
    apart = flat(path) - flat(flow)
    means = np.stack([apart[i : i + 3].mean(0) for i in range(5)])
    as_arrays = jax.tree.map(jnp.asarray, (path, flow))
    got = implicit.path_distance(*as_arrays, window=3)
    np.testing.assert_allclose(got, np.linalg.norm(means, axis=1), rtol=1e-5)
    tiny = jnp.full((2, 4), 1e-25)
    np.testing.assert_allclose(
        implicit.path_distance(tiny, 0 * tiny), [2e-25, 2e-25], rtol=1e-6
    )


def test_flows_trace_once_and_under_jit():
    traces = []

    def counted(w, scale):
        traces.append(1)
        return scale * jnp.sum(w**2)

    run = lambda w, scale, eta: implicit.modified_flow(
        counted, w, scale, learning_rate=eta, num_steps=3
    )
    run(jnp.ones(2), jnp.array(1.0), 0.1)
    before = len(traces)
    eager = run(jnp.zeros(2) + 2, jnp.array(2.0), 0.2)
    assert len(traces) == before
    jitted = jax.jit(run)(jnp.zeros(2) + 2, jnp.array(2.0), 0.2)
    np.testing.assert_allclose(jitted.path, eager.path, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss": lambda w: w}, r"`loss` must return one number"),
        ({"loss": lambda w: jnp.sum(w).astype(int)}, "`loss` must .* int32"),
        ({"loss": 1.0}, "`loss` must be a function"),
        ({"params": jnp.array([1, 2])}, "`params` must be floating-point"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"num_steps": 0}, "`num_steps` must be an integer"),
        ({"record_every": 2}, "`record_every` must divide"),
        ({"tolerance": 0.0}, "`tolerance` must be None, or positive"),
        ({"max_substeps": 0}, "`max_substeps` must be"),
    ],
)
def test_bad_flows(user_land, change, match):
    given: Any = {
        "loss": lambda w: jnp.sum(w**2),
        "params": jnp.ones(2),
        "learning_rate": 0.1,
        "num_steps": 3,
    }
    with pytest.raises(ValueError, match=match):
        implicit.gradient_flow(**{**given, **change})


def test_bad_comparisons(user_land):
    distance: Any = implicit.path_distance
    with pytest.raises(ValueError, match="must hold real numbers"):
        distance(jnp.ones(3) * 1j, jnp.ones(3))
    with pytest.raises(ValueError, match="same structure and shapes"):
        distance(jnp.ones((3, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="same structure and shapes"):
        distance({"a": jnp.ones(3)}, jnp.ones(3))
    with pytest.raises(ValueError, match="`window` must be at most"):
        distance(jnp.ones(3), jnp.ones(3), window=4)
    measure: Any = implicit.flow_distance
    with pytest.raises(ValueError, match="`flow` must be 'gradient' or 'modified'"):
        measure(jnp.sum, learning_rate=0.1, flow="central")
    with pytest.raises(ValueError, match="`learning_rate` must be"):
        measure(jnp.sum, learning_rate=-0.1)
