"""Tail indices from order statistics: Hill, Pickands, and the moment estimator."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from scipy.stats import gamma

from jaxtheory.batching import (
    check_count,
    check_number,
    check_word,
)
from jaxtheory.dynamics.tails._lengths import (
    SIZES,
    TAIL_CENTRES,
    Size,
    TailCentre,
    as_data,
    check_settled,
    count_nonfinite,
    log_sizes,
    num_sizes,
)


class TailIndex(NamedTuple):
    """A tail index ``alpha``, ``P(X > x) ~ x^-alpha``, and what it rests on.

    Attributes:
        value: ``alpha = 1 / xi``; infinite for ``xi <= 0``: no power law. NaN where
            the data cannot say: `num_nonfinite` or `num_zero` is not 0, or the sizes
            that are compared are equal (`num_ties`).
        standard_error: Asymptotic standard error of `value`, by the delta method;
            infinite where `value` is. It knows nothing of the bias that a tail which
            is not exactly a power law has at this `num_tail`.
        num_tail: Number of largest sizes that enter.
        inverse: ``xi = 1 / alpha``, the extreme value index.
        inverse_standard_error: Its asymptotic standard error.
        num_nonfinite: Number of observations that are not finite.
        num_zero: Number of those in the tail whose size is zero, which has no
            logarithm: take a smaller `num_tail`.
        num_ties: Number of those in the tail that equal the next one. Many say that
            the data are repeated or rounded, and the standard error too small.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_tail: Int[Array, ""] | int
    inverse: Float[Array, ""]
    inverse_standard_error: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_zero: Int[Array, ""]
    num_ties: Int[Array, ""]


class HillPlot(NamedTuple):
    """Hill's estimate as a function of the number of largest sizes that enter.

    Attributes:
        num_tail: ``1, ..., r``.
        value: Tail index at each.
        lower: Lower end of its interval, exact for a Pareto law.
        upper: Upper end.
        threshold: The size above which the tail begins.
        usable: False where the tail reaches sizes of zero, or data are not finite.
    """

    num_tail: Int[np.ndarray, " r"]
    value: Float[Array, " r"]
    lower: Float[Array, " r"]
    upper: Float[Array, " r"]
    threshold: Float[Array, " r"]
    usable: Bool[Array, " r"]


def hill(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    num_tail: int,
    size: Size = "norm",
    centre: TailCentre = "median",
) -> TailIndex:
    r"""Estimate a tail index by Hill's estimator.

    .. math:: \frac{1}{\hat\alpha} = \frac{1}{k} \sum_{i=1}^{k}
        \log \frac{X_{(i)}}{X_{(k+1)}}, \quad X_{(1)} \ge X_{(2)} \ge \dots

    with standard error ``alpha / sqrt(k)``. It is the maximum likelihood estimate for
    a Pareto law. On another law it has a bias that grows with ``k``: on a stable law
    of 1.8 it gives 2.0 to 2.8. Look at `hill_plot` before you choose ``k``. It is
    positive always: of a light tail it gives some large number.

    Args:
        x: Observations ``[n]`` or ``[n, d]``, independent of each other.
        num_tail: ``k``, from 2 to one less than the number of sizes.
        size: What the tail is of: ``"norm"``, the Euclidean norm of each row (the
            absolute value for ``[n]``); ``"absolute"``, the absolute value of each
            entry; ``"upper"`` and ``"lower"``, the positive and the negative entries.
        centre: ``"median"`` subtracts the median of each column first (a Pareto tail
            moved by a constant is none, and needs very large sizes to look like one),
            unless all entries have one sign: those are sizes already. ``"none"``
            takes the data as they are.

    Returns:
        The tail index with its standard error and flags.

    Raises:
        ValueError: `x` is not a floating-point vector or matrix, has too few
            observations, or `size` is another word.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.exp(jnp.arange(5.0))  # logarithms 4, 3, 2 against 1
        >>> float(hill(x, num_tail=3).value)  # 1 / mean(3, 2, 1)
        0.5

    References:
        Hill, Ann. Statist. 3 (1975), equation 3.3.
    """
    x = _check(x, size, centre, num_tail)
    return _hill(x, num_tail, size, centre)


