"""The spectrum of the Hessian at the start and at the end of training."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import curvature, linalg
from jaxtheory.plot import ACCENT, NULL
from jaxtheory.portrait._numbers import compact, only, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_STREAM = 2**30 + 3
_PROBES = 6
_ITERATIONS = 128
_BEYOND = 10  # eigenvalues after those that theory expects to stand out
# The axis of the figure, in decades. So many iterations do not tell what is nearer to
# zero from zero; float32 would tell six decades.
_SHOWN, _WIDTH, _PLACES = 4, 0.1, 120
_DECADES = 6
# A gap of less than this factor separates nothing.
_CLEARLY = 1.5
_ERRORS = 3


def read(plan, history):
    """Densities, largest eigenvalues and negative curvature at both ends."""
    key = jax.random.fold_in(plan.key, _STREAM)
    density_key, top_key = jax.random.split(key)
    num_top = plan.num_classes or 1
    densities, tops = [], []
    for params in (history.state.initial_params, history.state.params):
        operator = curvature.hessian(
            plan.apply_fn, plan.loss_fn, params, plan.x_train, plan.y_train
        )
        # The same probes at both ends: what differs is the operator.
        clone = jax.random.clone
        density = linalg.spectral_density(
            operator,
            num_probes=_PROBES,
            num_iterations=_ITERATIONS,
            key=clone(density_key),
        )
        top = linalg.top_eigenpairs(operator, num=num_top + _BEYOND, key=clone(top_key))
        densities.append(density)
        tops.append(top)
    highest = _highest(densities)
    places = np.linspace(highest - _SHOWN, highest + 5 * _WIDTH, _PLACES)
    ends = [
        _describe(density, top, jnp.asarray(places, density.nodes.dtype))
        for density, top in zip(densities, tops, strict=True)
    ]
    loss = np.asarray(history.records["evaluation"]["train"]["loss"])
    return {
        "start": ends[0],
        "end": ends[1],
        "places": only(places),
        "num_params": int(densities[0].dimension),
        "num_top": num_top,
        "num_iterations": _ITERATIONS,
        "num_probes": _PROBES,
        "classes": plan.num_classes is not None,
        "squared_error": plan.config.loss == "squared-error",
        "loss": [float(loss[0]), float(loss[-1])],
    }


def _highest(densities):
    """Decimal logarithm of the largest size of an eigenvalue."""
    sizes = np.abs(np.concatenate([np.ravel(each.nodes) for each in densities]))
    largest = np.max(sizes[np.isfinite(sizes)], initial=0.0)
    return float(np.log10(largest)) if largest > 0 else 0.0


def _describe(density, top, places):
    """One end, in plain numbers."""
    trace, size = density.trace_of(lambda value: value), density.trace_of(jnp.abs)
    share, error = _negative(density)
    per_decade = {}
    for sign in ("positive", "negative"):
        found = density.log_density(places, width=_WIDTH, sign=sign)
        per_decade[sign] = only(density.dimension * np.asarray(found.value))
    return {
        "eigenvalues": only(top.values),
        "converged": bool(top.converged.all()),
        "trace": float(trace.value),
        "trace_error": float(trace.standard_error),
        "size": float(size.value),
        "negative": share,
        "negative_error": error,
        "per_decade": per_decade,
    }


def _negative(density):
    """Share of negative curvature, with its delta-method error over probes."""
    nodes, weights = (np.asarray(a, float) for a in (density.nodes, density.weights))
    sizes = np.sum(weights * np.abs(nodes), axis=1)
    negative = np.sum(weights * np.maximum(-nodes, 0), axis=1)
    if not sizes.mean() > 0:
        return float("nan"), float("nan")
    share = negative.mean() / sizes.mean()
    spread = np.std(negative - share * sizes, ddof=1) / np.sqrt(len(sizes))
    return float(share), float(spread / sizes.mean())


def draw(numbers, ax):
    """Eigenvalues per decade on either side of zero, and the largest ones."""
    if not _finite(numbers):
        ax.text(0.5, 0.5, "not finite", transform=ax.transAxes, ha="center")
        return
    places = 10.0 ** np.asarray(numbers["places"])
    for end, colour in (("start", NULL), ("end", ACCENT)):
        for sign, line in (("positive", "-"), ("negative", ":")):
            counts = np.asarray(numbers[end]["per_decade"][sign])
            counts = np.where(counts > 0.1, counts, np.nan)
            label = end if sign == "positive" else f"{end}, negative side"
            ax.plot(places, counts, line, color=colour, label=label)
        top = [v for v in numbers[end]["eigenvalues"][: numbers["num_top"]] if v > 0]
        height = 0.15 if end == "start" else 0.22
        ax.plot(top, [height] * len(top), "|", color=colour, ms=9)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(0.1, 3 * numbers["num_params"])
    ax.set_xlabel(f"|eigenvalue| (bars: the {numbers['num_top']} largest)")
    ax.set_ylabel("eigenvalues per decade")
    ax.legend()


def _finite(numbers):
    """Whether both ends can be judged."""
    values = [
        value
        for end in ("start", "end")
        for value in (*numbers[end]["eigenvalues"], numbers[end]["negative"])
    ]
    return bool(np.isfinite(values).all())


def findings(numbers):
    """How many eigenvalues stand out, and whether negative curvature went."""
    if not _finite(numbers):
        return [lacking("the Hessian is zero at the start or the end, or not finite")]
    return [_outliers(numbers), _curvature(numbers)]


def _gap(values):
    """After how many of the largest eigenvalues the widest gap is, and its ratio."""
    if not values[0] > 0:
        return 0, 1.0
    # What is not positive counts as zero but for rounding.
    values = np.maximum(values, 10.0**-_DECADES * values[0])
    gaps = values[:-1] / values[1:]
    place = int(np.argmax(gaps))
    return place + 1, float(gaps[place])


def _outliers(numbers):
    """Whether as many eigenvalues stand out as there are classes."""
    k, values = numbers["num_top"], numbers["end"]["eigenvalues"]
    count, ratio = _gap(values)
    began, began_ratio = _gap(numbers["start"]["eigenvalues"])
    share = [
        sum(numbers[which]["eigenvalues"][:k]) / numbers[which]["size"]
        for which in ("start", "end")
    ]
    theory = f"Theory expects as many outliers as the {k} classes, or one less; "
    theory = theory if numbers["classes"] else ""
    text = (
        f"{theory}among the {len(values)} largest eigenvalues the widest gap, a "
        f"factor of {compact(ratio)}, is after number {count} (at the start "
        f"{compact(began_ratio)}, after number {began}). "
        f"The first {k} hold {percent(share[1])} of the sum of all |eigenvalues|, "
        f"after {percent(share[0])} at the start"
    )
    text = text.replace("The first 1 hold", "The first holds")
    text = text[0].upper() + text[1:]
    if not numbers["end"]["converged"]:
        return Finding(f"{text}: not all of them have converged.", "measured")
    if ratio < _CLEARLY:
        return Finding(f"{text}: no gap is wide enough to count by.", "measured")
    if not numbers["classes"]:
        return Finding(f"{text}.", "measured")
    verdict = "agrees" if count in (k - 1, k) else "disagrees"
    return Finding(f"{text}.", verdict)


def _curvature(numbers):
    """Whether negative curvature goes where residuals do."""
    start, end = numbers["start"], numbers["end"]
    before, after = (
        f"{percent(e['negative'])} ± {percent(e['negative_error'])}"
        for e in (start, end)
    )
    first, last = numbers["loss"]
    text = (
        "Negative curvature comes from residuals alone: theory expects its share of "
        "that sum to fall with a squared error; it went from "
        f"{before} to {after} while the loss went from {compact(first)} to "
        f"{compact(last)}."
    )
    change = end["negative"] - start["negative"]
    clearly = _ERRORS * np.hypot(start["negative_error"], end["negative_error"])
    if not numbers["squared_error"] or not last < first / _CLEARLY:
        return Finding(text, "measured")
    if abs(change) <= clearly:
        return Finding(text, "measured")
    return Finding(text, "agrees" if change < 0 else "disagrees")


def rows(numbers):
    """Trace and negative curvature."""
    start, end = numbers["start"], numbers["end"]
    error = compact(end["trace_error"])
    return [
        Row(
            "trace of the Hessian",
            f"{compact(end['trace'])} ± {error}",
            f"started at {compact(start['trace'])}",
        ),
        Row(
            "share of negative curvature",
            percent(end["negative"]),
            f"started at {percent(start['negative'])}",
        ),
    ]


SECTION = Section(
    "spectrum",
    "Spectrum of the Hessian",
    always,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
