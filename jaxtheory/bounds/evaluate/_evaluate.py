"""The whole evaluation of measures of generalization, in one table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.bounds.evaluate._chance import (
    NoiseCeiling,
    bootstrap,
    noise_ceiling,
    permutation_band,
)
from jaxtheory.bounds.evaluate._checks import (
    check_hyperparameters,
    check_measures,
    generator,
)
from jaxtheory.bounds.evaluate._information import conditional_mutual_information
from jaxtheory.bounds.evaluate._kendall import granulated_kendall, kendall
from jaxtheory.bounds.evaluate._partial import partial_correlation
from jaxtheory.bounds.evaluate._sign_error import robust_sign_error

_NUM_NULL = 100  # random rankings behind `information_by_chance`


class Evaluation(NamedTuple):
    """How well measures rank the networks of a population by their gap.

    Arrays are by measure (m), hyperparameter (h) or both; NaN where undefined.

    Attributes:
        measures: Names, in the order of the rows.
        hyperparameters: Names.
        given: What the partial correlations are given.
        tau: Kendall's tau-b over all pairs of networks.
        standard_error: Its bootstrap standard error over cells.
        low: Lower end of its 95 % interval.
        high: Upper end.
        low_over_seeds: Lower end over seeds within cells.
        high_over_seeds: Upper end.
        granulated: Granulated coefficient.
        by_hyperparameter: Its parts, ``[m, h]``.
        information: Normalised conditional mutual information.
        worst_sign_error: Robust sign error: that of the worst environment.
        mean_sign_error: Mean over environments.
        partial: Partial tau given `given`; NaN where nothing is given.
        partial_low: Lower end of its 95 % interval over cells.
        partial_high: Upper end.
        partial_spearman: Partial Spearman correlation.
        num_pairs: Pairs of networks that have both values.
        num_left_out: Networks that lack one.
        band: 95 % quantile of the largest ``|tau|`` of all measures by chance.
        information_by_chance: 95 % quantile of `information` of one measure that is the
            gap of other cells.
        ceiling: How well gaps predict gaps of other seeds.
    """

    measures: tuple[str, ...]
    hyperparameters: tuple[str, ...]
    given: tuple[str, ...]
    tau: Float[np.ndarray, " m"]
    standard_error: Float[np.ndarray, " m"]
    low: Float[np.ndarray, " m"]
    high: Float[np.ndarray, " m"]
    low_over_seeds: Float[np.ndarray, " m"]
    high_over_seeds: Float[np.ndarray, " m"]
    granulated: Float[np.ndarray, " m"]
    by_hyperparameter: Float[np.ndarray, "m h"]
    information: Float[np.ndarray, " m"]
    worst_sign_error: Float[np.ndarray, " m"]
    mean_sign_error: Float[np.ndarray, " m"]
    partial: Float[np.ndarray, " m"]
    partial_low: Float[np.ndarray, " m"]
    partial_high: Float[np.ndarray, " m"]
    partial_spearman: Float[np.ndarray, " m"]
    num_pairs: Int[np.ndarray, " m"]
    num_left_out: Int[np.ndarray, " m"]
    band: float
    information_by_chance: float
    ceiling: NoiseCeiling


def evaluate(
    measures: Mapping[str, Any],
    gap: Real[ArrayLike, "c s"],
    hyperparameters: Mapping[str, Any],
    *,
    given: Sequence[str] = (),
    num_resamples: SupportsIndex = 1000,
    key: KeyArray,
) -> Evaluation:
    """Every figure of the evaluation protocol, for every measure of a population.

    Args:
        measures: By name, the measure of each network ``[c, s]``: cells by seeds, NaN
            where it has none.
        gap: Test less training error or loss, likewise.
        hyperparameters: By name, its value (a number or a word) in each cell ``[c]``.
        given: Names of hyperparameters or measures that the partial correlations are
            given, all at once.
        num_resamples: Bootstrap resamples (the same for all measures) and permutations.
        key: Random key.

    Returns:
        The table; `to_text` prints it.

    Raises:
        ValueError: The tables do not match, or `given` names something else.

    Memory:
        ``O(m (c s)^2)``; some seconds for 40 measures of 240 networks.

    Example:
        >>> cells = {"rate": [1, 1, 2, 2, 3, 3], "width": [8, 16, 8, 16, 8, 16]}
        >>> gap = np.arange(12.0).reshape(6, 2)
        >>> found = evaluate({"one": gap}, gap, cells, key=jax.random.key(0))
        >>> found.tau, found.granulated, found.worst_sign_error
        (array([1.]), array([1.]), array([0.]))

    References:
        Jiang et al. 2019, arXiv:1912.02178; Dziugaite et al. 2020, arXiv:2010.11924.
    """
    check_key(key)
    number = check_count(at_least=2, num_resamples=num_resamples)
    named, gap = check_measures(measures, gap)
    cells = check_hyperparameters(hyperparameters, len(gap))
    given = tuple(given)
    chosen = _given(given, {**named, **cells})
    to_cells, to_seeds, to_band, to_null = jax.random.split(key, 4)
    rows = [
        {
            **_plain(values, gap, cells, number, to_cells, to_seeds),
            **_partial(values, gap, chosen, number, to_cells),
        }
        for values in named.values()
    ]
    columns = {field: np.array([row[field] for row in rows]) for field in rows[0]}
    band = permutation_band(named, gap, num_permutations=number, key=to_band)
    return Evaluation(
        measures=tuple(named),
        hyperparameters=tuple(cells),
        given=given,
        **columns,
        band=band.band,
        information_by_chance=_by_chance(gap, cells, to_null),
        ceiling=noise_ceiling(gap),
    )


def _given(names, tables):
    """The covariates of those names."""
    unknown = [name for name in names if name not in tables]
    if unknown:
        raise ValueError(
            "`given` must name hyperparameters or measures, but names "
            f"{', '.join(map(repr, unknown))}."
        )
    return {name: tables[name] for name in names}


def _plain(values, gap, cells, number, to_cells, to_seeds):
    """All of a row that nothing is given to."""
    found = kendall(values, gap)
    once = bootstrap(values, gap, num_resamples=number, key=to_cells)
    within = bootstrap(values, gap, over="seeds", num_resamples=number, key=to_seeds)
    granulated = granulated_kendall(values, gap, cells)
    error = robust_sign_error(values, gap, cells)
    return {
        "tau": found.tau,
        "standard_error": once.standard_error,
        "low": once.low,
        "high": once.high,
        "low_over_seeds": within.low,
        "high_over_seeds": within.high,
        "granulated": granulated.value,
        "by_hyperparameter": granulated.by_hyperparameter,
        "information": conditional_mutual_information(values, gap, cells).value,
        "worst_sign_error": error.worst,
        "mean_sign_error": error.mean,
        "num_pairs": found.num_pairs,
        "num_left_out": found.num_left_out,
    }


def _partial(values, gap, given, number, key):
    """Partial correlations of a row; NaN if nothing is given."""
    fields = ("partial", "partial_low", "partial_high", "partial_spearman")
    if not given:
        return dict.fromkeys(fields, np.nan)
    found = bootstrap(values, gap, given=given, num_resamples=number, key=key)
    ranks = partial_correlation(values, gap, given, method="spearman")
    row = found.value, found.low, found.high, ranks.value
    return dict(zip(fields, row, strict=True))


def _by_chance(gap, cells, key):
    """What conditional information the gaps of other cells have, by chance."""
    draw = generator(key)
    orders = [draw.permutation(len(gap)) for _ in range(_NUM_NULL)]
    found = [conditional_mutual_information(gap[o], gap, cells).value for o in orders]
    kept = [value for value in found if not np.isnan(value)]
    return float(np.quantile(kept, 0.95)) if kept else float("nan")
