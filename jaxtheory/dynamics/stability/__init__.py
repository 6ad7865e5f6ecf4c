"""Stability of training: Lyapunov exponents, Sharpness Dimension, swapped examples."""

from jaxtheory.dynamics.stability._lyapunov import (
    LyapunovExponents as LyapunovExponents,
)
from jaxtheory.dynamics.stability._lyapunov import (
    lyapunov_exponents as lyapunov_exponents,
)
from jaxtheory.dynamics.stability._lyapunov import (
    lyapunov_exponents_of_map as lyapunov_exponents_of_map,
)
