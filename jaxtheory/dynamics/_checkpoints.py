"""Checkpoints in a folder: which files, of which steps, and what is in them."""

import itertools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

_KINDS = (".safetensors", ".npz")
_WILD = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


def find_checkpoints(folder: Path, pattern: str | None) -> list[tuple[int, Path]]:
    """Find the checkpoints in a folder and the steps in their names.

    Args:
        folder: The folder.
        pattern: A glob with or without ``{step}``; see `History.from_folder`.

    Returns:
        Steps and files, in order.

    Raises:
        ValueError: There are none, of two kinds, or of steps that cannot be told.
    """
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder, but {str(folder)!r} is none.")
    if pattern is None:
        pattern = _only_kind(folder)
    if pattern.count("{step}") > 1 or not pattern.endswith(_KINDS):
        raise ValueError(
            f"`pattern` must end with {' or '.join(_KINDS)} and have `{{step}}` at most"
            f" once, but was {pattern!r}."
        )
    paths = sorted(folder.glob(pattern.replace("{step}", "*")))
    names = [path.relative_to(folder).as_posix() for path in paths]
    if "{step}" in pattern:
        before, after = map(_regex, pattern.split("{step}"))
        expression = re.compile(f"{before}([0-9]+){after}")
        found = [(m, path) for name, path in zip(names, paths, strict=True)
                 if (m := expression.fullmatch(name))]  # fmt: skip
        steps = [int(match[1]) for match, _ in found]
        paths = [path for _, path in found]
    else:
        steps = _steps_in(names)
    if not paths:
        raise ValueError(
            f"`folder` must hold checkpoints, but no file in {str(folder)!r} matches "
            f"{pattern!r}."
        )
    files = sorted(zip(steps, paths, strict=True))
    for (step, path), (other, same) in itertools.pairwise(files):
        if step == other:
            raise ValueError(
                f"`folder` must hold one file for each step, but {path.name!r} and "
                f"{same.name!r} are both of step {step}. Tell them apart by `pattern`."
            )
    return files


def _only_kind(folder):
    """The pattern of all files of the one kind that is there."""
    kinds = [kind for kind in _KINDS if any(folder.glob(f"*{kind}"))]
    if len(kinds) > 1:
        raise ValueError(
            f"`folder` {str(folder)!r} holds files of both kinds, {', '.join(_KINDS)}. "
            'Say which with `pattern`, for example "*.npz".'
        )
    return f"*{kinds[0] if kinds else _KINDS[0]}"


def _regex(glob):
    """A regular expression of a glob, in which a star stays within one folder."""
    parts = re.split(r"(\*\*/|\*|\?)", glob)
    return "".join(_WILD.get(part) or re.escape(part) for part in parts)


def _steps_in(names):
    """The one number in each name that differs from name to name."""
    numbers = [re.findall(r"[0-9]+", name.rsplit(".", 1)[0]) for name in names]
    texts = {re.sub(r"[0-9]+", "0", name) for name in names}
    if len(names) == 1 and len(numbers[0]) == 1:
        return [int(numbers[0][0])]
    places = range(len(numbers[0])) if len(texts) == 1 else ()
    varying = [i for i in places if len({row[i] for row in numbers}) > 1]
    if names and len(varying) != 1:
        raise ValueError(
            "`pattern` must say where in a file's name its step stands: in names like "
            f"{names[0]!r} and {names[-1]!r} that cannot be told. Write `{{step}}` in "
            'its place, for example "step_{step}.safetensors".'
        )
    return [int(row[varying[0]]) for row in numbers]


def read_checkpoint(
    path: Path, select: Callable[[str], bool] | None
) -> dict[str, np.ndarray]:
    """Read the floating-point arrays of a checkpoint.

    Args:
        path: A safetensors or npz file.
        select: Which arrays, by name; None for all.

    Returns:
        Arrays by name.

    Raises:
        ValueError: The file is damaged or holds no such array.
    """
    read = _read_npz if path.suffix == ".npz" else _read_safetensors
    try:
        names, arrays = read(path, select or (lambda _: True))
    except (SafetensorError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"file {str(path)!r} must be readable, but is damaged ({error})."
        ) from error
    kept = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    if not kept:
        raise ValueError(
            f"file {str(path)!r} must hold floating-point arrays that are selected, but"
            f" holds {sorted(names)}."
        )
    return kept


def _read_safetensors(path, select):
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        return names, {name: file.get_tensor(name) for name in names if select(name)}


def _read_npz(path, select):
    # Opened here, because NumPy leaves a damaged file open.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        names = list(file.files)
        arrays = {name: file[name] for name in names if select(name)}
    for name, array in arrays.items():
        if array.dtype.kind == "V":
            raise ValueError(
                f"file {str(path)!r} holds {name!r} as raw bytes ({array.dtype}): npz "
                "knows no bfloat16. Save it as float32, or as safetensors."
            )
    return names, arrays
