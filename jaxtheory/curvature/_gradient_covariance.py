"""Covariance of the gradients of the examples' losses."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, LossFn, Params
from jaxtheory.batching import (
    SelectFn,
    check_batch_size,
    check_problem,
    num_shards,
    select_leaves,
)
from jaxtheory.curvature._mean_product import (
    SEMIDEFINITE,
    MeanProduct,
    honest_weights,
    mean_operator,
    total,
)


def gradient_covariance(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
    select: SelectFn | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the covariance of the gradients of the examples' losses.

    .. math::
        C = \frac{1}{n} \sum_i (g_i - \bar g)(g_i - \bar g)^\top,
        \qquad \bar g = \frac{1}{n} \sum_i g_i

    with ``1/n``, not ``1/(n-1)``: the examples are the whole population that batches
    are drawn from. The gradient noise of a batch of ``b`` independent draws has
    covariance ``C / b``. The second moment about zero is `empirical_fisher`, which is
    ``C`` plus the outer product of the mean gradient with itself.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        batch_size: As for `hessian`.
        select: As for `hessian`.

    Returns:
        A positive semi-definite operator of rank at most ``n - 1``. Building it takes
        the mean gradient, once; a product is one forward tangent and one backward pass,
        as for `ggn`.

    Raises:
        ValueError: As for `hessian`.

    Memory:
        Activations of one chunk and one gradient; never the ``n x p`` gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: outputs - y
        >>> x, y = jnp.array([1.0, 3.0]), jnp.zeros(2)
        >>> C = gradient_covariance(model, loss, jnp.array(1.0), x, y)
        >>> float(C.mv(jnp.array(1.0)))  # variance of the numbers 1 and 3
        1.0

    References:
        Kunstner et al., arXiv:1905.12558 (there the centred empirical Fisher).
    """
    check_batch_size(batch_size)
    check_problem(apply_fn, loss_fn, params, x, y)
    options = (apply_fn, loss_fn, batch_size, num_shards((x, y)), select is not None)
    inside = params if select is None else select_leaves(params, select)
    mean = _mean_gradient(MeanProduct(_gradient, *options), params, (x, y), inside)
    product = _Covariance(MeanProduct(_centred_product, *options))
    arrays = (params, (x, y), mean)
    return mean_operator(product, *arrays, select=select, tags=SEMIDEFINITE)


@functools.partial(jax.jit, static_argnums=0)
def _mean_gradient(product, params, data, like):
    """The mean gradient, as a product that does not look at its vector."""
    return product(params, data, like)


def _gradient(model, losses, params, vector, weights):
    del vector
    return jax.grad(lambda p: total(losses, weights)(model(p)))(params)


@dataclass(frozen=True)
class _Covariance:
    """The product of the covariance, about a mean that is known only to rounding."""

    mean: MeanProduct

    def __call__(self, params, data, mean_gradient, vector):
        product, excess = self.mean(params, data, mean_gradient, vector)
        # Slopes average to zero but for rounding, which the mean gradient, far larger
        # than the deviations from it, would make visible.
        about = lambda c, g: c - excess.astype(g.dtype) * g
        return jax.tree.map(about, product, mean_gradient)


def _centred_product(model, losses, params, vector, weights, mean_gradient):
    """``sum_i w_i g_i (s_i - s)``, and the sum of these slopes ``s_i = g_i . v``."""
    values, push = jax.linearize(lambda p: losses(model(p)), params)
    pull = jax.linear_transpose(push, params)
    slopes = push(vector)
    mean = jnp.asarray(optax.tree.vdot(mean_gradient, vector), slopes.dtype)
    slopes = honest_weights(values, weights) * (slopes - mean)
    return pull(slopes)[0], jnp.sum(slopes)
