"""Spectra of the weights against those of pure noise."""

from typing import Any

import jax
import numpy as np

from jaxtheory import plot
from jaxtheory.dynamics import tails
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_STREAM = 2**30 + 6
_LEVEL = 1e-3


def read(plan, history):
    """The spectrum of every weight matrix at both ends."""
    key = jax.random.fold_in(plan.key, _STREAM)
    ends = [
        tails.weight_spectra(params, key=jax.random.clone(key), level=_LEVEL)
        for params in (history.state.initial_params, history.state.params)
    ]
    return {
        "start": {name: _plain(found) for name, found in ends[0].items()},
        "end": {name: _plain(found) for name, found in ends[1].items()},
    }


def _plain(found):
    fields = found.noise._asdict()
    eigenvalues = only(fields.pop("eigenvalues"))
    return {
        "noise": {name: float(value) for name, value in fields.items()},
        "eigenvalues": eigenvalues,
        "stable_rank": float(found.stable_rank),
        "exponent": float(found.power_law.exponent),
        "heavy_entries": bool(found.heavy_entries),
    }


def _finite(numbers):
    return all(
        np.isfinite(one["eigenvalues"]).all()
        for end in (numbers["start"], numbers["end"])
        for one in end.values()
    )


def _outliers(numbers, end):
    return {
        name: int(one["noise"]["num_outliers"]) for name, one in numbers[end].items()
    }


def _chosen(numbers):
    """The matrix of most outliers, and of those that of most eigenvalues."""
    count, end = _outliers(numbers, "end"), numbers["end"]
    return max(end, key=lambda name: (count[name], len(end[name]["eigenvalues"])))


def draw(numbers, ax):
    """The spectrum of one matrix at the end, beside the law of noise."""
    if not _finite(numbers):
        ax.text(0.5, 0.5, "spectrum not finite", transform=ax.transAxes, ha="center")
        return
    name = _chosen(numbers)
    one = numbers["end"][name]
    fields: dict[str, Any] = {
        key: np.asarray(value)
        for key, value in [("eigenvalues", one["eigenvalues"]), *one["noise"].items()]
    }
    noise = tails.NoiseComparison(**fields)
    plot.weight_spectrum(noise, ax=ax)
    ax.set_xlabel(f"eigenvalue of {name}")


def findings(numbers):
    """Whether initial weights look like noise, and what training made stand out."""
    if not _finite(numbers):
        return [lacking("the spectrum of the weights is not finite")]
    start, end = (_outliers(numbers, name) for name in ("start", "end"))
    num = len(start)
    text = (
        f"Initial weights are noise, so theory expects the Marchenko-Pastur law; of "
        f"{num} matrices {sum(map(bool, start.values()))} had an outlier."
    )
    first = Finding(text, "disagrees" if any(start.values()) else "agrees")
    name = _chosen(numbers)
    one = numbers["end"][name]
    text = f"After training {sum(map(bool, end.values()))} of {num} have"
    if not any(end.values()):
        return [first, Finding(f"{text} one: no direction stands out.", "measured")]
    text += (
        f" outliers, at most {end[name]} ({name}, its largest eigenvalue "
        f"{compact(one['eigenvalues'][0] / one['noise']['upper_edge'])} times the edge "
        "of noise)"
    )
    heavy = sum(found["heavy_entries"] for found in numbers["end"].values())
    text += f"; large single entries may be why in {heavy} of them." if heavy else "."
    return [first, Finding(text, "measured")]


def rows(numbers):
    """Outliers and stable rank of the matrix shown."""
    if not _finite(numbers):
        return [Row("outliers of the weights", "not finite", "noise has none")]
    name = _chosen(numbers)
    ranks = [compact(numbers[end][name]["stable_rank"]) for end in ("end", "start")]
    return [
        Row(
            "outliers of the weights",
            str(sum(_outliers(numbers, "end").values())),
            f"at the start {sum(_outliers(numbers, 'start').values())}",
        ),
        Row(f"stable rank of {name}", ranks[0], f"at the start {ranks[1]}"),
    ]


SECTION = Section(
    "weights",
    "Weights against noise",
    always,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
