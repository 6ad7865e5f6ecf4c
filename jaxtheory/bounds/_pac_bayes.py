"""PAC-Bayes bounds of an empirical Gibbs risk and a relative entropy."""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Float

from jaxtheory._types import Bound
from jaxtheory.batching import check_count, check_number, check_word
from jaxtheory.bounds._kl import kl_inverse
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    ON_TRUST,
    SETTING,
    check_concrete,
    check_delta,
    make_bound,
)

Form: TypeAlias = Literal["kl", "quadratic", "mcallester", "catoni"]

# Catoni's inequality holds for one temperature; for the best of these it pays ln 241.
# Neighbours differ by 4.9 %, which costs at most .03 % of the exponent.
_TEMPERATURES = np.logspace(-3, 2, 241)


def pac_bayes(
    empirical_risk: float,
    kl: float,
    *,
    num_examples: int,
    delta: float,
    form: Form = "kl",
) -> Bound:
    r"""PAC-Bayes bound from an empirical Gibbs risk and a relative entropy.

    For every prior fixed before ``n`` independent examples are seen, with probability
    at least ``1 - delta`` the Gibbs risk (the mean loss of a predictor drawn from the
    posterior anew for each example) is below it for all posteriors at once. With ``r``
    the empirical Gibbs risk and ``c = (KL + ln(2 sqrt(n) / delta)) / n``,

    - ``"kl"`` (Seeger, Maurer): ``kl_inverse(r, c)``, the smallest of the first three;
    - ``"quadratic"``: ``(sqrt(r + c/2) + sqrt(c/2))^2``, which is Thiemann's
      ``min over 0 < u < 2 of r / (1 - u/2) + c / (u (1 - u/2))`` in closed form:
      smooth in ``r`` and KL, an objective to train on;
    - ``"mcallester"``: ``r + sqrt(c / 2)``;
    - ``"catoni"``: ``min over C of (1 - exp(-C r - (KL + ln(J / delta)) / n)) /
      (1 - exp(-C))`` over ``J = 241`` temperatures ``C`` from 1e-3 to 100, a union
      bound over which is paid. Optimising ``C`` without paying is no bound.

    Args:
        empirical_risk: Gibbs risk on the examples, in [0, 1], of a loss in [0, 1]: the
            exact mean over the posterior. A Monte-Carlo mean is not that; see
            `gaussian_pac_bayes`, which pays for it.
        kl: Relative entropy ``KL(posterior || prior) >= 0``, in nats. A prior chosen
            among ``j`` by looking at the data costs another ``ln j``: add it.
        num_examples: Number of examples ``n >= 2``.
        delta: Probability that the bound may fail, in (0, 1). The smallest of several
            forms fails with up to as many times this probability.
        form: Which inequality.

    Returns:
        The bound. It is not a certificate, because nothing here shows that the two
        numbers are what they must be: they are taken on trust.

    Raises:
        ValueError: An argument is out of its range, NaN, or traced.

    Example:
        >>> bound = pac_bayes(0.02, 5000.0, num_examples=60_000, delta=0.05)
        >>> round(bound.value, 6)
        0.13434

    References:
        Maurer, arXiv cs/0411099, theorem 5; Seeger, JMLR 3 (2002); McAllester, COLT
        1999; Thiemann et al., arXiv:1608.05610, theorem 3; Catoni, arXiv:0712.0248,
        theorem 1.2.1; Perez-Ortiz et al., arXiv:2007.12911 (the quadratic form).
    """
    check_concrete(empirical_risk=empirical_risk, kl=kl, num_examples=num_examples)
    delta = check_delta(delta)
    check_word("form", form, _FORMS)
    n = check_count(at_least=2, num_examples=num_examples)
    check_number(
        "empirical_risk",
        empirical_risk,
        lambda risk: 0 <= risk <= 1,
        "in [0, 1] (rescale or clip the losses)",
    )
    check_number("kl", kl, lambda kl: 0 <= kl < np.inf, "finite and >= 0, in nats")
    assumptions = [
        INDEPENDENT,
        (SETTING, "the prior was fixed before they were seen"),
        (ON_TRUST, "`empirical_risk` is the exact Gibbs risk of a loss in [0, 1]"),
        (ON_TRUST, "`kl` is the relative entropy of posterior and prior"),
    ]
    if form == "catoni":
        paid = f"ln {len(_TEMPERATURES)} nats pay for choosing the temperature"
        assumptions.append((BY_CONSTRUCTION, paid))
    return make_bound(
        value=float(_FORMS[form](float(empirical_risk), float(kl), n, delta)),
        empirical_risk=empirical_risk,
        complexity=kl,
        delta=delta,
        assumptions=assumptions,
    )


def _kl(risk, complexity, num_examples, delta):
    return kl_inverse(risk, maurer_budget(complexity, num_examples, delta))


def _quadratic(risk, complexity, num_examples, delta):
    half = maurer_budget(complexity, num_examples, delta) / 2
    return (np.sqrt(risk + half) + np.sqrt(half)) ** 2


def _mcallester(risk, complexity, num_examples, delta):
    return risk + np.sqrt(maurer_budget(complexity, num_examples, delta) / 2)


def _catoni(risk, complexity, num_examples, delta):
    price = np.log(len(_TEMPERATURES) / delta)
    exponent = _TEMPERATURES * risk + (complexity + price) / num_examples
    return np.min(np.expm1(-exponent) / np.expm1(-_TEMPERATURES))


_FORMS = {
    "kl": _kl,
    "quadratic": _quadratic,
    "mcallester": _mcallester,
    "catoni": _catoni,
}


def certified_risk(
    mean_risk: Float[ArrayLike, "..."],
    complexity: Float[ArrayLike, "..."],
    *,
    num_examples: int,
    num_samples: int | float,
    num_posteriors: int,
    delta: float,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The two steps of `gaussian_pac_bayes`, each with half of `delta`.

    Args:
        mean_risk: Mean over weight draws of the empirical risk.
        complexity: KL plus the price of the prior grid, in nats.
        num_examples: Number of examples.
        num_samples: Number of draws; infinite for an exact mean.
        num_posteriors: Number of posteriors over which the first step holds at once.
        delta: Probability that the bound may fail.

    Returns:
        Upper limits of the empirical Gibbs risk and of the risk.
    """
    monte_carlo = np.log(2 * num_posteriors / (delta / 2)) / num_samples
    upper = np.asarray(kl_inverse(mean_risk, monte_carlo))
    budget = maurer_budget(complexity, num_examples, delta / 2)
    return upper, np.asarray(kl_inverse(upper, budget))


def maurer_budget(
    complexity: Float[ArrayLike, "..."], num_examples: int, delta: float
) -> Float[ArrayLike, "..."]:
    """``(complexity + ln(2 sqrt(n) / delta)) / n``, what theorem 5 lets kl be."""
    confidence = np.log(2 * np.sqrt(num_examples) / delta)
    return (np.asarray(complexity) + confidence) / num_examples
