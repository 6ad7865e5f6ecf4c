"""Iterates of other frameworks: arrays, pytrees, tensors, folders of checkpoints."""

import re
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtheory import dynamics
from jaxtheory.dynamics import _checkpoints, _import

PATH = np.cumsum(np.random.default_rng(0).normal(size=(6, 8)), axis=0)
SKETCH = {"path": dynamics.sketch(dim=4)}


def from_arrays(*args, **options):
    return dynamics.History.from_arrays(*args, **options)


def from_folder(*args, **options):
    return dynamics.History.from_folder(*args, **options)


def lengths(path):
    return np.sqrt((np.diff(path, axis=0) ** 2).sum(1))


def test_a_matrix_of_iterates():
    losses = np.arange(6.0)
    history = from_arrays(PATH, losses=losses)
    assert history.steps.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(history.records["params"], PATH)
    np.testing.assert_allclose(history.trace["step_length"], lengths(PATH), rtol=1e-14)
    np.testing.assert_array_equal(history.records["since_previous"][0], 0)
    np.testing.assert_array_equal(history.records["loss"], losses)
    np.testing.assert_array_equal(history.trace["loss"], losses[:-1])
    assert history.diverged_at is None
    np.testing.assert_array_equal(history.state.initial_params, PATH[0])
    np.testing.assert_array_equal(history.state.params, PATH[-1])
    assert int(history.state.step) == 5


def as_trees(path):
    return [{"w": row[:6].reshape(2, 3), "b": [row[6:]]} for row in path]


def test_pytrees_are_the_matrix_of_their_leaves():
    trees = as_trees(PATH.astype(np.float32))
    # Leaves of a dict are in the order of its keys: b before w.
    matrix = np.concatenate([PATH[:, 6:], PATH[:, :6]], axis=1).astype(np.float32)
    whole = from_arrays(iter(trees), steps=[0, 2, 3, 7, 8, 9])
    assert whole.steps.tolist() == [0, 2, 3, 7, 8, 9]
    assert whole.records["params"]["w"].shape == (6, 2, 3)
    assert whole.trace == {}
    sketched = from_arrays(trees, record=SKETCH)
    other = from_arrays(matrix, record=SKETCH)
    np.testing.assert_array_equal(sketched.records["path"], other.records["path"])
    distances = sketched.records["since_previous"], whole.records["since_previous"]
    np.testing.assert_array_equal(*distances)
    np.testing.assert_allclose(distances[0][1:], lengths(PATH), rtol=1e-6)


def test_measurements_get_step_parameters_and_start():
    record = {
        "step": lambda s: s.step,
        "moved": lambda s: s.params - s.initial_params,
        "norm": dynamics.projections(np.eye(8)),
    }
    start = np.ones(8)
    history = from_arrays(PATH, steps=np.arange(3, 9), initial=start, record=record)
    assert history.records["step"].tolist() == [3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(history.records["moved"], PATH - 1, rtol=1e-12)
    np.testing.assert_allclose(history.records["norm"], PATH - 1, rtol=1e-6)


def test_double_precision_is_measured_in_double():
    """Late in training a step is a small part of a weight."""
    path = 1e6 + 1e-6 * PATH
    history = from_arrays(path, record={"path": dynamics.sketch(dim=1024, kind="srht")})
    exact = lengths(path)
    np.testing.assert_allclose(history.trace["step_length"], exact, rtol=1e-12)
    rough = lengths(history.records["path"].astype(float))
    np.testing.assert_allclose(rough, exact, rtol=1e-5)
    assert jnp.ones(1).dtype == jnp.float32


def test_iterates_are_compiled_for_once():
    traces = []
    record = {"first": lambda s: traces.append(0) or s.params[:1]}
    from_arrays(PATH.astype(np.float32), record=record)
    from_arrays(1 + PATH.astype(np.float32), record=record)
    assert len(traces) == 1


class Tensor:
    """Like a tensor of PyTorch that needs a gradient."""

    def __init__(self, values, dtype="torch.float32", detached=False):
        self.values, self.dtype, self.detached = values, dtype, detached
        self.shape = values.shape

    def __iter__(self):
        return iter(map(Tensor, self.values))

    def detach(self):
        return Tensor(self.values, self.dtype, True)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values, "torch.float32", True)

    def __array__(self, dtype=None, copy=None):
        if not self.detached or self.dtype == "torch.bfloat16":
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.array(self.values, dtype)


