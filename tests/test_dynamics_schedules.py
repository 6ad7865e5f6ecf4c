"""Records at steps of one's own, conditions to stop, and windows after them."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import _run

KEY = jax.random.key(7)
OPTIMIZER = optax.adam(0.05)
OBJECTIVE = dynamics.supervised(
    lambda w, x: jnp.tanh(x @ w), lambda out, y: (out - y) ** 2
)
X = jax.random.normal(jax.random.fold_in(KEY, 100), (10, 3))
SCHEDULE = (0, 1, 2, 5, 233, 240)


def train(store=None, **changes):
    """240 steps recorded by the schedule, with what a test changes."""
    arguments = {
        "objective": OBJECTIVE,
        "state": dynamics.init(OPTIMIZER, jnp.array([0.3, -0.2, 0.9])),
        "optimizer": OPTIMIZER,
        "data": (X, jnp.sin(X.sum(1))),
        "num_steps": SCHEDULE[-1],
        "key": KEY,
        "batch_size": 3,
        "record": {"params": lambda s: s.params},
        "record_every": SCHEDULE,
        "progress": False,
    }
    return dynamics.train(**arguments | changes, store=store)


def assert_identical(history, other):
    assert jax.tree.structure(history) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, history, other)


RECORD = {"params": lambda s: s.params}


@pytest.fixture(scope="module")
def whole():
    return train(record=RECORD)


@pytest.fixture(scope="module")
def every():
    """The same run with all of its iterates."""
    return train(record=RECORD, record_every=1)


def test_records_are_those_of_the_run_at_these_steps(whole, every):
    assert whole.steps.tolist() == list(SCHEDULE)
    assert whole.trace["loss"].shape == (240,)
    assert_identical(whole.trace, every.trace)
    assert_identical(whole.state, every.state)
    at = every.records["params"][list(SCHEDULE)]
    np.testing.assert_array_equal(whole.records["params"], at)


def test_gaps_of_all_lengths_are_one_program():
    traces = {"objective": 0, "record": 0}

    def objective(*args):
        traces["objective"] += 1
        return OBJECTIVE(*args)

    def measure(state):
        traces["record"] += 1
        return state.step

    history = train(
        objective=objective,
        record={"step": measure},
        record_every=[1, 3, 4, 9, 20],
        num_steps=20,
    )
    assert history.records["step"].tolist() == [0, 1, 3, 4, 9, 20]
    assert traces == {"objective": 1, "record": 1}


def test_a_schedule_counts_from_the_state_given(whole, every):
    first = train(record=RECORD, record_every=[2, 5], num_steps=5)
    second = train(
        record=RECORD, state=first.state, record_every=[1, 235], num_steps=235
    )
    assert second.steps.tolist() == [5, 6, 240]
    assert_identical(second.state, whole.state)
    np.testing.assert_array_equal(second.trace["loss"], every.trace["loss"][5:])


@pytest.mark.parametrize("num_steps", [1, 2, 7, 64, 1000])
def test_schedules_grow_as_they_say(num_steps):
    powers = [2**i for i in range(20) if 2**i < num_steps]
    assert dynamics.exponential_steps(num_steps) == (0, *powers, num_steps)
    every = tuple(range(num_steps + 1))
    assert dynamics.exponential_steps(num_steps, base=1 + 1e-12) == every
    steps = dynamics.exponential_steps(num_steps, base=1.3)
    whole = {int(1.3**i) for i in range(30) if 1.3**i < num_steps} | {0, num_steps}
    assert steps == tuple(sorted(whole))
    for num in (2, 10):
        even = {round(num_steps ** (i / (num - 1))) for i in range(num)}
        expected = tuple(sorted(even | {0}))
        assert dynamics.log_spaced_steps(num_steps, num=num) == expected


# The store.


class Crash(Exception):
    """Stands for a kill in the middle of a write."""


@pytest.mark.parametrize("fatal", [2, 8, 10, 12])
def test_a_killed_run_resumes_in_the_middle_of_a_gap(
    tmp_path, monkeypatch, whole, fatal
):
    replace, count = os.replace, iter(range(100))

    def crash(source, target):
        if next(count) == fatal:
            raise Crash
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            train(tmp_path)
    assert_identical(train(tmp_path, resume=True), whole)
    loaded = dynamics.load(tmp_path)
    assert loaded.steps.tolist() == list(SCHEDULE)
    np.testing.assert_array_equal(loaded.trace["loss"], whole.trace["loss"])
    np.testing.assert_array_equal(loaded.records["params"], whole.records["params"])


def test_chunks_are_bounded_and_those_without_a_record_are_traces(tmp_path):
    train(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("chunk-*"))
    steps = [int(name[6:16]) for name in names]
    assert steps == [0, 1, 2, 5, 105, 205, 233, 240]


def test_a_longer_schedule_goes_on_where_the_other_one_ended(tmp_path, whole):
    train(tmp_path, record_every=SCHEDULE[:4], num_steps=5)
    assert_identical(train(tmp_path, resume=True), whole)
    assert_identical(train(tmp_path, resume=True), whole)
    with pytest.raises(ValueError, match="`num_steps` must reach at least step 240"):
        train(tmp_path, record_every=SCHEDULE[:4], num_steps=5, resume=True)


@pytest.mark.parametrize(
    ("other", "there"), [((0, 1, 3, 240), r"\[0, 1, 2, 5, 233, 240\]"), (2, r"\[0")]
)
def test_another_schedule_is_another_run(tmp_path, other, there):
    train(tmp_path)
    with pytest.raises(ValueError, match=rf"record_every \({there}.* there"):
        train(tmp_path, record_every=other, resume=True)


def test_a_store_of_the_format_before_is_continued(tmp_path):
    periodic = {"record_every": 2, "record": RECORD}
    train(tmp_path, **periodic, num_steps=4)
    text = (tmp_path / "run.json").read_text()
    assert '"schema": 2' in text
    (tmp_path / "run.json").write_text(text.replace('"schema": 2', '"schema": 1'))
    resumed = train(tmp_path, **periodic, num_steps=8, resume=True)
    assert_identical(resumed, train(**periodic, num_steps=8))
    assert dynamics.load(tmp_path).steps.tolist() == [0, 2, 4, 6, 8]


class InterruptedBar(_run.tqdm):
    """Ctrl-C while the bar moves into the long gap."""

    def update(self, n=1):
        super().update(n)
        if self.n >= 100:
            raise KeyboardInterrupt


def test_an_interrupt_in_a_gap_costs_a_bounded_chunk(monkeypatch, capsys, whole):
    monkeypatch.setattr(_run, "tqdm", InterruptedBar)
    partial = train(progress=True)
    assert "recorded up to step 105" in capsys.readouterr().err
    assert partial.steps.tolist() == [0, 1, 2, 5]
    assert int(partial.state.step) == len(partial.trace["loss"]) == 105
    np.testing.assert_array_equal(partial.trace["loss"], whole.trace["loss"][:105])


def test_divergence_in_a_gap(tmp_path):
    """Gradient ascent on ``w^2 / 2`` doubles ``w`` at each step."""
    optimizer = optax.sgd(-1.0)
    changes = {
        "objective": lambda w, s, batch, key: (jnp.sum(w**2) / 2, s),
        "state": dynamics.init(optimizer, jnp.array([2.0**-60, 0.0, 0.0])),
        "optimizer": optimizer,
    }
    history = train(tmp_path, **changes)
    # 2^-60 2^s squared and halved is infinite from s = 125 on, and the step before:
    # the squared length of step s is 2^(2 s - 120).
    assert history.diverged_at == 124
    assert history.steps.tolist() == [0, 1, 2, 5]
    assert int(history.state.step) == 105
    assert len(history.trace["loss"]) == 125
    assert_identical(train(tmp_path, **changes, resume=True), history)
    assert dynamics.load(tmp_path).diverged_at == 124


# Conditions.


def small(state):
    return state.params[2] < 0.8


def test_training_stops_with_the_record_where_the_condition_holds(tmp_path, every):
    history = train(record=RECORD, record_every=2, stop_when=small)
    values = every.records["params"][::2, 2]
    expected = 2 * int(np.argmax(values < 0.8))
    assert 0 < expected < 240
    assert history.stopped_at == expected
    assert history.diverged_at is None
    assert history.steps[-1] == int(history.state.step) == expected
    assert len(history.trace["loss"]) == expected
    np.testing.assert_array_equal(history.trace["loss"], every.trace["loss"][:expected])
    assert train(record_every=2, num_steps=2, stop_when=small).stopped_at is None


def test_a_condition_that_holds_at_once_ends_training_at_once():
    history = train(stop_when=lambda s: s.step >= 0)
    assert history.stopped_at == 0
    assert history.steps.tolist() == [0]
    assert history.trace["loss"].shape == (0,)


def test_a_stopped_run_stays_stopped(tmp_path):
    changes = {"record": RECORD, "record_every": 2, "stop_when": small}
    whole = train(**changes)
    train(tmp_path, **changes, num_steps=4)
    history = train(tmp_path, **changes, resume=True)
    assert_identical(history, whole)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = train(tmp_path, **changes, num_steps=300, resume=True)
    assert_identical(again, whole)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert dynamics.load(tmp_path).stopped_at == whole.stopped_at
    with pytest.raises(ValueError, match=r"ended/stopped_at \(int32\[\] there, None"):
        train(tmp_path, **changes | {"stop_when": None}, resume=True)


def test_a_window_of_iterates_after_a_condition(every):
    """As the docstring of `train` says it."""
    sketch = dynamics.sketch(dim=8)
    first = train(record_every=2, stop_when=small)
    window = train(
        state=first.state, num_steps=7, record_every=None, trace={"path": sketch}
    )
    path = window.trace["path"]
    assert path.shape == (7, 8)
    start = first.stopped_at
    start_params = every.records["params"][0]
    for row, params in zip(path, every.records["params"][start:], strict=False):
        state = dynamics.init(OPTIMIZER, jnp.asarray(start_params))
        expected = sketch(state._replace(params=jnp.asarray(params)))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)


# Bad input.

BAD = {
    "decreasing": ([0, 5, 3, 240], "increasing integers .* but was .0, 5, 3, 240"),
    "repeated": ([0, 5, 5, 240], "increasing integers"),
    "negative": ([-1, 240], "increasing integers"),
    "halves": ([0, 2.5, 240], "increasing integers"),
    "nothing": ([], "increasing integers"),
    "text": ("often", "`record_every` must be a positive integer"),
    "not to the end": ([0, 5, 239], "must end with `num_steps`, 240, .* with 239"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_schedules(case, user_land):
    schedule, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        train(record_every=schedule)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: dynamics.exponential_steps(0), "`num_steps` must be an integer of at"),
        (lambda: dynamics.exponential_steps(9, base=1), "`base` must be a finite"),
        (lambda: dynamics.exponential_steps(9, base=np.inf), "`base` must be a finite"),
        (lambda: dynamics.log_spaced_steps(2.5, num=4), "`num_steps` must be an int"),
        (lambda: dynamics.log_spaced_steps(9, num=1), "`num` must be an integer of at"),
    ],
)
def test_bad_arguments_of_schedules(function, message, user_land):
    with pytest.raises(ValueError, match=message):
        function()


@pytest.mark.parametrize(
    ("stop_when", "message"),
    [
        (lambda s: s.params < 0, r"a boolean scalar, but returned .*bool\[3\]"),
        (lambda s: s.step, r"a boolean scalar, but returned .*int32\[\]"),
        (lambda s: (s.step > 1,), "a boolean scalar, but returned a tuple"),
        (0.5, "`stop_when` must be a function, but is of type float"),
    ],
)
def test_bad_conditions(stop_when, message, user_land):
    with pytest.raises(ValueError, match=message):
        train(stop_when=stop_when)


def test_populations_are_trained_outside_jit(user_land):
    states = dynamics.init_population(OPTIMIZER, jnp.ones((2, 3)))
    train = lambda states: (
        dynamics.train_population(
            OBJECTIVE,
            states,
            OPTIMIZER,
            (X, X),
            num_steps=1,
            keys=jax.random.split(KEY),
        ).steps
    )
    with pytest.raises(ValueError, match="`states` must have values, but are traced"):
        jax.jit(train)(states)
