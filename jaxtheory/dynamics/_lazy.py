"""Arrays that stay on disk until they are asked for, row by row."""

import dataclasses
import itertools
import json
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtheory.dynamics import _files

_DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


class Unread:
    """A file of a run, opened when something in it is asked for.

    Stands where `_files.read` returns a dictionary of arrays.
    """

    def __init__(self, path: Path, step: int | None = None):
        self.path, self.step = path, step
        self._header = {}

    @property
    def header(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each tensor; reads none of them."""
        if not self._header:
            with self.open() as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_slice(name)
                    dtype = jnp.dtype(_DTYPES[tensor.get_dtype()])
                    self._header[name] = tuple(tensor.get_shape()), dtype
        return self._header

    def open(self):
        """The opened file, checked to be of its step."""
        try:
            file = safe_open(self.path, framework="np")
        except (SafetensorError, OSError) as error:
            raise _files.damaged(self.path, error) from error
        held = json.loads((file.metadata() or {}).get("jaxtheory", "{}")).get("step")
        if self.step not in (None, held):
            raise _files.damaged(self.path, f"it is of step {held}")
        return file

    def read(self, name: str, index: tuple = ()) -> np.ndarray:
        """A tensor, or the slice of it at an index."""
        with self.open() as file:
            try:
                if not index:
                    return file.get_tensor(name)
                return np.asarray(file.get_slice(name)[index])
            except SafetensorError as error:
                raise _files.damaged(self.path, error) from error

    def __iter__(self):
        return iter(self.header)

    def __contains__(self, name):
        return name in self.header

    def __getitem__(self, name: str) -> "Part":
        return Part(self, name)


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of an array: one tensor of one file.

    Attributes:
        file: The file.
        name: The tensor in it.
        rows: Which of its rows these are; None if the tensor is one row.
    """

    file: Unread
    name: str
    rows: range | None = None

    def __len__(self) -> int:
        """The number of rows of the whole tensor, from the file's header."""
        return self.file.header[self.name][0][0]


class LazyArray:
    """An array whose rows are tensors of several safetensors files.

    Nothing is read before it is asked for: ``array[i]`` reads one row of one file,
    ``array[i, 2:5]`` a slice of it, ``array[a:b]`` is another such array, and
    ``np.asarray(array)`` reads everything. Shape and dtype are those of the first file.

    Attributes:
        shape: Shape of the whole, rows first.
        dtype: NumPy dtype.
    """

    def __init__(self, parts: Sequence[Part], row: tuple[int, ...], dtype: np.dtype):
        self._parts = tuple(parts)
        num_rows = (1 if part.rows is None else len(part.rows) for part in parts)
        self._borders = [0, *itertools.accumulate(num_rows)]
        self.shape = (self._borders[-1], *row)
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What all of it takes in memory, in bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """One row (or part of it) as an array, or a range of rows, still on disk."""
        if isinstance(index, tuple) and not index:
            return np.asarray(self)
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, bool):
            # NumPy's new axis; as a number it would be a row.
            return np.asarray(self)[index]
        if isinstance(first, slice):
            rows = range(len(self))[first]
            whole = not rest and rows.step == 1
            return self._cut(rows) if whole else np.asarray(self)[index]
        try:
            row = operator.index(first)
        except TypeError:
            return np.asarray(self)[index]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of an array of {len(self)} rows")
        return self._row(row % len(self), tuple(rest))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on disk cannot be had without a copy of it")
        whole = np.empty(self.shape, self.dtype)
        for part, start, end in self._located():
            rows = part.rows
            index = () if rows is None else (slice(rows.start, rows.stop),)
            values = part.file.read(part.name, index)
            whole[start:end] = self._checked(part, values, end - start)
        return whole if dtype is None else whole.astype(dtype)

    def _located(self):
        """Parts, with where their rows begin and end."""
        return zip(self._parts, self._borders[:-1], self._borders[1:], strict=True)

    def _row(self, row, rest):
        number = int(np.searchsorted(self._borders, row, side="right")) - 1
        part = self._parts[number]
        # What safetensors can cut out itself need not be read whole.
        plain = len(rest) < self.ndim and all(map(_is_plain, rest, self.shape[1:]))
        index = rest if plain else ()
        if part.rows is not None:
            index = (part.rows[row - self._borders[number]], *index)
        values = part.file.read(part.name, index)
        if not (plain and rest):
            values = self._checked(part, values, 1)[0]
        return values if plain else values[rest]

    def _cut(self, rows):
        parts = []
        for part, start, end in self._located():
            low, high = max(rows.start, start), min(rows.stop, end)
            if low < high and part.rows is not None:
                part = dataclasses.replace(
                    part, rows=part.rows[low - start : high - start]
                )
            if low < high:
                parts.append(part)
        return LazyArray(parts, self.shape[1:], self.dtype)

    def _checked(self, part, values, num_rows):
        """Rows that were read, or an error if they are not like the first file's."""
        expected = (num_rows, *self.shape[1:])
        if values.size != math.prod(expected) or values.dtype != self.dtype:
            raise _files.damaged(
                part.file.path,
                f"it holds {part.name!r} as {_files.describe(values)}, not as "
                f"{num_rows} rows of {self.dtype}{list(self.shape[1:])}",
            )
        return values.reshape(expected)


def stack(parts: Sequence[Part]) -> LazyArray:
    """An array with each tensor as one row, as `np.stack`; opens the first file."""
    shape, dtype = parts[0].file.header[parts[0].name]
    return LazyArray(parts, shape, dtype)


def concatenate(parts: Sequence[Part]) -> LazyArray:
    """An array with the rows of all tensors, as `np.concatenate` of their traces.

    Opens the first file, and those that do not say of which step they are: the others
    have as many rows as steps since the one before.
    """
    shape, dtype = parts[0].file.header[parts[0].name]
    num_rows = [len(parts[0])]
    for before, part in itertools.pairwise(parts):
        begin, end = before.file.step, part.file.step
        if begin is None or end is None:
            num_rows.append(len(part))
        else:
            num_rows.append(end - begin)
    rows = map(range, num_rows)
    found = [dataclasses.replace(p, rows=r) for p, r in zip(parts, rows, strict=True)]
    return LazyArray(found, shape[1:], dtype)


def tensors(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some tensors of a file, those of them that are there."""
    file = Unread(path)
    return {name: file.read(name) for name in names if name in file}


def _is_plain(index, size):
    """Whether safetensors takes it: an index from the front, within the array."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        bounds = index.start in (None, start) and index.stop in (None, stop)
        return step == 1 and bounds and start < stop
    is_number = isinstance(index, int | np.integer) and not isinstance(index, bool)
    return is_number and 0 <= index < size
