"""Checks of arguments that many functions share; messages name the argument."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree


def check_examples(**arrays: Any) -> int:
    """Return the number of examples that all named arrays share.

    Args:
        **arrays: Arrays or pytrees of arrays with examples on axis 0; the keyword is
            the name that an error message uses. None is skipped.

    Returns:
        The common length of axis 0.

    Raises:
        ValueError: An array has no leading axis, no examples, or another number of
            examples than the first one.
    """
    first = None
    for name, tree in arrays.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            full = f"`{name}{jax.tree_util.keystr(path)}`"
            shape = np.shape(leaf)
            if not shape:
                raise ValueError(
                    f"{full} must have examples on its leading axis, but is a scalar. "
                    f"Pass an array of shape [n, ...]."
                )
            if shape[0] == 0:
                raise ValueError(
                    f"{full} must hold at least one example, but has shape {shape}."
                )
            if first is None:
                first = (full, shape)
            elif shape[0] != first[1][0]:
                raise ValueError(
                    f"{full} must have as many examples (axis 0) as {first[0]}, but "
                    f"has shape {shape} against {first[1]}. Pass arrays that describe "
                    "the same examples."
                )
    if first is None:
        names = ", ".join(f"`{name}`" for name in arrays)
        raise ValueError(
            f"no array was given{f' as {names}' if names else ''}: pass at least one "
            "with examples in it."
        )
    return first[1][0]


def check_pair(batch: Any) -> tuple[Any, Any, int]:
    """Take a batch ``(x, y)`` apart; raise unless it is one.

    Args:
        batch: What training hands to an objective.

    Returns:
        Inputs, targets, and their number of examples.

    Raises:
        ValueError: `batch` is not a pair, or the two disagree on the number.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "`data` must be a pair (x, y) for an objective of a model and a loss, but "
            f"has structure {jax.tree.structure(batch)}. Pass `(x, y)`, or write the "
            "objective out."
        )
    x, y = batch
    return x, y, check_examples(x=x, y=y)


def check_params(params: PyTree, name: str = "params") -> None:
    """Raise unless `params` is a non-empty pytree of floating-point arrays.

    Args:
        params: A parameter pytree.
        name: What an error message calls it.

    Raises:
        ValueError: There are no leaves, or one is not a floating-point array; names
            it.
    """
    if isinstance(params, Mapping) and "batch_stats" in params:
        raise ValueError(
            f"`{name}` must hold what is trained, but has the collection "
            "'batch_stats', whose running statistics would be differentiated too. Use "
            "`interop.flax.evaluate(module, variables)` to measure, and "
            "`interop.flax.split` and `interop.flax.objective` to train."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(
            f"`{name}` must hold at least one array, but is an empty pytree "
            f"({jax.tree.structure(params)})."
        )
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            was = f"is a {type(leaf).__name__}"
        elif not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            was = f"has dtype {jnp.result_type(leaf)}"
        else:
            continue
        raise ValueError(
            f"`{name}{jax.tree_util.keystr(path)}` must be floating-point to be "
            f"differentiated, but {was}. Cast it, or move what is not trained into the "
            "model (`functools.partial`, a closure)."
        )


def check_count(*, at_least: int = 1, **named: Any) -> int:
    """Return the one named value as an int; raise unless it is one, and large enough.

    Args:
        at_least: Smallest allowed value.
        **named: The value; the keyword is the name that an error message uses.

    Returns:
        The value.

    Raises:
        ValueError: It is no integer (or a bool, or traced), or too small.
    """
    ((name, value),) = named.items()
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None or count < at_least:
        raise ValueError(
            f"`{name}` must be an integer of at least {at_least}, but was {value!r}."
        )
    return count


def check_number(
    name: str, value: Any, holds: Callable[[float], bool], must: str
) -> None:
    """Raise unless `value` is one real number in its range.

    Args:
        name: What an error message calls it.
        value: A number of Python, NumPy or JAX. A traced one is taken on trust.
        holds: Whether a number is in the range; False for NaN.
        must: What an error message says that it must be.

    Raises:
        ValueError: It is no number, an array of several, or out of range.
    """
    shape, dtype = np.shape(value), getattr(value, "dtype", np.result_type(float))
    is_number = hasattr(value, "dtype") or type(value) in (int, float)
    is_real = np.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, jnp.floating)
    is_scalar = is_number and is_real and shape == ()
    if is_scalar and (isinstance(value, Tracer) or holds(float(value))):
        return
    was = f"an array of shape {shape}" if shape else f"{value!r}"
    raise ValueError(f"`{name}` must be {must}, but was {was}.")


def check_word(name: str, word: Any, words: Iterable[str]) -> None:
    """Raise unless an option is one of its words.

    Args:
        name: What an error message calls it.
        word: What the user passed.
        words: What it can be.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(word, str) or word not in words:
        known = ", ".join(f"'{one}'" for one in words)
        raise ValueError(f"`{name}` must be one of {known}, but was {word!r}.")


def check_key(key: Any, name: str = "key") -> None:
    """Raise unless `key` is one typed random key.

    Args:
        key: What was given as a key; may be traced.
        name: What an error message calls it.

    Raises:
        ValueError: It is something else: a seed, an old-style key, several keys.
    """
    is_array = isinstance(key, jax.Array | np.ndarray)
    if is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and not key.shape:
        return
    was = f"has dtype {key.dtype} and shape {key.shape}" if is_array else f"is {key!r}"
    raise ValueError(
        f"`{name}` must be one typed random key, but {was}. Make it with "
        "`jax.random.key(seed)`; of several, pass one."
    )


def check_function(name: str, function: Any) -> None:
    """Raise unless `function` can be called, and compiled programs found by it.

    Args:
        name: What an error message calls it.
        function: A function.

    Raises:
        ValueError: It is no function, or cannot be hashed.
    """
    if not callable(function):
        raise ValueError(
            f"`{name}` must be a function, but is of type {type(function).__name__}."
        )
    try:
        hash(function)
    except TypeError as error:
        raise ValueError(
            f"`{name}` must be hashable, because what is compiled is kept by function, "
            f"but is of type {type(function).__name__}, which is not ({error}). Wrap "
            "it once, and pass arrays that it holds as parameters: `lambda params, x: "
            "module(params, x)`."
        ) from error


def check_batch_size(batch_size: int | None) -> None:
    """Raise unless `batch_size` is None or a positive integer.

    Args:
        batch_size: Examples per chunk, of Python or NumPy; None takes all at once.

    Raises:
        ValueError: It is neither.
    """
    if batch_size is None:
        return
    is_integer = isinstance(batch_size, int | np.integer)
    if not is_integer or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(
            "`batch_size` must be None (all examples at once) or a positive integer, "
            f"but was {batch_size!r}."
        )
