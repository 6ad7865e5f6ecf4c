"""The gap of stochastic gradient Langevin dynamics, from gradients along the run."""

import numpy as np
from jaxtyping import ArrayLike, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_count
from jaxtheory.bounds._ledger import ESTIMATED, INDEPENDENT, SETTING, VERIFIED
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    check_setting,
    check_steps,
    gap_bound,
    signal_to_noise,
)

_UPDATE = (
    SETTING,
    "a step is the mean gradient of a batch drawn without looking at the data, at the "
    "current parameters, plus Gaussian noise and terms that know no example",
)


def sgld_gradient_norm(
    empirical_risk: float,
    learning_rates: Real[ArrayLike, " steps"],
    noise_scales: Real[ArrayLike, "..."],
    mean_squared_gradient_norms: Real[ArrayLike, "..."],
    *,
    num_examples: int,
    loss_bound: float,
    training_batch_size: int | None = None,
) -> Bound:
    r"""Bound on the gap of SGLD from the squared norms of single examples' gradients.

    .. math:: \frac{B}{2} \sqrt{\frac{1}{n b} \sum_t \frac{\eta_t^2}{s_t^2} \, E
        \Big[ \frac{1}{n} \sum_{i=1}^n |g_i(w_t)|^2 \Big]}

    for ``w_{t+1} = w_t - eta_t (1/b) sum_{i in batch} g_i(w_t) + N(0, s_t^2 I)`` and a
    loss in ``[0, B]``; ``b = n`` for full batches. The run is compared with one that
    leaves example ``i`` out (its term is zero, the batches are the same), which tells
    nothing about it: the relative entropy of the two is at most ``sum_t eta_t^2
    E|g_i|^2 / (2 n b s_t^2)``, because the example is in a batch with probability
    ``b/n``; and a loss in ``[0, B]`` is sub-Gaussian with variance ``B^2 / 4``, so that
    the gap at ``i`` is at most ``B sqrt(KL / 2)``. With full batches the
    constant is ``B / (2n)``; the published one, ``2 B / n``, is four times as large.

    Args:
        empirical_risk: Mean training loss at the end of the run, in ``[0, B]``. This
            loss may be another than the one whose gradients were followed.
        learning_rates: ``eta_t`` at each step.
        noise_scales: Standard deviation ``s_t`` of the noise of each weight at each
            step, above zero; one number serves all steps.
        mean_squared_gradient_norms: Mean over all ``n`` training examples of the
            squared norm of one example's gradient, at each step; not the squared norm
            of the mean.
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.
        training_batch_size: Examples ``b`` a step; None for all.

    Returns:
        Bound in expectation (`delta` is None). Never a certificate: the expectations of
        the norms over runs and training sets are estimated by the run at hand.

    Raises:
        ValueError: Shapes differ, a value is negative, not finite or traced, or a noise
            scale is zero: without noise the relative entropy is infinite, and
            `virtual_noise` is the bound.

    Example:
        >>> import numpy as np
        >>> steps = np.ones(100)
        >>> bound = sgld_gradient_norm(
        ...     0.1, 0.01 * steps, 0.01, 4 * steps, num_examples=1000, loss_bound=1.0
        ... )
        >>> round(bound.complexity, 6)
        0.01

    References:
        Mou et al., arXiv:1707.05947; Li, Luo & Qiao, arXiv:1902.00621, theorem on GLD.
    """
    rates, scales, norms = check_steps(
        positive=("noise_scales",),
        learning_rates=learning_rates,
        noise_scales=noise_scales,
        mean_squared_gradient_norms=mean_squared_gradient_norms,
    )
    text = "the mean squared gradient norms over runs, by those of one run"
    return _langevin_bound(
        empirical_risk,
        signal_to_noise(rates, scales, norms),
        (ESTIMATED, text),
        num_examples=num_examples,
        loss_bound=loss_bound,
        training_batch_size=training_batch_size,
    )


def sgld_incoherence(
    empirical_risk: float,
    learning_rates: Real[ArrayLike, " steps"],
    noise_scales: Real[ArrayLike, "..."],
    squared_incoherences: Real[ArrayLike, "..."],
    *,
    num_examples: int,
    loss_bound: float,
    training_batch_size: int | None = None,
) -> Bound:
    r"""Bound on the gap of SGLD from how an example's gradient differs from others'.

    .. math:: \frac{B}{2} \sqrt{\frac{1}{n b} \sum_t \frac{\eta_t^2}{s_t^2} \,
        E |g_i(w_t) - \bar g_{-i}(w_t)|^2}

    with the mean gradient :math:`\bar g_{-i}` of the other examples of the batch. As
    `sgld_gradient_norm`, but the run without example ``i`` puts the mean of the others
    in its place, so that what they agree on costs nothing. With full batches and ``B =
    1`` it is ``1/2 sqrt(sum eta^2 |g_i - g_-i|^2 / (n^2 s^2))``.

    Args:
        empirical_risk: As for `sgld_gradient_norm`.
        learning_rates: As for `sgld_gradient_norm`.
        noise_scales: As for `sgld_gradient_norm`.
        squared_incoherences: ``|g_i - mean_{j != i} g_j|^2`` over the other examples of
            the batch at each step: for one example ``i`` drawn before the run and
            present in the batch, or its mean over the examples.
        num_examples: As for `sgld_gradient_norm`.
        loss_bound: As for `sgld_gradient_norm`.
        training_batch_size: Examples ``b >= 2`` a step; None for all.

    Returns:
        Bound in expectation (`delta` is None), never a certificate.

    Raises:
        ValueError: As for `sgld_gradient_norm`, or a batch is of one example, which has
            no others.

    Example:
        >>> import numpy as np
        >>> steps = np.ones(100)
        >>> bound = sgld_incoherence(
        ...     0.1, 0.01 * steps, 0.01, 4 * steps, num_examples=1000, loss_bound=1.0
        ... )
        >>> round(bound.complexity, 6)
        0.01

    References:
        Negrea et al., arXiv:1911.02151; Haghifam et al., arXiv:2004.12983.
    """
    rates, scales, incoherences = check_steps(
        positive=("noise_scales",),
        learning_rates=learning_rates,
        noise_scales=noise_scales,
        squared_incoherences=squared_incoherences,
    )
    if training_batch_size is not None:
        check_count(at_least=2, training_batch_size=training_batch_size)
    text = "the mean squared incoherences over runs and examples, by those of one run"
    return _langevin_bound(
        empirical_risk,
        signal_to_noise(rates, scales, incoherences),
        (ESTIMATED, text),
        num_examples=num_examples,
        loss_bound=loss_bound,
        training_batch_size=training_batch_size,
    )


def _langevin_bound(
    empirical_risk, energy, estimated, *, num_examples, loss_bound, training_batch_size
):
    """``B/2 sqrt(energy / (n b))`` as a bound."""
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    size = n
    if training_batch_size is not None:
        size = check_count(training_batch_size=training_batch_size)
    if size > n:
        raise ValueError(
            f"`training_batch_size` must be at most `num_examples` = {n}, but was "
            f"{size}."
        )
    return gap_bound(
        empirical_risk=risk,
        gap=float(largest / 2 * np.sqrt(energy / (n * size))),
        loss_bound=largest,
        delta=None,
        assumptions=[
            INDEPENDENT,
            _UPDATE,
            (VERIFIED, "the noise of every step is above zero"),
            BOUNDED,
            estimated,
            IN_EXPECTATION,
        ],
    )
