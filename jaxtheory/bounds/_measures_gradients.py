"""Measures of per-example gradients, from one set of backward passes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from jaxtheory import kernels
from jaxtheory._types import ApplyFn, LossFn, Params
from jaxtheory.bounds._measures_outputs import wide_outputs

_einsum = lambda *args: jnp.einsum(*args, precision="highest")


def gradient_measures(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: Float[Array, "n ..."],
    y: Integer[Array, " n"],
) -> dict[str, Array]:
    r"""What the gradients ``g_i = J_i^T r_i`` of single examples tell, exactly.

    None of them is formed: ``|g_i|^2 = r_i^T T_i r_i`` with ``r_i`` the derivative of
    the loss by the outputs and ``T_i = J_i J_i^T`` the ``[k, k]`` block of the neural
    tangent kernel, which also gives the trace of the Gauss-Newton matrix,
    ``(1/n) sum_i tr(H_i T_i)``.

    Args:
        apply_fn: The model.
        loss_fn: One loss an example.
        params: Parameters.
        x: Inputs.
        y: Labels.

    Returns:
        One number for each name.
    """
    model = wide_outputs(apply_fn, x)
    outputs, pull = jax.vjp(model, params)
    n = outputs.shape[0]
    slopes, curved = _derivatives(loss_fn, outputs, y)
    blocks = tangent_blocks(apply_fn, params, x)
    squares = _einsum("nk,nkl,nl->n", slopes, blocks, slopes)
    squares = jnp.maximum(squares, 0)
    gradient = optax.tree.norm(pull(slopes / n)[0])
    mean_square = jnp.mean(squares)
    # By the Pythagorean theorem; negative by rounding where all are equal.
    variance = jnp.maximum(mean_square - gradient**2, 0) * n / (n - 1)
    tangent = jax.jvp(model, (params,), (params,))[1]
    return {
        "gradient_norm": gradient,
        "gradient_variance": variance,
        "gradient_noise_scale": variance / gradient**2,
        "gradient_coherence": _coherence(pull, slopes, squares),
        "empirical_fisher_trace": mean_square,
        "ggn_trace": jnp.mean(_einsum("nkl,nlk->n", curved, blocks)),
        "fisher_rao": jnp.mean(_einsum("nk,nkl,nl->n", tangent, curved, tangent)),
        "ntk_trace": jnp.mean(jnp.trace(blocks, axis1=1, axis2=2)) / outputs.shape[1],
    }


def tangent_blocks(apply_fn: ApplyFn, params: Params, x: Any) -> Float[Array, "n k k"]:
    """``J_i J_i^T`` of every example."""
    kernel = kernels.empirical_ntk
    one = lambda xi: kernel(apply_fn, params, xi[None], outputs="full")[0, 0]
    return jax.vmap(one)(x)


def _derivatives(loss_fn, outputs, y):
    """First ``[n, k]`` and second ``[n, k, k]`` derivatives of losses by outputs."""
    slope = jax.grad(lambda f: jnp.sum(loss_fn(f, y).astype(f.dtype)))

    def column(row):
        direction = jnp.broadcast_to(row[None, :], outputs.shape)
        return jax.jvp(slope, (outputs,), (direction,))[1]

    basis = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
    return slope(outputs), jax.vmap(column, out_axes=2)(basis)


def _coherence(pull, slopes, squares):
    """Mean cosine of the gradients of two examples; those of size 0 have none."""
    known = squares > 0
    scale = jnp.where(known, 1 / jnp.sqrt(jnp.where(known, squares, 1)), 0)
    number = jnp.sum(known)
    # Divided first: a sum of n unit vectors, squared, loses digits.
    mean = optax.tree.norm(pull(slopes * scale[:, None] / number)[0])
    return (number * mean**2 - 1) / (number - 1)
