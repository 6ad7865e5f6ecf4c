"""Partial rank correlation of a measure with the gap, given covariates."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory.bounds._ledger import check_concrete
from jaxtheory.bounds.evaluate._checks import check_table, check_word, described
from jaxtheory.bounds.evaluate._pairs import pair_sums, tau_b

_NOTHING = 1e-12  # variance of ranks, of 1, that counts as none


class PartialCorrelation(NamedTuple):
    """A rank correlation before and after covariates are accounted for.

    Attributes:
        value: Partial correlation; NaN where measure or gap is constant or follows
            from the covariates.
        plain: The correlation without covariates, over the same networks.
        unexplained_measure: Share of the measure that the covariates leave, in [0, 1].
        unexplained_gap: Share of the gap.
        num_networks: Networks that have all the values.
        num_left_out: Those that lack one.
    """

    value: float
    plain: float
    unexplained_measure: float
    unexplained_gap: float
    num_networks: int
    num_left_out: int


def partial_correlation(
    measure: Real[ArrayLike, "c s"],
    gap: Real[ArrayLike, "c s"],
    given: Mapping[str, Any],
    *,
    method: Literal["kendall", "spearman"] = "kendall",
) -> PartialCorrelation:
    """Rank correlation of a measure with the gap, given hyperparameters or measures.

    From the matrix of correlations (tau-b, or Pearson's of mean ranks) of measure, gap
    and covariates: that of the first two when the covariates are regressed out, ``(t_xy
    - t_xz t_yz) / sqrt((1 - t_xz^2) (1 - t_yz^2))`` for one. Spearman's is the
    correlation of what linear regression of ranks on ranks leaves. What a covariate
    does to both in another way than monotonically is not taken out, and a partial tau
    of a measure that follows the gap through the covariate alone need not be 0.

    Args:
        measure: Of each network, cells by seeds; NaN where it has none.
        gap: Test less training error or loss, likewise.
        given: Covariates by name: of a cell ``[c]`` or of a network ``[c, s]``. Words
            count as one indicator for each level but the first.
        method: "kendall" or "spearman".

    Returns:
        The partial correlation and what it rests on.

    Raises:
        ValueError: A table has another shape, or `method` is not one of its words.

    Memory:
        ``O((c s)^2)`` for "kendall".

    Example:
        >>> rate = [0.1, 0.2, 0.3, 0.4]
        >>> gap = np.array([[1.0], [2.0], [4.0], [3.0]])
        >>> measure = np.array([[1.0], [3.0], [2.0], [4.0]])
        >>> found = partial_correlation(measure, gap, {"learning rate": rate})
        >>> round(found.plain, 4), round(found.value, 4)
        (0.3333, -0.2)

    References:
        Kendall, Biometrika 32 (1942) (partial rank correlation).
    """
    check_word("method", method, ("kendall", "spearman"))
    measure, gap = check_table(measure=measure, gap=gap)
    columns = [measure, gap, *covariates(given, gap.shape)]
    known = ~np.any(np.isnan(columns), axis=0)
    flat = np.stack([column[known] for column in columns])
    number = int(np.sum(known))
    left_out = known.size - number
    if number < 2:
        nan = float("nan")
        return PartialCorrelation(nan, nan, nan, nan, number, left_out)
    matrix = _tau_matrix(flat) if method == "kendall" else _rank_matrix(flat)
    value, measure_left, gap_left = _schur(matrix)
    return PartialCorrelation(
        float(value),
        float(matrix[0, 1]),
        float(measure_left),
        float(gap_left),
        number,
        left_out,
    )


def covariates(given: Any, shape: tuple[int, int]) -> list[np.ndarray]:
    """Covariates as tables ``[c, s]``; words as indicators.

    Args:
        given: By name, ``[c]`` or ``[c, s]``.
        shape: That of the gap.

    Returns:
        The columns.

    Raises:
        ValueError: There is none, or one has another shape.
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            "`given` must be a dictionary of at least one covariate by name, but is "
            f"{described(given)}. For none use `kendall`."
        )
    check_concrete(given=given)
    found = []
    for name, values in given.items():
        column = np.asarray(values)
        if column.shape not in (shape, shape[:1]):
            raise ValueError(
                f"`given[{name!r}]` must have shape {shape[:1]} or {shape}, as the gap "
                f"has cells and seeds, but has shape {column.shape}."
            )
        if column.ndim == 1:
            column = np.broadcast_to(column[:, None], shape)
        if column.dtype.kind in "biuf":
            found.append(column.astype(np.float64))
        else:
            levels = np.unique(column)[1:]
            found.extend((column == level).astype(np.float64) for level in levels)
    return found


def partial_tau(matrix: Float[np.ndarray, "... q q"]) -> Float[np.ndarray, "..."]:
    """Partial correlation of the first two of several quantities, given the others.

    Args:
        matrix: Their correlations; NaN with a constant covariate counts as 0.

    Returns:
        The partial correlation; NaN where one of the two is constant or nothing of it
        is left.

    Example:
        >>> matrix = np.array([[1, 0.5, 0.6], [0.5, 1, 0.8], [0.6, 0.8, 1]])
        >>> round(float(partial_tau(matrix)), 4)
        0.0417
    """
    return np.asarray(_schur(np.asarray(matrix, np.float64))[0])


def _schur(matrix):
    """Partial correlation, and what is left of the variance of each of the two."""
    first, rest = matrix[..., :2, :2], matrix[..., 2:, 2:]
    rest = np.nan_to_num(rest, nan=0.0)
    across = np.nan_to_num(matrix[..., :2, 2:], nan=0.0)
    left = first - across @ np.linalg.pinv(rest, hermitian=True) @ np.swapaxes(
        across, -1, -2
    )
    own = np.stack([left[..., 0, 0], left[..., 1, 1]])
    # What is given ranks as the quantity itself does: nothing of it is left.
    own = np.where(own > _NOTHING, own, np.nan)
    value = left[..., 0, 1] / np.sqrt(own[0] * own[1])
    return value, *np.maximum([left[..., 0, 0], left[..., 1, 1]], 0.0)


def _tau_matrix(columns):
    """Tau-b of each pair of columns ``[q, n]``."""
    size = len(columns)
    found = np.eye(size)
    for a in range(size):
        for b in range(a):
            sums = pair_sums(columns[a][:, None], columns[b][:, None])
            found[a, b] = found[b, a] = tau_b(sums)
    return found


def _rank_matrix(columns):
    """Pearson's correlation of mean ranks."""
    from scipy.stats import rankdata

    ranks = rankdata(columns, axis=1)
    ranks -= np.mean(ranks, axis=1, keepdims=True)
    norms = np.sqrt(np.sum(ranks**2, axis=1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks = ranks / norms
    return ranks @ ranks.T
