"""Measures of recorded paths in two metrics, each beside the same of its two nulls."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.topology.networks import Window
from jaxtheory.dynamics import topology

_NAMES = {
    "e_1": "E_1",
    "e_1_over_path_length": "E_1 / length",
    "positive_magnitude": "PMag",
    "ph_dimension": "PH dimension",
    "correlation_dimension": "correlation dimension",
}
_ALPHA = 0.5  # of the second sum of lifetimes, which weighs short ones more
LENGTH = "path length"
_DISTANCES = {
    "euclidean": topology.pairwise_distances,
    "loss": topology.loss_distances,
}
METRICS = tuple(_DISTANCES)


class Measured(NamedTuple):
    """A measure of a path; floats.

    Attributes:
        value: Of the path.
        flipped: Mean over draws of null A, the increments times random signs.
        ou: Of null B, the fitted Ornstein-Uhlenbeck process.
    """

    value: Any
    flipped: Any = np.nan
    ou: Any = np.nan


class Trees(NamedTuple):
    """Lifetimes of one path and of draws of its nulls.

    Attributes:
        path: Edge lengths ``[r-1]``.
        flipped: Of null A, ``[draws, r-1]``.
        ou: Of null B.
    """

    path: np.ndarray
    flipped: np.ndarray
    ou: np.ndarray


def name(measure: str, metric: str) -> str:
    """The row of a measure in a metric."""
    return measure if metric == "euclidean" else f"{measure} (losses)"


def measure_all(window: Window, num_nulls: int, num_train: int, key: Any):
    """Measure the path of every network in both metrics.

    Args:
        window: The networks ``m``.
        num_nulls: Draws of each null.
        num_train: Examples ``n`` of the published scale ``sqrt(n)``.
        key: For nulls and subsets; folded with the place of the network.

    Returns:
        By row a `Measured` of arrays ``[m]``; and how many magnitudes saturated at the
        published scale, by metric.
    """
    rows, saturated = [], dict.fromkeys(METRICS, 0)
    for i in range(window.path.shape[1]):
        found = {}
        for j, metric in enumerate(METRICS):
            own = jax.random.fold_in(jax.random.fold_in(key, i), j)
            some, flag = measure(window, i, metric, num_nulls, num_train**0.5, own)
            found |= some
            saturated[metric] += flag
        rows.append(found)
    collect = lambda row: Measured(*np.array([found[row] for found in rows], float).T)
    return {row: collect(row) for row in rows[0]}, saturated


def measure(
    window: Window, i: int, metric: str, num_nulls: int, scale: float, key: Any
) -> tuple[dict[str, Measured], bool]:
    """Measures of one path in one metric, and whether its magnitude saturates."""
    points, lengths = _path(window, i, metric)
    key_measures, key_trees = jax.random.split(key)
    found = topology.measure_path(
        points,
        key=key_measures,
        metric=metric,
        measures=tuple(_NAMES),
        step_lengths=lengths,
        magnitude_scale=scale,
        num_nulls=num_nulls,
    )
    rows = {
        name(_NAMES[short], metric): Measured(
            float(one.value), float(one.sign_flipped.mean), float(one.ou.mean)
        )
        for short, one in found.measures.items()
    }
    rescale = _rescale(points, lengths)
    drawn = _distances(points, metric, num_nulls, key_trees)
    sums = [_sums(one, rescale) for one in drawn]
    rows[name(f"E_{_ALPHA:g}", metric)] = Measured(*sums)
    rows[name(LENGTH, metric)] = Measured(float(found.path_length))
    solved = found.magnitude
    return rows, solved is not None and bool(solved.saturated[0])


def trees(window: Window, i: int, num_nulls: int, key: Any) -> Trees:
    """Lifetimes of the path of one network and of its nulls, in parameters."""
    points, lengths = _path(window, i, "euclidean")
    rescale = _rescale(points, lengths)
    found = _distances(points, "euclidean", num_nulls, key)
    edges = [np.asarray(_lifetimes(one)) * rescale for one in found]
    return Trees(edges[0][0], *edges[1:])


def _path(window, i, metric):
    """Points of one path, and its exact step lengths where the points are sketches."""
    if metric == "loss":
        return window.losses[:, i], None
    return window.path[:, i], window.step_lengths[:, i]


def _rescale(points, lengths):
    """Exact over sketched path length."""
    if lengths is None:
        return 1.0
    return float(np.sum(lengths) / topology.path_length(points))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _distances(points, metric, num_nulls, key):
    """Distances of the path ``[1, r, r]`` and of draws of both nulls."""
    distances = _DISTANCES[metric]
    keys_flipped, keys_ou = jax.random.split(key, (2, num_nulls))
    flipped = lambda key: distances(topology.sign_flipped(points, key=key))
    ou = lambda key: distances(topology.ornstein_uhlenbeck(points, key=key)[0])
    return (
        distances(points)[None],
        jax.lax.map(flipped, keys_flipped),
        jax.lax.map(ou, keys_ou),
    )


@jax.jit
def _lifetimes(distances):
    """Edge lengths of trees ``[draws, r-1]``."""
    return jax.lax.map(lambda d: topology.minimum_spanning_tree(d).lengths, distances)


def _sums(distances, rescale):
    """Mean over draws of E_alpha."""
    powers = (np.asarray(_lifetimes(distances), float) * rescale) ** _ALPHA
    return float(np.mean(np.sum(powers, axis=1)))
