"""Gaussian model perturbation: a penalty on what noise in the weights does."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import KeyArray, Objective
from jaxtheory.batching import check_count, check_function, check_key, check_number
from jaxtheory.dynamics._held import check_known
from jaxtheory.dynamics._step import _checked


def gaussian_model_perturbation(
    objective: Objective,
    *,
    scale: float,
    strength: float = 1.0,
    num_samples: int = 1,
) -> Objective:
    r"""Add to an objective how much it rises when the weights get Gaussian noise (GMP).

    .. math:: L(w) + \frac{\rho}{k} \sum_{j=1}^{k} \left(
        \frac{L(w + \sigma \epsilon_j) + L(w - \sigma \epsilon_j)}{2} - L(w) \right),
        \quad \epsilon_j \sim N(0, I)

    with fresh noise in each step. Its mean is ``L + rho (E L(w + sigma eps) - L)``,
    the objective of Wang and Mao; near a minimum ``L + rho sigma^2 tr(H) / 2`` with the
    Hessian ``H``, of a quadratic exactly so.

    Noise comes in pairs of opposite signs, unlike as published: what is odd in it drops
    out, and with it the first and largest error of a draw. On a quadratic the penalty
    has the variance ``sigma^4 tr(H^2) / (2 k)``; of single signs it would have
    ``sigma^2 |g|^2 / k`` more, ``g`` the gradient. A batch, and what else is random in
    `objective` (a dropout mask), is the same in all evaluations of a step.

    Args:
        objective: What is trained, ``objective(params, model_state, batch, key) ->
            (scalar, model_state)``. Its model state is that of the unperturbed weights.
        scale: Standard deviation ``sigma`` of the noise of each weight, in units of the
            weights. Compiled in, as is `strength`.
        strength: ``rho``, at least 0: 1 trains the smoothed loss alone.
        num_samples: Number ``k`` of pairs.

    Returns:
        The penalised objective. Equal arguments give equal objectives.

    Raises:
        ValueError: An argument is out of range.

    Memory:
        ``2 k + 1`` forward and backward passes instead of one, their activations kept
        together, and `k` noises like the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> quartic = lambda w, model_state, batch, key: (w**4, model_state)
        >>> objective = gaussian_model_perturbation(
        ...     quartic, scale=0.1, num_samples=20_000
        ... )
        >>> value, _ = objective(jnp.array(1.0), (), None, jax.random.key(0))
        >>> round(float(value), 2)  # 1 + 6 / 100 + 3 / 10000
        1.06

    References:
        Wang & Mao, arXiv:2110.03128, section 6 (GMP).
    """
    check_function("objective", objective)
    check_known(scale=scale, strength=strength)
    positive = lambda s: 0 < s < math.inf
    check_number("scale", scale, positive, "positive and finite")
    not_negative = lambda s: 0 <= s < math.inf
    check_number("strength", strength, not_negative, "finite, at least 0")
    num = check_count(num_samples=num_samples)
    return _ModelPerturbation(objective, float(scale), float(strength), num)


@dataclasses.dataclass(frozen=True)
class _ModelPerturbation:
    """What `gaussian_model_perturbation` returns; equal when built from equals."""

    objective: Objective
    scale: float
    strength: float
    num_samples: int

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: KeyArray
    ) -> tuple[Float[Array, ""], PyTree]:
        check_key(key)
        key_own, key_noise = jax.random.split(key)

        def value(params, key):
            return _checked(self.objective, params, model_state, batch, key)

        def rise(key):
            noise = optax.tree.random_like(key, params)
            moved = lambda sign: jax.tree.map(
                lambda w, e: w + jnp.asarray(sign * self.scale, e.dtype) * e,
                params,
                noise,
            )
            # The same randomness in all, on purpose: differences are of weights alone.
            above, _ = value(moved(1), jax.random.clone(key_own))
            below, _ = value(moved(-1), jax.random.clone(key_own))
            return (above + below) / 2

        loss, model_state_after = value(params, jax.random.clone(key_own))
        around = jax.vmap(rise)(jax.random.split(key_noise, self.num_samples))
        penalty = jnp.mean(around - loss)
        return loss + self.strength * penalty, model_state_after
