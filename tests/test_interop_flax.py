"""Flax modules with state as pure functions, against hand-written Flax loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import freeze

from jaxtheory import interop, models

X = jax.random.normal(jax.random.key(5), (12, 3))
Y = jnp.arange(12) % 2
LOSS = optax.softmax_cross_entropy_with_integer_labels


class Stateful(nn.Module):
    """BatchNorm, dropout and a counter, with one mode flag of each kind."""

    @nn.compact
    def __call__(self, x, train=False, deterministic=True):
        h = nn.Dense(8)(x)
        h = nn.BatchNorm(use_running_average=not train)(h)
        h = nn.Dropout(0.5, deterministic=deterministic)(nn.relu(h))
        calls = self.variable("counts", "calls", lambda: jnp.zeros((), int))
        if train:
            calls.value = calls.value + 1
        return nn.Dense(2)(h)


@pytest.fixture(scope="module")
def stateful():
    module = Stateful()
    return module, module.init(jax.random.key(0), X)


def test_split_separates_what_is_trained(stateful):
    _, variables = stateful
    params, model_state = interop.flax.split(freeze(variables))
    assert params == variables["params"]
    assert set(model_state) == {"batch_stats", "counts"}
    assert type(params) is type(model_state["batch_stats"]) is dict
    assert interop.flax.split({"params": params}) == (params, ())


def test_objective_trains_like_a_flax_loop(stateful):
    module, variables = stateful
    optimizer = optax.sgd(0.1)
    objective = interop.flax.objective(module, LOSS)
    params, model_state = interop.flax.split(variables)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, model_state, opt_state, key):
        differentiate = jax.value_and_grad(objective, has_aux=True)
        (loss, state), gradient = differentiate(params, model_state, (X, Y), key)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, loss

    @jax.jit
    def by_hand(params, stats, counts, key):
        def loss_of(params):
            outputs, changed = module.apply(
                {"params": params, "batch_stats": stats, "counts": counts},
                X,
                train=True,
                deterministic=False,
                rngs={"dropout": key},
                mutable=["batch_stats", "counts"],
            )
            log_p = jax.nn.log_softmax(outputs)
            return -jnp.mean(log_p[jnp.arange(12), Y]), changed

        (loss, changed), g = jax.value_and_grad(loss_of, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, g)
        return params, changed["batch_stats"], changed["counts"], loss

    expected, stats = variables["params"], variables["batch_stats"]
    counts = variables["counts"]
    for t in range(3):
        key = jax.random.fold_in(jax.random.key(1), t)
        params, model_state, opt_state, loss = step(params, model_state, opt_state, key)
        key = jax.random.fold_in(jax.random.key(1), t)
        expected, stats, counts, loss_by_hand = by_hand(expected, stats, counts, key)
        np.testing.assert_allclose(loss, loss_by_hand, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, params, expected)
    jax.tree.map(close, model_state["batch_stats"], stats)
    assert int(model_state["counts"]["calls"]) == int(counts["calls"]) == 3


def test_objective_keeps_the_structure_of_the_state_in_a_scan(stateful):
    dense = nn.Dense(2)
    for module, variables in (
        (stateful[0], freeze(stateful[1])),
        (dense, dense.init(jax.random.key(0), X)),
    ):
        objective = interop.flax.objective(module, LOSS)
        params, model_state = interop.flax.split(variables)

        def body(state, t, objective=objective, params=params):
            key = jax.random.fold_in(jax.random.key(1), t)
            loss, state = objective(params, state, (X, Y), key)
            return state, loss

        final, losses = jax.lax.scan(body, model_state, jnp.arange(3))
        assert jax.tree.structure(final) == jax.tree.structure(model_state)
        assert losses.shape == (3,)
        assert bool(jnp.all(jnp.isfinite(losses)))


def test_dropout_without_state():
    model = models.MLP((32,), 2, dropout_rate=0.5)
    params, model_state = interop.flax.split(model.init(jax.random.key(0), X))
    objective = interop.flax.objective(model, LOSS)
    one, two = (
        objective(params, model_state, (X, Y), jax.random.key(seed)) for seed in (1, 2)
    )
    assert one[1] == two[1] == ()
    assert float(one[0]) != float(two[0])


def test_evaluate_is_the_module_in_eval_mode(stateful):
    module, variables = stateful
    apply_fn, params = interop.flax.evaluate(module, variables)
    expected = module.apply(variables, X, train=False, deterministic=True)
    np.testing.assert_array_equal(apply_fn(params, X), expected)
    alone = jnp.concatenate([apply_fn(params, X[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    dense = nn.Dense(2)
    plain, params = interop.flax.evaluate(dense, dense.init(jax.random.key(0), X))
    assert plain(params, X).shape == (12, 2)


def _counting():
    """A jitted mean output with the model as a static argument, and its trace count."""
    traces = []

    def mean_output(apply_fn, params, x):
        traces.append(0)
        return jnp.mean(apply_fn(params, x))

    return jax.jit(mean_output, static_argnums=0), traces


def _with_other_statistics(variables):
    statistics = jax.tree.map(jnp.exp, variables["batch_stats"])
    return {**variables, "batch_stats": statistics}


def test_evaluate_without_state_never_retraces():
    measure, traces = _counting()
    for seed in range(2):
        model = models.MLP((4,), 2, parametrization="ntk")
        variables = model.init(jax.random.key(seed), X)
        measure(*interop.flax.evaluate(model, variables), X)
    assert len(traces) == 1


def test_evaluate_retraces_for_new_statistics_only(stateful):
    module, variables = stateful
    measure, traces = _counting()
    first = measure(*interop.flax.evaluate(module, variables), X)
    apply_fn, params = interop.flax.evaluate(Stateful(), variables)
    measure(apply_fn, jax.tree.map(lambda a: 2 * a, params), X)
    assert len(traces) == 1
    moved = _with_other_statistics(variables)
    second = measure(*interop.flax.evaluate(module, moved), X)
    assert len(traces) == 2
    assert float(first) != float(second)


def test_evaluate_takes_traced_statistics(stateful):
    """A measurement inside jit: statistics are arguments, not constants."""
    module, variables = stateful
    inner, traces = _counting()
    outer = jax.jit(lambda v: inner(*interop.flax.evaluate(module, v), X))
    moved = _with_other_statistics(variables)
    for v in (variables, moved):
        expected = jnp.mean(module.apply(v, X))
        np.testing.assert_allclose(outer(v), expected, rtol=1e-5)
    assert len(traces) == 1


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        return nn.BatchNorm(use_running_average=not training)(x)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=False):
        return nn.BatchNorm(use_running_average=not is_training)(x)


class Averaged(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=True):
        return nn.BatchNorm(use_running_average=use_running_average)(x)


@pytest.mark.parametrize("module", [Training(), IsTraining(), Averaged()])
def test_the_usual_names_of_the_mode_are_known(module):
    variables = module.init(jax.random.key(0), X)
    apply_fn, params = interop.flax.evaluate(module, variables)
    before = apply_fn(params, X)
    np.testing.assert_allclose(before, X, rtol=1e-4)  # running mean 0, variance 1
    params, model_state = interop.flax.split(variables)
    objective = interop.flax.objective(module, lambda outputs, y: outputs.sum(-1))
    _, model_state = objective(params, model_state, (X, Y), jax.random.key(0))
    # Flax's decay of .99.
    mean = model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * X.mean(0), rtol=1e-5)


def test_evaluate_copies_numpy_statistics(stateful):
    module, variables = stateful
    variables = jax.tree.map(lambda a: np.array(a), variables)
    apply_fn, params = interop.flax.evaluate(module, variables)
    before = apply_fn(params, X)
    variables["batch_stats"]["BatchNorm_0"]["mean"][:] = 5.0
    np.testing.assert_array_equal(apply_fn(params, X), before)


def test_functions_are_values(stateful):
    module, _ = stateful
    one, two = (interop.flax.objective(Stateful(), LOSS) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != interop.flax.objective(module, optax.l2_loss)


def test_double_precision(x64, stateful):
    module, variables = stateful
    double = lambda a: a.astype(float) if a.dtype == jnp.float32 else a
    variables = jax.tree.map(double, variables)
    apply_fn, params = interop.flax.evaluate(module, variables)
    assert apply_fn(params, X.astype(float)).dtype == jnp.float64


def test_bad_input_is_named(user_land, stateful):
    module, variables = stateful
    params, model_state = interop.flax.split(variables)
    for other in (params, None, [1]):
        with pytest.raises(ValueError, match="`variables` must have the collection"):
            interop.flax.evaluate(module, other)
    others: list[Any] = [Stateful, None, variables]
    for other in others:
        with pytest.raises(ValueError, match="`module` must be a Linen module"):
            interop.flax.evaluate(other, variables)
        with pytest.raises(ValueError, match="`module` must be a Linen module"):
            interop.flax.objective(other, LOSS)
    mean_loss = lambda outputs, y: jnp.mean(LOSS(outputs, y))
    objective = interop.flax.objective(module, mean_loss)
    with pytest.raises(ValueError, match="`loss_fn` must return one loss per example"):
        objective(params, model_state, (X, Y), jax.random.key(0))
    objective = interop.flax.objective(module, LOSS)
    with pytest.raises(ValueError, match="`y` must have as many examples"):
        objective(params, model_state, (X, Y[:5]), jax.random.key(0))
    for batch in (X, (X, Y, Y), {"x": X, "y": Y}):
        with pytest.raises(ValueError, match=r"`data` must be a pair \(x, y\)"):
            objective(params, model_state, batch, jax.random.key(0))
