"""Figures of the portrait: one a section for the page, all together for the picture."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from jaxtheory.plot import STYLE


def section_svg(draw: Callable[[Any], None]) -> bytes:
    """One section's figure as SVG.

    Args:
        draw: Draws into matplotlib axes.

    Returns:
        The file's bytes.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def overview(
    file: Path, title: str, draws: Sequence[tuple[str, Callable[[Any], None]]]
) -> None:
    """Draw all sections into one picture.

    Args:
        file: Where the PNG goes.
        title: Heading of the picture.
        draws: Title and drawing function of each section.
    """
    # Nearly square, so that the letters stay legible where the picture is shown small.
    columns = math.isqrt(len(draws) - 1) + 1
    lines = -(-len(draws) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.7 * columns, 3.7 * lines), layout="constrained")
        figure.suptitle(title, fontsize=15, fontweight="bold", x=0.01, ha="left")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, (name, draw) in zip(axes, draws, strict=False):
            draw(ax)
            ax.set_title(name)
        for ax in axes[len(draws) :]:
            ax.set_visible(False)
        temporary = file.with_name(file.name + ".tmp")
        figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(file)
