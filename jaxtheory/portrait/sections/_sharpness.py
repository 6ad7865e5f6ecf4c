"""The edge of stability: sharpness against the threshold of the optimizer."""

import jax
import numpy as np

from jaxtheory import curvature, linalg
from jaxtheory.plot import ACCENT, THEORY, TRAIN
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._plan import ADAM
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    is_curve,
    lacking,
    nothing,
)

_ITERATIONS = 30
_NUM_BATCHES = 32
_STREAM = 2**30 + 2
# Published runs hover within a few percent of the threshold; batch sharpness, an
# average over noisy ratios, within some tens (the tolerances of the literature's own
# reproductions: 0.95 to 1.05 for full batches, 0.7 to 1.05 for small ones).
_AT_EDGE = {"full": (0.9, 1.1), "batch": (0.7, 1.1)}


def record(plan):
    """Sharpness of the training loss, and what the optimizer at hand sees of it."""
    config = plan.config

    def curvatures(state):
        # A stream of its own: those of training are counted from 0.
        key = jax.random.fold_in(jax.random.fold_in(plan.key, _STREAM), state.step)
        lanczos_key, batch_key = jax.random.split(key)
        arguments = (
            plan.apply_fn,
            plan.loss_fn,
            state.params,
            plan.x_train,
            plan.y_train,
        )
        operator = curvature.hessian(*arguments)
        top = linalg.top_eigenpairs(
            operator, key=lanczos_key, num_iterations=_ITERATIONS
        )
        result = {"sharpness": top.values[0], "residual": top.residuals[0]}
        if config.optimizer == "adam":
            diagonal = curvature.preconditioner(state.opt_state, **ADAM)
            scaled = curvature.preconditioned(operator, diagonal)
            top = linalg.top_eigenpairs(
                scaled, key=batch_key, num_iterations=_ITERATIONS
            )
            result["preconditioned"] = top.values[0]
        elif config.batch_size is not None:
            batch = curvature.batch_sharpness(
                *arguments,
                batch_size=config.batch_size,
                num_batches=_NUM_BATCHES,
                key=batch_key,
            )
            result["batch"] = batch.value
            result["batch_error"] = batch.standard_error
        return result

    return {"curvature": curvatures}


