"""Where gradient flow takes a diagonal linear network, exactly, at any scale."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory.batching import check_number
from jaxtheory.kernels._checks import host_array

_TOLERANCE = 1e-10


class DiagonalLimit(NamedTuple):
    """The interpolating predictor that gradient flow ends in.

    Attributes:
        coefficients: ``beta``, in double precision.
        dual: ``nu`` with ``beta = 2 scale^2 sinh(x^T nu)``.
        residual: ``|x beta - y| / |y|``.
        converged: Whether `residual` is at most ``1e-10``. False too where nothing
            interpolates `y`.
        num_iterations: Newton steps, of all scales on the way.
    """

    coefficients: Float[np.ndarray, " d"]
    dual: Float[np.ndarray, " n"]
    residual: float
    converged: bool
    num_iterations: int


def diagonal_network_limit(
    x: Float[ArrayLike, "n d"], y: Float[ArrayLike, " n"], *, scale: Real[ArrayLike, ""]
) -> DiagonalLimit:
    r"""Solve gradient flow of a diagonal linear network to its end.

    The network ``f(x) = sum_j (u_j^2 - v_j^2) x_j`` from ``u = v = scale`` on, with a
    squared loss that it can bring to zero, ends in the ``beta = u^2 - v^2`` with

    ``x beta = y``, ``beta = 2 scale^2 sinh(x^T nu)``

    for some ``nu``: the interpolation of least ``l2`` norm for large scales (lazy, a
    kernel), of least ``l1`` norm for small ones (rich). Found as the minimum of the
    convex dual ``2 scale^2 sum_j cosh((x^T nu)_j) - <y, nu>`` by Newton's method, which
    fails from afar at small scales: they are approached from large ones, each solution
    with its tangent the start for the next.

    On the host, in double precision; not to be jitted.

    Args:
        x: Inputs, of full row rank (so ``n <= d``).
        y: Targets, not all zero.
        scale: Scale of the initialisation, positive; down to about ``1e-8``.

    Returns:
        The coefficients, and whether they interpolate; see `DiagonalLimit`.

    Raises:
        ValueError: Shapes do not fit, values are not finite, `y` is zero or `scale` is
            not positive.

    Memory:
        ``O(n d)``; ``O(n^2 d)`` time for each of some 5 steps for each halving of the
        scale.

    Example:
        >>> import numpy as np
        >>> x, y = np.array([[2.0, 1.0]]), np.array([2.0])
        >>> for scale in (100.0, 1e-6):  # least squares, then the fewest coordinates
        ...     limit = diagonal_network_limit(x, y, scale=scale)
        ...     print(abs(limit.coefficients).round(3), limit.converged)
        [0.8 0.4] True
        [1. 0.] True

    References:
        Woodworth et al., arXiv:2002.09277, theorem 1 and section 4.
    """
    positive = lambda s: 0 < s < float("inf")
    check_number("scale", scale, positive, "positive and finite")
    x, y = host_array("x", x), host_array("y", y)
    scale = float(np.asarray(scale))
    _check(x, y)
    least_squares = np.linalg.lstsq(x, y, rcond=None)[0]
    # From here on up, sinh is all but linear on the solution.
    current = max(scale, float(np.sqrt(np.max(np.abs(least_squares)))))
    dual = np.linalg.lstsq(x.T, least_squares / (2 * current**2), rcond=None)[0]
    dual, taken = _newton(x, y, dual, current)
    while current > scale:
        following = max(scale, current / 2)
        # Along solutions, H dnu = -2 y dlog(scale) with the Hessian H of the dual.
        tangent = -2 * _solve(x, _coefficients(x, dual, current)[1], y)
        dual = dual + tangent * np.log(following / current)
        current = following
        dual, steps = _newton(x, y, dual, current)
        taken += steps
    beta, _ = _coefficients(x, dual, scale)
    residual = float(np.linalg.norm(x @ beta - y) / np.linalg.norm(y))
    converged = residual <= _TOLERANCE
    return DiagonalLimit(beta, dual, residual, converged, taken)


def _newton(x, y, dual, scale, most=50):
    """Minimise the dual from a start, by damped Newton steps; how many it took."""
    # Overflow far from the solution is infinite, and halved away.
    with np.errstate(over="ignore", invalid="ignore"):
        for taken in range(most):
            beta, weights = _coefficients(x, dual, scale)
            gradient = x @ beta - y
            if np.linalg.norm(gradient) <= 1e-2 * _TOLERANCE * np.linalg.norm(y):
                return dual, taken
            step = -_solve(x, weights, gradient)
            slope, before = gradient @ step, _objective(x, y, dual, scale)
            size = 1.0
            while size > 1e-10:
                after = _objective(x, y, dual + size * step, scale)
                # To rounding: at the end nothing falls any more.
                if after <= before + 1e-4 * size * slope + 1e-15 * abs(before):
                    break
                size /= 2
            dual = dual + size * step
    return dual, most


def _coefficients(x, dual, scale):
    """``beta`` and its derivative, the weights of the Hessian."""
    mapped = x.T @ dual
    return 2 * scale**2 * np.sinh(mapped), 2 * scale**2 * np.cosh(mapped)


def _objective(x, y, dual, scale):
    return 2 * scale**2 * np.sum(np.cosh(x.T @ dual)) - y @ dual


def _solve(x, weights, target):
    """``(x diag(weights) x^T)^-1 target`` through the root, not the square."""
    root = np.sqrt(weights)[:, None] * x.T
    if not np.all(np.isfinite(root)):
        return np.zeros_like(target)
    half = np.linalg.lstsq(root.T, target, rcond=None)[0]
    return np.linalg.lstsq(root, half, rcond=None)[0]


def _check(x: Any, y: Any) -> None:
    """Raise unless there is something to interpolate."""
    if x.ndim != 2 or y.shape != x.shape[:1] or 0 in x.shape:
        raise ValueError(
            f"`x` must be [n, d] and `y` be [n], but have shapes {x.shape} and "
            f"{y.shape}."
        )
    if not np.any(y):
        raise ValueError("`y` must not be all zero: nothing is left to interpolate.")
