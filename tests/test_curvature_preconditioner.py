from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from jaxtheory import curvature

PARAMS = {
    "a": np.array([1.0, -2.0, 0.5], np.float32),
    "b": np.array([[3.0], [0.25]], np.float32),
}


def gradient(step):
    """A gradient that changes in size and sign from step to step."""
    return jax.tree.map(lambda p: p * (1.5 + jnp.cos(3.0 * step * p)), PARAMS)


def run(optimizer, num_steps=4) -> tuple[Any, Any, Any]:
    """The last gradient, the update that it caused, and the state after it."""
    state, updates = optimizer.init(PARAMS), PARAMS
    for step in range(num_steps):
        updates, state = optimizer.update(gradient(step), state, PARAMS)
    return gradient(num_steps - 1), updates, state


def step(optimizer, gradients, state) -> tuple[Any, Any]:
    return optimizer.update(gradients, state, gradients)


def assert_is_step(updates, averaged, diagonal, rtol=2e-6):
    """``update = -0.1 * m / P``."""
    compare = lambda u, m, p: np.testing.assert_allclose(u, -0.1 * m / p, rtol=rtol)
    jax.tree.map(compare, updates, averaged, diagonal)


ADAM: dict[str, Any] = {"b1": 0.8, "b2": 0.9, "eps": 0.1}


@pytest.mark.parametrize("eps_root", [None, 0.3])
def test_adam_steps_by_its_average_over_the_preconditioner(eps_root):
    """Bias correction of the average is in ``P``; one epsilon in each place."""
    root: dict[str, Any] = {} if eps_root is None else {"eps_root": eps_root}
    _, updates, state = run(optax.adam(0.1, **ADAM, **root))
    diagonal = curvature.preconditioner(state, **ADAM, **root)
    assert_is_step(updates, state[0].mu, diagonal)


def test_adam_without_momentum_and_without_eps():
    last, updates, state = run(optax.adam(0.1, b1=0.0, b2=0.9, eps=0.0))
    diagonal = curvature.preconditioner(state, b1=0.0, b2=0.9, eps=0.0)
    assert_is_step(updates, last, diagonal)


def test_weight_decay_is_no_part_of_it():
    _, _, adam = run(optax.adam(0.1, **ADAM))
    _, _, adamw = run(optax.adamw(0.1, **ADAM, weight_decay=0.5))
    plain, decayed = (curvature.preconditioner(s, **ADAM) for s in (adam, adamw))
    np.testing.assert_array_equal(decayed["a"], plain["a"])


def test_nesterov_adam_once_bias_has_died_out():
    """The step with a gradient of zero is along the average, once more shrunk."""
    optimizer = optax.nadam(0.1, **ADAM)
    _, _, state = run(optimizer, num_steps=60)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = step(optimizer, zero, state)
    averaged = jax.tree.map(lambda m: 0.8 * m, state[0].mu)
    assert_is_step(updates, averaged, curvature.preconditioner(state, **ADAM), 1e-5)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [False, True])
def test_rmsprop_steps_by_the_gradient(centered, bias_correction, eps_in_sqrt):
    options: dict[str, Any] = {"centered": centered, "bias_correction": bias_correction}
    optimizer = optax.rmsprop(
        0.1, decay=0.7, eps=0.2, eps_in_sqrt=eps_in_sqrt, **options
    )
    last, updates, state = run(optimizer)
    decay: dict[str, Any] = {"decay": 0.7} if bias_correction else {}
    diagonal = curvature.preconditioner(
        state, eps=0.2, eps_in_sqrt=eps_in_sqrt, **decay
    )
    assert_is_step(updates, last, diagonal)
    if eps_in_sqrt:  # as by default in optax, and here
        default = curvature.preconditioner(state, eps=0.2, **decay)
        np.testing.assert_array_equal(default["a"], diagonal["a"])


def test_rmsprop_with_momentum_takes_the_second_moment():
    _, _, plain = run(optax.rmsprop(0.1, eps=0.2))
    _, _, heavy = run(optax.rmsprop(0.1, eps=0.2, momentum=0.9))
    expected, ours = (curvature.preconditioner(s, eps=0.2) for s in (plain, heavy))
    np.testing.assert_array_equal(ours["b"], expected["b"])


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_has_none(nesterov):
    _, _, state = run(optax.sgd(0.1, momentum=0.9, nesterov=nesterov))
    diagonal = curvature.preconditioner(state)
    assert jax.tree.structure(diagonal) == jax.tree.structure(PARAMS)
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(diagonal))


def wrappers():
    adam = optax.adam(0.1, **ADAM)
    clip = optax.clip_by_global_norm(1e9)
    yield optax.chain(clip, optax.chain(optax.identity(), adam))
    yield optax.apply_if_finite(adam, 3)
    yield optax.MultiSteps(adam, 1)
    yield optax.masked(adam, True)
    yield optax.multi_transform({"all": adam}, "all")
    yield optax.adam(lambda step: 0.1, **ADAM)


def test_wrappers_are_searched():
    _, _, plain = run(optax.adam(0.1, **ADAM))
    expected = curvature.preconditioner(plain, **ADAM)
    for optimizer in wrappers():
        _, _, wrapped = run(optimizer)
        ours = curvature.preconditioner(wrapped, **ADAM)
        np.testing.assert_allclose(ours["a"], expected["a"], rtol=1e-6)


