"""The law of data separation: what each layer contributes."""

import numpy as np

from jaxtheory import collapse, models
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    classification,
    lacking,
    nothing,
)
from jaxtheory.portrait._style import NULL, THEORY, TRAIN, compact, only

# Independent uniform drops have a coefficient of variation of 0.58; a law worth the
# name has drops much more equal than that, at a correlation that is nearly free.
_MOST_VARIATION = 0.3
_LEAST_CORRELATION = -0.98


def read(plan, history):
    """The law before and after training, on training data."""
    return {
        "initial": _law(plan, history.state.initial_params),
        "final": _law(plan, history.state.params),
    }


def _law(plan, params):
    layers = models.features(plan.module, {"params": params}, plan.x_train)
    law = collapse.separation_law(layers, plan.y_train, num_classes=plan.num_classes)
    scalars = (
        "log_slope",
        "log_intercept",
        "ratio",
        "pearson_r",
        "r_squared",
        "drop_variation",
    )
    return {
        "layers": list(layers),
        "values": only(law.values),
        **{name: float(getattr(law, name)) for name in scalars},
    }


def draw(numbers, ax):
    """Separation of every layer with the fitted line."""
    final = numbers["final"]
    index = np.arange(len(final["values"]))
    ax.plot(index, numbers["initial"]["values"], "o-", color=NULL, label="before")
    ax.plot(index, final["values"], "o", color=TRAIN, label="after training")
    if np.isfinite(final["ratio"]):
        line = np.exp(final["log_intercept"] + final["log_slope"] * index)
        label = f"fit, factor {final['ratio']:.2f} a layer"
        ax.plot(index, line, "--", color=THEORY, label=label)
    ax.set_yscale("log")
    ax.set_xticks(index, [name.replace("layer_", "") for name in final["layers"]])
    ax.set_xlabel("layer")
    ax.set_ylabel("separation fuzziness D")
    ax.legend()


def findings(numbers):
    """Whether every layer contributes the same factor."""
    law = numbers["final"]
    if not np.isfinite(law["ratio"]):
        return [lacking("after training the separation of a layer is not finite")]
    straight = law["pearson_r"] <= _LEAST_CORRELATION
    equal = law["drop_variation"] <= _MOST_VARIATION
    text = (
        "The law of data separation expects every layer to multiply D by the same "
        f"factor; the fit says {law['ratio']:.2f} a layer (r = {law['pearson_r']:.3f}, "
        f"R² = {law['r_squared']:.3f}), and the drops of log D vary by "
        f"{law['drop_variation']:.2f} of their mean (0 is the exact law, 0.58 is "
        "chance)."
    )
    return [Finding(text, "agrees" if straight and equal else "disagrees")]


def rows(numbers):
    """The fitted law."""
    law = numbers["final"]
    fit = f"r {law['pearson_r']:.3f}, drops vary {law['drop_variation']:.2f}"
    if not np.isfinite(law["ratio"]):
        fit = "no fit"
    return [Row("separation ratio a layer", compact(law["ratio"]), fit)]


SECTION = Section(
    "separation",
    "The law of data separation",
    classification,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
