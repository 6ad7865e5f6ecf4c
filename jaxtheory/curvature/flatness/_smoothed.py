"""Low-pass filtered loss: the loss averaged over a Gaussian around the parameters."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Num, PyTree, Real

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_count,
    check_key,
    check_word,
)
from jaxtheory.curvature.flatness._common import (
    axpy,
    check_positive,
    gaussian,
    mean_estimate,
    norm,
    prepare,
)


def lpf(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    std: Real[ArrayLike, ""] = 0.01,
    num_samples: int = 32,
    quantity: Literal["loss", "rise"] = "loss",
    scale: Literal["parameters", "filters"] = "parameters",
    batch_size: int | None = None,
) -> Estimate:
    r"""Estimate the low-pass filtered loss, or how far it lies above the loss.

    .. math:: \mathbb E_e L(t + e), \quad e \sim \mathcal N(0, s^2 I), \quad
        L(t) = \frac{1}{n} \sum_i \ell(f(t, x_i), y_i)

    On a quadratic with Hessian ``Q`` it exceeds the loss by ``s^2 tr(Q) / 2``: with
    ``quantity="rise"`` it is a trace at a finite distance.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Perturbations.
        std: Standard deviation ``s`` of each entry of ``e``.
        num_samples: Number of perturbations, at least 2; one evaluation each. The
            published study took 100.
        quantity: The filtered "loss", or its "rise" above ``L(t)``.
        scale: "parameters" as above; or "filters" as in LPF-SGD: an entry has standard
            deviation ``s |w|`` with ``w`` its filter, all weights into one output (the
            last axis of a Flax kernel), or the whole array for one of at most one axis.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The mean over perturbations, with its standard error.

    Raises:
        ValueError: `std` is not positive, fewer than two samples, an unknown option,
            or as for `curvature.hessian`.

    Memory:
        One perturbation and one chunk's activations.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
        >>> found = lpf(*args, key=jax.random.key(0), std=0.1, num_samples=1000)
        >>> round(float(found.value), 3)  # 0.1^2 tr(I / 2) / 2
        0.005

    References:
        Bisla, Wang & Choromanska, Low-pass filtering SGD for recovering flat optima in
        the deep learning optimization landscape, arXiv:2201.08025, section 3.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    check_key(key)
    check_positive("std", std)
    num_samples = check_count(at_least=2, num_samples=num_samples)
    check_word("quantity", quantity, ("loss", "rise"))
    check_word("scale", scale, ("parameters", "filters"))
    rise, base = _filtered(loss, params, x, y, key, std, num_samples, scale)
    return rise if quantity == "rise" else rise._replace(value=base + rise.value)


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _filtered(loss, params, x, y, key, std, num_samples, scale):
    """The rise of the filtered loss above the loss, and the loss."""
    base = loss(params, x, y)

    def rise(index):
        noise = gaussian(jax.random.fold_in(key, index), params)
        if scale == "filters":
            noise = jax.tree.map(lambda e, p: e * _filter_norms(p), noise, params)
        # Less the loss before the mean: the rise may be small beside it.
        return loss(axpy(std, noise, params), x, y) - base

    return mean_estimate(jax.lax.map(rise, jnp.arange(num_samples))), base


def _filter_norms(array):
    """Norm of the weights into each output; of the whole array, if it is a vector."""
    if array.ndim < 2:
        return norm(array).astype(array.dtype)
    squares = jnp.sum(jnp.square(array.astype(jnp.float32)), range(array.ndim - 1))
    norms = jnp.sqrt(squares).astype(array.dtype)
    return norms.reshape((1,) * (array.ndim - 1) + norms.shape)
