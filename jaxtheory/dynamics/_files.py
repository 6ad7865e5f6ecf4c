"""One file of a run: named arrays as safetensors, complete or not there."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SCHEMA = 2
DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
DTYPES += ("uint64", "float16", "bfloat16", "float32", "float64", "complex64")


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their key paths joined with ``/``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def host(leaf):
    """A contiguous host array; of a random key, its data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    # safetensors 0.8.0 writes strided arrays wrongly, without an error. (And
    # `ascontiguousarray` makes scalars one-dimensional.)
    return np.ascontiguousarray(array).reshape(array.shape)


def host_shape(leaf):
    """Shape and dtype of what `host` returns, which for a shape is not there yet."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf


def describe(leaf) -> str:
    """Dtype and shape of an array, in words that a message or a file can hold."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def save(path: Path, tree: PyTree, step: int) -> None:
    """Write a pytree as safetensors."""
    tensors = {name: host(leaf) for name, leaf in flatten(tree).items()}
    metadata = {"jaxtheory": json.dumps({"schema": SCHEMA, "step": step})}
    replace(path, lambda temporary: save_file(tensors, temporary, metadata))


def replace(path, write):
    """Write a file under a temporary name and rename it: complete, or not there."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def restore(path: Path, template: PyTree, step: int | None = None) -> PyTree:
    """The arrays in a file, in the structure, shapes and types of `template`."""
    tensors = read(path, step)
    for name, leaf in flatten(template).items():
        expected = describe(host_shape(leaf))
        actual = describe(tensors[name]) if name in tensors else "nothing"
        if expected != actual:
            raise ValueError(
                f"`store` file {str(path)!r} must hold {name!r} as {expected}, but "
                f"holds {actual}. It is of another run: pass another folder."
            )
    leaves = [tensors[name] for name in flatten(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def step_of(path: Path) -> int:
    """The step that a file is of."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    step = json.loads(metadata.get("jaxtheory", "{}")).get("step")
    if step is None:
        raise damaged(path, "it is of no step")
    return step


def read(path: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All arrays in a safetensors file, which must be of `step` if that is given."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
    held = json.loads(metadata.get("jaxtheory", "{}")).get("step")
    if step not in (None, held):
        raise damaged(path, f"it is of step {held}")
    return tensors


def get(tensors, name, path):
    """One array of a file, or an error that names the file."""
    if name not in tensors:
        raise damaged(path, f"it holds no {name!r}")
    return tensors[name]


def damaged(path, error):
    """The error of a file that is missing, or does not hold what it must."""
    return ValueError(
        f"`store` file {str(path)!r} must be readable, but is missing or damaged "
        f"({error}). Put it back from a copy, or start again in another folder."
    )
