"""The law of data separation: what each layer contributes."""

import numpy as np

from jaxtheory import collapse, models
from jaxtheory.plot import NULL, THEORY, TRAIN
from jaxtheory.portrait._numbers import compact, only, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    classification,
    lacking,
    nothing,
)

_SIGNIFICANT = 0.05
_FEWEST_DROPS = 3


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
        **_chance(len(layers) - 1, float(law.drop_variation)),
        **{name: float(getattr(law, name)) for name in scalars},
    }


def _chance(num_drops, variation):
    """What drops that are independent and uniform make of the same number of layers.

    A correlation is nearly free, and so is a small variation of few drops.
    """
    drops = np.random.default_rng(0).uniform(size=(20_000, num_drops))
    by_chance = drops.std(axis=1) / drops.mean(axis=1)
    return {
        "num_drops": num_drops,
        "chance_variation": float(np.median(by_chance)),
        "p_value": float(np.mean(by_chance <= variation)),
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
    text = (
        "The law of data separation expects every layer to multiply D by the same "
        f"factor; the fit says {law['ratio']:.2f} a layer (r = {law['pearson_r']:.3f}, "
        f"R² = {law['r_squared']:.3f}), and the {law['num_drops']} drops of log D vary "
        f"by {law['drop_variation']:.2f} of their mean, where 0 is the exact law and "
        f"{law['chance_variation']:.2f} the median of random drops, of which "
        f"{percent(law['p_value'])} are as equal"
    )
    if law["ratio"] >= 1:
        return [Finding(text + ": layers do not separate the classes.", "disagrees")]
    if law["num_drops"] < _FEWEST_DROPS:
        return [Finding(text + ": too few layers to judge.", "measured")]
    if law["p_value"] < _SIGNIFICANT:
        return [Finding(text + ": more equal than chance.", "agrees")]
    return [Finding(text + ": not told apart from chance.", "measured")]


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
