"""Local entropy by annealed Langevin chains, and the gradient of Entropy-SGD."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PyTree, Real

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import check_count, check_key
from jaxtheory.curvature.flatness._common import (
    axpy,
    check_positive,
    dot,
    gaussian,
    prepare,
)


class LocalEntropy(NamedTuple):
    """Minus the log of a Gaussian average of ``exp(-L)``, and its gradient.

    Attributes:
        value: ``-log E exp(-L(t'))``, with the standard error of the delta method and a
            bias of about plus half its square.
        gradient_norm_squared: Squared norm of the gradient of `value` in the
            parameters, without bias from the chains' scatter; it may come out
            negative. Standard error by the jackknife over chains.
        log_weight_deviation: Standard deviation of the chains' log weights. Above
            about 1 a few chains carry the mean, `value` is too high and its error too
            small: raise `num_temperatures`.
        acceptance: Mean probability with which proposals were accepted.
    """

    value: Estimate
    gradient_norm_squared: Estimate
    log_weight_deviation: Float[Array, ""]
    acceptance: Float[Array, ""]


class _Point(NamedTuple):
    """Where a chain is: ``sqrt(gamma) (t' - t)``, with loss and gradient there."""

    position: PyTree
    loss: Array
    gradient: PyTree


def local_entropy(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    gamma: Real[ArrayLike, ""] = 1e4,
    num_chains: int = 8,
    num_temperatures: int = 24,
    num_steps: int = 8,
    batch_size: int | None = None,
) -> LocalEntropy:
    r"""Estimate the local entropy of the mean loss, and its gradient.

    .. math:: F(t) = -\log \mathbb E_{t' \sim \mathcal N(t, I / \gamma)} e^{-L(t')},
        \qquad \nabla F(t) = \gamma (t - \langle t' \rangle) = \langle \nabla L \rangle

    with the averages over the density ``exp(-L(t') - gamma |t' - t|^2 / 2)``. The
    Gaussian is normalised: without that (as the study writes it) ``F`` has a further
    ``(p / 2) log(gamma / (2 pi))``, which the number of parameters rules. On a
    quadratic with Hessian ``Q`` and minimum 0 it is ``log det(I + Q / gamma) / 2 +
    gamma t^T Q (Q + gamma)^-1 t / 2``.

    Plain Monte Carlo misses the few draws that carry the average. Here each chain
    starts at a draw and is annealed, ``exp(-b L)`` with ``b`` from 0 to 1 as a cube, by
    Metropolis-adjusted Langevin steps that leave the Gaussian invariant (step sizes are
    drawn log-uniformly from ``[0.02, 2]``, so that some fit); its importance weight
    has the mean ``exp(-F)``. Then `num_steps` more steps at ``b = 1`` average the
    gradient.

    The study's ``mu_LE``, the norm of Entropy-SGD's gradient, is the norm of ``t -
    <t'>``: the root of `gradient_norm_squared` over ``gamma``. Its code moves chains by
    noise of standard deviation ``1 / gamma`` instead of ``1 / sqrt(gamma)``, and
    averages positions, whose scatter ``sqrt(p / gamma)`` drowns the mean; gradients
    have the same mean and do not.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Draws and chains.
        gamma: Inverse variance of the Gaussian; 1e4 is a standard deviation of 0.01.
        num_chains: Independent chains, at least 3.
        num_temperatures: Annealing steps.
        num_steps: Steps after that, for the gradient.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The local entropy, its squared gradient norm, and how the chains did.

    Raises:
        ValueError: `gamma` is not positive, a count too small, or as for
            `curvature.hessian`.

    Memory:
        ``num_chains * p`` numbers and one chunk's activations; ``num_chains *
        (1 + num_temperatures + num_steps)`` gradients.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.array(1.0), jnp.ones(1), jnp.zeros(1))
        >>> found = local_entropy(
        ...     *args, key=jax.random.key(0), gamma=1.0, num_chains=400
        ... )
        >>> round(float(found.value.value), 1)  # log(2) / 2 + 1 / 4 = 0.597
        0.6

    References:
        Chaudhari et al., Entropy-SGD, arXiv:1611.01838, definition 1 and equation 6;
        Neal, Annealed importance sampling, arXiv:physics/9803008; Cotter et al., MCMC
        methods for functions, arXiv:1202.0709, section 4 (the step).
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    check_key(key)
    check_positive("gamma", gamma)
    counts = (
        check_count(at_least=3, num_chains=num_chains),
        check_count(num_temperatures=num_temperatures),
        check_count(num_steps=num_steps),
    )
    return _local_entropy(loss, params, x, y, key, gamma, counts)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _local_entropy(loss, params, x, y, key, gamma, counts):
    """`local_entropy` of checked arguments."""
    num_chains, num_temperatures, num_steps = counts
    root = jnp.sqrt(gamma)
    evaluate = jax.value_and_grad(lambda u: loss(axpy(1 / root, u, params), x, y))
    shape = (evaluate, params, num_temperatures, num_steps)
    run = lambda index: _chain(*shape, jax.random.fold_in(key, index))
    log_weights, gradients, accepted = jax.lax.map(run, jnp.arange(num_chains))
    gradients = jax.tree.map(lambda g: g * root, gradients)  # in t, not in position
    return LocalEntropy(
        _minus_log_mean(log_weights),
        _squared_mean(gradients),
        jnp.std(log_weights, ddof=1),
        jnp.mean(accepted),
    )


def _chain(evaluate, params, num_temperatures, num_steps, key):
    """Log weight, mean gradient afterwards, and mean acceptance of one chain."""
    num = num_temperatures + num_steps
    start = gaussian(jax.random.fold_in(key, num), params)
    start = _Point(start, *evaluate(start))

    def temperature(index):
        share = jnp.minimum(index / num_temperatures, 1.0)
        return share.astype(start.loss.dtype) ** 3

    def step(carry, index):
        point, log_weight, total = carry
        log_weight -= (temperature(index + 1) - temperature(index)) * point.loss
        step_key = jax.random.fold_in(key, index)
        point, accepted = _step(evaluate, point, temperature(index + 1), step_key)
        annealed = index >= num_temperatures
        add = lambda a, g: a + jnp.where(annealed, g, 0).astype(a.dtype)
        return (point, log_weight, jax.tree.map(add, total, point.gradient)), accepted

    zeros = jax.tree.map(jnp.zeros_like, start.gradient)
    carry = (start, jnp.zeros_like(start.loss), zeros)
    (_, log_weight, total), accepted = jax.lax.scan(step, carry, jnp.arange(num))
    mean = jax.tree.map(lambda g: g / num_steps, total)
    return log_weight, mean, jnp.mean(accepted)


def _step(evaluate, point, temperature, key):
    """One Metropolis-adjusted step for ``exp(-temperature L)`` times the Gaussian."""
    size_key, noise_key, accept_key = jax.random.split(key, 3)
    size = 2 * 10 ** (-2 * jax.random.uniform(size_key))
    noise = gaussian(noise_key, point.position)

    def move(u, gradient, noise):
        drift = (2 - size) * u - 2 * size * temperature * gradient
        return ((drift + jnp.sqrt(8 * size) * noise) / (2 + size)).astype(u.dtype)

    position = jax.tree.map(move, point.position, point.gradient, noise)
    proposal = _Point(position, *evaluate(position))

    def barrier(here, there):
        # Minus the log of density and proposal relative to those of the Gaussian alone.
        forward = jax.tree.map(
            lambda a, b: (b - a) / 2 + size / 4 * (a + b), here.position, there.position
        )
        squared = temperature**2 * dot(here.gradient, here.gradient)
        inner = temperature * dot(here.gradient, forward)
        return temperature * here.loss + inner + size / 4 * squared

    log_ratio = barrier(point, proposal) - barrier(proposal, point)
    probability = jnp.exp(jnp.minimum(log_ratio, 0))
    # A proposal that is not finite compares False and is refused.
    accepted = jax.random.uniform(accept_key) < probability
    chosen = jax.tree.map(lambda a, b: jnp.where(accepted, b, a), point, proposal)
    return chosen, jnp.where(jnp.isnan(probability), 0, probability)


def _minus_log_mean(log_weights):
    """Minus the log of the mean weight, with the delta method's error."""
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - top)
    mean, num = jnp.mean(weights), weights.shape[0]
    error = jnp.std(weights, ddof=1) / (jnp.sqrt(num) * mean)
    return Estimate(-top - jnp.log(mean), error, num)


def _squared_mean(samples):
    """Squared norm of the mean of ``[m, ...]``, from pairs of different samples."""
    num = jax.tree.leaves(samples)[0].shape[0]
    total = jax.tree.map(lambda s: jnp.sum(s, axis=0), samples)
    with_total = jax.vmap(lambda s: dot(s, total))(samples)
    squares = jax.vmap(lambda s: dot(s, s))(samples)
    everything, alone = dot(total, total), jnp.sum(squares)
    value = (everything - alone) / (num * (num - 1))
    rest = everything - 2 * with_total + squares - (alone - squares)
    without = rest / ((num - 1) * (num - 2))
    error = jnp.sqrt((num - 1) / num * jnp.sum((without - jnp.mean(without)) ** 2))
    return Estimate(value, error, num)
