"""A step gives each optax optimizer what it asks for: SAM, line searches and others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics._permutation import permutation

KEY = jax.random.key(7)
EPS = float(jnp.finfo(jnp.float32).eps)
SCALES = jnp.array([1.0, 3.0, 10.0])


def valley(w):
    return jnp.sum(SCALES * w**2) + jnp.sum(w**4)


def valley_objective(params, model_state, batch, key):
    return valley(params) * jnp.mean(batch), model_state


def sam_by_hand(params, _, opt_state):
    gradient = jax.grad(valley)(params)
    ascent = params + 0.1 * gradient / jnp.linalg.norm(gradient)
    return params - 0.02 * jax.grad(valley)(ascent), opt_state


def update_by_hand(**names):
    """A loop as optax documents it, with exactly the arguments that it names."""

    def step(params, optimizer, opt_state):
        value, grad = jax.value_and_grad(valley)(params)
        known = {"value": value, "grad": grad, "value_fn": valley}
        extra = {name: known[name] for name in names}
        updates, opt_state = optimizer.update(grad, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step, static_argnums=1)


OPTIMIZERS = {
    "sam": (
        optax.contrib.sam(
            optax.sgd(0.02),
            optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
            opaque_mode=True,
        ),
        sam_by_hand,
    ),
    "backtracking": (
        optax.chain(
            optax.sgd(1.0),
            optax.scale_by_backtracking_linesearch(max_backtracking_steps=20),
        ),
        update_by_hand(value=1, grad=1, value_fn=1),
    ),
    "lbfgs": (optax.lbfgs(), update_by_hand(value=1, grad=1, value_fn=1)),
    "polyak": (optax.polyak_sgd(), update_by_hand(value=1)),
    "plateau": (
        optax.chain(optax.sgd(0.05), optax.contrib.reduce_on_plateau(patience=1)),
        update_by_hand(value=1),
    ),
}


def descend(objective, optimizer, params, num_steps):
    """The path of a run, every step recorded."""
    history = dynamics.train(
        objective,
        dynamics.init(optimizer, params),
        optimizer,
        jnp.ones(4),
        num_steps=num_steps,
        key=KEY,
        record={"params": lambda s: s.params},
        record_every=1,
        progress=False,
    )
    return history.records["params"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_get_what_they_ask_for(name):
    optimizer, step = OPTIMIZERS[name]
    params = jnp.array([1.0, -0.5, 0.7])
    measured = descend(valley_objective, optimizer, params, num_steps=4)
    opt_state = optimizer.init(params)
    path = [params]
    for _ in range(4):
        params, opt_state = step(params, optimizer, opt_state)
        path.append(params)
    # Rounding enters a line search through its accept or reject only.
    np.testing.assert_allclose(measured, np.stack(path), rtol=64 * EPS, atol=64 * EPS)


def test_the_step_is_one_function_however_often_evaluated():
    """Dropout: SAM climbs and descends under one mask, and no key is used twice."""
    optimizer, _ = OPTIMIZERS["sam"]

    def objective(params, model_state, batch, key):
        mask = jax.random.bernoulli(key, 0.5, params.shape)
        return valley(jnp.where(mask, params, 0.0)), model_state

    path = descend(objective, optimizer, jnp.ones(3), num_steps=3)
    for step, (before, after) in enumerate(itertools.pairwise(path)):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 1), step)
        mask = np.asarray(jax.random.bernoulli(key, 0.5, (3,)))
        np.testing.assert_array_equal(before != after, mask)


@pytest.mark.parametrize("num", [1, 1437, 2000])
def test_permutations_are_those_of_jax(num):
    # One round of sorting up to 1,625 examples, two up to 2.6 million.
    expected = jax.random.permutation(jax.random.key(3), num)
    np.testing.assert_array_equal(permutation(jax.random.key(3), num), expected)
    with jax.enable_x64(True):
        order = permutation(jax.random.key(3), num)
    np.testing.assert_array_equal(order, expected)
