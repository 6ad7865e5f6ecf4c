"""What has no curvature is refused, or shows in the result."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import curvature

CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def half_square(outputs, targets):
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def mlp(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def problem(n=24):
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    params = {"w": normal(4, 6), "v": normal(6, 3)}
    return params, normal(n, 4), jnp.asarray(draw.integers(0, 3, n))


def test_what_cannot_be_differentiated_is_refused(user_land):
    params, x, y = problem()
    counts = lambda outputs, y: (jnp.argmax(outputs, -1) != y).astype(int)
    rounded = lambda params, x: jnp.round(mlp(params, x)).astype(int)
    for model, loss, name in (
        (mlp, counts, "loss_fn"),
        (rounded, half_square, "apply_fn"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must return floating-point"):
            curvature.hessian(
                model, loss, params, x, jnp.eye(3)[y] if name[0] == "a" else y
            )


def test_curvature_of_a_loss_that_is_not_a_number_is_none():
    """A derivative drops the constant that a label out of range puts in."""
    params, x, y = problem()
    arguments = (mlp, CROSS_ENTROPY, params, x, y.at[0].set(7))
    vector = jax.tree.map(jnp.ones_like, params)
    for build in (
        curvature.hessian,
        curvature.ggn,
        curvature.residual_hessian,
        curvature.empirical_fisher,
    ):
        image = build(*arguments).mv(vector)
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(image))
    found = curvature.batch_sharpness(
        *arguments, batch_size=20, num_batches=4, key=jax.random.key(0)
    )
    assert np.isnan(found.value)


def test_a_decay_without_a_threshold_is_refused(user_land):
    with pytest.raises(ValueError, match=r"with 21\.0 the threshold would be -1\.0"):
        curvature.stability_threshold(
            "gradient_descent", learning_rate=0.1, weight_decay=21.0, decay="coupled"
        )


def test_functions_that_cannot_be_compiled_once_are_refused(user_land):
    params, x, y = problem()
    network: Any = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    nothing: Any = None
    with pytest.raises(ValueError, match="`apply_fn` must be"):
        curvature.hessian(network, CROSS_ENTROPY, params, x, y)
    with pytest.raises(ValueError, match="`loss_fn` must be"):
        curvature.hessian(mlp, nothing, params, x, y)
