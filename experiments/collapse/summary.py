"""Means over seeds with standard errors: in claims, in tables and in pictures."""

import math
from typing import Any

import numpy as np

from experiments.claims import Claim
from jaxtheory import plot


def mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error; NaN if a seed has no number."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def claim(
    text: str, values: np.ndarray, low: float, high: float, note: str = ""
) -> Claim:
    """That the mean over seeds is in a range."""
    middle, error = mean(values)
    return Claim(text, middle, low, high, error, note)


def said(values: np.ndarray) -> str:
    """Mean and standard error, that of equal values left out; nothing where NaN."""
    middle, error = mean(values)
    if math.isnan(middle):
        return ""
    return f"{middle:.3g} ± {error:.1g}" if error else f"{middle:.3g}"


def row(label: str, cells: list[str], label_width: int, width: int) -> str:
    """A line of a table: the label at the left, cells at the right of their columns."""
    return f"{label:<{label_width}}" + "".join(f"{cell:>{width}}" for cell in cells)


def draw_curves(ax: Any, result: Any, curves: Any, labels: dict[str, str]) -> None:
    """Means over seeds along training, of training images and of test images.

    Args:
        ax: The axes.
        result: With the `steps` of the records.
        curves: With the statistics by name in `train` and in `test`, ``[s, r]``.
        labels: Label of each statistic; one that is of the classifier alone has no
            other value on test images.
    """
    for (name, label), style in zip(labels.items(), ("-", "--", ":"), strict=False):
        sets = [("train", curves.train, plot.TRAIN), ("test", curves.test, plot.TEST)]
        for of, values, colour in sets[: 1 if name == "nc2_classifier" else 2]:
            middle = values[name].mean(axis=0)
            ax.plot(result.steps, middle, style, color=colour, label=f"{label}, {of}")
