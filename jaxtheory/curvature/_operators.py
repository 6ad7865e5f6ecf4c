"""Hessian, generalised Gauss-Newton, and their difference, over the whole data set."""

import lineax as lx
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, LossFn, Params
from jaxtheory.batching import SelectFn, check_batch_size, check_problem, num_shards
from jaxtheory.curvature._mean_product import (
    SYMMETRIC,
    MeanProduct,
    ggn_product,
    hessian_product,
    mean_operator,
    residual_product,
)


def hessian(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
    select: SelectFn | None = None,
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
        select: ``select(path) -> bool`` of a leaf's path: the block of these leaves
            alone, an operator on dicts ``{path: leaf}`` (see `select_leaves`). What is
            not selected is held fixed and not differentiated. None takes all.

    Returns:
        A symmetric lineax operator: ``H.mv(vector)`` is a product, which costs about
        two gradients, and on data sharded over devices exactly one all-reduce. Of a
        piecewise linear model (ReLU) it is the Hessian within the piece: kinks, which
        differences of gradients see, are not in it.

    Raises:
        ValueError: Arrays disagree on ``n``, parameters are not floating-point, the
            loss is not one number per example, or `select` chooses nothing.

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
    return _build(hessian_product, apply_fn, loss_fn, params, x, y, batch_size, select)


def ggn(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
    select: SelectFn | None = None,
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
        select: As for `hessian`.

    Returns:
        A symmetric lineax operator on parameter pytrees; a product costs a forward
        tangent and a backward pass.

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
    return _build(ggn_product, apply_fn, loss_fn, params, x, y, batch_size, select)


def residual_hessian(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
    select: SelectFn | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the part of the Hessian that the Gauss-Newton operator leaves out.

    .. math::
        H - G = \frac{1}{n} \sum_i \sum_k
            \frac{\partial \ell_i}{\partial f_{ik}} \, \nabla^2_w f_k(w, x_i)

    the curvature of the model weighed by the residuals (also called the nonlinear
    modelling error), zero for a linear model and where every example is fitted. It is
    taken directly, in one pass, and not as a difference of two products.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        batch_size: As for `hessian`.
        select: As for `hessian`.

    Returns:
        A symmetric lineax operator, indefinite as a rule; a product costs what one of
        `hessian` does.

    Raises:
        ValueError: As for `hessian`.

    Memory:
        Activations of one chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w**2
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> x, y = jnp.ones(2), jnp.array([3.0, 5.0])
        >>> R = residual_hessian(model, loss, jnp.array(1.0), x, y)
        >>> float(R.mv(jnp.array(1.0)))  # mean of (1 - y) times 2
        -6.0

    References:
        Schraudolph (2002), Fast curvature matrix-vector products; Dauphin et al.,
        Neglected Hessian component explains mysteries in sharpness regularization,
        arXiv:2401.10809.
    """
    return _build(residual_product, apply_fn, loss_fn, params, x, y, batch_size, select)


def _build(product, apply_fn, loss_fn, params, x, y, batch_size, select):
    """Check what the operators of a loss are given, and build one."""
    check_batch_size(batch_size)
    check_problem(apply_fn, loss_fn, params, x, y)
    lanes, selected = num_shards((x, y)), select is not None
    product = MeanProduct(product, apply_fn, loss_fn, batch_size, lanes, selected)
    return mean_operator(product, params, (x, y), select=select, tags=SYMMETRIC)
