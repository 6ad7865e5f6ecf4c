"""The lazy regime: what scaling a model does, and how far its training moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics, kernels

EPS = float(np.finfo(np.float32).eps)


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def loss_fn(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    width = 50
    params = {
        "w": jax.random.normal(keys[0], (3, width)),
        "v": jax.random.normal(keys[1], (width, 1)) / np.sqrt(width),
    }
    x = jax.random.normal(keys[2], (6, 3)) / np.sqrt(3)
    return params, x, jax.random.normal(keys[3], (6, 1))


def test_scaled_model_is_its_definition(problem):
    params, x, y = problem
    scaled = kernels.lazy(model, params, scale=5.0)
    assert jnp.all(scaled(params, x) == 0)
    other = jax.tree.map(lambda a: a + 0.1, params)
    expected = 5 * (model(other, x) - model(params, x))
    np.testing.assert_allclose(scaled(other, x), expected, atol=50 * EPS)
    loss = kernels.lazy_loss(loss_fn, scale=5.0)
    np.testing.assert_allclose(loss(y, 0 * y), loss_fn(y, 0 * y) / 25, rtol=4 * EPS)
    assert loss == kernels.lazy_loss(loss_fn, scale=5.0)
    assert hash(loss) == hash(kernels.lazy_loss(loss_fn, scale=5.0))


def test_its_kernel_is_scaled_squared(problem):
    params, x, _ = problem
    kernel = kernels.empirical_ntk(model, params, x)
    scaled = kernels.lazy(model, params, scale=3.0)
    found = kernels.empirical_ntk(scaled, params, x)
    np.testing.assert_allclose(found, 9 * kernel, rtol=50 * EPS)


def test_movement_falls_as_one_over_the_scale(problem):
    """Check I: slope -1, the same fit at every scale, and a kernel that stays."""
    params, x, y = problem
    optimizer = optax.sgd(0.1)
    scales, moved, change, losses = (30.0, 300.0), [], [], []
    kernel = kernels.empirical_ntk(model, params, x)
    for scale in scales:
        objective = dynamics.supervised(
            kernels.lazy(model, params, scale=scale),
            kernels.lazy_loss(loss_fn, scale=scale),
        )
        history = dynamics.train(
            objective,
            dynamics.init(optimizer, params),
            optimizer,
            (x, y),
            num_steps=200,
            key=jax.random.key(1),
            record={
                "distance": lambda s: optax.tree.norm(
                    optax.tree.sub(s.params, s.initial_params)
                ),
                "kernel": lambda s: kernels.kernel_change(
                    kernel, kernels.empirical_ntk(model, s.params, x)
                ),
            },
            progress=False,
        )
        moved.append(history.records["distance"][-1])
        change.append(history.records["kernel"][-1])
        losses.append(scale**2 * history.trace["loss"][-1])
    slope = np.diff(np.log(moved)) / np.diff(np.log(scales))
    # The correction is of the order of the kernel's own change.
    assert abs(slope[0] + 1) < change[0]
    assert change[0] < 0.05
    np.testing.assert_allclose(change[0] / change[1], 10, rtol=0.1)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)
    assert losses[0] < 0.4 * np.mean(loss_fn(0 * y, y))


@pytest.mark.usefixtures("user_land")
def test_bad_input(problem):
    params, _, _ = problem
    for scale in (0, -1.0, np.inf, np.ones(2)):
        with pytest.raises(ValueError, match="`scale` must be positive and finite"):
            kernels.lazy(model, params, scale=scale)
        with pytest.raises(ValueError, match="`scale` must be positive and finite"):
            kernels.lazy_loss(loss_fn, scale=scale)
    with pytest.raises(ValueError, match=r"`params\['w'\]` must be floating-point"):
        kernels.lazy(model, {"w": jnp.arange(3)}, scale=1.0)
