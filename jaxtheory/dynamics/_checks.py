"""Checks of the arguments that `train` and `train_population` share."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtheory._types import StatefulMeasurement, TrainState
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_function,
    check_params,
    num_shards,
)

_ALWAYS_TRACED = ("loss", "step_length")


def check_measurements(
    record: Mapping[str, Any] | None, trace: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The measurements to record and to trace, by name.

    Args:
        record: What training got as `record`.
        trace: What training got as `trace`.

    Returns:
        Both as dictionaries.

    Raises:
        ValueError: One has no name, cannot be called, or cannot be traced.
    """
    record, trace = _named("record", record), _named("trace", trace)
    for name, function in trace.items():
        if isinstance(function, StatefulMeasurement):
            raise ValueError(
                f"`trace[{name!r}]` must be a function of the state alone, but is a "
                "`StatefulMeasurement`: nothing is remembered from step to step. Pass "
                "it to `record`, with `record_every=1` if need be."
            )
    for name in _ALWAYS_TRACED:
        if name in trace:
            raise ValueError(
                f"`trace` must not use the name {name!r}, which is always traced. "
                "Choose another one."
            )
    return record, trace


def check_stop_when(stop_when: Any) -> None:
    """Raise unless `stop_when` is None or a function.

    Args:
        stop_when: What training got.

    Raises:
        ValueError: It is something else.
    """
    if stop_when is not None:
        check_function("stop_when", stop_when)


def check_data(data: PyTree, *batch_sizes: int | None) -> int:
    """The number of examples; raise unless batches of each size can be drawn.

    Args:
        data: What to train on.
        *batch_sizes: Examples per step; None for all.

    Returns:
        The number of examples.

    Raises:
        ValueError: An array has another number of examples, or there are fewer than a
            batch needs.
    """
    num_examples = check_examples(data=data)
    for batch_size in batch_sizes:
        check_batch_size(batch_size)
        if batch_size is None:
            continue
        if batch_size > num_examples:
            raise ValueError(
                "`batch_size` must be at most the number of examples, "
                f"{num_examples}, but was {batch_size}. Pass None for full batches."
            )
        num_shards(data)  # refuses explicit axes, on which no batch can be drawn
    return num_examples


def check_state(state: Any, argument: str, advice: str) -> None:
    """Raise unless a state is a `TrainState` with parameters.

    Args:
        state: What training got.
        argument: What an error message calls it.
        advice: How to make one.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(state, TrainState):
        raise ValueError(
            f"`{argument}` must be a `TrainState`, but is a {type(state).__name__}. "
            f"Make it with {advice}."
        )
    check_params(state.params)


def check_optimizer(expected: PyTree, state: TrainState, argument: str, advice: str):
    """Raise unless the optimizer state is of the optimizer.

    Args:
        expected: What the optimizer's `init` returns for the parameters, or its shapes.
        state: What training got.
        argument: What an error message calls it.
        advice: How to make one.

    Raises:
        ValueError: The structure is another one.
    """
    wanted, actual = (jax.tree.structure(t) for t in (expected, state.opt_state))
    if wanted != actual:
        raise ValueError(
            f"`{argument}.opt_state` must be of `optimizer`, whose state has structure "
            f"{wanted}, but has structure {actual}. Make the state with {advice}."
        )


def check_store(store: Any, resume: bool) -> None:
    """Raise if there is nothing to resume from.

    Args:
        store: Folder or None.
        resume: Whether to continue the run in it.

    Raises:
        ValueError: `resume` without `store`.
    """
    if resume and store is None:
        raise ValueError("`resume` needs a folder to resume from: pass `store`.")


def check_runs(**trees: PyTree) -> int:
    """The number of runs that all named pytrees share on axis 0.

    Args:
        **trees: Pytrees of arrays; the keyword is the name that a message uses.

    Returns:
        The number of runs.

    Raises:
        ValueError: An array has no axis of runs, or another number of them.
    """
    first = None
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            full = f"`{name}{jax.tree_util.keystr(path)}`"
            shape = np.shape(leaf)
            if not shape or not shape[0]:
                raise ValueError(
                    f"{full} must have runs on its leading axis, one at least, but has "
                    f"shape {shape}. Make populations with `init_population`, from "
                    "parameters of shape [m, ...]."
                )
            if first is None:
                first = full, shape
            elif shape[0] != first[1][0]:
                raise ValueError(
                    f"{full} must have as many runs (axis 0) as {first[0]}, but has "
                    f"shape {shape} against {first[1]}."
                )
    if first is None:
        raise ValueError(f"`{next(iter(trees))}` must hold at least one array.")
    return first[1][0]


def check_keys(keys: Any, num_runs: int) -> None:
    """Raise unless there is one typed random key for each run.

    Args:
        keys: What was given as keys.
        num_runs: How many runs there are.

    Raises:
        ValueError: It is something else: one key, old-style keys, another number.
    """
    is_array = isinstance(keys, jax.Array)
    typed = is_array and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if typed and keys.shape == (num_runs,):
        return
    was = f"has dtype {keys.dtype} and shape {keys.shape}" if is_array else f"is {keys}"
    raise ValueError(
        f"`keys` must be one typed random key for each of the {num_runs} runs, but "
        f"{was}. Make them with `jax.random.split(jax.random.key(seed), {num_runs})`."
    )


def _named(argument: str, functions: Mapping[str, Any] | None) -> dict[str, Any]:
    """The measurements by name; raise unless each has a name and can be called."""
    if not isinstance(functions, Mapping | None):
        raise ValueError(
            f"`{argument}` must map names to measurements, but is a "
            f'{type(functions).__name__}. Pass `{{"name": measure}}`.'
        )
    for name, function in (functions or {}).items():
        measures = callable(function) or isinstance(function, StatefulMeasurement)
        if not isinstance(name, str) or not measures:
            raise ValueError(
                f"`{argument}[{name!r}]` must be a function under a name that is a "
                f"string, but is a {type(function).__name__} under a "
                f"{type(name).__name__}."
            )
    return dict(functions or {})
