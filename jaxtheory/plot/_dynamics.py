"""Pictures of dynamics: tails, gradient noise, and weights against pure noise."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes

from jaxtheory.batching import check_count, check_number
from jaxtheory.dynamics.tails import HillPlot, NoiseComparison, WeightSpectrum
from jaxtheory.linalg import marchenko_pastur_density
from jaxtheory.plot._style import (
    ACCENT,
    KERNEL,
    NULL,
    TEST,
    THEORY,
    TRAIN,
    check_named,
    drawn_into,
    vector,
)

Numbers: TypeAlias = Real[ArrayLike, " r"] | Sequence[int | float]

_COLOURS = (TRAIN, TEST, KERNEL, ACCENT, THEORY)


def tail_index(
    steps: Numbers,
    index: Any,
    *,
    quantity: str = "tail index",
    reference: float | None = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw a tail index, or any estimate, over training with two standard errors.

    Where an estimate is not finite nothing is drawn: no power law, or data that could
    not say.

    Args:
        steps: Training steps, ``[r]``, in order.
        index: A record with the fields ``value`` and ``standard_error``, each ``[r]``:
            what `tails.log_moment`, `tails.hill` or any other that returns an
            `Estimate` gave as a measurement (``history.records[name]``); or several,
            such as layers, by label.
        quantity: What the vertical axis is called.
        reference: A value to mark, by default 2: the variance is infinite below. None
            marks nothing.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: one line a label, then that of the reference.

    Raises:
        ValueError: A record lacks the fields, these are not vectors of the length of
            `steps`, `steps` decrease, or `reference` is no number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import Estimate, plot
        >>> index = Estimate(jnp.array([2.0, 1.7]), jnp.array([0.1, 0.1]), 500)
        >>> ax = plot.tail_index([0, 100], {"layer 1": index})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['layer 1', '2']

    References:
        Gurbuzbalaban, Simsekli & Zhu, arXiv:2006.04740 (tail indices of SGD).
    """
    steps_ = _steps(steps)
    named = index if isinstance(index, Mapping) else {"": index}
    check_named("index", named)
    curves = {}
    for label, one in named.items():
        name = f"index[{label!r}]" if named is index else "index"
        curves[label] = _estimate(name, one, steps_)
    if reference is not None:
        check_number("reference", reference, np.isfinite, "a finite number or None")
    ax = drawn_into(ax)
    for number, (label, (values, errors)) in enumerate(curves.items()):
        _draw_estimate(ax, steps_, values, errors, number, str(label))
    if reference is not None:
        ax.axhline(float(reference), color=NULL, ls=":", label=f"{reference:g}")
    ax.set_xlabel("step")
    ax.set_ylabel(quantity)
    if named is index:
        ax.legend()
    return ax


