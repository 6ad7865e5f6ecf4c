"""Measure deep learning the way theory describes it, in JAX."""

from jaxtheory import batching as batching
from jaxtheory import bounds as bounds
from jaxtheory import collapse as collapse
from jaxtheory import curvature as curvature
from jaxtheory import data as data
from jaxtheory import dynamics as dynamics
from jaxtheory import interop as interop
from jaxtheory import kernels as kernels
from jaxtheory import linalg as linalg
from jaxtheory import models as models
