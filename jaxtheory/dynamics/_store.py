"""A training run on disk: a folder that survives being killed at any moment.

- ``run.json``: what run this is: format (``schema``), settings, names and shapes, and a
  hash of each of its inputs. Settings: ``first_step``; ``record_every``, the period of
  records, or a list of their steps counted from ``first_step``; ``batch_size``;
  ``num_examples``; of a population also ``num_runs``.
- ``chunk-%010d.safetensors``: under ``records/`` the record at that step, under
  ``trace/`` the rows of the steps that led to it from the chunk before. The steps of
  the chunks follow from ``record_every`` (`pieces`): with a period each has a record;
  with a list, gaps above 100 steps have chunks of trace alone in between.
- ``state.safetensors``: the latest state, under ``memory/`` what its measurements
  remember, and under ``ended/`` where runs ended (``stopped_at``, ``diverged_at``; -1
  where not); written after its chunk. A chunk beyond it was in flight; it is ignored
  and overwritten.
- ``diverged.safetensors``: the trace from the state's step to the step whose loss or
  update was not finite; its presence says that the run is over. Populations go on, and
  have none.

A population has the same files. A record has runs on axis 0, a trace has steps on axis
0 and runs on axis 1, and all steps in names and metadata are counted by the run that
begins earliest.

Each file is written under a temporary name and then renamed, so it is complete or
absent. Arrays are named by their key paths joined with ``/``. The metadata of each has
under ``jaxtheory`` a JSON object with ``schema`` and ``step``.

Format 1 has no lists, populations or ``ended/``; it is read, and continued as it is.
"""

import hashlib
import json
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtheory._types import TrainState
from jaxtheory.dynamics import _files, _lazy
from jaxtheory.dynamics._history import History
from jaxtheory.dynamics._schedule import pieces

_READABLE = (1, 2)
_RUN = "run.json"
_STATE = "state.safetensors"
_DIVERGED = "diverged.safetensors"
_ENDS = ("ended/stopped_at", "ended/diverged_at")
_WRITTEN = (_STATE, _DIVERGED, "chunk-*.safetensors")


class Chunk(NamedTuple):
    """What one chunk of training recorded; host arrays but for the state.

    Attributes:
        step: The step at its end; for a chunk that diverged, the step that did.
        state: The state at its end (before it, if it diverged). Older chunks of a run
            have None.
        records: The record at its end; None if there is none, or if it diverged.
        trace: The trace of its steps; None for the record that a run begins with.
        memory: What the stateful measurements remember after the last record, by name;
            as `state`, None in older chunks.
        ended: Where runs ended until then: ``stopped_at`` and, of a population,
            ``diverged_at``, an array each, -1 where they did not. Empty for one run
            without a condition to stop.
        diverged: Whether the run ended in it (of a population, see `ended`).
    """

    step: int
    state: Any
    records: PyTree
    trace: PyTree
    memory: Any
    ended: Any = types.MappingProxyType({})
    diverged: bool = False

    @property
    def is_over(self) -> bool:
        """Whether no run goes on after it."""
        flags = [np.asarray(flag) >= 0 for flag in self.ended.values()]
        return self.diverged or bool(flags and np.all(np.any(flags, axis=0)))


class _Latest(NamedTuple):
    """What the file of the latest state holds: a `TrainState` and what goes with it."""

    step: Any
    params: PyTree
    opt_state: PyTree
    model_state: PyTree
    initial_params: PyTree
    memory: PyTree
    ended: PyTree


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
            _write_identity(folder, identity)
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
    there = _read_identity(folder)
    _check_same(folder, there, identity)
    if _length(identity) > _length(there):
        there = there | {"settings": identity["settings"]}
        _write_identity(folder, there)
    for leftover in _matching(folder, [f"{name}.tmp" for name in _WRITTEN]):
        leftover.unlink()
    return _read_run(folder, there["settings"], shapes)


def write(store: str | os.PathLike, chunk: Chunk) -> None:
    """Write a chunk, then the state that it led to."""
    folder = Path(store)
    if chunk.diverged:
        _files.save(folder / _DIVERGED, {"trace": chunk.trace}, chunk.step)
        return
    content = {"records": chunk.records, "trace": chunk.trace}
    _files.save(folder / _chunk_name(chunk.step), content, chunk.step)
    # The caller brings the initial parameters along, and their hash is in `run.json`.
    state = chunk.state._replace(initial_params=())._asdict()
    latest = _Latest(**state, memory=chunk.memory, ended=dict(chunk.ended))
    _files.save(folder / _STATE, latest, chunk.step)


