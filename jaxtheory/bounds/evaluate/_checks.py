"""Checks of tables of networks, and a NumPy generator from a JAX key."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxtheory.batching import check_key
from jaxtheory.bounds._ledger import check_concrete


def check_table(**tables: Any) -> list[np.ndarray]:
    """Return the named tables as float64; raise unless all are ``[c, s]``, alike.

    Args:
        **tables: Arrays of cells by seeds; the keyword is what an error message says.

    Returns:
        The arrays, in order.

    Raises:
        ValueError: One has other than two axes, holds no numbers, is traced, or has
            another shape than the first.
    """
    check_concrete(**tables)
    found = []
    for name, table in tables.items():
        values = np.asarray(table)
        if values.ndim != 2 or values.size == 0:
            raise ValueError(
                f"`{name}` must have shape [cells, seeds], but has shape "
                f"{values.shape}. For one seed pass `values[:, None]`."
            )
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"`{name}` must hold real numbers, but has dtype {values.dtype}."
            )
        first = next(iter(tables))
        if found and values.shape != found[0].shape:
            raise ValueError(
                f"`{name}` must have the shape of `{first}`, but has shape "
                f"{values.shape} against {found[0].shape}. Put NaN where a network "
                "has no value."
            )
        found.append(values.astype(np.float64))
    return found


def check_measures(measures: Any, gap: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return measures and gap as float64; raise unless all are ``[c, s]``, alike.

    Args:
        measures: By name, the measure of each network.
        gap: The gap of each network.

    Returns:
        Both, in float64.

    Raises:
        ValueError: There is no measure, or a table is no such array.
    """
    if not isinstance(measures, Mapping) or not measures:
        raise ValueError(
            "`measures` must be a dictionary of at least one measure by name, but is "
            f"{described(measures)}."
        )
    (gap,) = check_table(gap=gap)
    named = {
        name: check_table(**{"gap": gap, f"measures[{name!r}]": table})[1]
        for name, table in measures.items()
    }
    return named, gap


def check_hyperparameters(
    hyperparameters: Any, num_cells: int | None = None
) -> dict[str, np.ndarray]:
    """Return the value of each hyperparameter in each cell; raise unless it has one.

    Args:
        hyperparameters: By name, values of one axis: numbers or words.
        num_cells: How many there must be; None for as many as the first has.

    Returns:
        The arrays by name.

    Raises:
        ValueError: There is none, one has another length, or one holds NaN.
    """
    if not isinstance(hyperparameters, Mapping) or not hyperparameters:
        raise ValueError(
            "`hyperparameters` must be a dictionary of at least one hyperparameter by "
            f"name, but is {described(hyperparameters)}. Its values are arrays of "
            "shape [cells]."
        )
    check_concrete(hyperparameters=hyperparameters)
    found = {name: np.asarray(values) for name, values in hyperparameters.items()}
    for name, values in found.items():
        if num_cells is None:
            num_cells = np.size(values)
        if values.shape != (num_cells,):
            raise ValueError(
                f"`hyperparameters[{name!r}]` must have one value for each of the "
                f"{num_cells} cells, but has shape {values.shape}."
            )
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ValueError(
                f"`hyperparameters[{name!r}]` must not be NaN in any cell. Where it "
                "does not apply pass a word for it, and words for the others too."
            )
    return found


def described(value: Any) -> str:
    """What stands where a dictionary should, for an error message."""
    return "empty" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def group_numbers(codes: np.ndarray) -> np.ndarray:
    """A number for each distinct row of integers, from 0."""
    if codes.shape[1] == 0:
        return np.zeros(len(codes), int)
    return np.ravel(np.unique(codes, axis=0, return_inverse=True)[1])


def check_word(name: str, value: Any, words: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `words`."""
    if value not in words:
        listed = " or ".join(f'"{word}"' for word in words)
        raise ValueError(f"`{name}` must be {listed}, but was {value!r}.")


def generator(key: Any) -> np.random.Generator:
    """NumPy's generator, seeded with a typed key of JAX."""
    check_key(key)
    return np.random.default_rng(np.ravel(jax.random.key_data(key)).tolist())
