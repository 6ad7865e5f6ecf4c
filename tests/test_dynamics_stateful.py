"""Measurements that remember: through chunks, stores, kills, divergence and Ctrl-C."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import _files, _run

KEY = jax.random.key(7)
OPTIMIZER = optax.adam(0.05)
OBJECTIVE = dynamics.supervised(
    lambda w, x: jnp.tanh(x @ w), lambda out, y: (out - y) ** 2
)
X = jax.random.normal(jax.random.fold_in(KEY, 100), (16, 3))
START = jnp.array([0.3, -0.2, 0.9])


def begin(state):
    return {"mean": 2 * state.params, "records": jnp.zeros((), jnp.int32)}


def follow(state, memory):
    """A running mean of the iterates, and the memory that it was computed from."""
    mean = 0.7 * memory["mean"] + 0.3 * state.params
    value = {"mean": mean, "before": memory["mean"], "records": memory["records"]}
    return value, {"mean": mean, "records": memory["records"] + 1}


REMEMBERING = dynamics.StatefulMeasurement(begin, follow)
PLAIN = {"params": lambda s: s.params}
RECORD = {**PLAIN, "mean": REMEMBERING}


def train(store=None, **changes):
    """Eight steps in chunks of two, with what a test changes."""
    arguments = {
        "objective": OBJECTIVE,
        "state": dynamics.init(OPTIMIZER, START),
        "optimizer": OPTIMIZER,
        "data": (X, jnp.sin(X.sum(1))),
        "num_steps": 8,
        "key": KEY,
        "batch_size": 4,
        "record": RECORD,
        "record_every": 2,
        "progress": False,
    }
    return dynamics.train(**arguments | changes, store=store)


def assert_identical(history, other):
    assert jax.tree.structure(history) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, history, other)


@pytest.fixture(scope="module")
def whole():
    """The run that nothing interrupts and nothing stores."""
    return train()


def test_each_record_gets_what_the_one_before_remembered(whole):
    mean = 2 * np.asarray(START)
    for row, params in enumerate(whole.records["params"]):
        np.testing.assert_array_equal(whole.records["mean"]["before"][row], mean)
        np.testing.assert_allclose(
            whole.records["mean"]["mean"][row], 0.7 * mean + 0.3 * params, rtol=1e-6
        )
        mean = whole.records["mean"]["mean"][row]
    assert whole.records["mean"]["records"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(whole.memory["mean"]["mean"], mean)
    assert int(whole.memory["mean"]["records"]) == 5


def test_plain_measurements_and_the_path_do_not_notice(whole):
    plain = train(record=PLAIN)
    assert plain.memory == {}
    assert_identical(plain.state, whole.state)
    assert_identical(plain.records["params"], whole.records["params"])


class Crash(Exception):
    """Stands for a kill in the middle of a write."""


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_crash_at_any_write_is_survived(tmp_path, whole, monkeypatch, moment):
    replace = os.replace
    # run.json, then chunk and state five times.
    for fatal in range(11):
        run = tmp_path / str(fatal)
        count = iter(range(100))

        def crash(source, target, fatal=fatal, count=count):
            last = next(count) == fatal
            if not last or moment == "after the rename":
                replace(source, target)
            if last:
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(Crash):
                train(run)
        assert_identical(train(run, resume=True), whole)


def test_extending_and_reading_back_are_exact(tmp_path, whole):
    train(tmp_path / "run", num_steps=4)
    assert_identical(train(tmp_path / "run", resume=True), whole)
    finished = train(tmp_path / "run", resume=True)
    assert_identical(finished, whole)
    assert isinstance(finished.memory["mean"]["mean"], jax.Array)
    loaded = dynamics.load(tmp_path / "run")
    assert loaded.memory is None
    assert_identical(loaded.records["mean"], whole.records["mean"])


def test_a_sharded_run_resumes_to_the_bit(tmp_path, eight_devices):
    placement = jax.sharding.NamedSharding(
        eight_devices, jax.sharding.PartitionSpec("data")
    )
    changes = {"data": jax.device_put((X, X[:, 0]), placement), "batch_size": 8}
    whole = train(**changes)
    train(tmp_path / "run", **changes, num_steps=4)
    assert_identical(train(tmp_path / "run", **changes, resume=True), whole)


def test_a_diverged_run_keeps_the_memory_of_its_last_record(tmp_path):
    optimizer = optax.sgd(0.6)
    changes = {
        "objective": lambda w, s, batch, key: (jnp.sum(w**4), s),
        "state": dynamics.init(optimizer, jnp.array([1.5, 0.0, 0.0])),
        "optimizer": optimizer,
    }
    history = train(tmp_path / "run", **changes)
    assert history.diverged_at == 3
    assert history.steps.tolist() == [0, 2]
    last = history.records["mean"]["mean"][-1]
    np.testing.assert_array_equal(history.memory["mean"]["mean"], last)
    assert np.isfinite(last).all()
    again = train(tmp_path / "run", **changes, resume=True, num_steps=20)
    assert_identical(again, history)


class InterruptedBar(_run.tqdm):
    """Ctrl-C while the bar moves to the fourth step."""

    def update(self, n=1):
        super().update(n)
        if self.n >= 4:
            raise KeyboardInterrupt


def test_an_interrupted_run_returns_the_memory_of_its_last_record(
    tmp_path, monkeypatch, whole
):
    with monkeypatch.context() as patch:
        patch.setattr(_run, "tqdm", InterruptedBar)
        partial = train(tmp_path / "run", progress=True)
    assert partial.steps.tolist() == [0, 2, 4]
    last = whole.records["mean"]["mean"][2]
    np.testing.assert_array_equal(partial.memory["mean"]["mean"], last)
    assert_identical(train(tmp_path / "run", resume=True), whole)


def test_continuing_from_a_history_begins_anew_unless_given(whole):
    first = train(num_steps=4)
    fresh = train(state=first.state, num_steps=4)
    before = fresh.records["mean"]["before"][0]
    np.testing.assert_array_equal(before, 2 * np.asarray(first.state.params))
    kept = REMEMBERING._replace(init=lambda state: first.memory["mean"])
    second = train(state=first.state, num_steps=4, record={**PLAIN, "mean": kept})
    assert second.records["mean"]["records"].tolist() == [3, 4, 5]
    np.testing.assert_array_equal(
        second.records["mean"]["before"][0], first.memory["mean"]["mean"]
    )
    assert_identical(second.state, whole.state)


def test_nothing_is_traced_twice():
    traces = {"init": 0, "measure": 0}

    def init(state):
        traces["init"] += 1
        return 1.0  # weakly typed: after a record it would be another type

    def measure(state, memory):
        traces["measure"] += 1
        return memory, memory * 2

    record = {"a": dynamics.StatefulMeasurement(init, measure)}
    history = train(record=record)
    assert history.records["a"].tolist() == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert traces == {"init": 1, "measure": 1}
    train(record=record, state=dynamics.init(OPTIMIZER, START + 1), num_steps=4)
    assert traces == {"init": 1, "measure": 1}


# Stores of runs with other memories.


def described(folder):
    return json.loads((folder / "run.json").read_text())


def test_without_memory_a_store_is_as_it_always_was(tmp_path):
    """So that the stores of older versions stay readable."""
    train(tmp_path / "run", record=PLAIN)
    shapes = described(tmp_path / "run")["shapes"]
    assert set(shapes) == {"records/params", "trace/loss", "trace/step_length"}
    tensors = _files.read(tmp_path / "run" / "state.safetensors")
    assert not any(name.startswith("memory") for name in tensors)


def other_memory(state, memory):
    value, _ = follow(state, {"mean": memory, "records": jnp.zeros((), jnp.int32)})
    return value, value["mean"]


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (
            lambda s: follow(s, begin(s))[0],
            REMEMBERING,
            r"memory/mean/mean \(None there, float32\[3\] here\)",
        ),
        (
            REMEMBERING,
            lambda s: follow(s, begin(s))[0],
            r"memory/mean/mean \(float32\[3\] there, None here\)",
        ),
        (
            REMEMBERING,
            dynamics.StatefulMeasurement(lambda s: s.params, other_memory),
            r"memory/mean \(None there, float32\[3\] here\)",
        ),
    ],
)
def test_a_run_with_another_memory_is_told_apart(tmp_path, there, here, message):
    run = tmp_path / "run"
    train(run, record={"mean": there}, num_steps=2)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match=message):
        train(run, record={"mean": here}, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# Bad input.

stateful = dynamics.StatefulMeasurement
BAD = {
    "trace": ({"trace": {"a": REMEMBERING}}, r"`trace\['a'\]` must be a function of"),
    "no pair": (
        {"record": {"a": stateful(begin, lambda s, m: s.params)}},
        r"`record\['a'\].measure` must return a pair \(value, memory\)",
    ),
    "other structure": (
        {"record": {"a": stateful(begin, lambda s, m: (s.step, s.params))}},
        r"`record\['a'\].measure` must return a memory like .*float32\[3\].*int32\[\]",
    ),
    "other type": (
        {"record": {"a": stateful(lambda s: s.step, lambda s, m: (m, m * 1.0))}},
        r"must return a memory like .*int32\[\].* but returned .*float32\[\]",
    ),
    "text": (
        {"record": {"a": stateful(lambda s: {"b": "text"}, follow)}},
        r"`record\['a'\].init\['b'\]` must be an array, but .* str",
    ),
    "key": (
        {"record": {"a": stateful(lambda s: jax.random.key(0), follow)}},
        r"`record\['a'\].init` must be an array of numbers, but is a random key",
    ),
    "no value": (
        {"record": {"a": stateful(begin, lambda s, m: (None, m))}},
        r"`record\['a'\]` must return at least one array",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, user_land):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        train(**changes)
