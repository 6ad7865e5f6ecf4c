"""Spectra of sample covariances: the Marchenko-Pastur law, its edge, and outliers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaincc
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from jaxtheory.batching import check_count, check_number

# Below this ratio the terms of the series of `_cdf` give double precision.
_SMALL_RATIO, _TERMS = 1e-3, range(2, 12)

# The Tracy-Widom law of order 1 is within .001 of a shifted gamma law with its first
# three moments (Chiani 2014, table 1).
_TW_SHAPE, _TW_SCALE, _TW_SHIFT = 46.446, 0.186054, 9.84801


class Outlier(NamedTuple):
    """A spike of the population covariance, and what it does to the sample's.

    Attributes:
        spike: ``l``: the population covariance is ``variance (I + l v v^T)``.
        location: Where the sample eigenvalue is, in the limit.
        overlap_squared: Squared cosine between its eigenvector and ``v``.
        visible: False for ``l <= sqrt(ratio)``: no eigenvalue leaves the bulk.
    """

    spike: Float[Array, "..."]
    location: Float[Array, "..."]
    overlap_squared: Float[Array, "..."]
    visible: Bool[Array, "..."]


class EdgeTest(NamedTuple):
    """Whether eigenvalues lie beyond the edge of pure noise.

    Attributes:
        statistic: ``(n l / variance - centre) / scale``, which follows the Tracy-Widom
            law of order 1 (mean -1.2065, deviation 1.2680) for the largest eigenvalue
            ``l`` of noise.
        p_value: Probability that the largest eigenvalue of noise is as large.
    """

    statistic: Float[Array, "..."]
    p_value: Float[Array, "..."]


def marchenko_pastur_edges(
    ratio: Real[ArrayLike, ""] | float, *, variance: Real[ArrayLike, ""] | float = 1.0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Compute the ends of the bulk of a sample covariance of noise.

    .. math:: \lambda_\pm = \sigma^2 (1 \pm \sqrt{\gamma})^2, \quad \gamma = p / n

    for the eigenvalues of ``X^T X / n``, ``X`` of shape ``[n, p]`` with independent
    entries of mean 0 and variance ``sigma^2``. For ``gamma > 1`` a share of
    ``1 - 1/gamma`` of the eigenvalues is 0 besides.

    Args:
        ratio: ``gamma = p / n``, positive.
        variance: Variance of an entry.

    Returns:
        Lower and upper edge.

    Raises:
        ValueError: `ratio` or `variance` is not positive.

    Example:
        >>> [float(edge) for edge in marchenko_pastur_edges(0.25)]
        [0.25, 2.25]

    References:
        Marchenko & Pastur, Math. USSR-Sb. 1 (1967).
    """
    ratio, variance = _check(ratio, variance)
    root = jnp.sqrt(ratio)
    return variance * (1 - root) ** 2, variance * (1 + root) ** 2


def marchenko_pastur_density(
    x: Real[ArrayLike, "..."],
    *,
    ratio: Real[ArrayLike, ""] | float,
    variance: Real[ArrayLike, ""] | float = 1.0,
) -> Float[Array, "..."]:
    r"""Compute the density of the Marchenko-Pastur law.

    .. math:: f(x) = \frac{\sqrt{(\lambda_+ - x)(x - \lambda_-)}}
        {2 \pi \gamma \sigma^2 x}

    between the edges, 0 outside. For ``gamma > 1`` it integrates to ``1/gamma``: the
    rest is an atom at 0.

    Args:
        x: Where.
        ratio: As for `marchenko_pastur_edges`.
        variance: As for `marchenko_pastur_edges`.

    Returns:
        The density, in the shape of `x`.

    Raises:
        ValueError: As for `marchenko_pastur_edges`.

    Example:
        >>> round(float(marchenko_pastur_density(1.0, ratio=1.0)), 4)  # sqrt(3)/(2 pi)
        0.2757

    References:
        Marchenko & Pastur, Math. USSR-Sb. 1 (1967).
    """
    ratio, variance = _check(ratio, variance, jnp.asarray(x))
    lower, upper = marchenko_pastur_edges(ratio, variance=variance)
    x = jnp.asarray(x, ratio.dtype)
    inside = (x > lower) & (x < upper)
    safe = jnp.where(inside, x, upper)
    height = jnp.sqrt((upper - safe) * (safe - lower))
    return jnp.where(inside, height / (2 * np.pi * ratio * variance * safe), 0)