def test_tensors_of_pytorch():
    rows = PATH.astype(np.float32)
    tensors = [{"weight": Tensor(row)} for row in rows]
    history = from_arrays(tensors, record=None)
    np.testing.assert_array_equal(history.records["params"]["weight"], rows)
    np.testing.assert_array_equal(from_arrays(Tensor(rows)).records["params"], rows)
    half = [Tensor(row, "torch.bfloat16") for row in np.eye(3, dtype=np.float32)]
    assert from_arrays(half).records["params"].dtype == jnp.bfloat16


def test_iterates_that_are_changed_in_place():
    def training():
        model = {"w": PATH[0].copy()}
        for row in PATH:
            model["w"][:] = row
            yield model

    for record in (None, {"params": lambda state: state.params}):
        history = from_arrays(training(), record=record)
        np.testing.assert_allclose(history.records["params"]["w"], PATH, rtol=1e-6)
        steps = history.records["since_previous"][1:]
        np.testing.assert_allclose(steps, lengths(PATH), rtol=1e-14)


def test_steps_that_are_no_numbers_of_training():
    steps = np.arange(6) * 2**31
    assert from_arrays(PATH, steps=steps).steps.tolist() == steps.tolist()
    with pytest.raises(ValueError, match=r"32 bits .* one is 2147483648"):
        from_arrays(PATH, steps=steps, record=SKETCH)


def test_a_path_that_diverges_is_cut_and_says_where():
    path = PATH.copy()
    path[4, 2] = np.nan
    history = from_arrays(path, steps=np.arange(10, 16), losses=np.arange(6.0))
    assert history.steps.tolist() == [10, 11, 12, 13]
    assert history.diverged_at == 13
    expected = [*lengths(PATH)[:3], np.nan]
    np.testing.assert_allclose(history.trace["step_length"], expected, rtol=1e-14)
    np.testing.assert_array_equal(history.trace["loss"], [0, 1, 2, np.nan])
    assert np.isfinite(history.state.params).all()


