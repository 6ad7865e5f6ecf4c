"""The random probes that stochastic estimators share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtheory._types import Estimate, KeyArray


def signs(
    key: KeyArray, index: Int[Array, ""], like: Float[Array, " p"]
) -> tuple[Float[Array, " p"], KeyArray]:
    """Draw one probe of random signs; equal keys and indices give equal ones.

    Hence estimators with the same key see the same probes, whatever else they draw.

    Args:
        key: Of all probes.
        index: Which one.
        like: A vector of the probe's length and dtype.

    Returns:
        The probe, and a key for what else belongs to it.
    """
    probe_key, other_key = jax.random.split(jax.random.fold_in(key, index))
    return jax.random.rademacher(probe_key, like.shape, like.dtype), other_key


def estimate(samples: Float[Array, "... s"]) -> Estimate:
    """Average over the last axis, that of the probes.

    Args:
        samples: One value for each of at least two independent probes.

    Returns:
        Mean, standard error (``1/(s-1)`` variance) and number.
    """
    mean, error = _mean_and_error(samples)
    return Estimate(mean, error, samples.shape[-1])


@jax.jit
def _mean_and_error(samples):
    """One program: most callers are not being compiled."""
    # In units of the largest: squares of small and large samples leave float32.
    unit = jnp.max(jnp.abs(samples), axis=-1, keepdims=True)
    unit = jnp.where(jnp.isfinite(unit) & (unit > 0), unit, 1)
    error = jnp.std(samples / unit, axis=-1, ddof=1) / jnp.sqrt(samples.shape[-1])
    return jnp.mean(samples, axis=-1), error * unit[..., 0]
