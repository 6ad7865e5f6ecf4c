"""The maximal inequality over the iterates of a run: what counting them gives."""

from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_word
from jaxtheory.bounds._ledger import INDEPENDENT, SETTING, check_delta
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    LOSSES_IN_RANGE,
    NO_INFORMATION_TERM,
    check_losses,
    count_examples,
    gap_bound,
)


def finite_set(
    losses: Real[ArrayLike, "r n"],
    *,
    loss_bound: float,
    num_examples: int | None = None,
    iterates: Literal["data_dependent", "fixed"] = "data_dependent",
    delta: float | None = None,
) -> Bound:
    r"""Bound on the gap of all recorded iterates at once, from their number alone.

    For ``r`` predictors fixed before ``n`` independent examples are seen, and a loss
    in ``[0, B]``, the largest difference of risk and mean training loss is at most

        B sqrt(ln(r) / (2n))            in expectation
        B sqrt(ln(r / delta) / (2n))    with probability at least 1 - delta

    because each difference is sub-Gaussian with variance ``B^2 / (4n)`` (Hoeffding's
    lemma), and by a union over the predictors. The ``2 B sqrt(2 ln(r) / n)`` that is
    often quoted passes through Rademacher complexities without need and is 4 times
    larger. This is the bar for every bound that looks at the geometry of the set:
    `topological` is reported beside it.

    The iterates of a run are not such a set. What they know of the examples costs an
    information term that nobody can compute, so with ``iterates="data_dependent"`` the
    number is a correlate. It is a certificate for predictors that were fixed before:
    checkpoints of a run on other data, a list of candidates that these ``n`` examples
    select from.

    Args:
        losses: Losses of the ``n`` examples at each of ``r`` records, such as
            `dynamics.example_losses` recorded.
        loss_bound: Largest loss ``B`` that an example can have.
        num_examples: Number of training examples where `losses` are those of a random
            subset, which then estimate the empirical risk; None if they are of all. (Of
            fixed predictors a certificate takes the subset for the examples.)
        iterates: "data_dependent" for those of training on these examples; "fixed" for
            predictors chosen without them.
        delta: Probability that the bound may fail, in (0, 1); None for the statement in
            expectation, which is no certificate: the empirical risk at hand is that of
            one training set.

    Returns:
        Bound on the risk of the last record, which is its mean loss plus `complexity`;
        the same `complexity` serves every other record, whichever is chosen by its
        losses. `vacuous` where the value is `loss_bound` or more.

    Raises:
        ValueError: `losses` is not such a matrix or leaves ``[0, B]``, or an argument
            is out of range or traced.

    Example:
        >>> import numpy as np
        >>> losses = np.full((500, 10_000), 0.1)
        >>> bound = finite_set(losses, loss_bound=1.0, iterates="fixed", delta=0.05)
        >>> print(f"{bound.value:.3f} {bound.certificate}")
        0.121 True

    References:
        Boucheron, Lugosi & Massart, "Concentration Inequalities" (2013), theorem 2.5
        and lemma 2.2.
    """
    array, largest = check_losses(losses, loss_bound)
    n, estimated = count_examples(array, num_examples)
    check_word("iterates", iterates, ("data_dependent", "fixed"))
    delta = None if delta is None else check_delta(delta)
    fixed = (SETTING, "the iterates were fixed before the examples were seen")
    assumptions = [
        INDEPENDENT,
        fixed if iterates == "fixed" else NO_INFORMATION_TERM,
        BOUNDED,
        LOSSES_IN_RANGE,
        *estimated,
    ]
    return gap_bound(
        empirical_risk=float(array[-1].mean()),
        gap=finite_set_gap(len(array), n, largest, delta),
        loss_bound=largest,
        delta=delta,
        assumptions=[*assumptions, *([IN_EXPECTATION] if delta is None else [])],
    )


def finite_set_gap(
    num_points: int, num_examples: int | float, loss_bound: float, delta: float | None
) -> float:
    """``B sqrt(ln(r / delta) / (2n))``; without `delta` the one in expectation.

    Args:
        num_points: Number of predictors.
        num_examples: Number of examples.
        loss_bound: Largest loss.
        delta: Probability that it may fail, or None.

    Returns:
        The bound on the largest gap.
    """
    price = np.log(num_points) - (0.0 if delta is None else np.log(delta))
    return float(loss_bound * np.sqrt(price / (2 * num_examples)))
