"""Factors of the kernels of single parameter arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxtheory._types import Params


def leaf_scales(params: Params, param_scale: Any) -> list[Any] | None:
    """The factor of each parameter array.

    Args:
        params: Parameters.
        param_scale: Numbers ``>= 0`` in the structure of `params`, or coarser: one for
            a subtree holds for all of it. None for no factors.

    Returns:
        A number for each leaf of `params`, or None.

    Raises:
        ValueError: The structure does not fit, or a factor is no number, negative or
            not finite.
    """
    if param_scale is None:
        return None
    try:
        spread = jax.tree.map(
            lambda scale, part: jax.tree.map(lambda _: scale, part),
            param_scale,
            params,
        )
    except ValueError as error:
        raise ValueError(
            "`param_scale` must have the structure of `params`, or a coarser one, but "
            f"has {jax.tree.structure(param_scale)} against "
            f"{jax.tree.structure(params)}. Give one number for each parameter array, "
            "or for a whole subtree."
        ) from error
    for path, scale in jax.tree_util.tree_leaves_with_path(spread):
        _check(f"`param_scale{jax.tree_util.keystr(path)}`", scale)
    return jax.tree.leaves(spread)


def frozen_leaves(scales: list[Any] | None) -> tuple[int, ...]:
    """The leaves whose factor is known to be zero: nothing is computed for them.

    Args:
        scales: From `leaf_scales`.

    Returns:
        Their numbers.
    """
    return tuple(
        number
        for number, scale in enumerate(scales or ())
        if not isinstance(scale, Tracer) and float(scale) == 0.0
    )


def _check(name, scale):
    """Raise unless a factor is a finite number that is not negative."""
    is_number = np.shape(scale) == () and (
        hasattr(scale, "dtype") or type(scale) in (int, float)
    )
    if is_number and jnp.issubdtype(jnp.result_type(scale), jnp.complexfloating):
        is_number = False
    if not is_number:
        was = f"shape {np.shape(scale)}" if np.shape(scale) else repr(scale)
        raise ValueError(
            f"{name} must be one number for the whole parameter array, but was {was}."
        )
    if not isinstance(scale, Tracer) and not 0.0 <= float(scale) < float("inf"):
        raise ValueError(
            f"{name} must be a finite number >= 0, but was {float(scale)}: a kernel "
            "with a negative part is no kernel."
        )
