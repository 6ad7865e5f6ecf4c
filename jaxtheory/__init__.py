"""Measure deep learning the way theory describes it, in JAX."""

import importlib
from types import ModuleType

from jaxtheory import batching as batching
from jaxtheory import bounds as bounds
from jaxtheory import collapse as collapse
from jaxtheory import compression as compression
from jaxtheory import curvature as curvature
from jaxtheory import data as data
from jaxtheory import dynamics as dynamics
from jaxtheory import interop as interop
from jaxtheory import kernels as kernels
from jaxtheory import linalg as linalg
from jaxtheory import models as models
from jaxtheory import optimizers as optimizers
from jaxtheory._types import Estimate as Estimate


def __getattr__(name: str) -> ModuleType:
    """`plot` and `portrait`, which load matplotlib, when they are first asked for."""
    if name not in ("plot", "portrait"):
        raise AttributeError(f"module 'jaxtheory' has no attribute {name!r}")
    return importlib.import_module(f"jaxtheory.{name}")