def test_injected_hyperparameters_are_read():
    """Scheduled ones too: the values are those of the last update."""
    schedule = lambda step: 0.6 + 0.1 * step
    optimizer = optax.inject_hyperparams(optax.adam)(0.1, b1=0.8, b2=schedule, eps=0.1)
    _, updates, state = run(optax.chain(optax.identity(), optimizer), num_steps=3)
    diagonal = curvature.preconditioner(state)
    assert_is_step(updates, state[1].inner_state[0].mu, diagonal)

    optimizer = optax.inject_hyperparams(optax.rmsprop)(0.1, eps=0.2, eps_in_sqrt=False)
    last, updates, state = run(optimizer)
    assert_is_step(updates, last, curvature.preconditioner(state, eps_in_sqrt=False))


def test_it_can_be_traced():
    _, _, state = run(optax.adam(0.1, **ADAM))
    eager = curvature.preconditioner(state, **ADAM)
    traced = jax.jit(lambda s, b: curvature.preconditioner(s, **ADAM | {"b1": b}))
    np.testing.assert_allclose(traced(state, 0.8)["b"], eager["b"], rtol=1e-6)


def test_double_precision_is_kept(x64):
    params = jnp.array([1.0, 2.0])
    optimizer = optax.adam(0.1, **ADAM)
    updates, state = step(optimizer, params, optimizer.init(params))
    diagonal = curvature.preconditioner(state, **ADAM)
    assert diagonal.dtype == jnp.float64
    np.testing.assert_allclose(updates, -0.1 * state[0].mu / diagonal, rtol=1e-14)


def test_every_operator_is_preconditioned_alike(x64):
    """``P^-1/2 A P^-1/2`` of the dense matrix, and of a block of it."""
    x, y = jnp.array([[1.0, 2.0, 0.5], [0.1, 1.0, -1.0]]), jnp.array([[1.0], [2.0]])
    model = lambda p, x: jnp.tanh(x @ p["a"])[:, None] * p["b"][0][None]
    loss = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1)
    _, _, state = run(optax.rmsprop(0.1))
    diagonal = curvature.preconditioner(state, eps=1e-8)
    params, diagonal = (
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)
        for tree in (PARAMS, diagonal)
    )
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(diagonal)])
    only = lambda path: path == "['a']"
    for build in (curvature.hessian, curvature.empirical_fisher):
        operator = build(model, loss, params, x, y)
        expected = oracles.materialise(operator) / np.sqrt(np.outer(flat, flat))
        ours = oracles.materialise(curvature.preconditioned(operator, diagonal))
        np.testing.assert_allclose(ours, expected, atol=1e-14 * np.abs(expected).max())
        block = curvature.preconditioned(
            build(model, loss, params, x, y, select=only),
            curvature.select_leaves(diagonal, only),
        )
        ours = oracles.materialise(block)
        np.testing.assert_allclose(
            ours, expected[:3, :3], atol=1e-14 * np.abs(expected).max()
        )


def bad_states() -> Iterator[tuple[Any, dict[str, Any], str]]:
    adam, rms = optax.adam(0.1).init(PARAMS), optax.rmsprop(0.1).init(PARAMS)
    counted = optax.rmsprop(0.1, bias_correction=True).init(PARAMS)
    injected = optax.inject_hyperparams(optax.adam)(0.1).init(PARAMS)
    momentum = optax.sgd(0.1, momentum=0.9).init(PARAMS)
    yield optax.sgd(0.1).init(PARAMS), {}, "exactly one .* but holds none"
    two = r"exactly one .* \['ScaleByAdamState', 'ScaleByRmsState'\]"
    yield (adam, rms), {}, two
    yield optax.lion(0.1).init(PARAMS), ADAM, "holds a `ScaleByLionState`"
    yield optax.adagrad(0.1).init(PARAMS), ADAM, "holds a `ScaleByRssState`"
    yield PARAMS, ADAM, "holds a `dict`"
    yield adam, {"b1": 0.9, "eps": 0.0}, "`b2` must be given"
    yield rms, {}, "`eps` must be given"
    yield counted, {"eps": 0.0}, "`decay` must be given"
    yield rms, ADAM, "`b1` must be left out: .* `ScaleByRmsState`, which takes `eps`"
    yield rms, {"decay": 0.9, "eps": 0.0}, "`decay` must be left out"
    yield adam, ADAM | {"eps_in_sqrt": True}, "`eps_in_sqrt` must be left out"
    yield momentum, {"eps": 0.0}, "`eps` must be left out: .* takes none"
    yield injected, {"b2": 0.9}, "`b2` must be left out: .*inject_hyperparams"
    yield adam, ADAM | {"b1": 1.9}, r"`b1` must be in \[0, 1\), but was 1.9"
    yield adam, ADAM | {"b2": 1.0}, r"`b2` must be in \[0, 1\), but was 1.0"
    yield adam, ADAM | {"b1": "0.9"}, "`b1` must be in .* but was '0.9'"
    for eps in (-1.0, np.inf):
        message = f"`eps` must be at least 0 and finite, but was {eps}"
        yield adam, ADAM | {"eps": eps}, message
    injected = optax.inject_hyperparams(optax.rmsprop)(0.1).init(PARAMS)
    yield injected, {}, "`eps_in_sqrt` must be given .* but no bools"
    yield rms, {"eps": 0.0, "eps_in_sqrt": 1}, "`eps_in_sqrt` must be True or False"


def test_other_states_and_hyperparameters_are_refused(user_land):
    for state, options, message in bad_states():
        with pytest.raises(ValueError, match=message):
            curvature.preconditioner(state, **options)
