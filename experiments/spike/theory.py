"""What Baik, Ben Arous and Peche predict for the spike of one step."""

import math
from typing import Any

import numpy as np

from jaxtheory import linalg

LINEAR = 0.8  # coefficient of the linear part of the target


def signal(config: Any) -> float:
    """Mean squared norm of ``1/n sum y x`` for a target of variance 1."""
    return LINEAR**2 + (config.dim + 2 * LINEAR**2) / config.num_train


def predicted(config: Any, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First eigenvalue, and squared overlap of its eigenvector with the teacher.

    Args:
        config: Has `dim`, `width` and `num_train`.
        strengths: Spikes over the threshold.
    """
    ratio = config.dim / config.width
    theory = linalg.outlier_of_spike(strengths * math.sqrt(ratio), ratio=ratio)
    overlap = np.asarray(theory.overlap_squared) * LINEAR**2 / signal(config)
    return np.asarray(theory.location), overlap