def marchenko_pastur_cdf(
    x: Real[ArrayLike, "..."],
    *,
    ratio: Real[ArrayLike, ""] | float,
    variance: Real[ArrayLike, ""] | float = 1.0,
) -> Float[Array, "..."]:
    r"""Compute the distribution function of the Marchenko-Pastur law.

    In closed form. For ``gamma <= 1``, ``sigma = 1`` and ``x`` between the edges, with
    ``s = sqrt((lambda_+ - x)(x - lambda_-))``,

    .. math:: F(x) = \frac12 + \frac{1}{2 \pi \gamma} \left( s
        + (1 + \gamma) \arcsin \frac{x - 1 - \gamma}{2 \sqrt\gamma}
        - (1 - \gamma) \arcsin \frac{(1 + \gamma) x - (1 - \gamma)^2}
        {2 \sqrt\gamma \, x} \right)

    Args:
        x: Where.
        ratio: As for `marchenko_pastur_edges`.
        variance: As for `marchenko_pastur_edges`.

    Returns:
        Share of the eigenvalues at or below `x`, in the shape of `x`.

    Raises:
        ValueError: As for `marchenko_pastur_edges`.

    Example:
        >>> at = [-1.0, 0.0, 4.0, 9.0]
        >>> [round(float(marchenko_pastur_cdf(x, ratio=2.0)), 3) for x in at]
        [0.0, 0.5, 0.941, 1.0]

    References:
        Marchenko & Pastur, Math. USSR-Sb. 1 (1967).
    """
    ratio, variance = _check(ratio, variance, jnp.asarray(x))
    x = jnp.asarray(x, ratio.dtype)
    # X^T X and X X^T have the same eigenvalues but for zeros.
    wide = ratio > 1
    inner = jnp.where(wide, 1 / ratio, ratio)
    share = _cdf(x / (variance * jnp.where(wide, ratio, 1)), inner)
    return jnp.where(x < 0, 0, jnp.where(wide, 1 - inner + inner * share, share))


def marchenko_pastur_quantile(
    probability: Real[ArrayLike, "..."],
    *,
    ratio: Real[ArrayLike, ""] | float,
    variance: Real[ArrayLike, ""] | float = 1.0,
) -> Float[Array, "..."]:
    """Invert the distribution function of the Marchenko-Pastur law, by bisection.

    Args:
        probability: In ``[0, 1]``.
        ratio: As for `marchenko_pastur_edges`.
        variance: As for `marchenko_pastur_edges`.

    Returns:
        The quantiles, in the shape of `probability`; 0 inside the atom of a ratio
        above 1, and NaN for what is no probability.

    Raises:
        ValueError: As for `marchenko_pastur_edges`.

    Example:
        >>> round(float(marchenko_pastur_quantile(0.5, ratio=1.0)), 3)
        0.653

    References:
        Marchenko & Pastur, Math. USSR-Sb. 1 (1967).
    """
    ratio, variance = _check(ratio, variance, jnp.asarray(probability))
    probability = jnp.asarray(probability, ratio.dtype)
    known = (probability >= 0) & (probability <= 1)
    return jnp.where(known, variance * _quantile(probability, ratio), jnp.nan)


def marchenko_pastur_variance(
    eigenvalues: Float[ArrayLike, " r"], *, ratio: Real[ArrayLike, ""] | float
) -> Float[Array, ""]:
    r"""Estimate the variance of the noise from the median eigenvalue.

    .. math:: \hat\sigma^2 = \frac{\operatorname{median} \lambda_i}
        {\text{median of the law at } \sigma = 1}

    A few outliers, however large, hardly move it; they do the mean. Where a tenth of
    the eigenvalues are outliers it is too large by a few per cent.

    Args:
        eigenvalues: Those of ``X^T X / n`` that are not zero by shape: the
            ``min(n, p)`` largest.
        ratio: ``p / n``.

    Returns:
        The variance.

    Raises:
        ValueError: There are no eigenvalues, or `ratio` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> eigenvalues = marchenko_pastur_quantile(jnp.arange(1, 10) / 10, ratio=0.5)
        >>> round(float(marchenko_pastur_variance(3 * eigenvalues, ratio=0.5)), 4)
        3.0

    References:
        Gavish & Donoho, arXiv:1305.5870, section III.E.
    """
    ratio, _ = _check(ratio, 1.0, jnp.asarray(eigenvalues))
    if np.ndim(eigenvalues) != 1 or not np.size(eigenvalues):
        raise ValueError(
            f"`eigenvalues` must be a vector, but has shape {np.shape(eigenvalues)}."
        )
    # Of the eigenvalues that are not zero by shape.
    wide = ratio > 1
    inner = jnp.where(wide, 1 / ratio, ratio)
    middle = _quantile(jnp.asarray(0.5, ratio.dtype), inner) * jnp.where(wide, ratio, 1)
    return jnp.median(jnp.asarray(eigenvalues)) / middle


