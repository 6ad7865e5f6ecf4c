"""Pictures of curvature: where eigenvalues lie, and sharpness against its threshold."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes

from jaxtheory.batching import check_number
from jaxtheory.curvature import StabilityThreshold
from jaxtheory.linalg import SpectralDensity
from jaxtheory.plot._style import ACCENT, KERNEL, NULL, TRAIN, drawn_into, vector

Numbers: TypeAlias = Real[ArrayLike, " r"] | Sequence[int | float]

_DECADES = 6  # below the peak, what smoothing leaves is no density


def spectral_density(
    density: SpectralDensity,
    *,
    width: float | None = None,
    bulk: tuple[float, float] | None = None,
    threshold: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the density of eigenvalues of an operator, the density on a log scale.

    The mean over probes, smoothed by a Gaussian, with two standard errors each way;
    six decades below the peak are shown. One eigenvalue by itself is a peak of height
    ``1 / (p width sqrt(2 pi))``.

    Args:
        density: What `linalg.spectral_density` returned.
        width: Standard deviation of the Gaussian, in units of the eigenvalues; by
            default a hundredth of the range of the nodes.
        bulk: Ends of an interval to mark, such as the Marchenko-Pastur bulk
            ``s (1 -+ sqrt(p / n))^2``: eigenvalues beyond it stand for structure.
        threshold: An eigenvalue to mark, such as
            ``curvature.stability_threshold(...).full_batch``.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, the density as their first line.

    Raises:
        ValueError: `density` is something else, its nodes are not finite, `width` is
            not positive, `bulk` no interval, or `threshold` no number.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> from jaxtheory import linalg, plot
        >>> matrix = jnp.diag(jnp.array([0.0, 1.0, 2.0, 10.0]))
        >>> operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> density = linalg.spectral_density(operator, key=jax.random.key(0))
        >>> ax = plot.spectral_density(density, threshold=8.0)
        >>> ax.get_yscale(), ax.get_legend().get_texts()[1].get_text()
        ('log', 'threshold 8')

    References:
        Ghorbani, Krishnan & Xiao, arXiv:1901.10159 (of network Hessians); Marchenko &
        Pastur, Math. USSR Sbornik 1 (1967) (the bulk).
    """
    nodes = _finite_nodes(density)
    low, high = nodes.min(), nodes.max()
    if width is None:
        width = float((high - low) or abs(high) or 1.0) / 100
    _check_width(width)
    if threshold is not None:
        _check_threshold(threshold)
        check_number("threshold", threshold, lambda v: v == v, "a number")
    ax = drawn_into(ax)
    _draw_density(ax, density, low, high, width)
    if bulk is not None:
        left, right = _interval(bulk)
        text = f"bulk {left:.3g} to {right:.3g}"
        ax.axvspan(left, right, color=NULL, alpha=0.25, lw=0, label=text)
    if threshold is not None:
        value = float(threshold)
        ax.axvline(value, color=ACCENT, ls="--", label=f"threshold {value:.3g}")
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density of eigenvalues")
    # The bulk is on the left; a threshold may pass behind the legend.
    ax.legend(loc="upper right", framealpha=0.9, edgecolor="none", frameon=True)
    return ax


