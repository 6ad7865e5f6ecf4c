"""The infinite-width kernel of ReLU networks in closed form, with NumPy alone."""

import numpy as np


def relu_ntk(
    covariance: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    num_layers: int,
    bias_variance: float = 0.0,
) -> np.ndarray:
    """The infinite-width NTK of a ReLU network of He weights; first, ``W x``.

    Args:
        covariance: ``x . x' / d`` of pairs, ``[m, n]``.
        first: ``|x|^2 / d``, ``[m, 1]``.
        second: ``|x'|^2 / d``, ``[1, n]``.
        num_layers: Number of hidden layers; the last layer is He's, too.
        bias_variance: Variance of biases, which train as well.

    References:
        Cho and Saul 2009 (arc-cosine kernels); Jacot et al., arXiv:1806.07572.
    """
    k, p, q = (2 * a + bias_variance for a in (covariance, first, second))
    ntk = k
    for _ in range(num_layers):
        norms = np.sqrt(p * q)
        # Of the cosine alone the angle would lose half of the digits near zero.
        sine = np.sqrt(np.maximum((norms - k) * (norms + k), 0))
        angle = np.pi - np.arctan2(sine, k)
        k, slope = (sine + angle * k) / np.pi + bias_variance, angle / np.pi
        p, q = p + bias_variance, q + bias_variance
        ntk = slope * ntk + k
    return ntk
