"""Evaluate measurements: their values as arrays, and what the stateful ones remember.

Memories are a dictionary, by the name of the measurement.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtheory._types import StatefulMeasurement
from jaxtheory.dynamics._shards import over_shards


@functools.partial(jax.jit, static_argnums=0)
def begin(record, state):
    """The memories before the first record."""
    memories = {}
    for name, measurement in record:
        if isinstance(measurement, StatefulMeasurement):
            memory = measurement.init(state)
            _check_leaves(f"record[{name!r}].init", memory)
            memories[name] = _strong(memory)
    return memories


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin_many(record, sharding, states):
    """The same for each run of a population."""
    one = functools.partial(begin, record)
    return over_shards(jax.vmap(one), sharding, "r", "r")(states)


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(record, stop_when, state, memories):
    """All measurements of one record, the memories after it, and whether to stop.

    Apart from the chunk, so that each is compiled once (the first record has no chunk
    before it) and training is the same program whatever is recorded.
    """
    values, after = {}, {}
    for name, measurement in record:
        full = f"record[{name!r}]"
        if isinstance(measurement, StatefulMeasurement):
            result = measurement.measure(state, memories[name])
            value, after[name] = _checked_pair(full, result, memories[name])
        else:
            value = measurement(state)
        values[name] = _arrays(full, value)
    return values, after, _condition(stop_when, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def measure_many(record, stop_when, sharding, states, memories, active):
    """The same for each run of a population, and which are active after it."""
    one = functools.partial(measure, record, stop_when)
    sharded = over_shards(jax.vmap(one), sharding, "rr", "r")
    values, memories, stop = sharded(states, memories)
    return values, memories, stop & active, active & ~stop


def evaluate(argument, functions, state):
    """The values of named measurements without memory."""
    return {
        name: _arrays(f"{argument}[{name!r}]", function(state))
        for name, function in functions
    }


def _condition(stop_when, state):
    """Whether to stop, as a boolean scalar."""
    value = False if stop_when is None else stop_when(state)
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic | bool)
    if not is_array or jnp.shape(value) or jnp.result_type(value) != jnp.bool_:
        was = describe(value) if is_array else f"a {type(value).__name__}"
        raise ValueError(
            f"`stop_when` must return a boolean scalar, but returned {was}. Compare "
            "with a number, and reduce with `jnp.all` or `jnp.any`."
        )
    return jnp.asarray(value)


def describe(tree: PyTree) -> str:
    """Structure, and type and shape of each leaf."""
    leaves = [
        f"{jnp.result_type(a)}{list(jnp.shape(a))}" for a in jax.tree.leaves(tree)
    ]
    return f"{jax.tree.structure(tree)} with {leaves}"


def _checked_pair(name, result, before):
    """Value and memory that a stateful measurement returned."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"`{name}.measure` must return a pair (value, memory), but returned "
            f"{jax.tree.structure(result)}."
        )
    value, memory = result
    _check_leaves(f"{name}.measure", memory)
    expected, actual = describe(before), describe(memory)
    if expected != actual:
        raise ValueError(
            f"`{name}.measure` must return a memory like the one it got, {expected}, "
            f"but returned {actual}. Let its `init` return one that fits."
        )
    return value, _strong(memory)


def _arrays(name: str, value: PyTree) -> PyTree:
    """What a measurement returned as arrays, or an error that names what is not."""
    if not jax.tree.leaves(value):
        raise ValueError(
            f"`{name}` must return at least one array, but returned {value!r}."
        )
    _check_leaves(name, value)
    return jax.tree.map(jnp.asarray, value)


def _check_leaves(name, tree):
    """Raise unless every leaf is an array of numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        full = f"`{name}{jax.tree_util.keystr(path)}`"
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int):
            raise ValueError(
                f"{full} must be an array, but the measurement returned a "
                f"{type(leaf).__name__}. Return a pytree of arrays."
            )
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            raise ValueError(
                f"{full} must be an array of numbers, but is a random key. Return "
                "`jax.random.key_data(key)`."
            )


def _strong(tree):
    """Arrays of definite type: a weakly typed one would be another program's input."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)
