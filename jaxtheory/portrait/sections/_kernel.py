"""Kernel against network: its own kernels, and those of its infinite-width limit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import kernels, plot
from jaxtheory._types import Estimate
from jaxtheory.portrait._numbers import percent
from jaxtheory.portrait._section import Finding, Row, Section, always, nothing

_CHUNK = 50
_MOST_TESTS = 1000
_RIDGES = 10.0 ** np.arange(-6, 1)
# Training and test examples of the infinite-width kernels, and how many at once. With
# pooling these are made of covariances between all pairs of pixels.
_LIMITS = {"mlp": (1000, _MOST_TESTS, 500), "cnn": (100, 500, 20)}


def read(plan, history):
    """What the network and each kernel make of the same test examples."""
    x = plan.x_test[:_MOST_TESTS]
    network = _losses(plan, plan.apply_fn(history.state.params, x))
    first = _tangent_kernel(plan, history.state.initial_params)
    last = _tangent_kernel(plan, history.state.params)
    initial, final = _regression(plan, *first), _regression(plan, *last)
    return {
        "network": _score(network),
        "initial": initial[0],
        "final": final[0],
        "gain": _difference(initial[1], network),
        "final_gain": _difference(initial[1], final[1]),
        "infinite": _infinite(plan, first),
        "num_test": len(x),
        "regression": plan.num_classes is None,
    }


def _losses(plan, outputs):
    """Error of each test example; squared errors are relative to the variance."""
    y = plan.y_test[: len(outputs)]
    if plan.num_classes is None:
        return ((outputs - y) ** 2 / jnp.var(y))[:, 0]
    wrong = jnp.argmax(outputs, axis=1) != y
    return jnp.asarray(wrong | ~jnp.isfinite(outputs).all(axis=1), float)


def _score(losses):
    """Mean error with its standard error."""
    error = jnp.std(losses, ddof=1) / np.sqrt(len(losses))
    return {"error": float(losses.mean()), "standard_error": float(error)}


def _difference(losses, others):
    """By how much the others err less on the same examples."""
    found = _score(losses - others)
    return {"value": found["error"], "standard_error": found["standard_error"]}


def _tangent_kernel(plan, params):
    """Of all training examples, and of test examples with them."""
    k = plan.num_classes or 1
    ntk = functools.partial(
        kernels.empirical_ntk, plan.apply_fn, params, batch_size=_CHUNK
    )
    return ntk(plan.x_train) / k, ntk(plan.x_test[:_MOST_TESTS], plan.x_train) / k


def _regression(plan, train, test):
    """Kernel ridge regression with the ridge chosen by leave-one-out error.

    Returns its numbers and the error of each test example; NaN where the kernel is not
    finite, as it may be after a run that diverged.
    """
    targets = plan.targets(plan.y_train[: len(train)])
    centre = jnp.mean(targets, axis=0, keepdims=True)
    fit = _fit(train, targets - centre, test)
    losses = np.asarray(jnp.mean(fit.leave_one_out**2, axis=(1, 2)))
    if not np.isfinite(losses).any():
        nan = ("error", "standard_error", "ridge_over_trace", "condition")
        return dict.fromkeys(nan, np.nan), jnp.full(len(test), jnp.nan)
    best = int(np.nanargmin(losses))
    errors = _losses(plan, fit.predictions[best] + centre)
    numbers = _score(errors) | {
        "ridge_over_trace": float(_RIDGES[best]),
        "condition": float(fit.condition[best]),
    }
    return numbers, errors


@jax.jit
def _fit(train, targets, test):
    """The regression with each ridge."""
    one = lambda ridge: kernels.kernel_regression(train, targets, test, ridge=ridge)
    return jax.vmap(one)(_RIDGES * jnp.trace(train))


def _infinite(plan, initial_kernels):
    """Regression with the infinite-width kernels, or why there are none."""
    most_train, most_test, batch_size = _LIMITS[plan.config.model]
    train, test = plan.x_train[:most_train], plan.x_test[:most_test]
    n = len(train)
    try:
        limit = kernels.infinite_width(
            plan.module,
            jnp.concatenate([train, test]),
            train,
            # As they are drawn: there is nothing to estimate.
            weight_std=plan.module.weight_std,
            bias_std=plan.module.bias_std,
            batch_size=batch_size,
        )
    except (ImportError, ValueError) as error:
        return {"why": " ".join(str(error).split())}
    ntk, ntk_losses = _regression(plan, limit.ntk[:n], limit.ntk[n:])
    nngp, _ = _regression(plan, limit.nngp[:n], limit.nngp[n:])
    few = (initial_kernels[0][:n, :n], initial_kernels[1][: len(test), :n])
    initial, losses = _regression(plan, *few)
    return {
        "ntk": ntk,
        "nngp": nngp,
        "initial": initial,
        "gain": _difference(losses, ntk_losses),
        "num_train": n,
        "num_test": len(test),
        "all": n == len(plan.x_train),
    }


def draw(numbers, ax):
    """Errors with their intervals, the network's first."""
    shown = {
        "network": numbers["network"],
        "its initial kernel": numbers["initial"],
        "its final kernel": numbers["final"],
    }
    infinite = numbers["infinite"]
    if "ntk" in infinite:
        few = "" if infinite["all"] else f"\n({infinite['num_train']} examples)"
        if few:
            shown[f"initial kernel{few}"] = infinite["initial"]
        shown[f"infinite NTK{few}"] = infinite["ntk"]
        shown[f"NNGP{few}"] = infinite["nngp"]
    errors = {
        name: Estimate(
            100 * found["error"], 100 * found["standard_error"], numbers["num_test"]
        )
        for name, found in shown.items()
    }
    kind = "relative test error" if numbers["regression"] else "test error"
    plot.comparison(errors, metric=f"{kind} (%)", ax=ax)


