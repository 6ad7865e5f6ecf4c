"""The central flow against gradient descent that oscillates, and its small problems."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.dynamics import implicit
from jaxtheory.dynamics.implicit._complementarity import (
    matrix,
    solve_complementarity,
    vector,
)


def sharpening(w, target):
    """Its sharpness 1 + b rises with b, which is drawn to `target`."""
    return (1 + w["b"]) * w["a"] ** 2 / 2 + 0.05 * (w["b"] - target) ** 2


def descend(loss, params, eta, num_steps):
    """Parameters and losses of gradient descent, from step 0 on."""

    def step(w, _):
        value, slope = jax.value_and_grad(loss)(w)
        return jax.tree.map(lambda a, g: a - eta * g, w, slope), (w, value)

    run = jax.jit(lambda w: jax.lax.scan(step, w, length=num_steps + 1)[1])
    return run(params)


def test_oscillating_descent_follows_the_central_flow(x64):
    # At eta = 1 the edge is b = 1; gradient flow goes on to 1.1.
    start, target = {"a": jnp.array(0.1), "b": jnp.array(0.8)}, jnp.array(1.1)
    times = {"learning_rate": 1.0, "num_steps": 400}
    path, losses = descend(lambda w: sharpening(w, target), start, 1.0, 400)
    central = implicit.central_flow(
        sharpening, start, target, num_directions=2, key=jax.random.key(0), **times
    )
    plain = implicit.gradient_flow(sharpening, start, target, **times)
    assert central.converged.all()
    assert not central.exhausted.any()
    assert float(central.violation.max()) < 1e-6
    assert float(jnp.abs(central.slackness).max()) < 1e-3

    # Before the edge it is gradient flow.
    early = implicit.path_distance(central.path, plain.path)[:10]
    assert float(early.max()) < 1e-4
    # Beyond it, the mean of what oscillates follows it, and gradient flow does not.
    to_central = implicit.path_distance(path, central.path, window=40)
    to_plain = implicit.path_distance(path, plain.path, window=40)
    assert float(to_central[60]) < 0.05 * float(to_plain[60])
    assert float(to_central[200]) < 1e-5
    assert abs(float(to_plain[200]) - 0.1) < 1e-3
    # The cycle it ends in has a^2 = 2 (.1)(1.1 - 1): Sigma / 2 holds the slope of b.
    np.testing.assert_allclose(central.variances[-1], [0.02, 0], atol=1e-7)
    np.testing.assert_allclose(jnp.mean(path["a"][-100:] ** 2), 0.02, rtol=1e-4)
    np.testing.assert_allclose(
        central.average_losses[-1], jnp.mean(losses[-100:]), rtol=1e-4
    )
    assert float(central.losses[-1]) < 0.03 * float(losses[-1])


def net(params, x):
    hidden = jnp.tanh(x @ params["in"] + params["shift"][None])
    return jnp.tanh(hidden @ params["mid"]) @ params["out"]


def mean_square(params, x, y):
    return jnp.mean((net(params, x) - y) ** 2)


def cubic_problem(width=6, num=12):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5)
    params = {
        "in": draw(1, width),
        "shift": 0.3 * draw(width),
        "mid": draw(width, width),
        "out": draw(width, 1),
    }
    x = jnp.linspace(-1, 1, num)[:, None]
    return params, x, 4 * x**3 - 3 * x


def test_network_at_the_edge_of_stability(x64):
    params, x, y = cubic_problem()
    eta, num = 0.1, 700
    path, losses = descend(lambda w: mean_square(w, x, y), params, eta, num)
    central = implicit.central_flow(
        mean_square,
        params,
        x,
        y,
        learning_rate=eta,
        num_steps=num,
        num_directions=2,
        num_substeps=1,
        key=jax.random.key(0),
    )
    assert central.converged.all()
    plain = implicit.gradient_flow(
        mean_square, params, x, y, learning_rate=eta, num_steps=num
    )
    sharpness = eta / 2 * np.asarray(central.sharpness)
    edge = int(np.argmax(np.asarray(central.variances[:, 0]) > 0))
    assert 300 < edge < 400
    assert sharpness[0, 0] < 0.2
    # Held at 2 / eta from there on, on one direction, to the solver's accuracy.
    assert float(central.violation.max()) < 1e-3
    np.testing.assert_allclose(sharpness[edge + 10 :, 0], 1, atol=1e-3)
    assert not central.exhausted.any()
    assert float(jnp.abs(central.slackness[edge + 10 :]).max()) < 1e-2
    flat, unravel = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda leaf: leaf[-1], central.path)
    )
    hessian = jax.jit(jax.hessian(lambda w: mean_square(unravel(w), x, y)))(flat)
    top = np.linalg.eigvalsh(np.asarray(hessian))[:-3:-1]
    np.testing.assert_allclose(central.sharpness[-1], top, rtol=1e-6)

    # The mean loss is predicted, where the loss on the path is a third less, and
    # that of gradient flow not half of it.
    late = slice(edge + 50, None)
    mean = lambda a: float(jnp.mean(a[late]))
    assert abs(mean(central.average_losses) / mean(losses) - 1) < 0.1
    assert mean(central.losses) < 0.7 * mean(losses)
    assert mean(plain.losses) < 0.5 * mean(losses)
    to_central, to_plain = (
        np.asarray(implicit.path_distance(path, flow.path, window=20))[edge + 50 :]
        for flow in (central, plain)
    )
    assert to_central.mean() < 0.3 * to_plain.mean()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_small_problems_are_solved(x64, k):
    size = k * (k + 1) // 2
    solve = jax.jit(lambda a, b: solve_complementarity(a, b, tolerance=1e-9))
    rng, ranks = np.random.default_rng(k), set()
    for _ in range(10):
        root = rng.normal(size=(size, 2 * size))
        slope, offset = root @ root.T, rng.normal(size=(k, k))
        offset = offset + offset.T
        got = solve(jnp.asarray(offset), jnp.asarray(slope))
        assert float(got.residual) <= 1e-9
        x = np.asarray(got.solution)
        y = offset + np.asarray(matrix(slope @ vector(got.solution), k))
        assert np.linalg.eigvalsh(x)[0] > -1e-9
        assert np.linalg.eigvalsh(y)[0] > -1e-7
        assert abs(np.sum(x * y)) < 1e-6
        ranks.add(np.linalg.matrix_rank(x, tol=1e-6))
    assert len(ranks) > 1


def test_small_problems_without_a_solution_or_with_none_to_seek():
    negative = -jnp.eye(2)
    hopeless = solve_complementarity(negative, jnp.zeros((3, 3)), tolerance=1e-5)
    assert np.isinf(hopeless.residual)
    assert not hopeless.solution.any()
    idle = solve_complementarity(jnp.eye(2), jnp.eye(3), tolerance=1e-5)
    assert not idle.solution.any()
    assert int(idle.num_iterations) == 0
    broken = solve_complementarity(negative * jnp.nan, jnp.eye(3), tolerance=1e-5)
    assert np.isinf(broken.residual)
    entries = jnp.arange(6.0)
    np.testing.assert_allclose(vector(matrix(entries, 3)), entries, rtol=1e-6)
    np.testing.assert_allclose(
        jnp.linalg.norm(matrix(entries, 3)), jnp.linalg.norm(entries), rtol=1e-6
    )


def test_what_is_followed_too_little_or_starts_beyond_the_edge_is_flagged():
    traces = []

    def twice(w, c):
        traces.append(1)
        pair = w[1] ** 2 + w[2] ** 2
        return c[0] * ((1 + w[0]) * pair / 2 - 0.1 * w[0]) + c[1] * jnp.sum(w**2)

    run = lambda first, k=1, c=(1.0, 0.0): implicit.central_flow(
        twice,
        jnp.array([first, 0.0, 0.0]),
        jnp.array(c),
        learning_rate=1.0,
        num_steps=4,
        num_directions=k,
        key=jax.random.key(0),
    )
    assert not run(0.5).exhausted.any()
    before = len(traces)
    alone = run(0.95)
    assert alone.exhausted[-1]
    assert len(traces) == before  # other numbers, the same program
    both = run(0.95, k=2)
    # Two equal eigenvalues share the force of the slope: 1/2 tr Sigma = .1.
    np.testing.assert_allclose(jnp.sum(both.variances[-1]), 0.2, rtol=1e-3)

    above = run(1.5)
    np.testing.assert_allclose(above.violation[0], 0.25, rtol=1e-5)
    assert float(above.violation[-1]) < 1e-4  # brought down
    # A quadratic beyond 2 / eta: nothing can bring it down.
    flat = run(1.0, c=(0.0, 1.5))
    assert not flat.converged.any()
    np.testing.assert_allclose(flat.violation, 0.5, rtol=1e-5)
    assert np.isinf(flat.residual).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss": lambda w: w}, "`loss` must return one number"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive"),
        ({"num_directions": 3}, "`num_directions` must be at most"),
        ({"num_directions": 0}, "`num_directions` must be an integer"),
        ({"num_substeps": 0}, "`num_substeps` must be"),
        ({"num_iterations": 1}, "`num_iterations` must be between"),
        ({"num_iterations": 3}, "`num_iterations` must be between"),
        ({"record_every": 2}, "`record_every` must divide"),
        ({"key": 0}, "`key` must be one typed random key"),
    ],
)
def test_bad_central_flows(user_land, change, match):
    given: Any = {
        "loss": lambda w: jnp.sum(w**4),
        "params": jnp.ones(2),
        "learning_rate": 0.1,
        "num_steps": 3,
        "num_directions": 2,
        "key": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=match):
        implicit.central_flow(**{**given, **change})
