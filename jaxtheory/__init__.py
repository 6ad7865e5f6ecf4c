"""Measure deep learning the way theory describes it, in JAX."""

from jaxtheory import batching as batching
from jaxtheory import linalg as linalg
