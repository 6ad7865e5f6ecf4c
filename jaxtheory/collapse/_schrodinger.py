"""The spectral gap of learning-rate dependent diffusion in one dimension."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtheory.batching import check_count, check_number

_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-13


class SchrodingerGap(NamedTuple):
    """The rate at which stochastic gradient descent forgets where it began.

    Attributes:
        gap: ``lambda_s``, per unit of time (learning rate times steps). NaN where the
            potential is not finite on the interval.
        discretization_error: A third of the difference to twice the spacing, which is
            the error before it was extrapolated away: far above that of `gap`.
        edge_mass: Stationary probability of the outermost hundredth of the interval at
            each side. Where it is not tiny, the interval cuts off what matters.
        converged: Whether the iteration came to rest on both grids.
    """

    gap: float
    discretization_error: float
    edge_mass: float
    converged: bool


def schrodinger_gap(
    potential: Callable[[Any], Any],
    *,
    learning_rate: float | int,
    interval: tuple[float | int, float | int],
    num_points: int = 2001,
) -> SchrodingerGap:
    """Find the spectral gap of the learning-rate dependent Schrodinger operator.

    Stochastic gradient descent with learning rate ``s`` follows, in continuous time,
    ``dX = -f'(X) dt + sqrt(s) dB``. Its distance to stationarity decays as ``exp(-
    lambda_s t)``, with ``lambda_s`` the smallest positive eigenvalue of

        (s/2) [ -d^2/dx^2 + f'(x)^2 / s^2 - f''(x) / s ] ,

    whose ground state ``exp(-f/s)`` has eigenvalue 0. With a barrier of height ``H``
    (the Morse saddle barrier) to be crossed, ``log lambda_s`` falls as ``-2 H / s``; a
    convex potential has no barrier and a gap that does not depend on ``s`` at first
    order.

    The gap is exponentially small, and a difference of eigenvalues computed with
    rounding would lose it. Here it is the ground state of the flux, in which every
    number is positive: power iteration with the Green's function, in logarithms, keeps
    all digits at any size. Boundaries reflect. Computed on the host in float64.

    Args:
        potential: ``f``, from an array of points to an array of values, in JAX or in
            NumPy. It is called in double precision.
        learning_rate: ``s > 0``.
        interval: Ends of the interval, beyond all minima that matter.
        num_points: Points of the finer of two grids, odd. The error falls as their
            fourth power.

    Returns:
        The gap and what to judge it by.

    Raises:
        ValueError: `potential` does not return one value for each point, or a number is
            out of its range.

    Example:
        >>> double_well = lambda x: (x**2 - 1) ** 2 / 4
        >>> found = schrodinger_gap(
        ...     double_well, learning_rate=0.05, interval=(-2.5, 2.5)
        ... )
        >>> print(f"{found.gap:.4e}")
        1.9589e-05

    References:
        Shi, Su & Jordan 2020, arXiv:2004.06977 (the operator, and the asymptotics of
        its gap).
    """
    positive = lambda v: 0 < v < np.inf
    must = "a positive, finite number"
    check_number("learning_rate", learning_rate, positive, must)
    num_points = check_count(num_points=num_points, at_least=9)
    if num_points % 2 == 0:
        raise ValueError(
            f"`num_points` must be odd, so that every other point makes the coarser "
            f"grid, but was {num_points}."
        )
    if not callable(potential):
        raise ValueError(
            f"`potential` must be a function, but is a {type(potential).__name__}."
        )
    if np.shape(interval) != (2,) or np.asarray(interval).dtype.kind not in "iuf":
        raise ValueError(f"`interval` must be two numbers, but was {interval!r}.")
    low, high = (float(end) for end in interval)
    if not -np.inf < low < high < np.inf:
        raise ValueError(
            f"`interval` must be two finite numbers in order, but was ({low}, {high})."
        )
    # Nodes and, between them, midpoints.
    points = np.linspace(low, high, 2 * num_points - 1)
    with jax.enable_x64(True):
        values = np.asarray(potential(points))
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"`potential` must return real numbers, but returned dtype {values.dtype}."
        )
    values = values.astype(np.float64)
    if values.shape != points.shape:
        raise ValueError(
            "`potential` must return one value for each point, but returned shape "
            f"{values.shape} for {points.shape}. Apply it elementwise."
        )
    if not np.all(np.isfinite(values)):
        return SchrodingerGap(np.nan, np.nan, np.nan, False)
    rate = float(learning_rate)
    log_density = -2 * (values - values.min()) / rate
    spacing = (high - low) / (num_points - 1)
    fine, fine_rests = _gap(log_density, spacing, rate)
    coarse, coarse_rests = _gap(log_density[::2], 2 * spacing, rate)
    edge = max(1, num_points // 100)
    density = np.exp(log_density[::2])
    outside = (density[:edge].sum() + density[-edge:].sum()) / density.sum()
    gap = (4 * fine - coarse) / 3
    error = abs(fine - coarse) / 3
    rests = fine_rests and coarse_rests and bool(np.isfinite(gap))
    return SchrodingerGap(gap, error, float(outside), rests)


def _gap(log_density, spacing, rate):
    """The gap on one grid, of the log-density at nodes and midpoints in turn.

    The flux ``J = p u'`` of an eigenfunction ``u`` obeys ``-(s/2) (J' / p)' = lambda
    J / p``, zero at the ends. The Green's function of the left-hand side is ``P(x)
    (1 - P(y))`` for ``x < y``, with ``P`` the mass to the left.
    """
    nodes, between = log_density[::2], log_density[1::2]
    left = np.logaddexp.accumulate(nodes)[:-1]
    right = np.logaddexp.accumulate(nodes[::-1])[::-1][1:]
    total = np.logaddexp(left[-1], nodes[-1])
    flux, log_largest, change = left + right - total, np.inf, np.inf
    for _ in range(_MAX_ITERATIONS):
        source = flux - between
        from_left = np.logaddexp.accumulate(left + source)
        from_right = np.logaddexp.accumulate((right + source)[::-1])[::-1]
        from_right = np.append(from_right[1:], -np.inf)
        new = np.logaddexp(right + from_left, left + from_right) - total
        # The Rayleigh quotient: its error is the square of that of the flux.
        quotient = _log_sum(source + new) - _log_sum(source + flux)
        change, log_largest = abs(quotient - log_largest), quotient
        flux = new - new.max()
        if change < _TOLERANCE:
            break
    gap = rate / 2 / spacing**2 * np.exp(-log_largest)
    return float(gap), bool(change < _TOLERANCE)


def _log_sum(logs):
    """Logarithm of a sum of exponentials."""
    return np.logaddexp.reduce(logs)
