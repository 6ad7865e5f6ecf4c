"""Tails of the gradient noise: an index of the tail, and of a law of stable sums."""

from math import isfinite
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import dynamics, plot
from jaxtheory._types import Estimate
from jaxtheory.dynamics import tails
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_STREAM = 2**30 + 5
_CHUNK = 250
_DIM = 8
_SHARE = 20  # the largest of so many are the tail
_ERRORS = 2
# Of a stable law below, Hill's index of the largest twentieth is near; from there to 2
# it is well above.
_NEAR = 1.6


def _num_tail(plan):
    """How many examples are the tail."""
    return max(len(plan.x_train) // _SHARE, 2)


def record(plan):
    """Indices of the noise of single examples' gradients, along random directions."""
    project, shuffle = jax.random.split(jax.random.fold_in(plan.key, _STREAM))
    num_tail = _num_tail(plan)

    def measure(state):
        noise = dynamics.noise.projected_noise(
            plan.apply_fn,
            plan.loss_fn,
            state.params,
            plan.x_train,
            plan.y_train,
            dim=_DIM,
            key=jax.random.clone(project),
            batch_size=_CHUNK,
        )
        index = tails.log_moment(noise, key=jax.random.clone(shuffle))
        return {"hill": tails.hill(noise, num_tail=num_tail), "log_moment": index}

    return {"tails": measure}


def read(plan, history):
    """Both indices over training."""
    values = history.records["tails"]
    return {
        "steps": [int(step) for step in history.steps],
        "num_tail": _num_tail(plan),
        **{
            name: {
                "value": only(values[name].value),
                "standard_error": only(values[name].standard_error),
            }
            for name in ("hill", "log_moment")
        },
    }


def draw(numbers, ax):
    """Both over training, with two standard errors, beside 2."""
    named = {"tail (Hill)": "hill", "as a stable law (log-moments)": "log_moment"}
    curves: Any = {
        label: Estimate(
            jnp.asarray(numbers[name]["value"]),
            jnp.asarray(numbers[name]["standard_error"]),
            1,
        )
        for label, name in named.items()
    }
    plot.tail_index(numbers["steps"], curves, ax=ax)


def _end(numbers, name):
    """The index at the end and two standard errors."""
    one = numbers[name]
    return one["value"][-1], _ERRORS * one["standard_error"][-1]


def findings(numbers):
    """Whether the variance is finite, and whether the noise can be a stable law."""
    (tail, error), (stable, width) = (_end(numbers, n) for n in ("hill", "log_moment"))
    if not all(map(isfinite, (tail, error, stable, width))):
        return [lacking("the noise has no index at the last record")]
    says = "on which side of 2 is not decided"
    if tail - error > 2:
        says = "so their variance is finite"
    elif tail + error < 2:
        says = "so their variance is infinite, as far as these examples tell"
    first = Finding(
        f"The {numbers['num_tail']} largest of the gradient noises of single examples "
        f"fall off with an index of {tail:.2f} ± {error:.2f} at the end (two standard "
        f"errors), {says}.",
        "measured",
    )
    text = (
        "Heavy-tailed theory takes gradient noise for a stable law; its index would be "
        f"{stable:.2f} ± {width:.2f}"
    )
    if stable + width >= 2:
        return [first, Finding(f"{text}: not told apart from a Gaussian.", "measured")]
    if stable + width < _NEAR and tail - error > 2:
        why = "a stable law of this index has as heavy a tail, and this tail is light"
        text += f", but {why}: examples differ in scale."
        return [first, Finding(text, "disagrees")]
    if stable + width < _NEAR and abs(tail - stable) <= np.hypot(error, width):
        return [first, Finding(f"{text}, as its tail.", "agrees")]
    why = "which the tail does not decide"
    if stable + width >= _NEAR:
        why = "too near 2 for the tail to decide"
    return [first, Finding(f"{text}, {why}.", "measured")]


def rows(numbers):
    """The tail index at the end."""
    (tail, error), (stable, _) = (_end(numbers, n) for n in ("hill", "log_moment"))
    value = f"{compact(tail)} ± {compact(error)}"
    return [
        Row("tail index of gradient noise", value, f"as a stable law {compact(stable)}")
    ]


SECTION = Section(
    "tails",
    "Tails of gradient noise",
    always,
    record,
    nothing,
    read,
    draw,
    findings,
    rows,
)
