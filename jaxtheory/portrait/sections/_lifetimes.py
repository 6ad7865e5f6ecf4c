"""Lifetimes of the path's points beside those of two nulls."""

import jax
import numpy as np

from jaxtheory import plot
from jaxtheory.dynamics import topology
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_STREAM = 2**30 + 7
_DRAWS = 5
_LEAST = 10  # edges
_NAMES = {"sign_flipped": "steps of random sign", "ou": "Ornstein-Uhlenbeck"}


def read(plan, history):
    """Edge lengths of the spanning trees of the path and of draws of the nulls."""
    points = np.asarray(history.trace["path"])
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) <= _LEAST:
        return {"lifetimes": [], "nulls": {}}
    keys = jax.random.split(jax.random.fold_in(plan.key, _STREAM), (2, _DRAWS))
    flipped = (topology.sign_flipped(points, key=key) for key in keys[0])
    ou = (topology.ornstein_uhlenbeck(points, key=key)[0] for key in keys[1])
    own = _lifetimes(points)
    return {
        "lifetimes": only(own),
        "nulls": {"sign_flipped": _null(own, flipped), "ou": _null(own, ou)},
    }


def _null(own, paths):
    """One draw of a null, and how far the path and each draw are from the others."""
    draws = [_lifetimes(path) for path in paths]
    others = lambda i: draws[:i] + draws[i + 1 :]
    among = [_distance(draw, others(i)) for i, draw in enumerate(draws)]
    return {
        "lifetimes": only(draws[0]),
        "distance": _distance(own, draws),
        "largest_among_draws": max(among),
    }


def _lifetimes(points):
    """Lengths of the tree's edges, sorted."""
    tree = topology.minimum_spanning_tree(topology.pairwise_distances(points))
    return np.sort(tree.lengths)


def _distance(lengths, draws):
    """Largest distance of the distribution function from the mean one of draws."""
    everything = np.concatenate([lengths, *draws])
    below = lambda one: np.searchsorted(one, everything, "right") / len(one)
    return float(np.max(np.abs(below(lengths) - np.mean([*map(below, draws)], axis=0))))


def _judgeable(numbers):
    lengths = numbers["lifetimes"]
    return len(lengths) >= _LEAST and 0 < lengths[-1] < float("inf")


def draw(numbers, ax):
    """Their histogram, and those of the nulls."""
    if not _judgeable(numbers):
        ax.text(0.5, 0.5, "no tree to draw", transform=ax.transAxes, ha="center")
        return
    nulls = {_NAMES[name]: null["lifetimes"] for name, null in numbers["nulls"].items()}
    plot.lifetimes(numbers["lifetimes"], nulls, ax=ax)


def findings(numbers):
    """Whether the lifetimes lie among those of the nulls."""
    if not _judgeable(numbers):
        return [lacking("the path has too few points, or does not move")]
    lengths = np.asarray(numbers["lifetimes"])
    nulls = numbers["nulls"]
    parts = [
        f"{null['distance']:.2f} from {_NAMES[name]} (single draws: at most "
        f"{null['largest_among_draws']:.2f})"
        for name, null in nulls.items()
    ]
    alike = [
        _NAMES[name]
        for name, null in nulls.items()
        if null["distance"] <= null["largest_among_draws"]
    ]
    verdict = "they are neither's"
    if alike:
        verdict = f"nothing in them is told apart from {' or '.join(alike)}"
    return [
        Finding(
            f"The {len(lengths):,} lifetimes have a median of "
            f"{compact(np.median(lengths))} and a largest of {compact(lengths[-1])}. "
            "Their distribution function is at a distance of "
            f"{' and '.join(parts)}: {verdict}.",
            "measured",
        )
    ]


def rows(numbers):
    """The longest beside the middle one."""
    if not _judgeable(numbers):
        return [Row("longest lifetime", "no tree", "")]
    lengths = np.asarray(numbers["lifetimes"])
    middle = compact(np.median(lengths))
    return [Row("longest lifetime", compact(lengths[-1]), f"median {middle}")]


SECTION = Section(
    "lifetimes", "Lifetimes", always, nothing, nothing, read, draw, findings, rows
)
