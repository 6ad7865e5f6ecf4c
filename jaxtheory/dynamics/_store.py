"""A training run on disk: a folder that survives being killed at any moment.

- ``run.json``: what run this is: settings, names, and a hash of each of its inputs.
- ``chunk-%010d.safetensors``: the record at that step and the trace of the steps that
  led to it.
- ``state.safetensors``: the latest state, and under ``memory/`` what its measurements
  remember; written after its chunk. A chunk beyond the state's step was in flight; it
  is ignored and overwritten.
- ``diverged.safetensors``: the trace from the state's step to the step whose loss or
  update was not finite; its presence says that the run is over.

Each file is written under a temporary name and then renamed, so it is complete or
absent. Arrays are named by their key paths joined with ``/``.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxtheory._types import TrainState
from jaxtheory.dynamics._history import History

_SCHEMA = 1
_RUN = "run.json"
_STATE = "state.safetensors"
_DIVERGED = "diverged.safetensors"
_WRITTEN = (_STATE, _DIVERGED, "chunk-*.safetensors")
_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_DTYPES += ("uint64", "float16", "bfloat16", "float32", "float64", "complex64")


class Chunk(NamedTuple):
    """What one chunk of training recorded; host arrays but for the state.

    Attributes:
        step: The step at its end; for a chunk that diverged, the step that did.
        state: The state at its end (before it, if it diverged). Older chunks of a run
            have None.
        records: The record at its end; None if it diverged.
        trace: The trace of its steps; None for the record that a run begins with.
        memory: What the stateful measurements remember after the last record, by name;
            as `state`, None in older chunks.
    """

    step: int
    state: Any
    records: PyTree
    trace: PyTree
    memory: Any


class _Latest(NamedTuple):
    """What the file of the latest state holds: a `TrainState` and the memories."""

    step: Any
    params: PyTree
    opt_state: PyTree
    model_state: PyTree
    initial_params: PyTree
    memory: PyTree


def begin(
    store: str | os.PathLike,
    settings: Mapping[str, Any],
    inputs: Mapping[str, PyTree],
    shapes: Chunk,
    *,
    resume: bool,
) -> list[Chunk]:
    """Make the folder ready for a run and return what it holds of it already.

    Args:
        store: The folder.
        settings: Numbers that tell runs apart; must contain ``first_step`` and
            ``record_every``.
        inputs: Named pytrees of arrays that tell runs apart.
        shapes: Shapes of one chunk, and the state the run starts from.
        resume: Whether a run may be there.

    Returns:
        Recorded chunks in order; empty when there is nothing.

    Raises:
        ValueError: The folder holds a run and `resume` is False; it holds another run;
            it cannot be written; a file is missing or damaged; an array has a dtype
            that cannot be stored.
    """
    folder = Path(store)
    _check_storable(shapes)
    identity = _identity(settings, inputs, shapes)
    try:
        if not (folder / _RUN).exists():
            _check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / _RUN, lambda path: path.write_text(json.dumps(identity)))
            return []
    except OSError as error:
        raise ValueError(
            f"`store` must be a folder that can be written, but {str(folder)!r} is not "
            f"({error}). Pass another folder."
        ) from error
    if not resume:
        raise ValueError(
            f"`store` must be a folder without a run, but {str(folder)!r} holds one. "
            "Continue it with `resume=True`, or pass another folder."
        )
    _check_same(folder, _read_identity(folder), identity)
    for leftover in _matching(folder, [f"{name}.tmp" for name in _WRITTEN]):
        leftover.unlink()
    return _read_run(folder, identity["settings"], shapes)


def write(store: str | os.PathLike, chunk: Chunk) -> None:
    """Write a chunk, then the state that it led to."""
    folder = Path(store)
    if chunk.records is None:
        _save(folder / _DIVERGED, {"trace": chunk.trace}, chunk.step)
        return
    content = {"records": chunk.records, "trace": chunk.trace}
    _save(folder / _chunk_name(chunk.step), content, chunk.step)
    # The caller brings the initial parameters along, and their hash is in `run.json`.
    state = chunk.state._replace(initial_params=())
    _save(folder / _STATE, _Latest(**state._asdict(), memory=chunk.memory), chunk.step)


def load(store: str | os.PathLike) -> History:
    """Read the history in a store, of a finished or an unfinished run.

    Needs neither the functions nor the data of the run, so the state, whose structure
    only they know, is not read: `train` with ``resume=True`` returns it.

    Args:
        store: The folder.

    Returns:
        The history with ``state=None``; records and trace are nested dictionaries of
        NumPy arrays, by key path.

    Raises:
        ValueError: There is no run or no record in the folder, or a file is damaged.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> objective = lambda w, model_state, x, key: (jnp.mean(w * x), model_state)
        >>> optimizer = optax.sgd(0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = dynamics.train(
        ...         objective,
        ...         dynamics.init(optimizer, jnp.ones(())),
        ...         optimizer,
        ...         jnp.ones(3),
        ...         num_steps=2,
        ...         key=jax.random.key(0),
        ...         store=folder,
        ...         record={"w": lambda s: {"value": s.params}},
        ...         progress=False,
        ...     )
        ...     history = dynamics.load(folder)
        >>> history.steps.tolist(), history.records["w"]["value"].shape
        ([0, 2], (2,))
    """
    folder = Path(store)
    settings = _read_identity(folder)["settings"]
    if not _has_begun(folder, settings["first_step"]):
        raise ValueError(
            f"`store` must hold a run with a record, but the one in {str(folder)!r} "
            "was stopped before its first. Continue it with `train(resume=True)`."
        )
    last_step = int(_get(_read(folder / _STATE), "step", folder / _STATE))
    steps = range(settings["first_step"], last_step + 1, settings["record_every"])
    files = [_read(folder / _chunk_name(step), step) for step in steps]
    records = _nest("records", files, np.stack)
    diverged_at = None
    if (folder / _DIVERGED).exists():
        files.append(_read(folder / _DIVERGED))
        num_rows = len(_get(files[-1], "trace/loss", folder / _DIVERGED))
        diverged_at = last_step + num_rows - 1
    trace = _nest("trace", files[1:], np.concatenate)
    return History(None, np.array(steps), records, trace, diverged_at)  # pyright: ignore[reportArgumentType]


def _nest(prefix, files, join):
    """Join the arrays under `prefix` over files, as nested dictionaries."""
    tree = {}
    for name in files[0] if files else ():
        first, *path, last = name.split("/")
        if first != prefix:
            continue
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = join([file[name] for file in files])
    return tree


def _read_run(folder, settings, shapes):
    """All chunks up to the latest state, checked against the shapes expected."""
    if not _has_begun(folder, settings["first_step"]):
        return []
    state, memory = _read_state(folder / _STATE, shapes)
    first_step, every = settings["first_step"], settings["record_every"]
    chunks = []
    for step in range(first_step, int(state.step) + 1, every):
        path = folder / _chunk_name(step)
        trace = None if step == first_step else shapes.trace
        content = _restore(path, {"records": shapes.records, "trace": trace}, step)
        chunks.append(Chunk(step, None, content["records"], content["trace"], None))
    chunks[-1] = chunks[-1]._replace(state=state, memory=memory)
    if (folder / _DIVERGED).exists():
        tensors = _read(folder / _DIVERGED)
        num_rows = len(_get(tensors, "trace/loss", folder / _DIVERGED))
        rows = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((num_rows, *s.shape[1:]), s.dtype),
            shapes.trace,
        )
        trace = _restore(folder / _DIVERGED, {"trace": rows})["trace"]
        last = int(state.step) + num_rows - 1
        chunks.append(Chunk(last, state, None, trace, memory))
    return chunks


def _read_state(path, shapes):
    """State and memories in a file, each array where its counterpart would be.

    Of the memories there are only shapes: they belong where the state's step is.
    """
    # What is bound to no device stays so, and mixes with data on any mesh.
    put = lambda array, like: jax.device_put(
        array, like.sharding if like.committed else None
    )

    def place(array, like):
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return put(array, like)

    like = shapes.state
    template = like._replace(initial_params=())
    *held, memory = _restore(path, _Latest(**template._asdict(), memory=shapes.memory))
    memory = jax.tree.map(lambda array: put(array, like.step), memory)
    state = jax.tree.map(place, TrainState(*held), template)
    return state._replace(initial_params=like.initial_params), memory


def _identity(settings, inputs, shapes):
    """What `run.json` says."""
    recorded = {
        "records": shapes.records,
        "trace": shapes.trace,
        "memory": shapes.memory,
    }
    return {
        "schema": _SCHEMA,
        "settings": dict(settings),
        "shapes": {name: _describe(leaf) for name, leaf in _flatten(recorded).items()},
        "inputs": {name: _fingerprint(tree) for name, tree in inputs.items()},
    }


def _fingerprint(tree: PyTree) -> str:
    """SHA-256 of names, types, shapes and values of all arrays."""
    hasher = hashlib.sha256()
    for name, leaf in _flatten(tree).items():
        hasher.update(f"{name}:{_describe(leaf)};".encode())
        hasher.update(np.ravel(_host(leaf)).view(np.uint8).data)
    return hasher.hexdigest()


def _check_same(folder, there, here):
    """Raise, saying what differs, unless two identities are the same."""
    differences = [
        f"{name} ({there[part].get(name)} there, {here[part].get(name)} here)"
        for part in ("settings", "shapes")
        for name in sorted({*there[part], *here[part]})
        if there[part].get(name) != here[part].get(name)
    ]
    differences += [
        f"{name} (other values)"
        for name, digest in here["inputs"].items()
        if there["inputs"].get(name) != digest
    ]
    if differences:
        raise ValueError(
            f"`store` must hold the run to be continued, but {str(folder)!r} holds "
            f"another one. What differs: {'; '.join(differences)}. Pass what that run "
            "was started with, or another folder."
        )


def _check_storable(shapes: Chunk) -> None:
    """Raise unless every array has a name of its own and a type that files can hold."""
    latest = _Latest(**shapes.state._asdict(), memory=shapes.memory)
    for tree in (shapes.records, shapes.trace, latest):
        flat = _flatten(tree)
        above = {name[:i] for name in flat for i, c in enumerate(name) if c == "/"}
        if len(flat) != len(jax.tree.leaves(tree)) or above & flat.keys():
            raise ValueError(
                "`store` needs a path of its own for each array, but joined with '/' "
                f"two are the same or one is above another: {sorted(flat)}. Rename one."
            )
        for name, leaf in flat.items():
            dtype = _host_shape(leaf).dtype
            if dtype.name not in _DTYPES:
                raise ValueError(
                    f"`store` cannot hold {name!r} of dtype {dtype}: cast it, in a "
                    f"measurement for example, to one of {_DTYPES}."
                )


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their key paths joined with ``/``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _host(leaf):
    """A contiguous host array; of a random key, its data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    # safetensors 0.8.0 writes strided arrays wrongly, without an error. (And
    # `ascontiguousarray` makes scalars one-dimensional.)
    return np.ascontiguousarray(array).reshape(array.shape)


def _host_shape(leaf):
    """Shape and dtype of what `_host` returns, which for a shape is not there yet."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf


def _describe(leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _chunk_name(step: int) -> str:
    return f"chunk-{step:010d}.safetensors"


def _save(path: Path, tree: PyTree, step: int) -> None:
    """Write a pytree as safetensors."""
    tensors = {name: _host(leaf) for name, leaf in _flatten(tree).items()}
    metadata = {"jaxtheory": json.dumps({"schema": _SCHEMA, "step": step})}
    _replace(path, lambda temporary: save_file(tensors, temporary, metadata))


def _replace(path, write):
    """Write a file under a temporary name and rename it: complete, or not there."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def _restore(path: Path, template: PyTree, step: int | None = None) -> PyTree:
    """The arrays in a file, in the structure, shapes and types of `template`."""
    tensors = _read(path, step)
    for name, leaf in _flatten(template).items():
        expected = _describe(_host_shape(leaf))
        actual = _describe(tensors[name]) if name in tensors else "nothing"
        if expected != actual:
            raise ValueError(
                f"`store` file {str(path)!r} must hold {name!r} as {expected}, but "
                f"holds {actual}. It is of another run: pass another folder."
            )
    leaves = [tensors[name] for name in _flatten(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _read(path: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All arrays in a safetensors file, which must be of `step` if that is given."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    held = json.loads(metadata.get("jaxtheory", "{}")).get("step")
    if step not in (None, held):
        raise _damaged(path, f"it is of step {held}")
    return tensors


def _get(tensors, name, path):
    """One array of a file, or an error that names the file."""
    if name not in tensors:
        raise _damaged(path, f"it holds no {name!r}")
    return tensors[name]


def _read_identity(folder: Path) -> dict[str, Any]:
    """What `run.json` says, checked to be of this format."""
    path = folder / _RUN
    try:
        identity = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise _damaged(path, error) from error
    if not isinstance(identity, dict) or "schema" not in identity:
        raise _damaged(path, "it describes no run")
    if identity["schema"] != _SCHEMA:
        raise ValueError(
            f"`store` {str(folder)!r} has format {identity['schema']!r}, but this "
            f"version reads and writes format {_SCHEMA}. Pass another folder."
        )
    parts = ("settings", "shapes", "inputs")
    whole = all(isinstance(identity.get(part), dict) for part in parts)
    if not whole or not {"first_step", "record_every"} <= identity["settings"].keys():
        raise _damaged(path, "it does not describe its run")
    return identity


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Files in a folder that match one of the patterns."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _check_free(folder: Path) -> None:
    """Raise if a folder without `run.json` holds files that a run would overwrite."""
    for path in _matching(folder, _WRITTEN):
        raise ValueError(
            f"`store` must be a folder without files of a run, but {str(folder)!r} "
            f"holds {path.name!r} and no {_RUN!r}, which would say of what run. Put "
            "that back from a copy, or pass another folder; nothing was touched."
        )


def _has_begun(folder: Path, first_step: int) -> bool:
    """Whether a state was written; raise if one must have been and is gone."""
    if (folder / _STATE).exists():
        return True
    # The first chunk is the only file that is ever written before a state.
    for path in _matching(folder, _WRITTEN):
        if path.name != _chunk_name(first_step):
            raise _damaged(folder / _STATE, f"while {path.name!r} is there")
    return False


def _damaged(path, error):
    return ValueError(
        f"`store` file {str(path)!r} must be readable, but is missing or damaged "
        f"({error}). Put it back from a copy, or start again in another folder."
    )