def _text(numbers, found):
    if numbers["regression"]:
        return f"{percent(found['error'])} relative error"
    return percent(1 - found["error"])


def findings(numbers):
    """Who predicts better, before and after training, and at infinite width."""
    text = lambda name: _text(numbers, numbers[name])
    count = f"on {numbers['num_test']:,} test examples"
    first = (
        f"The kernel at initialisation reaches {text('initial')}, the network "
        f"{text('network')} {count}: "
        f"{_winner(numbers['gain'], 'the network', 'the initial kernel')}."
    )
    second = (
        f"With the kernel that the network ended with, regression reaches "
        f"{text('final')}: "
        f"{_winner(numbers['final_gain'], 'the final kernel', 'the initial kernel')}."
    )
    texts = [first, second, _at_infinite_width(numbers)]
    return [Finding(said, "measured") for said in texts]


def _at_infinite_width(numbers):
    """What the limit of the network reaches, or why there is none."""
    infinite = numbers["infinite"]
    if "why" in infinite:
        return f"There is no infinite-width kernel to compare with: {infinite['why']}"
    text = lambda name: _text(numbers, infinite[name])
    few = ""
    if not infinite["all"]:
        few = (
            f" with {infinite['num_train']:,} training and {infinite['num_test']:,} "
            f"test examples, where the initial kernel reaches {text('initial')}"
        )
    winner = _winner(infinite["gain"], "the infinite NTK", "the initial kernel")
    return (
        f"At infinite width the tangent kernel of this network reaches {text('ntk')} "
        f"and its Gaussian process (NNGP) {text('nngp')}{few}; NTK against initial "
        f"kernel: {winner}."
    )


def _winner(gain, better, worse):
    """Which errs less on the same examples, where it is more than sampling noise."""
    value, error = gain["value"], gain["standard_error"]
    if not np.isfinite(value):
        return "not to be compared"
    points = lambda fraction: f"{100 * fraction:.1f}"
    difference = f"a difference of {points(value)} ± {points(error)} points"
    if abs(value) <= 2 * error:
        return f"{difference}, within the sampling error"
    return f"{difference}: {better if value > 0 else worse} wins"


def rows(numbers):
    """The errors side by side."""
    text = lambda found: _text(numbers, found)
    initial = f"initial kernel {text(numbers['initial'])}"
    found = [Row("network on test data", text(numbers["network"]), initial)]
    infinite = numbers["infinite"]
    if "ntk" in infinite and infinite["all"]:
        nngp = f"NNGP {text(infinite['nngp'])}"
        found.append(Row("infinite NTK on test data", text(infinite["ntk"]), nngp))
    return found


SECTION = Section(
    "kernel",
    "Kernel against network",
    always,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
