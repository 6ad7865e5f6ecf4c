"""Neural collapse during training, on training and on test data."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, Real
from matplotlib.axes import Axes

from jaxtheory.batching import check_number
from jaxtheory.collapse import CollapseStatistics
from jaxtheory.plot._style import (
    ACCENT,
    KERNEL,
    NULL,
    TEST,
    THEORY,
    TRAIN,
    beside,
    drawn_into,
    vector,
)

Steps: TypeAlias = Real[Array | np.ndarray, " r"] | Sequence[int | float]
Curves: TypeAlias = (
    CollapseStatistics | Sequence[CollapseStatistics] | Mapping[str, Any]
)

_MEASURES = ("nc1", "nc2", "nc3", "nc4")
_COLOURS = (TRAIN, TEST, KERNEL, ACCENT, NULL, THEORY)


def collapse_curves(
    steps: Steps,
    train: Curves,
    test: Curves | None = None,
    *,
    measures: Sequence[str] | None = None,
    floor: float = 1e-4,
    ax: Axes | None = None,
) -> Axes:
    """Draw measures of collapse during training, of two sets, on a logarithmic axis.

    Collapse on training data need not be seen on test data: draw both.

    Args:
        steps: Training steps, ``[r]``.
        train: `collapse.statistics` of the training data as `dynamics.train` recorded
            it (every field stacked over steps), a list of what it returned at each
            step, or curves ``[r]`` by name. Where a number is not finite nothing is
            drawn.
        test: The same of the test data, drawn dashed.
        measures: Names of the fields to draw; None takes ``nc1`` to ``nc4``, as many of
            them as `train` holds.
        floor: Height at which smaller values are drawn, because 0 (which `nc4` reaches)
            has no place on a logarithmic axis.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: first a line for each measure of `train`, then those of `test`.

    Raises:
        ValueError: A measure is missing, or of another length than `steps`, or `train`
            or `test` is something else.

    Example:
        >>> from jaxtheory import plot
        >>> train = {"nc1": [2.0, 0.5, 0.1], "nc4": [0.5, 0.1, 0.0]}
        >>> ax = plot.collapse_curves([0, 10, 20], train)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['NC1', 'NC4']
        >>> ax.lines[1].get_ydata().tolist()
        [0.5, 0.1, 0.0001]

    References:
        Papyan, Han & Donoho, arXiv:2008.08186, figures 2 to 7 (such curves); Hui,
        Belkin & Nakkiran, arXiv:2202.08384 (on which data).
    """
    steps_ = vector("`steps`", steps)
    check_number("floor", floor, lambda v: 0 < v < np.inf, "a positive number")
    held = {"train": _fields("train", train)}
    if test is not None:
        held["test"] = _fields("test", test)
    if measures is None:
        measures = [name for name in _MEASURES if name in held["train"]]
    curves = {
        (split, name): _curve(fields, split, name, len(steps_))
        for split, fields in held.items()
        for name in _some(measures)
    }
    ax = drawn_into(ax)
    for (split, name), values in curves.items():
        colour = _COLOURS[list(measures).index(name) % len(_COLOURS)]
        label = _title(name) if split == "train" else "_"
        line = "-" if split == "train" else "--"
        shown = np.where(np.isfinite(values), np.maximum(values, floor), np.nan)
        ax.plot(steps_, shown, line, color=colour, label=label)
    if test is not None:
        for split, line in (("train", "-"), ("test", "--")):
            ax.plot([], [], line, color=THEORY, lw=1.2, label=split)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("0 is collapsed")
    beside(ax)
    return ax


def _fields(split, curves):
    """What there is to draw, by name."""
    if isinstance(curves, Mapping):
        named = curves
    elif isinstance(curves, CollapseStatistics):
        named = curves._asdict()
    elif isinstance(curves, Sequence) and all(
        isinstance(one, CollapseStatistics) for one in curves
    ):
        named = _stacked(curves)
    else:
        raise ValueError(
            f"`{split}` must be what `collapse.statistics` returned, stacked over "
            "steps or in a list, or curves by name, but is of type "
            f"{type(curves).__name__}."
        )
    return {name: value for name, value in named.items() if value is not None}


def _stacked(statistics):
    """Curves of the numbers that every step has."""
    columns = zip(*statistics, strict=True)
    return {
        name: None if any(v is None for v in values) else np.asarray(values)
        for name, values in zip(CollapseStatistics._fields, columns, strict=False)
    }


def _some(measures):
    if not measures or isinstance(measures, str):
        raise ValueError(
            "`measures` must name at least one field to draw, such as ['nc1'], but is "
            f"{measures!r}; `train` must hold it."
        )
    return measures


def _curve(fields, split, name, count):
    """One curve, of one number a step."""
    if name not in fields:
        raise ValueError(
            f"`{split}` must hold a curve {name!r}, but holds {sorted(fields)}. What "
            "needs a classifier is there only where `statistics` was given one."
        )
    values = vector(f"`{split}[{name!r}]`", fields[name])
    if len(values) != count:
        raise ValueError(
            f"`{split}[{name!r}]` must have one number for each of the {count} steps, "
            f"but has {len(values)}."
        )
    return values


def _title(name):
    """A field's name as people write it: ``NC2 equinorm``."""
    first, *rest = name.split("_")
    return " ".join([first.upper() if len(first) < 5 else first, *rest])
