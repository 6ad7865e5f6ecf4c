"""The tangent kernel on the way: does it stay, and if not, does it learn the labels."""

import jax
import jax.numpy as jnp

from jaxtheory import kernels, plot
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

_PROBES = 100
_CHUNK = 50


def record(plan):
    """The tangent kernel on the first training examples."""

    def probe_kernel(state):
        x = plan.x_train[:_PROBES]
        return kernels.empirical_ntk(plan.apply_fn, state.params, x, batch_size=_CHUNK)

    return {"probe_kernel": probe_kernel}


def read(plan, history):
    """How far the kernel moved, and how aligned it is."""
    recorded = jnp.asarray(history.records["probe_kernel"])
    targets = plan.targets(plan.y_train[:_PROBES])
    distance = jax.vmap(lambda k: kernels.kernel_distance(recorded[0], k))(recorded)
    alignment = jax.vmap(lambda k: kernels.centred_alignment(k, targets))(recorded)
    return {
        "steps": [int(step) for step in history.steps],
        "distance": only(distance),
        "alignment": only(alignment),
        "num_probes": len(targets),
    }


def draw(numbers, ax):
    """Alignment and distance over training; in lazy training neither moves."""
    plot.kernel_evolution(numbers, ax=ax)


def findings(numbers):
    """Whether the kernel stayed where it was, as it would at infinite width."""
    if not (is_curve(numbers["distance"]) and is_curve(numbers["alignment"])):
        why = "the kernel is not finite at the last record, or only there"
        return [lacking(why)]
    distance = numbers["distance"][-1]
    before, after = numbers["alignment"][0], numbers["alignment"][-1]
    moved = distance > 0.05
    regime = "lazy training"
    if moved:
        regime = "the kernel moved, though not towards the labels"
        if after > before:
            regime = "the kernel moved towards the labels: features were learned"
    elif abs(after - before) > 0.1:
        regime = "the distance is small, but the alignment moved: not lazy"
    text = (
        "At infinite width theory keeps the tangent kernel fixed (distance 0); here "
        f"its distance from the start is {compact(distance)} and its alignment with "
        f"the labels went from {before:.2f} to {after:.2f}: {regime}."
    )
    return [Finding(text, "agrees" if regime == "lazy training" else "disagrees")]


def rows(numbers):
    """Kernel distance."""
    distance = compact(numbers["distance"][-1])
    return [Row("kernel distance", distance, "0 in lazy training")]


SECTION = Section(
    "kernel_evolution",
    "The tangent kernel during training",
    always,
    record,
    nothing,
    read,
    draw,
    findings,
    rows,
)
