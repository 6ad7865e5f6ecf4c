"""Colours and small helpers that the figures share."""

import math
from typing import Any

TRAIN = "#1f5fa8"
TEST = "#d1762b"
THEORY = "#444444"
KERNEL = "#2a8f6f"
NULL = "#9a9a9a"
ACCENT = "#a83279"

_NOT_FINITE = "not finite"

RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.labelcolor": "#333333",
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxtheory",  # the same numbers give the same file
    "savefig.facecolor": "white",
}


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as text, for example ``95.1 %``."""
    if not math.isfinite(fraction):
        return _NOT_FINITE
    value = 100 * fraction
    return f"{value:.{digits}f} %" if abs(value) < 1e4 else f"{compact(value)} %"


def compact(value: float) -> str:
    """A number in three significant digits without trailing clutter."""
    return f"{value:.3g}" if math.isfinite(value) else _NOT_FINITE


def only(values: Any) -> list[float]:
    """A NumPy array as a list of Python floats."""
    return [float(value) for value in values]
