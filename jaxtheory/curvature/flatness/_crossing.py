"""How far the loss lets one go: epsilon-sharpness and the PAC-Bayes sigma."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PyTree, Real

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.curvature.flatness._common import (
    axpy,
    check_positive,
    gaussian,
    largest,
    mean_estimate,
    norm,
    prepare,
    size,
)
from jaxtheory.linalg import check_vector

# From a 1e-5 part of the parameters to some 1e4 times them; then 20 bits of precision.
_FIRST, _NUM_DOUBLINGS, _NUM_BISECTIONS = 1e-5, 30, 20


class EpsilonSharpness(NamedTuple):
    """How soon the loss rises along its gradient.

    Attributes:
        value: ``1 / distance``.
        distance: Length of the ascent step; infinite where none was found, NaN where
            the loss or its gradient is not finite.
        found: Whether the loss reached the rise. False also where the gradient is
            zero, which has no direction, or something is not finite.
    """

    value: Float[Array, ""]
    distance: Float[Array, ""]
    found: Bool[Array, ""]


class PacBayes(NamedTuple):
    """How far one may be perturbed at random, and the complexity that goes with it.

    Attributes:
        value: The complexity ``sqrt((KL + log(2 sqrt(n) / delta)) / (2 n))``.
        published: ``|t - t0|^2 / (4 s^2) + log(2 n / delta)``, as in the study's code.
        divergence: ``KL = |t - t0|^2 / (2 s^2)``, in nats.
        std: The standard deviation ``s``; infinite where none was found, and NaN, as
            are the others, where the loss is not finite. Its standard error is that of
            the mean rise over its slope in ``s``.
        found: Whether the mean loss reached the rise.
    """

    value: Float[Array, ""]
    published: Float[Array, ""]
    divergence: Float[Array, ""]
    std: Estimate
    found: Bool[Array, ""]


def epsilon_sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    rise: Real[ArrayLike, ""] = 0.1,
    batch_size: int | None = None,
) -> EpsilonSharpness:
    r"""Find the shortest step along the gradient that raises the loss by an amount.

    .. math:: \frac{1}{\eta |g|}, \quad
        \eta = \min \{\eta > 0: L(t + \eta g) - L(t) = \epsilon\}, \quad
        g = \nabla L(t)

    with ``L`` the mean loss. The length of the step is doubled from a 1e-5 part of the
    parameters (of 1, where they are zero) until the loss has risen, 30 times at most,
    and then bisected 20 times: a rise and fall between two doublings is not seen.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        rise: ``epsilon``, in the units of the loss.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The sharpness, the length ``eta |g|``, and whether there is one. A loss that
        stays below the rise has sharpness 0 at an infinite distance; where loss or
        gradient are not finite both are NaN.

    Raises:
        ValueError: `rise` is not positive, or as for `curvature.hessian`.

    Memory:
        One gradient, then up to 51 evaluations of the loss.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> args = (model, loss, jnp.array(1.0), jnp.ones(3), jnp.zeros(3))
        >>> found = epsilon_sharpness(*args, rise=3.0)  # (1 + r)^2 - 1 = 3
        >>> round(float(found.distance), 4), bool(found.found)
        (1.0, True)

    References:
        arXiv:2201.08025, appendix (the study's measures); Keskar et al.,
        arXiv:1609.04836, section 2.2.2.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    check_positive("rise", rise)
    return _epsilon_sharpness(loss, params, x, y, rise)


@functools.partial(jax.jit, static_argnums=0)
def _epsilon_sharpness(loss, params, x, y, rise):
    base, gradient = jax.value_and_grad(loss)(params, x, y)
    top = largest(gradient)
    unit = jax.tree.map(lambda g: g / jnp.where(top > 0, top, 1), gradient)
    direction = jax.tree.map(lambda u: u / jnp.where(top > 0, norm(unit), 1), unit)
    length = norm(params)
    first = _FIRST * jnp.where(length > 0, length, 1)
    distance, found = _first_crossing(
        lambda r: loss(axpy(r, direction, params), x, y) - base, rise, first
    )
    found = found & (top > 0) & jnp.isfinite(base) & jnp.isfinite(top)
    distance = jnp.where(found, distance, jnp.inf)
    distance = jnp.where(jnp.isfinite(base) & jnp.isfinite(top), distance, jnp.nan)
    return EpsilonSharpness(1 / distance, distance, found)


def pac_bayes(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    initial_params: Params,
    key: KeyArray,
    rise: Real[ArrayLike, ""] = 0.1,
    num_samples: int = 16,
    delta: Real[ArrayLike, ""] = 1e-6,
    batch_size: int | None = None,
) -> PacBayes:
    r"""Find the Gaussian perturbation that raises the loss by a given amount.

    .. math:: \mathbb E_z L(t + s z) - L(t) = \epsilon, \quad z \sim \mathcal N(0, I)

    for the smallest such ``s``, by doubling and bisection on the same draws of ``z``
    throughout; and from it the PAC-Bayes complexity of the posterior
    ``N(t, s^2 I)`` under the prior ``N(t0, s^2 I)``.

    The published study computes ``|t - t0|^2 / (4 s^2) + log(2 n / 1e-6)`` (field
    `published`). The divergence of those two Gaussians is ``|t - t0|^2 / (2 s^2)``,
    twice its first term, and what it bounds is the root in field `value` (McAllester's
    bound with Maurer's constant). Both order networks in nearly the same way. Neither
    is a certificate: ``s`` was chosen on the data without paying for it, and the loss
    is not bounded; `jaxtheory.bounds` has one.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        initial_params: Where training began, ``t0``.
        key: The draws.
        rise: ``epsilon``, in the units of the loss.
        num_samples: Number of draws, at least 2.
        delta: Confidence parameter in ``(0, 1)``.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The complexities, ``s`` with its standard error, and whether there is one.

    Raises:
        ValueError: A number is out of range, `initial_params` are not like `params`, or
            as for `curvature.hessian`.

    Memory:
        One perturbation and one chunk's activations; up to ``53 num_samples``
        evaluations of the loss.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
        >>> found = pac_bayes(
        ...     *args,
        ...     initial_params=jnp.ones(2),
        ...     key=jax.random.key(0),
        ...     rise=0.08,
        ...     num_samples=999,
        ... )
        >>> round(float(found.std.value), 1)  # s^2 tr(I / 2) / 2 = 0.08
        0.4

    References:
        arXiv:2201.08025, appendix; Jiang et al., Fantastic generalization measures,
        arXiv:1912.02178, section 4.3; Maurer, arXiv:cs/0411099 (the constant).
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    check_key(key)
    check_vector(initial_params, params, "initial_params")
    check_positive("rise", rise)
    check_number("delta", delta, lambda d: 0 < d < 1, "between 0 and 1")
    num_samples = check_count(at_least=2, num_samples=num_samples)
    std, found = _perturbation(loss, params, x, y, key, rise, num_samples)
    n = jax.tree.leaves(x)[0].shape[0]
    moved = norm(jax.tree.map(jnp.subtract, params, initial_params))
    ratio = jnp.square(moved / std.value)
    constant = jnp.log(2 * jnp.sqrt(n) / delta)
    value = jnp.sqrt((ratio / 2 + constant) / (2 * n))
    return PacBayes(value, ratio / 4 + jnp.log(2 * n / delta), ratio / 2, std, found)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _perturbation(loss, params, x, y, key, rise, num_samples):
    """The standard deviation of the smallest perturbation with a given mean rise."""
    base = loss(params, x, y)

    def one(std, index):
        noise = gaussian(jax.random.fold_in(key, index), params)
        return loss(axpy(std, noise, params), x, y) - base

    def rises(std):
        return jax.lax.map(lambda i: one(std, i), jnp.arange(num_samples))

    def rises_and_slopes(std):
        slope = lambda i: jax.jvp(lambda s: one(s, i), (std,), (jnp.ones_like(std),))
        return jax.lax.map(slope, jnp.arange(num_samples))

    spread = norm(params) / jnp.sqrt(size(params))
    first = _FIRST * jnp.where(spread > 0, spread, 1)
    std, found = _first_crossing(lambda std: jnp.mean(rises(std)), rise, first)
    found = found & jnp.isfinite(base)
    values, slopes = rises_and_slopes(jnp.where(found, std, first))
    error = mean_estimate(values).standard_error / jnp.abs(jnp.mean(slopes))
    none = jnp.where(jnp.isfinite(base), jnp.inf, jnp.nan)
    unknown = lambda value: jnp.where(found, value, none)
    return Estimate(unknown(std), unknown(error), num_samples), found


def _first_crossing(
    rise: Callable[[Array], Array], target: Real[ArrayLike, ""], first: Array
) -> tuple[Array, Array]:
    """Where a function first reaches a target, by doubling and then bisection.

    A value that is NaN has left the range of numbers and counts as above.
    """

    def going(carry):
        _, _, found, doublings, bisections = carry
        return jnp.where(
            found, bisections < _NUM_BISECTIONS, doublings <= _NUM_DOUBLINGS
        )

    # One loop for both, so that the loss is compiled once.
    def step(carry):
        low, high, found, doublings, bisections = carry
        point = jnp.where(found, (low + high) / 2, high)
        above = ~(rise(point) < target)
        low = jnp.where(above, low, point)
        doubled = jnp.where(found, high, 2 * high)
        high = jnp.where(above, point, doubled)
        return low, high, found | above, doublings + ~found, bisections + found

    none = jnp.zeros((), int)
    start = (jnp.zeros_like(first), first, jnp.zeros((), bool), none, none)
    low, high, found, _, _ = jax.lax.while_loop(going, step, start)
    return (low + high) / 2, found
