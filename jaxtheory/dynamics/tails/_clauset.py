"""Power laws fitted above a threshold that the data choose, and a test of the fit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import (
    check_count,
    check_key,
    check_word,
)
from jaxtheory.dynamics.tails._lengths import (
    SIZES,
    Size,
    as_data,
    count_nonfinite,
    log_sizes,
    num_sizes,
)


class PowerLaw(NamedTuple):
    """A power law fitted to the tail of a sample.

    The density falls as ``x^-exponent`` and the survival function as ``x^-value``:
    **the exponent that Clauset and others quote is the tail index plus one.**

    Attributes:
        value: Tail index ``alpha``; NaN where no threshold is possible (all sizes
            equal or zero, or data that are not finite).
        standard_error: ``alpha / sqrt(num_tail)``, for a threshold that is known.
        num_tail: Number of sizes at or above `threshold`.
        exponent: ``alpha + 1``, of the density.
        threshold: Smallest size of the tail, in the units of the data.
        ks_distance: Largest distance between the distribution function of the tail and
            that of the fitted law.
        num_nonfinite: Number of observations that are not finite.
        num_zero: Number of sizes that are zero; they are in no tail.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_tail: Int[Array, ""]
    exponent: Float[Array, ""]
    threshold: Float[Array, ""]
    ks_distance: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_zero: Int[Array, ""]


class PowerLawTest(NamedTuple):
    """Whether a sample can come from the power law that was fitted to its tail.

    Attributes:
        fit: The fit.
        p_value: Share of samples drawn from the fit whose own fit is as far from them
            or farther, with its standard error. Small (Clauset and others take .1)
            rules the power law out; large does not prove it: another law may fit as
            well, above all with few tail points.
    """

    fit: PowerLaw
    p_value: Estimate


def clauset(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    min_tail: int = 10,
    max_candidates: int = 256,
    size: Size = "norm",
) -> PowerLaw:
    r"""Fit a power law to the tail above the threshold that makes it fit best.

    .. math:: \hat\alpha = \frac{k}{\sum_{x_i \ge x_{\min}} \log (x_i / x_{\min})},
        \quad \text{density} \propto x^{-(\alpha + 1)}

    with ``x_min`` the observed size at which the Kolmogorov-Smirnov distance between
    the tail and its fit is smallest. Mind the two conventions: `value` is the tail
    index ``alpha``; the exponent of the density, which most papers call alpha, is
    ``alpha + 1`` and has a field of its own.

    The standard error takes the threshold as known, which it is not: at 10,000 Pareto
    points of index 1.5 the deviation over samples was 1.4 times as large.

    Args:
        x: As for `hill`, but taken as it is: nothing is centred.
        min_tail: Smallest number of tail points.
        max_candidates: Number of thresholds that are tried, at sizes that leave tails
            of geometrically spaced lengths; every one where there are no more sizes.
        size: As for `hill`.

    Returns:
        The fit.

    Raises:
        ValueError: `x` is not a floating-point vector or matrix, has fewer than
            `min_tail` sizes, or an option is out of range.

    Memory:
        ``n``; one sort, and ``n`` operations a candidate.

    Example:
        >>> import jax.numpy as jnp
        >>> ranks = (jnp.arange(1000.0) + 0.5) / 1000
        >>> fit = clauset(ranks**-0.5)  # P(X > x) = x^-2
        >>> round(float(fit.value), 1), round(float(fit.exponent), 1)
        (2.0, 3.0)

    References:
        Clauset, Shalizi & Newman, arXiv:0706.1062, equations 3.1, 3.2 and 3.9.
    """
    x, counts = _check(x, size, min_tail, max_candidates)
    return _clauset(x, counts, size)


def power_law_test(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    key: KeyArray,
    num_bootstrap: int = 200,
    min_tail: int = 10,
    max_candidates: int = 64,
    size: Size = "norm",
) -> PowerLawTest:
    """Test by a bootstrap whether the tail of a sample is a power law.

    Each bootstrap sample has as many points as the data, each from the fitted power
    law with the probability that a point is in the tail, else one of the data below
    the threshold; it is fitted like the data, its threshold included.

    Args:
        x: As for `clauset`.
        key: Random key, for the samples.
        num_bootstrap: Number of samples.
        min_tail: As for `clauset`.
        max_candidates: As for `clauset`.
        size: As for `hill`.

    Returns:
        The fit and its p-value.

    Raises:
        ValueError: As for `clauset`, or `num_bootstrap` is no positive integer.

    Memory:
        ``n``; each bootstrap sample costs a `clauset`.

    Example:
        >>> import jax
        >>> x = jax.random.pareto(jax.random.key(0), 1.5, (300,))
        >>> found = power_law_test(x, key=jax.random.key(1), num_bootstrap=50)
        >>> float(found.p_value.value) > 0.05
        True

    References:
        Clauset, Shalizi & Newman, arXiv:0706.1062, section 4.1.
    """
    check_key(key)
    check_count(num_bootstrap=num_bootstrap)
    x, counts = _check(x, size, min_tail, max_candidates)
    return _power_law_test(x, key, counts, size, num_bootstrap)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _clauset(x, counts, size):
    logs = -jnp.sort(-log_sizes(x, size))
    return fit_sorted(logs, counts, count_nonfinite(x))