def hill(
    curve: HillPlot, *, theory: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw Hill's estimate of a tail index over the number of tail points.

    Where the curve is flat within its interval, the tail is a power law there; where
    it drifts throughout, no one number should be quoted. The axis is scaled to what
    ten and more tail points say.

    Args:
        curve: What `tails.hill_plot` returned.
        theory: An index to mark, such as ``tails.linear_regression_tail_index(...)
            .value``.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: the line of the estimate, then that of the theory.

    Raises:
        ValueError: `curve` is something else or nowhere usable, or `theory` is not
            positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import plot
        >>> from jaxtheory.dynamics import tails
        >>> ranks = (jnp.arange(1000.0) + 0.5) / 1000
        >>> ax = plot.hill(tails.hill_plot(ranks**-0.5, max_tail=200), theory=2.0)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['Hill, with its interval', 'theory 2']

    References:
        Drees, de Haan & Resnick, Ann. Statist. 28 (2000).
    """
    if not isinstance(curve, HillPlot):
        raise ValueError(
            "`curve` must be what `tails.hill_plot` returned, but is of type "
            f"{type(curve).__name__}."
        )
    usable = np.asarray(curve.usable)
    if usable.ndim != 1 or not usable.any():
        raise ValueError(
            "`curve` must be one curve that is usable somewhere, but has the shape "
            f"{usable.shape} and {int(usable.sum())} usable points: data that are not "
            "finite or zero have no tail."
        )
    if theory is not None:
        positive = lambda value: 0 < value < np.inf
        check_number("theory", theory, positive, "a positive number or None")
    counts = np.asarray(curve.num_tail)
    value, lower, upper = (
        np.where(usable, np.asarray(a, float), np.nan)
        for a in (curve.value, curve.lower, curve.upper)
    )
    ax = drawn_into(ax)
    ax.plot(counts, value, color=TRAIN, label="Hill, with its interval")
    ax.fill_between(counts, lower, upper, color=TRAIN, alpha=0.2, lw=0)
    marks = [] if theory is None else [float(theory)]
    if theory is not None:
        ax.axhline(marks[0], color=ACCENT, ls="--", label=f"theory {marks[0]:.3g}")
    shown = upper[usable][min(9, usable.sum() - 1) :]
    ax.set_ylim(0, 1.1 * max([*shown[np.isfinite(shown)], *marks], default=1.0))
    ax.set_xlabel("number of largest sizes")
    ax.set_ylabel("tail index")
    ax.legend()
    return ax


def weight_spectrum(
    spectrum: WeightSpectrum | NoiseComparison,
    *,
    num_bins: int = 30,
    ax: Axes | None = None,
) -> Axes:
    """Draw the eigenvalues of weights or features against the law of pure noise.

    A histogram of area 1 over the eigenvalues that are not zero by shape, the
    Marchenko-Pastur density at the variance of the bulk, its upper edge, and a mark at
    each outlier. The horizontal axis is logarithmic where the largest eigenvalue is
    more than ten times the edge.

    Args:
        spectrum: One entry of what `tails.weight_spectra` returned, or what
            `tails.spectrum_against_marchenko_pastur` did.
        num_bins: Bins of the histogram, of equal width on the axis.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: the bars, the line of the law, that of the edge, and the marks. Of a
        degenerate spectrum the bars alone.

    Raises:
        ValueError: `spectrum` is something else or not of finite weights, or
            `num_bins` is no positive integer.

    Example:
        >>> import jax
        >>> from jaxtheory import plot
        >>> from jaxtheory.dynamics import tails
        >>> weights = jax.random.normal(jax.random.key(0), (200, 50)).at[:, 0].mul(3)
        >>> found = tails.weight_spectra({"w": weights}, key=jax.random.key(1))
        >>> ax = plot.weight_spectrum(found["['w']"])
        >>> ax.get_legend().get_texts()[-1].get_text()
        '1 outlier'

    References:
        Marchenko & Pastur, Math. USSR Sbornik 1 (1967); Martin & Mahoney,
        arXiv:1810.01075 (such pictures of weights).
    """
    noise = _comparison(spectrum)
    check_count(num_bins=num_bins)
    values = np.asarray(noise.eigenvalues, float)
    ax = drawn_into(ax)
    largest, edge = values.max(), float(noise.upper_edge)
    logarithmic = not noise.degenerate and largest > 10 * edge
    if logarithmic:
        low = max(values.min(), 1e-3 * edge)
        # What is smaller goes to the first bin: bars are of all eigenvalues.
        values = np.maximum(values, low)
        bins = np.geomspace(low, 1.02 * largest, num_bins + 1)
        ax.set_xscale("log")
        ax.set_yscale("log")
    else:
        bins = np.linspace(0, 1.02 * largest or 1.0, num_bins + 1)
    label = f"{len(values)} eigenvalues"
    style = {"color": TRAIN, "alpha": 0.6, "label": label}
    heights = ax.hist(values, bins.tolist(), density=True, **style)[0]
    if not noise.degenerate:
        law = _draw_law(ax, noise, values)
        if not logarithmic:
            # At its lower edge the law may be infinite.
            top = np.max(heights)
            ax.set_ylim(0, 1.1 * max(top, min(np.max(law), 1.6 * top)))
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    ax.legend()
    return ax


def noise_scale(
    steps: Numbers,
    scale: Any,
    *,
    batch_size: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the gradient noise scale over training, in examples.

    Of batches far below it, more examples a step save steps; far above, they are
    wasted. Two standard errors each way, where there are any; where an estimate from
    two batch sizes is undetermined nothing is drawn. On a logarithmic axis.

    Args:
        steps: Training steps, ``[r]``, in order.
        scale: A record with the field ``noise_scale``, over ``r``: what
            `noise.noise_scale` or `noise.two_batch_noise_scale` gave; or an `Estimate`,
            or numbers.
        batch_size: A batch size to mark.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: the line of the noise scale, then that of the batch size.

    Raises:
        ValueError: These are not vectors of one length, `steps` decrease, or
            `batch_size` is no positive integer.

    Example:
        >>> from jaxtheory import plot
        >>> ax = plot.noise_scale([0, 10], [8.0, 200.0], batch_size=64)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['noise scale', 'batch size 64']

    References:
        McCandlish et al., arXiv:1812.06162, figure 4 (such a picture).
    """
    steps_ = _steps(steps)
    if batch_size is not None:
        check_count(batch_size=batch_size)
    found = getattr(scale, "noise_scale", scale)
    if hasattr(found, "value"):
        values, errors = _estimate("scale", found, steps_)
    else:
        values = _along("`scale`", found, steps_)
        errors = getattr(scale, "standard_error", np.zeros_like(values))
        errors = _along("`scale.standard_error`", errors, steps_)
    undetermined = np.asarray(getattr(scale, "undetermined", False), bool)
    drawable = ~undetermined & (values > 0)
    values = np.where(drawable, values, np.nan)
    ax = drawn_into(ax)
    ax.set_yscale("log")
    _draw_estimate(ax, steps_, values, errors, 0, "noise scale")
    if batch_size is not None:
        text = f"batch size {batch_size}"
        ax.axhline(batch_size, color=ACCENT, ls="--", label=text)
    ax.set_xlabel("step")
    ax.set_ylabel("gradient noise scale (examples)")
    ax.legend()
    return ax


def _steps(steps):
    """Training steps, which do not decrease."""
    found = vector("`steps`", steps)
    if np.any(np.diff(found) < 0):
        raise ValueError("`steps` must not decrease, but do: sort everything by step.")
    return found


def _along(name, values, steps):
    """Numbers, one for each step."""
    found = vector(name, values)
    if found.shape != steps.shape:
        raise ValueError(
            f"{name} must have one number for each of the {len(steps)} steps, but has "
            f"shape {found.shape}."
        )
    return found


def _estimate(name, one, steps):
    """Values and standard errors along training."""
    if not (hasattr(one, "value") and hasattr(one, "standard_error")):
        raise ValueError(
            f"`{name}` must have the fields `value` and `standard_error`, but is of "
            f"type {type(one).__name__}. Of a list of estimates make one record: "
            "`jax.tree.map(lambda *a: jnp.stack(a), *estimates)`; without errors pass "
            "`Estimate(values, jnp.zeros_like(values), 1)`."
        )
    fields = ("value", "standard_error")
    return tuple(
        _along(f"`{name}.{field}`", getattr(one, field), steps) for field in fields
    )


def _draw_estimate(ax, steps, values, errors, number, label):
    """A line with two standard errors each way."""
    colour = _COLOURS[number % len(_COLOURS)]
    values = np.where(np.isfinite(values), values, np.nan)
    marker = "o" if len(steps) < 30 else None
    ax.plot(steps, values, color=colour, marker=marker, markersize=3, label=label)
    low, high = values - 2 * errors, values + 2 * errors
    ax.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)


