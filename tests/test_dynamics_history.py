"""A history: read lazily, cut, joined, and exported; populations too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import _files, _lazy
from jaxtheory.dynamics._lazy import LazyArray

KEY = jax.random.key(7)
OPTIMIZER = optax.adam(0.05)
OBJECTIVE = dynamics.supervised(
    lambda w, x: jnp.tanh(x @ w), lambda out, y: (out - y) ** 2
)
RECORD = {
    "params": dynamics.snapshots(),
    "nested": lambda s: {"a": [s.step, s.params[:1].astype(jnp.bfloat16)]},
}
X = jax.random.normal(jax.random.fold_in(KEY, 100), (10, 3))
START = jnp.array([0.3, -0.2, 0.9])


def train(store=None, **changes):
    """Eight steps in chunks of two, with what a test changes."""
    arguments = {
        "state": dynamics.init(OPTIMIZER, START),
        "num_steps": 8,
        "batch_size": 3,
        "record": RECORD,
        "record_every": 2,
    } | changes
    return dynamics.train(
        OBJECTIVE,
        arguments.pop("state"),
        OPTIMIZER,
        (X, jnp.sin(X.sum(1))),
        key=KEY,
        store=store,
        progress=False,
        **arguments,
    )


def assert_identical(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "run"
    train(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A store that a test may damage."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def whole(folder):
    return dynamics.load(folder)


def without_steps(history):
    return history.records, history.trace, history.diverged_at


def test_what_is_read_lazily_is_what_is_read_at_once(folder, whole):
    lazy = dynamics.load(folder, lazy=True)
    assert lazy.steps.tolist() == whole.steps.tolist() == [0, 2, 4, 6, 8]
    for a, b in zip(jax.tree.leaves(lazy), jax.tree.leaves(whole), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.ndim == b.ndim
        assert len(a) == len(b)
        np.testing.assert_array_equal(np.asarray(a), b)
        np.testing.assert_array_equal(a[-1], b[-1])
    assert_identical(
        jax.tree.map(np.asarray, without_steps(lazy)), without_steps(whole)
    )
    assert lazy.records["nested"]["a"]["1"].dtype == jnp.bfloat16


INDICES = [0, -1, 3, np.int64(2), slice(None), slice(1, 4), slice(-2, None)]
INDICES += [slice(None, None, 2), slice(4, 1, -1), slice(3, 3), [0, 2], (2, 1), (4, -1)]
INDICES += [(1, slice(1, None)), (slice(1, 3), 0), (3, [2, 0]), (2, None), (1, ...)]
INDICES += [(), True, (1, slice(0, 99)), (1, slice(None, -1)), (1, slice(-2, None))]
INDICES += [(1, slice(2, 1)), (1, slice(-99, 1)), (1, slice(9, 12)), (1, slice(0, 0))]
INDICES += [np.array([True, False, True, False, True]), (2, slice(None, None, 2))]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indices_are_numpys(index, folder, whole):
    lazy = dynamics.load(folder, lazy=True)
    array, expected = lazy.records["params"], whole.records["params"]
    np.testing.assert_array_equal(np.asarray(array[index]), expected[index])
    rows, expected = lazy.trace["loss"], whole.trace["loss"]
    first = index[0] if isinstance(index, tuple) and index else index
    if not isinstance(first, np.ndarray):
        np.testing.assert_array_equal(np.asarray(rows[first]), expected[first])
        again = np.asarray(rows[2:][1:])
        np.testing.assert_array_equal(again, expected[3:])


def test_a_lazy_array_is_taken_by_numpy_and_jax(folder, whole):
    params = dynamics.load(folder, lazy=True).records["params"]
    assert isinstance(params, LazyArray)
    assert repr(params) == "LazyArray(shape=(5, 3), dtype=float32)"
    assert (params.size, params.nbytes) == (15, 60)
    expected = whole.records["params"]
    np.testing.assert_array_equal(jnp.asarray(np.asarray(params)), expected)
    np.testing.assert_array_equal(np.stack(list(params)), expected)
    assert np.asarray(params, np.float64).dtype == np.float64
    with pytest.raises(IndexError, match="row 5 of an array of 5 rows"):
        params[5]


def test_one_step_of_one_leaf_reads_no_other_file(copy, whole):
    """All other chunks are gone, but for the first, whose header has the shapes."""
    lazy = dynamics.load(copy, lazy=True)
    for step in (2, 6, 8):
        (copy / f"chunk-{step:010d}.safetensors").unlink()
    first = copy / "chunk-0000000000.safetensors"
    expected = whole.records["params"][2]
    np.testing.assert_array_equal(lazy.records["params"][2], expected)
    np.testing.assert_array_equal(lazy.records["params"][2, 1:], expected[1:])
    first.unlink()
    np.testing.assert_array_equal(lazy.records["params"][2], expected)
    with pytest.raises(ValueError, match=r"chunk-0000000006.* missing or damaged"):
        lazy.records["params"][3]
    # The second chunk's rows are of steps 2 and 3.
    assert lazy.trace["loss"][3] == whole.trace["loss"][3]


def test_one_step_of_one_leaf_reads_no_other_leaf(copy, whole, monkeypatch):
    """A large leaf beside it is never asked for: safetensors maps the file."""
    asked = []
    read = _lazy.Unread.read
    spy = lambda self, name, index=(): (
        asked.append((self.path.name, name, index)) or (read(self, name, index))
    )
    lazy = dynamics.load(copy, lazy=True)
    monkeypatch.setattr(_lazy.Unread, "read", spy)
    np.testing.assert_array_equal(
        lazy.records["params"][1, 0:2], whole.records["params"][1, 0:2]
    )
    assert lazy.trace["step_length"][7] == whole.trace["step_length"][7]
    chunk = "chunk-{:010d}.safetensors".format
    assert asked == [
        (chunk(2), "records/params", (slice(0, 2),)),
        (chunk(8), "trace/step_length", (1,)),
    ]


def test_a_row_of_a_large_file_takes_no_memory_for_the_rest(tmp_path):
    """Bytes counted: of 64 MB in the file, a row of 4 KB is read."""
    import tracemalloc

    path = tmp_path / "chunk-0000000016.safetensors"
    rows = np.arange(16 * 2**20, dtype=np.float32).reshape(16, 2**20)
    _files.save(path, {"trace": {"path": rows}}, 16)
    file = _lazy.Unread(path, 16)
    array = _lazy.concatenate([file["trace/path"]])
    tracemalloc.start()
    try:
        part = array[3, 1000:2000]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(part, rows[3, 1000:2000])
    assert peak < 200_000


def test_files_of_another_run_or_step_are_found_when_read(copy):
    lazy = dynamics.load(copy, lazy=True)
    chunk = lambda step: copy / f"chunk-{step:010d}.safetensors"
    chunk(4).write_bytes(chunk(2).read_bytes())
    with pytest.raises(ValueError, match=r"chunk-0000000004.* is of step 2"):
        lazy.records["params"][2]
    other = {"records": {"params": np.ones(4, np.float32)}, "trace": {}}
    _files.save(chunk(6), other, 6)
    with pytest.raises(ValueError, match=r"as float32\[4\], not as 1 rows of float32"):
        lazy.records["params"][3]
    with pytest.raises(ValueError, match=r"chunk-0000000006.* missing or damaged"):
        lazy.records["nested"]["a"]["0"][3]


def test_a_store_of_another_version(copy, user_land):
    text = (copy / "run.json").read_text()
    (copy / "run.json").write_text(text.replace('"schema": ', '"schema": 9'))
    with pytest.raises(ValueError, match=r"has format 9\d?, but"):
        dynamics.load(copy, lazy=True)


def test_a_list_of_steps_and_a_divergence_are_read_lazily_too(tmp_path):
    train(tmp_path / "log", record_every=[0, 1, 3, 8])
    at_once, lazy = (dynamics.load(tmp_path / "log", lazy=z) for z in (False, True))
    assert lazy.steps.tolist() == [0, 1, 3, 8]
    assert_identical(jax.tree.map(np.asarray, lazy), at_once)
    optimizer = optax.sgd(0.6)
    dynamics.train(
        lambda w, s, batch, key: (jnp.sum(w**4), s),
        dynamics.init(optimizer, jnp.array([1.5, 0.0])),
        optimizer,
        X,
        num_steps=8,
        key=KEY,
        record_every=2,
        store=tmp_path / "diverged",
        progress=False,
    )
    at_once, lazy = (
        dynamics.load(tmp_path / "diverged", lazy=z) for z in (False, True)
    )
    assert lazy.diverged_at == at_once.diverged_at == 3
    assert_identical(jax.tree.map(np.asarray, lazy), at_once)


@pytest.mark.parametrize("lazy", [False, True])
def test_selecting_records_cuts_the_trace(lazy, folder, whole):
    part = dynamics.load(folder, lazy=lazy).select(1, 4)
    assert part.steps.tolist() == [2, 4, 6]
    np.testing.assert_array_equal(part.records["params"], whole.records["params"][1:4])
    np.testing.assert_array_equal(part.trace["loss"], whole.trace["loss"][2:6])
    assert isinstance(part.records["params"], LazyArray) == lazy
    inner = part.select(1)
    np.testing.assert_array_equal(inner.trace["loss"], whole.trace["loss"][4:6])
    assert len(part.select(-1).trace["loss"]) == 0


def test_the_end_belongs_to_the_last_record():
    history = train()
    assert_identical(history.select(2).state, history.state)
    assert history.select().steps.tolist() == history.steps.tolist()
    cut = history.select(0, -1)
    assert (cut.state, cut.memory, cut.diverged_at) == (None, None, None)
    stopped = history._replace(stopped_at=4, diverged_at=None)
    assert stopped.select(0, 4).stopped_at == 4
    assert stopped.select(0, 3).stopped_at is None


def test_of_a_diverged_run_the_rows_that_diverged_stay_at_the_end():
    points = np.array([[0.0], [1.0], [3.0], [np.inf]])
    history = dynamics.History.from_arrays(points)
    assert history.diverged_at == 2
    part = history.select(1)
    assert part.diverged_at == 2
    np.testing.assert_array_equal(part.trace["step_length"], [2, np.nan])
    assert history.select(0, 2).diverged_at is None


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (5, None), (4, 2)])
def test_nothing_selected(start, stop, whole, user_land):
    with pytest.raises(ValueError, match=r"of 5 records .* leaves none"):
        whole.select(start, stop)


def test_parts_of_a_continued_run_make_the_run():
    history = train()
    first = train(num_steps=4)
    second = train(state=first.state, num_steps=4)
    joined = dynamics.History.concatenate([first, second])
    assert_identical(joined, history)
    cut = [history.select(0, 2), history.select(1, 4), history.select(3)]
    assert_identical(dynamics.History.concatenate(cut), history)
    assert_identical(dynamics.History.concatenate([history]), history)


def test_lazy_parts_are_joined_in_memory(folder, whole):
    lazy = dynamics.load(folder, lazy=True)
    joined = dynamics.History.concatenate([lazy.select(0, 3), lazy.select(2)])
    assert_identical(without_steps(joined), without_steps(whole))


def bad_parts():
    path = np.arange(12.0).reshape(6, 2)
    whole = dynamics.History.from_arrays(path)
    losses = dynamics.History.from_arrays(path, losses=path[:, 0])
    ended = dynamics.History.from_arrays(np.array([[0.0], [1.0], [np.nan]]))
    narrow = dynamics.History.from_arrays(path[:, :1])
    cut = whole.select
    return {
        "nothing": ([], "at least one history, but is empty"),
        "a gap": (
            [cut(0, 2), cut(2)],
            r"parts\[1\].* at step 1, but .* there is a gap",
        ),
        "an overlap": ([cut(0, 4), cut(2)], r"at step 2: they overlap. Cut with"),
        "other names": ([cut(0, 3), losses.select(2)], r"same records .*\['loss'\]"),
        "other shapes": ([cut(0, 3), narrow.select(2)], r"differ: .*\['params'\]"),
        "divergence": ([ended, cut(1)], "but diverged at step 1"),
    }


@pytest.mark.parametrize("case", bad_parts())
def test_parts_that_do_not_fit(case, user_land):
    parts, message = bad_parts()[case]
    with pytest.raises(ValueError, match=message):
        dynamics.History.concatenate(parts)


def test_everything_as_numpy_arrays(folder, whole):
    flat = dynamics.load(folder, lazy=True).to_numpy()
    assert all(type(a) is np.ndarray for a in flat.values())
    names = {"steps", "records/params", "records/nested/a/0", "records/nested/a/1"}
    assert set(flat) == names | {"trace/loss", "trace/step_length"}
    np.testing.assert_array_equal(flat["trace/loss"], whole.trace["loss"])
    assert_identical(flat, whole.to_numpy())


def test_runs_of_a_population_are_axis_1():
    """Two runs side by side are cut and joined as each of them."""
    history = train()
    pair = jax.tree.map(
        lambda a: np.stack([a, -a], 1), (history.records, history.trace)
    )
    ends = {"diverged_at": np.array([-1, 5]), "stopped_at": np.array([4, -1])}
    both = history._replace(records=pair[0], trace=pair[1], **ends)
    parts = both.select(0, 3), both.select(2)
    assert parts[0].trace["loss"].shape == (4, 2)
    assert parts[0].records["params"].shape == (3, 2, 3)
    assert parts[0].diverged_at.tolist() == [-1, -1]
    assert both.select(0, 4).diverged_at.tolist() == [-1, 5]
    assert both.select(0, 4).stopped_at.tolist() == [4, -1]
    assert_identical(dynamics.History.concatenate(parts), both)
    diverged = parts[0]._replace(diverged_at=np.array([2, -1]))
    joined = dynamics.History.concatenate([diverged, parts[1]])
    assert joined.diverged_at.tolist() == [2, 5]


def test_a_trained_population_is_read_and_cut_as_a_run(tmp_path):
    starts = dynamics.init_population(OPTIMIZER, jnp.stack([START, 2 * START]))
    history = dynamics.train_population(
        OBJECTIVE,
        starts,
        OPTIMIZER,
        (X, jnp.sin(X.sum(1))),
        num_steps=8,
        batch_size=3,
        keys=jax.random.split(KEY, 2),
        record={"path": dynamics.sketch(dim=8)},
        record_every=2,
        store=tmp_path / "runs",
        progress=False,
    )
    lazy = dynamics.load(tmp_path / "runs", lazy=True)
    assert lazy.records["path"].shape == (5, 2, 8)
    assert_identical(jax.tree.map(np.asarray, lazy.records), history.records)
    assert_identical(jax.tree.map(np.asarray, lazy.trace), history.trace)
    np.testing.assert_array_equal(lazy.trace["loss"][5, 1], history.trace["loss"][5, 1])
    parts = [history.select(0, 3), lazy.select(2)]
    joined = dynamics.History.concatenate(parts)
    assert_identical(joined.records, history.records)
    assert_identical(joined.trace, history.trace)
    assert joined.stopped_at.tolist() == [-1, -1]
