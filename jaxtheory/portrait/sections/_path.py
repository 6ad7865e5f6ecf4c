"""The training path: its length, its tree, its dimension, beside two nulls."""

from math import isfinite

import jax
import numpy as np

from jaxtheory import dynamics
from jaxtheory.plot import ACCENT
from jaxtheory.portrait._numbers import compact, only, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_DRAWN = 400
_NULLS = 20
# Shares of variance that the two main directions of a random walk hold when it has many
# dimensions, 6 / (pi k)^2 (arXiv:1806.08805).
_WALK = [6 / (np.pi * k) ** 2 for k in (1, 2)]
_SKETCH = dynamics.sketch(dim=1024)


def trace(plan):
    """A sketch of every iterate."""
    return {"path": _SKETCH}


def read(plan, history):
    """Topology of the sketched path, and its shadow on its two main directions."""
    points, lengths = history.trace["path"], history.trace["step_length"]
    finite = np.isfinite(points).all(axis=1) & np.isfinite(lengths)
    points, lengths = points[finite].astype(float), lengths[finite].astype(float)
    if len(points) < 2:
        return {"num_points": len(points), "too_few": True}
    result = dynamics.topology.measure_path(
        points,
        step_lengths=lengths[:-1],
        num_nulls=_NULLS,
        key=jax.random.fold_in(plan.key, 2**30 + 1),
    )
    e_1, ratio, dimension = (
        result.measures[name]
        for name in ("e_1", "e_1_over_path_length", "ph_dimension")
    )
    centred = points - points.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    shown = np.unique(np.linspace(0, len(points) - 1, _DRAWN).astype(int))
    plane = centred @ directions[:2].T
    # It comes from the positive side, as on the landscape.
    plane = plane * np.where(plane[0] < plane[-1], -1, 1)
    variance = np.sum(singular**2)
    share = singular[:2] ** 2 / (variance if variance > 0 else np.nan)
    return {
        "num_points": len(points),
        "too_few": bool(result.too_few),
        "path_length": float(result.path_length),
        "e_1": float(e_1.value),
        "e_1_over_path_length": float(ratio.value),
        "ph_dimension": float(dimension.value),
        "ph_standard_error": float(dimension.standard_error),
        "sign_flipped": _null(ratio.sign_flipped, dimension.sign_flipped),
        "ou": _null(ratio.ou, dimension.ou),
        "plane": [only(row) for row in plane[shown]],
        "plane_steps": [int(step) for step in shown],
        "plane_share": only(share),
    }


def _null(ratio, dimension):
    return {
        "e_1_over_path_length": float(ratio.mean),
        "ratio_standard_deviation": float(ratio.standard_deviation),
        "ph_dimension": float(dimension.mean),
        "ph_standard_deviation": float(dimension.standard_deviation),
    }


def draw(numbers, ax):
    """The path in its principal plane, from light to dark."""
    if "plane" not in numbers:
        ax.text(0.5, 0.5, "too few points", transform=ax.transAxes, ha="center")
        return
    first, second = numbers["plane_share"]
    if not (isfinite(first) and isfinite(second)):
        ax.text(0.5, 0.5, "no path to draw", transform=ax.transAxes, ha="center")
        return
    x, y = np.asarray(numbers["plane"]).T
    ax.plot(x, y, color="#cccccc", lw=0.8)
    ax.scatter(x, y, c=numbers["plane_steps"], cmap="viridis_r", s=7, zorder=2)
    ax.plot(x[0], y[0], "o", mfc="white", mec=ACCENT, ms=8, label="start")
    ax.plot(x[-1], y[-1], "*", color=ACCENT, ms=12, label="end")
    walk = [percent(share) for share in _WALK]
    ax.set_xlabel(f"direction 1: {percent(first)} of variance (random walk {walk[0]})")
    ax.set_ylabel(f"direction 2: {percent(second)} (random walk {walk[1]})")
    ax.legend()


def findings(numbers):
    """Whether E_1 says more than the length, and whether the path looks random."""
    if numbers["too_few"]:
        text = f"The path has {numbers['num_points']:,} points: too few for a dimension"
        return [Finding(text + " (500 are needed).", "measured")]
    ratio = numbers["e_1_over_path_length"]
    if not (isfinite(ratio) and isfinite(numbers["e_1"])):
        return [lacking("the path has length 0, or one that is not finite")]
    same = ratio > 0.95
    length = Finding(
        f"The spanning tree of the {numbers['num_points']:,} iterates has length "
        f"E₁ = {compact(numbers['e_1'])}, {ratio:.3f} of the length of the path: "
        + (
            "E₁ measures how far training walked, and little else."
            if same
            else "the path zigzags or comes back: iterates have nearer ones "
            "than their neighbours in time."
        ),
        "measured",
    )
    return [length, _dimension(numbers)]


def _dimension(numbers):
    """Whether the dimension lies outside the draws of both nulls."""
    value = numbers["ph_dimension"]
    (flipped, flipped_spread), (ou, ou_spread) = nulls = [
        (numbers[name]["ph_dimension"], numbers[name]["ph_standard_deviation"])
        for name in ("sign_flipped", "ou")
    ]
    if not all(map(isfinite, (value, flipped, flipped_spread, ou, ou_spread))):
        return lacking("the dimension of the path or of its nulls is not finite")
    # The path is one draw itself: what counts is how far single draws of a null spread,
    # not the error of their mean, nor that of the subsets of one path.
    names = ("flipped increments", "the Ornstein-Uhlenbeck process")
    alike = [
        name
        for name, (mean, spread) in zip(names, nulls, strict=True)
        if abs(value - mean) <= 3 * spread
    ]
    return Finding(
        f"Its persistent-homology dimension is {value:.2f}; over {_NULLS} draws (mean "
        "± standard deviation) it would be "
        f"{flipped:.2f} ± {flipped_spread:.2f} with randomly flipped increments and "
        f"{ou:.2f} ± {ou_spread:.2f} for an Ornstein-Uhlenbeck process of the same "
        "autocorrelation: "
        + (
            "the path differs from both."
            if not alike
            else f"not told apart from {' and '.join(alike)} by this number."
        ),
        "measured",
    )


def rows(numbers):
    """Length and dimension."""
    if numbers["too_few"]:
        return [Row("path", "too few points", "500 needed")]
    nulls = [compact(numbers[name]["ph_dimension"]) for name in ("sign_flipped", "ou")]
    ratio = compact(numbers["e_1_over_path_length"])
    return [
        Row("path length", compact(numbers["path_length"]), f"E₁ / length {ratio}"),
        Row(
            "persistent-homology dimension",
            compact(numbers["ph_dimension"]),
            f"nulls {', '.join(nulls)}",
        ),
    ]


SECTION = Section(
    "path", "The training path", always, nothing, trace, read, draw, findings, rows
)
