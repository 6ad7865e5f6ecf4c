"""What is said of the edge of stability: whether sharpness settles there."""

import numpy as np

from jaxtheory.portrait._numbers import compact, percent
from jaxtheory.portrait._plan import OPTIMIZERS
from jaxtheory.portrait._section import Finding, is_curve, lacking

# Published runs hover within a few percent of the threshold; batch sharpness, an
# average over noisy ratios, within some tens (the tolerances of the literature's own
# reproductions: 0.95 to 1.05 for full batches, 0.7 to 1.05 for small ones).
_AT_EDGE = {"full": (0.9, 1.1), "batch": (0.7, 1.1)}

# One record cannot be helped: Adam has no preconditioner before its first step.
_UNSURE = 0.05

NAMES = {
    "sharpness": "sharpness",
    "batch": "batch sharpness",
    "preconditioned": "preconditioned sharpness",
}


def moves(numbers):
    """Whether the threshold is another one at every record."""
    return numbers["optimizer"] == "sam"


def ratios(numbers):
    """The sharpness that is followed over its threshold, where both are finite."""
    found = np.asarray(numbers["followed"]) / np.asarray(numbers["thresholds"])
    return found[np.isfinite(found)]


def threshold_name(numbers):
    """The threshold in numbers: of SAM, as a range, or as a multiple of 1/η."""
    if moves(numbers):
        return f"of SAM ({compact(numbers['threshold'])} at the end)"
    low, high, eta = (
        numbers[k] for k in ("threshold_low", "threshold", "learning_rate")
    )
    if low < high:
        between = f"({compact(low * eta)}/η to {compact(high * eta)}/η)"
        return f"{compact(low)} to {compact(high)} {between}"
    return f"{compact(high * eta)}/η = {compact(high)}"


def _edge_name(numbers):
    """The threshold inside a sentence."""
    return ("the threshold " if moves(numbers) else "") + threshold_name(numbers)


def findings(numbers):
    """Whether the right sharpness settles at the right threshold."""
    if not is_curve(numbers["followed"]):
        name = NAMES[numbers["kind"]]
        return [lacking(f"{name} is not finite at the last record, or only there")]
    if numbers["diverged"]:
        first = _unstable(numbers)
    else:
        first = (_range if has_range(numbers) else _edge)(numbers)
    if numbers["kind"] == "batch":
        return [first]
    if not numbers["minibatch"]:
        return [first, *_unsure(numbers)]
    name = OPTIMIZERS[numbers["optimizer"]]
    text = (
        f"The threshold is that of full batches; for {name} on minibatches no theory "
        "gives one, so this is a trend."
    )
    trend = [first._replace(verdict="measured"), Finding(text, "measured")]
    return trend + _unsure(numbers)


def _unsure(numbers):
    """Where the largest eigenvalue was hard to find, its residual says so."""
    share = 1 - numbers["converged"]
    if not share > _UNSURE:
        return []
    text = (
        f"At {percent(share, 0)} of the records the residual of this sharpness is "
        "above 1 % of it: there it is a lower bound."
    )
    return [Finding(text, "measured")]


def _unstable(numbers):
    """Where a run that diverged stood when it was last seen."""
    name = NAMES[numbers["kind"]]
    ratio = numbers["followed"][-1] / numbers["threshold"]
    edge = _edge_name(numbers | {"threshold_low": numbers["threshold"]})
    text = (
        f"Theory expects steps to be unstable while {name} is above "
        f"{edge}; at the last record before training diverged it was {compact(ratio)} "
        "times that."
    )
    return Finding(text, "measured")


def has_range(numbers):
    """Small and large batches have edges of their own."""
    return numbers["threshold_low"] < numbers["threshold"]


def _range(numbers):
    """Which of two edges, that of small or that of large batches, it settles at."""
    name, eta = NAMES[numbers["kind"]], numbers["learning_rate"]
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
    name = NAMES[numbers["kind"]]
    late, end, peak = (numbers[k] for k in ("late_ratio", "end_ratio", "peak_ratio"))
    low, high = _AT_EDGE["batch" if numbers["kind"] == "batch" else "full"]
    theory = (
        f"Theory expects {name} to rise to {_edge_name(numbers)} and to stay at "
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
        began_there = ratios(numbers)[0] >= low > late
        return _left(numbers, theory, began_there=began_there)
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
