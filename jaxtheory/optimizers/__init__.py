"""Optimizers that theory suggests, as optax transforms."""

from jaxtheory.optimizers._heavy_tailed import (
    HeavyTailedNoiseState as HeavyTailedNoiseState,
)
from jaxtheory.optimizers._heavy_tailed import heavy_tailed_noise as heavy_tailed_noise
