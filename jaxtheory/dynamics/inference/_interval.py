"""Student's intervals, which both kinds of inference end in."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxtheory.batching import check_number


class Interval(NamedTuple):
    """Confidence intervals of predictions.

    Attributes:
        value: The predictions, ``[...]``.
        standard_error: Of each.
        lower: Where each interval begins.
        upper: Where it ends.
        degrees_of_freedom: Of Student's distribution behind the interval.
        parts: The predictions that the spread was taken of, ``[s, ...]``: of each
            thread of a tree, or of each batch of iterates.
        num_nonfinite: How many of the parts are not finite; the interval is NaN where
            there is one.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]
    degrees_of_freedom: int
    parts: Float[Array, "s ..."]
    num_nonfinite: Int[Array, ""]


def quantile(confidence: Any, degrees_of_freedom: int) -> float:
    """The two-sided quantile of Student's distribution.

    Args:
        confidence: Nominal coverage in (0, 1), a number of Python.
        degrees_of_freedom: At least 1.

    Returns:
        Half the width of the interval, in standard errors.

    Raises:
        ValueError: `confidence` is out of range.
    """
    from scipy.special import stdtrit

    check_known("confidence", confidence)
    check_number("confidence", confidence, lambda c: 0 < c < 1, "in (0, 1)")
    return float(stdtrit(degrees_of_freedom, 0.5 + float(confidence) / 2))


def check_known(name: str, value: Any) -> None:
    """Raise if a number that shapes the program is traced.

    Args:
        name: What an error message calls it.
        value: What was given.

    Raises:
        ValueError: It is traced.
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"`{name}` must be a number of Python, but is traced. Make it static "
            "(`jax.jit(..., static_argnames=...)`)."
        )


def column_norms(rows: Float[Array, "s m"]) -> Float[Array, " m"]:
    """Euclidean norms of the columns, whose squares stay in range.

    Args:
        rows: What a standard error is made of.

    Returns:
        The norm of each column.
    """
    scale = jnp.max(jnp.abs(rows), axis=0)
    safe = jnp.where(scale > 0, scale, 1)
    return scale * jnp.linalg.norm(rows / safe[None], axis=0)


def check_prediction(shape: Any) -> None:
    """Raise unless a prediction is one floating-point array.

    Args:
        shape: Shape and dtype of what `predict` returned.

    Raises:
        ValueError: It is something else.
    """
    dtype = getattr(shape, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "`predict` must return one floating-point array of predictions, but "
            f"returned {shape}."
        )