def fit_sorted(
    logs: Float[Array, " n"], counts: tuple[int, ...], num_nonfinite: Int[Array, ""]
) -> PowerLaw:
    """Fit descending logarithms, with thresholds that leave about `counts` points."""
    rank = jnp.arange(logs.shape[0], dtype=logs.dtype)

    def at(count):
        log_threshold = logs[count - 1]
        # All points that equal the threshold are in the tail.
        tail = logs >= log_threshold
        num = jnp.sum(tail)
        excess = jnp.where(tail, logs - log_threshold, 0)
        index = num / jnp.sum(excess)
        survival = jnp.exp(-index * excess)
        share = num.astype(logs.dtype)
        above, below = jnp.abs(rank / share - survival), (rank + 1) / share - survival
        gap = jnp.max(jnp.where(tail, jnp.maximum(above, jnp.abs(below)), 0))
        possible = jnp.isfinite(index) & (log_threshold > -jnp.inf)
        return jnp.where(possible, gap, jnp.inf), index, num, log_threshold

    every = jax.lax.map(at, jnp.asarray(counts))
    gap, index, num, log_threshold = (a[jnp.argmin(every[0])] for a in every)
    bad = jnp.isinf(gap) | (num_nonfinite > 0)
    index, gap = jnp.where(bad, jnp.nan, index), jnp.where(bad, jnp.nan, gap)
    error, zero = index / jnp.sqrt(num), jnp.sum(logs == -jnp.inf)
    threshold = jnp.exp(log_threshold)
    return PowerLaw(index, error, num, index + 1, threshold, gap, num_nonfinite, zero)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _power_law_test(x, key, counts, size, num_bootstrap):
    logs = -jnp.sort(-log_sizes(x, size))
    none = jnp.zeros((), int)
    fit = fit_sorted(logs, counts, count_nonfinite(x))
    num = logs.shape[0]

    def distance(index):
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        key_tail, key_excess, key_body = keys
        in_tail = jax.random.uniform(key_tail, (num,)) * num < fit.num_tail
        excess = jax.random.exponential(key_excess, (num,), logs.dtype) / fit.value
        body = jax.random.randint(key_body, (num,), jnp.minimum(fit.num_tail, num), num)
        drawn = jnp.where(
            in_tail, jnp.log(fit.threshold) + excess, logs[jnp.minimum(body, num - 1)]
        )
        return fit_sorted(-jnp.sort(-drawn), counts, none).ks_distance

    distances = jax.lax.map(distance, jnp.arange(num_bootstrap))
    share = jnp.mean((distances >= fit.ks_distance).astype(logs.dtype))
    share = jnp.where(jnp.isnan(fit.ks_distance), jnp.nan, share)
    error = jnp.sqrt(share * (1 - share) / num_bootstrap)
    return PowerLawTest(fit, Estimate(share, error, num_bootstrap))


def candidate_counts(num: int, min_tail: int, max_candidates: int) -> tuple[int, ...]:
    """Return the lengths of the tails to try, geometrically spaced where too many."""
    spaced = np.geomspace(min_tail, num, max_candidates).round().astype(int)
    if num - min_tail < max_candidates:
        spaced = np.arange(min_tail, num + 1)
    return tuple(np.unique(spaced).tolist())


def _check(x, size, min_tail, max_candidates):
    """Check what is given; the data, and the lengths of the tails to try."""
    check_word("size", size, SIZES)
    check_count(at_least=2, min_tail=min_tail)
    check_count(max_candidates=max_candidates)
    x = as_data(x, at_least=1, what="a power law")
    num = num_sizes(x, size)
    if num < min_tail:
        raise ValueError(
            f"`x` must hold at least `min_tail` sizes, {min_tail}, but holds {num}."
        )
    return x, candidate_counts(num, min_tail, max_candidates)
