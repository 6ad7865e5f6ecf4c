"""Sums over all eigenvalues by stochastic Lanczos quadrature."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key
from jaxtheory.linalg._density import spectral_density
from jaxtheory.linalg._probes import estimate


class SpectralSum(NamedTuple):
    """An `Estimate` of a sum over eigenvalues, and how many of them were negative.

    Attributes:
        value: The estimate, averaged over probes.
        standard_error: Standard error of `value` over probes.
        num_samples: Number of probes.
        num_negative: Estimated number of eigenvalues below zero by more than rounding:
            ``p`` times their share in the probes. 0 says that no probe saw one; NaN
            that products were not finite.
        asymmetry: Largest `SpectralDensity.asymmetry` of the probes: rounding where the
            operator is symmetric; where it is not small the sum means nothing.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    num_samples: Int[Array, ""] | int
    num_negative: Float[Array, ""]
    asymmetry: Float[Array, ""]


def effective_dimension(
    operator: lx.AbstractLinearOperator,
    regularization: Real[ArrayLike, "..."],
    *,
    key: KeyArray,
    num_probes: int = 16,
    num_iterations: int | None = None,
) -> SpectralSum:
    r"""Estimate how many directions of an operator stand out of a regularisation.

    .. math:: d(\lambda) = \operatorname{tr} A (A + \lambda)^{-1}
        = \sum_i \frac{\lambda_i}{\lambda_i + \lambda}

    by stochastic Lanczos quadrature. For a kernel it is the number of degrees of
    freedom of ridge regression, for a Hessian the number of parameters that the data
    determine. Negative eigenvalues, of rounding or of an indefinite Hessian, count as
    zero; `num_negative` says how many there are. It is meant for operators that have
    none, such as the Gauss-Newton matrix or the Fisher matrix.

    Args:
        operator: Symmetric lineax operator on any pytree.
        regularization: Positive ``lambda``, in the units of the eigenvalues, of any
            shape: all are read from the same probes.
        key: Probes and restarts.
        num_probes: As for `spectral_density`.
        num_iterations: As for `spectral_density`; the smaller ``lambda``, the more it
            takes.

    Returns:
        The effective dimension, in ``[0, p]``, with the shape of `regularization`, its
        standard error over probes, and `num_negative`.

    Raises:
        ValueError: `regularization` is not positive, or as for `spectral_density`.

    Memory:
        As for `spectral_density`.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.array([1.0, 3.0, 0.0]))
        >>> op = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> found = effective_dimension(op, 1.0, key=jax.random.key(0))
        >>> round(float(found.value), 4)  # 1 / 2 + 3 / 4
        1.25

    References:
        Zhang, Neural Computation 17 (2005) (kernels); MacKay, Neural Computation 4
        (1992), section 4 (Hessians). As for `spectral_density`.
    """
    check_key(key)
    # On the host: under `jit`, what JAX computes is traced even from known numbers.
    known = not isinstance(regularization, Tracer)
    if known and not np.issubdtype(np.asarray(regularization).dtype, np.number):
        raise ValueError(
            "`regularization` must be a positive number or an array of them, but was "
            f"of type {type(regularization).__name__}."
        )
    if known and not np.all(np.asarray(regularization) > 0):
        raise ValueError(
            "`regularization` must be positive, but has entries that are not. For the "
            "rank, pass a small one."
        )
    spectrum = spectral_density(
        operator, key=key, num_probes=num_probes, num_iterations=num_iterations
    )
    ridge = jnp.asarray(regularization, spectrum.nodes.dtype)[..., None, None]

    def share(nodes):
        nodes = jnp.maximum(nodes, 0).reshape((1,) * (ridge.ndim - 2) + nodes.shape)
        return nodes / (nodes + ridge)

    found = spectrum.trace_of(share)
    num_negative = _num_negative(spectrum, _rounding(operator, spectrum))
    return SpectralSum(*found, num_negative, jnp.max(spectrum.asymmetry))


