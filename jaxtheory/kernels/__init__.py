"""Kernels of networks: empirical neural tangent kernels, comparison, regression."""
