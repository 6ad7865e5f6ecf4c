"""Measures of weight matrices alone: spectra and tails."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxtheory._types import KeyArray, Params
from jaxtheory.dynamics import tails


def spectrum_measures(params: Params, *, key: KeyArray) -> dict[str, Array]:
    """Means over weight matrices of what their spectra say.

    Args:
        params: Parameters.
        key: For the shuffling of `tails.weight_spectra`.

    Returns:
        One number for each name. Exponents are means over the matrices with
        enough eigenvalues for a power law; NaN where none has.
    """
    spectra = [*tails.weight_spectra(params, key=key).values()]
    collect = lambda of: jnp.stack([jnp.asarray(of(s)) for s in spectra])
    fitted = ~collect(lambda s: s.too_few)
    # What is not fitted is NaN, and no other NaN may hide with it.
    mean_fitted = lambda values: jnp.sum(jnp.where(fitted, values, 0)) / jnp.sum(fitted)
    exponents = collect(lambda s: s.power_law.exponent)
    norms = collect(lambda s: s.spectral_norm)
    return {
        "power_law_exponent": mean_fitted(exponents),
        "weighted_power_law_exponent": mean_fitted(2 * exponents * jnp.log10(norms)),
        "marchenko_pastur_distance": jnp.mean(collect(lambda s: s.noise.ks_distance)),
        "entry_tail_index": jnp.mean(collect(lambda s: s.entry_tail_index)),
    }
