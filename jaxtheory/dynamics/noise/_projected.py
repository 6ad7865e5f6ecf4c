"""The gradient noise of single examples, along random directions."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num, PyTree

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_key,
    check_problem,
    map_examples,
)


def projected_noise(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    dim: int,
    key: KeyArray,
    batch_size: int | None = None,
) -> Float[Array, "n dim"]:
    r"""Project the gradient noise of every example on random directions.

    .. math:: P_{ij} = \frac{1}{\sqrt{k}} \langle g_i - G, v_j \rangle, \quad
        G = \frac{1}{n} \sum_i g_i, \quad j = 1, \dots, k

    with ``g_i`` the gradient of example ``i``'s loss and ``v_j`` independent standard
    normal in parameter space. In the mean over directions ``|P_i|^2`` is
    ``|g_i - G|^2``, and the covariance of the rows has the trace of the gradients'. A
    projection of a stable law is stable with the same index, and norms of rows have
    the tail index of the norms of gradients: rows are what `tails` takes.

    No gradient is stored: one forward derivative along a direction gives the products
    of all examples with it.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``, examples
            independent of each other.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which the gradients are taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        dim: Number of directions ``k``.
        key: Random key of the directions: the same key, the same directions.
        batch_size: Examples per chunk; None takes all at once.

    Returns:
        The projections, one row an example; each column has the mean 0. A row of an
        example whose gradient is not finite is NaN, and so, through the mean, are all.

    Raises:
        ValueError: Arrays disagree on ``n``, parameters are not floating-point, the
            loss is not one number per example, or an option is out of range.

    Memory:
        The result, one direction, and the tangents of one chunk's activations. `dim`
        forward derivatives over the data, each at most three forward passes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory.dynamics import noise
        >>> model = lambda w, x: w * x
        >>> loss = lambda outputs, y: outputs
        >>> x = jnp.array([1.0, 3.0])  # the per-example gradients
        >>> rows = noise.projected_noise(
        ...     model, loss, jnp.array(0.0), x, x, dim=1, key=jax.random.key(0)
        ... )
        >>> rows.shape, bool(abs(rows[0, 0] + rows[1, 0]) < 1e-6)
        ((2, 1), True)

    References:
        Simsekli, Sagun & Gurbuzbalaban, arXiv:1901.06053 (tails of gradient noise).
    """
    check_key(key)
    check_count(dim=dim)
    check_batch_size(batch_size)
    check_problem(apply_fn, loss_fn, params, x, y)
    return _projected(apply_fn, loss_fn, params, x, y, key, dim, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7))
def _projected(apply_fn, loss_fn, params, x, y, key, dim, batch_size):
    def along(index):
        direction = optax.tree.random_like(jax.random.fold_in(key, index), params)

        def products(chunk):
            inputs, targets = chunk
            losses = lambda params: loss_fn(apply_fn(params, inputs), targets)
            return jax.jvp(losses, (params,), (direction,))[1]

        return map_examples(products, (x, y), batch_size=batch_size)

    # One direction after the other: together they would take the memory of all.
    columns = jax.lax.map(along, jnp.arange(dim))
    return (columns - jnp.mean(columns, axis=1, keepdims=True)).T / dim**0.5
