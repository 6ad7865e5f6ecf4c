"""Pictures of a landscape: the loss along lines and over planes, and paths on them."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter

from jaxtheory.batching import check_count
from jaxtheory.curvature.landscape import (
    BezierCurve,
    Interpolation,
    Projection,
    Slice1D,
    Slice2D,
    TrajectoryPlane,
)
from jaxtheory.plot._style import (
    ACCENT,
    KERNEL,
    NULL,
    TEST,
    THEORY,
    TRAIN,
    check_named,
    drawn_into,
)

Line: TypeAlias = Slice1D | Interpolation | BezierCurve

_COLOURS = (TRAIN, TEST, KERNEL, ACCENT, THEORY, NULL)


def slice_1d(lines: Line | Mapping[str, Line], *, ax: Axes | None = None) -> Axes:
    """Draw the loss along lines and curves of parameter space.

    Args:
        lines: A `Slice1D`, an `Interpolation` or a `BezierCurve` of
            `curvature.landscape`, or several by label. Those between two networks have
            their barrier in the legend.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, one line for each, in order, its points from left to right; those that
        are not finite are left out.

    Raises:
        ValueError: One is something else or a stack of several, or there is nothing
            to draw.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import plot
        >>> from jaxtheory.curvature.landscape import Interpolation
        >>> a, losses = jnp.linspace(0, 1, 3), jnp.array([0.0, 1.0, 0.0])
        >>> ax = plot.slice_1d(Interpolation(a, losses, jnp.array(1.0)))
        >>> ax.get_legend().get_texts()[0].get_text()
        'barrier 1'
    """
    named = lines if isinstance(lines, Mapping) else {"": lines}
    check_named("lines", named)
    given = isinstance(lines, Mapping)
    drawn = [
        _points(f"`lines[{label!r}]`" if given else "`lines`", line)
        for label, line in named.items()
    ]
    if np.all(np.isnan(np.concatenate([losses for _, losses in drawn]))):
        raise ValueError(
            "`lines` must hold a finite loss, but no loss of them is finite."
        )
    ax = drawn_into(ax)
    for place, (label, line) in enumerate(named.items()):
        text = _line_text(label, line)
        ax.plot(*drawn[place], color=_COLOURS[place % len(_COLOURS)], label=text)
    if all(isinstance(line, Slice1D) for line in named.values()):
        ax.set_xlabel("coordinate (lengths of the direction)")
    else:
        ax.set_xlabel("from the first network (0) to the second (1)")
    ax.set_ylabel("mean loss")
    if any(_line_text(label, line) for label, line in named.items()):
        ax.legend(frameon=False)
    return ax


def _points(name, line):
    """Coordinates from left to right, and the losses there, NaN where not finite."""
    if not isinstance(line, Line):
        raise ValueError(
            f"{name} must be a `Slice1D`, an `Interpolation` or a `BezierCurve`, "
            f"but is of type {type(line).__name__}."
        )
    _check_shapes(name, line.losses, line.coordinates)
    order, coordinates = _sorted(f"the coordinates of {name}", line.coordinates)
    losses = np.asarray(line.losses, float)[order]
    return coordinates, np.where(np.isfinite(losses), losses, np.nan)


def _check_shapes(name, losses, *axes):
    """Raise unless there is a loss for each place of a grid."""
    shapes = [np.shape(axis) for axis in axes]
    if any(len(shape) != 1 for shape in shapes) or np.shape(losses) != sum(shapes, ()):
        raise ValueError(
            f"{name} must have a loss for each of its coordinates, but coordinates of "
            f"shape {', '.join(map(str, shapes))} and losses of {np.shape(losses)}. Of "
            "a stack draw one: `jax.tree.map(lambda leaf: leaf[0], ...)`."
        )


def _sorted(name, coordinates):
    """The order that sorts coordinates, and them in it."""
    found = np.asarray(coordinates, float)
    if not np.all(np.isfinite(found)):
        raise ValueError(
            f"{name} must be finite, but {np.sum(~np.isfinite(found))} of {len(found)} "
            "are not."
        )
    order = np.argsort(found, kind="stable")
    return order, found[order]


def _line_text(label, line):
    """What the legend says of a line; empty for an unnamed slice."""
    barrier = "" if isinstance(line, Slice1D) else f"barrier {float(line.barrier):.3g}"
    return ": ".join(filter(None, (str(label), barrier)))


def slice_2d(
    found: Slice2D,
    *,
    path: TrajectoryPlane | Projection | Real[ArrayLike, "r 2"] | None = None,
    num_levels: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss over a plane as contours, and the path of training on it.

    Levels are spaced evenly in the logarithm of the loss, from its smallest to its
    largest value (evenly in the loss where it is not positive throughout). Where the
    loss is not finite the plane is left grey. The path is a projection: what the loss
    is beneath a point of it is the loss at the plane's point, not at the iterate,
    unless the plane explains all of the path.

    Args:
        found: What `curvature.landscape.slice_2d` returned.
        path: What `trajectory_plane` returned, whose explained variance goes into the
            labels of the axes; or what `project` returned; or coordinates ``[r, 2]``
            in the slice's units.
        num_levels: Number of contours, at least 2.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, the first direction to the right. A colour bar stands beside them.

    Raises:
        ValueError: `found` is something else, a stack of several, or holds no finite
            loss; `path` is not one of two coordinates; or `num_levels` is no integer
            of at least 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import plot
        >>> from jaxtheory.curvature.landscape import Slice2D
        >>> u = jnp.linspace(-1.0, 1.0, 5)
        >>> losses = 0.1 + u[:, None] ** 2 + 3 * u[None] ** 2
        >>> path = jnp.array([[0.9, 0.9], [0.0, 0.0]])
        >>> ax = plot.slice_2d(Slice2D(u, u, losses), path=path)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['path of training', 'start', 'end']

    References:
        Li et al., arXiv:1712.09913, figures 4 and 8 (such pictures).
    """
    if not isinstance(found, Slice2D):
        raise ValueError(
            "`found` must be what `curvature.landscape.slice_2d` returned, but is of "
            f"type {type(found).__name__}."
        )
    _check_shapes("`found`", found.losses, found.first, found.second)
    rows, u = _sorted("`found.first`", found.first)
    columns, v = _sorted("`found.second`", found.second)
    losses = np.asarray(found.losses, float)[rows][:, columns].T
    if not np.any(np.isfinite(losses)):
        raise ValueError(
            "`found` must hold a finite loss, but no loss of it is finite."
        )
    num_levels = check_count(at_least=2, num_levels=num_levels)
    points = _path_points(path)
    ax = drawn_into(ax)
    _draw_contours(ax, u, v, losses, num_levels)
    if points is not None:
        _draw_path(ax, points)
    ax.grid(visible=False)
    for place, (axis, name) in enumerate(((ax.xaxis, "first"), (ax.yaxis, "second"))):
        axis.set_label_text(_axis_text(name, place, path))
    return ax


