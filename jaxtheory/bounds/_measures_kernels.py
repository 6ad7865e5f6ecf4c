"""Measures of the tangent kernel on some examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory import kernels
from jaxtheory._types import ApplyFn, Params


def kernel_measures(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    num_classes: int,
    num_examples: int,
) -> dict[str, Array]:
    """What the tangent kernel of evenly spaced examples says of their labels.

    Args:
        apply_fn: The model.
        params: Parameters.
        x: Inputs.
        labels: Class of each example.
        num_classes: Number ``k`` of outputs.
        num_examples: Examples ``m`` that are taken.

    Returns:
        One number for each name.
    """
    rows = jnp.arange(num_examples) * x.shape[0] // num_examples
    kernel = kernels.empirical_ntk(apply_fn, params, x[rows]) / num_classes
    targets = jax.nn.one_hot(labels[rows], num_classes, dtype=kernel.dtype)
    spectrum = kernels.spectrum_summary(kernel)
    # Labels without what a constant tells: no offset is fitted.
    fit = kernels.kernel_regression(kernel, targets - 1 / num_classes, ridge=0.0)
    energy = jnp.sum((targets - 1 / num_classes) * fit.coefficients)
    return {
        "ntk_alignment": kernels.centred_alignment(kernel, targets),
        "ntk_effective_rank": spectrum.effective_rank,
        "ntk_stable_rank": spectrum.stable_rank,
        "ntk_condition_number": spectrum.condition_number,
        "ntk_complexity": jnp.sqrt(2 * energy / num_examples),
        "ntk_cross_validation": jnp.mean(fit.generalised_cross_validation),
    }
