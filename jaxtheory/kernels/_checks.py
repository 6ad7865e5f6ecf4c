"""Checks of models and inputs that kernels share; only shapes are computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxtheory._types import ApplyFn


def check_outputs(apply_fn: ApplyFn, params: Any, x: Any) -> None:
    """Raise unless the model gives one floating-point array ``[n, ...]`` with outputs.

    Only shapes are computed.
    """
    n = jnp.shape(jax.tree.leaves(x)[0])[0]
    found = jax.eval_shape(apply_fn, params, x)
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise ValueError(
            "`apply_fn` must return one array of outputs [n, ...], but returned "
            f"{jax.tree.structure(found)}. Return the outputs alone: drop mutable "
            "collections and auxiliary values in a wrapper."
        )
    if found.shape[:1] != (n,):
        raise ValueError(
            f"`apply_fn` must return one row of outputs for each of {n} examples, "
            f"but returned shape {found.shape}. Keep examples on the leading axis."
        )
    if len(found.shape) == 1 or found.size == 0:
        raise ValueError(
            "`apply_fn` must return outputs [n, k] with an output axis, but returned "
            f"shape {found.shape}. Add it: `lambda params, x: apply_fn(params, x)"
            "[:, None]`."
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            "`apply_fn` must return floating-point outputs to be differentiated, but "
            f"returned dtype {found.dtype}. Return logits, not predicted classes."
        )


def check_real(**arrays: Any) -> None:
    """Raise unless each named argument is an array of real numbers."""
    for name, array in arrays.items():
        dtype = getattr(array, "dtype", None)
        if dtype is not None and np.can_cast(dtype, np.float64, "same_kind"):
            continue
        was = f"is a {type(array).__name__}" if dtype is None else f"has dtype {dtype}"
        raise ValueError(
            f"`{name}` must be an array of real numbers, but {was}. Convert it, for "
            "example with `jax.numpy.asarray`, or take its real part."
        )


def host_array(name: str, value: Any) -> np.ndarray:
    """The named argument in float64; raise if it is traced, complex or not finite."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"`{name}` must be a concrete array for a computation on the host, but is "
            "traced by a JAX transformation (jit, grad or vmap). Call this outside it."
        )
    given = np.asarray(value)
    check_real(**{name: given})
    array = given.astype(np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"`{name}` must be finite, but has entries that are not.")
    return array


def check_same_inputs(x1: Any, x2: Any) -> None:
    """Raise unless `x1` and `x2` differ in their number of examples alone."""
    structures = jax.tree.structure(x1), jax.tree.structure(x2)
    if structures[0] != structures[1]:
        raise ValueError(
            "`x2` must have the structure of `x1`, but has "
            f"{structures[1]} against {structures[0]}."
        )
    for (path, leaf1), leaf2 in zip(
        jax.tree_util.tree_leaves_with_path(x1), jax.tree.leaves(x2), strict=True
    ):
        shape1, shape2 = jnp.shape(leaf1), jnp.shape(leaf2)
        if shape1[1:] != shape2[1:]:
            raise ValueError(
                f"`x2{jax.tree_util.keystr(path)}` must have the shape of `x1` after "
                f"the axis of examples, but has shape {shape2} against {shape1}. Pass "
                "inputs of one kind, or reshape one of them."
            )