def log_determinant(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num_probes: int = 16,
    num_iterations: int | None = None,
    eigenvalues: Literal["positive", "absolute"] = "positive",
) -> SpectralSum:
    r"""Estimate the logarithm of a determinant, ``sum_i log lambda_i``.

    By stochastic Lanczos quadrature, in natural logarithms. The logarithm is steep at
    zero, so small eigenvalues are what `num_iterations` has to resolve. A Gauss-Newton
    matrix has zeros as soon as there are more parameters than data: add what stands
    beside it, ``operator + ridge * lineax.IdentityLinearOperator(...)``.

    Args:
        operator: Symmetric lineax operator on any pytree, positive definite unless
            `eigenvalues` is ``"absolute"``.
        key: Probes and restarts.
        num_probes: As for `spectral_density`.
        num_iterations: As for `spectral_density`.
        eigenvalues: ``"absolute"`` takes :math:`\sum_i \log |\lambda_i|`, which exists
            for an indefinite Hessian but is another quantity.

    Returns:
        The sum over all ``p`` eigenvalues, its standard error over probes, and
        `num_negative`. Minus infinity, with an infinite standard error, where an
        eigenvalue is zero or cannot be told from it (in float32, below about 1e-6 of
        the largest); NaN where one is negative (then `num_negative` is positive) and
        `eigenvalues` is ``"positive"``.

    Raises:
        ValueError: `eigenvalues` is another word, or as for `spectral_density`.

    Memory:
        As for `spectral_density`.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.exp(jnp.array([1.0, 3.0, 0.5])))
        >>> op = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> found = log_determinant(op, key=jax.random.key(0))
        >>> round(float(found.value), 3), float(found.num_negative)
        (4.5, 0.0)

    References:
        Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017), section 5.
    """
    check_key(key)
    if eigenvalues not in ("positive", "absolute"):
        raise ValueError(
            f"`eigenvalues` must be 'positive' or 'absolute', but was {eigenvalues!r}."
        )
    spectrum = spectral_density(
        operator, key=key, num_probes=num_probes, num_iterations=num_iterations
    )
    nodes, rounding = spectrum.nodes, _rounding(operator, spectrum)
    # Its logarithm would be that of an accident of rounding.
    zero = jnp.abs(nodes) <= _rounding(operator, spectrum, factor=10)
    if eigenvalues == "absolute":
        nodes = jnp.where(zero, 0, jnp.abs(nodes))
    else:
        nodes = jnp.where(zero | ((nodes < 0) & (nodes >= -rounding)), 0, nodes)
    # Zero times the logarithm of zero is zero here: such a node was not seen.
    seen = (spectrum.weights > 0) | jnp.isnan(spectrum.weights)
    terms = jnp.where(seen, spectrum.weights * jnp.log(jnp.where(seen, nodes, 1)), 0)
    value, error, num = estimate(spectrum.dimension * jnp.sum(terms, axis=-1))
    error = jnp.where(jnp.isinf(value), jnp.inf, error)
    num_negative = _num_negative(spectrum, rounding)
    return SpectralSum(value, error, num, num_negative, jnp.max(spectrum.asymmetry))


def _rounding(operator, spectrum, factor=100):
    """How far from zero rounding alone may bring the eigenvalue zero."""
    leaves = jax.tree.leaves(operator.in_structure())
    eps = float(jnp.finfo(spectrum.nodes.dtype).eps)
    coarsest = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    # Products in half precision are coarser than everything after them.
    relative = max(factor * eps, 4 * coarsest if coarsest > eps else 0.0)
    return relative * jnp.max(jnp.abs(spectrum.nodes))


def _num_negative(spectrum, rounding):
    """Estimated number of eigenvalues below zero by more than rounding."""
    share = jnp.where(spectrum.nodes < -rounding, spectrum.weights, 0)
    share = jnp.where(jnp.isnan(spectrum.nodes), jnp.nan, share)
    return spectrum.dimension * jnp.mean(jnp.sum(share, axis=-1))