def dedh(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    num_tail: int,
    size: Size = "norm",
    centre: TailCentre = "median",
) -> TailIndex:
    r"""Estimate a tail index by the moment estimator of Dekkers, Einmahl and de Haan.

    .. math:: \frac{1}{\hat\alpha} = M_1 + 1 - \frac{1}{2 (1 - M_1^2 / M_2)}, \quad
        M_r = \frac{1}{k} \sum_{i=1}^{k}
        \left( \log \frac{X_{(i)}}{X_{(k+1)}} \right)^r

    with asymptotic variance ``(1 + xi^2) / k`` of ``xi = 1/alpha >= 0`` (another
    formula below 0). Unlike Hill's it can say that there is no power law: ``xi <= 0``,
    and then the tail index is infinite. Above ``alpha = 2`` the standard error of
    alpha is too small at a few hundred tail points (.42 against .54 at 3, k=500).

    Args:
        x: As for `hill`.
        num_tail: ``k``, as for `hill`.
        size: As for `hill`.
        centre: As for `hill`.

    Returns:
        The tail index with its standard error and flags.

    Raises:
        ValueError: As for `hill`.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.exp(jnp.arange(5.0))  # M_1 = 2, M_2 = 14 / 3
        >>> round(float(dedh(x, num_tail=3).inverse), 4)  # 3 - .5 / (1 - 6 / 7)
        -0.5

    References:
        Dekkers, Einmahl & de Haan, Ann. Statist. 17 (1989), equation 1.7 and theorem
        3.1.
    """
    x = _check(x, size, centre, num_tail)
    return _dedh(x, num_tail, size, centre)


def pickands(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    num_tail: int,
    size: Size = "norm",
    centre: TailCentre = "median",
) -> TailIndex:
    r"""Estimate a tail index by Pickands' estimator.

    .. math:: \frac{1}{\hat\alpha} = \frac{1}{\log 2}
        \log \frac{X_{(k)} - X_{(2k)}}{X_{(2k)} - X_{(4k)}}

    with asymptotic variance
    ``xi^2 (2^(2 xi + 1) + 1) / (k (2 (2^xi - 1) log 2)^2)`` of ``xi = 1/alpha``. It
    does not change when a constant is added to the sizes, and pays for it: its
    standard error is twice Hill's at ``alpha = .8``, seven times at 3.

    Args:
        x: As for `hill`.
        num_tail: ``k``, as in the formula: ``4k`` of the sizes enter.
        size: As for `hill`.
        centre: As for `hill`.

    Returns:
        The tail index with its standard error and flags; its `num_tail` is ``4k``.

    Raises:
        ValueError: As for `hill`; ``4k`` must be below the number of sizes.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([8.0, 8.0, 4.0, 4.0, 3.0, 2.0, 2.0, 2.0, 1.0])
        >>> float(pickands(x, num_tail=2).value)  # (8 - 4) / (4 - 2) = 2 ^ xi
        1.0

    References:
        Pickands, Ann. Statist. 3 (1975); Dekkers & de Haan, Ann. Statist. 17 (1989),
        theorem 2.3.
    """
    x = _check(x, size, centre, num_tail, factor=4)
    return _pickands(x, num_tail, size, centre)


