"""Populations of networks as tables that a person, or another tool, can read."""

import csv
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Real

from jaxtheory.bounds.evaluate._checks import check_hyperparameters, check_measures

# The columns of the data of Dziugaite et al., which `mbe_eval` looks for by default.
CELL, SEED, GAP = "config_id", "seed", "gen.gap"
HYPERPARAMETER, MEASURE = "hp.", "complexity."


class Ledger(NamedTuple):
    """A population of networks: the first three arguments of `evaluate`.

    Attributes:
        measures: By name, ``[c, s]``: cells by seeds, NaN where a network has none.
        gap: Test less training error or loss, ``[c, s]``.
        hyperparameters: By name, ``[c]``: numbers or words.
    """

    measures: dict[str, np.ndarray]
    gap: np.ndarray
    hyperparameters: dict[str, np.ndarray]


def to_csv(
    path: str | Path,
    measures: Mapping[str, Any],
    gap: Real[ArrayLike, "c s"],
    hyperparameters: Mapping[str, Any],
) -> None:
    """Write a population as CSV, one network a row.

    Columns are ``config_id`` and ``seed`` (numbers from 0), ``hp.NAME`` for each
    hyperparameter, ``complexity.NAME`` for each measure and ``gen.gap``; an empty field
    is a missing value. ``mbe-eval-audit --csv FILE --target gen.gap --metrics
    complexity.NAME,... --controls hp.NAME,... --inference-unit config_id`` of the
    package mbe-eval audits the file as it is. Its Python functions take data frames of
    it.

    Args:
        path: File to write; one that is there is replaced.
        measures: By name, the measure of each network ``[c, s]``.
        gap: Test less training error or loss, likewise.
        hyperparameters: By name, its value (a number or a word) in each cell.

    Raises:
        ValueError: The tables do not match, a name has a comma, a line break or a
            space at an end (mbe-eval takes lists of names apart at commas), or a
            hyperparameter is an empty word.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "population.csv"
        >>> measures = {"norm": np.array([[3.0, 2.5]])}
        >>> to_csv(path, measures, np.array([[0.1, np.nan]]), {"optimizer": ["sgd"]})
        >>> print(path.read_text().strip())
        config_id,seed,hp.optimizer,complexity.norm,gen.gap
        0,0,sgd,3.0,0.1
        0,1,sgd,2.5,
    """
    named, gap = check_measures(measures, gap)
    cells = check_hyperparameters(hyperparameters, len(gap))
    for kind, names in (("measures", named), ("hyperparameters", cells)):
        for name in names:
            _check_name(kind, name)
    if any(not str(value).strip() for column in cells.values() for value in column):
        raise ValueError(
            "`hyperparameters` must hold no empty words, which are missing values in a "
            "CSV. Name each level."
        )
    header = [CELL, SEED, *(HYPERPARAMETER + name for name in cells)]
    header += [*(MEASURE + name for name in named), GAP]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)
        for cell, seed in np.ndindex(*gap.shape):
            setting = [column[cell] for column in cells.values()]
            values = [table[cell, seed] for table in (*named.values(), gap)]
            rows.writerow([cell, seed, *map(_text, setting), *map(_text, values)])


def from_csv(path: str | Path) -> Ledger:
    """Read a population that `to_csv` wrote, or another file of such columns.

    The data of Dziugaite et al. 2020 have these columns too. Without ``config_id``
    networks of the same hyperparameters are of one cell; without ``seed`` they are
    numbered as they come. Other columns are passed over. A column is one of numbers if
    each of its values is one. Where a cell has fewer networks than another, NaN stands
    for those that are not there.

    Args:
        path: The file.

    Returns:
        The population, cells in the order of their first rows.

    Raises:
        ValueError: A column is lacking, a measure or gap is not a number, a cell has
            two values of a hyperparameter, or a network stands there twice.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "population.csv"
        >>> measures = {"norm": np.array([[3.0, 2.5]])}
        >>> to_csv(path, measures, np.array([[0.1, 0.2]]), {"width": [16]})
        >>> from_csv(path).measures
        {'norm': array([[3. , 2.5]])}
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), list(reader.fieldnames or [])
    found = {
        start: [name for name in header if name.startswith(start)]
        for start in (HYPERPARAMETER, MEASURE, GAP)
    }
    lacking = [start for start, names in found.items() if not names]
    if lacking or not rows:
        listed = ", ".join(f"`{start}`" for start in lacking) or "no"
        raise ValueError(
            f"`path` must be a CSV with columns {HYPERPARAMETER}*, {MEASURE}* and "
            f"{GAP}, and rows, but has {len(rows)} rows and lacks {listed} columns."
        )
    places, shape, settings = _places(rows, found[HYPERPARAMETER])
    tables = {}
    for name in (*found[MEASURE], GAP):
        table = np.full(shape, np.nan)
        for place, row in zip(places, rows, strict=True):
            table[place] = _number(row[name], name)
        tables[name.removeprefix(MEASURE)] = table
    gap = tables.pop(GAP)
    columns = zip(*settings, strict=True)
    names = (name.removeprefix(HYPERPARAMETER) for name in found[HYPERPARAMETER])
    hyperparameters = {n: _column(c) for n, c in zip(names, columns, strict=True)}
    return Ledger(tables, gap, hyperparameters)


def _places(rows, names):
    """Cell and seed of each row, the shape of the tables, and each cell's setting."""
    cells, settings, seeds, places, number = {}, [], {}, [], Counter()
    for row in rows:
        setting = tuple(row[name] for name in names)
        cell = cells.setdefault(row.get(CELL) or setting, len(cells))
        if cell == len(settings):
            settings.append(setting)
        if settings[cell] != setting:
            raise ValueError(
                f"`{CELL}` must name one setting of the hyperparameters, but "
                f"{row[CELL]!r} has several."
            )
        label = row[SEED] if SEED in row else number[cell]
        number[cell] += 1
        places.append((cell, seeds.setdefault(label, len(seeds))))
    if len(set(places)) < len(places):
        raise ValueError(
            f"each row must be another network, but {len(places) - len(set(places))} "
            f"repeat a cell and its `{SEED}`."
        )
    return places, (len(cells), len(seeds)), settings


def _check_name(kind, name):
    """Raise unless a name survives a list of names that commas separate."""
    if (
        not isinstance(name, str)
        or not name
        or name != name.strip()
        or {*",\n\r"} & {*name}
    ):
        raise ValueError(
            f"names of `{kind}` must be words without commas, line breaks, or spaces "
            f"at their ends, to be columns of a CSV, but one is {name!r}."
        )


def _text(value):
    """A value as text that reads back the same; NaN is empty."""
    if isinstance(value, np.generic):
        value = value.item()
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _number(text, name):
    """The number that a field holds; NaN for an empty one."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise ValueError(
            f"`{name}` must hold numbers, but one value is {text!r}."
        ) from None


def _column(texts):
    """Integers, else floats, else words."""
    for kind in (int, float):
        try:
            return np.array([kind(text) for text in texts])
        except ValueError:
            continue
    return np.array(texts)
