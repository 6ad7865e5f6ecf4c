"""Diagonal linear networks: what gradient flow ends in, and what it minimises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from jaxtheory import kernels
from jaxtheory.dynamics import implicit

EPS32 = float(np.finfo(np.float32).eps)


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8))
    truth = np.zeros(8)
    truth[[1, 5]] = 1.0, -0.7
    return x, x @ truth


def loss_of(network):
    def loss(params, x, y):
        return jnp.sum((network.apply(params, x) - y) ** 2) / 2

    return loss


LOSSES = {depth: loss_of(implicit.diagonal_network(depth=depth)) for depth in (2, 3)}


def end_of_flow(depth, scale, horizon):
    """Where gradient flow from the unbiased start ends, and how far it is to zero."""
    x, y = problem()
    network = implicit.diagonal_network(depth=depth)
    flow = implicit.gradient_flow(
        LOSSES[depth],
        network.init(8, scale=scale),
        jnp.asarray(x),
        jnp.asarray(y),
        learning_rate=horizon,
        num_steps=1,
        max_substeps=100_000,
    )
    assert flow.converged.all()
    last = jax.tree.map(lambda leaf: leaf[-1], flow.path)
    beta = np.asarray(network.coefficients(last))
    assert np.linalg.norm(x @ beta - y) < 1e-6
    return beta


def least_l1(x, y):
    found = scipy.optimize.linprog(np.ones(16), A_eq=np.hstack([x, -x]), b_eq=y)
    return found.x[:8] - found.x[8:]


# Time to zero loss: at small scales the start is a saddle.
@pytest.mark.parametrize(
    ("scale", "horizon"), [(5.0, 5.0), (0.3, 100.0), (1e-4, 400.0)]
)
def test_gradient_flow_ends_in_the_least_penalty(x64, scale, horizon):
    x, y = problem()
    beta = end_of_flow(2, scale, horizon)
    limit = kernels.diagonal_network_limit(x, y, scale=scale)
    np.testing.assert_allclose(beta, limit.coefficients, atol=1e-5)
    kernel, rich = np.linalg.pinv(x) @ y, least_l1(x, y)
    norm = np.linalg.norm
    over_l2, over_l1 = (norm(beta, p) / norm(b, p) for b, p in ((kernel, 2), (rich, 1)))
    assert min(over_l1, over_l2) > 1 - 1e-6
    if scale == 5.0:
        assert over_l2 < 1.001 < 1.1 < over_l1
    if scale == 1e-4:
        assert over_l1 < 1.01 < 1.1 < over_l2
    # Interpolations are beta + the kernel of x: none has a lesser penalty.
    slope = jax.grad(lambda b: implicit.diagonal_network_penalty(b, scale=scale))
    free = np.linalg.svd(x)[2][4:]
    slopes = np.asarray(slope(jnp.asarray(beta)))
    assert np.abs(free @ slopes).max() < 1e-4 * np.abs(slopes).max()


@pytest.mark.parametrize(("scale", "horizon"), [(1.5, 20.0), (0.1, 200.0)])
def test_three_layers_minimise_the_penalty_of_theirs(x64, scale, horizon):
    x, _ = problem()
    beta = jnp.asarray(end_of_flow(3, scale, horizon))
    penalty = implicit.diagonal_network_penalty
    free = np.linalg.svd(x)[2][4:]
    along = lambda depth: np.asarray(
        jax.grad(lambda b: penalty(b, scale=scale, depth=depth))(beta)
    )
    own, other = along(3), along(2)
    assert np.abs(free @ own).max() < 1e-4 * np.abs(own).max()
    if scale == 0.1:  # at large scales all depths are the same kernel
        assert np.abs(free @ other).max() > 1e-2 * np.abs(other).max()


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_penalty_is_the_integral_of_the_inverse(x64, depth):
    power = depth / (depth - 2) if depth > 2 else None

    def h(s):
        if power is None:
            return 2 * np.sinh(s)
        return (1 - s) ** -power - (1 + s) ** -power

    most = 50.0 if power is None else 1 - 1e-12

    def inverse(t):
        return scipy.optimize.brentq(lambda s: h(s) - t, 0, most, xtol=1e-15)

    for z in (0.3, 4.0, 60.0):
        expected = 0.5**depth * scipy.integrate.quad(inverse, 0, z, epsabs=1e-11)[0]
        got = implicit.diagonal_network_penalty(
            jnp.array([z, 0.0]) * 0.5**depth, scale=0.5, depth=depth
        )
        np.testing.assert_allclose(got, expected, rtol=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_penalty_in_single_precision_at_both_ends(depth):
    # For small z: h(s) = 2 c s with c = D / (D - 2), 1 for two layers: z^2 / (4 c).
    # There are no digits lost, and no overflow of z^2.
    curvature = depth / (depth - 2) if depth > 2 else 1.0
    value = lambda z: implicit.diagonal_network_penalty(
        jnp.array([z, -z]), scale=1.0, depth=depth
    )
    for z in (1e-4, 1e-8):
        expected = 2 * z**2 / (4 * curvature)
        np.testing.assert_allclose(value(z), expected, rtol=20 * EPS32)
    z = 1e25
    expected = 2 * (2 - z + z * np.arcsinh(z / 2)) if depth == 2 else 2 * z
    np.testing.assert_allclose(value(z), expected, rtol=1e-4)
    assert float(value(0.0)) == 0
    second = jax.grad(jax.grad(lambda z: value(z)))(0.5)
    assert np.isfinite(second)


def test_second_derivative_is_that_of_differences(x64):
    for depth in (2, 4):
        value = lambda z, d=depth: implicit.diagonal_network_penalty(
            z[None], scale=0.7, depth=d
        )
        slope = jax.jit(jax.grad(value))
        z, step = jnp.array(0.9), 1e-5
        expected = (slope(z + step) - slope(z - step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(slope)(z), expected, rtol=1e-8)
        np.testing.assert_allclose(
            slope(z), (value(z + step) - value(z - step)) / (2 * step), rtol=1e-8
        )
        # Even: the penalty of -z, with the opposite slope.
        np.testing.assert_allclose(slope(-z), -slope(z), rtol=1e-12)


def test_penalty_of_numbers_far_above_the_unit():
    # In units of scale^2 the penalty itself is not a number of single precision.
    got = implicit.diagonal_network_penalty(np.array([10.0], "f4"), scale=1e-18)
    expected = 10 * (np.arcsinh(5e36) - 1)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_network_is_a_model_and_compiled_by_depth():
    assert implicit.diagonal_network(depth=3) is implicit.diagonal_network(depth=3)
    network = implicit.diagonal_network(depth=3)
    params = {"u": jnp.array([2.0, 0.0]), "v": jnp.array([0.0, 1.0])}
    np.testing.assert_array_equal(network.coefficients(params), [8, -1])
    np.testing.assert_array_equal(network.apply(params, jnp.eye(2) * 2), [16, -2])
    assert not network.coefficients(network.init(4, scale=0.1)).any()


def test_bad_networks(user_land):
    build: Any = implicit.diagonal_network
    network = build()
    with pytest.raises(ValueError, match="`depth` must be an integer of at least 2"):
        build(depth=1)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        network.init(3, scale=0.0)
    with pytest.raises(ValueError, match="`num_features` must be"):
        network.init(0, scale=0.1)
    with pytest.raises(ValueError, match="`params` must be"):
        network.coefficients({"u": jnp.ones(2)})
    with pytest.raises(ValueError, match="`params` must be"):
        network.coefficients({"u": jnp.ones(2), "v": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"`x` must be \[n, 3\]"):
        network.apply(network.init(3, scale=0.1), jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("coefficients", "options", "match"),
    [
        (np.ones((2, 2)), {"scale": 1.0}, r"`coefficients` must .* \(2, 2\)"),
        (np.ones(2, int), {"scale": 1.0}, "`coefficients` must .* int64"),
        (np.ones(2), {"scale": -1.0}, "`scale` must be positive"),
        (np.ones(2), {"scale": 1.0, "depth": 1}, "`depth` must be"),
        (np.ones(2), {"scale": 1e-10, "depth": 4}, "`scale` must be from 3.3e-10 to"),
        (np.ones(2), {"scale": 1e20}, "`scale` must be from .* to 1.8e[+]19 at"),
    ],
)
def test_bad_penalties(user_land, coefficients, options, match):
    with pytest.raises(ValueError, match=match):
        implicit.diagonal_network_penalty(coefficients, **options)
