"""The ledger of the zoo: one row a network, in files that a person can open."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Columns that are words; all others are numbers.
_WORDS = ("task", "optimizer")
_DESIGN = "design.json"


def begin(folder: Path, design: dict[str, Any]) -> None:
    """Make the folder of a zoo, or raise unless it holds another part of the same one.

    Args:
        folder: Where the groups' files lie.
        design: All that the numbers depend on.

    Raises:
        ValueError: The folder holds networks of another design.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, file = json.dumps(design, indent=1) + "\n", folder / _DESIGN
    if not file.exists():
        _write(file, text)
    elif file.read_text(encoding="utf-8") != text:
        held = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name in design if design[name] != held.get(name)]
        raise ValueError(
            f"`out` must be a folder without networks, or with those of this design, "
            f"but {folder} holds networks of another {', '.join(other)}. Take another "
            "folder, or delete that one."
        )


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write networks as CSV, all or nothing: a file that is there is whole.

    Args:
        file: Where to.
        rows: One a network, with the same columns.
    """
    lines = [[_text(value) for value in row.values()] for row in rows]
    part = file.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([list(rows[0]), *lines])
    os.replace(part, file)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote; numbers as floats."""
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            {k: v if k in _WORDS else float(v) for k, v in row.items()}
            for row in csv.DictReader(stream)
        ]


def table(rows: Sequence[dict[str, Any]], column: str) -> np.ndarray:
    """One column as cells by seeds ``[c, s]``."""
    cells = np.array([row["cell"] for row in rows], int)
    seeds = np.array([row["seed"] for row in rows], int)
    found = np.full((cells.max() + 1, seeds.max() + 1), np.nan)
    found[cells, seeds] = [row[column] for row in rows]
    return found


def _text(value):
    """A number by its shortest digits that give it back, an integer without a point."""
    if isinstance(value, str):
        return value
    number = float(value)
    whole = np.isfinite(number) and number == int(number) and abs(number) < 2**53
    return str(int(number)) if whole else repr(number)


def _write(file, text):
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
