"""Populations: each run is the run alone, whatever happens to the others."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import _population, _step

KEY = jax.random.key(7)
N, D, M = 10, 3, 4
X = jax.random.normal(jax.random.fold_in(KEY, 100), (N, D))
DATA = X, jnp.sin(X.sum(1))
RATES, DECAYS = np.array([0.05, 0.01, 0.1, 0.02]), np.array([0.0, 0.1, 0.2, 0.3])
# A random key in the state, and hyperparameters below a chain.
OPTIMIZER = optax.chain(
    optax.add_noise(0.01, 0.55, jax.random.key(3)),
    optax.inject_hyperparams(optax.adamw)(learning_rate=0.05, weight_decay=0.1),
)


def objective(params, model_state, batch, key):
    """Squared error under dropout of the inputs; the model state never changes."""
    x, y = batch
    kept = jax.random.bernoulli(key, 0.8, x.shape)
    outputs = jnp.tanh((x * kept) @ params["w"]) @ params["v"]
    return jnp.mean((outputs - y) ** 2), model_state


def late(state):
    """A condition that holds at a step of each run's own."""
    return state.step >= state.model_state["stop"]


def follow(state, memory):
    return memory, memory + state.params["v"].sum()


RECORD = {
    "params": lambda s: s.params,
    "summed": dynamics.StatefulMeasurement(lambda s: 0.0, follow),
}
TRACE = {"first": lambda s: s.params["v"][0]}


def population(size=M, stop=(100, 2, 5, 100), **changes):
    """States of several runs, all different."""
    w = jax.random.normal(jax.random.fold_in(KEY, 101), (M, D, 4))
    params = {"w": w, "v": jnp.tile(jnp.arange(1.0, 5.0)[:, None] / 4, (1, 4))}
    arguments = {
        "optimizer": OPTIMIZER,
        "params": params,
        "hyperparams": {"learning_rate": RATES, "weight_decay": DECAYS},
        "model_state": {"stop": jnp.array(stop, jnp.int32)},
    }
    return take(dynamics.init_population(**arguments | changes), slice(size))


def take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def settings(changes):
    return {
        "objective": objective,
        "optimizer": OPTIMIZER,
        "data": DATA,
        "num_steps": 8,
        "batch_size": 3,
        "record": RECORD,
        "trace": TRACE,
        "record_every": 2,
        "progress": False,
    } | changes


KEYS = jax.random.key_data(jax.random.split(jax.random.fold_in(KEY, 5), 8))


def split(num):
    """Keys, made afresh for each use."""
    return jax.random.wrap_key_data(KEYS[:num])


def others(num):
    """Other keys."""
    return jax.random.wrap_key_data(KEYS[-num:])


def train_population(states=None, **changes):
    """Eight steps of four runs, with what a test changes."""
    states = population() if states is None else states
    arguments = {"states": states}
    if "keys" not in changes:
        arguments["keys"] = split(len(states.step))
    return dynamics.train_population(**settings(arguments | changes))


def train(i, state=None, **changes):
    """Run `i` alone."""
    state = take(population(), i) if state is None else state
    return dynamics.train(
        **settings({"state": state, "key": split(8)[i]} | changes),
    )


def assert_close(tree, other):
    def close(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)

    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(close, tree, other)


def assert_identical(tree, other):
    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(same, tree, other)


def along_time(tree, i):
    """Run `i` of records or of a trace: runs are axis 1."""
    return jax.tree.map(lambda leaf: leaf[:, i], tree)


def assert_run(history, i, alone):
    """That run `i` is the run alone."""
    assert_close(along_time(history.records, i), alone.records)
    assert_close(along_time(history.trace, i), alone.trace)
    assert_close(take(history.state, i), alone.state)
    assert_close(take(history.memory, i), alone.memory)


@pytest.fixture(scope="module")
def whole():
    return train_population()


@pytest.fixture(scope="module")
def alone():
    return [train(i) for i in range(M)]


def test_each_run_is_the_run_alone(whole, alone):
    assert whole.steps.tolist() == [0, 2, 4, 6, 8]
    assert whole.trace["loss"].shape == (8, M)
    assert whole.records["params"]["w"].shape == (5, M, D, 4)
    assert whole.state.params["w"].shape == (M, D, 4)
    assert whole.diverged_at.tolist() == whole.stopped_at.tolist() == [-1] * M
    for i in range(M):
        assert_run(whole, i, alone[i])
    hyperparams = whole.state.opt_state[1].hyperparams
    np.testing.assert_allclose(hyperparams["learning_rate"], RATES, rtol=1e-6)
    np.testing.assert_allclose(hyperparams["weight_decay"], DECAYS, rtol=1e-6)
    leaves = jax.tree.leaves((whole.steps, whole.records, whole.trace))
    assert all(type(leaf) is np.ndarray for leaf in leaves)


