"""What chance and the noise of seeds do to a rank correlation."""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.bounds.evaluate._checks import (
    check_measures,
    check_table,
    check_word,
    generator,
)
from jaxtheory.bounds.evaluate._pairs import (
    cell_means,
    pair_sums,
    resampled_tau,
    signs,
    tau_b,
)
from jaxtheory.bounds.evaluate._partial import covariates, partial_tau


class Bootstrap(NamedTuple):
    """A rank correlation in resamples of the population.

    Attributes:
        value: Of the population itself.
        standard_error: Standard deviation (``1 / (b - 1)``) over resamples.
        low: Lower end of the 95 % percentile interval.
        high: Upper end.
        num_undefined: Resamples without a value: measure or gap constant. They are in
            none of the figures above.
        samples: Value in each resample, NaN where undefined.
    """

    value: float
    standard_error: float
    low: float
    high: float
    num_undefined: int
    samples: Float[np.ndarray, " b"]


def bootstrap(
    measure: Real[ArrayLike, "c s"],
    gap: Real[ArrayLike, "c s"],
    *,
    given: Mapping[str, Any] | None = None,
    over: Literal["cells", "seeds"] = "cells",
    num_resamples: SupportsIndex = 1000,
    key: KeyArray,
) -> Bootstrap:
    """Bootstrap interval of Kendall's tau-b, or of the partial one.

    Over "cells" whole cells are drawn with replacement, all their seeds with them: how
    sure the figure is for hyperparameters like these. Over "seeds" networks are drawn
    within each cell: how sure it is on this grid. Networks of a cell are no independent
    sample of all, so rows are never drawn. Copies of a network are tied with each other
    and count in no pair.

    Args:
        measure: Of each network, cells by seeds; NaN where it has none.
        gap: Test less training error or loss, likewise.
        given: Covariates as of `partial_correlation`; None for the plain tau.
        over: "cells" or "seeds".
        num_resamples: Resamples ``b >= 2``.
        key: Random key.

    Returns:
        The value, its standard error and interval.

    Raises:
        ValueError: A table has another shape, or a setting is out of its range.

    Memory:
        ``O((c s)^2)``, and ``O(b c s)`` over seeds.

    Example:
        >>> import jax
        >>> gap = np.arange(20.0).reshape(10, 2)
        >>> found = bootstrap(gap**2, gap, key=jax.random.key(0))
        >>> found.value, found.low, found.high
        (1.0, 1.0, 1.0)

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    check_key(key)
    check_word("over", over, ("cells", "seeds"))
    number = check_count(at_least=2, num_resamples=num_resamples)
    measure, gap = check_table(measure=measure, gap=gap)
    columns = [measure, gap, *([] if given is None else covariates(given, gap.shape))]
    known = ~np.any(np.isnan(columns), axis=0)
    columns = [np.where(known, column, np.nan) for column in columns]
    if over == "seeds":
        columns = [column.reshape(-1, 1) for column in columns]
    counts = _counts(gap.shape, over, number, generator(key))
    value, *samples = _resampled(columns, counts)
    samples = np.array(samples)
    kept = samples[~np.isnan(samples)]
    low, high = np.quantile(kept, (0.025, 0.975)) if len(kept) else [np.nan] * 2
    error = float(np.std(kept, ddof=1)) if len(kept) > 1 else float("nan")
    undefined = len(samples) - len(kept)
    return Bootstrap(float(value), error, float(low), float(high), undefined, samples)


def _counts(shape, over, number, draw):
    """How often each resample holds each unit, all once in the first."""
    num_cells, num_seeds = shape
    if over == "cells":
        share = np.full(num_cells, 1 / num_cells)
        drawn = draw.multinomial(num_cells, share, size=number)
    else:
        share = np.full(num_seeds, 1 / num_seeds)
        drawn = draw.multinomial(num_seeds, share, size=(number, num_cells))
        drawn = drawn.reshape(number, -1)
    return np.concatenate([np.ones((1, drawn.shape[1])), drawn])


def _resampled(columns, counts):
    """Tau of the first two columns, or the partial one given the others."""
    size = len(columns)
    matrix = np.broadcast_to(np.eye(size), (len(counts), size, size)).copy()
    for a, b in itertools.combinations(range(size), 2):
        taus = resampled_tau(pair_sums(columns[a], columns[b]), counts)
        matrix[:, a, b] = matrix[:, b, a] = taus
    return matrix[:, 0, 1] if size == 2 else partial_tau(matrix)


class NoiseCeiling(NamedTuple):
    """How well a gap can be ranked at all, through the noise of its seeds.

    Attributes:
        between_seeds: Mean tau between the gaps of two seeds, over pairs of seeds.
        from_other_seeds: Mean tau between the gap of one seed and the mean of the
            others.
        within: As `between_seeds`, over the pairs of cells of a mask.
        of_expected_gap: What the expected gap of each cell would have with the gap of
            one seed, if cells and noise were Gaussian.
        num_seed_pairs: Pairs of seeds whose tau is defined.
    """

    between_seeds: float
    from_other_seeds: float
    within: float
    of_expected_gap: float
    num_seed_pairs: int


def noise_ceiling(
    gap: Real[ArrayLike, "c s"], mask: Bool[ArrayLike, "c c"] | None = None
) -> NoiseCeiling:
    """Kendall's tau-b of the gap with itself, between independent seeds.

    A measure without noise can do better than another seed does: of Gaussian cells and
    noise the correlation of two seeds is ``rho = sin(pi tau / 2)``, and that of a seed
    with the expected gap of its cell ``sqrt(rho)``, which makes a tau of ``(2 / pi)
    arcsin(sqrt(rho))``. That is the ceiling of what depends on the cell alone; what
    sees the seed has none.

    Args:
        gap: Test less training error or loss of each network, NaN where it failed.
        mask: Pairs of cells for `within`, such as those of one width; None for all.

    Returns:
        The ceilings; NaN with one seed.

    Raises:
        ValueError: The gap is no table, or the mask does not match it.

    Example:
        >>> found = noise_ceiling(np.array([[0.1, 0.2], [0.2, 0.1], [0.3, 0.3]]))
        >>> round(found.between_seeds, 4)
        0.3333
    """
    (gap,) = check_table(gap=gap)
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != (len(gap), len(gap)):
            raise ValueError(
                f"`mask` must have shape {(len(gap), len(gap))}, a value for each pair "
                f"of cells, but has shape {mask.shape}."
            )
    seeds = range(gap.shape[1])
    pairs = itertools.combinations(seeds, 2)
    found = [pair_sums(gap[:, [a]], gap[:, [b]]) for a, b in pairs]
    others = lambda seed: cell_means(np.delete(gap, seed, axis=1))[:, None]
    rest = [tau_b(pair_sums(gap[:, [a]], others(a))) for a in seeds if len(seeds) > 1]
    plain, within = ([tau_b(sums, m) for sums in found] for m in (None, mask))
    number = int(np.sum(~np.isnan(plain)))
    between = _mean(plain)
    share = np.clip(np.sin(np.pi / 2 * between), 0, 1)
    expected = float(2 / np.pi * np.arcsin(np.sqrt(share)))
    return NoiseCeiling(between, _mean(rest), _mean(within), expected, number)


def _mean(values):
    """Mean of what is defined; NaN if nothing is."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


