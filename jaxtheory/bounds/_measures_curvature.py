"""Measures of the loss around the parameters: its Hessian, and finite steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Integer

from jaxtheory import curvature, linalg
from jaxtheory._types import ApplyFn, KeyArray, LossFn, Params
from jaxtheory.curvature import flatness

RISE = 0.1  # of the loss, that the perturbations of PAC-Bayes are sought for
_DECADES = (-3.0, 1.0)  # of these perturbations, relative to the weights
_NUM_BISECTIONS = 6
_STEP = 0.01  # of the low-pass filter, as published
_DELTA = 0.05


def hessian_measures(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: Float[Array, "n ..."],
    y: Integer[Array, " n"],
    *,
    key: KeyArray,
    num_probes: int,
    num_iterations: int,
) -> dict[str, Array]:
    """What one set of Lanczos runs on the Hessian tells, and three of its relatives.

    Args:
        apply_fn: The model.
        loss_fn: One loss an example.
        params: Parameters.
        x: Inputs.
        y: Labels.
        key: Probes.
        num_probes: Runs.
        num_iterations: Hessian products of each.

    Returns:
        One number for each name.
    """
    problem = (apply_fn, loss_fn, params, x, y)
    to_spectrum, to_relative = jax.random.split(key)
    operator = curvature.hessian(*problem)
    spectrum = linalg.spectral_density(
        operator,
        key=to_spectrum,
        num_probes=num_probes,
        num_iterations=min(num_iterations, linalg.dimension(operator)),
        # A third faster; copies of an eigenvalue share its weight, and sums stay right.
        reorthogonalise="none",
    )
    above = lambda nodes: jnp.maximum(nodes, 0)
    trace = lambda function: spectrum.trace_of(function).value
    relative = flatness.relative_flatness(
        *problem, key=to_relative, num_samples=num_probes
    )
    return {
        "sharpness": jnp.max(spectrum.nodes),
        "smallest_hessian_eigenvalue": jnp.min(spectrum.nodes),
        "hessian_trace": trace(lambda nodes: nodes),
        "hessian_frobenius_norm": jnp.sqrt(trace(jnp.square)),
        "effective_dimension": trace(lambda nodes: above(nodes) / (above(nodes) + 1)),
        "relative_flatness": relative.value,
        "sam_sharpness": flatness.sam_sharpness(*problem),
        "asam_sharpness": flatness.asam_sharpness(*problem),
    }


def perturbation_measures(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: Float[Array, "n ..."],
    y: Integer[Array, " n"],
    initial_params: Params,
    *,
    key: KeyArray,
    num_draws: int,
) -> dict[str, Array]:
    r"""How far weights may be perturbed before the loss rises, and PAC-Bayes with it.

    Args:
        apply_fn: The model.
        loss_fn: One loss an example.
        params: Parameters.
        x: Inputs.
        y: Labels.
        initial_params: Where training began.
        key: Draws, the same for all perturbations.
        num_draws: How many.

    Returns:
        One number for each name.
    """
    flat, unravel = ravel_pytree(params)
    draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), flat.shape)
    noise = jax.vmap(draw)(jnp.arange(num_draws))

    def loss(flat):
        losses = loss_fn(apply_fn(unravel(flat), x), y)
        return jnp.mean(losses.astype(jnp.promote_types(losses.dtype, jnp.float32)))

    base = loss(flat)

    def rise(shape, size):
        shifted = flat[None] + (size * shape[None] * noise).astype(flat.dtype)
        return jnp.mean(jax.vmap(loss)(shifted) - base)

    spread = jnp.linalg.norm(flat) / flat.size**0.5
    even = functools.partial(rise, jnp.ones_like(flat))
    found = {
        "lpf_rise": even(_STEP),
        "perturbation": spread * _crossing(lambda size: even(size * spread)),
        "relative_perturbation": _crossing(functools.partial(rise, jnp.abs(flat))),
    }
    moved = optax.tree.norm(optax.tree.sub(params, initial_params))
    n = x.shape[0]
    divergence = jnp.square(moved / found["perturbation"]) / 2
    bound = (divergence + jnp.log(2 * n**0.5 / _DELTA)) / (2 * n)
    return found | {"pac_bayes_flatness": jnp.sqrt(bound)}


def _crossing(rise: Any) -> Array:
    """The size at which the loss has risen: bisection, then a parabola in between."""
    low, high = (jnp.asarray(decade, float) for decade in _DECADES)
    at_low, at_high = rise(10.0**low), rise(10.0**high)

    def halve(_, limits):
        low, high, at_low, at_high = limits
        middle = (low + high) / 2
        value = rise(10.0**middle)
        # What is not a number has left the range of numbers, and is above.
        above = ~(value < RISE)
        pick = lambda below, beyond: jnp.where(above, below, beyond)
        return (
            pick(low, middle),
            pick(middle, high),
            pick(at_low, value),
            pick(value, at_high),
        )

    limits = jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, (low, high, at_low, at_high))
    low, high = (10.0**limit for limit in limits[:2])
    share = (RISE - limits[2]) / (limits[3] - limits[2])
    share = jnp.where(jnp.isfinite(limits[3]), jnp.clip(share, 0, 1), 0.5)
    found = jnp.sqrt(low**2 + share * (high**2 - low**2))
    found = jnp.where(at_high < RISE, jnp.inf, found)
    return jnp.where(jnp.isfinite(at_low), found, jnp.nan)
