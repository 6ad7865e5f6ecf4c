"""Posteriors that are trained for their bound: PAC-Bayes with backprop."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Objective, Params
from jaxtheory.batching import (
    check_count,
    check_function,
    check_number,
    check_pair,
    check_params,
    example_losses,
)
from jaxtheory.bounds._gaussian_kl import check_same_structure
from jaxtheory.bounds._ledger import check_delta


class GaussianPosterior(NamedTuple):
    """A Gaussian over parameters, one standard deviation each; what is trained.

    Attributes:
        params: Means, a parameter pytree.
        log_scale: Logarithms of the standard deviations, a pytree like it.
    """

    params: Params
    log_scale: Params

    @property
    def spread(self) -> Params:
        """Standard deviations, the `posterior_spread` of `gaussian_pac_bayes`."""
        return jax.tree.map(jnp.exp, self.log_scale)


def init_posterior(params: Params, *, scale: float) -> GaussianPosterior:
    """Begin a posterior around parameters, with one standard deviation for all.

    Args:
        params: Means: usually those of the prior.
        scale: Standard deviation.

    Returns:
        The posterior, for ``dynamics.init(optimizer, posterior)``.

    Raises:
        ValueError: `params` are not floating-point, or `scale` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> posterior = init_posterior({"w": jnp.zeros(3)}, scale=0.5)
        >>> posterior.spread["w"].tolist()
        [0.5, 0.5, 0.5]
    """
    check_params(params)
    check_number("scale", scale, lambda s: 0 < s < np.inf, "positive and finite")
    log_scale = jax.tree.map(lambda a: jnp.full_like(a, np.log(scale)), params)
    return GaussianPosterior(params, log_scale)


def bounded_cross_entropy(
    outputs: Float[Array, "n k"], targets: Int[Array, " n"]
) -> Float[Array, " n"]:
    r"""Cross-entropy scaled to [0, 1], by probabilities of at least 1e-4.

    .. math:: \ell = -\log \max(p_y, 10^{-4}) \,/\, \log 10^4

    with ``p`` the softmax of the outputs. Where it is cut off its gradient is zero. It
    is what `pac_bayes_objective` trains on; the 0/1 error is what is certified.

    Args:
        outputs: One score a class.
        targets: Class labels, 0 to ``k - 1``.

    Returns:
        The loss of each example (a `LossFn`).

    Example:
        >>> import jax.numpy as jnp
        >>> bounded_cross_entropy(jnp.array([[50.0, 0.0]]), jnp.array([1])).tolist()
        [1.0]

    References:
        Perez-Ortiz et al., arXiv:2007.12911, section 5.
    """
    log_p = jax.nn.log_softmax(outputs, axis=-1)
    own = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    floor = np.log(1e-4)
    return jnp.maximum(own, floor) / floor


def pac_bayes_objective(
    apply_fn: ApplyFn,
    *,
    prior_scale: float,
    num_examples: int,
    delta: float = 0.05,
    loss_fn: LossFn = bounded_cross_entropy,
) -> Objective:
    r"""The quadratic PAC-Bayes bound as an objective: train a posterior for its bound.

    .. math:: \left( \sqrt{r + c/2} + \sqrt{c/2} \right)^2, \quad
        c = \frac{\mathrm{KL} + \ln(2 \sqrt{n} / \delta)}{n}

    with ``r`` the mean loss of the batch at one draw of the weights from the posterior
    (the same for all examples of the batch, drawn with the step's key) and KL that of
    ``N(params, diag(exp(2 log_scale)))`` to the prior ``N(prior_params, t^2 I)``, in
    closed form. What is trained are both means and standard deviations.

    The prior's centre is the model state, which training passes through: one compiled
    program serves all priors, and a population may have one each. It must be fixed
    before the examples were seen that the bound counts.

    It trains only: the number it returns is no bound (one draw, one batch).
    `gaussian_pac_bayes` certifies what came out, with `GaussianPosterior.spread` as its
    `posterior_spread` and this prior.

    Args:
        apply_fn: Model.
        prior_scale: Standard deviation ``t`` of the prior.
        num_examples: Number ``n`` of examples that the bound will count. With a prior
            trained on a part of the data: those left, though the posterior may be
            trained on all.
        delta: As in the bound.
        loss_fn: Differentiable loss in [0, 1].

    Returns:
        ``objective(posterior, prior_params, batch, key) -> (scalar, prior_params)`` for
        `dynamics.train`. Its state is ``dynamics.init(optimizer,
        init_posterior(prior_params, scale=...), model_state=prior_params)``. Equal
        functions and numbers give equal objectives.

    Raises:
        ValueError: An argument is out of its range; when called, the posterior does not
            have the structure of the prior.

    Memory:
        A draw of the weights, and its gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import bounds
        >>> prior = jnp.zeros((3, 2))
        >>> objective = bounds.pac_bayes_objective(
        ...     lambda w, x: x @ w, prior_scale=0.1, num_examples=100
        ... )
        >>> posterior = bounds.init_posterior(prior, scale=0.1)
        >>> batch = jnp.ones((4, 3)), jnp.zeros(4, int)
        >>> value, _ = objective(posterior, prior, batch, jax.random.key(0))
        >>> 0.1 < float(value) < 0.5  # ln 2 / ln 1e4, and what n = 100 costs
        True

    References:
        Perez-Ortiz et al., arXiv:2007.12911, equation 12; Dziugaite & Roy,
        arXiv:1703.11008.
    """
    check_function("apply_fn", apply_fn)
    check_function("loss_fn", loss_fn)
    positive = lambda scale: 0 < scale < np.inf
    check_number("prior_scale", prior_scale, positive, "positive and finite")
    n = check_count(at_least=2, num_examples=num_examples)
    confidence = np.log(2 * np.sqrt(n) / check_delta(delta))
    return _PacBayes(apply_fn, loss_fn, float(prior_scale), n, float(confidence))


@dataclasses.dataclass(frozen=True)
class _PacBayes:
    """What `pac_bayes_objective` returns."""

    apply_fn: ApplyFn
    loss_fn: LossFn
    prior_scale: float
    num_examples: int
    confidence: float

    def __call__(
        self,
        posterior: GaussianPosterior,
        prior_params: Params,
        batch: PyTree,
        key: KeyArray,
    ) -> tuple[Float[Array, ""], Params]:
        check_same_structure(posterior.params, prior_params, "model_state")
        x, y, n = check_pair(batch)
        outputs = self.apply_fn(_draw(posterior, key), x)
        risk = jnp.mean(example_losses(self.loss_fn, outputs, y, n))
        kl = _kl(posterior, prior_params, self.prior_scale)
        half = (kl + self.confidence) / self.num_examples / 2
        return (jnp.sqrt(risk + half) + jnp.sqrt(half)) ** 2, prior_params


def _draw(posterior, key):
    """Weights from the posterior."""
    noise = optax.tree.random_like(key, posterior.params)
    draw = lambda mean, scale, normal: mean + scale * normal
    return jax.tree.map(draw, posterior.params, posterior.spread, noise)


def _kl(posterior, prior_params, prior_scale):
    """Relative entropy to the prior, in the precision of the parameters."""

    def one(mean, log_scale, centre):
        log_ratio = log_scale - np.log(prior_scale)
        shift = (mean - centre) / prior_scale
        terms = jnp.expm1(2 * log_ratio) - 2 * log_ratio + shift**2
        return jnp.sum(terms) / 2

    terms = jax.tree.map(one, posterior.params, posterior.log_scale, prior_params)
    return jax.tree.reduce(jnp.add, terms)
