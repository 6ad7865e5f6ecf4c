"""Sharpness of the loss, full-batch, minibatch and preconditioned."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import check_count, check_number, check_problem, num_shards
from jaxtheory.curvature._operators import hessian
from jaxtheory.linalg import (
    check_vector,
    dimension,
    function_operator,
    top_eigenpairs,
)


def sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    num_iterations: int | None = None,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    """Compute the largest eigenvalue of the Hessian of the mean loss.

    For residuals, eigenvectors and more eigenvalues call `linalg.top_eigenpairs` on
    `hessian` or `ggn`.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Lanczos start vector.
        num_iterations: Lanczos steps, one Hessian product each; see
            `linalg.top_eigenpairs`.
        batch_size: As for `hessian`.

    Returns:
        The algebraically largest Ritz value: a lower bound on the largest eigenvalue.

    Raises:
        ValueError: As for `hessian` and `linalg.top_eigenpairs`.

    Memory:
        ``num_iterations * p`` numbers and one chunk's activations.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> args = (model, loss, jnp.zeros(2), x, jnp.zeros(2))
        >>> round(float(sharpness(*args, key=jax.random.key(0))), 4)
        4.0

    References:
        Cohen et al., Gradient descent on neural networks typically occurs at the edge
        of stability, arXiv:2103.00065.
    """
    operator = hessian(apply_fn, loss_fn, params, x, y, batch_size=batch_size)
    top = top_eigenpairs(operator, key=key, num_iterations=num_iterations)
    return top.values[0]


def batch_sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int,
    num_batches: int,
    key: KeyArray,
) -> Estimate:
    r"""Estimate batch sharpness, the mean curvature along minibatch gradients.

    .. math:: \mathbb E_B \frac{g_B^\top H_B g_B}{|g_B|^2}

    with gradient and Hessian of the mean loss over batch ``B``: the *mean of ratios*,
    which is what settles near ``2 / learning_rate`` under minibatch SGD. Batches whose
    gradient is zero have no direction: the mean is over the others.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        batch_size: Examples in a batch, drawn without replacement within it.
        num_batches: Independent batches, at least 2; one gradient and one Hessian
            product of a batch each.
        key: Which batches.

    Returns:
        The mean of the ratios with its standard error over batches. `num_samples`
        counts the batches with a gradient: where there are none the value is NaN, and
        below two so is the standard error. A gradient that is not finite makes both
        NaN.

    Raises:
        ValueError: As for `hessian`; `batch_size` exceeds ``n``, or fewer than two
            batches.

    Memory:
        Activations of one batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> x, y = jnp.ones(4), jnp.zeros(4)
        >>> estimate = batch_sharpness(
        ...     model,
        ...     loss,
        ...     jnp.ones(()),
        ...     x,
        ...     y,
        ...     batch_size=2,
        ...     num_batches=3,
        ...     key=jax.random.key(0),
        ... )
        >>> float(estimate.value), float(estimate.standard_error)
        (2.0, 0.0)

    References:
        Andreyev & Beneventano, Edge of stochastic stability, arXiv:2412.20553,
        definition 3.
    """
    n = check_problem(apply_fn, loss_fn, params, x, y)
    num_shards((x, y))  # refuses explicit axes, on which no batch can be drawn
    batch_size = check_count(batch_size=batch_size)
    num_batches = check_count(at_least=2, num_batches=num_batches)
    if batch_size > n:
        raise ValueError(
            f"`batch_size` must be between 1 and the {n} examples, but was "
            f"{batch_size}."
        )
    return _batch_sharpness(
        apply_fn, loss_fn, params, x, y, key, n, batch_size, num_batches
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7, 8))
def _batch_sharpness(apply_fn, loss_fn, params, x, y, key, n, batch_size, num_batches):
    """`batch_sharpness` of checked arguments."""

    def ratio(index):
        rows = jax.random.choice(
            jax.random.fold_in(key, index), n, (batch_size,), replace=False
        )
        batch_x, batch_y = jax.tree.map(lambda a: jnp.asarray(a)[rows], (x, y))
        loss = lambda p: jnp.mean(loss_fn(apply_fn(p, batch_x), batch_y))
        gradient = jax.grad(loss)(params)
        # Scaled first: near a minimum the squares of a gradient underflow.
        largest = optax.tree.norm(gradient, ord="inf")
        direction = jax.tree.map(lambda g: (g / largest).astype(g.dtype), gradient)
        curved = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
        dot = optax.tree.vdot
        return dot(direction, curved) / dot(direction, direction), largest != 0

    ratios, used = jax.lax.map(ratio, jnp.arange(num_batches))
    count = jnp.sum(used)
    error = jnp.std(ratios, ddof=1, where=used) / jnp.sqrt(count)
    return Estimate(jnp.mean(ratios, where=used), error, count)


def preconditioned(
    operator: lx.AbstractLinearOperator, diagonal: PyTree[Float[Array, "..."]]
) -> lx.FunctionLinearOperator:
    """Build ``P^-1/2 A P^-1/2`` for a symmetric operator and a diagonal ``P``.

    Its largest eigenvalue is the sharpness that an optimizer with preconditioner ``P``
    sees.

    Args:
        operator: Symmetric operator ``A`` on a pytree space.
        diagonal: Positive diagonal of ``P``, a pytree like the operator's vectors.

    Returns:
        A symmetric operator on the same space.

    Raises:
        ValueError: `operator` is not square, or `diagonal` has another structure or
            shape.

    Example:
        >>> import jax.numpy as jnp, lineax as lx
        >>> A = lx.MatrixLinearOperator(jnp.diag(jnp.array([2.0, 9.0])))
        >>> preconditioned(A, jnp.array([1.0, 9.0])).mv(jnp.ones(2)).tolist()
        [2.0, 1.0]

    References:
        Cohen et al., Adaptive gradient methods at the edge of stability,
        arXiv:2207.14484.
    """
    dimension(operator)
    structure = operator.in_structure()
    check_vector(diagonal, structure, "diagonal")
    return function_operator(
        _precondition, operator, diagonal, structure=structure, tags=lx.symmetric_tag
    )


def _precondition(operator, diagonal, vector):
    scale = lambda v, d: v / jnp.sqrt(d)
    return jax.tree.map(
        scale, operator.mv(jax.tree.map(scale, vector, diagonal)), diagonal
    )


def adam_preconditioner(
    opt_state: PyTree, *, b1: float, b2: float, eps: float
) -> PyTree[Float[Array, "..."]]:
    r"""Read the preconditioner of `optax.adam` or `optax.adamw` from its state.

    .. math:: P = (1 - \beta_1^t) \left(\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon\right)

    so that an Adam step is momentum descent with exponential averaging preconditioned
    by ``P``. Before the first update (``t = 0``) nothing has been averaged, and the
    result is NaN.

    For `optax.adam` and `optax.adamw`, alone or in a chain, without ``nesterov`` and
    ``eps_root``. The states of adamax, radam, nadam, lamb and yogi have the same type
    and cannot be told apart: they are accepted, and the result is not their
    preconditioner.

    Args:
        opt_state: State of `optax.adam` or `optax.adamw`; chains are searched.
        b1: Decay of the first moment, as given to the optimizer (states do not hold
            it).
        b2: Decay of the second moment.
        eps: The optimizer's epsilon.

    Returns:
        The positive diagonal of ``P``, a pytree like the parameters.

    Raises:
        ValueError: The state holds no `optax.ScaleByAdamState`, or more than one; a
            decay is outside ``[0, 1)``, or `eps` negative.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.adam(0.1)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> _, state = optimizer.update(jnp.array([3.0]), state)
        >>> P = adam_preconditioner(state, b1=0.9, b2=0.999, eps=1e-8)
        >>> [round(float(p), 4) for p in P]  # (1 - 0.9) * 3
        [0.3]

    References:
        arXiv:2207.14484, section 3.
    """
    for name, decay in (("b1", b1), ("b2", b2)):
        check_number(name, decay, lambda b: 0 <= b < 1, "in [0, 1)")
    check_number("eps", eps, lambda e: e >= 0, "at least 0")
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    nodes = jax.tree.leaves(opt_state, is_leaf=is_adam)
    states = [node for node in nodes if is_adam(node)]
    if len(states) != 1:
        raise ValueError(
            "`opt_state` must hold exactly one `optax.ScaleByAdamState`, but holds "
            f"{len(states)}: {jax.tree.structure(opt_state)}. Pass the state of "
            "`optax.adam` or `optax.adamw`."
        )
    t, nu = states[0].count, states[0].nu
    scale, bias = 1 - b1**t, 1 - b2**t
    return jax.tree.map(lambda v: scale * (jnp.sqrt(v / bias) + eps), nu)