class PermutationBand(NamedTuple):
    """What chance alone does to the best of several measures.

    Attributes:
        band: 95 % quantile of `largest`.
        largest: The largest ``|tau|`` of all measures, in each permutation.
    """

    band: float
    largest: Float[np.ndarray, " b"]


def permutation_band(
    measures: Mapping[str, Any],
    gap: Real[ArrayLike, "c s"],
    *,
    num_permutations: SupportsIndex = 1000,
    key: KeyArray,
) -> PermutationBand:
    """The largest ``|tau-b|`` of all measures when gaps belong to other cells.

    The seeds of a cell stay together. Networks without a value on either side count in
    no pair; gaps that are missing move with their cell, so that a few networks less
    count than with the gaps at their places, and the band is as much too wide.

    Args:
        measures: By name, the measure of each network ``[c, s]``; NaN where it has
            none.
        gap: Test less training error or loss, likewise.
        num_permutations: Permutations of cells.
        key: Random key.

    Returns:
        The band and the permutations behind it; NaN if every tau is undefined.

    Raises:
        ValueError: A table has another shape, or a setting is out of its range.

    Memory:
        ``O(m (c s)^2)`` for m measures, and as much time a permutation.

    Example:
        >>> import jax
        >>> gap = np.arange(12.0).reshape(12, 1)
        >>> found = permutation_band({"one": gap}, gap, key=jax.random.key(0))
        >>> bool(0.3 < found.band < 0.6)  # 1.96 sqrt(2 (2 c + 5) / (9 c (c - 1))) = .43
        True
    """
    check_key(key)
    number = check_count(num_permutations=num_permutations)
    measures, gap = check_measures(measures, gap)
    draw = generator(key)
    rows = np.stack([signs(values).ravel() for values in measures.values()])
    tables = (*measures.values(), gap)
    lacking = any(np.isnan(table).any() for table in tables)
    known = np.stack([_both_known(t).ravel() for t in tables]) if lacking else None
    orders = np.stack([draw.permutation(len(gap)) for _ in range(number)])
    # Several at once: products of matrices, of about the memory of the rows.
    chunks = np.array_split(orders, -(-number // max(len(rows), 16)))
    found = [_largest(rows, signs(gap), known, chunk) for chunk in chunks]
    largest = np.concatenate(found)
    kept = largest[~np.isnan(largest)]
    band = float(np.quantile(kept, 0.95)) if len(kept) else float("nan")
    return PermutationBand(band, largest)


def _both_known(table):
    """Pairs of networks that both have a value, ``[c, s, c, s]`` of 0 and 1."""
    known = (~np.isnan(table)).astype(np.float32)
    return np.multiply.outer(known, known)


def _largest(rows, gap, known, orders):
    """The largest ``|tau|`` of the rows in each permutation; NaN where none has one."""
    moved = _permuted(gap, orders)
    if known is None:
        pairs = np.sum(np.abs(rows), axis=1, dtype=np.float64)
        scale = np.outer(pairs, np.sum(np.abs(moved), axis=0, dtype=np.float64))
    else:
        has = _permuted(known[-1].reshape(gap.shape), orders)
        scale = (np.abs(rows) @ has).astype(np.float64) * (known[:-1] @ np.abs(moved))
    with np.errstate(invalid="ignore", divide="ignore"):
        taus = np.abs(rows @ moved) / np.sqrt(scale)
    largest = np.max(np.where(np.isnan(taus), -np.inf, taus), axis=0)
    return np.where(np.isinf(largest), np.nan, largest)


def _permuted(pairs, orders):
    """Pairs of networks when cells change places, a column for each permutation."""
    return np.stack([pairs[o][:, :, o].ravel() for o in orders], axis=1)