def read(plan, history):
    """The curves, the threshold that belongs to them, and where they settle."""
    values = history.records["curvature"]
    kind = next(k for k in ("preconditioned", "batch", "sharpness") if k in values)
    steps, followed = np.asarray(history.steps), np.asarray(values[kind], float)
    edge = plan.threshold
    single = kind != "batch" or edge.minibatch_low == edge.minibatch_high
    threshold = edge.minibatch_high if kind == "batch" else edge.full_batch
    late = followed[len(followed) // 2 :]
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.abs(values["residual"] / values["sharpness"])
    heights, errors = followed, np.zeros(len(followed))
    if kind == "batch":  # noisy: the largest of many estimates is no peak
        heights, errors = _running_median(followed), np.asarray(values["batch_error"])
    peak = int(np.nanargmax(heights)) if np.isfinite(heights).any() else 0
    return {
        "steps": [int(step) for step in steps],
        "sharpness": only(values["sharpness"]),
        "followed": only(followed),
        "kind": kind,
        "threshold": threshold,
        "threshold_low": threshold if single else edge.minibatch_low,
        "late_ratio": float(np.median(late)) / threshold,
        "end_ratio": float(np.median(followed[-5:])) / threshold,
        "peak_ratio": float(heights[peak]) / threshold,
        "peak_error": float(errors[peak]) / threshold,
        "peak_step": int(steps[peak]),
        "residual": float(np.median(residual)),
        "cross_entropy": plan.config.loss == "cross-entropy",
        "optimizer": plan.config.optimizer,
        "minibatch": plan.config.batch_size is not None,
        "learning_rate": float(plan.config.learning_rate),
        "diverged": history.diverged_at is not None,
    }


def _running_median(values, width=5):
    """The median of each value and its neighbours; the ends repeat themselves."""
    padded = np.pad(values, width // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return np.median(windows, axis=1)


def draw(numbers, ax):
    """Sharpness over training beside the threshold."""
    name = _NAMES[numbers["kind"]]
    if numbers["kind"] != "preconditioned":
        ax.plot(numbers["steps"], numbers["sharpness"], color=TRAIN, label="sharpness")
    if numbers["kind"] != "sharpness":
        ax.plot(numbers["steps"], numbers["followed"], color=ACCENT, label=name)
    label = f"threshold {_threshold_name(numbers)}"
    ax.axhline(numbers["threshold"], ls="--", color=THEORY, label=label)
    if numbers["threshold_low"] < numbers["threshold"]:
        low = numbers["threshold_low"]
        ax.axhspan(low, numbers["threshold"], color=THEORY, alpha=0.08)
        ax.set_yscale("log")
    shown = [v for v in numbers["followed"] if np.isfinite(v)] + [0.0]
    if max(shown) > 5 * numbers["threshold"]:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.legend()


_NAMES = {
    "sharpness": "sharpness",
    "batch": "batch sharpness",
    "preconditioned": "preconditioned sharpness",
}


def _threshold_name(numbers):
    low, high, eta = (
        numbers[k] for k in ("threshold_low", "threshold", "learning_rate")
    )
    if low < high:
        between = f"({compact(low * eta)}/η to {compact(high * eta)}/η)"
        return f"{compact(low)} to {compact(high)} {between}"
    return f"{compact(high * eta)}/η = {compact(high)}"


def findings(numbers):
    """Whether the right sharpness settles at the right threshold."""
    if not is_curve(numbers["followed"]):
        name = _NAMES[numbers["kind"]]
        return [lacking(f"{name} is not finite at the last record, or only there")]
    if numbers["diverged"]:
        first = _unstable(numbers)
    else:
        first = (_range if _has_range(numbers) else _edge)(numbers)
    if numbers["kind"] != "preconditioned" or not numbers["minibatch"]:
        return [first]
    text = (
        "The threshold is that of full batches; for Adam on minibatches no theory "
        "gives one, so this is a trend."
    )
    return [first._replace(verdict="measured"), Finding(text, "measured")]


def _unstable(numbers):
    """Where a run that diverged stood when it was last seen."""
    name, ratio = _NAMES[numbers["kind"]], numbers["followed"][-1]
    ratio /= numbers["threshold"]
    edge = _threshold_name(numbers | {"threshold_low": numbers["threshold"]})
    text = (
        f"Theory expects steps to be unstable while {name} is above "
        f"{edge}; at the last record before training diverged it was {compact(ratio)} "
        "times that."
    )
    return Finding(text, "measured")


def _has_range(numbers):
    """Small and large batches have edges of their own."""
    return numbers["threshold_low"] < numbers["threshold"]


def _range(numbers):
    """Which of two edges, that of small or that of large batches, it settles at."""
    name, eta = _NAMES[numbers["kind"]], numbers["learning_rate"]
    small, large = numbers["threshold_low"], numbers["threshold"]
    value = numbers["late_ratio"] * large
    low, high = _AT_EDGE["batch"]
    text = (
        f"Theory expects {name} at {compact(small * eta)}/η = {compact(small)} for "
        f"small batches and {compact(large * eta)}/η = {compact(large)} for large "
        f"ones; it settles at {compact(value)}, {compact(value / small)} times the "
        f"first and {compact(value / large)} times the second: "
    )
    start = next(filter(np.isfinite, numbers["followed"]))
    if value > high * large:
        return Finding(text + "above both.", "disagrees")
    for edge, size in ((large, "large"), (small, "small")):
        band = (low * edge, (high if edge == large else 2 - low) * edge)
        if band[0] <= value <= band[1]:
            began = band[0] <= start <= band[1]
            note = " where it began" if began else ""
            where = f"the edge of {size} batches{note}."
            return Finding(text + where, "measured" if began else "agrees")
    where = "below both." if value < small else "between the two."
    return Finding(text + where, "measured")


def _edge(numbers):
    """Whether it rose to the threshold and stayed, and if not, which of the two."""
    name = _NAMES[numbers["kind"]]
    late, end, peak = (numbers[k] for k in ("late_ratio", "end_ratio", "peak_ratio"))
    low, high = _AT_EDGE["batch" if numbers["kind"] == "batch" else "full"]
    theory = (
        f"Theory expects {name} to rise to {_threshold_name(numbers)} and to stay at "
        "the edge"
    )
    where = f"it settles at {late:.2f} times that (median over the second half)"
    if max(late, end) > high:
        text = f"{theory}; {where} and ends at {end:.2f} times: above the edge."
        return Finding(text, "disagrees")
    if min(late, end) >= low:
        return Finding(f"{theory}; {where}: the edge of stability.", "agrees")
    if end >= low:
        text = f"{theory}; {where} and ends at {end:.2f} times: it has just got there."
        return Finding(text, "measured")
    if peak - 2 * numbers["peak_error"] >= low:
        start = next(filter(np.isfinite, numbers["followed"])) / numbers["threshold"]
        return _left(numbers, theory, began_there=start >= low > late)
    text = f"{theory} if it gets there; {where}, after a peak of {peak:.2f} times"
    text += ": the threshold was not reached."
    return Finding(text, "measured")


def _left(numbers, theory, *, began_there):
    """It was at the edge and came down again, which is not stability."""
    peak = f"it peaked at {numbers['peak_ratio']:.2f} times that at step "
    peak += f"{numbers['peak_step']:,} and ends at {numbers['end_ratio']:.2f} times"
    if began_there:
        text = f"{theory}; {peak}: it began at the edge and has not come back to it."
        return Finding(text, "measured")
    if numbers["cross_entropy"]:
        text = (
            f"{theory}; {peak}: the edge was reached, and the late decay is that of "
            "cross-entropy, whose curvature vanishes with the loss, not stability."
        )
        return Finding(text, "agrees")
    return Finding(f"{theory}; {peak}: it did not stay.", "disagrees")


def rows(numbers):
    """The settled ratio."""
    name = _NAMES[numbers["kind"]]
    value, ratio = compact(numbers["followed"][-1]), numbers["late_ratio"]
    if _has_range(numbers):
        small, large = numbers["threshold_low"], numbers["threshold"]
        edges = f"small batches {compact(small)}, large ones {compact(large)}"
        settled = compact(ratio * large)
        return [
            Row(f"{name} at the end", value, f"threshold {_threshold_name(numbers)}"),
            Row(f"{name}, settled", settled, edges),
        ]
    settled = f"{ratio:.2f}" if ratio < 1e3 else compact(ratio)
    return [
        Row(f"{name} at the end", value, f"threshold {_threshold_name(numbers)}"),
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
