"""The gradient noise scale: which batch sizes average the noise away."""

import jax.numpy as jnp
import numpy as np

from jaxtheory import dynamics, plot
from jaxtheory._types import Estimate
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    is_curve,
    lacking,
    nothing,
)

_CHUNK = 250
# Changes by less than this factor decide nothing.
_CLEARLY = 1.5


def record(plan):
    """The exact noise scale of the training data."""

    def noise(state):
        return dynamics.noise.noise_scale(
            plan.apply_fn,
            plan.loss_fn,
            state.params,
            plan.x_train,
            plan.y_train,
            batch_size=_CHUNK,
        )

    return {"noise": noise}


def read(plan, history):
    """The curve and the batch size that was used."""
    values = history.records["noise"]
    n = len(plan.x_train)
    return {
        "steps": [int(step) for step in history.steps],
        "noise_scale": only(values.noise_scale),
        "standard_error": only(values.standard_error),
        "gradient_norm_squared": only(values.gradient_norm_squared),
        "covariance_trace": only(values.covariance_trace),
        "batch_size": plan.config.batch_size or n,
        "num_train": n,
        "loss": only(history.records["evaluation"]["train"]["loss"]),
    }


def draw(numbers, ax):
    """Noise scale over training, with two standard errors, beside the batch size."""
    value, error = (jnp.asarray(numbers[n]) for n in ("noise_scale", "standard_error"))
    scale = Estimate(value, error, numbers["num_train"])
    plot.noise_scale(numbers["steps"], scale, batch_size=numbers["batch_size"], ax=ax)


def findings(numbers):
    """Whether noise grows relative to the gradient, and whether the batch drowns it."""
    scale = np.asarray(numbers["noise_scale"])
    if not is_curve(scale):
        why = "the noise scale is not finite at the last record, or only there"
        return [lacking(why)]
    scale = scale[np.isfinite(scale)]
    start, end = scale[0], scale[-1]
    error = f" (standard error {compact(numbers['standard_error'][-1])})"
    text = (
        "Theory expects the noise scale tr Σ / |G|² to grow as the loss falls; it went "
        f"from {compact(start)} to {compact(end)} examples{error} while the loss went "
        f"from {compact(numbers['loss'][0])} to {compact(numbers['loss'][-1])}."
    )
    first = Finding(text, "measured")
    if numbers["loss"][-1] < numbers["loss"][0] / _CLEARLY:
        if end > _CLEARLY * start:
            first = Finding(text, "agrees")
        elif end < start / _CLEARLY:
            first = Finding(text, "disagrees")
    batch, n = numbers["batch_size"], numbers["num_train"]
    if batch == n:
        # At the edge of stability the gradient is the oscillation, not the progress.
        text = f"Every step uses all {n:,} examples: these steps carry no noise."
        return [first._replace(verdict="measured"), Finding(text, "measured")]
    share = float(np.mean(scale > batch))
    second = (
        f"Batches of {batch:,} are below the noise scale at {100 * share:.0f} % of the "
        "records, where a larger batch would still buy a better step."
    )
    return [first, Finding(second, "measured")]


def rows(numbers):
    """The final noise scale."""
    value = compact(numbers["noise_scale"][-1])
    return [Row("noise scale at the end", value, f"batch {numbers['batch_size']:,}")]


SECTION = Section(
    "noise", "Gradient noise", always, record, nothing, read, draw, findings, rows
)
