"""Kernels of networks: empirical neural tangent kernels, comparison, regression."""

from jaxtheory.kernels._compare import centred_alignment as centred_alignment
from jaxtheory.kernels._compare import kernel_distance as kernel_distance
from jaxtheory.kernels._empirical import empirical_ntk as empirical_ntk
from jaxtheory.kernels._regression import KernelRegression as KernelRegression
from jaxtheory.kernels._regression import kernel_regression as kernel_regression
