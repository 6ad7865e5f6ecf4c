"""Kernel against network: the tangent kernel at the start, at the end, on the way."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import kernels
from jaxtheory.plot import KERNEL, TEST, THEORY
from jaxtheory.portrait._numbers import compact, only, percent
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
_MOST_TESTS = 1000
_RIDGES = 10.0 ** np.arange(-6, 1)


def record(plan):
    """The tangent kernel on the first training examples."""

    def probe_kernel(state):
        x = plan.x_train[:_PROBES]
        return kernels.empirical_ntk(plan.apply_fn, state.params, x, batch_size=_CHUNK)

    return {"probe_kernel": probe_kernel}


def read(plan, history):
    """How far the kernel moved, how aligned it is, and what it can predict."""
    recorded = jnp.asarray(history.records["probe_kernel"])
    targets = plan.targets(plan.y_train[:_PROBES])
    distance = jax.vmap(lambda k: kernels.kernel_distance(recorded[0], k))(recorded)
    alignment = jax.vmap(lambda k: kernels.centred_alignment(k, targets))(recorded)
    outputs = plan.apply_fn(history.state.params, plan.x_test[:_MOST_TESTS])
    network = _losses(plan, outputs)
    initial, initial_losses = _regression(plan, history.state.initial_params)
    final, _ = _regression(plan, history.state.params)
    gain = initial_losses - network
    return {
        "steps": [int(step) for step in history.steps],
        "distance": only(distance),
        "alignment": only(alignment),
        "num_probes": len(targets),
        "network_error": float(network.mean()),
        "initial": initial,
        "final": final,
        "gain": float(gain.mean()),
        "gain_error": float(jnp.std(gain, ddof=1) / np.sqrt(len(gain))),
        "num_test": len(gain),
        "regression": plan.num_classes is None,
    }


def _losses(plan, outputs):
    """Error of each test example; squared errors are relative to the variance."""
    y = plan.y_test[: len(outputs)]
    if plan.num_classes is None:
        return ((outputs - y) ** 2 / jnp.var(y))[:, 0]
    wrong = jnp.argmax(outputs, axis=1) != y
    return jnp.asarray(wrong | ~jnp.isfinite(outputs).all(axis=1), float)


def _regression(plan, params):
    """Kernel ridge regression with the ridge chosen by leave-one-out error.

    Returns its numbers and the error of each test example; NaN where the kernel is not
    finite, as it may be after a run that diverged.
    """
    k = plan.num_classes or 1
    x_test = plan.x_test[:_MOST_TESTS]
    ntk = lambda x1, x2: (
        kernels.empirical_ntk(plan.apply_fn, params, x1, x2, batch_size=_CHUNK) / k
    )
    train, test = ntk(plan.x_train, None), ntk(x_test, plan.x_train)
    targets = plan.targets(plan.y_train)
    centre = jnp.mean(targets, axis=0, keepdims=True)
    fit = jax.vmap(
        lambda ridge: kernels.kernel_regression(
            train, targets - centre, test, ridge=ridge
        )
    )(_RIDGES * jnp.trace(train))
    losses = np.asarray(jnp.mean(fit.leave_one_out**2, axis=(1, 2)))
    if not np.isfinite(losses).any():
        nan = dict.fromkeys(("error", "ridge_over_trace", "condition"), np.nan)
        return nan, jnp.full(len(x_test), jnp.nan)
    best = int(np.nanargmin(losses))
    errors = _losses(plan, fit.predictions[best] + centre)
    numbers = {
        "error": float(errors.mean()),
        "ridge_over_trace": float(_RIDGES[best]),
        "condition": float(fit.condition[best]),
    }
    return numbers, errors


def draw(numbers, ax):
    """Kernel distance and alignment over training, errors in the legend."""
    steps = numbers["steps"]
    ax.plot(steps, numbers["alignment"], color=KERNEL, label="alignment with labels")
    label = "distance from the initial kernel"
    ax.plot(steps, numbers["distance"], color=TEST, label=label)
    ax.axhline(0, ls="--", color=THEORY, label="lazy training: distance 0")
    initial, final = numbers["initial"]["error"], numbers["final"]["error"]
    text = (
        f"test error\nnetwork {percent(numbers['network_error'])}\n"
        f"initial kernel {percent(initial)}\nfinal kernel {percent(final)}"
    )
    ax.set_ylim(-0.1, 1.04)
    ax.set_xlabel("step")
    ax.legend(title=text, title_fontsize=8.5, alignment="left")


def _score(numbers, error):
    if numbers["regression"]:
        return f"{percent(error)} relative error"
    return percent(1 - error)


def findings(numbers):
    """Lazy or rich, and who predicts better."""
    initial, final = numbers["initial"]["error"], numbers["final"]["error"]
    network = numbers["network_error"]
    second = Finding(
        f"The kernel at initialisation reaches {_score(numbers, initial)}, the network "
        f"{_score(numbers, network)}, its final kernel {_score(numbers, final)} on "
        f"{numbers['num_test']:,} test examples: {_winner(numbers)}.",
        "measured",
    )
    return [_regime(numbers), second]


def _regime(numbers):
    """Whether the kernel stayed where it was, as it would at infinite width."""
    if not (is_curve(numbers["distance"]) and is_curve(numbers["alignment"])):
        return lacking("the kernel is not finite at the last record, or only there")
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
    return Finding(
        "At infinite width theory keeps the tangent kernel fixed (distance 0); here "
        f"its distance from the start is {compact(distance)} and its alignment with "
        f"the labels went from {before:.2f} to {after:.2f}: {regime}.",
        "agrees" if regime == "lazy training" else "disagrees",
    )


def _winner(numbers):
    """Which errs less on the same examples, where it is more than sampling noise."""
    gain, error = numbers["gain"], numbers["gain_error"]
    if not np.isfinite(gain):
        return "not to be compared"
    difference = f"a difference of {_points(gain)} ± {_points(error)} points"
    if abs(gain) <= 2 * error:
        return f"{difference}, within the sampling error"
    return f"{difference}: the {'network' if gain > 0 else 'initial kernel'} wins"


def _points(fraction):
    return f"{100 * fraction:.1f}"


def rows(numbers):
    """Kernel distance and the errors side by side."""
    initial = _score(numbers, numbers["initial"]["error"])
    return [
        Row("kernel distance", compact(numbers["distance"][-1]), "0 in lazy training"),
        Row(
            "network on test data",
            _score(numbers, numbers["network_error"]),
            f"initial kernel {initial}",
        ),
    ]


SECTION = Section(
    "kernel",
    "Kernel against network",
    always,
    record,
    nothing,
    read,
    draw,
    findings,
    rows,
)
