"""Gradient noise: how large it is, where it points, and where it takes training."""

from jaxtheory.dynamics.noise._scale import noise_scale as noise_scale
from jaxtheory.dynamics.noise._scale import (
    two_batch_noise_scale as two_batch_noise_scale,
)
