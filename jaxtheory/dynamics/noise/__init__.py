"""Gradient noise: how large it is, where it points, and where it takes training.

The covariance of the gradient as an operator is `curvature.gradient_covariance`, its
spectrum `linalg.top_eigenpairs` or `linalg.spectral_density` of it, and its alignment
with the Hessian `curvature.flatness.noise_alignment`.
"""

from jaxtheory.dynamics.noise._projected import projected_noise as projected_noise
from jaxtheory.dynamics.noise._scale import noise_scale as noise_scale
from jaxtheory.dynamics.noise._scale import (
    two_batch_noise_scale as two_batch_noise_scale,
)
from jaxtheory.dynamics.noise._sde import SDE as SDE
from jaxtheory.dynamics.noise._sde import sgd_sde as sgd_sde
from jaxtheory.dynamics.noise._sde import simulate as simulate
from jaxtheory.dynamics.noise._stationary import (
    stationary_covariance as stationary_covariance,
)
from jaxtheory.dynamics.noise._stationary import temperature as temperature
