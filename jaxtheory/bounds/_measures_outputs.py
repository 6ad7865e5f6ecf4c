"""Measures of a classifier's outputs: losses, confidence, margins."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory._types import ApplyFn, Params


def output_margins(
    outputs: Float[Array, "n k"], labels: Integer[Array, " n"]
) -> Float[Array, " n"]:
    """``f_y - max_{j != y} f_j`` of every example."""
    own = jax.nn.one_hot(labels, outputs.shape[1], dtype=bool)
    of_own = jnp.max(jnp.where(own, outputs, -jnp.inf), axis=1)
    return of_own - jnp.max(jnp.where(own, -jnp.inf, outputs), axis=1)


def output_measures(
    outputs: Float[Array, "n k"],
    losses: Float[Array, " n"],
    labels: Integer[Array, " n"],
) -> dict[str, Array]:
    """What outputs and losses alone tell; means are over examples.

    Args:
        outputs: Scores of the classes, in at least single precision.
        losses: One an example.
        labels: Class of each example.

    Returns:
        One number for each name.
    """
    log_p = jax.nn.log_softmax(outputs)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * jnp.where(p > 0, log_p, 0), axis=1)
    margins = output_margins(outputs, labels)
    return {
        "loss": jnp.mean(losses),
        "loss_deviation": jnp.std(losses),
        "error": jnp.mean((jnp.argmax(outputs, axis=1) != labels).astype(p.dtype)),
        "output_entropy": jnp.mean(entropy),
        "confidence": jnp.mean(jnp.max(p, axis=1)),
        "output_norm": jnp.mean(jnp.linalg.norm(outputs, axis=1)),
        "margin_mean": jnp.mean(margins),
        "margin_deviation": jnp.std(margins),
        "margin_median": jnp.median(margins),
    }


def input_measures(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
) -> dict[str, Array]:
    """How fast outputs change with the input, and how far the boundary is.

    Args:
        apply_fn: The model.
        params: Parameters.
        x: Inputs.
        labels: Class of each example.

    Returns:
        ``geometric_complexity``, the mean of ``|d f / d x|_F^2``, and
        ``input_margin``, the median of margin over ``|d margin / d x|``, which is the
        distance to the boundary of a linear model.
    """
    wide = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))
    outputs, pull = jax.vjp(lambda x: wide(apply_fn(params, x)), x)
    squares = lambda a: jnp.sum(jnp.square(wide(a.reshape(a.shape[0], -1))), axis=1)
    basis = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
    rows = lambda row: jnp.broadcast_to(row[None, :], outputs.shape)
    slopes = jax.lax.map(lambda row: squares(pull(rows(row))[0]), basis)
    own = jax.nn.one_hot(labels, outputs.shape[1], dtype=outputs.dtype)
    rival = jnp.argmax(jnp.where(own > 0, -jnp.inf, outputs), axis=1)
    across = own - jax.nn.one_hot(rival, outputs.shape[1], dtype=outputs.dtype)
    lengths = jnp.sqrt(squares(pull(across)[0]))
    margins = output_margins(outputs, labels)
    return {
        "geometric_complexity": jnp.mean(jnp.sum(slopes, axis=0)),
        "input_margin": jnp.median(margins / lengths),
    }


def wide_outputs(apply_fn: ApplyFn, x: Any) -> Any:
    """``params -> outputs`` in at least single precision."""

    def outputs(params):
        found = apply_fn(params, x)
        return found.astype(jnp.promote_types(found.dtype, jnp.float32))

    return outputs
