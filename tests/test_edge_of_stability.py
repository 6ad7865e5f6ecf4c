"""Gradient descent finds the edge of stability, measured the way a user would."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import curvature, dynamics, models


@pytest.mark.slow
def test_full_batch_gradient_descent_settles_at_two_over_the_learning_rate():
    """A tanh network on 20 points of a quartic Chebyshev polynomial.

    The published setting of the edge of stability in its smallest form, followed by
    eight Lanczos iterations a record from the eigenvector of the record before, and by
    forty from a random vector.
    """
    learning_rate = 0.05
    x = jnp.linspace(-1, 1, 20)[:, None]
    y = 8 * x**4 - 8 * x**2 + 1
    model = models.MLP((100, 100), 1, activation=jnp.tanh, weight_std=1.0)
    loss_fn = lambda outputs, y: 0.5 * jnp.sum((outputs - y) ** 2, axis=-1)
    params = model.init(jax.random.key(0), x[:1])

    def sharpness(state):
        return curvature.sharpness(
            model.apply,
            loss_fn,
            state.params,
            x,
            y,
            num_iterations=40,
            key=jax.random.fold_in(jax.random.key(1), state.step),
        )

    followed = curvature.sharpness_over_threshold(
        model.apply,
        loss_fn,
        x,
        y,
        method="gradient_descent",
        learning_rate=learning_rate,
        key=jax.random.key(3),
    )
    optimizer = optax.sgd(learning_rate)
    history = dynamics.train(
        dynamics.supervised(model.apply, loss_fn),
        dynamics.init(optimizer, params),
        optimizer,
        (x, y),
        num_steps=20_000,
        record={"sharpness": sharpness, "edge": followed},
        record_every=500,
        key=jax.random.key(2),
        progress=False,
    )
    edge = history.records["edge"]
    np.testing.assert_allclose(edge.sharpness, history.records["sharpness"], rtol=0.01)
    assert edge.converged.all()
    assert edge.ratio[0] < 0.9  # it has to climb there
    late = edge.ratio[len(edge.ratio) // 2 :]
    assert 0.97 < np.median(late) < 1.05
