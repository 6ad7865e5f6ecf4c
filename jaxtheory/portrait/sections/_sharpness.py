"""The edge of stability: sharpness against the threshold of the optimizer."""

import jax
import numpy as np

from jaxtheory import curvature
from jaxtheory._types import StatefulMeasurement
from jaxtheory.plot import ACCENT, THEORY, TRAIN
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._plan import ADAM
from jaxtheory.portrait._section import Row, Section, always, nothing
from jaxtheory.portrait.sections._edge import (
    NAMES,
    findings,
    has_range,
    moves,
    ratios,
    threshold_name,
)

# From the eigenvector of the record before, tens of steps ago; one product more is for
# the residual.
_ITERATIONS = 16
_NUM_BATCHES = 32
_STREAM, _FOLLOWED = 2**30 + 2, 2**30 + 4
# Those whose batch sharpness theory gives a place. The sharpness of all examples is
# drawn beside it.
_ON_BATCHES = ("sgd", "momentum")
_UNBATCHED = {"batch": "sharpness"}


def record(plan):
    """Sharpness of the training loss, as the optimizer at hand sees it."""
    kind = _kind(plan.config)
    followed = curvature.sharpness_over_threshold(
        plan.apply_fn,
        plan.loss_fn,
        plan.x_train,
        plan.y_train,
        **plan.edge,
        num_iterations=_ITERATIONS,
        preconditioner=_preconditioner if kind == "preconditioned" else None,
        key=jax.random.fold_in(plan.key, _FOLLOWED),
    )

    def curvatures(state, vector):
        value, vector = followed.measure(state, vector)
        result = {
            _UNBATCHED.get(kind, kind): value.sharpness,
            "threshold": value.threshold,
            "residual": value.residual,
            "converged": value.converged.astype(value.sharpness.dtype),
        }
        if kind == "batch":
            batch = _batch_sharpness(plan, state)
            result["batch"] = batch.value
            result["batch_error"] = batch.standard_error
        return result, vector

    return {"curvature": StatefulMeasurement(followed.init, curvatures)}


def _kind(config):
    """Which sharpness theory holds against a threshold."""
    if config.optimizer in ("adam", "adamw"):
        return "preconditioned"
    batches = config.batch_size is not None
    return "batch" if batches and config.optimizer in _ON_BATCHES else "sharpness"


def _preconditioner(state):
    return curvature.preconditioner(state.opt_state, **ADAM)


def _batch_sharpness(plan, state):
    # A stream of its own: those of training are counted from 0.
    key = jax.random.fold_in(jax.random.fold_in(plan.key, _STREAM), state.step)
    _, batch_key = jax.random.split(key)
    return curvature.batch_sharpness(
        plan.apply_fn,
        plan.loss_fn,
        state.params,
        plan.x_train,
        plan.y_train,
        batch_size=plan.config.batch_size,
        num_batches=_NUM_BATCHES,
        key=batch_key,
    )


def read(plan, history):
    """The curves, the threshold that belongs to them, and where they settle."""
    values, kind = history.records["curvature"], _kind(plan.config)
    steps, followed = np.asarray(history.steps), np.asarray(values[kind], float)
    low, thresholds = _thresholds(plan, kind, values)
    relative = followed / thresholds
    heights, errors = relative, np.zeros(len(relative))
    if kind == "batch":  # noisy: the largest of many estimates is no peak
        heights = _running_median(relative)
        errors = np.asarray(values["batch_error"]) / thresholds
    peak = int(np.nanargmax(heights)) if np.isfinite(heights).any() else 0
    return {
        "steps": [int(step) for step in steps],
        "sharpness": only(values[_UNBATCHED.get(kind, kind)]),
        "followed": only(followed),
        "kind": kind,
        "threshold": float(thresholds[-1]),
        "threshold_low": low,
        "thresholds": only(thresholds),
        "late_ratio": float(np.median(relative[len(relative) // 2 :])),
        "end_ratio": float(np.median(relative[-5:])),
        "peak_ratio": float(heights[peak]),
        "peak_error": float(errors[peak]),
        "peak_step": int(steps[peak]),
        "converged": float(np.mean(values["converged"])),
        "cross_entropy": plan.config.loss == "cross-entropy",
        "optimizer": plan.config.optimizer,
        "minibatch": plan.config.batch_size is not None,
        "learning_rate": float(plan.config.learning_rate),
        "diverged": history.diverged_at is not None,
    }


def _thresholds(plan, kind, values):
    """Where small batches settle, and where all others do at each record."""
    if plan.config.optimizer == "sam":  # it moves with the gradient
        moving = np.asarray(values["threshold"], float)
        return float(moving[-1]), moving
    edge = curvature.stability_threshold(**plan.edge)
    highest = edge.minibatch_high if kind == "batch" else edge.full_batch
    lowest = edge.minibatch_low if kind == "batch" else highest
    return float(lowest), np.full(len(values["threshold"]), float(highest))


def _running_median(values, width=5):
    """The median of each value and its neighbours; the ends repeat themselves."""
    padded = np.pad(values, width // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return np.median(windows, axis=1)


def draw(numbers, ax):
    """Sharpness over training beside the threshold."""
    name = NAMES[numbers["kind"]]
    if numbers["kind"] != "preconditioned":
        ax.plot(numbers["steps"], numbers["sharpness"], color=TRAIN, label="sharpness")
    if numbers["kind"] != "sharpness":
        ax.plot(numbers["steps"], numbers["followed"], color=ACCENT, label=name)
    edge = {"ls": "--", "color": THEORY}
    edge["label"] = f"threshold {threshold_name(numbers)}"
    if moves(numbers):
        ax.plot(numbers["steps"], numbers["thresholds"], **edge)
    else:
        ax.axhline(numbers["threshold"], **edge)
    if numbers["threshold_low"] < numbers["threshold"]:
        low = numbers["threshold_low"]
        ax.axhspan(low, numbers["threshold"], color=THEORY, alpha=0.08)
        ax.set_yscale("log")
    if np.nanmax(ratios(numbers), initial=0.0) > 5:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.legend()


def rows(numbers):
    """The settled ratio."""
    name = NAMES[numbers["kind"]]
    value, ratio = compact(numbers["followed"][-1]), numbers["late_ratio"]
    if has_range(numbers):
        small, large = numbers["threshold_low"], numbers["threshold"]
        edges = f"small batches {compact(small)}, large ones {compact(large)}"
        settled = compact(ratio * large)
        return [
            Row(f"{name} at the end", value, f"threshold {threshold_name(numbers)}"),
            Row(f"{name}, settled", settled, edges),
        ]
    settled = f"{ratio:.2f}" if ratio < 1e3 else compact(ratio)
    return [
        Row(f"{name} at the end", value, f"threshold {threshold_name(numbers)}"),
        Row(f"{name} over threshold", settled, "1 at the edge"),
    ]


SECTION = Section(
    "sharpness",
    "The edge of stability",
    always,
    record,
    nothing,
    read,
    draw,
    findings,
    rows,
)
