"""The law of data separation: what each layer contributes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import collapse, models, plot
from jaxtheory.portrait._numbers import compact, only, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    classification,
    lacking,
    nothing,
)

_STREAM = 2**30 + 4
_SIGNIFICANT = 0.05
_FEWEST_DROPS = 3
_SCALARS = ("ratio", "pearson_r", "r_squared", "drop_variation")


def read(plan, history):
    """The law before and after training, on training data, and what chance makes."""
    key = jax.random.fold_in(plan.key, _STREAM)
    final = _law(plan, history.state.params)
    values = jnp.asarray(final["values"])
    chance = collapse.random_drop_test(values, key=key).drop_variation
    return {
        "initial": _law(plan, history.state.initial_params),
        "final": final | {"p_value": float(chance.value)},
    }


def _law(plan, params):
    layers = models.features(plan.module, {"params": params}, plan.x_train)
    law = collapse.separation_law(layers, plan.y_train, num_classes=plan.num_classes)
    return {
        "layers": list(layers),
        "values": only(law.values),
        **{name: float(getattr(law, name)) for name in _SCALARS},
    }


def draw(numbers, ax):
    """Separation of every layer with the fitted line, before and after training."""
    laws = {}
    for label, name in (("before", "initial"), ("after training", "final")):
        held = numbers[name]
        law = collapse.fit_separation_law(jnp.asarray(held["values"]))
        laws[label] = law._replace(names=held["layers"])
    p_value = {"after training": numbers["final"]["p_value"]}
    plot.separation_law(laws, p_value=p_value, ax=ax)


def findings(numbers):
    """Whether every layer contributes the same factor."""
    law = numbers["final"]
    if not np.isfinite(law["ratio"]):
        return [lacking("after training the separation of a layer is not finite")]
    p_value, num_drops = law["p_value"], len(law["values"]) - 1
    text = (
        "The law of data separation expects every layer to multiply D by the same "
        f"factor; the fit says {law['ratio']:.2f} a layer (r = {law['pearson_r']:.3f}, "
        f"R² = {law['r_squared']:.3f}). A correlation is nearly free, so that what "
        f"counts is how equal the drops of log D are: the {num_drops} vary by "
        f"{law['drop_variation']:.2f} of their mean, where 0 is the exact law, and of "
        f"random drops {percent(p_value)} are as equal"
    )
    if law["ratio"] >= 1:
        return [Finding(text + ": layers do not separate the classes.", "disagrees")]
    if num_drops < _FEWEST_DROPS:
        return [Finding(text + ": too few layers to judge.", "measured")]
    if p_value < _SIGNIFICANT:
        return [Finding(text + ": more equal than chance.", "agrees")]
    return [Finding(text + ": not told apart from chance.", "measured")]


def rows(numbers):
    """The fitted law."""
    law = numbers["final"]
    fit = f"r {law['pearson_r']:.3f}, drops p = {law['p_value']:.2g}"
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
