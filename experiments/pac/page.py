"""The table, the figure and the claims of the PAC-Bayes experiment."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.claims import Claim, claims_table, mean_and_error
from jaxtheory import bounds, plot
from jaxtheory._types import Bound

FORMS = ("kl", "catoni", "quadratic", "mcallester")
CHANCE = 0.9


def by_form(config: Any, bound: Bound, num_examples: int) -> list[float]:
    """What each form makes of the numbers of one certificate, at the same price."""
    # Half of delta pays for the draws, as in the certificate itself.
    half = config.delta / 2
    upper: Any = bounds.kl_inverse(
        bound.empirical_risk, np.log(2 / half) / config.num_samples
    )
    shared = {"num_examples": num_examples, "delta": half}
    return [
        bounds.pac_bayes(upper, bound.complexity, form=form, **shared).value
        for form in FORMS
    ]


def claims(config: Any, result: Any) -> list[Claim]:
    """What is said of PAC-Bayes certificates, and what these are."""
    found, claims = result.found, []
    values = np.concatenate([one.bound for one in found.values()])
    below = np.concatenate([one.bound < one.test for one in found.values()])
    text = f"share of {len(values)} certificates below the Gibbs error on test data"
    claims.append(Claim(text, float(np.mean(below)), 0.0, config.delta))
    for name, one in found.items():
        what = f"prior trained on {name} of the data"
        if name == "0":
            what = "prior that has seen no data"
        mean, error = mean_and_error(one.bound)
        text = f"{what}: the certificate is below chance"
        claims.append(Claim(text, mean, -np.inf, CHANCE, error))
        mean, error = mean_and_error(one.prior - one.bound)
        text = f"{what}: training the posterior improves on KL = 0, by"
        claims.append(Claim(text, mean, 0.0, np.inf, error))
        if name != "0":
            mean, error = mean_and_error(one.holdout - one.bound)
            text = f"{what}: the certificate is below a plain hold-out bound, by"
            claims.append(Claim(text, mean, 0.0, np.inf, error))
    return claims


def report(config: Any, result: Any) -> str:
    """Bounds and errors in per cent, means over splits, and the claims."""
    head = (
        f"{'prior of':<10}{'certificate':<16}{'KL = 0':<16}{'hold-out':<16}"
        f"{'test, Gibbs':<16}{'test, prior':<16}{'Gibbs error':<13}{'KL':<9}scales"
    )
    lines = [head]
    for name, one in result.found.items():
        cells = [one.bound, one.prior, one.holdout, one.test, one.prior_test]
        scales = " ".join(f"{scale:g}" for scale in one.scale)
        lines.append(
            f"{name:<10}"
            + "".join(f"{_percent(cell):<16}" for cell in cells)
            + f"{100 * np.mean(one.risk):<13.2f}{np.mean(one.kl):<9.1f}{scales}"
        )
    lines.append(
        f"(per cent, ± one standard error over {config.num_seeds} splits of "
        f"{config.num_train:,} digits; bounds fail with a probability of "
        f"{config.delta:g})"
    )
    lines += ["", f"{'prior of':<10}" + "".join(f"{form:<16}" for form in FORMS)]
    for name, one in result.found.items():
        lines.append(f"{name:<10}" + "".join(f"{_percent(f):<16}" for f in one.forms.T))
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def _percent(values):
    if not np.all(np.isfinite(values)):
        return "-"
    mean, error = mean_and_error(100 * values)
    return f"{mean:.2f} ± {error:.2f}"


def draw(config: Any, result: Any) -> Figure:
    """Bars of each bound beside the error on test data, by the prior."""
    named = {
        "certificate": ("bound", plot.TRAIN),
        "prior alone, KL = 0": ("prior", plot.NULL),
        "plain hold-out": ("holdout", plot.KERNEL),
        "Gibbs error on test data": ("test", plot.TEST),
    }
    with plt.rc_context(plot.STYLE):
        figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
        places = np.arange(len(result.found))
        for index, (label, (field, colour)) in enumerate(named.items()):
            pairs = [mean_and_error(getattr(f, field)) for f in result.found.values()]
            means, errors = 100 * np.asarray(pairs).T
            at = places + (index - 1.5) / 5
            ax.bar(at, means, 0.19, yerr=errors, color=colour, label=label)
        ax.axhline(100 * CHANCE, color="gray", ls=":", lw=1, label="guessing")
        ax.set_xticks(places, [f"prior of {name}" for name in result.found])
        ax.set_ylabel(f"error, % (bounds at δ = {config.delta:g})")
        ax.legend()
    return figure
