"""The store: killed at any moment, resumed to the bit, never overwritten by mistake."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import _files, _store

KEY = jax.random.key(7)
OPTIMIZER = optax.adam(0.05)
OBJECTIVE = dynamics.supervised(
    lambda w, x: jnp.tanh(x @ w), lambda out, y: (out - y) ** 2
)
RECORD = {
    "params": lambda s: s.params,
    "nested": lambda s: {"a": [s.step, s.params[:1]]},
}
X = jax.random.normal(jax.random.fold_in(KEY, 100), (10, 3))


def train(store, **changes):
    """Eight steps in chunks of two, with what a test changes."""
    arguments = {
        "objective": OBJECTIVE,
        "state": dynamics.init(OPTIMIZER, jnp.array([0.3, -0.2, 0.9])),
        "optimizer": OPTIMIZER,
        "data": (X, jnp.sin(X.sum(1))),
        "num_steps": 8,
        "key": KEY,
        "batch_size": 3,
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
    return train(None)


@pytest.fixture
def folder(tmp_path):
    """A store with the finished run."""
    train(tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stored_run_is_the_run_and_a_finished_one_comes_from_disk(
    tmp_path, whole, monkeypatch
):
    run = tmp_path / "deep" / "run"
    assert_identical(train(run, resume=True), whole)
    before = contents(run)
    steps = ["0000000000", "0000000002", "0000000004", "0000000006", "0000000008"]
    chunks = {f"chunk-{step}.safetensors" for step in steps}
    assert set(before) == {"run.json", "state.safetensors"} | chunks
    monkeypatch.setattr(_files, "save_file", None)
    again = train(str(run), resume=True)
    assert_identical(again, whole)
    assert isinstance(again.state.params, jax.Array)
    assert contents(run) == before


def test_extending_a_run_is_exact(tmp_path, whole):
    train(tmp_path / "run", num_steps=4)
    assert_identical(train(tmp_path / "run", resume=True), whole)


def test_a_run_that_records_nothing_is_kept_too(tmp_path, whole):
    train(tmp_path / "run", record=None, num_steps=4)
    resumed = train(tmp_path / "run", record=None, resume=True)
    assert_identical((resumed.state, resumed.trace), (whole.state, whole.trace))
    assert dynamics.load(tmp_path / "run").records == {}


def test_a_run_may_begin_later(tmp_path, whole):
    first = train(None, num_steps=2)
    later = {"state": first.state, "num_steps": 4}
    train(tmp_path / "run", **later)
    longer = train(tmp_path / "run", **later | {"num_steps": 6}, resume=True)
    assert longer.steps.tolist() == [2, 4, 6, 8]
    assert_identical(longer.state, whole.state)


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
        assert not list(run.glob("*.tmp"))


SCRIPT = """
import sys, time, jax
sys.path.insert(0, {tests!r})
import test_dynamics_store as here
from jaxtheory.dynamics import _store

write = _store.write
def slow(*args):
    write(*args)
    print("wrote", flush=True)
    time.sleep(0.05)