def log_spectral_density(
    density: SpectralDensity,
    *,
    width: float = 0.1,
    num_decades: float = 6,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many eigenvalues there are per decade of size, on each side of zero.

    For heavy tails, which a linear axis shows as one peak at zero. What lies nearest to
    zero is the work of the iterations and not of the operator: see
    `SpectralDensity.log_density`.

    Args:
        density: What `linalg.spectral_density` returned.
        width: Standard deviation of the smoothing Gaussian, in decades.
        num_decades: Decades shown below the largest eigenvalue in size.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: the line of positive eigenvalues, then that of negative ones.

    Raises:
        ValueError: `density` is something else, its nodes are not finite or all zero,
            or a number is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> from jaxtheory import linalg, plot
        >>> matrix = jnp.diag(jnp.array([-0.1, 1.0, 2.0, 10.0]))
        >>> operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> density = linalg.spectral_density(operator, key=jax.random.key(0))
        >>> ax = plot.log_spectral_density(density)
        >>> ax.get_xscale(), [text.get_text() for text in ax.get_legend().get_texts()]
        ('log', ['positive', 'negative'])

    References:
        Papyan, arXiv:1811.07062 (spectra on this axis).
    """
    nodes = _finite_nodes(density)
    largest = np.max(np.abs(nodes))
    if not largest > 0:
        raise ValueError("`density` must have a node that is not zero: it has none.")
    check_number("num_decades", num_decades, lambda v: 0 < v < np.inf, "positive")
    _check_width(width)
    ax = drawn_into(ax)
    end = np.log10(largest) + 4 * width
    places = np.linspace(np.log10(largest) - num_decades, end, 400)
    grid = jnp.asarray(places, density.nodes.dtype)
    signs: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")
    for sign, colour in zip(signs, (KERNEL, ACCENT), strict=True):
        found = density.log_density(grid, width=width, sign=sign)
        mean, error = (density.dimension * np.asarray(a, float) for a in found[:2])
        shown = np.where(mean > 1e-3, mean, np.nan)
        ax.plot(10.0**places, shown, color=colour, label=sign)
        low, high = shown - 2 * error, shown + 2 * error
        low = np.maximum(low, 1e-3)
        ax.fill_between(10.0**places, low, high, color=colour, alpha=0.25, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("|eigenvalue|")
    ax.set_ylabel("eigenvalues per decade")
    ax.legend()
    return ax


def _check_width(width):
    check_number("width", width, lambda v: 0 < v < np.inf, "a positive number")


def _check_threshold(threshold):
    """Raise for a record, whose fields would pass for thresholds."""
    if isinstance(threshold, StabilityThreshold):
        raise ValueError(
            "`threshold` must be numbers, but is a `StabilityThreshold`, which holds "
            "several. Pass one of its fields: `threshold.full_batch`."
        )


def _finite_nodes(density):
    """The nodes of a density, on the host; raise where there is nothing to draw."""
    if not isinstance(density, SpectralDensity):
        raise ValueError(
            "`density` must be what `linalg.spectral_density` returned, but is of type "
            f"{type(density).__name__}."
        )
    nodes = np.asarray(density.nodes, float)
    if not np.all(np.isfinite(nodes)):
        raise ValueError(
            "`density` must have finite nodes, but some are not: the operator returned "
            "something that is not finite."
        )
    return nodes


def _draw_density(ax, density, low, high, width):
    """The mean over probes and its standard error."""
    # Every peak gets points: its own surroundings, between an even grid.
    nodes = np.asarray(density.nodes, float).ravel()
    around = np.linspace(-4, 4, 17) * width
    even = np.linspace(low - 5 * width, high + 5 * width, 500)
    grid = np.unique(np.concatenate([even, (nodes[:, None] + around).ravel()]))
    found = density.density(jnp.asarray(grid, density.nodes.dtype), width=width)
    mean, error = (np.asarray(a, float) for a in found[:2])
    floor = 10.0**-_DECADES * mean.max()
    text = f"smoothed by {width:.2g}"
    ax.plot(grid, np.maximum(mean, floor / 10), color=KERNEL, label=text)
    ends = (np.maximum(mean + side * error, floor / 10) for side in (-2, 2))
    ax.fill_between(grid, *ends, color=KERNEL, alpha=0.25, lw=0)
    ax.set_yscale("log")
    ax.set_ylim(floor, 3 * mean.max())


def _interval(bulk):
    ends = vector("`bulk`", bulk)
    if len(ends) != 2 or not -np.inf < ends[0] < ends[1] < np.inf:
        raise ValueError(
            "`bulk` must be the lower and the upper end of an interval, but was "
            f"{bulk!r}."
        )
    return ends


def sharpness(
    steps: Numbers,
    sharpness: Numbers,
    threshold: Real[ArrayLike, ""] | Numbers,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw sharpness during training against what the optimizer can bear.

    Args:
        steps: Training steps, ``[r]``, in order.
        sharpness: Largest eigenvalue there, ``[r]``: of the Hessian, or preconditioned
            as the threshold has it. Where it is not finite nothing is drawn.
        threshold: ``curvature.stability_threshold(...).full_batch``: one number, or one
            for each step (SAM, a schedule).
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: first the line of the sharpness, then that of the threshold.

    Raises:
        ValueError: These are not vectors of one length, `steps` decrease, or no
            threshold is a number.

    Example:
        >>> from jaxtheory import plot
        >>> ax = plot.sharpness([0, 10, 20], [1.0, 15.0, 20.4], 20.0)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['sharpness, last 1.02 of the threshold', 'threshold 20']

    References:
        Cohen et al., arXiv:2103.00065, figure 1 (such a picture).
    """
    steps_, values = vector("`steps`", steps), vector("`sharpness`", sharpness)
    _check_threshold(threshold)
    edge = np.atleast_1d(np.asarray(threshold, float))
    for name, found in (("sharpness", values), ("threshold", edge)):
        if found.shape != steps_.shape and not (name == "threshold" and edge.size == 1):
            raise ValueError(
                f"`{name}` must have one number for each of the {len(steps_)} steps, "
                f"but has shape {found.shape}."
            )
    if np.any(np.diff(steps_) < 0):
        raise ValueError(
            "`steps` must not decrease, but do: sort all three by step, or the line "
            "runs back and the legend's last value is not the last."
        )
    if np.all(np.isnan(edge)):
        raise ValueError(
            "`threshold` must be a number, or one for each step, but all are NaN. Not "
            "every method has a minibatch form: pass `full_batch`."
        )
    text = f"threshold {edge[0]:.3g}" if edge.size == 1 else "threshold"
    edge = np.broadcast_to(edge, steps_.shape)
    ratio = _last_ratio(values, edge)
    ax = drawn_into(ax)
    marker = "o" if len(steps_) < 30 else None
    ax.plot(steps_, values, color=TRAIN, marker=marker, markersize=3, label=ratio)
    ax.plot(steps_, edge, color=ACCENT, ls="--", label=text)
    high = [np.max(a[np.isfinite(a)], initial=0.0) for a in (values, edge)]
    low = np.min(values[np.isfinite(values)], initial=0.0)
    if max(high) > 0:
        ax.set_ylim(1.05 * low, 1.15 * max(high))
    ax.set_xlabel("step")
    ax.set_ylabel("sharpness (largest eigenvalue)")
    ax.legend(frameon=False, loc="lower right")
    return ax


def _last_ratio(values, edge):
    """What the legend says of the end of the curve."""
    finite = np.flatnonzero(np.isfinite(values) & (edge > 0))
    if not len(finite):
        return "sharpness"
    return (
        f"sharpness, last {values[finite[-1]] / edge[finite[-1]]:.2f} of the threshold"
    )
