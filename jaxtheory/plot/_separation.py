"""Pictures of laws over layers: what was measured, and the line through it."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes

from jaxtheory._types import Estimate
from jaxtheory.batching import check_number
from jaxtheory.collapse import LayerLine, SeparationLaw
from jaxtheory.plot._style import (
    ACCENT,
    KERNEL,
    NULL,
    TEST,
    TRAIN,
    check_named,
    drawn_into,
    label_round_numbers,
    vector,
)

Number: TypeAlias = Real[ArrayLike, ""] | float
InputLayer: TypeAlias = Literal["include", "exclude"]

# Of several, the first is what the others are held against.
_COLOURS = (NULL, TRAIN, TEST, KERNEL, ACCENT)
_SHORT = 6  # letters of a layer's name that fit under it


def separation_law(
    laws: SeparationLaw | Mapping[str, SeparationLaw],
    *,
    p_value: Number | Mapping[str, Number] | None = None,
    input_layer: InputLayer = "include",
    quantity: str = "separation fuzziness D",
    ax: Axes | None = None,
) -> Axes:
    """Draw the separation ``D`` of each layer with the fitted line, on a log axis.

    The legend has the factor by which a layer multiplies ``D`` and the correlation. One
    near -1 is nearly free; what says whether the drops of ``log D`` are more equal than
    chance is the p-value of `collapse.random_drop_test`.

    Args:
        laws: What `collapse.separation_law` (or `fit_separation_law`, or
            `next_token_law`) returned. Several by label, of the same layers, such as
            ``{"before": ..., "after": ...}``.
        p_value: ``random_drop_test(law.values, ...).drop_variation.value``, for the
            legend; by label if laws are, where some may be missing.
        input_layer: What the fit was made with: "exclude" (the default of
            `next_token_law`) begins the line at the second layer.
        quantity: What the values are; the label of the axis.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: for each law the points, then its line. A law that is not finite has
        points only where it is.

    Raises:
        ValueError: `laws` is something else, empty or of different lengths, or a
            p-value is not one or has no law.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import collapse, plot
        >>> law = collapse.fit_separation_law(jnp.array([8.0, 4.0, 2.0, 1.0]))
        >>> ax = plot.separation_law(law, p_value=0.03)
        >>> ax.get_legend().get_texts()[1].get_text()
        'factor 0.50, r = -1.000, p = 0.03'

    References:
        He & Su, arXiv:2210.17020, figure 1 (such a picture).
    """
    named = laws if isinstance(laws, Mapping) else {"": laws}
    check_named("laws", named)
    for label, law in named.items():
        if not isinstance(law, SeparationLaw):
            raise ValueError(
                f"`laws` must be what `collapse.separation_law` returned, but {label!r}"
                f" is of type {type(law).__name__}. A `LayerLine` is for `layer_line`."
            )
    chances = _p_values(p_value, named)
    first = next(iter(named.values()))
    count = len(vector("`laws`", first.values))
    start = _start(input_layer)
    ax = drawn_into(ax)
    for place, (label, law) in enumerate(named.items()):
        colour = _COLOURS[place % len(_COLOURS)] if len(named) > 1 else TRAIN
        values = _as_many(f"`laws[{label!r}]`", law.values, count)
        text = f"factor {float(law.ratio):.2f}, r = {float(law.pearson_r):.3f}"
        if label in chances:
            text += f", p = {chances[label]:.2g}"
        line = (float(law.log_slope), float(law.log_intercept), text)
        _draw(ax, values, line, label or "measured", colour, "log", start)
    _finish(ax, first.names, count, quantity)
    return ax


def layer_line(
    values: Real[ArrayLike, " l"] | Sequence[float],
    line: LayerLine,
    *,
    scale: Literal["linear", "log"] = "linear",
    input_layer: InputLayer = "include",
    names: Sequence[str] | None = None,
    quantity: str = "value",
    ax: Axes | None = None,
) -> Axes:
    """Draw one number a layer with the line through it, or through its logarithm.

    Args:
        values: One number for each layer, in network order.
        line: What `collapse.fit_layer_line` made of them.
        scale: What it was made with: "linear", or "log" for a logarithmic axis.
        input_layer: What it was made with: "exclude" begins the line at the second
            layer.
        names: Name of each layer; None numbers them from 0.
        quantity: What the values are, with units; the label of the axis.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: first the points, then the line, if it is finite.

    Raises:
        ValueError: `line` is something else, an option is not one of its words, or
            there is not one name for each value.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import collapse, plot
        >>> values = jnp.array([1.0, 0.8, 0.6, 0.4])
        >>> ax = plot.layer_line(values, collapse.fit_layer_line(values))
        >>> ax.get_legend().get_texts()[1].get_text()
        'slope -0.2, r = -1.000'

    References:
        Wang et al., arXiv:2311.02960, figure 1 (such a picture).
    """
    if not isinstance(line, LayerLine):
        raise ValueError(
            "`line` must be what `collapse.fit_layer_line` returned, but is of type "
            f"{type(line).__name__}. A `SeparationLaw` is for `separation_law`."
        )
    if scale not in ("linear", "log"):
        raise ValueError(f'`scale` must be "linear" or "log", but was {scale!r}.')
    numbers = vector("`values`", values)
    if names is not None and len(names) != len(numbers):
        raise ValueError(
            f"`names` must have one entry for each of the {len(numbers)} layers, but "
            f"has {len(names)}."
        )
    start = _start(input_layer)
    slope, correlation = float(line.slope), float(line.pearson_r)
    change = f"slope {slope:.3g}"
    if scale == "log":
        change = f"factor {np.exp(slope):.2f}"
    text = f"{change}, r = {correlation:.3f}"
    ax = drawn_into(ax)
    fit = (slope, float(line.intercept), text)
    _draw(ax, numbers, fit, "measured", TRAIN, scale, start)
    _finish(ax, names, len(numbers), quantity)
    return ax


def _draw(ax, values, line, label, colour, scale, start):
    """Points, and the line through them."""
    slope, intercept, text = line
    index = np.arange(len(values))
    log = scale == "log"
    shown = np.isfinite(values) & ((values > 0) | (not log))
    ax.plot(index, np.where(shown, values, np.nan), "o", color=colour, label=label)
    if np.isfinite(slope):
        ends = intercept + slope * index[start:]
        fitted = np.exp(ends) if log else ends
        ax.plot(index[start:], fitted, "--", color=colour, lw=1.3, label=text)
    if log:
        ax.set_yscale("log")


def _finish(ax, names, count, quantity):
    """Names of layers, and what was measured."""
    shown = [str(i) for i in range(count)] if names is None else list(names)
    shown = [name.replace("layer_", "") for name in shown]
    ax.set_xticks(range(count), shown)
    if max(map(len, shown)) > _SHORT:
        ax.tick_params("x", rotation=30)
    ax.set_xlabel("layer")
    ax.set_ylabel(quantity)
    if ax.get_yscale() == "log":
        label_round_numbers(ax.yaxis)
    ax.legend()


def _start(input_layer):
    if input_layer not in ("include", "exclude"):
        raise ValueError(
            f'`input_layer` must be "include" or "exclude", but was {input_layer!r}.'
        )
    return int(input_layer == "exclude")


def _as_many(name, values, count):
    found = vector(name, values)
    if len(found) != count:
        raise ValueError(
            f"{name} must have as many layers as the first law, {count}, but has "
            f"{len(found)}."
        )
    return found


def _p_values(p_value, named) -> dict[str, float]:
    """The p-value of each law that has one."""
    if p_value is None:
        return {}
    if not isinstance(p_value, Mapping):
        if len(named) > 1:
            raise ValueError(
                f"`p_value` must say which of the laws {sorted(named)} it is of: pass "
                "a mapping with the same labels."
            )
        p_value = dict.fromkeys(named, p_value)
    extra = sorted(set(p_value) - set(named))
    if extra:
        raise ValueError(
            f"`p_value` must have labels of `laws`, {sorted(named)}, but has {extra}."
        )
    within = lambda v: 0 <= v <= 1 or v != v
    for value in p_value.values():
        if isinstance(value, Estimate):
            raise ValueError(
                "`p_value` must be a number, but is an `Estimate`. Pass its `value`."
            )
        check_number("p_value", value, within, "between 0 and 1, or NaN")
    return {label: float(np.asarray(value)) for label, value in p_value.items()}
