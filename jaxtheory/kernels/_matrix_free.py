"""Kernel ridge regression with the neural tangent kernel, without its matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real, Shaped

from jaxtheory._types import ApplyFn, KeyArray, Params
from jaxtheory.batching import check_count, check_examples, check_key, check_number
from jaxtheory.kernels._operator import ntk_operator
from jaxtheory.linalg import conjugate_gradient, nystrom

# Vectors in the preconditioner, where none are asked for.
_RANK = 50


class NTKRegression(NamedTuple):
    """A kernel regression by iteration, and how far it can be trusted.

    Attributes:
        predictions: ``Theta(x_test, x) coefficients``, ``[m, k]``.
        coefficients: Dual coefficients ``(Theta + ridge I)^-1 Y``, ``[n, k]``.
        residual: ``|Y - (Theta + ridge I) coefficients| / |Y|`` (over all entries),
            computed from the coefficients, not by a recursion.
        num_steps: Steps of conjugate gradients, one product each.
        converged: ``residual <= tolerance``.
    """

    predictions: Float[Array, "m k"]
    coefficients: Float[Array, "n k"]
    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


def ntk_regression(
    apply_fn: ApplyFn,
    params: Params,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    targets: Float[ArrayLike, "n k"],
    x_test: PyTree[Shaped[ArrayLike, "m ..."]],
    *,
    ridge: Real[ArrayLike, ""],
    key: KeyArray,
    rank: int | None = None,
    batch_size: int | None = None,
    max_steps: int = 1000,
    tolerance: Real[ArrayLike, ""] = 1e-4,
    param_scale: PyTree[Float[ArrayLike, ""]] | None = None,
) -> NTKRegression:
    r"""Fit targets with the neural tangent kernel and predict, at any ``n``.

    .. math:: f(z) = \Theta(z, X) \, (\Theta(X, X) + ridge \, I)^{-1} \, Y

    by conjugate gradients, preconditioned with a Nystrom approximation; no ``[n, n]``
    array is formed. `ridge` is that of `kernel_regression`: in the units of the kernel,
    and against a *sum* over examples, ``sum_i |f(x_i) - y_i|^2 + ridge |f|^2``: pass
    ``n * ridge`` for the mean-square convention. No offset is fitted: subtract the
    network at initialisation from the targets, and add it to the predictions.

    The kernel is the full one, ``[n k, n k]`` with ``k x k`` blocks for each pair of
    examples (`empirical_ntk` of ``outputs="full"``, divided by nothing): the ridge
    regression of the linearised network, ``min_u sum_i |J_i u - y_i|^2 + ridge |u|^2``
    with predictions ``J(z) u``. `kernel_regression` takes one kernel ``[n, n]`` for all
    outputs, of an empirical kernel the trace divided by ``k``. With one output they are
    the same; with several only where the outputs' kernels agree and do not mix, as in
    the limit of infinite width.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        params: Parameters at which the kernel is taken.
        x: Training inputs ``[n, ...]``; may be sharded over examples.
        targets: Training targets ``[n, k]``.
        x_test: Test inputs ``[m, ...]``.
        ridge: Ridge, not negative (not checked when traced). With 0 the minimum-norm
            interpolant where there is one; few steps then rarely suffice.
        key: Random vectors of the preconditioner; they change the number of steps, and
            the solution within its tolerance.
        rank: Rank of the preconditioner, at most ``n k``: that many products before the
            first step. About twice the effective dimension at `ridge`
            (`linalg.effective_dimension`) makes the number of steps small whatever the
            spectrum; 0 does without, which is faster where some 200 steps or fewer do;
            None takes 50, or ``n k`` if that is less.
        batch_size: Examples per chunk and device, as for `ntk_operator`.
        max_steps: Largest number of steps.
        tolerance: Bound on the residual relative to the targets. The predictions on the
            training examples err by at most ``tolerance |targets|`` (norms over all),
            which is much of them where the ridge leaves little; the coefficients by at
            most ``condition * tolerance`` of theirs.
        param_scale: Factors of the parameters, as for `ntk_operator`.

    Returns:
        Predictions, dual coefficients, and what they are worth, see `NTKRegression`.

    Raises:
        ValueError: As for `ntk_operator`; `targets` are not ``[n, k]`` for the model's
            ``k`` outputs; `ridge` is not one finite number at or above 0; `rank` is
            larger than ``n k``; `tolerance` or `max_steps` is not positive.

    Memory:
        ``4 rank n k`` numbers, and the activations of one chunk (four under the
        preconditioner's products). ``num_steps + rank + 2`` products.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def linear(params, x):
        ...     return x @ params
        >>> x = jnp.array([[1.0], [2.0]])
        >>> fit = kernels.ntk_regression(
        ...     linear, jnp.ones((1, 1)), x, 3 * x, x, ridge=0.0, key=jax.random.key(0)
        ... )
        >>> [round(float(f), 3) for f in fit.predictions[:, 0]], bool(fit.converged)
        ([3.0, 6.0], True)

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572 (the kernel); Frangella, Tropp &
        Udell, arXiv:2110.02820, algorithm 5.1 (the solver).
    """
    check_key(key)
    theta = ntk_operator(
        apply_fn, params, x, batch_size=batch_size, param_scale=param_scale
    )
    structure = theta.in_structure()
    if jnp.shape(targets) != structure.shape:
        raise ValueError(
            f"`targets` must be [n, k] like the model's outputs, {structure.shape}, "
            f"but has shape {jnp.shape(targets)}. Use `targets[:, None]` for one "
            "output, `jax.nn.one_hot` for class labels."
        )
    check_examples(x_test=x_test)
    kinds = [jax.tree.map(lambda a: jnp.shape(a)[1:], inputs) for inputs in (x_test, x)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "`x_test` must have the structure and the shapes of `x` after the axis of "
            f"examples, {kinds[1]}, but has {kinds[0]}."
        )
    must = "a finite number, at least 0"
    check_number("ridge", ridge, lambda value: 0 <= value < float("inf"), must)
    predict = ntk_operator(
        apply_fn, params, x_test, x, batch_size=batch_size, param_scale=param_scale
    )
    rank = min(theta.in_size(), _RANK) if rank is None else rank
    check_count(at_least=0, rank=rank)
    ridge = jnp.asarray(ridge, structure.dtype)
    approximation = nystrom(theta, key=key, rank=rank) if rank else None
    solution = conjugate_gradient(
        theta + ridge * lx.IdentityLinearOperator(structure),
        jnp.asarray(targets),
        preconditioner=approximation and approximation.preconditioner(ridge),
        tolerance=tolerance,
        max_steps=max_steps,
    )
    return NTKRegression(predict.mv(solution.value), *solution)
