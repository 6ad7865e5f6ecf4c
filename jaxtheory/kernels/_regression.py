"""Kernel ridge regression, minimum-norm where the kernel is singular."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory.batching import check_number
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import check_kernel, check_targets

# Eigenvalues within this many eps of the largest are not told from zero: those of
# singular float32 kernels came out at up to 4 eps, for n from 50 to 2,000.
_CUTOFF = 10

# The CPU eigensolver returns NaN from this size on (jax issue 10420).
_MAX_EXAMPLES = 32_767


class KernelRegression(NamedTuple):
    """A kernel regression and how far its numbers can be trusted.

    Attributes:
        predictions: ``kernel_test @ coefficients``.
        coefficients: Dual coefficients ``(K + ridge I)^-1 Y``.
        leave_one_out: Leave-one-out residuals, ``targets[i]`` minus the prediction for
            example ``i`` of the regression on all others. The mean of their squares
            estimates the test error. Where eigenvalues were dropped, exact to about
            ``eps * condition`` if they are truly zero, and otherwise approximate.
        generalised_cross_validation: For each output ``mean(a_i^2) / mean(G_ii)^2``,
            with coefficients ``a`` and ``G = (K + ridge I)^-1``: the mean squared
            leave-one-out residual with ``G_ii`` replaced by its mean. Estimates the
            test error of each output, against targets as noisy as the given ones.
            Where eigenvalues were dropped, its limit of vanishing ridge.
        num_dropped: Number of eigenvalues of ``K + ridge I`` at or below
            ``10 eps lambda_max`` of the same matrix (zero to rounding, or negative), in
            whose directions the coefficients are set to zero.
        condition: Largest over smallest eigenvalue of ``K + ridge I``, dropped ones
            excluded (0 if all are): the relative error of the coefficients is about
            ``eps * condition``.
        num_nonfinite: Number of entries of the kernel, the targets and the test kernel
            that are NaN or infinite. What depends on them is not finite: everything
            (kernel), columns (targets) or rows of predictions (test kernel).
    """

    predictions: Float[Array, "m k"]
    coefficients: Float[Array, "n k"]
    leave_one_out: Float[Array, "n k"]
    generalised_cross_validation: Float[Array, " k"]
    num_dropped: Int[Array, ""]
    condition: Float[Array, ""]
    num_nonfinite: Int[Array, ""]


def kernel_regression(
    kernel: Float[Array, "n n"],
    targets: Float[Array, "n k"],
    kernel_test: Float[Array, "m n"] | None = None,
    *,
    ridge: Real[ArrayLike, ""],
) -> KernelRegression:
    r"""Fit targets with a kernel and predict, ``f(z) = K(z, X) (K + ridge I)^-1 Y``.

    Minimises ``sum_i |f(x_i) - y_i|^2 + ridge |f|_K^2``, a *sum* over examples: for the
    mean-square convention pass ``n * ridge``. `ridge` is in the units of the kernel.
    No offset is fitted: subtract the mean (or the network at initialisation) from the
    targets beforehand.

    With ``ridge=0`` this is interpolation. Where the kernel is singular (duplicates,
    more examples than parameters) the solution of minimum norm is taken, through the
    eigenvalues above ``10 eps lambda_max``, and the result says how many were dropped:
    no jitter is ever added to the diagonal but the `ridge` that was asked for.

    One kernel serves all outputs. Of an empirical NTK with ``k`` outputs that is the
    trace divided by ``k``, as in the example.

    Works in the precision of its arguments, and at least float32, where ridges below
    about ``1e-6 lambda_max`` are lost in rounding: under ``jax.enable_x64(True)``,
    with a float64 kernel, down to ``1e-15 lambda_max``. Differentiable in
    `targets`, `kernel_test` and `ridge`; the derivative in `kernel` is not finite where
    eigenvalues coincide. Under `jax.vmap` over `ridge` alone, the eigenvalues are
    computed once.

    Args:
        kernel: Kernel of the training examples, positive semidefinite; only its
            symmetric part matters.
        targets: Training targets.
        kernel_test: Kernel of the ``m`` test examples (rows) with the training
            examples (columns). None stands for the training examples themselves, where
            a ridge is chosen by `leave_one_out`.
        ridge: Ridge, not negative (not checked when traced).

    Returns:
        Predictions, dual coefficients, leave-one-out residuals and generalised
        cross-validation, see `KernelRegression`.

    Raises:
        ValueError: Shapes do not fit, `ridge` is negative or not finite, or there are
            more than 32,766 examples.

    Memory:
        Two matrices ``[n, n]``; ``O(n^3)`` time, of one symmetric eigendecomposition.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def model(params, x):
        ...     return jnp.tanh(x @ params["w1"]) @ params["w2"]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = {
        ...     "w1": jax.random.normal(keys[0], (3, 64)),
        ...     "w2": jax.random.normal(keys[1], (64, 2)) / 8,
        ... }
        >>> x, z = (
        ...     jax.random.normal(keys[2], (8, 3)),
        ...     jax.random.normal(keys[3], (5, 3)),
        ... )
        >>> kernel = kernels.empirical_ntk(model, params, x) / 2  # trace / k
        >>> kernel_test = kernels.empirical_ntk(model, params, z, x) / 2
        >>> fit = kernels.kernel_regression(kernel, x[:, :2], kernel_test, ridge=0.1)
        >>> fit.predictions.shape, int(fit.num_dropped)
        ((5, 2), 0)

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572 (the NTK as this kernel). The
        leave-one-out residual ``a_i / [(K + ridge I)^-1]_ii``, with ``a`` the
        coefficients, is that of Allen's PRESS statistic; Golub, Heath, Wahba (1979),
        Technometrics 21 (generalised cross-validation); Jacot et al.,
        arXiv:2006.09796, and Wei, Hu, Steinhardt, arXiv:2203.06176 (how closely it
        follows the test error).
    """
    check_kernel(kernel)
    check_targets(targets, kernel)
    kernel_test = kernel if kernel_test is None else kernel_test
    _check_test(kernel_test, kernel)
    _check_ridge(ridge)
    _check_size(kernel)
    dtype = jnp.result_type(jnp.float32, kernel, targets, kernel_test)
    inputs = [jnp.asarray(a, dtype) for a in (kernel, targets, kernel_test)]
    kernel, targets, kernel_test = inputs
    solved = _solve(kernel, targets, ridge)
    return KernelRegression(
        predictions=jnp.matmul(
            kernel_test, solved["coefficients"], precision="highest"
        ),
        num_nonfinite=sum(
            (jnp.sum(~jnp.isfinite(a)) for a in inputs), start=jnp.zeros((), int)
        ),
        **solved,
    )


def eigendecomposition(kernel: Array) -> tuple[Array, Array]:
    """Eigenvalues in ascending order and eigenvectors; NaN unless all is finite."""
    eigenvalues, vectors = jnp.linalg.eigh(kernel, symmetrize_input=True)
    # Not every eigensolver answers NaN to NaN.
    finite = jnp.all(jnp.isfinite(kernel))
    return jnp.where(finite, eigenvalues, jnp.nan), vectors


def rounding_level(eigenvalues: Array) -> Array:
    """Below which an eigenvalue is not told from zero."""
    eps = jnp.finfo(eigenvalues.dtype).eps
    return _CUTOFF * eps * jnp.max(jnp.abs(eigenvalues))


def _solve(kernel, targets, ridge):
    """The fields of the regression that do not depend on the test examples."""
    eigenvalues, vectors = eigendecomposition(kernel)
    eigenvalues = eigenvalues + jnp.asarray(ridge, kernel.dtype)
    dropped = eigenvalues <= rounding_level(eigenvalues)
    condition = jnp.max(eigenvalues) / jnp.min(jnp.where(dropped, jnp.inf, eigenvalues))
    inverse = jnp.where(dropped, 0, 1 / jnp.where(dropped, 1, eigenvalues))
    modes = jnp.matmul(vectors.T, targets, precision="highest")
    coefficients = _combine(vectors, inverse, modes)
    unfitted = _combine(vectors, dropped, modes)
    # Example by example, the diagonals of the inverse and of the null projection.
    diagonal = jnp.matmul(vectors**2, inverse, precision="highest")
    null = jnp.matmul(vectors**2, dropped, precision="highest")
    # Rounding tilts the null space by up to this angle (Davis and Kahan).
    eps = jnp.finfo(kernel.dtype).eps
    free = null > (_CUTOFF * eps * condition) ** 2
    leave_one_out = jnp.where(
        free[:, None],
        unfitted / jnp.where(free, null, 1)[:, None],
        coefficients / jnp.where(free, 1, diagonal)[:, None],
    )
    # As the ridge vanishes, both means grow with its inverse, from the null space.
    singular = jnp.any(dropped)
    numerator = jnp.where(singular, unfitted, coefficients)
    denominator = jnp.where(singular, jnp.mean(null), jnp.mean(diagonal))
    return {
        "coefficients": coefficients,
        "leave_one_out": leave_one_out,
        "generalised_cross_validation": jnp.mean((numerator / denominator) ** 2, 0),
        "num_dropped": jnp.sum(dropped),
        "condition": condition,
    }


def _combine(vectors, weights, modes):
    """``V diag(weights) modes``."""
    return jnp.matmul(vectors, weights[:, None] * modes, precision="highest")


def _check_test(kernel_test: Array, kernel: Array) -> None:
    """Raise unless the columns of `kernel_test` are the training examples."""
    check_real(kernel_test=kernel_test)
    shape, n = jnp.shape(kernel_test), jnp.shape(kernel)[0]
    if len(shape) != 2 or shape[1] != n:
        raise ValueError(
            "`kernel_test` must be [m, n], test examples by training examples, but "
            f"has shape {shape} with n = {n}. It is the kernel of (x_test, x_train), "
            "in this order."
        )


def _check_ridge(ridge: Any) -> None:
    """Raise unless `ridge` is one number, and not negative where it is known."""
    if np.shape(ridge) != ():
        raise ValueError(
            f"`ridge` must be one number, but has shape {np.shape(ridge)}. Use "
            "`jax.vmap` for several."
        )
    must = "a finite number, at least 0 (for interpolation)"
    check_number("ridge", ridge, lambda value: 0 <= value < float("inf"), must)


def _check_size(kernel: Array) -> None:
    """Raise if the eigensolver cannot take the kernel."""
    n = jnp.shape(kernel)[0]
    if n >= _MAX_EXAMPLES:
        raise ValueError(
            f"`kernel` must have fewer than {_MAX_EXAMPLES} examples, from which on "
            f"the CPU eigensolver returns NaN, but has {n}. Solve with conjugate "
            "gradients (`lineax.CG`), or take a subset."
        )
