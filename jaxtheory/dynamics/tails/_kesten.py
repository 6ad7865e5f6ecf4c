"""Tail indices of linear random recursions, from Kesten's equation h(alpha) = 1."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy.optimize import brentq
from scipy.special import gammaln

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.dynamics.tails._lengths import check_settled, shape_and_dtype

_LARGEST = 1024.0
_NUM_HALVINGS = 26  # of 24 octaves: single precision
_NUM_BATCHES = 10


class KestenTailIndex(NamedTuple):
    """The tail index of the stationary law of ``x <- M x + q``, if there is one.

    Attributes:
        value: The root ``alpha > 0`` of ``h(alpha) = 1``. Infinite where the
            multipliers never exceed 1 (or the root is above 1,024): no power law. NaN
            where there is no stationary law.
        standard_error: From the samples; 0 of a quadrature, NaN where `value` is not
            finite.
        lyapunov_exponent: ``rho``, mean growth of ``log |x|`` a step.
        lyapunov_standard_error: Its standard error; 0 of a quadrature.
        stationary: ``rho < 0``. Where it is not, iterates grow without bound and
            any tail index measured on them means nothing. Within two standard errors
            of 0 it is not decided.
        effective_samples: ``(sum w)^2 / sum w^2`` of the weights ``w = |m|^alpha``
            that make up ``h(alpha)``: when small, a few samples decide, and neither
            `value` nor `standard_error` can be trusted. Infinite of a quadrature.
    """

    value: Float[ArrayLike, ""]
    standard_error: Float[ArrayLike, ""]
    lyapunov_exponent: Float[ArrayLike, ""]
    lyapunov_standard_error: Float[ArrayLike, ""]
    stationary: Bool[ArrayLike, ""]
    effective_samples: Float[ArrayLike, ""]


def linear_regression_tail_index(
    learning_rate: float,
    *,
    dimension: int,
    batch_size: int,
    variance: float = 1.0,
) -> KestenTailIndex:
    r"""Compute the tail index of SGD on linear regression with Gaussian inputs.

    For the loss ``(a^T x - y)^2 / 2`` averaged over fresh batches of ``b`` inputs
    ``a ~ N(0, sigma^2 I_d)``, the multipliers are
    ``M = I - (eta / b) sum_i a_i a_i^T``, rotation-invariant, so that

    .. math:: h(s) = \mathbb{E} |M e|^s
        = \mathbb{E} \left( (1 - c X)^2 + c^2 X Y \right)^{s/2}, \quad
        c = \frac{\eta \sigma^2}{b}, \quad
        X \sim \chi^2_b, \quad Y \sim \chi^2_{d-1}

    and ``alpha`` solves ``h(alpha) = 1``, by quadrature in double precision. It is 2
    at ``eta = 2 b / (sigma^2 (d + b + 1))``, exactly. There is a solution only where
    ``rho = h'(0) < 0``: at d=100, b=1 every index in (0, 2) lies in ``eta`` between
    .019608 and .019632, and beyond SGD diverges.

    A loss without the factor 1/2 doubles the gradient: pass twice its learning rate.

    Args:
        learning_rate: ``eta``, positive.
        dimension: ``d``.
        batch_size: ``b``.
        variance: ``sigma^2`` of an input's entries.

    Returns:
        The tail index, as numbers of Python: it cannot be traced.

    Raises:
        ValueError: A number is not positive, or traced.

    Memory:
        Half a million quadrature points in two or more dimensions, some .5 s.

    Example:
        >>> found = linear_regression_tail_index(2 / 3, dimension=1, batch_size=1)
        >>> round(found.value, 4)
        2.0

    References:
        Gurbuzbalaban, Simsekli & Zhu, arXiv:2006.04740, theorem 2 and proposition 5;
        Kesten, Acta Math. 131 (1973).
    """
    check_settled("learning_rate", learning_rate)
    check_settled("variance", variance)
    positive = lambda value: 0 < value < np.inf
    check_number("learning_rate", learning_rate, positive, "a positive number")
    check_number("variance", variance, positive, "a positive number")
    d = check_count(dimension=dimension)
    b = check_count(batch_size=batch_size)
    c = float(learning_rate) * float(variance) / b
    logs, log_weights = _quadrature(c, b, d, 16)
    exponent = float(np.exp(log_weights) @ logs)
    result = lambda value: KestenTailIndex(
        value,
        0.0 if np.isfinite(value) else np.nan,
        exponent,
        0.0,
        exponent < 0,
        np.inf,
    )
    if exponent >= 0:
        return result(np.nan)
    largest = 16.0
    while largest <= _LARGEST:
        nodes = _quadrature(c, b, d, largest)
        # log h(s) / s increases from rho: a bracket holds one root.
        slope = functools.partial(_log_growth_rate, *nodes)
        if slope(largest) > 0:
            smallest = 1e-6
            if slope(smallest) >= 0:
                return result(smallest)
            return result(brentq(slope, smallest, largest, xtol=1e-12))
        largest *= 4
    return result(np.inf)


def kesten_tail_index(multipliers: Float[ArrayLike, " n"]) -> KestenTailIndex:
    r"""Estimate the tail index of ``x <- m x + q`` from samples of the multiplier.

    .. math:: h(s) = \frac{1}{n} \sum_i |m_i|^s, \quad h(\hat\alpha) = 1, \quad
        \rho = \frac{1}{n} \sum_i \log |m_i| < 0

    The standard error is ``sd(|m|^alpha) / (sqrt(n) h'(alpha))``. For vectors under
    rotation-invariant matrices ``M`` pass ``|M e|`` of a fixed unit vector ``e``; for
    other matrices use `matrix_kesten_tail_index`.

    Args:
        multipliers: Independent samples of ``m``, at least two.

    Returns:
        The tail index with its standard error, and whether there is a stationary law.
        Infinite where no sample exceeds 1 in size: then either the index is, or the
        samples are too few to have seen one that does.

    Raises:
        ValueError: `multipliers` is not a floating-point vector of at least two.

    Example:
        >>> import jax.numpy as jnp
        >>> found = kesten_tail_index(jnp.array([0.5, 0.5, 0.5, 0.5, 0.5, 2.0]))
        >>> round(float(found.value), 3)  # 5 z + 1 / z = 6 at z = .5 ^ alpha = 1 / 5
        2.322

    References:
        Kesten, Acta Math. 131 (1973); Goldie, Ann. Appl. Probab. 1 (1991).
    """
    shape, dtype = shape_and_dtype("multipliers", multipliers)
    if len(shape) != 1 or shape[0] < 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "`multipliers` must be a floating-point vector of at least two samples, "
            f"but has shape {shape} and dtype {dtype}."
        )
    dtype = jnp.result_type(dtype, jnp.float32)
    return _of_scalars(jnp.asarray(multipliers, dtype))


def matrix_kesten_tail_index(
    matrices: Float[ArrayLike, "n d d"],
    *,
    key: KeyArray,
    num_particles: int = 2000,
    num_steps: int = 200,
) -> KestenTailIndex:
    r"""Estimate the tail index of ``x <- M x + q`` from samples of the matrix.

    .. math:: h(s) = \lim_{t \to \infty}
        \left( \mathbb{E} |M_t \cdots M_1|^s \right)^{1/t}

    A plain average over products sees only the rare ones that dominate it. Here
    particles on the unit sphere are moved by matrices drawn from the samples, and
    after each step resampled in proportion to ``|M u|^s``; ``log h`` is the mean
    logarithm of the mean weight. The bias is of order ``1 / num_particles``.

    Args:
        matrices: Independent samples of ``M``, at least two.
        key: Random key, for the draws; the same draws serve every ``s``.
        num_particles: Number of particles.
        num_steps: Number of steps; the first fifth is left out.

    Returns:
        The tail index with its standard error over ten batches of steps, which does
        not cover that `matrices` are a finite sample. Indices are sought up to 64.

    Raises:
        ValueError: `matrices` is not a floating-point stack of square matrices, or an
            option is out of range.

    Memory:
        ``num_particles d^2``; some 30 runs of ``num_steps`` steps.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> scalars = jnp.array([0.5, 0.5, 0.5, 0.5, 0.5, 2.0])
        >>> found = matrix_kesten_tail_index(
        ...     scalars[:, None, None] * jnp.eye(2)[None], key=jax.random.key(0)
        ... )
        >>> bool(abs(found.value - 2.322) < 4 * found.standard_error)
        True

    References:
        Vanneste, arXiv:1002.3109, section III (resampling); Kesten, Acta Math. 131
        (1973), theorem 6.
    """
    check_key(key)
    check_count(at_least=2, num_particles=num_particles)
    check_count(at_least=50, num_steps=num_steps)
    shape, dtype = shape_and_dtype("matrices", matrices)
    square = len(shape) == 3 and shape[1] == shape[2] > 0 and shape[0] >= 2
    if not square or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "`matrices` must be a floating-point stack [n, d, d] of at least two "
            f"square matrices, but has shape {shape} and dtype {dtype}."
        )
    matrices = jnp.asarray(matrices, jnp.result_type(dtype, jnp.float32))
    return _of_matrices(matrices, key, num_particles, num_steps)


@jax.jit
def _of_scalars(multipliers):
    logs = jnp.log(jnp.abs(multipliers))
    num = logs.shape[0]
    log_mean = lambda s: jax.nn.logsumexp(s * logs) - np.log(num)
    alpha = _root(lambda s: log_mean(s) / s, _LARGEST)
    exponent, spread = jnp.mean(logs), jnp.std(logs, ddof=1) / num**0.5
    safe = jnp.where(jnp.isfinite(alpha), alpha, 1)
    weights = jnp.exp(safe * logs)
    grown = jnp.mean(jnp.where(weights > 0, weights * logs, 0))
    error = jnp.std(weights, ddof=1) / (num**0.5 * grown)
    effective = jnp.sum(weights) ** 2 / jnp.sum(weights**2)
    return _result(alpha, error, exponent, spread, effective)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _of_matrices(matrices, key, num_particles, num_steps):
    log_growth = lambda s: _log_growth(matrices, key, s, num_particles, num_steps)
    alpha = _root(lambda s: jnp.mean(log_growth(s)[0]) / s, 64.0)
    lyapunov = log_growth(jnp.zeros((), matrices.dtype))[1]
    safe = jnp.where(jnp.isfinite(alpha), alpha, 1)
    per_step, _, effective = log_growth(safe)
    slope = jnp.mean(log_growth(1.05 * safe)[0]) - jnp.mean(log_growth(0.95 * safe)[0])
    error = _batch_error(per_step) / (slope / (0.1 * safe))
    exponent, spread = jnp.mean(lyapunov), _batch_error(lyapunov)
    return _result(alpha, error, exponent, spread, jnp.mean(effective))


def _log_growth(matrices, key, s, num_particles, num_steps):
    """Per step: log mean weight, mean log growth, and the effective sample size."""
    n, d, _ = matrices.shape
    start = jax.random.normal(jax.random.fold_in(key, 0), (num_particles, d))
    start = start.astype(matrices.dtype)
    start /= jnp.linalg.norm(start, axis=1, keepdims=True)

    def step(directions, index):
        key_draw, key_offset = jax.random.split(jax.random.fold_in(key, index))
        drawn = matrices[jax.random.randint(key_draw, (num_particles,), 0, n)]
        moved = jnp.einsum("nij,nj->ni", drawn, directions, precision="highest")
        # Largest entries first: squares of large or small ones leave the range.
        largest = jnp.max(jnp.abs(moved), axis=1)
        alive = largest > 0
        moved = moved / jnp.where(alive, largest, 1)[:, None]
        norms = jnp.linalg.norm(moved, axis=1)
        moved = moved / jnp.where(alive, norms, 1)[:, None]
        logs = jnp.log(largest) + jnp.log(norms)
        # At s = 0 a particle that was mapped to 0 has weight 1, not 0 times -inf.
        log_weights = jnp.where(alive | (s > 0), s * jnp.where(s > 0, logs, 0), 0)
        mean = jax.nn.logsumexp(log_weights) - np.log(num_particles)
        shares = jnp.exp(log_weights - mean) / num_particles
        # Systematic resampling: one offset for all, the least noise.
        offset = jax.random.uniform(key_offset, (), matrices.dtype)
        at = (np.arange(num_particles) + offset) / num_particles
        chosen = jnp.searchsorted(jnp.cumsum(shares), at)
        moved = moved[jnp.minimum(chosen, num_particles - 1)]
        return moved, (mean, jnp.mean(logs), 1 / jnp.sum(shares**2))

    outputs = jax.lax.scan(step, start, jnp.arange(1, num_steps + 1))[1]
    return tuple(one[num_steps // 5 :] for one in outputs)


def _batch_error(per_step):
    """Standard error of a mean over dependent steps, from batch means."""
    length = per_step.shape[0] // _NUM_BATCHES
    batches = per_step[: length * _NUM_BATCHES].reshape(_NUM_BATCHES, length)
    return jnp.std(jnp.mean(batches, axis=1), ddof=1) / _NUM_BATCHES**0.5


def _root(slope, largest):
    """The root of an increasing function of ``s``; infinite where it is above."""

    def halve(_, ends):
        low, high = ends
        middle = jnp.sqrt(low * high)
        above = slope(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    # In logarithms, from 2^-14.
    ends = jnp.array(2.0**-14), jnp.array(largest)
    low, high = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, ends)
    return jnp.where(slope(jnp.array(largest)) > 0, jnp.sqrt(low * high), jnp.inf)


def _result(alpha, error, exponent, spread, effective):
    """The result, gated by the Lyapunov exponent."""
    stationary = exponent < 0
    value = jnp.where(stationary, alpha, jnp.nan)
    error = jnp.where(jnp.isfinite(value), error, jnp.nan)
    return KestenTailIndex(value, error, exponent, spread, stationary, effective)


def _log_growth_rate(logs, log_weights, s):
    """``log h(s) / s`` of quadrature nodes."""
    terms = s * logs + log_weights
    largest = np.max(terms)
    return (largest + np.log(np.sum(np.exp(terms - largest)))) / s


def _quadrature(c, b, d, largest):
    """Nodes of ``log |M e|`` and their log weights, for powers up to `largest`.

    In ``r = sqrt(X)`` and ``t = sqrt(Y)``, by Gauss-Legendre panels that shrink
    geometrically towards the zero of ``1 - c r^2`` and towards ``t = 0``, where the
    logarithm is singular. Weights stay logarithms: where high powers live, the
    densities are below the smallest double.
    """
    r, r_log_weights = _chi_nodes(b, largest, c**-0.5)
    stretch = np.maximum(np.abs(1 - c * r**2), 1e-300)
    if d == 1:
        return np.log(stretch), r_log_weights
    t, t_log_weights = _chi_nodes(d - 1, largest / 2, 0.0)
    sideways = c * r[:, None] * t[None, :]
    logs = np.log(np.hypot(stretch[:, None], sideways))
    return logs.ravel(), np.add.outer(r_log_weights, t_log_weights).ravel()


def _chi_nodes(degrees, power, singular):
    """Nodes and log weights of a chi variable, for powers up to ``2 power``."""
    low = max(0.0, degrees**0.5 - 12)
    high = (degrees + 2 * power) ** 0.5 + 12
    halves = 0.5 ** np.arange(1, 41)
    near = singular + np.concatenate([-halves, [0.0], halves])
    ends = np.concatenate([np.arange(low, high, 0.5), [high], near])
    ends = np.unique(ends[(ends >= low) & (ends <= high)])
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half, middle = np.diff(ends)[:, None] / 2, (ends[1:] + ends[:-1])[:, None] / 2
    x = (middle + half * nodes[None, :]).ravel()
    log_density = (degrees - 1) * np.log(x) - x**2 / 2
    log_density -= (degrees / 2 - 1) * np.log(2) + gammaln(degrees / 2)
    return x, np.log(half * weights[None, :]).ravel() + log_density
