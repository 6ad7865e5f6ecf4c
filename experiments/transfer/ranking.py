"""How well each score ranks the pool on each target, and what pools say of claims."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.transfer import correlation
from experiments.transfer.correlation import Correlation
from experiments.transfer.measures import COLLAPSE
from jaxtheory import collapse

COLUMNS = ("probe", "few-shot", "full", "skip")


class Row(NamedTuple):
    """Correlations of one score, on the new classes or averaged over shifts.

    Attributes:
        by: With the accuracy of each of `COLUMNS`.
        partial: With that of the probe, given source accuracy.
        within: With that of the probe, mean over architectures.
    """

    by: dict[str, Correlation]
    partial: Correlation
    within: Correlation


def oriented(
    source: dict[str, np.ndarray], targets: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Scores by name, ``[targets, networks]``, more of them promising more.

    Args:
        source: What `measures.source_rows` found of the whole pool.
        targets: What `measures.target_rows` found, for each target.
    """
    rows = {
        _promising(name): np.tile(_sign(name) * row, (len(targets), 1))
        for name, row in source.items()
    }
    for name in targets[0]:
        found = [target[name] for target in targets]
        if name == "NCTI":
            found = [
                np.asarray(collapse.collapse_transferability(_terms(terms)))
                for terms in found
            ]
        rows[f"target {_promising(name)}"] = _sign(name) * np.stack(found)
    return rows


def _terms(terms):
    return collapse.CollapseTerms(*(jnp.asarray(term) for term in terms))


def _sign(name):
    return -1.0 if name.endswith(COLLAPSE) else 1.0


def _promising(name):
    return name if _sign(name) > 0 else f"{name} (negative)"


def rank(
    scores: dict[str, np.ndarray],
    accuracies: dict[str, np.ndarray],
    source_accuracy: np.ndarray,
    groups: np.ndarray,
    indices: np.ndarray,
    num_stops: int,
    places: slice,
) -> dict[str, Row]:
    """Correlate each score with each accuracy, averaged over some targets.

    Args:
        scores: By name, ``[targets, networks]``.
        accuracies: By column, likewise; NaN for targets that were left out.
        source_accuracy: What partial correlations are given, ``[networks]``.
        groups: Architecture of each network.
        indices: Of `correlation.resamples`.
        num_stops: Networks that each run left, next to each other.
        places: The targets.
    """
    given, number = correlation.ranks(source_accuracy, indices), len(indices) - 1
    found = {
        column: [
            None if np.isnan(row).any() else correlation.ranks(row, indices)
            for row in table[places]
        ]
        for column, table in accuracies.items()
    }
    rows = {}
    for name, table in scores.items():
        mine = [correlation.ranks(row, indices) for row in table[places]]
        by = {}
        for column, theirs in found.items():
            pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if b is not None]
            by[column] = correlation.average([correlation.spearman(*p) for p in pairs])
        probes = [
            correlation.ranks(row, indices) for row in accuracies["probe"][places]
        ]
        partial = [
            correlation.partial_spearman(a, b, given)
            for a, b in zip(mine, probes, strict=True)
        ]
        rows[name] = Row(
            by,
            correlation.average(partial),
            _within(
                table[places], accuracies["probe"][places], groups, num_stops, number
            ),
        )
    return rows


def _within(left, right, groups, num_stops, number):
    """Mean over architectures and targets; each architecture's runs are resampled."""
    found = []
    for group in np.unique(groups):
        where = np.flatnonzero(groups == group)
        draw = np.random.default_rng(int(where[0]))
        num_runs = len(where) // num_stops
        rows = where[correlation.resamples(num_runs, num_stops, number, draw)]
        found.append(
            correlation.average(
                [
                    correlation.spearman(*(correlation.ranks(r, rows) for r in pair))
                    for pair in zip(left, right, strict=True)
                ]
            )
        )
    value = float(np.mean([one.value for one in found]))
    # Independent draws of architectures: any pairing of their samples will do.
    return Correlation(value, np.mean([one.samples for one in found], axis=0))
