"""Stable law or scale mixture: whether the index is the same at every block size."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.dynamics.tails._lengths import as_data, count_nonfinite
from jaxtheory.dynamics.tails._log_moment import (
    serial_correlation,
    shuffled_and_centred,
)
from jaxtheory.linalg import stable

_MINIMUM_ROWS = 200
_NUM_PARTITIONS = 16


class StableDiagnosis(NamedTuple):
    """Whether data can be strictly stable, and what sums of them look like.

    Attributes:
        p_value: Share of samples of the fitted stable law whose `bend` is as far from
            the mean over those samples (two-sided). Small: the data are not strictly
            stable, and the log-moment index is no tail index. NaN where those samples
            overflow: in single precision, below an index of .2 or so.
        bend: ``1/alpha`` of small blocks minus that of large ones. Positive where sums
            approach a Gaussian (or another lighter law): a scale mixture, a Student t.
            NaN, as all else, where a sum is zero: numbers on a lattice are no sample
            of a stable law.
        bend_standard_deviation: Of `bend` over samples of the stable law.
        log_moment_index: Index by log-moments, from single observations to blocks of
            the largest size.
        small_block_index: From single observations to blocks of the middle size.
        large_block_index: From blocks of the middle size to the largest: 2 where sums
            are Gaussian by then.
        hill_index: Hill's index of the largest fiftieth of the differences, to read
            beside: of a stable law it is near the others below 1.6, and above them
            from there to 2; of a light tail it is far above.
        block_sizes: The middle and the largest block size.
        stable: True where `p_value` is at least the level.
        lighter: True where it is not and `bend` is positive: sums are lighter than
            what is summed.
        serial_correlation: As in `LogMoment`.
        num_nonfinite: Number of observations that are not finite; unless it is 0,
            nothing is said: NaN.
        num_zero: Number of differences of observations that are zero, as repeated
            points have; as above.
    """

    p_value: Float[Array, ""]
    bend: Float[Array, ""]
    bend_standard_deviation: Float[Array, ""]
    log_moment_index: Float[Array, ""]
    small_block_index: Float[Array, ""]
    large_block_index: Float[Array, ""]
    hill_index: Float[Array, ""]
    block_sizes: Int[Array, "2"]
    stable: Bool[Array, ""]
    lighter: Bool[Array, ""]
    serial_correlation: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_zero: Int[Array, ""]


def diagnose(
    x: Float[ArrayLike, " n"] | Float[ArrayLike, "n d"],
    *,
    key: KeyArray,
    num_bootstrap: int = 200,
    level: float | Float[Array, ""] = 0.05,
) -> StableDiagnosis:
    r"""Test whether observations are strictly stable, as the log-moment index assumes.

    Of independent strictly stable observations, ``g(m) = E log |X_1 + ... + X_m|`` is
    ``g(1) + log(m) / alpha`` exactly. Of any other law it bends: sums approach the law
    in whose domain of attraction they are, the Gaussian for a finite variance. With
    ``M`` the largest power of two up to ``sqrt(n)`` and ``m`` its root,

    .. math:: T = \frac{g(m) - g(1)}{\log m} - \frac{g(M) - g(m)}{\log(M / m)}

    measures the bend. It is held against that of as many numbers of the symmetric
    stable law with the index fitted between 1 and ``M`` (at most 2): symmetric because
    differences of shuffled observations are taken, which also centres them; and of
    one dimension because vectors are projected on one random direction, which leaves
    a stable law stable. The sums are averaged over several partitions into blocks.

    A p-value that is not small is not a proof: it says that this much data cannot
    tell the law from a stable one. A Gaussian mixture with a lognormal scale is found
    with a few thousand observations, Student's t of 3 with some 15,000. A stationary
    law of SGD with tail index 2 (of Kesten) has log-moments of index 1.6 to 1.8, and
    4,000 observations do not tell it from a stable law: there look at `hill_plot`.

    Args:
        x: Observations ``[n]`` or ``[n, d]``, at least 200.
        key: Random key, for shuffling, projecting, and the samples of the null law.
        num_bootstrap: Number of those samples; the smallest possible p-value is
            ``1 / (num_bootstrap + 1)``.
        level: Below which `p_value` is called small.

    Returns:
        The p-value, and the index of small and large blocks.

    Raises:
        ValueError: `x` is not a floating-point vector or matrix, has fewer than 200
            observations, or an option is out of range.

    Memory:
        ``n d``; each sample costs some ``sqrt(n)`` passes over ``n`` numbers.

    Example:
        >>> import jax
        >>> x = jax.random.laplace(jax.random.key(0), (4000,))
        >>> found = diagnose(x, key=jax.random.key(1))
        >>> bool(found.stable), bool(found.lighter)
        (False, True)

    References:
        Mohammadi, Mohammadpour & Ogata, Metrika 78 (2015), corollary 2.4 (the
        log-moments; the test is ours).
    """
    check_key(key)
    check_count(at_least=19, num_bootstrap=num_bootstrap)
    check_number("level", level, lambda p: 0 < p < 1, "a number in (0, 1)")
    x = as_data(x, at_least=_MINIMUM_ROWS, what="a diagnosis")
    return _diagnose(x.reshape(x.shape[0], -1), key, level, num_bootstrap)


@functools.partial(jax.jit, static_argnums=3)
def _diagnose(x, key, level, num_bootstrap):
    key_shuffle, key_project, key_null, key_data = jax.random.split(key, 4)
    num_nonfinite, serial = count_nonfinite(x), serial_correlation(x)
    x = shuffled_and_centred(x, key_shuffle, centre="differences")
    direction = jax.random.normal(key_project, (x.shape[1],), x.dtype)
    x = jnp.sum(x * direction[None, :], axis=1)
    sizes, num_zero = _sizes(x.shape[0]), jnp.sum(x == 0)
    small, large, whole = _inverses(x, key_data, sizes)
    fitted = jnp.where(whole > 0.5, 1 / whole, 2)

    def null_bend(index):
        key_draw, key_blocks = jax.random.split(jax.random.fold_in(key_null, index))
        drawn = stable(key_draw, fitted, x.shape, dtype=x.dtype)
        drawn_small, drawn_large, _ = _inverses(drawn, key_blocks, sizes)
        return drawn_small - drawn_large

    null = jax.lax.map(null_bend, jnp.arange(num_bootstrap))
    bend, middle = small - large, jnp.mean(null)
    farther = jnp.sum(jnp.abs(null - middle) >= jnp.abs(bend - middle))
    p_value = (1 + farther) / (num_bootstrap + 1)
    p_value = jnp.where(jnp.isfinite(middle), p_value, jnp.nan)
    bad = (num_nonfinite > 0) | (num_zero > 0) | ~jnp.isfinite(bend)
    indices = (1 / one for one in (whole, small, large, _hill(x)))
    said = (p_value, bend, jnp.std(null, ddof=1), *indices)
    said = tuple(jnp.where(bad, jnp.nan, one) for one in said)
    rejected = said[0] < level
    return StableDiagnosis(
        *said,
        block_sizes=jnp.asarray(sizes[1:]),
        stable=said[0] >= level,
        lighter=rejected & (bend > middle),
        serial_correlation=serial,
        num_nonfinite=num_nonfinite,
        num_zero=num_zero,
    )


def _sizes(num):
    """One, the middle block size, and the largest: powers of two."""
    power = int(np.log2(num) / 2)
    return 1, 2 ** (power // 2), 2**power


def _inverses(x, key, sizes):
    """``1 / alpha`` from log-moments between the three block sizes."""
    one, middle, largest = (_log_moment_at(x, key, m) for m in sizes)
    logs = np.log(sizes)
    small = (middle - one) / (logs[1] - logs[0])
    large = (largest - middle) / (logs[2] - logs[1])
    return small, large, (largest - one) / (logs[2] - logs[0])


def _hill(x):
    """``1 / alpha`` by Hill."""
    num_tail = max(10, x.shape[0] // 50)
    top = jax.lax.top_k(jnp.log(jnp.abs(x)), num_tail + 1)[0]
    return jnp.mean(top[:-1]) - top[-1]


def _log_moment_at(x, key, m):
    """Mean logarithm of sums of blocks of `m`, over several partitions into blocks.

    A block takes one number from each of `m` segments; a partition shifts each segment
    cyclically. One partition wastes most of what large blocks could say.
    """
    if m == 1:
        return jnp.mean(jnp.log(jnp.abs(x)))
    num = x.shape[0] // m
    segments = x[: num * m].reshape(m, num)
    size = (max(_NUM_PARTITIONS, m), m, 1)
    offsets = jax.random.randint(jax.random.fold_in(key, m), size, 0, num)

    def one_partition(offset):
        index = (np.arange(num)[None, :] + offset) % num
        sums = jnp.sum(jnp.take_along_axis(segments, index, axis=1), axis=0)
        return jnp.mean(jnp.log(jnp.abs(sums)))

    return jnp.mean(jax.lax.map(one_partition, offsets))
