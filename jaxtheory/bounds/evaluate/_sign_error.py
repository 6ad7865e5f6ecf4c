"""Sign error of a measure in its worst environment, and on average."""

from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from jaxtheory.batching import check_count, check_number
from jaxtheory.bounds.evaluate._checks import check_hyperparameters, check_table
from jaxtheory.bounds.evaluate._pairs import differ_in_one, signs


class SignError(NamedTuple):
    """How often a measure misjudges what one hyperparameter does to the gap.

    An environment ``e`` is a pair of cells that differ in one hyperparameter alone.

    Attributes:
        worst: Largest error of an environment (the robust sign error); NaN without
            environments. One half is a coin.
        mean: Mean over environments.
        worst_by_hyperparameter: The largest among those of each hyperparameter.
        mean_by_hyperparameter: Their mean.
        errors: Error of each environment.
        cells: Its two cells.
        hyperparameter: What they differ in, as its place.
        num_left_out: Environments with too few pairs of networks that count.
    """

    worst: float
    mean: float
    worst_by_hyperparameter: Float[np.ndarray, " h"]
    mean_by_hyperparameter: Float[np.ndarray, " h"]
    errors: Float[np.ndarray, " e"]
    cells: Int[np.ndarray, "e 2"]
    hyperparameter: Int[np.ndarray, " e"]
    num_left_out: int


def robust_sign_error(
    measure: Real[ArrayLike, "c s"],
    gap: Real[ArrayLike, "c s"],
    hyperparameters: Mapping[str, Any],
    *,
    num_test: SupportsIndex | None = None,
    min_pairs: float = 1.0,
) -> SignError:
    """Sign error in the worst environment: where one hyperparameter changes alone.

    In an environment the error is the mean over pairs of networks, one of each cell
    (all seeds with all seeds), of ``(1 - sign(mu - mu') sign(g - g')) / 2``, where a
    tie in the measure counts one half. Pairs with equal gaps are left out.

    Given `num_test`, a pair weighs ``max(h^2 - 1/2, 0)`` with ``h = max(0, 1 - 2 exp(-2
    num_test ((g - g') / 2)^2))``, so that only gaps count that the test examples tell
    apart; published with 10,000 of them and ``min_pairs=12``.

    Args:
        measure: Of each network, cells by seeds; NaN where it has none.
        gap: Test less training error in [-1, 1], likewise.
        hyperparameters: By name, its value (a number or a word) in each cell.
        num_test: Test examples behind each gap; None weighs all pairs alike.
        min_pairs: Least effective number of pairs ``(sum w)^2 / sum w^2`` of an
            environment that counts. The largest of many errors of few pairs is 1 by
            chance alone.

    Returns:
        The errors over environments and of each.

    Raises:
        ValueError: The tables do not match each other or the hyperparameters, or a
            setting is out of its range.

    Memory:
        ``O((c s)^2)``.

    Example:
        >>> cells = {"learning rate": [0.1, 0.1, 0.2, 0.2], "width": [8, 16, 8, 16]}
        >>> gap = np.array([[0.1], [0.2], [0.3], [0.4]])
        >>> rate = np.array([[0.1], [0.1], [0.2], [0.2]])
        >>> found = robust_sign_error(rate, gap, cells)
        >>> found.worst, found.worst_by_hyperparameter
        (0.5, array([0. , 0.5]))

    References:
        Dziugaite et al. 2020, arXiv:2010.11924, section 4, and its published code for
        the weights.
    """
    measure, gap = check_table(measure=measure, gap=gap)
    check_hyperparameters(hyperparameters, len(gap))
    least = "a number of at least 1"
    check_number("min_pairs", min_pairs, lambda pairs: 1 <= pairs < np.inf, least)
    known = ~(np.isnan(measure) | np.isnan(gap))
    order = signs(np.where(known, gap, np.nan))
    weights = np.abs(order).astype(np.float64)
    if num_test is not None:
        examples = check_count(num_test=num_test)
        weights *= _confidence(np.where(known, gap, 0.0), examples)
    over = lambda pairs: np.asarray(np.sum(pairs, axis=(1, 3), dtype=np.float64))
    wrong = over(weights * (1 - signs(measure) * order) / 2)
    total, squares = over(weights), over(weights**2)
    effective = np.where(total > 0, total**2 / np.where(total > 0, squares, 1), 0.0)
    single = np.triu(differ_in_one(hyperparameters))
    # A sum of equal weights may fall short of a whole number by its rounding.
    used = single & (effective >= min_pairs * (1 - 1e-9))
    place, first, second = np.nonzero(used)
    errors = wrong[first, second] / total[first, second]
    by = [errors[place == h] for h in range(len(single))]
    either = lambda f, values: float(f(values)) if len(values) else float("nan")
    return SignError(
        either(np.max, errors),
        either(np.mean, errors),
        np.array([either(np.max, some) for some in by]),
        np.array([either(np.mean, some) for some in by]),
        errors,
        np.stack([first, second], axis=1),
        place,
        int(np.sum(single)) - len(errors),
    )


def _confidence(gap, examples):
    """Weight of each pair of networks, from Hoeffding's inequality."""
    flat = np.ravel(gap)
    half = (flat[:, None] - flat) / 2
    sure = np.maximum(0.0, 1 - 2 * np.exp(-2 * examples * half**2)) ** 2
    return np.maximum(sure - 0.5, 0.0).reshape(*gap.shape, *gap.shape)
