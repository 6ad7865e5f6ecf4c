"""Histories of iterates that something else computed: arrays, or a folder of files."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory._types import TrainState
from jaxtheory.dynamics import _measure
from jaxtheory.dynamics._checkpoints import find_checkpoints, read_checkpoint


def from_arrays(
    iterates: Any, steps: Any, losses: Any, initial: Any, record: Any
) -> dict[str, Any]:
    """The fields of `History.from_arrays`, which see."""
    if hasattr(iterates, "shape"):
        iterates = _host(iterates)
        if iterates.ndim != 2 or 0 in iterates.shape:
            raise ValueError(
                "`iterates` must be a matrix [r, p], one iterate a row, or an iterable "
                f"of pytrees, but has shape {iterates.shape}. Flatten each iterate."
            )
    elif isinstance(iterates, Mapping | str) or not isinstance(iterates, Iterable):
        raise ValueError(
            "`iterates` must be a matrix [r, p] or an iterable of pytrees, one each "
            f"iterate, but is a {type(iterates).__name__}."
        )
    states = (jax.tree.map(_kept, iterate) for iterate in iterates)
    if initial is not None:
        initial = jax.tree.map(_kept, initial)
    return _collect(_numbered(states, steps), losses, initial, record, "iterates")


def from_folder(
    folder: str | os.PathLike,
    pattern: str | None,
    select: Callable[[str], bool] | None,
    record: Any,
) -> dict[str, Any]:
    """The fields of `History.from_folder`, which see."""
    if select is not None and not callable(select):
        raise ValueError(
            "`select` must be a function of an array's name, but is a "
            f"{type(select).__name__}. For one: `lambda name: name == ...`."
        )
    if not isinstance(folder, str | os.PathLike):
        raise ValueError(
            f"`folder` must be the path of a folder, but is a {type(folder).__name__}."
        )
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(
            "`pattern` must be a string such as 'step_{step}.npz', or None, but is a "
            f"{type(pattern).__name__}."
        )
    files = find_checkpoints(Path(folder), pattern)
    states = ((step, read_checkpoint(path, select)) for step, path in files)
    return _collect(states, None, None, record, "folder")


def _numbered(states: Iterator[Any], steps: Any) -> Iterator[tuple[int, Any]]:
    """Iterates with their steps."""
    if steps is None:
        yield from enumerate(states)
        return
    steps = np.asarray(steps)
    if steps.ndim != 1 or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(
            "`steps` must be one whole number for each iterate, [r], but has shape "
            f"{steps.shape} and dtype {steps.dtype}."
        )
    # Not by differences, which of unsigned numbers are never negative.
    if (steps[1:] <= steps[:-1]).any():
        raise ValueError("`steps` must increase from iterate to iterate, but do not.")
    count = 0
    for count, state in enumerate(states, 1):
        if count > steps.size:
            break
        yield int(steps[count - 1]), state
    if count != steps.size:
        more = "more" if count > steps.size else count
        raise ValueError(
            f"`steps` must be one for each iterate, but there are {steps.size} steps "
            f"and {more} iterates."
        )


def _collect(states, losses, initial, record, argument) -> dict[str, Any]:
    """Measure iterate after iterate, holding two of them."""
    record = _checked_record(record)
    steps, kept, distances = [], [], []
    previous, diverged_at = None, None
    for step, params in states:
        if previous is None:
            _check_first(params, argument)
            initial = params if initial is None else initial
            _check_like(initial, params, "initial", argument)
            if initial is not params and not _is_finite(initial):
                raise ValueError(
                    "`initial` must be finite, but has numbers that are not."
                )
        else:
            _check_like(params, previous, f"{argument} at step {step}", argument)
        # An overflow is what is looked for.
        with np.errstate(over="ignore", invalid="ignore"):
            distance = 0.0 if previous is None else _distance(params, previous)
        if not np.isfinite(distance) or not _is_finite(params):
            if previous is None:
                raise ValueError(
                    f"`{argument}` must begin with a finite iterate, but the first has "
                    "numbers that are not."
                )
            diverged_at = steps[-1]
            break
        if record is not None and not -(2**31) <= step < 2**31:
            raise ValueError(
                f"the steps of `{argument}` must be numbers of 32 bits to be measured "
                f"at, as `state.step` is one, but one is {step}. Pass `record=None`, "
                "or count in larger units."
            )
        steps.append(step)
        distances.append(distance)
        kept.append(_measured(record, step, params, initial))
        previous = params
    if previous is None:
        raise ValueError(f"`{argument}` must hold at least one iterate, but is empty.")
    join = lambda *rows: np.stack(rows)
    records = jax.tree.map(join, *kept) | {"since_previous": np.array(distances)}
    return _fields(steps, records, losses, diverged_at, previous, initial)


def _fields(steps, records, losses, diverged_at, params, initial):
    """The fields of a history."""
    steps = np.array(steps)
    trace = {"step_length": records["since_previous"][1:]}
    if losses is not None:
        losses = _host(losses)
        is_real = jnp.issubdtype(losses.dtype, jnp.floating)
        if not is_real and not np.issubdtype(losses.dtype, np.integer):
            raise ValueError(f"`losses` must be numbers, but has dtype {losses.dtype}.")
        whole = losses.shape[:1] == steps.shape or diverged_at is not None
        if losses.ndim != 1 or not whole or len(losses) < len(steps):
            raise ValueError(
                f"`losses` must be one for each of the {len(steps)} iterates, but has "
                f"shape {losses.shape}."
            )
        losses = losses[: len(steps)]
        records = records | {"loss": losses}
        trace["loss"] = losses[:-1]
    if len(steps) > 1 and (np.diff(steps) != 1).any():
        trace = {}
    if diverged_at is not None and trace:
        nan = np.array([np.nan])
        trace = {name: np.concatenate([a, nan]) for name, a in trace.items()}
    return {
        "state": TrainState(steps[-1], params, (), (), initial),
        "steps": steps,
        "records": records,
        "trace": trace,
        "diverged_at": diverged_at,
    }


def _measured(record, step, params, initial):
    """What is recorded of one iterate."""
    if record is None:
        return {"params": params}
    leaves = jax.tree.leaves((params, initial))
    double = any(leaf.dtype == np.float64 for leaf in leaves)
    # Differences of double numbers are taken in double, whatever the session's default.
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        state = TrainState(jnp.asarray(step, jnp.int32), params, (), (), initial)
        return jax.device_get(_evaluate(record, jax.tree.map(jnp.asarray, state)))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(record, state):
    return _measure.evaluate("record", record, state)


def _checked_record(record):
    """Named measurements as a static argument; None where there are none."""
    if record is None:
        return None
    if not isinstance(record, Mapping) or not record:
        raise ValueError(
            "`record` must map names to measurements, but is "
            f'{record if record == {} else type(record).__name__}. Pass `{{"path": '
            "sketch()}}`, or None for the iterates themselves."
        )
    for name, measure in record.items():
        if not isinstance(name, str) or not callable(measure):
            raise ValueError(
                f"`record[{name!r}]` must be a function under a name that is a "
                f"string, but is a {type(measure).__name__}. What remembers needs "
                "`train`."
            )
        if name in ("since_previous", "loss"):
            raise ValueError(f"`record` must not use the name {name!r}: it is taken.")
    return tuple(record.items())


def _check_first(params, argument):
    """Raise unless an iterate has floating-point arrays and nothing else."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(leaf.size for _, leaf in leaves):
        raise ValueError(
            f"`{argument}` must hold iterates with numbers in them, but the first has "
            f"structure {jax.tree.structure(params)} and none."
        )
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"`{argument}` must hold floating-point arrays, but in the first "
                f"iterate `params{jax.tree_util.keystr(path)}` has dtype {leaf.dtype}."
            )


