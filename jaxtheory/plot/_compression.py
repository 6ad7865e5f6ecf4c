"""What a network still gets right at each size that it was compressed to."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes

from jaxtheory._types import Estimate
from jaxtheory.batching import check_number, check_word
from jaxtheory.plot._style import (
    ACCENT,
    KERNEL,
    NULL,
    TEST,
    THEORY,
    TRAIN,
    check_named,
    drawn_into,
    label_round_numbers,
    vector,
)

Size: TypeAlias = Literal["bytes", "numbers", "share"]

_COLOURS = (TRAIN, TEST, KERNEL, ACCENT, NULL)
_LABELS = {"bytes": "bytes", "numbers": "numbers kept", "share": "share kept, %"}


def compression(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    whole: Any,
    tolerance: float = 0.01,
    size: Size = "bytes",
    metric: Literal["accuracy", "error"] = "accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw test accuracy (or error) against the size that is left, a line a method.

    The whole network is a horizontal line, and what is within the tolerance of it a
    band. Of each method a ring marks the smallest size in the band, and the legend says
    it. It was chosen by these data: what it promises on others is a bit less. The axis
    of sizes is logarithmic, and so is that of errors, as far as none is 0.

    Args:
        curves: By label, a pair of sizes and test accuracies in [0, 1]. Each is
            ``[r]``, or ``[s, r]`` of seeds, whose means are drawn, with an interval of
            two standard errors of the accuracy each way; or the accuracies an
            `Estimate` of arrays ``[r]``, drawn with its standard error.
        whole: The accuracy of the network that was compressed: a number, one for each
            seed ``[s]``, or an `Estimate`.
        tolerance: How much less than `whole`, in [0, 1), is no loss.
        size: What sizes are: ``"bytes"``, ``"numbers"``, or the ``"share"`` that is
            left of them, in (0, 1].
        metric: ``"error"`` where errors were given in place of accuracies. On their
            axis the tolerance is wide enough to be seen.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: first the lines of `curves`, in order, each with its ring if it has
        one; then the line of the whole network.

    Raises:
        ValueError: There is nothing to draw, sizes are not positive, what is drawn is
            not in [0, 1], or a pair does not fit together.

    Example:
        >>> from jaxtheory import plot
        >>> kept, accuracy = [0.01, 0.1, 0.5], [0.31, 0.96, 0.97]
        >>> ax = plot.compression(
        ...     {"entries": (kept, accuracy)}, whole=0.97, size="share"
        ... )
        >>> ax.get_legend_handles_labels()[1][0]
        'entries: 10 % kept'

    References:
        Han et al., arXiv:1510.00149, figure 6 (such a picture).
    """
    check_named("curves", curves)
    check_word("size", size, _LABELS)
    check_word("metric", metric, ("accuracy", "error"))
    check_number("tolerance", tolerance, lambda t: 0 <= t < 1, "in [0, 1)")
    lines = {
        label: _curve(f"`curves[{label!r}]`", pair) for label, pair in curves.items()
    }
    level, spread = _level(whole)
    limit = level - tolerance if metric == "accuracy" else level + tolerance
    unit = 100 if size == "share" else 1
    ax = drawn_into(ax)
    for index, (label, (sizes, values, errors)) in enumerate(lines.items()):
        inside = values >= limit if metric == "accuracy" else values <= limit
        chosen = np.flatnonzero(inside)[:1]
        if len(chosen):
            label = f"{label}: {_amount(sizes[chosen[0]], size)}"
        colour = _COLOURS[index % len(_COLOURS)]
        _draw_curve(ax, unit * sizes, 100 * values, 200 * errors, colour, label)
        if len(chosen):
            place = (unit * sizes[chosen], 100 * values[chosen])
            ax.plot(*place, "o", ms=11, mfc="none", color=colour, label="_")
    shown = f"whole network {100 * level:.1f} %"
    shown += f" ± {200 * spread:.1f}" if spread else ""
    ax.axhline(100 * level, color=THEORY, ls="--", lw=1.2, label=shown)
    ax.axhspan(100 * limit, 100 * level, color=NULL, alpha=0.2, lw=0)
    everything = [level, *(v for _, values, _ in lines.values() for v in values)]
    ax.set_xscale("log")
    label_round_numbers(ax.xaxis)
    if metric == "error" and min(everything) > 0:
        ax.set_yscale("log")
        label_round_numbers(ax.yaxis)
    spreads = any(errors.any() for *_, errors in lines.values())
    _label(ax, size, metric, tolerance, spreads)
    return ax


def _label(ax, size, metric, tolerance, spreads):
    """Axes and legend."""
    ax.set_xlabel(_LABELS[size])
    ax.set_ylabel(f"test {metric}, %" + (", ± 2 standard errors" if spreads else ""))
    points = f"{100 * tolerance:g} point" + ("" if tolerance == 0.01 else "s")
    # So that letters can be read where a line goes behind them.
    ground = {"frameon": True, "framealpha": 0.8, "edgecolor": "none"}
    ax.legend(title=f"smallest within {points} (rings)", **ground)


def _draw_curve(ax, sizes, values, errors, colour, label):
    """One method: its line, and intervals that stay on a logarithmic axis."""
    if errors.any():
        ends = (np.maximum(values - errors, values / 10), values + errors)
        ax.fill_between(sizes, *ends, color=colour, alpha=0.15, lw=0)
    ax.plot(sizes, values, ".-", color=colour, label=label)


def _curve(name, pair):
    """Sizes in ascending order, means and standard errors."""
    if len(pair) != 2:
        raise ValueError(
            f"{name} must be a pair, sizes and test accuracies, but has {len(pair)} "
            "entries."
        )
    sizes, values = np.asarray(pair[0], float), pair[1]
    if isinstance(values, Estimate):
        values, errors = (
            vector(name, v) for v in (values.value, values.standard_error)
        )
    else:
        values = np.asarray(values, float)
        errors = np.zeros(values.shape[-1:])
        if values.ndim == 2:
            values, errors = _over_seeds(name, values)
    sizes = sizes.mean(axis=0) if sizes.ndim == 2 else vector(name, sizes)
    if not sizes.shape == values.shape == errors.shape or values.ndim != 1:
        raise ValueError(
            f"{name} must have one accuracy for each of its {len(sizes)} sizes, but "
            f"they have shape {values.shape}, their standard errors {errors.shape}."
        )
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"{name} must have sizes that are positive and finite.")
    _check_shares(name, values)
    order = np.argsort(sizes, kind="stable")
    return sizes[order], values[order], errors[order]


def _level(whole):
    """The whole network's accuracy and its standard error."""
    if isinstance(whole, Estimate):
        level, spread = float(whole.value), float(whole.standard_error)
    else:
        values = np.atleast_1d(np.asarray(whole, float))
        level, spread = float(values.mean()), 0.0
        if len(values) > 1:
            level, spread = (float(v) for v in _over_seeds("`whole`", values))
    _check_shares("`whole`", np.array(level))
    return level, spread


def _over_seeds(name, values):
    """Mean and standard error over the first axis."""
    if len(values) < 2:
        raise ValueError(f"{name} must have at least two seeds, or no axis of them.")
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _check_shares(name, values):
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"{name} must have accuracies (or errors) in [0, 1], but one is not. Of "
            "per cent take a hundredth."
        )


def _amount(number, size):
    """A size in few characters."""
    if size == "share":
        return f"{100 * number:.3g} % kept"
    if size == "numbers":
        return f"{number:,.0f} numbers"
    if number < 10_000:
        return f"{number:,.0f} bytes"
    return f"{number / 1000:,.0f} kB"
