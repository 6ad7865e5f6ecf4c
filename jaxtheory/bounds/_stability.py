"""The gap of SGD from uniform stability: two runs that differ in one example."""

from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_count, check_number, check_word
from jaxtheory.bounds._ledger import (
    INDEPENDENT,
    ON_TRUST,
    SETTING,
    VERIFIED,
    check_concrete,
)
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    check_setting,
    check_steps,
    gap_bound,
)


def uniform_stability(
    empirical_risk: float,
    learning_rates: Real[ArrayLike, " steps"],
    *,
    max_gradient_norm: float,
    smoothness: float,
    num_examples: int,
    loss_bound: float,
    convexity: Literal["convex", "nonconvex"] = "nonconvex",
    training_batch_size: int = 1,
) -> Bound:
    r"""Bound on the gap of SGD from its learning rates, by uniform stability.

    For losses that are ``L``-Lipschitz and ``M``-smooth in the parameters, the distance
    of two runs that differ in one of ``n`` examples grows in the mean by at most

    .. math:: \Delta_{t+1} \le (1 + (1 - 1/n) \eta_t M) \Delta_t + 2 \eta_t L / n

    whatever the batch size. "convex" (and ``eta_t <= 2/M``): without the first factor's
    growth, and the gap is at most ``L Delta = 2 L^2 sum_t eta_t / n``. "nonconvex": the
    runs are the same until the example is first drawn, so for a loss in ``[0, B]``

    .. math:: \min_{t_0} \; B\, t_0 b / n + L \Delta_T, \quad \Delta_{t_0} = 0

    over all steps ``t_0``, for any learning rates. With ``eta_t = c/t`` and ``b = 1``
    it is at most ``B/n`` above the published closed form, ``B (1 + 1/q) / (n - 1) (2 c
    L^2/B)^(1/(q+1)) T^(q/(q+1))`` with ``q = M c``, and mostly below.

    Args:
        empirical_risk: Mean training loss at the end of the run, in ``[0, B]``.
        learning_rates: ``eta_t`` at each step.
        max_gradient_norm: ``L``: the largest gradient norm of one example's loss, at
            any weights.
        smoothness: ``M``: the largest curvature of one example's loss, at any weights.
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.
        convexity: "convex" or "nonconvex".
        training_batch_size: Examples ``b`` a step; their mean gradient is followed.

    Returns:
        Bound in expectation (`delta` is None). Never a certificate: the two constants
        are taken on trust, and in deep networks measured ones are far too small.

    Raises:
        ValueError: A value is out of range, not finite or traced, or a learning rate of
            the convex case exceeds ``2 / smoothness``.

    Example:
        >>> import numpy as np
        >>> bound = uniform_stability(
        ...     0.1,
        ...     np.full(500, 0.1),
        ...     max_gradient_norm=1.0,
        ...     smoothness=1.0,
        ...     num_examples=10_000,
        ...     loss_bound=1.0,
        ...     convexity="convex",
        ... )
        >>> round(bound.complexity, 6)
        0.01

    References:
        Hardt, Recht & Singer, arXiv:1509.01240, theorems 3.7 and 3.12.
    """
    (rates,) = check_steps(learning_rates=learning_rates)
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    check_concrete(max_gradient_norm=max_gradient_norm, smoothness=smoothness)
    positive = lambda value: 0 < value < np.inf
    check_number(
        "max_gradient_norm", max_gradient_norm, positive, "positive and finite"
    )
    check_number("smoothness", smoothness, positive, "positive and finite")
    check_word("convexity", convexity, ("convex", "nonconvex"))
    size = check_count(training_batch_size=training_batch_size)
    if size > n:
        raise ValueError(
            f"`training_batch_size` must be at most `num_examples` = {n}, but was "
            f"{size}."
        )
    constants = float(max_gradient_norm), float(smoothness)
    if convexity == "convex":
        gap, assumed = _convex(rates, *constants, n)
    else:
        gap, assumed = nonconvex_gap(rates, *constants, n, largest, size), []
    return gap_bound(
        empirical_risk=risk,
        gap=gap,
        loss_bound=largest,
        delta=None,
        assumptions=[
            INDEPENDENT,
            (SETTING, "each step drew its batch without looking at data or past"),
            BOUNDED,
            *assumed,
            (ON_TRUST, "`max_gradient_norm` and `smoothness` hold for every example"),
            IN_EXPECTATION,
        ],
    )


def nonconvex_gap(
    rates: np.ndarray,
    lipschitz: float,
    smoothness: float,
    num_examples: int,
    loss_bound: float,
    batch_size: int,
) -> float:
    """The least over ``t0`` of ``B t0 b/n + L Delta_T`` from ``Delta_{t0} = 0``."""
    growth = np.log1p((1 - 1 / num_examples) * smoothness * rates)
    # What a unit at the end of step t has become after the last one.
    later = np.concatenate([np.cumsum(growth[::-1])[::-1][1:], [0.0]])
    # An infinite sum is no candidate; a step of rate 0 adds nothing, however it grows.
    with np.errstate(over="ignore", divide="ignore"):
        parts = 2 * lipschitz / num_examples * np.exp(later + np.log(rates))
        distance = np.concatenate([np.cumsum(parts[::-1])[::-1], [0.0]])
    first = loss_bound * batch_size / num_examples * np.arange(len(rates) + 1)
    return float(np.min(first + lipschitz * distance))


def _convex(rates, lipschitz, smoothness, num_examples):
    """``2 L^2 sum eta / n``; raise if a step is too long to be non-expansive."""
    too_long = int(np.sum(rates > 2 / smoothness * (1 + 1e-6)))
    if too_long:
        raise ValueError(
            f"`learning_rates` must be at most 2 / smoothness = {2 / smoothness:g} in "
            f"the convex case, but {too_long} of {len(rates)} are above. Use "
            '`convexity="nonconvex"`.'
        )
    gap = 2 * lipschitz**2 * float(np.sum(rates)) / num_examples
    assumed = [
        (VERIFIED, "every learning rate is at most 2 / smoothness"),
        (ON_TRUST, "the loss of every example is convex in the parameters"),
    ]
    return gap, assumed