def hill_plot(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    max_tail: int | None = None,
    confidence: float = 0.95,
    size: Size = "norm",
    centre: TailCentre = "median",
) -> HillPlot:
    r"""Compute Hill's estimate at every number of tail points, with intervals.

    Where the curve is flat over a wide range of ``k``, the tail is a power law there;
    where it drifts throughout, no single ``k`` should be quoted. The intervals are
    pointwise: ``k alpha / alpha_hat`` has a Gamma law of shape ``k`` for a Pareto
    law, exactly.

    Args:
        x: As for `hill`.
        max_tail: Largest ``k``; None takes all but one of the sizes.
        confidence: Of each interval, in ``(0, 1)``.
        size: As for `hill`.
        centre: As for `hill`.

    Returns:
        The curve.

    Raises:
        ValueError: As for `hill`, or `confidence` is not in ``(0, 1)``.

    Example:
        >>> import jax.numpy as jnp
        >>> curve = hill_plot(jnp.exp(jnp.arange(5.0)))
        >>> [round(float(value), 4) for value in curve.value]
        [1.0, 0.6667, 0.5, 0.4]

    References:
        Drees, de Haan & Resnick, Ann. Statist. 28 (2000).
    """
    check_settled("confidence", confidence)
    check_number("confidence", confidence, lambda c: 0 < c < 1, "a number in (0, 1)")
    check_word("size", size, SIZES)
    if max_tail is None:
        max_tail = num_sizes(as_data(x, at_least=3, what="a Hill plot"), size) - 1
    x = _check(x, size, centre, max_tail, name="max_tail")
    counts = np.arange(1, max_tail + 1)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    lower, upper = (gamma.ppf(tail, counts) / counts for tail in tails)
    value, threshold, usable = _hill_plot(x, max_tail, size, centre)
    lower, upper = (value * jnp.asarray(end, value.dtype) for end in (lower, upper))
    return HillPlot(counts, value, lower, upper, threshold, usable)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _hill(x, num_tail, size, centre):
    top = _largest(x, num_tail + 1, size, centre)
    inverse = jnp.mean(top[:-1] - top[-1])
    return _tail_index(x, top, num_tail, inverse, inverse / num_tail**0.5)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _dedh(x, num_tail, size, centre):
    top = _largest(x, num_tail + 1, size, centre)
    excess = top[:-1] - top[-1]
    first, second = jnp.mean(excess), jnp.mean(excess**2)
    xi = first + 1 - 0.5 / (1 - first**2 / second)
    low = jnp.minimum(xi, 0)
    inner = (5 - 11 * low) * (1 - 2 * low) / ((1 - 3 * low) * (1 - 4 * low))
    inner = 4 - 8 * (1 - 2 * low) / (1 - 3 * low) + inner
    below = (1 - low) ** 2 * (1 - 2 * low) * inner
    variance = jnp.where(xi > 0, 1 + xi**2, below)
    return _tail_index(x, top, num_tail, xi, jnp.sqrt(variance / num_tail))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _pickands(x, num_tail, size, centre):
    top = _largest(x, 4 * num_tail, size, centre)
    # On the scale of the largest that enters, so that no exponential overflows.
    at = lambda k: jnp.exp(top[k * num_tail - 1] - top[num_tail - 1])
    xi = jnp.log2((at(1) - at(2)) / (at(2) - at(4)))
    # Infinite between equal sizes, as rounded data have.
    xi = jnp.where(jnp.isfinite(xi), xi, jnp.nan)
    # xi / (2^xi - 1) is 1 / log 2 at xi = 0.
    small = jnp.abs(xi) < 1e-3
    safe = jnp.where(small, 1, xi)
    ratio = jnp.where(small, 1 / jnp.log(2.0), safe / jnp.expm1(safe * jnp.log(2.0)))
    deviation = jnp.sqrt((2 ** (2 * xi + 1) + 1) / num_tail) * ratio
    return _tail_index(x, top, 4 * num_tail, xi, deviation / (2 * jnp.log(2.0)))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _hill_plot(x, max_tail, size, centre):
    top = _largest(x, max_tail + 1, size, centre)
    counts = np.arange(1, max_tail + 1)
    # From the spacings, all positive: no digits are lost where the tail is long.
    spacings = jnp.cumsum(jnp.asarray(counts, top.dtype) * (top[:-1] - top[1:]))
    value = jnp.asarray(counts, top.dtype) / spacings
    usable = (top[1:] > -jnp.inf) & (count_nonfinite(x) == 0)
    return jnp.where(usable, value, jnp.nan), jnp.exp(top[1:]), usable


def _largest(x, num, size, centre):
    """The logarithms of the largest sizes, in descending order."""
    if centre == "median":
        two_sided = jnp.any(x > 0) & jnp.any(x < 0)
        x = jnp.where(two_sided, x - jnp.median(x, axis=0, keepdims=True), x)
    return -jnp.sort(-log_sizes(x, size))[:num]


def _tail_index(x, top, num_tail, inverse, error):
    """The result, from ``xi`` and its standard error."""
    num_nonfinite, num_zero = count_nonfinite(x), jnp.sum(top == -jnp.inf)
    bad = (num_nonfinite > 0) | (num_zero > 0)
    inverse, error = (jnp.where(bad, jnp.nan, a) for a in (inverse, error))
    power = ~(inverse <= 0)
    alpha = jnp.where(power, 1 / jnp.where(power, inverse, 1), jnp.inf)
    return TailIndex(
        value=alpha,
        standard_error=jnp.where(power, alpha**2 * error, jnp.inf),
        num_tail=num_tail,
        inverse=inverse,
        inverse_standard_error=error,
        num_nonfinite=num_nonfinite,
        num_zero=num_zero,
        num_ties=jnp.sum(top[:-1] == top[1:]),
    )


def _check(x, size, centre, num_tail, *, name="num_tail", factor=1):
    """Check what the estimators are given; the data."""
    check_word("size", size, SIZES)
    check_word("centre", centre, TAIL_CENTRES)
    check_count(at_least=2, **{name: num_tail})
    x = as_data(x, at_least=1, what="a tail index")
    num = num_sizes(x, size)
    if num < max(factor * num_tail, num_tail + 1):
        limit = "at most a quarter of" if factor == 4 else "below"
        raise ValueError(
            f"`{name}` must be {limit} the number of sizes, {num}, but was {num_tail}. "
            "Take fewer, or more data."
        )
    return x
