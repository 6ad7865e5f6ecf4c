"""Spectra of weights and features against Marchenko-Pastur and a power law."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray, Params
from jaxtheory.batching import check_count, check_key, check_number, check_params
from jaxtheory.dynamics.tails._clauset import (
    PowerLaw,
    candidate_counts,
    fit_sorted,
)
from jaxtheory.dynamics.tails._lengths import check_settled, shape_and_dtype
from jaxtheory.linalg import (
    edge_test,
    marchenko_pastur_cdf,
    marchenko_pastur_edges,
    marchenko_pastur_variance,
)

_MINIMUM_EIGENVALUES = 20
_MIN_TAIL = 10
_MAX_CANDIDATES = 128
_CLEAR = 1e-4
_ROUNDING = 1e-3


class NoiseComparison(NamedTuple):
    """A spectrum held against the Marchenko-Pastur law of pure noise.

    Attributes:
        eigenvalues: The ``min(n, p)`` of ``X^T X / n`` that are not zero by shape, in
            descending order.
        ratio: ``p / n``.
        variance: Variance of the noise: the mean eigenvalue without clear outliers,
            which are beyond what noise of the median's variance reaches once in
            10,000 times. The median alone would make the test at the edge reject
            noise two to three times as often as its level says. Each outlier that is
            left out lowers it by some `ratio` over the number of eigenvalues.
        lower_edge: Of the bulk, at that variance.
        upper_edge: Of the bulk.
        p_value: Of the largest eigenvalue under noise (Tracy-Widom).
        num_outliers: Eigenvalues above the quantile that noise passes with the
            probability ``level``.
        ks_distance: Largest distance between the distribution function of the
            eigenvalues and that of the law at the estimated variance.
        num_nonfinite: Entries that are not finite, and given eigenvalues below zero by
            more than .001 of the largest, which no covariance has; unless 0, the rest
            is NaN.
        degenerate: True where the median eigenvalue is 0 to rounding: no noise to hold
            the spectrum against; `p_value` and what follows from it is NaN or 0.
    """

    eigenvalues: Float[Array, " r"]
    ratio: Float[Array, ""] | float
    variance: Float[Array, ""]
    lower_edge: Float[Array, ""]
    upper_edge: Float[Array, ""]
    p_value: Float[Array, ""]
    num_outliers: Int[Array, ""]
    ks_distance: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    degenerate: Bool[Array, ""]


class WeightSpectrum(NamedTuple):
    """The spectrum of one weight matrix.

    Attributes:
        noise: The eigenvalues of ``W^T W / n``, against noise; ``W`` is turned so that
            ``n >= p``.
        power_law: Fit of a power law to the eigenvalues. Its ``exponent`` is the alpha
            of WeightWatcher, its ``value`` that minus one. NaN where `too_few`.
        stable_rank: ``|W|_F^2 / |W|_2^2``.
        spectral_norm: ``|W|_2``, of ``W`` itself.
        entry_tail_index: Hill's index of the largest hundredth of the entries. Below 4
            the fourth moment is infinite, and the edge means nothing.
        shuffled_p_value: Of the largest eigenvalue after the entries, less their mean,
            were shuffled: what the entries alone make, without any structure.
        shuffled_exponent: Of the power law fitted after shuffling.
        heavy_entries: True where `shuffled_p_value` is below the level, or
            `entry_tail_index` is below 4: large entries, not structure, may make the
            outliers and the power law.
        too_few: True for fewer than 20 eigenvalues: no power law is fitted.
    """

    noise: NoiseComparison
    power_law: PowerLaw
    stable_rank: Float[Array, ""]
    spectral_norm: Float[Array, ""]
    entry_tail_index: Float[Array, ""]
    shuffled_p_value: Float[Array, ""]
    shuffled_exponent: Float[Array, ""]
    heavy_entries: Bool[Array, ""]
    too_few: Bool[Array, ""] | bool


def weight_spectra(
    params: Params, *, key: KeyArray, level: float = 0.01
) -> dict[str, WeightSpectrum]:
    r"""Measure the spectrum of every weight matrix of a pytree of parameters.

    Each array of two or more axes is taken as a matrix ``W`` of shape
    ``[product of all axes but the last, last]``: a Flax kernel ``[height, width, in,
    out]`` becomes ``[height width in, out]``. What
    has fewer than two rows or columns is left out, as vectors are. With ``n`` the
    longer side and ``p`` the shorter, the spectrum is that of ``W^T W / n`` (of
    ``W W^T / n`` for a wide ``W``), so that noise of variance ``sigma^2`` fills
    ``sigma^2 (1 +- sqrt(p / n))^2``.

    A matrix of independent heavy-tailed entries has a power-law spectrum and outliers
    without having learnt anything. So the entries are shuffled once, and measured
    again: what survives is theirs.

    Args:
        params: Any pytree of parameters.
        key: Random key, for the shuffling.
        level: Of the test at the edge: pure noise has an outlier with about this
            probability, per matrix.

    Returns:
        The path of each matrix, as JAX writes it, with its spectrum.

    Raises:
        ValueError: `params` is not a pytree of floating-point arrays or holds no
            matrix, or `level` is not in ``(0, 1)``.

    Memory:
        The largest matrix; ``n p^2`` operations each, twice.

    Example:
        >>> import jax
        >>> kernel = jax.random.normal(jax.random.key(0), (60, 30))
        >>> found = weight_spectra({"kernel": kernel}, key=jax.random.key(1))
        >>> spectrum = found["['kernel']"]
        >>> int(spectrum.noise.num_outliers), bool(spectrum.heavy_entries)
        (0, False)

    References:
        Martin & Mahoney, arXiv:1810.01075, section 3; Johnstone, Ann. Statist. 29
        (2001).
    """
    check_key(key)
    check_params(params)
    _check_level(level)
    matrices = {
        jax.tree_util.keystr(path): matrix
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if (matrix := _as_matrix(leaf)) is not None
    }
    if not matrices:
        raise ValueError(
            "`params` must hold at least one array of two axes longer than 1, but has "
            f"the shapes {[np.shape(leaf) for leaf in jax.tree.leaves(params)]}."
        )
    return {
        path: _weight_spectrum(matrix, jax.random.fold_in(key, index), float(level))
        for index, (path, matrix) in enumerate(matrices.items())
    }


def spectrum_against_marchenko_pastur(
    features: Float[ArrayLike, "n d"], *, centre: bool = True, level: float = 0.01
) -> NoiseComparison:
    r"""Hold the covariance spectrum of features against that of pure noise.

    The eigenvalues of ``X^T X / n``, ``X`` the features ``[n, d]`` less their mean
    over examples; then ``n`` is the number of examples minus one. They are compared
    with the Marchenko-Pastur law at a variance taken from their bulk, and the
    largest with the Tracy-Widom law.

    The law is that of independent features of one variance. Features whose variances
    differ have another bulk: then `ks_distance` is large, and what is beyond the edge
    is no proof of a spike. What an outlier says about the population,
    `linalg.spike_of_outlier` tells. For a conjugate kernel pass its feature matrix, or
    its eigenvalues to `eigenvalues_against_marchenko_pastur`.

    Args:
        features: ``[n, d]``, examples independent of each other.
        centre: Subtract the mean over examples.
        level: As for `weight_spectra`.

    Returns:
        The spectrum and the comparison.

    Raises:
        ValueError: `features` is not a floating-point matrix of at least 3 by 2, or
            `level` is not in ``(0, 1)``.

    Memory:
        A copy of `features`; ``n d min(n, d)`` operations.

    Example:
        >>> import jax
        >>> noise = jax.random.normal(jax.random.key(0), (200, 50)) + 3
        >>> found = spectrum_against_marchenko_pastur(noise)
        >>> int(found.num_outliers), round(float(found.variance), 1)
        (0, 1.0)

    References:
        Johnstone, Ann. Statist. 29 (2001); Baik, Ben Arous & Peche,
        arXiv:math/0403022; Fan & Wang, arXiv:2005.11879 (conjugate kernels).
    """
    _check_level(level)
    shape, dtype = shape_and_dtype("features", features)
    if len(shape) != 2 or shape[0] < 3 or shape[1] < 2:
        raise ValueError(
            "`features` must be a matrix [n, d] of at least three examples and two "
            f"features, but has shape {shape}."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`features` must be floating-point, but has dtype {dtype}.")
    x = jnp.asarray(features, jnp.result_type(dtype, jnp.float32))
    return _features_spectrum(x, bool(centre), float(level))


def eigenvalues_against_marchenko_pastur(
    eigenvalues: Float[ArrayLike, " r"],
    *,
    num_samples: int,
    dimension: int,
    level: float = 0.01,
) -> NoiseComparison:
    """Hold given eigenvalues against those of a sample covariance of pure noise.

    Of ``X^T X / num_samples``, with ``X`` of shape ``[num_samples, dimension]``. For a
    conjugate kernel ``F F^T / d`` of ``n`` examples and ``d`` features this is
    ``num_samples=d, dimension=n``: there the features are the samples.

    Args:
        eigenvalues: All, or the ``min(num_samples, dimension)`` largest.
        num_samples: Rows of ``X``, at least 2; one less where their mean was taken off.
        dimension: Columns of ``X``, at least 2.
        level: As for `weight_spectra`.

    Returns:
        The comparison.

    Raises:
        ValueError: There are fewer eigenvalues than that, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.linalg import marchenko_pastur_quantile
        >>> bulk = marchenko_pastur_quantile((jnp.arange(50.0) + 0.5) / 50, ratio=0.25)
        >>> found = eigenvalues_against_marchenko_pastur(
        ...     bulk.at[-1].set(4.0), num_samples=200, dimension=50
        ... )
        >>> int(found.num_outliers), round(float(found.variance), 1)
        (1, 1.0)

    References:
        As for `spectrum_against_marchenko_pastur`.
    """
    _check_level(level)
    check_count(at_least=2, num_samples=num_samples)
    check_count(at_least=2, dimension=dimension)
    shape, dtype = shape_and_dtype("eigenvalues", eigenvalues)
    floating = jnp.issubdtype(dtype, jnp.floating)
    least = min(num_samples, dimension)
    if len(shape) != 1 or shape[0] < least or not floating:
        raise ValueError(
            f"`eigenvalues` must be a floating-point vector of at least {least}, the "
            "smaller of `num_samples` and `dimension`, but has shape "
            f"{shape} and dtype {dtype}."
        )
    eigenvalues = jnp.asarray(eigenvalues, jnp.result_type(dtype, jnp.float32))
    return _given_spectrum(eigenvalues, num_samples, dimension, float(level))


@functools.partial(jax.jit, static_argnums=2)
def _weight_spectrum(matrix, key, level):
    rows, columns = matrix.shape
    noise = _matrix_spectrum(matrix, rows, level)
    # Less their mean: it would make a spike, whatever the order of the entries.
    entries = jax.random.permutation(key, matrix.reshape(-1) - jnp.mean(matrix))
    shuffled = _matrix_spectrum(entries.reshape(matrix.shape), rows, level)
    power_law, again = _power_law(noise), _power_law(shuffled)
    entry_index = _entry_tail_index(matrix)
    squares = noise.eigenvalues * rows
    return WeightSpectrum(
        noise=noise,
        power_law=power_law,
        stable_rank=jnp.sum(squares) / squares[0],
        spectral_norm=jnp.sqrt(squares[0]),
        entry_tail_index=entry_index,
        shuffled_p_value=shuffled.p_value,
        shuffled_exponent=again.exponent,
        heavy_entries=(shuffled.p_value < level) | (entry_index < 4),
        too_few=columns < _MINIMUM_EIGENVALUES,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _features_spectrum(x, centre, level):
    if centre:
        x = x - jnp.mean(x, axis=0, keepdims=True)
    return _matrix_spectrum(x, x.shape[0] - centre, level)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _given_spectrum(eigenvalues, num_samples, dimension, level):
    possible = eigenvalues >= -_ROUNDING * jnp.max(jnp.abs(eigenvalues))
    bad = jnp.sum(~(possible & jnp.isfinite(eigenvalues)))
    values = -jnp.sort(-eigenvalues)[: min(num_samples, dimension)]
    values = jnp.where(bad > 0, jnp.nan, jnp.maximum(values, 0))
    return _compare(values, num_samples, dimension, level, bad)


def _matrix_spectrum(matrix, num_samples, level):
    """Compare the eigenvalues of ``X^T X / num_samples``."""
    bad = jnp.sum(~jnp.isfinite(matrix))
    # On the scale of the largest entry, so that squares neither over- nor underflow.
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1)
    safe = jnp.where(jnp.isfinite(matrix), matrix, 0) / scale
    values = jnp.linalg.svd(safe, compute_uv=False) * scale
    values = jnp.where(bad > 0, jnp.nan, values)[: min(num_samples, matrix.shape[1])]
    return _compare(values**2 / num_samples, num_samples, matrix.shape[1], level, bad)


def _compare(eigenvalues, num_samples, dimension, level, num_nonfinite):
    """The comparison of descending eigenvalues, zeros by shape left out."""
    ratio, num = dimension / num_samples, eigenvalues.shape[0]
    variance = marchenko_pastur_variance(eigenvalues, ratio=ratio)
    rounding = 1e2 * jnp.finfo(eigenvalues.dtype).eps
    degenerate = ~(variance > rounding * eigenvalues[0])
    safe = jnp.where(degenerate, 1, variance)
    sizes = {"num_samples": num_samples, "dimension": dimension}
    clear = edge_test(eigenvalues, variance=safe, **sizes).p_value < _CLEAR
    bulk = jnp.mean(jnp.where(clear, 0, eigenvalues)) / max(ratio, 1)
    bulk = bulk / jnp.mean((~clear).astype(bulk.dtype))
    variance = jnp.where(degenerate, variance, bulk)
    safe = jnp.where(degenerate, 1, variance)
    test = edge_test(eigenvalues, variance=safe, **sizes)
    share = marchenko_pastur_cdf(eigenvalues, ratio=ratio, variance=safe)
    # Of the eigenvalues that are not zero by shape.
    share = 1 - (1 - share) * max(ratio, 1)
    above, below = 1 - np.arange(num) / num, 1 - np.arange(1, num + 1) / num
    gap = jnp.maximum(jnp.abs(share - above), jnp.abs(share - below))
    lower, upper = marchenko_pastur_edges(ratio, variance=safe)
    missing = lambda a: jnp.where(degenerate, jnp.nan, a)
    return NoiseComparison(
        eigenvalues=eigenvalues,
        ratio=ratio,
        variance=variance,
        lower_edge=missing(lower),
        upper_edge=missing(upper),
        p_value=missing(test.p_value[0]),
        num_outliers=jnp.sum((test.p_value < level) & ~degenerate),
        ks_distance=missing(jnp.max(gap)),
        num_nonfinite=num_nonfinite,
        degenerate=degenerate,
    )


def _power_law(noise):
    """Fit the eigenvalues, where there are enough."""
    num = noise.eigenvalues.shape[0]
    counts = (num,)
    if num >= _MINIMUM_EIGENVALUES:
        counts = candidate_counts(num, _MIN_TAIL, _MAX_CANDIDATES)
    fit = fit_sorted(jnp.log(noise.eigenvalues), counts, noise.num_nonfinite)
    if num >= _MINIMUM_EIGENVALUES:
        return fit
    nothing = {name: jnp.full_like(fit.value, jnp.nan) for name in _FITTED}
    return fit._replace(num_tail=jnp.zeros_like(fit.num_tail), **nothing)


_FITTED = ("value", "standard_error", "exponent", "threshold", "ks_distance")


def _entry_tail_index(matrix):
    """Hill's index of the largest hundredth of the entries, at least ten of them."""
    num = min(max(10, matrix.size // 100), matrix.size - 1)
    top = jax.lax.top_k(jnp.log(jnp.abs(matrix.reshape(-1))), num + 1)[0]
    return 1 / (jnp.mean(top[:-1]) - top[-1])


def _as_matrix(leaf: Any):
    """The matrix ``[n, p]``, ``n >= p``, of a parameter; None where it is a vector."""
    shape = np.shape(leaf)
    if len(shape) < 2:
        return None
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    if min(rows, columns) < 2:
        return None
    matrix = jnp.asarray(leaf, jnp.result_type(jnp.float32, leaf))
    matrix = matrix.reshape(rows, columns)
    return matrix.T if columns > rows else matrix


def _check_level(level):
    check_settled("level", level)
    check_number("level", level, lambda p: 0 < p < 1, "a number in (0, 1)")
