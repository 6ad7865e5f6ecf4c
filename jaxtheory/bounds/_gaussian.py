"""PAC-Bayes certificates of networks whose weights carry Gaussian noise."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Real

from jaxtheory import batching
from jaxtheory._types import ApplyFn, Bound, KeyArray, LossFn, Params
from jaxtheory.bounds._gaussian_kl import (
    anisotropy,
    check_scales,
    gaussian_kl,
    squared_distance,
)
from jaxtheory.bounds._gibbs import gibbs_risk, zero_one_error
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    SETTING,
    VIOLATED,
    check_concrete,
    check_delta,
    make_bound,
)
from jaxtheory.bounds._pac_bayes import certified_risk

# Neighbours differ by 1.16 %: half a step off the best scale costs 3.3e-5 nats a
# parameter, and the union over all of them 6.9 nats.
_DEFAULT_PRIOR_SCALES = np.logspace(-4, 1, 1001)

# Weights are all that the KL term charges for: a model function that looks the answers
# up in the data would be free.
_FIXED = (
    "the prior (centre and scales) and the model function (preprocessing, BatchNorm "
    "statistics) were fixed before "
)


def gaussian_pac_bayes(
    apply_fn: ApplyFn,
    params: Params,
    prior_params: Params,
    x: Any,
    y: Any,
    *,
    posterior_scales: float | Sequence[float] | Real[ArrayLike, "..."],
    posterior_spread: Params | None = None,
    prior_scales: float | Sequence[float] | Real[ArrayLike, "..."] | None = None,
    num_samples: int,
    delta: float,
    key: KeyArray,
    batch_size: int | None = None,
    loss_fn: LossFn = zero_one_error,
    prior_fraction: float = 0.0,
    prior_seen_data: bool = False,
) -> Bound:
    r"""Certify the risk of a network whose weights carry Gaussian noise.

    Posterior ``N(params, s^2 I)``, or one standard deviation a parameter (see
    `posterior_spread`); prior ``N(prior_params, t^2 I)``; both over all ``p``
    parameters. The bound is on the Gibbs risk: the mean loss of weights drawn from the
    posterior anew for each example (not that of `params` themselves).

    1. The empirical Gibbs risk is a mean ``r`` over ``m = num_samples`` weight draws,
       each evaluated on all ``n`` examples. With probability ``1 - delta / 2`` it is at
       most ``r+ = kl_inverse(r, ln(2 S / (delta / 2)) / m)`` for all ``S``
       `posterior_scales`.
    2. With probability ``1 - delta / 2`` the risk is at most ``kl_inverse(r+, (KL + ln
       J + ln(2 sqrt(n) / (delta / 2))) / n)`` for all posteriors and all ``J``
       `prior_scales`, with ``KL = p/2 (s^2/t^2 - 1 - ln(s^2/t^2)) + |params -
       prior_params|^2 / (2 t^2)`` in float64, free of cancellation.

    The smallest bound over the two grids is returned: both choices are paid for.

    Args:
        apply_fn: Model. Like the prior it must be fixed before the data are seen:
            nothing in it (preprocessing, BatchNorm statistics, stored examples) may
            have been computed from `x` and `y`.
        params: Centre of the posterior; may depend on the data in any way.
        prior_params: Centre of the prior, with the structure and shapes of `params`.
            The initial parameters are the usual choice; parameters trained on other
            examples than `x`, or on the first of them (`prior_fraction`), give tighter
            bounds.
        x: Inputs ``[n, ...]``, ``n >= 2``.
        y: Targets ``[n, ...]``: integer labels ``[n]`` for the default loss.
        posterior_scales: One or several ``s > 0``, rounded to float32. They may depend
            on the data, not on draws made with `key`: the most noise that a loss
            stands (`std` of `curvature.flatness.pac_bayes`) makes this the
            sharpness-based bound.
        posterior_spread: A pytree like `params` of relative standard deviations, which
            `posterior_scales` multiply: the posterior is ``N(params, diag((s
            spread_i)^2))``, such as `pac_bayes_objective` trains, and the KL is that of
            this Gaussian. They may depend on the data. None takes ones.
        prior_scales: One or several ``t > 0``, fixed before the data were seen. None
            takes 1,001 from 1e-4 to 10, evenly spaced in the logarithm.
        num_samples: Weight draws ``m`` for each posterior scale. The bound cannot fall
            below ``1 - (delta / (4 S))^(1/m)``: .043 for ``m = 100``, ``S = 1``,
            ``delta = .05``.
        delta: Probability that the bound may fail, in (0, 1); half pays for each step.
        key: Random key. Trying several keys and keeping the best voids the bound.
        batch_size: Examples per chunk; None takes all at once.
        loss_fn: Loss ``[n]`` clipped to [0, 1], NaN counting as 1. Default: error of
            the largest output.
        prior_fraction: The first ``round(prior_fraction * n)`` examples trained the
            prior: the bound is computed from the others, at least 2 of them, whose
            number then takes the place of ``n``. In [0, 1).
        prior_seen_data: Declares whether `prior_params`, `prior_scales` or anything in
            `apply_fn` were chosen with the help of the examples that the bound is
            computed from. If True, the result is no certificate.

    Returns:
        The bound. `empirical_risk` is ``r``, `complexity` is ``KL + ln J``, and
        `assumptions` names the scales that won. Two settings are recorded and not
        counted against the certificate, because no program can check them: the
        examples are independent, and prior and model function did not see them.

    Raises:
        ValueError: Bad shapes, labels, scales, counts or `delta`; parameters and prior
            that differ in structure or are not finite; traced arguments.

    Memory:
        One extra copy of the parameters and the activations of one chunk. The KL term
        copies one leaf at a time to the host. Costs ``S m`` passes over the data.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> apply_fn = lambda w, x: jnp.stack([-x @ w, x @ w], axis=-1)
        >>> x = jax.random.normal(jax.random.key(0), (500, 3))
        >>> bound = gaussian_pac_bayes(
        ...     apply_fn,
        ...     jnp.array([1.0, 0.0, 0.0]),
        ...     jnp.zeros(3),
        ...     x,
        ...     (x[:, 0] > 0).astype(int),
        ...     posterior_scales=(0.03, 0.1, 0.3),
        ...     num_samples=200,
        ...     delta=0.05,
        ...     key=jax.random.key(1),
        ... )
        >>> bound.certificate, 0.05 < bound.value < 0.2
        (True, True)

    References:
        Langford and Caruana, "(Not) bounding the true error", NeurIPS 2001; Dziugaite
        and Roy, arXiv 1703.11008, section 3; Perez-Ortiz et al., arXiv 2007.12911;
        Maurer, arXiv cs/0411099, theorem 5.
    """
    batching.check_key(key)
    check_concrete(params=params, prior_params=prior_params, x=x, y=y, key=key)
    check_concrete(posterior_spread=posterior_spread)
    delta = check_delta(delta)
    num_samples = batching.check_count(num_samples=num_samples)
    x, y, num_examples, fixed = _unseen(x, y, prior_fraction)
    posterior = check_scales(posterior_scales=posterior_scales)
    prior = _DEFAULT_PRIOR_SCALES
    if prior_scales is not None:
        prior = check_scales(prior_scales=prior_scales)
    batching.check_params(params)
    distance, num_params = squared_distance(params, prior_params)
    sizes, excess = posterior, np.zeros_like(posterior)
    if posterior_spread is not None:
        sizes, excess = anisotropy(posterior_spread, params, posterior)
    kls = gaussian_kl(distance, num_params, sizes[:, None], prior) + excess[:, None]
    risks = gibbs_risk(
        apply_fn,
        loss_fn,
        params,
        x,
        y,
        posterior,
        num_samples=num_samples,
        key=key,
        batch_size=batch_size,
        spread=posterior_spread,
    )
    return _smallest_bound(
        risks,
        np.min(kls, axis=1),
        scales=np.stack([sizes, prior[np.argmin(kls, axis=1)]], axis=1),
        num_priors=len(prior),
        num_examples=num_examples,
        num_samples=num_samples,
        delta=delta,
        loss_fn=loss_fn,
        origin=(VIOLATED if prior_seen_data else SETTING, fixed),
    )


def prior_bound(
    apply_fn: ApplyFn,
    prior_params: Params,
    x: Any,
    y: Any,
    *,
    scales: float | Sequence[float] | Real[ArrayLike, "..."],
    num_samples: int,
    delta: float,
    key: KeyArray,
    batch_size: int | None = None,
    loss_fn: LossFn = zero_one_error,
    prior_fraction: float = 0.0,
    prior_seen_data: bool = False,
) -> Bound:
    r"""The bound that the prior earns by itself: posterior = prior, KL = 0.

    `gaussian_pac_bayes` at ``params = prior_params`` and ``s = t``, for each ``t`` in
    `scales`; the same steps pay for Monte-Carlo error and for choosing among the
    ``J`` scales. Where the prior was trained on other examples, this is the number to
    beat: only the improvement on it is due to the examples given here.

    Args:
        apply_fn: Model, fixed before the data were seen, as for `gaussian_pac_bayes`.
        prior_params: Centre of the prior.
        x: Inputs ``[n, ...]``, ``n >= 2``.
        y: Targets ``[n, ...]``: integer labels ``[n]`` for the default loss.
        scales: One or several scales ``t > 0`` of the prior, rounded to float32, fixed
            before the data were seen. Each costs `num_samples` passes over the data.
        num_samples: Weight draws for each scale.
        delta: Probability that the bound may fail, in (0, 1); half pays for each step.
        key: Random key.
        batch_size: Examples per chunk; None takes all at once.
        loss_fn: Loss ``[n]`` clipped to [0, 1], NaN counting as 1.
        prior_fraction: The first ``round(prior_fraction * n)`` examples trained the
            prior: the bound is computed from the others, at least 2 of them, whose
            number then takes the place of ``n``. In [0, 1).
        prior_seen_data: Declares whether `prior_params`, `scales` or anything in
            `apply_fn` were chosen with the help of the examples that the bound is
            computed from. If True, the result is no certificate.

    Returns:
        The smallest bound over `scales`; `complexity` is ``ln J``.

    Raises:
        ValueError: As `gaussian_pac_bayes`.

    Memory:
        As `gaussian_pac_bayes`. Costs ``J m`` passes over the data.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> apply_fn = lambda w, x: jnp.stack([-x @ w, x @ w], axis=-1)
        >>> x = jax.random.normal(jax.random.key(0), (500, 3))
        >>> bound = prior_bound(
        ...     apply_fn,
        ...     jnp.zeros(3),
        ...     x,
        ...     (x[:, 0] > 0).astype(int),
        ...     scales=1.0,
        ...     num_samples=200,
        ...     delta=0.05,
        ...     key=jax.random.key(1),
        ... )
        >>> bound.complexity, 0.5 < bound.value < 0.8
        (0.0, True)

    References:
        As `gaussian_pac_bayes`; Rivasplata et al., arXiv 2006.13057, on priors that
        depend on data.
    """
    batching.check_key(key)
    check_concrete(prior_params=prior_params, x=x, y=y, key=key)
    delta = check_delta(delta)
    num_samples = batching.check_count(num_samples=num_samples)
    x, y, num_examples, fixed = _unseen(x, y, prior_fraction)
    grid = check_scales(scales=scales)
    risks = gibbs_risk(
        apply_fn,
        loss_fn,
        prior_params,
        x,
        y,
        grid,
        num_samples=num_samples,
        key=key,
        batch_size=batch_size,
    )
    return _smallest_bound(
        risks,
        np.zeros_like(grid),
        scales=np.stack([grid, grid], axis=1),
        num_priors=len(grid),
        num_examples=num_examples,
        num_samples=num_samples,
        delta=delta,
        loss_fn=loss_fn,
        origin=(VIOLATED if prior_seen_data else SETTING, fixed),
    )


def _unseen(x, y, prior_fraction):
    """The examples that the prior has not seen, their number, and what is assumed."""
    batching.check_number(
        "prior_fraction", prior_fraction, lambda f: 0 <= f < 1, "in [0, 1)"
    )
    n = batching.check_examples(x=x, y=y)
    seen = round(float(prior_fraction) * n)
    if n - seen < 2:
        left = f" and `prior_fraction` leaves {n - seen}" if seen else ""
        raise ValueError(f"`x` must hold at least 2 examples, but holds {n}{left}.")
    if not seen:
        return x, y, n, f"{_FIXED}they were seen"
    x, y = jax.tree.map(lambda a: a[seen:], (x, y))
    fixed = f"{_FIXED}the last {n - seen} examples were seen; the first {seen} were not"
    return x, y, n - seen, f"{fixed} used for the bound"


def _smallest_bound(
    risks,
    kl,
    *,
    scales,
    num_priors,
    num_examples,
    num_samples,
    delta,
    loss_fn,
    origin,
):
    """The smallest bound over posteriors, each with a risk, a KL and two scales."""
    price = np.log(num_priors)
    upper, values = certified_risk(
        risks,
        kl + price,
        num_examples=num_examples,
        num_samples=num_samples,
        num_posteriors=len(risks),
        delta=delta,
    )
    best = int(np.argmin(values))
    bounded = "0/1 error" if loss_fn is zero_one_error else "clipped; NaN counts as 1"
    paid = f"{price:.3g} nats pay for choosing among {num_priors} prior scales"
    assumptions = (
        INDEPENDENT,
        origin,
        (SETTING, "pseudo-random draws stand for Gaussian ones; one key, used once"),
        (BY_CONSTRUCTION, f"the loss lies in [0, 1] ({bounded})"),
        (BY_CONSTRUCTION, _monte_carlo(num_samples, len(risks), upper[best])),
        (BY_CONSTRUCTION, paid),
        (BY_CONSTRUCTION, _closed_form(kl[best], *scales[best])),
    )
    return make_bound(
        value=values[best],
        empirical_risk=risks[best],
        complexity=kl[best] + price,
        delta=delta,
        assumptions=assumptions,
    )


def _monte_carlo(num_samples, num_posteriors, upper):
    """How the ledger says what the Monte-Carlo estimate costs."""
    return (
        f"Monte-Carlo error is paid: the mean of {num_samples} draws enters as "
        f"{upper:.6g} (delta / 2, shared by {num_posteriors} posterior scales)"
    )


def _closed_form(kl, posterior_scale, prior_scale):
    """How the ledger says which Gaussians were chosen."""
    return (
        f"KL = {kl:.6g} nats in closed form, posterior scale {posterior_scale:.4g}, "
        f"prior scale {prior_scale:.4g}"
    )
