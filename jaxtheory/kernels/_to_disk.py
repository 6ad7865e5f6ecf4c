"""Kernels larger than memory: written block by block, resumed where they stopped."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree, Shaped
from tqdm import tqdm

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching import check_count, check_examples, check_params
from jaxtheory.kernels._checks import check_same_inputs
from jaxtheory.kernels._empirical import empirical_ntk
from jaxtheory.kernels._groups import Outputs
from jaxtheory.kernels._plan import Method, check_options
from jaxtheory.kernels._scale import leaf_scales


def write_empirical_ntk(
    path: str | os.PathLike[str],
    apply_fn: ApplyFn,
    params: Params,
    x1: PyTree[Shaped[ArrayLike, "n1 ..."]],
    x2: PyTree[Shaped[ArrayLike, "n2 ..."]] | None = None,
    *,
    batch_size: int,
    outputs: Outputs = "trace",
    method: Method = "auto",
    param_scale: PyTree[Float[ArrayLike, ""]] | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Write `empirical_ntk` to a NumPy file, a block at a time.

    The file appears under its name when it is complete. Until then it is
    ``<path>.partial``, beside a ledger of the rows that are in it: after an
    interruption, the same call goes on behind the last full row of blocks.

    Args:
        path: The file, ``*.npy``; it must not exist.
        apply_fn: The model, as for `empirical_ntk`, as are the arguments that follow.
        params: Floating-point parameters.
        x1: Inputs ``[n1, ...]`` (rows).
        x2: Inputs ``[n2, ...]`` (columns); None stands for `x1`: each block is then
            computed once and written twice, and the kernel is exactly symmetric.
        batch_size: Rows and columns of a block.
        outputs: What is kept of the ``k x k`` block of each pair of examples.
        method: How it is computed.
        param_scale: Factors of the parameter arrays' kernels.
        progress: Whether to show a progress bar.

    Returns:
        The kernel as a read-only memory map of the file, shaped and summed as
        `empirical_ntk` describes.

    Raises:
        ValueError: The file exists, `path` does not end in ``.npy``, a partial file
            was left by a call with other arguments or another model (its first block
            is computed again and compared), or as in `empirical_ntk`.

    Memory:
        One block and the gradients that it needs. On disk ``n1 n2`` numbers times 1,
        ``k`` or ``k^2``.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def linear(params, x):
        ...     return x @ params
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kernel = kernels.write_empirical_ntk(
        ...         f"{folder}/kernel.npy",
        ...         linear,
        ...         jnp.ones((2, 1)),
        ...         jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]),
        ...         batch_size=2,
        ...         progress=False,
        ...     )
        ...     kernel.tolist()
        [[1.0, 1.0, 0.0], [1.0, 2.0, 2.0], [0.0, 2.0, 4.0]]
    """
    check_options(method, outputs)
    batch_size = check_count(batch_size=batch_size)
    check_params(params)
    n1 = n2 = check_examples(x1=x1)
    if x2 is not None:
        n2 = check_examples(x2=x2)
        check_same_inputs(x1, x2)
    block = lambda rows, columns: np.asarray(
        empirical_ntk(
            apply_fn,
            params,
            _rows(x1, rows),
            _rows(x1 if x2 is None else x2, columns),
            outputs=outputs,
            method=method,
            param_scale=param_scale,
        )
    )
    like = jax.eval_shape(
        lambda x1, x2: empirical_ntk(apply_fn, params, x1, x2, outputs=outputs),
        *(_rows(x, slice(0, 1)) for x in (x1, x1 if x2 is None else x2)),
    )
    shape = n1, n2, *like.shape[2:]
    options = {"batch_size": batch_size, "outputs": outputs, "method": method}
    arrays = params, x1, x2, leaf_scales(params, param_scale)
    file = _File(Path(path), shape, like.dtype, {**options, "data": _digest(arrays)})
    rows, columns = (_starts(n, min(batch_size, n)) for n in (n1, n2))
    size1, size2 = min(batch_size, n1), min(batch_size, n2)
    if file.num_done:
        file.check(block(slice(0, size1), slice(0, size2)))
    with tqdm(total=len(rows), desc="kernel", disable=not progress) as bar:
        bar.update(file.num_done)
        for number, row in enumerate(rows[file.num_done :], start=file.num_done):
            here = slice(row, row + size1)
            if x2 is None:
                _write_symmetric(file.array, block, here, rows[number:])
            else:
                for column in columns:
                    there = slice(column, column + size2)
                    file.array[here, there] = block(here, there)
            file.record(number + 1)
            bar.update()
    return file.finish()


def _rows(x: Any, rows: slice) -> Any:
    return jax.tree.map(lambda a: a[rows], x)


def _starts(n: int, size: int) -> list[int]:
    """Where blocks start; the last one early enough to be full: one compilation."""
    return [min(i, n - size) for i in range(0, n, size)]


