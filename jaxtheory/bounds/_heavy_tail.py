"""The gap of a run that is driven by heavy-tailed noise."""

import numpy as np

from jaxtheory._types import Bound
from jaxtheory.batching import check_count, check_number
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
    gap_bound,
)


def heavy_tail_sde(
    empirical_risk: float,
    mean_squared_gradient_norm: float,
    *,
    tail_index: float,
    noise_scale: float,
    weight_decay: float,
    num_params: int,
    num_examples: int,
    loss_bound: float,
) -> Bound:
    r"""Bound on the gap of SGD with injected alpha-stable noise and weight decay.

    .. math:: B \sqrt{\frac{K\, g}{n\, \lambda\, \sigma^\alpha}}, \qquad
        K = \frac{(2 - \alpha)\, \Gamma(1 - \alpha/2)\, d^{1 - \alpha/2}}
                 {\alpha\, 2^{\alpha/2}}

    for ``dw = -grad L_S(w) dt - lambda w dt + sigma dZ`` with the rotation-invariant
    stable process ``E exp(i u.Z_t) = exp(-t |u|^alpha)``, after a long time, and a loss
    in ``[0, B]``. The factor ``(2 - alpha) Gamma(1 - alpha/2)`` is computed as ``2
    Gamma(2 - alpha/2)``, which is finite at ``alpha = 2``: there ``Z`` is ``sqrt(2)``
    times a Brownian motion and ``K = 1/2``, in any dimension.

    At ``alpha = 2`` it follows from known facts: against the stationary law of decay
    and noise alone, whose log-Sobolev constant is ``lambda / sigma^2``, the relative
    entropy is at most ``g / (2 lambda sigma^2) = K g / (lambda sigma^2)``, and the gap
    at most ``B sqrt(KL / (2n))``, smaller than the bound by ``sqrt(2)``. Below 2 the
    constant is the one that the authors' program computes; its published value at
    ``alpha = 1.644, d = 59550`` is 4.4897, and the tests compare the bound with gaps
    known exactly in one dimension. The theorem needs a regularity of the densities
    that nobody can check, and is one for a fixed time with a term more.

    Args:
        empirical_risk: Mean training loss of the last iterates, in ``[0, B]``.
        mean_squared_gradient_norm: ``g``, the mean along the run of the squared norm of
            the full training loss's gradient, without weight decay; finite (with
            ``alpha < 2`` the weights have infinite variance, and so do gradients that
            grow like them).
        tail_index: ``alpha`` of the noise, above 1 and at most 2: known because it was
            injected, not estimated from gradients.
        noise_scale: ``sigma``, for a unit of time; steps of length ``eta`` add noise of
            scale ``eta^(1/alpha) sigma``.
        weight_decay: ``lambda > 0``.
        num_params: Number ``d`` of parameters.
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.

    Returns:
        Bound in expectation over the law of the weights (`delta` is None). Never a
        certificate.

    Raises:
        ValueError: A value is out of range, not finite or traced.

    Example:
        >>> bound = heavy_tail_sde(
        ...     0.0,
        ...     0.01,
        ...     tail_index=2.0,
        ...     noise_scale=0.1,
        ...     weight_decay=0.5,
        ...     num_params=10_000,
        ...     num_examples=1000,
        ...     loss_bound=1.0,
        ... )
        >>> round(bound.complexity, 6)
        0.031623

    References:
        Dupuis & Simsekli, arXiv:2402.07723 (constants as in its experiments).
    """
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    d = check_count(num_params=num_params)
    positive = lambda value: 0 < value < np.inf
    checks = {
        "mean_squared_gradient_norm": (
            mean_squared_gradient_norm,
            lambda value: 0 <= value < np.inf,
            "finite and at least 0 (an infinite mean square says nothing)",
        ),
        "tail_index": (tail_index, lambda value: 1 < value <= 2, "in (1, 2]"),
        "noise_scale": (noise_scale, positive, "positive and finite"),
        "weight_decay": (weight_decay, positive, "positive and finite"),
    }
    check_concrete(**{name: value for name, (value, _, _) in checks.items()})
    for name, (value, holds, must) in checks.items():
        check_number(name, value, holds, must)
    energy = stable_constant(float(tail_index), d) * float(mean_squared_gradient_norm)
    # The root of the power: a small scale to that power would be rounded to zero.
    root = float(noise_scale) ** (float(tail_index) / 2)
    gap = largest * np.sqrt(energy / n / float(weight_decay)) / root
    return gap_bound(
        empirical_risk=risk,
        gap=float(gap),
        loss_bound=largest,
        delta=None,
        assumptions=[
            INDEPENDENT,
            (SETTING, "the noise was injected, with this tail index and scale"),
            BOUNDED,
            (ON_TRUST, "steps are short and the run long: a stationary diffusion"),
            (ON_TRUST, "the regularity of densities that the theorem needs"),
            (ESTIMATED, "the mean squared gradient norm, by that of one run"),
            IN_EXPECTATION,
        ],
    )


def stable_constant(alpha: float, num_params: int) -> float:
    """The constant ``K`` of `heavy_tail_sde`, finite at ``alpha = 2``."""
    # Imported here because it takes 0.2 s, which `import jaxtheory` should not.
    from scipy.special import gamma

    half = alpha / 2
    shape = 2 * gamma(2 - half) / (alpha * 2**half)
    return float(shape * float(num_params) ** (1 - half))