def load(store: str | os.PathLike, *, lazy: bool = False) -> History:
    """Read the history in a store, of a finished or an unfinished run.

    Needs neither the functions nor the data of the run, so the state, whose structure
    only they know, is not read: `train` with ``resume=True`` returns it.

    Args:
        store: The folder.
        lazy: Leave records and trace on disk: the arrays have a shape and a dtype,
            ``array[i]`` reads one row of one file and ``np.asarray(array)`` everything.
            A damaged file is found when it is read.

    Returns:
        The history with ``state=None``; records and trace are nested dictionaries of
        NumPy arrays (with `lazy`, of arrays on disk), by key path.

    Raises:
        ValueError: There is no run or no record in the folder, it is of another format,
            or a file is damaged.

    Memory:
        All records and the trace; with `lazy`, what is asked for.

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
    ends = _lazy.tensors(folder / _STATE, ("step", *_ENDS))
    _files.get(ends, "step", folder / _STATE)
    last_step = _files.step_of(folder / _STATE)
    read, stack, concatenate = _files.read, np.stack, np.concatenate
    if lazy:
        read, stack, concatenate = _lazy.Unread, _lazy.stack, _lazy.concatenate
    steps = _chunk_steps(settings, last_step)
    files = [read(folder / _chunk_name(step), step) for step, _ in steps]
    recorded = [
        file for file, (_, is_record) in zip(files, steps, strict=True) if is_record
    ]
    records = _nest("records", recorded, stack)
    stopped_at, diverged_at = map(ends.get, _ENDS)
    if stopped_at is not None and not stopped_at.ndim:
        stopped_at = int(stopped_at) if stopped_at >= 0 else None
    if (folder / _DIVERGED).exists():
        files.append(read(folder / _DIVERGED, None))
        num_rows = len(_files.get(files[-1], "trace/loss", folder / _DIVERGED))
        diverged_at = last_step + num_rows - 1
    trace = _nest("trace", files[1:], concatenate)
    return History(
        None,  # pyright: ignore[reportArgumentType]
        np.array([step for step, is_record in steps if is_record]),
        records,
        trace,
        diverged_at,
        stopped_at=stopped_at,
    )


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
    state, memory, ended = _read_state(folder / _STATE, shapes)
    last_step, before = _files.step_of(folder / _STATE), settings["first_step"]
    chunks = []
    for step, recorded in _chunk_steps(settings, last_step):
        path = folder / _chunk_name(step)
        records = shapes.records if recorded else None
        trace = _rows(shapes.trace, step - before) if chunks else None
        content = _files.restore(path, {"records": records, "trace": trace}, step)
        chunks.append(Chunk(step, None, content["records"], content["trace"], None))
        before = step
    chunks[-1] = chunks[-1]._replace(state=state, memory=memory, ended=ended)
    if (folder / _DIVERGED).exists():
        tensors = _files.read(folder / _DIVERGED)
        num_rows = len(_files.get(tensors, "trace/loss", folder / _DIVERGED))
        rows = {"trace": _rows(shapes.trace, num_rows)}
        trace = _files.restore(folder / _DIVERGED, rows)["trace"]
        last = last_step + num_rows - 1
        chunks.append(Chunk(last, state, None, trace, memory, ended, diverged=True))
    return chunks


def _chunk_steps(settings, last_step):
    """The step of each chunk up to the latest state, and whether it has a record."""
    first, schedule = settings["first_step"], settings["record_every"]
    ahead = last_step - first
    parts = [piece for piece in pieces(schedule, ahead) if piece.end <= ahead]
    return [(first, True), *((first + part.end, part.recorded) for part in parts)]


def _rows(trace, num_rows):
    """Shapes of the trace of so many steps."""
    shape = lambda leaf: jax.ShapeDtypeStruct((num_rows, *leaf.shape[1:]), leaf.dtype)
    return jax.tree.map(shape, trace)


def _read_state(path, shapes):
    """State, memories and ends in a file, each array where its counterpart would be.

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
    wanted = _Latest(
        **template._asdict(), memory=shapes.memory, ended=dict(shapes.ended)
    )
    *held, memory, ended = _files.restore(path, wanted)
    memory = jax.tree.map(lambda array: put(array, like.step), memory)
    state = jax.tree.map(place, TrainState(*held), template)
    return state._replace(initial_params=like.initial_params), memory, ended


