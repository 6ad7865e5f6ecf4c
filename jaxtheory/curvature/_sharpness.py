"""Sharpness of the loss, full-batch and minibatch."""

import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import check_count, check_key, check_problem, num_shards
from jaxtheory.curvature._mean_product import total
from jaxtheory.curvature._operators import hessian
from jaxtheory.linalg import top_eigenpairs

Average: TypeAlias = Literal["ratios", "means"]


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
    average: Average = "ratios",
) -> Estimate:
    r"""Estimate batch sharpness, the mean curvature along minibatch gradients.

    .. math:: \mathbb E_B \frac{g_B^\top H_B g_B}{|g_B|^2}

    with gradient and Hessian of the mean loss over batch ``B``: the *mean of ratios*,
    which is the definition, and what settles near ``2 / learning_rate`` under minibatch
    SGD. The *ratio of means*, ``E[g^T H g] / E[|g|^2]``, which weighs batches by their
    squared gradients, is there to compare with. Batches whose gradient is zero have no
    direction: the mean of ratios is over the others.

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
        average: ``"ratios"`` for the mean of ratios, ``"means"`` for the ratio of
            means.

    Returns:
        The mean of the ratios with its standard error over batches. `num_samples`
        counts the batches with a gradient: where there are none the value is NaN, and
        below two so is the standard error. Of the ratio of means the error is that of
        the delta method, which is good to first order in it, and `num_samples` counts
        all batches. A gradient that is not finite makes both NaN.

    Raises:
        ValueError: As for `hessian`; `batch_size` exceeds ``n``, fewer than two
            batches, or `average` is another word.

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
    check_key(key)
    n = check_problem(apply_fn, loss_fn, params, x, y)
    num_shards((x, y))  # refuses explicit axes, on which no batch can be drawn
    batch_size = check_count(batch_size=batch_size)
    num_batches = check_count(at_least=2, num_batches=num_batches)
    if batch_size > n:
        raise ValueError(
            f"`batch_size` must be between 1 and the {n} examples, but was "
            f"{batch_size}."
        )
    if average not in ("ratios", "means"):
        raise ValueError(f"`average` must be 'ratios' or 'means', but was {average!r}.")
    return _batch_sharpness(
        apply_fn, loss_fn, params, x, y, key, n, batch_size, num_batches, average
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7, 8, 9))
def _batch_sharpness(
    apply_fn, loss_fn, params, x, y, key, n, batch_size, num_batches, average
):
    """`batch_sharpness` of checked arguments."""
    curved, squares, scales = _along_gradients(
        apply_fn, loss_fn, params, x, y, key, n, batch_size, num_batches
    )
    if average == "means":
        return _ratio_of_means(curved, squares, scales)
    used = scales != 0
    ratios, count = curved / squares, jnp.sum(used)
    error = jnp.std(ratios, ddof=1, where=used) / jnp.sqrt(count)
    return Estimate(jnp.mean(ratios, where=used), error, count)


def _along_gradients(apply_fn, loss_fn, params, x, y, key, n, batch_size, num_batches):
    """Of each batch ``g^T H g`` and ``|g|^2`` over the square of a scale of ``g``."""

    def one(index):
        rows = jax.random.choice(
            jax.random.fold_in(key, index), n, (batch_size,), replace=False
        )
        batch_x, batch_y = jax.tree.map(lambda a: jnp.asarray(a)[rows], (x, y))
        loss = lambda p: total(
            lambda outputs: loss_fn(outputs, batch_y),
            jnp.full(batch_size, 1 / batch_size),
        )(apply_fn(p, batch_x))
        gradient = jax.grad(loss)(params)
        # Scaled first: near a minimum the squares of a gradient underflow.
        largest = optax.tree.norm(gradient, ord="inf")
        direction = jax.tree.map(lambda g: (g / largest).astype(g.dtype), gradient)
        curved = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
        dot = optax.tree.vdot
        return dot(direction, curved), dot(direction, direction), largest

    return jax.lax.map(one, jnp.arange(num_batches))


def _ratio_of_means(curved, squares, scales):
    """The ratio of the means over batches, with its delta-method standard error."""
    weights = (scales / jnp.max(scales)) ** 2
    weigh = lambda values: jnp.where(scales == 0, 0, weights * values)
    curved, squares = weigh(curved), weigh(squares)
    mean = jnp.mean(squares)
    ratio = jnp.mean(curved) / mean
    deviation = jnp.std(curved - ratio * squares, ddof=1)
    num_batches = len(scales)
    return Estimate(ratio, deviation / (mean * num_batches**0.5), num_batches)
