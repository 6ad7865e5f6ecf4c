"""One look for all pictures: colours by what they stand for, and axes to draw into."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

TRAIN = "#1f5fa8"
TEST = "#d1762b"
THEORY = "#444444"
KERNEL = "#2a8f6f"
NULL = "#9a9a9a"
ACCENT = "#a83279"

# For `matplotlib.rc_context`, around the making of a figure and its drawing.
STYLE: dict[Any, Any] = {
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


def drawn_into(ax: Axes | None) -> Axes:
    """The axes to draw into: those given, or those of a new figure.

    Args:
        ax: Axes, or None for new ones, whose figure is ``ax.figure``. pyplot knows
            nothing of it: there is nothing to close.

    Returns:
        The axes.

    Raises:
        ValueError: `ax` is something else.
    """
    if ax is None:
        with mpl.rc_context(STYLE):
            return Figure(figsize=(6.0, 3.8), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise ValueError(
            "`ax` must be one pair of matplotlib axes or None, but was of type "
            f"{type(ax).__name__}. Of what `subplots` returned, pass one element."
        )
    return ax


def beside(ax: Axes) -> None:
    """Put the legend to the right of axes, where it hides no line.

    Args:
        ax: The axes.
    """
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    ax.legend(**place, handlelength=1.6, borderaxespad=0.2)


def label_round_numbers(axis: Axis) -> None:
    """Label a logarithmic axis that may span less than one power of ten.

    Args:
        axis: The axis, with what it shows drawn; as many labels as there is room for.
    """
    low, high = axis.get_view_interval()
    if high > 100 * low:
        return
    subs = (1, 2, 5) if high > 5 * low else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def vector(name: str, values: Any) -> np.ndarray:
    """Numbers to draw, on the host in double precision.

    Args:
        name: What an error message calls them.
        values: Numbers, one axis.

    Returns:
        A NumPy vector of at least one number.

    Raises:
        ValueError: There is not exactly one axis, or nothing on it.
    """
    found = np.asarray(values, float)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(
            f"{name} must be a vector of at least one number, but has shape "
            f"{found.shape}."
        )
    return found


def check_named(name: str, named: Any) -> None:
    """Raise unless there is something to draw, each with a label.

    Args:
        name: What an error message calls it.
        named: A mapping from labels.

    Raises:
        ValueError: It is empty.
    """
    if not named:
        raise ValueError(
            f"`{name}` must hold something to draw, a label for each, but is empty."
        )
