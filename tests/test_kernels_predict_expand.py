"""The expanded model against explicit Jacobians, and polynomials against themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxtheory import kernels
from jaxtheory.kernels import predict


def model(params, x):
    return jnp.tanh(x @ params["w1"] + params["b"][None]) @ params["w2"]


def draw(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"w1": (3, 5), "b": (5,), "w2": (5, 2)}
    params = {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys[:3], shapes.items(), strict=True)
    }
    return params, jax.random.normal(keys[3], (4, 3), dtype)


def test_linearize_is_the_jacobian(x64):
    params, x = draw(0, jnp.float64)
    moved, _ = draw(1, jnp.float64)
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacfwd(lambda w: model(unravel(w), x))(flat)
    expected = model(params, x) + jacobian @ (ravel_pytree(moved)[0] - flat)
    linear = predict.linearize(model, params)
    np.testing.assert_allclose(linear(moved, x), expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(linear(params, x), model(params, x))
    np.testing.assert_allclose(
        kernels.empirical_ntk(linear, moved, x),
        kernels.empirical_ntk(model, params, x),
        rtol=1e-12,
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_powers_expand_by_the_binomial_theorem(x64, degree):
    power = lambda w, x: (x @ w) ** 3
    start, end = jnp.array([0.5, -1.0]), jnp.array([1.5, 2.0])
    x = jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    a, b = np.asarray(x @ start), np.asarray(x @ (end - start))
    terms = [a**3, 3 * a**2 * b, 3 * a * b**2, b**3, 0 * a]
    found = jax.jit(predict.taylor_expand(power, start, degree=degree))(end, x)
    np.testing.assert_allclose(found, sum(terms[: degree + 1]), rtol=1e-13)


def test_error_falls_with_the_degree(x64):
    params, x = draw(0, jnp.float64)
    direction, _ = draw(1, jnp.float64)

    def error(degree, scale):
        near = jax.tree.map(lambda p, d: p + scale * d, params, direction)
        expanded = predict.taylor_expand(model, params, degree=degree)
        return jnp.max(jnp.abs(expanded(near, x) - model(near, x)))

    for degree in (1, 2, 3):
        ratio = error(degree, 1e-2) / error(degree, 5e-3)
        np.testing.assert_allclose(ratio, 2 ** (degree + 1), rtol=0.1)


def test_keeps_dtype_and_structure():
    params, x = draw(0)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    outputs = predict.linearize(model, half)(half, x.astype(jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16
    tree = lambda p, x: {"a": x @ p["w1"], "b": x @ p["w1"] ** 2}
    expanded = predict.taylor_expand(tree, params, degree=2)(params, x)
    np.testing.assert_allclose(expanded["b"], x @ params["w1"] ** 2, rtol=1e-6)


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    params, x = draw(0)
    linear = predict.linearize(model, params)
    with pytest.raises(ValueError, match=r"`params` must have the structure"):
        linear({"w1": params["w1"]}, x)
    with pytest.raises(ValueError, match=r"`params\['w1'\]` must have shape \(3, 5\)"):
        linear({**params, "w1": jnp.ones((2, 5))}, x)
    with pytest.raises(ValueError, match=r"`params` must be floating-point"):
        predict.linearize(model, jnp.ones(3, int))
    with pytest.raises(ValueError, match=r"`degree` must be an integer of at least 0"):
        predict.taylor_expand(model, params, degree=-1)