def _check_like(tree, like, name, argument):
    """Raise unless two iterates have the same arrays."""
    described = [
        {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(some)
        }
        for some in (tree, like)
    ]
    if described[0] != described[1]:
        parts = [
            f"{path or 'the array'} is {described[0].get(path, 'missing')}, not "
            f"{described[1].get(path, 'expected')}"
            for path in sorted({*described[0], *described[1]})
            if described[0].get(path) != described[1].get(path)
        ]
        raise ValueError(
            f"`{name}` must have the arrays of the other iterates of `{argument}`, "
            f"but {'; '.join(parts[:5])}."
        )


def _host(leaf):
    """A host array of what has the NumPy protocol, PyTorch's tensors included."""
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
        if str(leaf.dtype) == "torch.bfloat16":  # NumPy's protocol knows it not
            return np.asarray(leaf.float()).astype(jnp.bfloat16)
    return np.asarray(leaf)


def _kept(leaf):
    """The same, which later changes in place do not reach: of a model in training."""
    array = _host(leaf)
    return array if isinstance(leaf, jax.Array) else np.array(array)


def _distance(tree, other):
    """Euclidean distance, in double precision."""
    squares = 0.0
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        squares += float(np.sum((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return squares**0.5


def _is_finite(tree):
    return all(
        bool(np.isfinite(leaf.astype(np.float64)).all())
        for leaf in jax.tree.leaves(tree)
    )