def outlier_of_spike(
    spike: Real[ArrayLike, "..."],
    *,
    ratio: Real[ArrayLike, ""] | float,
    variance: Real[ArrayLike, ""] | float = 1.0,
) -> Outlier:
    r"""Predict the outlying eigenvalue that a spike in the population makes.

    .. math:: \lambda = \sigma^2 (1 + \ell) \left( 1 + \frac{\gamma}{\ell} \right),
        \quad \cos^2 = \frac{1 - \gamma / \ell^2}{1 + \gamma / \ell},
        \quad \ell > \sqrt\gamma

    for the population covariance ``sigma^2 (I + l v v^T)`` and the eigenvalues of
    ``X^T X / n``. At or below ``sqrt(gamma)`` (Baik, Ben Arous and Peche) the largest
    eigenvalue sticks to the edge and its eigenvector knows nothing of ``v``.

    Args:
        spike: ``l``, not negative.
        ratio: ``gamma = p / n``.
        variance: ``sigma^2``.

    Returns:
        Location (the upper edge where the spike is invisible), squared overlap (0
        there), and whether it is visible.

    Raises:
        ValueError: As for `marchenko_pastur_edges`.

    Example:
        >>> found = outlier_of_spike(2.0, ratio=1.0)
        >>> float(found.location), float(found.overlap_squared)
        (4.5, 0.5)

    References:
        Baik, Ben Arous & Peche, arXiv:math/0403022; Paul, Statist. Sinica 17 (2007),
        theorems 1 and 4.
    """
    ratio, variance = _check(ratio, variance, jnp.asarray(spike))
    spike = jnp.asarray(spike, ratio.dtype)
    visible = spike > jnp.sqrt(ratio)
    safe = jnp.where(visible, spike, jnp.sqrt(ratio))
    location = variance * (1 + safe) * (1 + ratio / safe)
    overlap = (1 - ratio / safe**2) / (1 + ratio / safe)
    return Outlier(spike, location, jnp.where(visible, overlap, 0), visible)


def spike_of_outlier(
    eigenvalue: Real[ArrayLike, "..."],
    *,
    ratio: Real[ArrayLike, ""] | float,
    variance: Real[ArrayLike, ""] | float = 1.0,
) -> Outlier:
    r"""Infer the spike in the population from an outlying eigenvalue.

    The inverse of `outlier_of_spike`:

    .. math:: \ell = \frac{b + \sqrt{b^2 - 4 \gamma}}{2}, \quad
        b = \frac{\lambda}{\sigma^2} - 1 - \gamma

    Args:
        eigenvalue: An eigenvalue of ``X^T X / n``.
        ratio: ``gamma = p / n``.
        variance: ``sigma^2``.

    Returns:
        The spike. At or below the upper edge none can be inferred: `visible` is
        False, and `spike` is ``sqrt(gamma)``, the largest that would not be seen.

    Raises:
        ValueError: As for `marchenko_pastur_edges`.

    Example:
        >>> float(spike_of_outlier(4.5, ratio=1.0).spike)
        2.0

    References:
        Baik, Ben Arous & Peche, arXiv:math/0403022; Donoho, Gavish & Johnstone,
        arXiv:1311.0851, equation 1.9.
    """
    ratio, variance = _check(ratio, variance, jnp.asarray(eigenvalue))
    eigenvalue = jnp.asarray(eigenvalue, ratio.dtype)
    b = eigenvalue / variance - 1 - ratio
    visible = b > 2 * jnp.sqrt(ratio)
    inside = jnp.where(visible, b**2 - 4 * ratio, 0)
    spike = jnp.where(visible, (b + jnp.sqrt(inside)) / 2, jnp.sqrt(ratio))
    overlap = (1 - ratio / spike**2) / (1 + ratio / spike)
    return Outlier(spike, eigenvalue, jnp.where(visible, overlap, 0), visible)


