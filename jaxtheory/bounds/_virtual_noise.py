"""The gap of SGD without noise, by noise that is added in thought."""

import numpy as np
from jaxtyping import ArrayLike, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_number
from jaxtheory.bounds._ledger import (
    ESTIMATED,
    INDEPENDENT,
    ON_TRUST,
    SETTING,
    check_concrete,
)
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    check_setting,
    check_steps,
    gap_bound,
    signal_to_noise,
)


def virtual_noise(
    empirical_risk: float,
    learning_rates: Real[ArrayLike, " steps"],
    noise_scales: Real[ArrayLike, "..."],
    squared_dispersions: Real[ArrayLike, "..."],
    *,
    flatness: float,
    num_examples: int,
    loss_bound: float,
    flatness_fresh: float | None = None,
) -> Bound:
    r"""Bound on the gap of SGD from gradient dispersion and flatness.

    .. math:: \frac{B}{2} \sqrt{\frac{1}{n} \sum_t \frac{\eta_t^2}{s_t^2} \,
        E |g_t - c_t|^2} + \gamma - \gamma'

    for ``w_{t+1} = w_t - eta_t g_t`` and a loss in ``[0, B]``. Beside the run runs its
    sum ``v_t`` with Gaussian noise of variances ``s_1^2, s_2^2, ...`` that never enters
    a gradient. What ``v_T`` knows of the ``n`` examples is at most ``sum_t eta_t^2
    E|g_t - c_t|^2 / (2 s_t^2)`` nats, for any ``c_t`` that is a function of ``v_t``,
    and the gap of ``v_T`` at most ``B sqrt(I / (2n))``. Back to ``w_T`` it takes the
    flatness ``gamma``, the mean over noise ``N(0, sum_t s_t^2 I)`` of the training loss
    at ``w_T`` plus noise, minus that at ``w_T``; and ``gamma'``, the same of the risk.

    With ``c_t = 0`` the dispersion is the squared norm of the batch's gradient, which
    is always allowed. The published one is its variance around the population gradient
    at ``w_t``; that is no function of ``v_t``, and whoever uses it takes the step from
    the one to the other on trust.

    Args:
        empirical_risk: Mean training loss at the end of the run, in ``[0, B]``. This
            loss may be another than the one whose gradients were followed.
        learning_rates: ``eta_t`` at each step.
        noise_scales: Standard deviation ``s_t`` of the noise of each weight at each
            step, above zero, one number for all or one each. Free to choose, but fixed
            before the run.
        squared_dispersions: ``|g_t - c_t|^2`` of the gradient of the batch at each
            step.
        flatness: ``gamma``; half of ``sum_t s_t^2`` times the Hessian's trace to second
            order.
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.
        flatness_fresh: ``gamma'`` estimated on fresh examples; None takes it to be at
            least 0, on trust.

    Returns:
        Bound in expectation (`delta` is None). Never a certificate: dispersions and
        flatness are expectations, estimated by those of one run.

    Raises:
        ValueError: Shapes differ, a value is negative, not finite or traced, a noise
            scale is zero, or a flatness is beyond ``B``.

    Example:
        >>> import numpy as np
        >>> steps = np.ones(100)
        >>> bound = virtual_noise(
        ...     0.1,
        ...     0.01 * steps,
        ...     0.01,
        ...     4 * steps,
        ...     flatness=0.02,
        ...     num_examples=10_000,
        ...     loss_bound=1.0,
        ... )
        >>> round(bound.complexity, 6)
        0.12

    References:
        Neu et al., arXiv:2102.00931; Wang & Mao, arXiv:2110.03128.
    """
    rates, scales, dispersions = check_steps(
        positive=("noise_scales",),
        learning_rates=learning_rates,
        noise_scales=noise_scales,
        squared_dispersions=squared_dispersions,
    )
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    known = {"flatness": flatness}
    if flatness_fresh is not None:
        known["flatness_fresh"] = flatness_fresh
    check_concrete(**known)
    for name, value in known.items():
        within = lambda value: -largest <= value <= largest
        check_number(name, value, within, "a difference of losses in [0, `loss_bound`]")
    information = signal_to_noise(rates, scales, dispersions) / 2
    fresh = 0.0 if flatness_fresh is None else float(flatness_fresh)
    gap = largest * np.sqrt(information / (2 * n)) + float(flatness) - fresh
    return gap_bound(
        empirical_risk=risk,
        gap=float(gap),
        loss_bound=largest,
        delta=None,
        assumptions=_assumptions(flatness_fresh is None),
    )


def _assumptions(fresh_on_trust):
    """What the bound assumes; the last but one depends on what was given."""
    fresh = (ESTIMATED, "the flatness of the risk")
    if fresh_on_trust:
        fresh = (ON_TRUST, "noise does not lower the risk (its flatness is at least 0)")
    return [
        INDEPENDENT,
        (SETTING, "batches and noise scales were drawn without looking at the data"),
        (ON_TRUST, "a dispersion is around a function of the perturbed weights, or 0"),
        BOUNDED,
        (ESTIMATED, "dispersions and flatness over runs, by those of one run"),
        fresh,
        IN_EXPECTATION,
    ]
