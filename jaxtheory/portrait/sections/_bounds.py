"""Generalization bounds beside the error that they bound."""

import jax
import numpy as np

from jaxtheory import bounds, plot
from jaxtheory._types import Bound
from jaxtheory.plot import KERNEL, NULL, TRAIN
from jaxtheory.portrait._numbers import compact, percent
from jaxtheory.portrait._section import Finding, Row, Section, classification, nothing

_DELTA = 0.05
_DRAWS = 500
_POSTERIOR_SCALES = (0.003, 0.01, 0.03, 0.1)
_PRIOR_SCALES = tuple(float(s) for s in np.geomspace(1e-3, 1.0, 31))


def read(plan, history):
    """PAC-Bayes around the trained weights, its KL = 0 rival, the hold-out bound."""
    posterior_key, prior_key = jax.random.split(jax.random.fold_in(plan.key, 2**30))
    params, initial = history.state.params, history.state.initial_params
    shared = {"num_samples": _DRAWS, "delta": _DELTA}
    trained = bounds.gaussian_pac_bayes(
        plan.apply_fn,
        params,
        initial,
        plan.x_train,
        plan.y_train,
        posterior_scales=_POSTERIOR_SCALES,
        prior_scales=_PRIOR_SCALES,
        key=posterior_key,
        **shared,
    )
    prior = bounds.prior_bound(
        plan.apply_fn,
        initial,
        plan.x_train,
        plan.y_train,
        scales=_POSTERIOR_SCALES,
        key=prior_key,
        **shared,
    )
    error = plan.error(plan.apply_fn(params, plan.x_test), plan.y_test)
    wrong = round(float(error) * len(plan.y_test))
    holdout = bounds.holdout(wrong, len(plan.y_test), delta=_DELTA)
    chance = 1 - 1 / plan.num_classes
    named = {"PAC-Bayes": trained, "KL = 0": prior, "hold-out": holdout}
    return {
        "bounds": {name: _plain(bound, chance) for name, bound in named.items()},
        "test_error": wrong / len(plan.y_test),
        "chance": chance,
        "num_train": len(plan.x_train),
        "num_test": len(plan.x_test),
    }


def _plain(bound, chance):
    """A bound as plain numbers and words; useless too where guessing does as well."""
    return {
        "value": float(bound.value),
        "empirical_risk": float(bound.empirical_risk),
        "complexity": float(bound.complexity),
        "certificate": bool(bound.certificate),
        "vacuous": bool(bound.vacuous or bound.value >= chance),
        "assumptions": list(bound.assumptions),
    }


def draw(numbers, ax):
    """Bounds as bars; vacuous ones are pale."""
    fields = ("value", "empirical_risk", "complexity", "certificate", "vacuous")
    named = {
        name: Bound(delta=_DELTA, assumptions=(), **{key: bound[key] for key in fields})
        for name, bound in numbers["bounds"].items()
    }
    plot.bounds(
        named,
        risk=numbers["test_error"],
        chance=numbers["chance"],
        colours=dict(zip(named, (TRAIN, NULL, KERNEL), strict=True)),
        ax=ax,
    )
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right")


def findings(numbers):
    """What each bound certifies, and what the data bought over the prior."""
    named = numbers["bounds"]
    trained, prior, holdout = named["PAC-Bayes"], named["KL = 0"], named["hold-out"]
    error = numbers["test_error"]
    guessing = f"guessing errs on {percent(numbers['chance'])}"
    state = "vacuous" if trained["vacuous"] else "not vacuous"
    gain = prior["value"] - trained["value"]
    points = f"{abs(100 * gain):.1f} points"
    worth = f"{points} {'above' if gain < 0 else 'below'}"
    first = Finding(
        "With probability 95 % the PAC-Bayes-kl bound from "
        f"{numbers['num_train']:,} training examples puts the error of noisy weights "
        f"below {percent(trained['value'])} (their training error "
        f"{percent(trained['empirical_risk'])}, complexity "
        f"{_nats(trained['complexity'])} nats): the bound is {state} ({guessing}), "
        f"and {worth} the {percent(prior['value'])} that the untrained prior gets at "
        "KL = 0.",
        "measured",
    )
    second = Finding(
        f"The hold-out bound from {numbers['num_test']:,} test examples is "
        f"{percent(holdout['value'])} where {percent(error)} was measured; "
        "certificates are compared against it.",
        "measured",
    )
    return [first, second]


def _nats(complexity):
    """A complexity in whole nats, or short where training left for infinity."""
    return f"{complexity:,.0f}" if complexity < 1e9 else compact(complexity)


def rows(numbers):
    """The three bounds."""
    error = f"test error {percent(numbers['test_error'])}"
    return [
        Row(
            f"{name} bound",
            percent(bound["value"]),
            "vacuous" if bound["vacuous"] else error,
        )
        for name, bound in numbers["bounds"].items()
    ]


SECTION = Section(
    "bounds",
    "Generalization bounds",
    classification,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