def edge_test(
    eigenvalue: Real[ArrayLike, "..."],
    *,
    num_samples: int,
    dimension: int,
    variance: Real[ArrayLike, ""] | float = 1.0,
) -> EdgeTest:
    r"""Test whether an eigenvalue is larger than noise makes the largest one.

    .. math:: \frac{n \lambda / \sigma^2 - \mu}{s} \to TW_1, \quad
        \mu = (\sqrt{n'} + \sqrt{p'})^2, \quad
        s = (\sqrt{n'} + \sqrt{p'})
        \left( \frac{1}{\sqrt{n'}} + \frac{1}{\sqrt{p'}} \right)^{1/3}

    with ``n' = n - 1/2`` and ``p' = p - 1/2`` (Johnstone has ``n - 1`` and ``p``; the
    halves, of Ma, are a whole order more accurate, and treat ``X`` and its transpose
    alike). The law needs entries with a finite fourth moment: heavy-tailed entries
    make outliers without any structure.

    Args:
        eigenvalue: Of ``X^T X / n``.
        num_samples: ``n``, rows of ``X``; one less where their mean was subtracted.
        dimension: ``p``, columns of ``X``.
        variance: Of the noise; its estimate may be `marchenko_pastur_variance`.

    Returns:
        The statistic and its p-value, within .001 of the limit law's (from the gamma
        law that has its first three moments).

    Raises:
        ValueError: A size is not an integer of at least 2, or `variance` not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> found = edge_test(jnp.array([2.2, 2.6]), num_samples=400, dimension=100)
        >>> [round(float(p), 2) for p in found.p_value]
        [0.45, 0.0]

    References:
        Johnstone, Ann. Statist. 29 (2001), theorem 1.1; Ma, arXiv:1203.0839; Chiani,
        arXiv:1209.3394, table 1.
    """
    n = check_count(at_least=2, num_samples=num_samples)
    centre, scale = edge_scale(n, check_count(at_least=2, dimension=dimension))
    eigenvalue = jnp.asarray(eigenvalue)
    _, variance = _check(1.0, variance, eigenvalue)
    statistic = (n * eigenvalue / variance - centre) / scale
    shifted = jnp.maximum(statistic + _TW_SHIFT, 0) / _TW_SCALE
    p_value = gammaincc(jnp.asarray(_TW_SHAPE, shifted.dtype), shifted)
    return EdgeTest(statistic, p_value)


def edge_scale(num_samples: int, dimension: int) -> tuple[float, float]:
    """Return centre and scale of the largest eigenvalue of ``X^T X`` of unit noise."""
    rows, columns = (num_samples - 0.5) ** 0.5, (dimension - 0.5) ** 0.5
    total = rows + columns
    return total**2, total * (1 / rows + 1 / columns) ** (1 / 3)


def _cdf(x, ratio):
    r"""Distribution function at unit variance and a ratio of at most 1.

    With ``x = |1 + q e^{i theta}|^2``, ``q = sqrt(ratio)``, the two arcsines are
    ``pi/2 - theta`` and ``pi/2 - theta + 2 a``, ``a`` the argument of
    ``1 + q e^{i theta}``, and the formula is a half plus, over ``pi``,

    .. math:: \frac\pi2 - \theta + \frac{q \sin \theta - (1 - q^2) a}{q^2}
        = \frac\pi2 - \theta + a
        + \sum_{k \ge 2} \frac{(-1)^k}{k} q^{k - 2} \sin k \theta
    """
    root = jnp.sqrt(ratio)
    lower, upper = (1 - root) ** 2, (1 + root) ** 2
    inside = jnp.clip(x, lower, upper)
    height = jnp.sqrt((upper - inside) * (inside - lower))
    # By their legs: at the edges an arcsine loses half of the digits.
    theta = jnp.arctan2(height, inside - 1 - ratio)
    argument = jnp.arctan2(height, 1 + inside - ratio)
    # The closed form divides its rounding by the ratio: .16 off at 1e-5, in single.
    terms = ((-1) ** k * root ** (k - 2) * jnp.sin(k * theta) / k for k in _TERMS)
    series = argument + sum(terms)
    closed = (0.5 * height - (1 - ratio) * argument) / ratio
    rest = jnp.where(ratio < _SMALL_RATIO, series, closed)
    return jnp.clip(1 - (theta - rest) / np.pi, 0, 1)


@jax.jit
def _quantile(probability, ratio):
    """Quantiles at unit variance, by bisection between 0 and the upper edge."""
    low = jnp.zeros_like(probability)
    high = jnp.full_like(probability, (1 + jnp.sqrt(ratio)) ** 2)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = marchenko_pastur_cdf(middle, ratio=ratio) < probability
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    return jnp.where(low > 0, (low + high) / 2, 0)


def _check(ratio: Any, variance: Any, like: Any = 1.0) -> tuple[Array, Array]:
    """Check both; as floating-point arrays of one type, at least that of `like`."""
    positive = lambda value: 0 < value < np.inf
    check_number("ratio", ratio, positive, "a positive number, columns over rows")
    check_number("variance", variance, positive, "a positive number")
    dtype = jnp.result_type(jnp.float32, ratio, variance, like)
    return jnp.asarray(ratio, dtype), jnp.asarray(variance, dtype)
