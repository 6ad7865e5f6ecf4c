"""The log-moment estimator of the index of a strictly stable law."""

import functools
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import (
    check_count,
    check_key,
    check_word,
)
from jaxtheory.dynamics.tails._lengths import (
    as_data,
    count_nonfinite,
    log_norms,
)

Centre: TypeAlias = Literal["differences", "mean", "none"]
CENTRES = ("differences", "mean", "none")
_BLOCK_SIZES = (2, 5, 10, 20, 50, 100)
_MINIMUM_ROWS = 20


class LogMoment(NamedTuple):
    """The index of stability by the log-moment estimator, and what it rests on.

    Attributes:
        value: Tail index ``alpha``, the median over block sizes; infinite where sums
            of blocks are no larger than single observations. NaN where the data
            cannot say (`num_nonfinite` or `num_zero` is not 0).
        standard_error: Standard error of `value`, from the spread over blocks, as if
            observations were independent: that of the middle block size. The median
            over sizes is more precise: over samples of stable laws `value` had a
            deviation of .6 to 1.1 times this.
        num_samples: Number of centred observations that entered.
        block_sizes: The block sizes.
        block_values: The index at each: they agree for a strictly stable law, and
            only for one. `diagnose` tests it.
        block_standard_errors: Their standard errors.
        capped: True where `value` is above 2 less two standard errors. A law of
            finite variance reads 2 at large blocks, whatever its tail is.
        serial_correlation: Mean cosine between an observation and the next (each
            less the median of all), in the order given. Far from 0, against
            ``1 / sqrt(n)``, observations are dependent; shuffling keeps that out of
            `value`, but `standard_error` is too small.
        num_nonfinite: Number of observations that are not finite.
        num_zero: Number of centred observations or blocks of size zero, which has no
            logarithm: repeated points. ``statistic="median"`` bears a few.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_samples: Int[Array, ""] | int
    block_sizes: Int[Array, " m"]
    block_values: Float[Array, " m"]
    block_standard_errors: Float[Array, " m"]
    capped: Bool[Array, ""]
    serial_correlation: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_zero: Int[Array, ""]


def log_moment(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    key: KeyArray,
    block_size: int | None = None,
    centre: Centre = "differences",
    shuffle: bool = True,
    statistic: Literal["mean", "median"] = "mean",
) -> LogMoment:
    r"""Estimate the index of a strictly stable law by its log-moments.

    With ``Y_i`` the sum of the ``i``-th block of ``m`` observations,

    .. math:: \frac{1}{\hat\alpha} = \frac{1}{\log m} \left(
        \frac{1}{K} \sum_{i=1}^{K} \log |Y_i| -
        \frac{1}{n} \sum_{j=1}^{n} \log |X_j| \right)

    (norms for vectors), and the median over block sizes. It holds for independent,
    centred and strictly stable observations. On other laws it measures something
    else: 1.75 on Student's t with 3 degrees of freedom, 1.0 to 1.4 on a Gaussian
    mixture of lognormal scale, which has every moment. Whether to believe it is what
    `diagnose` tells, and what the tail itself is, `hill`.

    The published scripts feed it the iterates in their order, neither centred nor
    shuffled: a Gaussian AR(1) chain with coefficient .9 then has an index of 1.04,
    and a Gaussian with a mean of half its deviation one of 1.05 to 1.55. Here rows
    are shuffled and centred.

    Args:
        x: Observations ``[n]`` or ``[n, d]``.
        key: Random key, for shuffling.
        block_size: ``m``; None takes the median over those of 2, 5, 10, 20, 50, 100
            and ``sqrt(n)`` that are at most ``sqrt(n)``.
        centre: ``"differences"`` subtracts each second observation from the one
            before it, after shuffling: exact for any location, any skewness and any
            index, and leaves half the number of observations. ``"mean"`` subtracts
            the mean, wrong for an index below 1. ``"none"`` is for data that are
            known to have no location.
        shuffle: Permute the rows first.
        statistic: ``"mean"`` of the logarithms, as above, or their ``"median"``: the
            order-statistic form, ``(log |Y|_(K/2) - log |X|_(n/2)) / log m``, about as
            precise; it bears some outliers and zeros.

    Returns:
        The index, its standard error and flags.

    Raises:
        ValueError: `x` is not a floating-point vector or matrix, or has fewer than 20
            centred observations, or an option is out of range.

    Example:
        >>> import jax
        >>> x = jax.random.cauchy(jax.random.key(0), (4000,))
        >>> found = log_moment(x, key=jax.random.key(1))
        >>> bool(abs(found.value - 1) < 4 * found.standard_error)
        True

    References:
        Mohammadi, Mohammadpour & Ogata, Metrika 78 (2015), corollaries 2.2 and 2.4;
        Simsekli, Sagun & Gurbuzbalaban, arXiv:1901.06053, theorem 2.
    """
    check_key(key)
    check_word("centre", centre, CENTRES)
    check_word("statistic", statistic, ("mean", "median"))
    halves = 2 if centre == "differences" else 1
    least = halves * _MINIMUM_ROWS
    x = as_data(x, at_least=least, what=f"log-moments with `centre='{centre}'`")
    num = x.shape[0] // halves
    if block_size is None:
        sizes = block_sizes(num)
    else:
        sizes = (check_count(at_least=2, block_size=block_size),)
        if 2 * block_size > num:
            raise ValueError(
                f"`block_size` must be at most {num // 2}, for two blocks of the "
                f"{num} centred observations, but was {block_size}."
            )
    x = x.reshape(x.shape[0], -1)
    return _log_moment(x, key, sizes, centre, bool(shuffle), statistic)


def block_sizes(num: int) -> tuple[int, ...]:
    """Return the published block sizes that `num` observations allow."""
    root = int(num**0.5)
    return tuple(sorted({m for m in _BLOCK_SIZES if m <= root} | {root}))


def shuffled_and_centred(
    x: Float[Array, "n d"], key: KeyArray, *, centre: Centre, shuffle: bool = True
) -> Float[Array, "m d"]:
    """Permute the rows, centre them, and bring them to a largest entry of 1."""
    if shuffle:
        x = jax.random.permutation(key, x)
    scale = lambda x: x / jnp.where(jnp.any(x != 0), jnp.max(jnp.abs(x)), 1)
    x = scale(x)
    if centre == "differences":
        pairs = x[: x.shape[0] // 2 * 2].reshape(-1, 2, x.shape[1])
        x = scale(pairs[:, 0] - pairs[:, 1])
    elif centre == "mean":
        x = scale(x - jnp.mean(x, axis=0, keepdims=True))
    return x


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _log_moment(x, key, sizes, centre, shuffle, statistic):
    num_nonfinite, serial = count_nonfinite(x), serial_correlation(x)
    x = shuffled_and_centred(x, key, centre=centre, shuffle=shuffle)
    logs = log_norms(x)
    found = [_at_block_size(x, logs, m, statistic) for m in sizes]
    inverses, errors, zeros = (jnp.stack(column) for column in zip(*found, strict=True))
    num_zero = jnp.sum(logs == -jnp.inf) + jnp.sum(zeros)
    # The median is one of the estimates or lies between two, all nearly the same.
    middle = np.unique([(len(sizes) - 1) // 2, len(sizes) // 2])
    order = jnp.argsort(inverses)[middle]
    inverse, error = jnp.mean(inverses[order]), jnp.mean(errors[order])
    bad = num_nonfinite > 0
    if statistic == "mean":
        bad |= num_zero > 0
    inverse = jnp.where(bad, jnp.nan, inverse)
    value, standard_error = _reciprocal(inverse, error)
    return LogMoment(
        value,
        standard_error,
        x.shape[0],
        jnp.asarray(sizes),
        *_reciprocal(inverses, errors),
        inverse - 2 * error <= 0.5,
        serial,
        num_nonfinite,
        num_zero,
    )


def _at_block_size(x, logs, m, statistic):
    """``1 / alpha`` from blocks of ``m``, its standard error, and how many are zero.

    The error is that of the mean of a block's part in the estimate: its own logarithm
    less those of its members.
    """
    num = x.shape[0] // m
    blocks = jnp.sum(x[: num * m].reshape(num, m, -1), axis=1)
    sums = log_norms(blocks)
    average = jnp.mean if statistic == "mean" else jnp.median
    influence = (lambda a: a) if statistic == "mean" else _influence_on_median
    members = influence(logs)[: num * m].reshape(num, m)
    parts = influence(sums) - jnp.mean(members, axis=1)
    scale = np.log(m)
    error = jnp.std(parts, ddof=1) / (num**0.5 * scale)
    return (average(sums) - average(logs)) / scale, error, jnp.sum(sums == -jnp.inf)


def _influence_on_median(a):
    """What each observation adds to the median, up to a constant."""
    half = min(0.25, a.shape[0] ** (-1 / 3))
    ends = jnp.quantile(a, jnp.array([0.5 - half, 0.5 + half], a.dtype))
    return jnp.where(a > jnp.median(a), ends[1] - ends[0], 0) / (2 * half)


def _reciprocal(inverse, error):
    """``alpha`` and its standard error, by the delta method; infinite at ``<= 0``."""
    positive = ~(inverse <= 0)
    alpha = jnp.where(positive, 1 / jnp.where(positive, inverse, 1), jnp.inf)
    return alpha, jnp.where(positive, alpha**2 * error, jnp.inf)


def serial_correlation(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean cosine between successive rows, each less the median of all rows."""
    x = x - jnp.median(x, axis=0, keepdims=True)
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))
    x = x / jnp.where(norms > 0, norms, 1)
    return jnp.mean(jnp.sum(x[1:] * x[:-1], axis=1))