BAD = {
    "a vector": ((np.ones(3),), {}, r"matrix \[r, p\].* has shape \(3,\)"),
    "no parameters": ((np.ones((3, 0)),), {}, r"has shape \(3, 0\)"),
    "a dict": (({"w": PATH},), {}, "iterable of pytrees, one each iterate, but is a d"),
    "nothing": (([],), {}, "`iterates` must hold at least one iterate, but is empty"),
    "no arrays": (([{}],), {}, "numbers in them"),
    "integers": (([{"w": np.arange(3)}],), {}, r"`params\['w'\]` has dtype int64"),
    "no start": ((np.full((2, 1), np.inf),), {}, "begin with a finite iterate"),
    "another shape": (
        ([{"w": np.ones(3)}, {"w": np.ones(2)}],),
        {},
        r"`iterates at step 1` .* \['w'\] is float64\[2\], not float64\[3\]",
    ),
    "another name": (
        ([{"w": np.ones(3)}, {"v": np.ones(3)}],),
        {},
        r"\['v'\] is float64\[3\], not expected; \['w'\] is missing, not float64\[3\]",
    ),
    "another start": ((PATH,), {"initial": np.ones(3)}, r"`initial` must have the arr"),
    "few steps": ((PATH,), {"steps": [0, 1]}, "2 steps and more iterates"),
    "many steps": ((PATH,), {"steps": range(9)}, "9 steps and 6 iterates"),
    "equal steps": ((PATH,), {"steps": [0, 1, 1, 2, 3, 4]}, "`steps` must increase"),
    "falling steps": (
        (PATH,),
        {"steps": np.arange(6, dtype="u8")[::-1]},
        "`steps` must increase",
    ),
    "a start at infinity": (
        (PATH,),
        {"initial": np.full(8, np.inf)},
        "`initial` must be finite",
    ),
    "words for losses": ((PATH,), {"losses": ["low"] * 6}, "`losses` must be numbers"),
    "real steps": ((PATH,), {"steps": PATH[:, 0]}, "one whole number for each"),
    "few losses": ((PATH,), {"losses": [1.0]}, r"6 iterates, but has shape \(1,\)"),
    "many losses": ((PATH,), {"losses": PATH}, r"6 iterates, but has shape \(6, 8\)"),
    "no names": ((PATH,), {"record": {}}, r"`record` must map names .* but is \{\}"),
    "a sketch": ((PATH,), {"record": dynamics.sketch()}, "must map names to measurem"),
    "no function": ((PATH,), {"record": {"a": 3}}, r"`record\['a'\]` must be a func"),
    "a taken name": ((PATH,), {"record": {"loss": len}}, "not use the name 'loss'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_iterates(case, user_land):
    args, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        from_arrays(*args, **options)


def arrays(row):
    """A checkpoint as other frameworks write it, with a counter beside it."""
    return {
        "layer.weight": row[:6].reshape(2, 3).copy(),
        "layer.bias": row[6:].copy(),
        "norm.num_batches_tracked": np.array(3),
    }


def write(folder, name, content):
    folder.mkdir(exist_ok=True, parents=True)
    if name.endswith(".npz"):
        np.savez(folder / name, **content)
    else:
        save_file(content, folder / name)


@pytest.fixture
def rows():
    return PATH.astype(np.float32)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_folder_in_the_order_of_steps(kind, rows, tmp_path):
    """Step 10 comes after step 2; what is no checkpoint stays out."""
    steps = [0, 1, 2, 10, 11, 100]
    for step, row in zip(steps, rows, strict=True):
        write(tmp_path, f"model-v2-step{step}.{kind}", arrays(row))
    (tmp_path / "notes.txt").write_text("5")
    history = from_folder(tmp_path)
    assert history.steps.tolist() == steps
    params = history.records["params"]
    assert set(params) == {"layer.weight", "layer.bias"}
    np.testing.assert_array_equal(params["layer.bias"], rows[:, 6:])
    distances = history.records["since_previous"][1:]
    np.testing.assert_allclose(distances, lengths(rows.astype(float)), rtol=1e-12)
    some = from_folder(tmp_path, select=lambda name: name.endswith("bias"))
    assert set(some.records["params"]) == {"layer.bias"}


def test_a_folder_is_sketched_while_it_is_read(rows, tmp_path, monkeypatch):
    """At no time are there more than two checkpoints."""
    for step, row in enumerate(rows):
        write(tmp_path, f"{step:04d}.safetensors", arrays(row))
    alive = []
    read = _checkpoints.read_checkpoint

    def spy(path, select):
        found = read(path, select)
        alive.append(path.name)
        weakref.finalize(found["layer.bias"], alive.remove, path.name)
        # The first is the start of all displacements.
        assert len(alive) <= 3
        return found

    monkeypatch.setattr(_import, "read_checkpoint", spy)
    history = from_folder(tmp_path, record=SKETCH)
    matrix = np.concatenate([rows[:, 6:], rows[:, :6]], axis=1)
    expected = from_arrays(matrix, record=SKETCH)
    np.testing.assert_array_equal(history.records["path"], expected.records["path"])
    np.testing.assert_allclose(
        history.trace["step_length"], expected.trace["step_length"], rtol=1e-12
    )


def test_half_precision_checkpoints(tmp_path):
    values = np.asarray(jnp.array([[1.0, 1.0], [1.0078125, 1.0]], jnp.bfloat16))
    for step in range(2):
        write(tmp_path, f"{step}.safetensors", {"w": values[step]})
    history = from_folder(tmp_path, record=SKETCH)
    assert history.trace["step_length"].tolist() == [0.0078125]
    assert from_folder(tmp_path).records["params"]["w"].dtype == jnp.bfloat16
    np.savez(tmp_path / "0.npz", w=values[0])
    with pytest.raises(ValueError, match=r"'w' as raw bytes .* npz knows no bfloat16"):
        from_folder(tmp_path, pattern="{step}.npz")


def test_a_pattern_says_where_the_step_stands(rows, tmp_path):
    for step in (5, 10):
        for run in (1, 2):
            folder = tmp_path / f"run{run}" / f"epoch{step // 5}"
            write(folder, f"step_{step}.npz", arrays(rows[run]))
    write(tmp_path / "run1" / "epoch2", "step_final.npz", arrays(rows[3]))
    history = from_folder(tmp_path, pattern="run1/epoch*/step_{step}.npz")
    assert history.steps.tolist() == [5, 10]
    np.testing.assert_array_equal(
        history.records["params"]["layer.bias"][0], rows[1, 6:]
    )
    deep = from_folder(tmp_path / "run1", pattern="**/step_{step}.npz")
    assert deep.steps.tolist() == [5, 10]
    only = from_folder(tmp_path, pattern="run2/*/*_1{step}.npz")
    assert only.steps.tolist() == [0]


FOLDERS = {
    "empty": ([], {}, r"no file in .* matches '\*.safetensors'"),
    "both kinds": (["1.npz", "2.safetensors"], {}, "files of both kinds"),
    "two numbers": (["e1_s10.npz", "e2_s20.npz"], {}, "cannot be told. Write `{step}`"),
    "no number": (["a.npz", "b.npz"], {}, "cannot be told"),
    "another name": (["a1.npz", "b2.npz"], {}, r"like 'a1.npz' and 'b2.npz'"),
    "two of a step": (["1.npz", "01.npz"], {}, "'01.npz' and '1.npz' are both of step"),
    "no match": (["1.npz"], {"pattern": "x{step}.npz"}, "no file in"),
    "two places": (["1.npz"], {"pattern": "{step}/{step}.npz"}, "at most once"),
    "another kind": (["1.npz"], {"pattern": "*.pt"}, r"must end with .safetensors or"),
    "nothing selected": (["1.npz"], {"select": lambda _: False}, "that are selected"),
    "only counters": (
        ["1.npz"],
        {"select": lambda n: "num" in n},
        r"but holds \['layer.bias', 'layer.weight', 'norm.num_batches_tracked'\]",
    ),
    "no function": (["1.npz"], {"select": "bias"}, "`select` must be a function"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folders(case, rows, tmp_path, user_land):
    names, options, message = FOLDERS[case]
    for name in names:
        write(tmp_path, name, arrays(rows[0]))
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path, **options)


def test_folders_that_are_no_paths(tmp_path, user_land):
    with pytest.raises(ValueError, match="`folder` must be the path of a folder"):
        from_folder(None)
    with pytest.raises(ValueError, match="`pattern` must be a string such as"):
        from_folder(tmp_path, pattern=3)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_bad_files(kind, rows, tmp_path, user_land):
    for step, row in enumerate(rows[:3]):
        write(tmp_path, f"{step}.{kind}", arrays(row))
    partial = arrays(rows[2])
    partial.pop("layer.bias")
    write(tmp_path, f"2.{kind}", partial)
    with pytest.raises(ValueError, match=r"step 2` .*\['layer.bias'\] is missing"):
        from_folder(tmp_path)
    whole = (tmp_path / f"1.{kind}").read_bytes()
    (tmp_path / f"1.{kind}").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=re.escape(f"1.{kind}' must be readable")):
        from_folder(tmp_path)
    with pytest.raises(ValueError, match="must be a folder, but"):
        from_folder(tmp_path / "elsewhere")
