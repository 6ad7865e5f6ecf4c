"""Functional analysis of variance over the hyperparameters of a population."""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from jaxtheory.bounds.evaluate._checks import (
    check_hyperparameters,
    check_table,
    group_numbers,
)
from jaxtheory.bounds.evaluate._pairs import cell_means, level_codes


class VarianceDecomposition(NamedTuple):
    """Where the variance of a quantity comes from.

    Attributes:
        terms: Each term by the hyperparameters in it: main effects, pairs, and last
            ``("higher orders",)``, ``("shared",)``, ``("seeds",)``.
        sum_of_squares: Of each term; they sum to `total`. NaN where the cells at hand
            do not determine a term; its variance is then in "shared".
        degrees_of_freedom: Of each; 0 for "shared".
        fraction: ``sum_of_squares / total``.
        corrected: What is left of `fraction` without the noise of seeds that each
            degree of freedom takes up (epsilon squared): ``(SS - df SS_seeds /
            df_seeds) / total``. May be negative; NaN with one seed a cell.
        total: Sum of squared deviations from the mean over networks.
        balanced: Whether every combination of levels is there, with equally many
            networks. Only then are terms orthogonal and "shared" is 0.
        num_missing: Networks without a finite value.
    """

    terms: tuple[tuple[str, ...], ...]
    sum_of_squares: Float[np.ndarray, " t"]
    degrees_of_freedom: Int[np.ndarray, " t"]
    fraction: Float[np.ndarray, " t"]
    corrected: Float[np.ndarray, " t"]
    total: float
    balanced: bool
    num_missing: int


def variance_decomposition(
    values: Real[ArrayLike, "c s"],
    hyperparameters: Mapping[str, Any],
    *,
    order: Literal[1, 2] = 2,
) -> VarianceDecomposition:
    """Share of the variance over networks of each hyperparameter and of their pairs.

    Hyperparameters are factors: every level has its own mean. Main effects and, at
    order 2, interactions of pairs are fitted by least squares; what is between cells
    beyond them is "higher orders", what is within cells is "seeds".

    On a balanced grid that is the orthogonal decomposition. With missing cells or
    networks the sum of squares of a term is what it adds to all terms that do not
    contain it (type II), and what cannot be told apart between terms is "shared", which
    may be negative.

    Args:
        values: A quantity of each network, cells by seeds: the gap or a measure. NaN
            and infinity are missing.
        hyperparameters: By name, its value (a number or a word) in each cell.
        order: 1 for main effects alone, 2 for interactions of pairs too.

    Returns:
        The decomposition. Fractions are NaN where the quantity is constant or missing.

    Raises:
        ValueError: The tables do not match each other, or `order` is another.

    Example:
        >>> cells = {"rate": [1, 1, 2, 2], "width": [8, 16, 8, 16]}
        >>> values = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
        >>> found = variance_decomposition(values, cells)
        >>> found.terms[:3], found.fraction.round(4)[:3]
        ((('rate',), ('width',), ('rate', 'width')), array([0.8, 0.2, 0. ]))

    References:
        Searle, Linear Models for Unbalanced Data (1987), section 4.3.
    """
    if isinstance(order, bool) or order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, but was {order!r}.")
    (values,) = check_table(values=values)
    names = tuple(check_hyperparameters(hyperparameters, len(values)))
    codes = level_codes(hyperparameters)
    values = np.where(np.isfinite(values), values, np.nan)
    counts = np.sum(~np.isnan(values), axis=1)
    here = counts > 0
    sizes = range(1, order + 1)
    terms = [t for size in sizes for t in _combinations(len(names), size)]
    if not np.any(here):
        squares, freedom = (
            np.full(len(terms) + 3, np.nan),
            np.zeros(len(terms) + 3, int),
        )
        total = float("nan")
    else:
        squares, freedom, total = _decompose(values[here], codes[here], terms)
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.divide(squares[-1], freedom[-1])
        squares_left = squares - freedom * noise
        # That of seeds holds the noise of all degrees of freedom.
        squares_left[-1] = noise * (np.sum(counts) - 1)
        fraction, corrected = (np.divide(s, total) for s in (squares, squares_left))
    levels = np.prod([len(np.unique(column)) for column in codes.T])
    grid = len(np.unique(codes, axis=0)) == len(codes) == levels
    rest = (("higher orders",), ("shared",), ("seeds",))
    return VarianceDecomposition(
        (*(tuple(names[place] for place in term) for term in terms), *rest),
        squares,
        freedom,
        fraction,
        corrected,
        float(total),
        bool(grid and np.all(counts == counts[0]) and counts[0] > 0),
        int(values.size - np.sum(counts)),
    )


def _combinations(number, size):
    return [frozenset(chosen) for chosen in itertools.combinations(range(number), size)]


def _decompose(values, codes, terms):
    """Sums of squares and degrees of freedom of all terms, and the total."""
    counts = np.sum(~np.isnan(values), axis=1)
    root = np.sqrt(counts)
    means = cell_means(values)
    means = means - np.sum(counts * means) / np.sum(counts)
    within = values - cell_means(values)[:, None]
    seeds = np.nansum(within**2)
    design = {term: _indicators(codes, term) for term in terms}
    fit = lambda chosen: _residual([design[term] for term in chosen], root, means)
    between, rank = fit(terms)
    squares, freedom = [], []
    for term in terms:
        others = [other for other in terms if not term <= other]
        without, less = fit(others)
        including, more = fit([*others, term])
        freedom.append(more - less)
        squares.append(max(without - including, 0.0) if more > less else np.nan)
    explained = np.sum(counts * means**2) - between
    shared = explained - np.nansum(squares)
    total = np.sum(counts * means**2) + seeds
    # The mean of equal numbers differs from them by its rounding.
    rounding = np.sum(counts) * (1e-15 * np.nanmax(np.abs(values))) ** 2
    if not total > rounding:
        total = np.nan
    squares = np.array([*squares, between, shared, seeds])
    last = [len(codes) - rank, 0, int(np.sum(counts)) - len(codes)]
    return squares, np.array([*freedom, *last]), total


def _indicators(codes, term):
    """One column for each combination of levels of the factors of a term."""
    group = group_numbers(codes[:, sorted(term)])
    return np.eye(int(np.max(group)) + 1)[group]


def _residual(blocks, root, means):
    """Weighted residual sum of squares of a fit with intercept, and its rank."""
    columns = np.concatenate([np.ones((len(root), 1)), *blocks], axis=1)
    target = root * means
    solution, _, rank, _ = np.linalg.lstsq(root[:, None] * columns, target, rcond=None)
    rest = target - root * (columns @ solution)
    return float(rest @ rest), int(rank)
