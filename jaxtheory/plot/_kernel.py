"""Pictures of a kernel: its spectrum, and how it changes during training."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.axes import Axes

from jaxtheory.dynamics import History
from jaxtheory.kernels import SpectrumSummary, spectrum_summary
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

Spectrum: TypeAlias = SpectrumSummary | Float[ArrayLike, "..."]

_COLOURS = (NULL, KERNEL, TRAIN, TEST, ACCENT, THEORY)
_CURVES = ("alignment", "distance")


def kernel_spectrum(
    spectra: Spectrum | Mapping[str, Spectrum], *, ax: Axes | None = None
) -> Axes:
    """Draw eigenvalues of kernels against their index, both axes logarithmic.

    The dotted line at each curve is its effective dimension, ``tr K (K + ridge I)^-1``
    at the ridge of its summary. Eigenvalues that count as zero there (at or below
    ``10 eps`` of the largest) have no place on a logarithmic axis and are left out.

    Args:
        spectra: A summary (`kernels.spectrum_summary`, with the ridge that the
            dimension is wanted at) or eigenvalues ``[n]`` in any order, of which the
            dimension is that without ridge, the numerical rank. Several by label, such
            as ``{"start": ..., "end": ...}``.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, one line for each spectrum; a spectrum that is not finite is only
        named in the legend.

    Raises:
        ValueError: Eigenvalues are not a vector, or there is nothing to draw.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels, plot
        >>> kernel = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
        >>> ax = plot.kernel_spectrum(kernels.spectrum_summary(kernel, ridge=1.0))
        >>> ax.lines[0].get_ydata().tolist()
        [4.0, 2.0, 1.0]
        >>> ax.get_legend().get_texts()[0].get_text()
        'effective dimension 1.97'

    References:
        Zhang, Neural Computation 17 (2005) (effective dimension).
    """
    named = spectra if isinstance(spectra, Mapping) else {"": spectra}
    check_named("spectra", named)
    found = {label: _summary(label, spectrum) for label, spectrum in named.items()}
    ax = drawn_into(ax)
    for place, (label, summary) in enumerate(found.items()):
        _draw_spectrum(ax, label, summary, _COLOURS[place % len(_COLOURS)])
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("index of the eigenvalue, largest first")
    ax.set_ylabel("eigenvalue (units of the kernel)")
    ax.legend(frameon=False, loc="lower left")  # spectra fall
    return ax


def _summary(label, spectrum):
    if isinstance(spectrum, SpectrumSummary):
        return spectrum
    name = f"`spectra[{label!r}]`" if label else "`spectra`"
    if isinstance(spectrum, tuple) or np.ndim(spectrum) == 2:
        is_tuple = isinstance(spectrum, tuple)
        was = type(spectrum).__name__ if is_tuple else f"of shape {np.shape(spectrum)}"
        raise ValueError(
            f"{name} must be a summary or a vector of eigenvalues, but is "
            f"{was}. Pass `kernels.spectrum_summary(kernel)`."
        )
    return spectrum_summary(jnp.asarray(vector(name, spectrum)))


def _draw_spectrum(ax, label, summary, colour):
    values = np.asarray(summary.eigenvalues)
    prefix = f"{label}: " if label else ""
    dimension = float(summary.effective_dimension)
    if not np.isfinite(dimension):
        ax.plot([], [], color=colour, label=f"{prefix}not finite")
        return
    kept = values[values > 10 * np.finfo(values.dtype).eps * np.max(np.abs(values))]
    index = np.arange(1, len(kept) + 1)
    marker = "o" if len(kept) < 30 else None
    text = f"{prefix}effective dimension {dimension:.3g}"
    ax.plot(index, kept, color=colour, marker=marker, markersize=3, label=text)
    if dimension > 0:
        ax.axvline(dimension, color=colour, ls=":", lw=1.2)


def kernel_evolution(
    history: History | Mapping[str, Any], *, ax: Axes | None = None
) -> Axes:
    """Draw a kernel's alignment with the labels and its distance from the start.

    Both over the steps of training, each on a scale of its own: the alignment on the
    left, which is at most 1; on the right the distance, which begins at 0 and may stay
    as small as ``1e-4`` in lazy training. Where the alignment is never negative, both
    zeros are at the bottom.

    Args:
        history: What `dynamics.train` returned with the scalars ``"alignment"`` and
            ``"distance"`` recorded, or a mapping with these and ``"steps"``, of one
            length: `kernels.centred_alignment` with the labels,
            `kernels.kernel_distance` from the initial kernel.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes of the alignment. Those of the distance are its twin, the last of
        ``ax.figure.axes``.

    Raises:
        ValueError: A curve is missing, no vector, or of another length than the steps.

    Example:
        >>> from jaxtheory import plot
        >>> records = {"steps": [0, 10], "alignment": [0.2, 0.5], "distance": [0, 0.1]}
        >>> ax = plot.kernel_evolution(records)
        >>> [a.get_ylabel() for a in ax.figure.axes]
        ['alignment with the labels', 'distance from the initial kernel']

    References:
        Baratin et al., arXiv:2008.00938 (alignment during training); Fort et al.,
        arXiv:2010.15110 (kernel distance).
    """
    steps, alignment, distance = _curves(history)
    ax = drawn_into(ax)
    ax.plot(steps, alignment, color=KERNEL, label="alignment with the labels")
    ax.set_xlabel("step")
    low = np.min(alignment[np.isfinite(alignment)], initial=0.0)
    ax.set_ylim(1.05 * low, 1.05)
    twin = ax.twinx()
    twin.plot(steps, distance, color=TEST, label="distance from the initial kernel")
    high = np.max(distance[np.isfinite(distance)], initial=0.0)
    twin.set_ylim(0, 1.05 * high if high > 0 else 1.05)
    twin.grid(visible=False)
    twin.spines[["left", "top", "bottom"]].set_visible(False)
    twin.spines["right"].set_visible(True)
    for side, spine in ((ax, "left"), (twin, "right")):
        (line,) = side.lines
        colour = line.get_color()
        side.set_ylabel(str(line.get_label()), color=colour)
        side.tick_params(axis="y", colors=colour)
        side.spines[spine].set_color(colour)
    return ax


def _curves(history):
    """Steps, alignment and distance, of one length."""
    if isinstance(history, History):
        records = {**history.records, "steps": history.steps}
    else:
        records = history
    missing = [name for name in ("steps", *_CURVES) if name not in records]
    if missing:
        raise ValueError(
            f"`history` must hold {', '.join(missing)}, but holds {sorted(records)}. "
            "Record `kernels.centred_alignment` as alignment and "
            "`kernels.kernel_distance` as distance; if both are in one record, pass "
            '{"steps": history.steps, **history.records[name]}.'
        )
    steps = vector("`steps`", records["steps"])
    curves = [vector(f"`{name}`", records[name]) for name in _CURVES]
    for name, curve in zip(_CURVES, curves, strict=True):
        if curve.shape != steps.shape:
            raise ValueError(
                f"`{name}` must have one number for each of the {len(steps)} steps, "
                f"but has {len(curve)}."
            )
    return steps, *curves
