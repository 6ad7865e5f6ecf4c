"""What the estimators share: checks of the data, and the logarithms of its sizes."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

Size: TypeAlias = Literal["norm", "absolute", "upper", "lower"]
SIZES = ("norm", "absolute", "upper", "lower")
TailCentre: TypeAlias = Literal["median", "none"]
TAIL_CENTRES = ("median", "none")


def as_data(x: Any, *, at_least: int, what: str) -> Float[Array, "..."]:
    """Return `x` in at least single precision; raise unless it is [n] or [n, d].

    Args:
        x: What was given as data.
        at_least: Smallest number of rows.
        what: Who needs them, for the message.
    """
    shape, dtype = shape_and_dtype("x", x)
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            "`x` must hold one observation a row, [n] or [n, d], but has shape "
            f"{shape}."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`x` must be floating-point, but has dtype {dtype}. Cast it.")
    if shape[0] < at_least:
        raise ValueError(
            f"`x` must hold at least {at_least} observations for {what}, but holds "
            f"{shape[0]}."
        )
    return jnp.asarray(x, jnp.result_type(dtype, jnp.float32))


def shape_and_dtype(name: str, x: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape of an array and its dtype in JAX; raise unless it is one."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"`{name}` must be an array of JAX or NumPy, but is of type "
            f"{type(x).__name__}. Convert it: `jnp.asarray({name})`."
        )
    return x.shape, jnp.result_type(x)


def check_settled(name: str, value: Any) -> None:
    """Raise if a number that compiled programs or the host need is traced."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"`{name}` must be a concrete number, but is traced. Close over it, or "
            "make it a static argument of your `jax.jit`."
        )


def log_norms(x: Float[Array, "... d"]) -> Float[Array, "..."]:
    """Compute the logarithm of the norm of each row, where squares would overflow."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    safe = jnp.where(largest > 0, largest, 1)
    squares = jnp.sum((x / safe) ** 2, axis=-1)
    return jnp.log(safe[..., 0]) + 0.5 * jnp.log(squares)


def log_sizes(x: Float[Array, "..."], size: Size) -> Float[Array, " m"]:
    """Compute the logarithm of what the tail is of: -inf for a size of zero."""
    if size == "norm":
        return log_norms(x.reshape(x.shape[0], -1))
    flat = x.reshape(-1)
    signed = {"absolute": jnp.abs(flat), "upper": flat, "lower": -flat}[size]
    return jnp.log(jnp.maximum(signed, 0))


def num_sizes(x: Float[Array, "..."], size: Size) -> int:
    """Return how many sizes `log_sizes` gives."""
    return x.shape[0] if size == "norm" else x.size


def count_nonfinite(x: Float[Array, "..."]) -> Int[Array, ""]:
    """Count the observations with an entry that is not finite."""
    finite = jnp.isfinite(x.reshape(x.shape[0], -1))
    return jnp.sum(~jnp.all(finite, axis=1))
