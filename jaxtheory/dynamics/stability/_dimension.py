"""Sharpness Dimension: the Kaplan-Yorke dimension of exponents or of a spectrum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from jaxtheory.batching import check_count, check_number
from jaxtheory.linalg import SpectralDensity


class SharpnessDimension(NamedTuple):
    """How many directions a volume keeps before it contracts.

    Attributes:
        value: The dimension, in ``[0, d]``.
        standard_error: Of `value` and of `gap`, over random probes; 0 where exponents
            were given, whose own errors are the caller's.
        gap: ``d - value``, computed for itself: in single precision it keeps the
            digits that `value` has lost near ``d``.
        saturated: Whether `gap` is at most a hundredth of ``d`` or two standard errors.
            Then a bound in terms of `value` is the one in terms of the number of
            parameters, and a ranking rests on `gap`, against its standard error.
        truncated: Whether fewer exponents than the dimension were given and their sum
            is not negative yet, so that `value` is only a lower bound.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    gap: Float[Array, ""]
    saturated: Bool[Array, ""]
    truncated: Bool[Array, ""]


def sharpness_dimension(
    exponents: Float[ArrayLike, " k"], *, dimension: int | None = None
) -> SharpnessDimension:
    r"""The Kaplan-Yorke dimension of Lyapunov exponents or RDS sharpness values.

    .. math:: \mathrm{SD} = j^* + \frac{\sum_{i \le j^*} \lambda_i}
        {|\lambda_{j^* + 1}|}, \qquad j^* = \max \Big\{ j :
        \sum_{i \le j} \lambda_i \ge 0 \Big\}

    with the exponents in decreasing order; 0 where the first is negative and ``d``
    where the sum of all is not.

    Of `lyapunov_exponents` it is the Lyapunov dimension of that trajectory, of
    `rds_sharpness` the Sharpness Dimension of the paper. There it is defined for SGD;
    for momentum and Adam ours is that of the optimizer's own Jacobian, on parameters
    and buffers together, which the paper leaves open.

    Args:
        exponents: In any order, ``[k]``.
        dimension: Number ``d`` of all exponents, of which these are the leading ones;
            None for all of them.

    Returns:
        The dimension and how far from ``d`` it is. NaN where an exponent is.

    Raises:
        ValueError: `exponents` is no vector of real numbers, or longer than
            `dimension`, which is an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> henon = sharpness_dimension(jnp.array([0.41922, -1.62319]))
        >>> round(float(henon.value), 4)
        1.2583

    References:
        Tuci, Korkmaz, Simsekli & Birdal, arXiv:2604.19740, definition 4.2; Kaplan &
        Yorke, Lecture Notes in Mathematics 730 (1979).
    """
    shape = jnp.shape(exponents)
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            f"`exponents` must be a vector [k] of at least one, but has shape {shape}."
        )
    num = shape[0]
    dtype = jnp.result_type(exponents)
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(
        dtype, jnp.integer
    ):
        raise ValueError(f"`exponents` must be real numbers, but has dtype {dtype}.")
    if dimension is None:
        dimension = num
    if check_count(dimension=dimension) < num:
        raise ValueError(
            f"`dimension` must be at least the number of exponents, {num}, but was "
            f"{dimension}."
        )
    exponents = jnp.asarray(exponents)
    wide = jnp.promote_types(exponents.dtype, jnp.float32)
    # A float: the number of parameters may be larger than an integer of 32 bits.
    return _of_exponents(exponents.astype(wide), float(dimension))


