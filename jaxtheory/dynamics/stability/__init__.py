"""Stability of training: Lyapunov exponents, Sharpness Dimension, swapped examples."""

from jaxtheory.dynamics.stability._dimension import (
    SharpnessDimension as SharpnessDimension,
)
from jaxtheory.dynamics.stability._dimension import (
    sharpness_dimension as sharpness_dimension,
)
from jaxtheory.dynamics.stability._dimension import (
    sharpness_dimension_from_density as sharpness_dimension_from_density,
)
from jaxtheory.dynamics.stability._frame import LyapunovExponents as LyapunovExponents
from jaxtheory.dynamics.stability._lyapunov import (
    lyapunov_exponents as lyapunov_exponents,
)
from jaxtheory.dynamics.stability._lyapunov import (
    lyapunov_exponents_of_map as lyapunov_exponents_of_map,
)
from jaxtheory.dynamics.stability._paired import (
    RandomSetStability as RandomSetStability,
)
from jaxtheory.dynamics.stability._paired import SwappedExamples as SwappedExamples
from jaxtheory.dynamics.stability._paired import (
    on_average_stability as on_average_stability,
)
from jaxtheory.dynamics.stability._paired import (
    random_set_stability as random_set_stability,
)
from jaxtheory.dynamics.stability._paired import swap_examples as swap_examples
from jaxtheory.dynamics.stability._rds import RDSSharpness as RDSSharpness
from jaxtheory.dynamics.stability._rds import rds_sharpness as rds_sharpness