def _write_symmetric(array, block, here, starts):
    """Write a row of blocks from the diagonal on, and its mirror image."""
    size = here.stop - here.start
    # The diagonal last: where a last block overlaps others, it settles the entries.
    for start in reversed(starts):
        there = slice(start, start + size)
        values = block(here, there)
        if start == here.start:
            values = (values + _transposed(values)) / 2
        array[here, there] = values
        array[there, here] = _transposed(values)


def _transposed(kernel: np.ndarray) -> np.ndarray:
    """``K[j, i, l, k]`` of ``K[i, j, k, l]``."""
    kernel = np.swapaxes(kernel, 0, 1)
    return np.swapaxes(kernel, 2, 3) if kernel.ndim == 4 else kernel


def _digest(arrays: Any) -> str:
    """A fingerprint of arrays: of their structure, shapes, types and values."""
    found = hashlib.sha256(str(jax.tree.structure(arrays)).encode())
    for leaf in jax.tree.leaves(arrays):
        values = np.asarray(leaf)
        found.update(f"{values.shape}{values.dtype}".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


class _File:
    """A kernel on disk that is being written, with a ledger of what is in it."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: Any, description: dict
    ):
        if path.suffix != ".npy":
            raise ValueError(f"`path` must end in '.npy', but was {str(path)!r}.")
        if path.exists():
            raise ValueError(
                f"`path` must be a new file, but {str(path)!r} exists. Read it with "
                "`numpy.load(path, mmap_mode='r')`, or choose another name."
            )
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.ledger = path.with_name(path.name + ".partial.json")
        self.description = {**description, "shape": [*shape], "dtype": str(dtype)}
        self.num_done = self._resumed()
        if self.num_done:
            self.array = np.load(self.partial, mmap_mode="r+")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            needed = math.prod(shape) * jnp.dtype(dtype).itemsize
            if needed > free:
                raise ValueError(
                    f"`path` must be where {needed:.1e} bytes are free, but {free:.1e} "
                    "are. Write fewer examples or outputs, or to another disk."
                )
            # The ledger first: a partial file without one is somebody else's.
            self._write_ledger(0)
            self.array = np.lib.format.open_memmap(
                self.partial, mode="w+", dtype=dtype, shape=shape
            )

    def _resumed(self) -> int:
        """Rows of blocks that an earlier call left; raise if it was another kernel."""
        if not self.ledger.exists():
            if self.partial.exists():
                self._refuse("its ledger is missing")
            return 0
        try:
            held = json.loads(self.ledger.read_text())
            num_done = held.pop("rows_done")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._refuse("its ledger cannot be read")
        differs = [
            name for name, value in self.description.items() if held.get(name) != value
        ]
        if held != self.description:
            self._refuse(f"it differs in {', '.join(differs)}")
        if num_done and not self._is_whole():
            self._refuse("it differs in the file itself")
        return num_done

    def _is_whole(self) -> bool:
        """Whether the partial file is an array of the shape and type that it had."""
        try:
            array = np.load(self.partial, mmap_mode="r")
        except (OSError, ValueError):
            return False
        found = [*array.shape], str(array.dtype)
        return found == (self.description["shape"], self.description["dtype"])

    def check(self, block: np.ndarray) -> None:
        """Raise unless the first block that is held is, to rounding, the given one.

        Functions have no fingerprint: this tells a model from another one that has
        equal parameters.
        """
        held = self.array[tuple(map(slice, block.shape[:2]))]
        if np.array_equal(held, block, equal_nan=True):
            return
        change = np.max(np.abs(held - block)) / (np.max(np.abs(block)) or 1.0)
        if not change <= float(jnp.finfo(block.dtype).eps) ** 0.5:
            self._refuse("it differs in the model's values")

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(
            f"`path` has an unfinished file {str(self.partial)!r} of another kernel "
            f"({reason}). Finish that one, delete it and its '.json', or choose "
            "another name."
        )

    def record(self, num_done: int) -> None:
        """Put on disk what was written, then say that it is there."""
        self.array.flush()
        self._write_ledger(num_done)

    def _write_ledger(self, num_done: int) -> None:
        text = json.dumps({**self.description, "rows_done": num_done})
        fresh = self.ledger.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.ledger)

    def finish(self) -> np.ndarray:
        """Give the file its name; it as a read-only memory map."""
        self.array.flush()
        del self.array
        if self.path.exists():
            raise ValueError(
                f"`path` must be a new file, but {str(self.path)!r} appeared while the "
                f"kernel was written. It is whole in {str(self.partial)!r}: move one "
                "of them, and call this again or read it with `numpy.load`."
            )
        self.partial.replace(self.path)
        self.ledger.unlink()
        return np.load(self.path, mmap_mode="r")
