"""Generalization bounds beside the error that they bound."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from jaxtheory._types import Bound
from jaxtheory.batching import check_number
from jaxtheory.plot._style import NULL, TEST, TRAIN, check_named, drawn_into


def bounds(
    named: Mapping[str, Bound],
    *,
    risk: float | None = None,
    chance: float | None = None,
    colours: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw bounds on a risk as horizontal bars, in the order given, downwards.

    What says nothing is pale: a bound that is vacuous, or not below `chance`. Bars end
    at 1, whatever the value beside them is. A bound that is no certificate is hatched.

    Args:
        named: Bounds by label, such as ``bounds.table(inputs).bounds``.
        risk: The true risk, or an estimate of it from test data, as a line.
        chance: The risk of guessing, as a dotted line.
        colours: Colours by label; one for all where it is None.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: one bar a bound, then the lines.

    Raises:
        ValueError: `named` is empty or holds something else, or a risk is not in
            [0, 1].

    Example:
        >>> from jaxtheory import bounds, plot
        >>> named = {"hold-out": bounds.holdout(3, 100, delta=0.05)}
        >>> ax = plot.bounds(named, risk=0.03, chance=0.9)
        >>> ax.texts[0].get_text()
        '7.6 %'

    References:
        Jiang et al., arXiv:1912.02178 (bounds held against gaps).
    """
    check_named("named", named)
    for label, bound in named.items():
        if not isinstance(bound, Bound):
            raise ValueError(
                f"`named[{label!r}]` must be a `Bound`, but is a "
                f"{type(bound).__name__}."
            )
    lines = {"risk": (risk, "-", TEST), "guessing": (chance, ":", NULL)}
    for name, value in (("risk", risk), ("chance", chance)):
        if value is not None:
            check_number(name, value, lambda r: 0 <= r <= 1, "in [0, 1] or None")
    ax = drawn_into(ax)
    useless = 1.0 if chance is None else float(chance)
    for height, (label, bound) in enumerate(named.items()):
        colour = TRAIN if colours is None else colours[label]
        _draw_bar(ax, height, bound, useless, colour)
    for label, (value, style, colour) in lines.items():
        if value is not None:
            text = f"{label} {100 * float(value):.1f} %"
            ax.axvline(float(value), ls=style, color=colour, label=text)
    ax.set_yticks(range(len(named)), list(named))
    ax.set_ylim(len(named) - 0.5, -0.5)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("bound on the risk")
    if risk is not None or chance is not None:
        ax.legend()
    return ax


def _draw_bar(ax, height, bound, useless, colour):
    """One bar with its value."""
    vacuous = bound.vacuous or not bound.value < useless
    length = float(np.clip(bound.value, 0, 1)) if np.isfinite(bound.value) else 1.0
    hatch = None if bound.certificate else "//"
    alpha = 0.35 if vacuous else 1.0
    ax.barh(height, length, color=colour, alpha=alpha, hatch=hatch, ec="white", lw=0)
    percent = f"{100 * bound.value:.1f} %" if bound.value < 10 else f"{bound.value:.2g}"
    text = percent + (" (vacuous)" if vacuous else "")
    inside = length > 0.6
    ax.text(
        length + (-0.01 if inside else 0.01),
        height,
        text,
        va="center",
        ha="right" if inside else "left",
        color="white" if inside and not vacuous else "black",
    )