_store.write = slow
here.train({store!r}, num_steps=2000)
"""


def test_a_killed_run_resumes_to_the_bit(tmp_path):
    run = tmp_path / "run"
    script = SCRIPT.format(tests=os.path.dirname(__file__), store=str(run))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline() == "wrote\n"
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    reached = int(dynamics.load(run).steps[-1])
    assert 6 <= reached < 40
    resumed = train(run, num_steps=60, resume=True)
    assert_identical(resumed, train(None, num_steps=60))


def test_an_interrupt_before_the_first_record_is_an_interrupt(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_store, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")


def test_what_was_in_flight_is_ignored(folder, whole):
    """A chunk beyond the state, and a temporary file, are leftovers of a kill."""
    (folder / "state.safetensors.tmp").write_bytes(b"half")
    (folder / "chunk-0000000010.safetensors").write_bytes(b"half")
    assert_identical(train(folder, resume=True), whole)
    assert not list(folder.glob("*.tmp"))
    longer = train(folder, num_steps=12, resume=True)
    assert longer.steps.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_a_run_is_not_overwritten(folder):
    before = contents(folder)
    with pytest.raises(ValueError, match="Continue it with `resume=True`"):
        train(folder)
    assert contents(folder) == before


def other_start():
    return dynamics.init(OPTIMIZER, jnp.array([0.3, -0.2, 0.8]))


OTHER = {
    "params": (lambda: {"state": other_start()}, r"params \(other values\); initial_p"),
    "data": (lambda: {"data": (X + 1, X[:, 0])}, r": data \(other values\)"),
    "key": (lambda: {"key": jax.random.key(8)}, r": key \(other values\)"),
    "batch size": (lambda: {"batch_size": 2}, r"batch_size \(3 there, 2 here\)"),
    "period": (lambda: {"record_every": 4}, r"record_every \(2 there, 4 here\)"),
    "record": (
        lambda: {"record": {"params": lambda s: s.params[:2]}},
        r"records/params \(float32\[3\] there, float32\[2\] here\)",
    ),
    "trace": (
        lambda: {"trace": {"extra": lambda s: s.step}},
        r"trace/extra \(None there, int32\[2\] here\)",
    ),
    "optimizer": (
        lambda: {
            "optimizer": optax.sgd(0.1, momentum=0.9),
            "state": dynamics.init(optax.sgd(0.1, momentum=0.9), jnp.ones(3)),
        },
        r"opt_state \(other values\)",
    ),
    "data set": (
        lambda: {"data": (X[:9], X[:9, 0])},
        r"num_examples \(10 there, 9 here\)",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_run_is_told_apart(case, folder):
    changes, message = OTHER[case]
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        train(folder, **changes(), resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "name", ["state.safetensors", "chunk-0000000004.safetensors", "run.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_damaged_file_is_named_and_kept(name, damage, folder):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-3] if damage == "truncated" else b"")
    before = contents(folder)
    with pytest.raises(ValueError, match=f"{name}.* missing or damaged"):
        train(folder, num_steps=12, resume=True)
    with pytest.raises(ValueError, match=f"{name}.* missing or damaged"):
        dynamics.load(folder)
    assert contents(folder) == before


def test_a_missing_chunk_is_named(folder):
    (folder / "chunk-0000000004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"chunk-0000000004.* missing"):
        train(folder, resume=True)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("chunk-0000000004", "chunk-0000000002", "of step 2"),
        ("state", "chunk-0000000002", "'step'"),
        ("diverged", "state", "'trace/loss'"),
    ],
)
def test_a_file_of_another_kind_is_named(name, source, message, folder):
    other = (folder / f"{source}.safetensors").read_bytes()
    (folder / f"{name}.safetensors").write_bytes(other)
    with pytest.raises(ValueError, match=rf"{name}\.safetensors.*{message}"):
        train(folder, resume=True)
    with pytest.raises(ValueError, match=rf"{name}\.safetensors.*{message}"):
        dynamics.load(folder)


def test_another_format_is_told(folder):
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"schema": 2', '"schema": 0'))
    with pytest.raises(ValueError, match="has format 0"):
        train(folder, resume=True)
    with pytest.raises(ValueError, match="has format 0"):
        dynamics.load(folder)


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", '{"schema": 1}', '{"schema": 1, "settings": {}}']
)
def test_a_description_of_something_else_is_named(text, folder):
    (folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run.json.* damaged"):
        train(folder, resume=True)
    with pytest.raises(ValueError, match=r"run.json.* damaged"):
        dynamics.load(folder)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("missing", ["run.json", "state.safetensors"])
def test_a_run_that_lost_a_file_is_not_begun_anew(missing, resume, folder):
    (folder / missing).unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=f"`store` .*{missing if resume else 'run'}"):
        train(folder, resume=resume)
    with pytest.raises(ValueError, match=f"{missing}.* missing"):
        dynamics.load(folder)
    assert contents(folder) == before


def test_what_is_not_of_the_run_is_left_alone(folder):
    (folder / "thesis.tmp").write_text("mine")
    train(folder, num_steps=10, resume=True)
    assert (folder / "thesis.tmp").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for store in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"`store` .*can be written.*file"):
            train(store)
    assert (tmp_path / "file").read_text() == "mine"


def test_load_of_a_run_that_was_stopped_before_its_first_record(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match=r"stopped before.*`train\(resume=True\)`"):
        dynamics.load(folder)


def test_fewer_steps_than_recorded(folder):
    with pytest.raises(ValueError, match="`num_steps` must reach at least step 8"):
        train(folder, num_steps=4, resume=True)


def test_a_diverged_run_stays_diverged(tmp_path):
    optimizer = optax.sgd(0.6)
    changes = {
        "objective": lambda w, s, batch, key: (jnp.sum(w**4), s),
        "state": dynamics.init(optimizer, jnp.array([1.5, 0.0, 0.0])),
        "optimizer": optimizer,
    }
    history = train(tmp_path / "run", **changes)
    assert history.diverged_at == 3
    assert history.steps.tolist() == [0, 2]
    before = contents(tmp_path / "run")
    for num_steps in (8, 20):
        again = train(tmp_path / "run", **changes, num_steps=num_steps, resume=True)
        assert_identical(again, history)
    assert contents(tmp_path / "run") == before
    loaded = dynamics.load(tmp_path / "run")
    assert loaded.diverged_at == 3
    np.testing.assert_array_equal(loaded.trace["loss"], history.trace["loss"])


def test_load_needs_no_functions(folder, whole):
    loaded = dynamics.load(folder)
    assert loaded.state is None
    assert loaded.diverged_at is None
    np.testing.assert_array_equal(loaded.steps, whole.steps)
    assert_identical(loaded.trace, whole.trace)
    np.testing.assert_array_equal(loaded.records["params"], whole.records["params"])
    step, first = whole.records["nested"]["a"]
    assert_identical(loaded.records["nested"], {"a": {"0": step, "1": first}})


def test_load_of_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"run.json.* missing"):
        dynamics.load(tmp_path)


def test_arrays_of_no_elements_have_a_fingerprint():
    empty = np.zeros((0, 2), np.float32)
    assert _store._fingerprint(empty) != _store._fingerprint(empty.T)


def test_types_and_layouts_survive(tmp_path):
    """Half precision, a random key, scalars, empty and strided arrays, booleans."""
    tree = {
        "half": np.asarray(jnp.array([1.5, -2.0], jnp.bfloat16)),
        "strided": np.arange(12.0).reshape(3, 4).T,
        "reversed": np.arange(5)[::-1],
        "empty": np.zeros((0, 2), np.float32),
        "scalar": np.array(3.0),
        "flag": np.array([True, False]),
        "complex": np.array([1 + 2j], np.complex64),
    }
    path = tmp_path / "file.safetensors"
    _files.save(path, tree, 0)
    assert_identical(_files.restore(path, tree), tree)
    for name, leaf in _files.restore(path, tree).items():
        assert leaf.dtype == tree[name].dtype
        assert leaf.shape == tree[name].shape


def test_random_keys_and_half_precision_in_a_state(tmp_path):
    def noisy(store, **changes):
        noise = optax.add_noise(0.1, 0.5, jax.random.key(3))
        optimizer = optax.chain(noise, optax.sgd(0.1))
        start = dynamics.init(optimizer, jnp.ones(3, jnp.bfloat16))
        record = {"params": lambda s: s.params}
        changes |= {"state": start, "optimizer": optimizer, "record": record}
        history = train(store, **changes)
        (key,) = [
            jax.random.key_data(leaf)
            for leaf in jax.tree.leaves(history.state.opt_state)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        ]
        return history.records, key

    noisy(tmp_path / "run", num_steps=4)
    resumed = noisy(tmp_path / "run", resume=True)
    assert resumed[0]["params"].dtype == jnp.bfloat16
    assert_identical(resumed, noisy(None))


def test_a_sharded_run_resumes_to_the_bit_and_on_its_devices(tmp_path, eight_devices):
    place = lambda *spec: jax.sharding.NamedSharding(
        eight_devices, jax.sharding.PartitionSpec(*spec)
    )
    x = jnp.concatenate([X, X[:6]])
    changes = {"data": jax.device_put((x, x[:, 0]), place("data")), "batch_size": 8}
    whole = train(None, **changes)
    train(tmp_path / "run", **changes, num_steps=4)
    resumed = train(tmp_path / "run", **changes, resume=True)
    assert_identical(resumed, whole)
    finished = train(tmp_path / "run", **changes, resume=True)
    assert finished.state.params.sharding == place()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a/b": lambda s: s.step, "a": lambda s: {"b": s.step}}, "path of its own"),
        ({"a/b": lambda s: s.step, "a": lambda s: s.step}, "one is above another"),
        ({"a": lambda s: s.params.astype(jnp.float8_e5m2)}, "dtype float8_e5m2"),
    ],
)
def test_what_cannot_be_stored(record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", record=record)
    assert not (tmp_path / "run").exists()
