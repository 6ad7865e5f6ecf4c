"""Magnitude of a set of points: how many there seem to be at a scale."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, Bool, Float
from scipy.linalg import get_lapack_funcs

from jaxtheory.dynamics.topology._checks import as_distances, count_invalid

_SATURATED = 0.95


class Magnitude(NamedTuple):
    """Magnitude over a sweep of scales, in double precision on the host.

    Attributes:
        scales: The scales ``s`` that were asked for.
        magnitude: Sum of the weights.
        positive_magnitude: Sum of the positive weights.
        saturated: True where `positive_magnitude` is above .95 of the number of
            distinct points: every point then counts for itself, and the measure says
            how many there are and nothing else.
        condition_number: Estimate of that of ``Z`` in the 1-norm. Above 1e12 or so few
            digits of the weights are right; infinite where ``Z`` is singular to double
            precision, and the rest is then NaN.
        share_negative: Share of weights below zero: where it is large, the sum of the
            positive ones depends on cancellation.
        residual: Largest ``|Z b - 1|``.
        num_points: Number of points.
        num_coincident: Number of points at distance zero from an earlier one, which
            were left out.
        num_invalid: Number of entries that are no distances, because they are negative
            or not finite or unlike their mirror image. Unless it is 0 all is NaN.
    """

    scales: Float[np.ndarray, " s"]
    magnitude: Float[np.ndarray, " s"]
    positive_magnitude: Float[np.ndarray, " s"]
    saturated: Bool[np.ndarray, " s"]
    condition_number: Float[np.ndarray, " s"]
    share_negative: Float[np.ndarray, " s"]
    residual: Float[np.ndarray, " s"]
    num_points: int
    num_coincident: int
    num_invalid: int


def magnitude(
    distances: Float[ArrayLike, "r r"],
    *,
    scales: Float[ArrayLike, " s"] | Sequence[float],
) -> Magnitude:
    r"""Compute magnitude and positive magnitude over a sweep of scales.

    .. math:: Z_{ij} = e^{-s d_{ij}}, \quad Z b = 1, \quad
        \mathrm{Mag} = \sum_i b_i, \quad \mathrm{PMag} = \sum_i \max(b_i, 0)

    sums over points, not means: 1 for ``s`` to 0, the number of points for ``s`` to
    infinity. What lies between is the measure, so sweep. The published scale is
    ``sqrt(n)`` with ``n`` the number of training examples (``scales=[n ** 0.5]``): it
    is the same for a path a micron long and a mile long, and on most paths saturates.
    Scales around one over the mean distance do not.

    On the host, in double precision whether or not JAX has it switched on: at small
    scales ``Z`` has condition 1e9, and single precision knows no digit of the weights.
    By LAPACK's Cholesky solver with iterative refinement, and by the one for indefinite
    matrices where ``Z`` is not positive definite, which not every metric makes it
    (Euclidean distances and those of losses do). Nothing is added to the diagonal,
    which would change the answer; points at distance zero count once.

    Args:
        distances: Symmetric matrix with zero diagonal, at least two points, such as
            `pairwise_distances` or `loss_distances` gives; not inside `jax.jit`.
        scales: Positive numbers.

    Returns:
        Both magnitudes at each scale, and whether to believe them.

    Raises:
        ValueError: `distances` is not a square matrix of floating-point numbers or is
            traced, or `scales` is not a vector of positive numbers.

    Memory:
        Two matrices ``r^2`` in double precision; ``r^3 / 3`` operations a scale.

    Example:
        >>> import numpy as np
        >>> distances = 2.0 * (1 - np.eye(5))  # five points, each 2 from all others
        >>> result = magnitude(distances, scales=[1.0])
        >>> expected = 5 / (1 + 4 * np.exp(-2.0))
        >>> bool(abs(result.magnitude[0] - expected) < 1e-12)
        True

    References:
        Leinster, arXiv:1012.5857; Andreeva et al., arXiv:2407.08723 (positive
        magnitude).
    """
    if any(isinstance(a, Tracer) for a in jax.tree.leaves((distances, scales))):
        raise ValueError(
            "`distances` and `scales` must be concrete, but are traced. Magnitude is "
            "solved in double precision on the host: call it outside `jax.jit`."
        )
    host = np.asarray(as_distances(distances, np), np.float64)
    steps = _check_scales(scales)
    num_invalid = int(count_invalid(host, np))
    if num_invalid:
        host = np.full_like(host, np.nan)
    # The first of all that are where a point is: itself, unless an earlier one is.
    first = np.argmax(host == 0, axis=1)
    distinct = np.flatnonzero(first == np.arange(len(host)))
    host = host[np.ix_(distinct, distinct)]
    found = [_at_scale(host, scale) for scale in steps]
    plain, positive, *rest = np.array(found).T
    saturated = positive > _SATURATED * len(distinct)
    return Magnitude(
        steps,
        plain,
        positive,
        saturated,
        *rest,
        num_points=len(first),
        num_coincident=0 if num_invalid else len(first) - len(distinct),
        num_invalid=num_invalid,
    )


def _at_scale(distances, scale):
    """Magnitude, positive magnitude, condition, share negative, residual."""
    if np.isnan(distances).any():
        return (np.nan,) * 5
    kernel = np.exp(-scale * distances)
    ones = np.ones((len(kernel), 1))
    names = ("posvx", "sysvx", "sysvx_lwork")
    definite, indefinite, workspace = get_lapack_funcs(names, dtype=np.float64)
    *_, weights, rcond, _, _, info = definite(kernel, ones)
    if 0 < info <= len(kernel):  # not positive definite, which is no error
        work = int(workspace(len(kernel))[0])
        *_, weights, rcond, _, _, info = indefinite(kernel, ones, lwork=work)
    # LAPACK says order + 1 for a condition number above 1 / eps, but solves.
    if 0 < info <= len(kernel) or rcond == 0:
        return np.nan, np.nan, np.inf, np.nan, np.nan
    residual = np.max(np.abs(kernel @ weights - ones))
    positive = np.sum(np.maximum(weights, 0))
    return np.sum(weights), positive, 1 / rcond, np.mean(weights < 0), residual


def _check_scales(scales):
    """The scales as a vector of doubles; raise unless they are positive."""
    steps = np.asarray(scales)
    if not np.issubdtype(steps.dtype, np.number) or np.iscomplexobj(steps):
        raise ValueError(f"`scales` must be real numbers, but was {scales!r}.")
    steps = steps.astype(np.float64)
    if steps.ndim != 1 or steps.size == 0:
        raise ValueError(
            f"`scales` must be a non-empty vector, but has shape {steps.shape}. Pass "
            "one scale as `[scale]`."
        )
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(
            "`scales` must be positive and finite, but the smallest was "
            f"{steps.min()!r} and the largest {steps.max()!r}."
        )
    return steps
