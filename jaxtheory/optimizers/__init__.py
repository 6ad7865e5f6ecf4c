"""Optimizers that theory suggests, as optax transforms."""

from jaxtheory.optimizers._heavy_tailed import (
    HeavyTailedNoiseState as HeavyTailedNoiseState,
)
from jaxtheory.optimizers._heavy_tailed import heavy_tailed_noise as heavy_tailed_noise
from jaxtheory.optimizers._tail_aware import TailAwareRatesState as TailAwareRatesState
from jaxtheory.optimizers._tail_aware import tail_aware_rates as tail_aware_rates
