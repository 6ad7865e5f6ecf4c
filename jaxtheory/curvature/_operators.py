"""Hessian and generalised Gauss-Newton operators over the whole data set."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, LossFn, Params
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_problem,
    num_shards,
    sum_examples,
)
from jaxtheory.linalg import function_operator


def hessian(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the Hessian of the mean loss as an operator on parameter pytrees.

    .. math:: H = \nabla^2_w \frac{1}{n} \sum_i \ell(f(w, x_i), y_i)

    The mean is over all ``n`` examples, exact also when `batch_size` does not divide
    ``n``. Weight decay is not in it: ``hessian(...) + decay * identity`` says so.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which the Hessian is taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        batch_size: Examples per chunk and device; None takes all at once. Build the
            operator outside `jit` for chunks that follow the sharding: under `jit` an
            array does not know where it lives.

    Returns:
        A symmetric lineax operator; a product costs about two gradients, and on data
        sharded over devices exactly one all-reduce.

    Raises:
        ValueError: Arrays disagree on ``n``, parameters are not floating-point, or the
            loss is not one number per example.

    Memory:
        Activations of one chunk; never a ``p x p`` matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> H = hessian(model, loss, jnp.zeros(2), x, jnp.zeros(2))
        >>> H.mv(jnp.ones(2)).tolist()  # (2 / n) X^T X
        [1.0, 4.0]

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    lanes = _check(apply_fn, loss_fn, params, x, y, batch_size)
    product = _MeanProduct(_hessian_product, apply_fn, loss_fn, batch_size, lanes)
    return function_operator(
        product, params, x, y, structure=params, tags=lx.symmetric_tag
    )


def ggn(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the generalised Gauss-Newton operator of the mean loss.

    .. math:: G = \frac{1}{n} \sum_i J_i^\top \, \nabla^2_f \ell(f_i, y_i) \, J_i

    with ``J_i`` the Jacobian of example ``i``'s outputs in the parameters. It equals
    the Hessian for a linear model, and is positive semi-definite when the loss is
    convex in the outputs (not tagged: any loss is taken).

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``, twice differentiable in
            the outputs.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        batch_size: As for `hessian`.

    Returns:
        A symmetric lineax operator on parameter pytrees.

    Raises:
        ValueError: As for `hessian`.

    Memory:
        Activations of one chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> ggn(model, loss, jnp.zeros(2), x, jnp.zeros(2)).mv(jnp.ones(2)).tolist()
        [1.0, 4.0]

    References:
        Schraudolph (2002); Martens, arXiv:1412.1193, section 8.
    """
    lanes = _check(apply_fn, loss_fn, params, x, y, batch_size)
    product = _MeanProduct(_ggn_product, apply_fn, loss_fn, batch_size, lanes)
    return function_operator(
        product, params, x, y, structure=params, tags=lx.symmetric_tag
    )


def _check(apply_fn, loss_fn, params, x, y, batch_size):
    """Check what `hessian` and `ggn` are given; the number of shards of the data."""
    check_batch_size(batch_size)
    check_problem(apply_fn, loss_fn, params, x, y)
    return num_shards((x, y))


@dataclass(frozen=True)
class _MeanProduct:
    """A product with a mean over examples, hashable so that equal ones share code."""

    chunk_product: Callable[..., PyTree]
    apply_fn: ApplyFn
    loss_fn: LossFn
    batch_size: int | None
    lanes: int

    def __call__(self, params, x, y, vector):
        n = check_examples(x=x, y=y)
        vector = jax.tree.map(lambda v, p: v.astype(p.dtype), vector, params)

        def on_chunk(chunk, weights):
            chunk_x, chunk_y = chunk

            def total_loss(outputs):
                losses = self.loss_fn(outputs, chunk_y)
                return jnp.sum(weights.astype(losses.dtype) * losses)

            model = lambda p: self.apply_fn(p, chunk_x)
            return self.chunk_product(model, total_loss, params, vector)

        total = sum_examples(
            on_chunk, (x, y), batch_size=self.batch_size, lanes=self.lanes
        )
        return jax.tree.map(lambda leaf: leaf / n, total)


def _hessian_product(model, total_loss, params, vector):
    gradient = jax.grad(lambda p: total_loss(model(p)))
    return jax.jvp(gradient, (params,), (vector,))[1]


def _ggn_product(model, total_loss, params, vector):
    outputs, push = jax.linearize(model, params)
    curved = jax.jvp(jax.grad(total_loss), (outputs,), (push(vector),))[1]
    return jax.linear_transpose(push, params)(curved)[0]
