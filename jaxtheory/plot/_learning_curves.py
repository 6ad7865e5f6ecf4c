"""Learning curves: what theory predicts as lines, what was measured as points."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxtheory._types import Estimate
from jaxtheory.kernels import LearningCurve
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

_COLOURS = (TRAIN, TEST, KERNEL, ACCENT, THEORY, NULL)


def learning_curves(
    theory: Mapping[str, tuple[Any, Any]],
    experiment: Mapping[str, tuple[Any, Any]] | None = None,
    *,
    metric: str = "mean squared test error",
    ax: Axes | None = None,
) -> Axes:
    """Draw error against the number of examples, both axes logarithmic.

    Args:
        theory: By label, a pair of numbers of examples ``[r]`` and their errors: a
            `kernels.LearningCurve`, of which `test_error` is drawn, or numbers ``[r]``.
        experiment: By label, the same with measured errors: numbers, or an `Estimate`
            of arrays ``[r]``, drawn with an interval of two standard errors each way.
            A label of `theory` takes its colour.
        metric: What the error is, with its units; the label of the axis.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: first the lines of `theory`, in order, then the points.

    Raises:
        ValueError: There is nothing to draw, or a pair is not of one length.

    Example:
        >>> import numpy as np
        >>> from jaxtheory import kernels, plot
        >>> i, n = np.arange(1.0, 1001), np.array([50, 100, 200])
        >>> curve = kernels.learning_curve(i**-1.5, 1 / i, num_examples=n, ridge=0.01)
        >>> measured = np.array([0.0532, 0.0252, 0.0114])
        >>> ax = plot.learning_curves({"theory": (n, curve)}, {"GP": (n, measured)})
        >>> ax.lines[0].get_ydata().round(4).tolist()
        [0.0529, 0.0253, 0.0114]

    References:
        Simon, Dickens, Karkada, DeWeese, arXiv:2110.03922, figure 1 (such a picture).
    """
    experiment = {} if experiment is None else experiment
    check_named("theory", {**theory, **experiment})
    lines = [(k, *_pair(f"`theory[{k!r}]`", v)) for k, v in theory.items()]
    points = [(k, *_pair(f"`experiment[{k!r}]`", v)) for k, v in experiment.items()]
    labels = list(dict.fromkeys([*theory, *experiment]))
    colour = lambda label: _COLOURS[labels.index(label) % len(_COLOURS)]
    ax = drawn_into(ax)
    for label, n, errors, _ in lines:
        ax.plot(n, errors, color=colour(label), label=label)
    for label, n, errors, spread in points:
        ax.errorbar(
            n,
            errors,
            yerr=2 * spread,
            fmt="o",
            color=colour(label),
            markersize=4.5,
            capsize=2.5,
            label="_" if label in theory else label,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        label_round_numbers(axis)
    ax.set_xlabel("training examples $n$")
    with_bars = any(spread.any() for *_, spread in points)
    ax.set_ylabel(f"{metric}, ± 2 standard errors" if with_bars else metric)
    ax.legend(frameon=False)
    return ax


def _pair(name, pair):
    """Numbers of examples, errors, and standard errors (zero where there are none)."""
    if len(pair) != 2:
        raise ValueError(
            f"{name} must be a pair, numbers of examples and their errors, but has "
            f"{len(pair)} entries."
        )
    n, errors = pair
    if isinstance(errors, LearningCurve):
        errors = errors.test_error
    spread = np.zeros(np.shape(n))
    if isinstance(errors, Estimate):
        errors, spread = errors.value, vector(name, errors.standard_error)
    n, errors = vector(name, n), vector(name, errors)
    if not n.shape == errors.shape == spread.shape:
        raise ValueError(
            f"{name} must have one error for each of its {len(n)} numbers of examples, "
            f"but has {len(errors)}, with {len(spread)} standard errors."
        )
    return n, errors, spread
