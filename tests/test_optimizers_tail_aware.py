"""Rates of layers by their tails: the map, when it is measured, and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics, optimizers


def given(**indices):
    """A measurement that says what it was told, whatever the parameters are."""
    return lambda params: {f"['{k}']": jnp.float32(a) for k, a in indices.items()}


def factors(measure, params=None, **options):
    params = params or {name: jnp.ones(2) for name in "abcd"}
    optimizer = optimizers.tail_aware_rates(measure, every=3, **options)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    return {name: float(leaf[0]) for name, leaf in updates.items()}, state


def test_the_map_is_linear_between_the_two_factors():
    found, state = factors(given(a=2.0, b=5.0, c=3.0), smallest=0.6, largest=1.8)
    assert found == pytest.approx({"a": 0.6, "b": 1.8, "c": 1.0, "d": 1.0})
    assert {k: float(a) for k, a in state.indices.items()} == {
        "['a']": 2.0,
        "['b']": 5.0,
        "['c']": 3.0,
    }


def test_what_cannot_be_compared_keeps_its_rate():
    found, _ = factors(given(a=2.0, b=np.nan, c=4.0, d=np.inf))
    assert found == pytest.approx({"a": 0.5, "b": 1.0, "c": 1.5, "d": 1.0})
    for measure in (given(a=3.0, b=3.0), given(a=3.0), given(a=np.nan, b=np.nan)):
        assert set(factors(measure)[0].values()) == {1.0}


def test_it_is_measured_every_so_often_in_one_program():
    # The index of `a` is its weight, which grows by one at each update.
    measure = lambda params: {"['a']": params["a"][0], "['b']": jnp.float32(10.0)}
    optimizer = optimizers.tail_aware_rates(measure, every=3)
    traces = []

    @jax.jit
    def update(updates, state, params):
        traces.append(None)
        return optimizer.update(updates, state, params)

    params = {"a": jnp.zeros(2), "b": jnp.zeros(2, jnp.bfloat16)}
    state, seen = optimizer.init(params), []
    for step in range(7):
        now = params | {"a": params["a"] + step}
        updates, state = update(params, state, now)
        seen.append(float(state.indices["['a']"]))
    assert seen == [0, 0, 0, 3, 3, 3, 6]
    assert updates["b"].dtype == jnp.bfloat16
    assert len(traces) == 1


def spectra(params):
    found = dynamics.tails.weight_spectra(params, key=jax.random.key(0))
    return {path: spectrum.power_law.exponent for path, spectrum in found.items()}


def objective(params, model_state, batch, key):
    """A loss whose gradient is the batch, whatever the weights are."""
    return jnp.sum(params["heavy"] + params["light"]) * batch[0, 0], model_state


def train(optimizer, state, num_steps):
    return dynamics.train(
        objective,
        state,
        optimizer,
        jnp.ones((1, 1)),
        num_steps=num_steps,
        key=jax.random.key(1),
        record={"params": lambda s: s.params, "state": lambda s: s.opt_state[1]},
        record_every=2,
        progress=False,
    )


def test_heavy_spectra_learn_slower_and_training_resumes():
    rng = np.random.default_rng(0)
    light = rng.normal(size=(40, 25))
    u, _, v = np.linalg.svd(light, full_matrices=False)
    heavy = (u * np.arange(1.0, 26.0) ** -2) @ v
    params = {"heavy": jnp.float32(heavy), "light": jnp.float32(light)}
    rates = optimizers.tail_aware_rates(spectra, every=4)
    optimizer = optax.chain(optax.sgd(1e-3), rates)
    whole = train(optimizer, dynamics.init(optimizer, params), 4)
    indices = whole.records["state"].indices
    first = {path: float(a[1]) for path, a in indices.items()}
    exact = {path: float(a) for path, a in spectra(params).items()}
    assert first == pytest.approx(exact, rel=1e-4)
    assert first["['heavy']"] < first["['light']"]
    moved = {k: a[0] - a[1] for k, a in whole.records["params"].items()}
    np.testing.assert_allclose(moved["heavy"], 2 * 0.5e-3, atol=1e-6)
    np.testing.assert_allclose(moved["light"], 2 * 1.5e-3, atol=1e-6)
    half = train(optimizer, dynamics.init(optimizer, params), 2)
    rest = train(optimizer, half.state, 2)
    again = jax.tree.map(lambda a: a[1:], whole.records["params"])
    jax.tree.map(np.testing.assert_array_equal, rest.records["params"], again)


def test_runs_of_a_population_have_their_own_indices():
    measure = lambda params: {
        "['heavy']": params["heavy"][0],
        "['light']": params["light"][0],
    }
    rates = optimizers.tail_aware_rates(measure, every=4)
    optimizer = optax.chain(optax.sgd(1e-3), rates)
    params = {"heavy": jnp.array([[1.0], [3.0]]), "light": jnp.array([[2.0], [2.0]])}
    history = dynamics.train_population(
        objective,
        dynamics.init_population(optimizer, params),
        optimizer,
        jnp.ones((1, 1)),
        num_steps=2,
        keys=jax.random.split(jax.random.key(1), 2),
        record={"heavy": lambda s: s.params["heavy"]},
        record_every=2,
        progress=False,
    )
    moved = history.records["heavy"][0] - history.records["heavy"][1]
    np.testing.assert_allclose(moved[:, 0], [1e-3, 3e-3], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"measure": 3.0}, "`measure` must be a function"),
        ({"every": 0}, "`every` must be an integer of at least 1"),
        ({"smallest": 0.0}, "`smallest` must be positive and finite"),
        ({"largest": float("inf")}, "`largest` must be positive and finite"),
    ],
)
def test_bad_input(user_land, options, match):
    options = {"measure": given(a=1.0), "every": 1} | options
    with pytest.raises(ValueError, match=match):
        optimizers.tail_aware_rates(**options)


@pytest.mark.parametrize(
    ("measure", "match"),
    [
        (given(other=1.0), r"by paths of the parameters, .*but returned .*other"),
        (lambda params: {}, "but returned \\[\\]"),
        (lambda params: params["a"], "by paths of the parameters"),
        (lambda params: {"['a']": None}, r"scalars, but that of .* is None"),
        (
            lambda params: {"['a']": params["a"]},
            r"scalars, but that of .* shape \(2,\)",
        ),
    ],
)
def test_bad_measurements(user_land, measure, match):
    optimizer = optimizers.tail_aware_rates(measure, every=1)
    with pytest.raises(ValueError, match=match):
        optimizer.init({"a": jnp.ones(2)})


def test_integers_are_no_updates(user_land):
    optimizer = optimizers.tail_aware_rates(given(a=1.0, b=2.0), every=1)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates = {"a": jnp.ones(2, int), "b": jnp.ones(2, int)}
    with pytest.raises(ValueError, match=r"`updates` of layers .* int32"):
        optimizer.update(updates, optimizer.init(params), params)


def test_parameters_are_needed(user_land):
    optimizer = optimizers.tail_aware_rates(given(a=1.0), every=1)
    params = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="`params` must be given"):
        optimizer.update(params, optimizer.init(params))
