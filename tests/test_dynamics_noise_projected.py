"""Projected gradient noise against explicit gradients of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.dynamics import noise, tails


def net(params, x):
    hidden = jnp.tanh(x @ params["in"])
    return (hidden @ params["out"])[:, 0]


def squared_error(outputs, y):
    return (outputs - y) ** 2


def linear(w, x):
    """A model whose loss `first` has the examples themselves as gradients."""
    return x @ w


def first(outputs, y):
    return outputs


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"in": draw(3, 4), "out": draw(4, 1)}, draw(7, 3), draw(7)


def test_products_with_the_explicit_gradients(problem):
    params, x, y = problem
    key = jax.random.key(1)
    found = noise.projected_noise(
        net, squared_error, params, x, y, dim=9, key=key, batch_size=3
    )
    whole = noise.projected_noise(net, squared_error, params, x, y, dim=9, key=key)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    jacobian = jax.jacobian(lambda p: squared_error(net(p, x), y))(params)
    rows = np.concatenate([np.reshape(j, (7, -1)) for j in jacobian.values()], axis=1)
    rows = np.asarray(rows - rows.mean(axis=0), np.float64)
    # Nine directions of sixteen dimensions: unknown, but the same for all examples, so
    # the products are the gradients times one matrix, which least squares over the six
    # independent rows finds exactly.
    matrix = np.linalg.lstsq(rows, np.asarray(found, np.float64), rcond=1e-6)[0]
    np.testing.assert_allclose(rows @ matrix, found, atol=1e-5)


def test_squared_norms_and_directions_are_unbiased():
    x = jax.random.normal(jax.random.key(0), (6, 5)) * jnp.arange(1.0, 6)[None]
    centred = np.asarray(x - jnp.mean(x, axis=0, keepdims=True))
    dim = 4000
    found = np.asarray(
        noise.projected_noise(
            linear, first, jnp.zeros(5), x, x[:, 0], dim=dim, key=jax.random.key(2)
        )
    )
    # A product of two has the variance |a|^2 |b|^2 + (a.b)^2 over the directions.
    gram = centred @ centred.T
    squares = np.diag(gram)
    error = np.sqrt((np.outer(squares, squares) + gram**2) / dim)
    assert np.all(np.abs(found @ found.T - gram) < 4.5 * error)


def test_rows_have_the_tail_of_the_gradients():
    # Isotropic Cauchy gradients: projections are Cauchy.
    x = tails.isotropic_stable(jax.random.key(3), 1.0, 6000, 10)
    rows = noise.projected_noise(
        linear, first, jnp.zeros(10), x, x[:, 0], dim=4, key=jax.random.key(4)
    )
    index = tails.log_moment(rows, key=jax.random.key(5))
    assert abs(float(index.value) - 1) < 4 * float(index.standard_error)
    hill = tails.hill(rows, num_tail=200)
    assert abs(float(hill.value) - 1) < 4 * float(hill.standard_error)


def test_bad_gradients_and_bad_arguments(problem, user_land):
    params, x, y = problem
    key = jax.random.key(0)
    bad = noise.projected_noise(
        net, squared_error, params, x, y.at[2].set(jnp.nan), dim=2, key=key
    )
    assert bool(jnp.isnan(bad).all())
    with pytest.raises(ValueError, match="`dim` must be"):
        noise.projected_noise(net, squared_error, params, x, y, dim=0, key=key)
    with pytest.raises(ValueError, match="`key` must be"):
        noise.projected_noise(net, squared_error, params, x, y, dim=2, key=0)
    with pytest.raises(ValueError, match="`y`"):
        noise.projected_noise(net, squared_error, params, x, y[:3], dim=2, key=key)