def _comparison(spectrum):
    """The comparison with noise; raise unless there is one that can be drawn."""
    noise = spectrum.noise if isinstance(spectrum, WeightSpectrum) else spectrum
    if not isinstance(noise, NoiseComparison):
        raise ValueError(
            "`spectrum` must be one entry of what `tails.weight_spectra` returned, or "
            "what `tails.spectrum_against_marchenko_pastur` did, but is of type "
            f"{type(spectrum).__name__}."
        )
    shape = np.shape(noise.eigenvalues)
    if len(shape) != 1 or not np.all(np.isfinite(np.asarray(noise.eigenvalues))):
        raise ValueError(
            "`spectrum` must hold the finite eigenvalues of one matrix, but holds "
            f"shape {shape} with {int(np.sum(noise.num_nonfinite))} entries of the "
            "matrix that are not finite. Of a stack draw one."
        )
    return noise


def _draw_law(ax, noise, values):
    """The density of noise, its edge, and what is beyond; return the density."""
    ratio, variance = float(noise.ratio), float(noise.variance)
    low, edge = float(noise.lower_edge), float(noise.upper_edge)
    grid = np.linspace(low, edge, 402)[1:-1]
    law = marchenko_pastur_density(jnp.asarray(grid), ratio=ratio, variance=variance)
    # Over the eigenvalues that are not zero by shape.
    law = np.asarray(law) * max(ratio, 1.0)
    ax.plot(grid, law, color=THEORY, label="Marchenko-Pastur")
    ax.axvline(edge, color=NULL, ls="--", label=f"edge {edge:.3g}")
    num = int(noise.num_outliers)
    if num:
        places = np.sort(values)[::-1][:num]
        text = f"{num} outlier{'s' if num > 1 else ''}"
        heights = np.full(num, 0.02)
        style = {"color": ACCENT, "marker": "v", "ls": "", "markersize": 6}
        across = ax.get_xaxis_transform()
        ax.plot(places, heights, transform=across, label=text, **style)
    return law