def sharpness_dimension_from_density(
    density: SpectralDensity, *, learning_rate: Real[ArrayLike, ""]
) -> SharpnessDimension:
    r"""The Sharpness Dimension of gradient descent from the Hessian's density.

    The Kaplan-Yorke dimension of ``log|1 - eta lambda|`` over the ``d`` eigenvalues of
    the Hessian, each node of the quadrature counting for its share of them; the
    interpolation is in shares of a node. It needs no eigenvalue by itself, and ``d``
    may be in the millions. At one point and for one Hessian; for the expectation over
    batches, make densities of several batches and concatenate their nodes and weights.
    (There is no supremum over points here.) Of plain (S)GD alone: for momentum and
    Adam see `rds_sharpness` and `lyapunov_exponents`.

    The standard error is the jackknife's over probes. It does not know what the Lanczos
    iterations leave unresolved: with ``m`` of them per probe the bulk is a few nodes,
    and where the dimension ends inside it the gap is known to a fraction of the share
    of one. Raise `num_iterations` until nothing moves by more than the error.

    Args:
        density: Of the Hessian of the mean loss.
        learning_rate: ``eta``, positive.

    Returns:
        The dimension with its standard error, and its distance from ``d``.

    Raises:
        ValueError: `learning_rate` is not positive.

    Memory:
        ``s m`` numbers for ``s`` probes and ``m`` iterations; ``s^2 m`` operations.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> from jaxtheory import linalg
        >>> op = lx.MatrixLinearOperator(
        ...     jnp.diag(jnp.array([30.0, 1.0, 5.0, 5.0])), lx.symmetric_tag
        ... )
        >>> density = linalg.spectral_density(op, key=jax.random.key(0), num_probes=2)
        >>> got = sharpness_dimension_from_density(density, learning_rate=0.1)
        >>> round(float(got.value), 3)  # 2 + (log 2 + log .9) / |log .5|
        2.848

    References:
        Tuci, Korkmaz, Simsekli & Birdal, arXiv:2604.19740, definition 4.2 and its
        section on computation.
    """
    check_number(
        "learning_rate", learning_rate, lambda a: 0 < a < jnp.inf, "a positive number"
    )
    dimension = density.dimension
    if isinstance(dimension, int):
        dimension = float(dimension)
    return _of_density(density.nodes, density.weights, learning_rate, dimension)


@jax.jit
def _of_exponents(exponents, dimension):
    num = exponents.shape[0]
    ordered = jnp.sort(exponents, descending=True)
    dimension = dimension.astype(ordered.dtype)
    value, gap, reached = _dimension(ordered, jnp.ones_like(ordered))
    truncated = ~reached & (num < dimension)
    gap = gap + (dimension - num)
    error = jnp.zeros_like(gap)
    return _result(value, gap, error, dimension, truncated)


@jax.jit
def _of_density(nodes, weights, learning_rate, dimension):
    num_probes = nodes.shape[0]
    exponents = _log_contraction(learning_rate * nodes).ravel()
    order = jnp.argsort(exponents, descending=True)
    exponents, shares = exponents[order], weights.ravel()[order]
    probe = jnp.arange(nodes.size) // nodes.shape[1]
    probe = probe[order]

    value, gap, _ = _dimension(exponents, shares / num_probes)
    without = lambda one: _dimension(
        exponents, jnp.where(probe == one, 0, shares / (num_probes - 1))
    )[1]
    left = jax.lax.map(without, jnp.arange(num_probes))
    # The jackknife, sqrt((s - 1)/s sum_i (x_i - mean)^2).
    error = (num_probes - 1) / jnp.sqrt(num_probes) * jnp.std(left, ddof=1)
    if num_probes == 1:
        error = jnp.full_like(gap, jnp.inf)
    value, gap, error = dimension * value, dimension * gap, dimension * error
    return _result(value, gap, error, dimension, jnp.array(False))


def _log_contraction(x):
    """``log|1 - x|``, without cancellation near 0 and near 2."""
    below = jnp.log1p(-jnp.minimum(x, 1))
    return jnp.where(x < 1, below, jnp.log1p(jnp.maximum(x, 1) - 2))


def _dimension(exponents, shares):
    """The dimension in shares, what is missing to all, and whether anything is."""
    # A node without weight must not add 0 times minus infinity.
    parts = jnp.where(shares > 0, shares * exponents, 0)
    sums = jnp.cumsum(parts)
    negative = sums < 0
    reached, first = jnp.any(negative), jnp.argmax(negative)
    # From the far end, where little is left when the dimension is close to full.
    left = jnp.cumsum(shares[::-1])[::-1]
    before = jnp.where(first > 0, sums[first - 1], 0)
    part = before / jnp.abs(exponents[first])
    passed = jnp.cumsum(shares)
    value = jnp.where(first > 0, passed[first - 1], 0) + part
    value = jnp.where(reached, value, passed[-1])
    gap = jnp.where(reached, left[first] - part, 0)
    bad = jnp.any(jnp.isnan(sums))
    return jnp.where(bad, jnp.nan, value), jnp.where(bad, jnp.nan, gap), reached


def _result(value, gap, error, dimension, truncated):
    # Of the two the smaller has more digits, and makes the larger.
    value = jnp.where(gap < value, dimension - gap, value)
    saturated = gap <= jnp.maximum(0.01 * dimension, 2 * error)
    return SharpnessDimension(value, error, gap, saturated, truncated)
