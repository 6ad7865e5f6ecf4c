"""The bound of kernel interpolation, to which wide networks come by training."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory._types import Bound
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    ON_TRUST,
    SETTING,
    VERIFIED,
    check_concrete,
    check_delta,
    make_bound,
)
from jaxtheory.bounds._norms_layers import unit_scale
from jaxtheory.bounds._norms_margins import grid_up


def ntk_complexity(
    kernel: Float[ArrayLike, "n n"], y: Real[ArrayLike, "n ..."], *, delta: float
) -> Bound:
    r"""Bound on the risk of what interpolates `y` with the least norm of a kernel.

    For a kernel ``K`` and targets ``y``, with probability at least ``1 - delta``, the
    mean of any loss that is in [0, 1], 0 for right outputs and 1-Lipschitz in them, is
    at most

    .. math:: 2 \sqrt{\frac{B^2 \operatorname{tr} K}{n^2}}
        + 3 \sqrt{\frac{\ln(2 / (\delta w))}{2 n}}, \qquad B^2 = y^\top K^{-1} y,

    and for kernels with ``K_ii = 1/2``, those of a network of one hidden ReLU layer and
    inputs of length 1, the first term is the published ``sqrt(2 y^T K^-1 y / n)``. With
    ``k`` columns of targets ``B^2`` is their sum, the loss Lipschitz in the Euclidean
    norm, and the first term ``sqrt(2 k)`` times as large (Maurer's contraction).

    The published second term is ``O(sqrt(ln(n / (lambda_0 delta)) / n))`` with no
    constant. This one is derived: functions of norm ``B`` have the Rademacher
    complexity ``B sqrt(tr K) / n``, and ``B`` is rounded up to the grid ``2^(q/8)``,
    each value with its own ``w`` (see `margin_distribution`). It does not need
    ``lambda_0``.

    Args:
        kernel: ``K`` on the training inputs, in any scale: an infinite-width kernel,
            not one at trained parameters.
        y: Targets ``[n]`` or ``[n, k]``, such as 1 and -1, as they were trained on.
        delta: Probability that the bound may fail, in (0, 1).

    Returns:
        The bound; `complexity` is its first term, which is not rounded, and
        `empirical_risk` is 0, as the training data are interpolated. The smallest
        eigenvalue and the condition number are in `assumptions`. No certificate: it is
        about the kernel predictor, and taken on trust for a network, which comes to it
        at infinite width, trained to the end by gradient descent from outputs of 0.

    Raises:
        ValueError: `kernel` is not square, symmetric and finite, or its smallest
            eigenvalue is not above rounding; shapes do not fit; `delta` is outside (0,
            1); a value is traced.

    Memory:
        A copy of `kernel`; ``n^3`` operations in float64 on the host.

    Example:
        >>> import numpy as np
        >>> bound = ntk_complexity(np.eye(400) / 2, np.ones(400) / 10, delta=0.05)
        >>> f"{bound.complexity:.3f} {bound.value:.3f} {bound.certificate}"
        '0.200 0.523 False'

    References:
        Arora et al. 2019, arXiv:1901.08584, theorem 5.1 and corollary 6.2; Bartlett &
        Mendelson, JMLR 3 (2002), lemma 22; Maurer 2016, arXiv:1605.00251.
    """
    matrix, targets, precision = _check(kernel, y)
    delta = check_delta(delta)
    n, k = targets.shape
    values, vectors = np.linalg.eigh(matrix)
    smallest, largest = float(values[0]), float(values[-1])
    if smallest <= n * precision * largest:
        raise ValueError(
            "`kernel` must be positive definite, beyond rounding, but its eigenvalues "
            f"go from {smallest:.2e} to {largest:.2e}, and an error of its entries "
            f"moves them by {n * precision * largest:.0e}. Compute it in double "
            "precision, leave out repeated inputs, or add noise to the diagonal (which "
            "makes a bound on ridge regression no longer this one)."
        )
    factor = 2 * np.sqrt(2 * k if k > 1 else 1) * np.sqrt(np.trace(matrix)) / n
    # The root of each eigenvalue first: no square may underflow.
    with np.errstate(over="ignore", invalid="ignore"):
        parts, size = unit_scale(vectors.T @ targets / np.sqrt(values)[:, None])
        norm = float(size * np.sqrt(np.square(parts).sum()))
        complexity = float(factor * norm)
    if not np.isfinite(complexity):
        raise ValueError(
            "`kernel` and `y` must be in a range that double precision can square, but "
            f"the norm was {norm:.3g} and the trace {np.trace(matrix):.3g}. Scale them."
        )
    limit, price = grid_up(norm)
    deviation = 3 * np.sqrt((np.log(2 / delta) + price) / (2 * n))
    condition = f"{smallest:.3g}, the condition number {largest / smallest:.3g}"
    return make_bound(
        value=factor * limit + deviation,
        empirical_risk=0.0,
        complexity=complexity,
        delta=delta,
        assumptions=(
            INDEPENDENT,
            (SETTING, "the kernel function was fixed before they were seen"),
            (VERIFIED, f"the smallest eigenvalue is {condition}"),
            (BY_CONSTRUCTION, f"the norm {limit:.3g} is on a grid fixed before"),
            (ON_TRUST, "the loss is in [0, 1], 1-Lipschitz, and 0 on the examples"),
            (
                ON_TRUST,
                "the predictor interpolates with the least norm, as the network "
                "of infinite width does",
            ),
        ),
    )


def _check(kernel, y):
    """Kernel and targets ``[n, k]`` in float64, and the precision of the kernel."""
    check_concrete(kernel=kernel, y=y)
    given, targets = np.asarray(kernel), np.asarray(y)
    shape = given.shape
    floating = jnp.issubdtype(given.dtype, jnp.floating)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2 or not floating:
        raise ValueError(
            "`kernel` must be a floating-point matrix [n, n] of at least two examples, "
            f"but has shape {shape} and dtype {given.dtype}. Of outputs [n, n, k, k] "
            "take `outputs='trace'`."
        )
    real = jnp.issubdtype(targets.dtype, jnp.floating) or jnp.issubdtype(
        targets.dtype, jnp.integer
    )
    if not real:
        raise ValueError(
            f"`y` must be real numbers, but has dtype {targets.dtype}. Of classes make "
            "targets: 1 and -1, or one-hot rows."
        )
    if targets.ndim not in (1, 2) or targets.shape[0] != shape[0] or not targets.size:
        raise ValueError(
            f"`y` must have shape [{shape[0]}] or [{shape[0]}, k] for a kernel of "
            f"shape {shape}, but has shape {targets.shape}."
        )
    matrix = given.astype(np.float64)
    targets = targets.astype(np.float64).reshape(shape[0], -1)
    if not np.isfinite(matrix).all() or not np.isfinite(targets).all():
        raise ValueError("`kernel` and `y` must be finite, but an entry is not.")
    precision = float(jnp.finfo(given.dtype).eps)
    size = max(np.abs(matrix).max(), np.finfo(np.float64).tiny)
    asymmetry = np.abs(matrix - matrix.T).max() / size
    if asymmetry > 100 * precision:
        raise ValueError(
            "`kernel` must be symmetric, but differs from its transpose by "
            f"{asymmetry:.1e} of its largest entry. Pass the kernel of the training "
            "inputs with themselves."
        )
    return matrix / 2 + matrix.T / 2, targets, precision