def test_hyperparameters_are_those_of_an_optimizer_made_with_them():
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5, momentum=0.9)
    states = population(
        optimizer=injected, hyperparams={"learning_rate": [0.5, 0.1, 0.2, 0.3]}
    )
    together = train_population(states, optimizer=injected, record=None)
    plain = optax.sgd(0.1, momentum=0.9)
    state = dynamics.init(plain, take(states, 1).params, model_state={"stop": 0})
    one = train(1, state, optimizer=plain, record=None)
    assert_close(along_time(together.trace, 1), one.trace)


def test_blocks_of_runs_take_turns(whole):
    assert_close(train_population(runs_at_once=3), whole)


def test_a_cpu_takes_as_many_runs_as_its_cache_holds():
    narrow = dynamics.init_population(optax.sgd(0.1), {"w": jnp.zeros((M, 2**10))})
    assert _population._runs_in_cache(narrow, M, 1) == 2**8
    wide = {"w": jnp.zeros((M, 2**19)), "v": jnp.zeros((M, 3))}
    wide = dynamics.init_population(optax.sgd(0.1), wide)
    assert _population._runs_in_cache(wide, M, 3) == 3


def test_batch_sizes_are_grouped_and_come_back_in_order(alone):
    together = train_population(batch_size=[3, 2, 3, 2])
    assert_run(together, 2, alone[2])
    assert_run(together, 3, train(3, batch_size=2))


def test_one_program_for_all_blocks_and_chunks():
    traces = {"objective": 0, "record": 0, "stop": 0}

    def counted(name, function):
        def count(*args):
            traces[name] += 1
            return function(*args)

        return count

    again = {
        "objective": counted("objective", objective),
        "record": {"a": counted("record", lambda s: s.step)},
        "stop_when": counted("stop", late),
        "runs_at_once": 2,
    }
    # Three runs in blocks of two: the second is filled.
    train_population(population(3), **again, num_steps=4)
    assert traces == {"objective": 1, "record": 1, "stop": 1}
    later = population(3, params=jax.tree.map(lambda a: a + 1, population().params))
    train_population(later, **again, keys=others(3))
    assert traces == {"objective": 1, "record": 1, "stop": 1}


# Runs that end.


