"""Where the noise of SGD ends: the stationary covariance of the iterates."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, Float
from scipy.linalg import solve_discrete_lyapunov
from scipy.sparse.linalg import LinearOperator, gmres

from jaxtheory.batching import check_count, check_function, check_number

_ITERATIONS = 2000
_SOLVED = 1e-6


class StationaryCovariance(NamedTuple):
    """The covariance that SGD on a quadratic keeps, and whether it exists.

    Attributes:
        covariance: ``[p, p]`` in float64; NaN where it does not exist.
        contraction: By what factor one step multiplies the covariance at last (the
            spectral radius of ``C -> E[A C A^T]``); below 1 there is a stationary law
            with finite variance, from 1 on there is none.
        exists: Whether `contraction` is below 1 by more than rounding: along a flat
            direction of the loss iterates wander without end.
        residual: Frobenius norm of what the equation leaves, over that of the
            covariance.
    """

    covariance: np.ndarray
    contraction: float
    exists: bool
    residual: float


def temperature(
    learning_rate: float,
    batch_size: int,
    *,
    momentum: float = 0.0,
    num_examples: int | None = None,
) -> float:
    r"""Compute the temperature of SGD, the scale of its noise.

    .. math:: T = \frac{\eta}{b (1 - \mu)} \Big( 1 - \frac{b}{n} \Big)

    In the limit of small rates, SGD with (heavy-ball, not damped) momentum has the
    stationary covariance ``T/2`` times the covariance of the gradient of one example,
    over the curvature. The last factor is there for batches that are drawn anew at
    every step, without replacement, from ``n`` stored examples (the covariance then
    with ``1/(n-1)``); full batches have no noise.

    `train` goes through shuffled epochs instead, as most training does: each batch has
    this variance, but over an epoch the noise cancels. The covariance is then smaller
    than ``T/2`` says wherever ``eta h n / b`` (curvature times rate times steps of an
    epoch) is not large: .27 of it at .8, .09 at .24, .03 at .08, in one dimension with
    8 batches an epoch.

    Args:
        learning_rate: Positive step size.
        batch_size: Examples in a batch.
        momentum: In [0, 1).
        num_examples: ``n`` for batches drawn anew at every step; None for fresh
            examples, or drawn with replacement.

    Returns:
        The temperature, in units of the learning rate.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> temperature(0.1, 5, momentum=0.5)
        0.04

    References:
        Jastrzebski et al., arXiv:1711.04623; Mandt et al., arXiv:1704.04289.
    """
    _check_options(learning_rate, batch_size, momentum)
    share = 0.0
    if num_examples is not None:
        share = batch_size / check_count(at_least=batch_size, num_examples=num_examples)
    return learning_rate / (batch_size * (1 - momentum)) * (1 - share)


def stationary_covariance(
    hessian: Float[ArrayLike, "p p"],
    noise_covariance: Float[ArrayLike, "p p"],
    *,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    second_moment: Callable[[np.ndarray], np.ndarray] | None = None,
) -> StationaryCovariance:
    r"""Solve for the covariance of SGD's iterates around the minimum of a quadratic.

    With *additive* noise (the covariance of the gradient is the same everywhere) it is
    the discrete Lyapunov equation

    .. math:: C = (I - \eta H) C (I - \eta H) + \frac{\eta^2}{b} \Sigma

    exact at every learning rate: in one dimension :math:`\eta \sigma^2 / (b h (2 - \eta
    h))`, where the Ornstein-Uhlenbeck limit has :math:`\eta \sigma^2 / (2 b h)`. With
    heavy-ball momentum it is the same equation for the pairs of successive iterates.

    With *multiplicative* noise, as batches give in a regression (the Hessian ``h`` of
    an example is random), pass `second_moment`, ``C -> E[h C h]``; then

    .. math:: C = C - \eta (H C + C H) + \eta^2 \Big[\frac{1}{b} E[h C h]
        + \Big(1 - \frac{1}{b}\Big) H C H\Big] + \frac{\eta^2}{b} \Sigma

    for batches drawn with replacement, and the variance can be infinite where the mean
    converges. (Shuffled epochs leave less: `temperature`.)

    Args:
        hessian: ``H``, symmetric, of the mean loss.
        noise_covariance: ``Sigma``, the covariance of the gradient of *one* example at
            the minimum, symmetric, no eigenvalue below zero.
        learning_rate: ``eta``.
        batch_size: ``b``.
        momentum: Heavy ball, ``w' = w - eta g + mu (w - w_before)``, in [0, 1).
        second_moment: ``[p, p] -> [p, p]``, linear; None for additive noise.

    Returns:
        The covariance, and whether there is one.

    Raises:
        ValueError: A matrix is not square, symmetric, real and finite, or is traced,
            the two disagree, the noise has a negative variance, an option is out of
            range, or `second_moment` is no function or comes with momentum.

    Memory:
        Float64 on the host. O(p^3) for additive noise (8 times that with momentum);
        with `second_moment` its cost for each of some 200 iterations of GMRES on
        ``p^2`` unknowns.

    Example:
        >>> import numpy as np
        >>> result = stationary_covariance(
        ...     np.array([[5.0]]), np.array([[0.49]]), learning_rate=0.1, batch_size=1
        ... )
        >>> round(float(result.covariance[0, 0]), 5)  # .0049 in the limit of small eta
        0.00653

    References:
        Mandt et al., arXiv:1704.04289 (the limit); Liu et al., arXiv:2012.03636 (at any
        learning rate, with momentum).
    """
    _check_options(learning_rate, batch_size, momentum)
    h, sigma = (
        _matrix("hessian", hessian),
        _matrix("noise_covariance", noise_covariance),
    )
    if h.shape != sigma.shape:
        raise ValueError(
            "`noise_covariance` must have the shape of `hessian`, "
            f"{h.shape}, but has {sigma.shape}."
        )
    _check_variances(sigma)
    kick = learning_rate**2 / batch_size * sigma
    if second_moment is None:
        return _additive(h, kick, learning_rate, momentum)
    if momentum:
        raise ValueError(
            "`momentum` must be 0 with `second_moment`: only additive noise is solved "
            f"for with momentum, but it was {momentum}. Leave one of the two out."
        )
    check_function("second_moment", second_moment)
    return _multiplicative(h, kick, learning_rate, batch_size, second_moment)


def _additive(h, kick, learning_rate, momentum):
    """Solve the Lyapunov equation, of pairs of iterates if there is momentum."""
    size = len(h)
    step = np.eye(size) - learning_rate * h
    if momentum:
        step = np.block(
            [
                [step + momentum * np.eye(size), -momentum * np.eye(size)],
                [np.eye(size), np.zeros((size, size))],
            ]
        )
        kick = np.pad(kick, (0, size))
    contraction = float(np.max(np.abs(np.linalg.eigvals(step)))) ** 2
    if not _below_one(contraction, len(step)):
        return _none(size, contraction)
    whole = solve_discrete_lyapunov(step, kick)
    residual = _relative(step @ whole @ step.T + kick - whole, whole)
    found = whole[:size, :size]
    return StationaryCovariance((found + found.T) / 2, contraction, True, residual)


def _multiplicative(h, kick, learning_rate, batch_size, second_moment):
    """Solve the equation of a random Hessian by GMRES over matrices."""
    shape = h.shape

    def advance(c):
        random = np.asarray(second_moment(c), float) / batch_size
        square = random + (1 - 1 / batch_size) * h @ c @ h
        return c - learning_rate * (h @ c + c @ h) + learning_rate**2 * square

    returned = np.shape(second_moment(np.eye(len(h))))
    if returned != shape:
        raise ValueError(
            f"`second_moment` must take and return a matrix of shape {shape}, but "
            f"returned one of shape {returned}."
        )
    contraction = _largest_factor(advance, len(h))
    if not contraction < 1:
        return _none(len(h), contraction)
    # Powers stop short where factors lie close together. The solution for the noise I
    # is a step of inverse iteration, and positive if and only if all factors are
    # below 1.
    probe, residual = _solve(advance, np.eye(len(h)))
    factor = float(np.sum(probe * advance(probe)) / np.sum(probe * probe))
    contraction = max(contraction, factor)
    positive = np.min(np.linalg.eigvalsh(probe)) > 0 and residual < _SOLVED
    if not (positive and _below_one(contraction, h.size)):
        return _none(len(h), contraction)
    found, residual = _solve(advance, kick)
    return StationaryCovariance(found, contraction, True, residual)


def _largest_factor(advance, size):
    """The spectral radius of a map of positive matrices to such, by its powers.

    It is its largest eigenvalue, and the identity has a part along it.
    """
    c, contraction = np.eye(size), np.inf
    for _ in range(_ITERATIONS):
        after = advance(c)
        before, contraction = contraction, float(np.linalg.norm(after))
        contraction /= float(np.linalg.norm(c))
        if not np.isfinite(contraction) or contraction == 0:
            break
        c = after / np.linalg.norm(after)
        if abs(contraction - before) < 1e-12 * contraction:
            break
    return contraction


def _solve(advance, kick):
    """The symmetric solution of ``C = advance(C) + kick``, and what is left."""
    shape = kick.shape
    left_over = lambda v: v - advance(v.reshape(shape)).ravel()
    operator = LinearOperator((kick.size, kick.size), left_over, dtype=float)  # pyright: ignore[reportCallIssue]
    solution, _ = gmres(operator, kick.ravel(), rtol=1e-13, maxiter=_ITERATIONS)
    found = solution.reshape(shape)
    residual = _relative(advance(found) + kick - found, found)
    return (found + found.T) / 2, residual


def _below_one(contraction, size):
    """Whether a factor is below 1 by more than the rounding of eigenvalues."""
    return contraction < 1 - 10 * size * np.finfo(float).eps


def _none(size, contraction):
    """The result where no stationary covariance exists."""
    nothing = np.full((size, size), np.nan)
    return StationaryCovariance(nothing, contraction, False, float("nan"))


def _relative(difference, whole):
    """A Frobenius norm over another; 0 where there is no noise at all."""
    scale = float(np.linalg.norm(whole))
    return float(np.linalg.norm(difference)) / scale if scale else 0.0


def _matrix(name, matrix):
    """A symmetric finite matrix in float64."""
    if isinstance(matrix, Tracer):
        raise ValueError(
            f"`{name}` must be concrete, but is traced. The equation is solved in "
            "double precision on the host: call it outside `jax.jit`."
        )
    array = np.asarray(matrix)
    if array.dtype.kind not in "fiu" and array.dtype != jnp.bfloat16:
        raise ValueError(f"`{name}` must hold real numbers, but has {array.dtype}.")
    array = array.astype(float)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(
            f"`{name}` must be a square matrix [p, p], but has shape {array.shape}."
        )
    scale = float(np.max(np.abs(array)))
    if not np.isfinite(scale):
        raise ValueError(f"`{name}` must be finite, but is not.")
    asymmetry = float(np.max(np.abs(array - array.T)))
    if asymmetry > 1e-5 * scale:
        raise ValueError(
            f"`{name}` must be symmetric, but differs from its transpose by "
            f"{asymmetry / scale:.1e} of its largest entry. Pass `(a + a.T) / 2`."
        )
    return (array + array.T) / 2


def _check_variances(sigma):
    """Raise if a covariance has a direction of negative variance."""
    values = np.linalg.eigvalsh(sigma)
    if values[0] < -1e-5 * max(values[-1], -values[0]):
        raise ValueError(
            "`noise_covariance` must have no eigenvalue below zero, as no covariance "
            f"has, but its smallest is {values[0] / np.max(np.abs(values)):.1e} of its "
            "largest."
        )


def _check_options(learning_rate, batch_size, momentum):
    """Check the numbers that describe SGD."""
    check_number("learning_rate", learning_rate, lambda a: 0 < a < np.inf, "positive")
    check_count(batch_size=batch_size)
    check_number("momentum", momentum, lambda a: 0 <= a < 1, "in [0, 1)")
