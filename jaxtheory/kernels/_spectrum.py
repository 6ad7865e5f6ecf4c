"""What the spectrum of a kernel says: how many directions it has, and how uneven."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory.batching import check_examples, check_number
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import check_kernel
from jaxtheory.kernels._regression import _check_size, rounding_level


class SpectrumSummary(NamedTuple):
    """Eigenvalues of a kernel and what they say together.

    Eigenvalues at or below ``10 eps`` of the largest magnitude count as zero in all
    that follows `eigenvalues`. Everything is NaN if the kernel holds entries that are
    not finite.

    Attributes:
        eigenvalues: All of them as computed, largest first.
        trace: Sum of the positive ones, ``tr K`` of a positive semidefinite kernel.
        effective_dimension: ``tr K (K + ridge I)^-1``, degrees of freedom of the
            regression with that ridge; with ridge 0 the numerical rank.
        participation_ratio: ``(tr K)^2 / tr K^2``, from 1 to ``n``.
        stable_rank: ``tr K / lambda_1``, from 1 to ``n``.
        effective_rank: ``exp(-sum_i p_i log p_i)`` with ``p_i = lambda_i / tr K``, from
            1 to ``n``.
        condition_number: ``lambda_1 / lambda_n``; infinite if the smallest eigenvalue
            counts as zero.
        num_negative: Number of eigenvalues below minus the cutoff: a kernel that is
            positive semidefinite to rounding has none.
        num_nonfinite: Number of entries of the argument that are NaN or infinite.
    """

    eigenvalues: Float[Array, " n"]
    trace: Float[Array, ""]
    effective_dimension: Float[Array, ""]
    participation_ratio: Float[Array, ""]
    stable_rank: Float[Array, ""]
    effective_rank: Float[Array, ""]
    condition_number: Float[Array, ""]
    num_negative: Int[Array, ""]
    num_nonfinite: Int[Array, ""]


def spectrum_summary(
    kernel: Float[Array, "n n"] | Float[Array, " n"],
    *,
    ridge: Real[ArrayLike, ""] = 0.0,
) -> SpectrumSummary:
    r"""Summarise the spectrum of a kernel.

    Args:
        kernel: A symmetric kernel (only its symmetric part matters), or its
            eigenvalues in any order, however they were computed.
        ridge: Ridge of the effective dimension, a *sum* over examples as in
            `kernel_regression`, in the units of the kernel; not negative. Map over
            several with `jax.vmap`: the eigenvalues are computed once.

    Returns:
        The summary, see `SpectrumSummary`. A kernel that is zero has a NaN, because
        undefined, for every ratio.

    Raises:
        ValueError: `kernel` is neither a square matrix nor a vector, or has more than
            32,766 examples as a matrix; `ridge` is negative or no number.

    Memory:
        Two matrices ``[n, n]``; ``O(n^3)`` time. Of eigenvalues, ``O(n)``.

    Example:
        >>> import jax.numpy as jnp
        >>> summary = spectrum_summary(jnp.diag(jnp.array([1.0, 3.0])), ridge=1.0)
        >>> summary.eigenvalues.tolist(), float(summary.effective_dimension)
        ([3.0, 1.0], 1.25)
        >>> round(float(summary.participation_ratio), 4)  # 4^2 / (1 + 9)
        1.6

    References:
        Zhang, Neural Computation 17 (2005) (effective dimension); Roy and Vetterli,
        EUSIPCO 2007 (effective rank); Xiao, Pennington, Schoenholz, arXiv:1912.13053
        (condition number of the NTK).
    """
    check_examples(kernel=kernel)
    check_real(kernel=kernel)
    check_number("ridge", ridge, lambda r: 0 <= r < float("inf"), "0 or positive")
    kernel = jnp.asarray(kernel, jnp.result_type(jnp.float32, kernel))
    if kernel.ndim != 1:
        check_kernel(kernel)
        _check_size(kernel)
    return _of_kernel(kernel, ridge)


@jax.jit
def _of_kernel(kernel, ridge):
    """Of a kernel, or of its eigenvalues."""
    finite = jnp.isfinite(kernel)
    num_nonfinite = jnp.sum(~finite)
    # The eigensolver may not return from NaN.
    safe = jnp.where(jnp.all(finite), kernel, 1)
    values = jnp.sort(safe if kernel.ndim == 1 else jnp.linalg.eigvalsh(safe))[::-1]
    return _summarise(values, jnp.asarray(ridge, values.dtype), num_nonfinite)


def _summarise(values, ridge, num_nonfinite):
    """Of finite eigenvalues, largest first; NaN if they stand for others."""
    largest, cutoff = jnp.max(jnp.abs(values)), rounding_level(values)
    positive = values > cutoff
    kept = jnp.where(positive, values, 0)
    # Relative to the largest: squares of small kernels would leave float32.
    relative = kept / jnp.where(largest > 0, largest, jnp.nan)
    total = jnp.sum(relative)
    shares = jnp.where(positive, relative / total, 1)
    entropy = jnp.where(total > 0, -jnp.sum(shares * jnp.log(shares)), jnp.nan)
    learned = kept / (jnp.where(positive, kept, 1) + ridge)
    smallest = jnp.where(positive[-1], values[-1], 0)
    undefined = lambda value: jnp.where(num_nonfinite > 0, jnp.nan, value)
    return SpectrumSummary(
        eigenvalues=undefined(values),
        trace=undefined(jnp.sum(kept)),
        effective_dimension=undefined(jnp.sum(learned)),
        participation_ratio=undefined(total**2 / jnp.sum(relative**2)),
        stable_rank=undefined(total / relative[0]),
        effective_rank=undefined(jnp.exp(entropy)),
        condition_number=undefined(values[0] / smallest),
        num_negative=jnp.sum(values < -cutoff),
        num_nonfinite=num_nonfinite,
    )