def _identity(settings, inputs, shapes):
    """What `run.json` says."""
    recorded = {
        "records": shapes.records,
        "trace": shapes.trace,
        "memory": shapes.memory,
        "ended": dict(shapes.ended),
    }
    return {
        "schema": _files.SCHEMA,
        # As it is read back: lists, no tuples.
        "settings": json.loads(json.dumps(dict(settings))),
        "shapes": {
            name: _files.describe(leaf)
            for name, leaf in _files.flatten(recorded).items()
        },
        "inputs": {name: _fingerprint(tree) for name, tree in inputs.items()},
    }


def _fingerprint(tree: PyTree) -> str:
    """SHA-256 of names, types, shapes and values of all arrays."""
    hasher = hashlib.sha256()
    for name, leaf in _files.flatten(tree).items():
        hasher.update(f"{name}:{_files.describe(leaf)};".encode())
        hasher.update(np.ravel(_files.host(leaf)).view(np.uint8).data)
    return hasher.hexdigest()


def _check_same(folder, there, here):
    """Raise, saying what differs, unless two identities are the same."""
    differences = [
        f"{name} ({there[part].get(name)} there, {here[part].get(name)} here)"
        for part in ("settings", "shapes")
        for name in sorted({*there[part], *here[part]})
        if not _agree(name, there[part].get(name), here[part].get(name))
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


def _agree(name, there, here):
    """Whether two descriptions do; a schedule may go on where the other one ends."""
    lists = isinstance(there, list) and isinstance(here, list)
    if name == "record_every" and lists:
        return all(a == b for a, b in zip(there, here, strict=False))
    return there == here


def _length(identity):
    """The number of steps in a schedule; 0 for a period, which has no end."""
    schedule = identity["settings"]["record_every"]
    return len(schedule) if isinstance(schedule, list) else 0


def _check_storable(shapes: Chunk) -> None:
    """Raise unless every array has a name of its own and a type that files can hold."""
    latest = _Latest(
        **shapes.state._asdict(), memory=shapes.memory, ended=dict(shapes.ended)
    )
    for tree in (shapes.records, shapes.trace, latest):
        flat = _files.flatten(tree)
        above = {name[:i] for name in flat for i, c in enumerate(name) if c == "/"}
        if len(flat) != len(jax.tree.leaves(tree)) or above & flat.keys():
            raise ValueError(
                "`store` needs a path of its own for each array, but joined with '/' "
                f"two are the same or one is above another: {sorted(flat)}. Rename one."
            )
        for name, leaf in flat.items():
            dtype = _files.host_shape(leaf).dtype
            if dtype.name not in _files.DTYPES:
                raise ValueError(
                    f"`store` cannot hold {name!r} of dtype {dtype}: cast it, in a "
                    f"measurement for example, to one of {_files.DTYPES}."
                )


def _chunk_name(step: int) -> str:
    return f"chunk-{step:010d}.safetensors"


def _write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    text = json.dumps(identity)
    _files.replace(folder / _RUN, lambda path: path.write_text(text))


def _read_identity(folder: Path) -> dict[str, Any]:
    """What `run.json` says, checked to be of this format."""
    path = folder / _RUN
    try:
        identity = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise _files.damaged(path, error) from error
    if not isinstance(identity, dict) or "schema" not in identity:
        raise _files.damaged(path, "it describes no run")
    if identity["schema"] not in _READABLE:
        raise ValueError(
            f"`store` {str(folder)!r} has format {identity['schema']!r}, but this "
            f"version reads the formats {_READABLE}. Pass another folder."
        )
    parts = ("settings", "shapes", "inputs")
    whole = all(isinstance(identity.get(part), dict) for part in parts)
    if not whole or not {"first_step", "record_every"} <= identity["settings"].keys():
        raise _files.damaged(path, "it does not describe its run")
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
            raise _files.damaged(folder / _STATE, f"while {path.name!r} is there")
    return False
