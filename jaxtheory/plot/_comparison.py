"""Errors side by side, with their intervals."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from jaxtheory._types import Estimate
from jaxtheory.plot._style import KERNEL, TEST, check_named, drawn_into


def comparison(
    errors: Mapping[str, Estimate],
    *,
    metric: str = "test error",
    ax: Axes | None = None,
) -> Axes:
    """Draw one dot for each method, with an interval of two standard errors each way.

    The first method is what the others are held against: it has another colour, and a
    line through all rows. Intervals of methods tested on the same examples may overlap
    and the difference still be certain; that takes the error of the difference.

    Args:
        errors: Error by method, from top to bottom: `value` and `standard_error` of
            each are numbers; where the latter is 0 or not finite there is no interval.
        metric: What the error is, with its units; the label of the axis.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes. The first line is the dots; what is not finite has none, and its row
        says so.

    Raises:
        ValueError: There is nothing to draw, or an error is not a number.

    Example:
        >>> from jaxtheory import Estimate, plot
        >>> errors = {"network": Estimate(2.0, 0.5, 797)}
        >>> ax = plot.comparison(errors, metric="test error (%)")
        >>> ax.get_xlabel()
        'test error (%), ± 2 standard errors'
    """
    check_named("errors", errors)
    numbers = [(name, *_numbers(name, error)) for name, error in errors.items()]
    ax = drawn_into(ax)
    names, values, spreads = zip(*numbers, strict=True)
    values, spreads = np.array(values), np.nan_to_num(2 * np.array(spreads))
    rows = np.arange(len(values))
    colours = [TEST, *[KERNEL] * (len(values) - 1)]
    ax.plot(values, rows, "o", color=KERNEL)
    ax.plot(values[:1], rows[:1], "o", color=TEST)
    ax.axvline(values[0], color=TEST, ls="--", lw=1, zorder=1)
    ax.hlines(rows, values - spreads, values + spreads, colors=colours)
    for row, value, colour in zip(rows, values, colours, strict=True):
        _write(ax, row, value, fontsize=8.5, color=colour)
    ax.set_yticks(rows, names)
    ax.set_ylim(len(values) - 0.5, -0.6)
    ax.set_xlim(left=min(0.0, np.min(values[np.isfinite(values)], initial=0.0)))
    ax.set_xlabel(f"{metric}, ± 2 standard errors")
    ax.grid(visible=False, axis="y")
    return ax


def _write(ax, row, value, **style):
    """The number beside its dot, or that there is none."""
    if not np.isfinite(value):
        place = ax.get_yaxis_transform()
        ax.text(0.02, row, "not finite", va="center", transform=place, **style)
        return
    beside = {"xytext": (4, 5), "textcoords": "offset points"}
    ax.annotate(f"{value:.3g}", (value, row), **beside, **style)


def _numbers(name, error):
    """Value and standard error of a method."""
    if not isinstance(error, Estimate):
        raise ValueError(
            f"`errors[{name!r}]` must be a `jaxtheory.Estimate(value, standard_error, "
            f"num_samples)`, but is a {type(error).__name__}."
        )
    if np.shape(error.value) != () or np.shape(error.standard_error) != ():
        raise ValueError(
            f"`errors[{name!r}]` must be one number with one standard error, but they "
            f"have shapes {np.shape(error.value)} and {np.shape(error.standard_error)}."
        )
    return float(error.value), float(error.standard_error)