def explosive(rates):
    """Gradient descent on ``w^4``, finite or not by the learning rate."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    return {
        "objective": lambda w, s, batch, key: (jnp.sum(w**4), s),
        "states": dynamics.init_population(
            optimizer,
            jnp.full((len(rates), 2), 1.5),
            hyperparams={"learning_rate": rates},
        ),
        "optimizer": optimizer,
        "record": {"w": lambda s: s.params},
        "trace": None,
    }


def test_a_run_that_diverges_is_frozen_and_the_others_are_untouched():
    history = train_population(**explosive([0.01, 0.6, 0.02]))
    assert history.diverged_at.tolist() == [-1, 3, -1]
    assert history.stopped_at.tolist() == [-1, -1, -1]
    assert history.state.step.tolist() == [8, 3, 8]
    losses, moves = history.trace["loss"][:, 1], history.trace["step_length"][:, 1]
    assert np.isfinite(losses[:3]).all()
    assert np.isfinite(moves[:3]).all()
    assert not np.isfinite([losses[3], moves[3]]).all()
    assert np.isnan(losses[4:]).all()
    assert np.isnan(moves[4:]).all()
    path = [np.float32(1.5)]
    for _ in range(3):
        path.append(path[-1] - np.float32(0.6) * 4 * path[-1] ** 3)
    expected = [path[0], path[2], path[3], path[3], path[3]]
    np.testing.assert_allclose(history.records["w"][:, 1, 0], expected, rtol=1e-5)
    others = train_population(**explosive([0.01, 0.03, 0.02]))
    for i in (0, 2):
        assert_identical(along_time(history.records, i), along_time(others.records, i))
        assert_identical(along_time(history.trace, i), along_time(others.trace, i))


def test_when_all_diverge_training_ends():
    history = train_population(**explosive([0.6, 0.7]))
    assert history.steps.tolist() == [0, 2, 4]
    assert (history.diverged_at >= 2).all()


def test_runs_stop_each_when_its_condition_holds(whole, alone):
    history = train_population(stop_when=late)
    assert history.stopped_at.tolist() == [-1, 2, 6, -1]
    assert history.state.step.tolist() == [8, 2, 6, 8]
    assert_close(along_time(history.trace, 0), alone[0].trace)
    single = train(2, stop_when=late)
    assert single.stopped_at == 6
    assert single.steps.tolist() == [0, 2, 4, 6]
    assert_close(take(history.state, 2), single.state)
    # Measured on, where it stands.
    last = along_time(history.records["params"], 2)["w"][-2:]
    np.testing.assert_array_equal(last[0], last[1])
    np.testing.assert_allclose(last[0], single.state.params["w"], rtol=1e-4)
    assert np.isnan(history.trace["loss"][6:, 2]).all()
    np.testing.assert_allclose(
        history.trace["first"][6:, 2], single.state.params["v"][0], rtol=1e-4
    )


def test_when_all_have_stopped_training_ends():
    stopped = train_population(population(stop=(0, 2, 4, 4)), stop_when=late)
    assert stopped.steps.tolist() == [0, 2, 4]
    assert stopped.stopped_at.tolist() == [0, 2, 4, 4]
    at_once = train_population(population(stop=(0, 0, 0, 0)), stop_when=late)
    assert at_once.steps.tolist() == [0]
    assert at_once.trace["loss"].shape == (0, M)


def test_a_window_from_each_runs_stop_on(alone):
    """Runs that begin at different steps draw the batches of their own steps."""
    first = train_population(stop_when=late, num_steps=6)
    window = train_population(first.state, num_steps=2)
    assert first.stopped_at.tolist() == [-1, 2, 6, -1]
    assert window.steps.tolist() == [2, 4]
    assert window.state.step.tolist() == [8, 4, 8, 8]
    assert_close(along_time(window.trace, 1), take(alone[1].trace, slice(2, 4)))
    assert_close(along_time(window.trace, 2), take(alone[2].trace, slice(6, 8)))


# The store.


class Crash(Exception):
    """Stands for a kill in the middle of a write."""


@pytest.mark.parametrize("fatal", [0, 1, 5, 8])
def test_a_killed_population_resumes_to_the_bit(tmp_path, monkeypatch, fatal):
    changes = {"stop_when": late, "batch_size": [3, 2, 3, 2]}
    uninterrupted = train_population(**changes)
    replace, count = os.replace, iter(range(100))

    def crash(source, target):
        if next(count) == fatal:
            raise Crash
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            train_population(**changes, store=tmp_path)
    resumed = train_population(**changes, store=tmp_path, resume=True)
    assert_identical(resumed, uninterrupted)
    loaded = dynamics.load(tmp_path)
    np.testing.assert_array_equal(loaded.stopped_at, uninterrupted.stopped_at)
    np.testing.assert_array_equal(loaded.diverged_at, uninterrupted.diverged_at)
    np.testing.assert_array_equal(loaded.trace["loss"], uninterrupted.trace["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": population(3)}, r"num_runs \(4 there, 3 here\)"),
        ({"batch_size": [3, 3, 3, 2]}, r"batch_size \(3 there, \[3, 3, 3, 2\] here\)"),
        ({"keys": others(M)}, r"keys \(other values\)"),
    ],
)
def test_the_store_of_another_population(tmp_path, changes, message):
    train_population(store=tmp_path, num_steps=2)
    with pytest.raises(ValueError, match=message):
        train_population(**changes, store=tmp_path, resume=True)


def test_the_store_of_a_single_run(tmp_path):
    train(0, store=tmp_path, num_steps=2)
    with pytest.raises(ValueError, match=r"num_runs \(None there, 4 here\)"):
        train_population(store=tmp_path, resume=True)


# Many devices.


def eightfold(mesh=None):
    states = jax.tree.map(lambda a: jnp.concatenate([a, a]), population())
    if mesh is None:
        return states
    runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    return states._replace(params=jax.device_put(states.params, runs))


def test_devices_train_their_own_runs(tmp_path, eight_devices, monkeypatch):
    compiled, run_chunks = [], _step.run_chunks

    def spy(*args):
        compiled.append(run_chunks.lower(*args).compile().as_text())
        return run_chunks(*args)

    spy.eval_shape = run_chunks.eval_shape
    one = train_population(eightfold(), stop_when=late)
    changes = {"stop_when": late, "store": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr("jaxtheory.dynamics._runs.run_chunks", spy)
        states = eightfold(eight_devices)
        short = train_population(states, **changes, num_steps=2)
    for words in ("all-reduce", "all-gather", "all-to-all", "collective", "send"):
        assert compiled
        assert not any(words in text for text in compiled), words
    states = eightfold(eight_devices)
    eight = train_population(states, **changes, resume=True)
    assert_close(eight, one)
    for state in (short.state, eight.state):
        shards = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)}
        assert shards == {8}
        w = state.params["w"]
        assert w.sharding.shard_shape(w.shape) == (1, D, 4)


# Joining.


def test_widths_are_joined():
    def wide(width):
        params = {"w": jnp.ones((2, D, width)), "v": jnp.ones((2, width)) / width}
        states = population(
            2, params=params, hyperparams=None, model_state={"stop": jnp.zeros(2)}
        )
        return train_population(states, record={"v": lambda s: s.params["v"].sum()})

    narrow, broad = wide(2), wide(5)
    both = dynamics.join_runs([narrow, broad, narrow])
    assert both.records["v"].shape == (5, 6)
    np.testing.assert_array_equal(both.records["v"][:, 2:4], broad.records["v"])
    np.testing.assert_array_equal(both.trace["loss"][:, 4:], narrow.trace["loss"])
    assert both.diverged_at.tolist() == both.stopped_at.tolist() == [-1] * 6
    assert both.state is None
    same = dynamics.join_runs([narrow, narrow])
    assert same.state.params["w"].shape == (4, D, 2)
    with pytest.raises(ValueError, match=r"1\]\.records` must be like .*float32\[5, m"):
        dynamics.join_runs([narrow, train_population()])
    short = narrow._replace(steps=narrow.steps[:3])
    with pytest.raises(ValueError, match=r"1\]\.steps` must be .* 3 records up to"):
        dynamics.join_runs([narrow, short])
    with pytest.raises(ValueError, match=r"0\]` must be the history of a population"):
        dynamics.join_runs([train(0)])
    with pytest.raises(ValueError, match="at least one history"):
        dynamics.join_runs([])


# Bad input.

BAD = {
    "one key": ({"keys": KEY}, r"`keys` must be .* 4 runs, but has .* shape \(\)"),
    "few keys": ({"keys": others(3)}, r"`keys` must be .* \(3,\)"),
    "old keys": ({"keys": jnp.zeros((4, 2), jnp.uint32)}, "`keys` must be .* uint32"),
    "no keys": ({"keys": None}, "`keys` must be .* is None"),
    "one run": (
        {"states": take(population(), 0), "keys": KEY},
        r"`states.step` must have runs on its leading axis",
    ),
    "runs disagree": (
        {"states": population()._replace(model_state={"stop": jnp.zeros(3)})},
        r"`states.model_state\['stop'\]` must have as many runs .* \(3,\) against",
    ),
    "no state": ({"states": 3, "keys": None}, "`states` must be a `TrainState`"),
    "optimizer": ({"optimizer": optax.sgd(0.1)}, "`states.opt_state` must be of"),
    "batch sizes": ({"batch_size": [3, 3]}, "one for each of the 4 runs.* of 2"),
    "batch halves": ({"batch_size": [3, 3, 3, 2.5]}, "of 4 with others"),
    "no optimizer": ({"optimizer": None}, "`optimizer` must be an optax optimizer"),
    "no objective": ({"objective": None}, "`objective` must be a function"),
    "another start": (
        {"states": population()._replace(initial_params=jnp.zeros((M, 9)))},
        r"`states.initial_params` must fit .* has \[\(4, 9\)\]",
    ),
    "large": ({"batch_size": [3, 3, 3, 11]}, "`batch_size` must be at most"),
    "none at once": ({"runs_at_once": 0}, "`runs_at_once` must be an integer of at"),
    "stop of many": (
        {"stop_when": lambda s: s.params["v"] > 0},
        r"`stop_when` must return a boolean scalar, but returned .*bool\[4\]",
    ),
    "stop of numbers": (
        {"stop_when": lambda s: s.params["v"].sum()},
        r"`stop_when` must return a boolean scalar, but returned .*float32\[\]",
    ),
    "stop of nothing": ({"stop_when": lambda s: None}, "but returned a NoneType"),
    "no condition": ({"stop_when": 3}, "`stop_when` must be a function"),
    "no store": ({"resume": True}, "pass `store`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, user_land):
    changes, message = BAD[case]
    given = {"states": population(), "keys": split(M), **changes}
    with pytest.raises(ValueError, match=message):
        train_population(**given)


SCHEDULED = optax.inject_hyperparams(optax.sgd)(learning_rate=lambda step: 0.1)
BAD_STATES = {
    "unknown": (
        {"hyperparams": {"momentum": np.ones(M)}},
        r"`hyperparams\['momentum'\]` .*has \[.*'learning_rate', 'weight_decay'",
    ),
    "none": (
        {"optimizer": optax.sgd(0.1)},
        r"`hyperparams\['learning_rate'\]` .* has none injected",
    ),
    "length": ({"hyperparams": {"learning_rate": np.ones(3)}}, r"4 runs, .* \(3,\)"),
    "text": ({"hyperparams": {"learning_rate": ["a"] * 4}}, "one number for each"),
    "schedule": ({"optimizer": SCHEDULED}, "a schedule, which would write over"),
    "scalar": ({"params": {"w": jnp.ones(())}}, "must have runs on its leading"),
    "model state": ({"model_state": jnp.ones(3)}, "`model_state` must have as many"),
    "integers": ({"params": jnp.ones(4, int)}, "must be floating-point"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_states(case, user_land):
    changes, message = BAD_STATES[case]
    with pytest.raises(ValueError, match=message):
        population(**changes)