def _path_points(path):
    """The path's coordinates, or None."""
    if path is None:
        return None
    is_record = isinstance(path, TrajectoryPlane | Projection)
    points = np.asarray(path.coordinates if is_record else path, float)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(
            "`path` must have two coordinates for each iterate [r, 2], but has shape "
            f"{points.shape}. Take the two that the slice has: `coordinates[:, :2]`."
        )
    return points


def _axis_text(name, place, path):
    if isinstance(path, TrajectoryPlane):
        share = 100 * float(path.explained_variance[place])
        return f"principal direction {place + 1} ({share:.1f} % of variance)"
    return f"{name} direction (its lengths)"


def _draw_contours(ax, u, v, losses, num_levels):
    """Filled contours with lines on them, and a colour bar."""
    low, high = np.min(losses[np.isfinite(losses)]), np.max(losses[np.isfinite(losses)])
    # Levels need room between them, also where the loss is constant but for rounding.
    size = max(abs(low), abs(high))
    varies = high - low > 1e-12 * size
    if varies and low > 0:
        levels, norm = np.geomspace(low, high, num_levels), LogNorm(low, high)
    else:
        high = high if varies else low + max(1.0, size)
        levels, norm = np.linspace(low, high, num_levels), None
    # Rounding must not leave the ends out.
    levels[0], levels[-1] = low, high
    masked = np.ma.masked_invalid(losses)
    ax.set_facecolor("#dddddd")
    filled = ax.contourf(u, v, masked, levels=levels, norm=norm, cmap="viridis")
    ax.contour(u, v, masked, levels=levels, colors="white", linewidths=0.4, alpha=0.5)
    bar = ax.figure.colorbar(filled, ax=ax, label="mean loss")
    bar.set_ticks(levels[:: max(1, num_levels // 6)])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:.2g}"))
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def _draw_path(ax, points):
    """A line with its start and its end marked."""
    edge = {"markeredgecolor": "black", "ls": "none", "zorder": 4}
    ax.plot(*points.T, color=ACCENT, marker=".", ms=4, lw=1.2, label="path of training")
    ax.plot(*points[0], marker="o", color="white", ms=7, label="start", **edge)
    ax.plot(*points[-1], marker="*", color=TEST, ms=12, label="end", **edge)
    ax.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
