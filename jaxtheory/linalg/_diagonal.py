"""Stochastic estimates of an operator's diagonal and Frobenius norm."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from matfree import stochtrace

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.linalg._flat import flatten_operator
from jaxtheory.linalg._lanczos import norm
from jaxtheory.linalg._operator import dimension, join_operator, split_operator
from jaxtheory.linalg._probes import estimate, signs


def diagonal(
    operator: lx.AbstractLinearOperator, *, key: KeyArray, num_samples: int = 32
) -> Estimate:
    r"""Estimate the diagonal of a square operator.

    .. math:: \frac{1}{s} \sum_{i=1}^{s} z_i \odot A z_i

    with vectors of signs. The variance of one at entry ``j`` is the sum of the squares
    of row ``j`` off the diagonal, so a diagonal operator is seen without error.

    Args:
        operator: Square lineax operator on any pytree; it need not be symmetric.
        key: Probes, the same as those of `trace`.
        num_samples: Number ``s >= 2`` of probes, one product each.

    Returns:
        The diagonal and its standard errors (``1/(s-1)`` variance), each a pytree like
        the operator's input, in at least float32, and ``s``.

    Raises:
        ValueError: Fewer than two samples, the operator is not square, or `key` is no
            typed key.

    Memory:
        Five vectors, and one product at a time.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> op = lx.MatrixLinearOperator(jnp.diag(jnp.arange(4.0)), lx.symmetric_tag)
        >>> diagonal(op, key=jax.random.key(0), num_samples=4).value.tolist()
        [0.0, 1.0, 2.0, 3.0]

    References:
        Bekas, Kokiopoulou & Saad, Applied Numerical Mathematics 57 (2007).
    """
    check_key(key)
    dimension(operator)
    num_samples = check_count(at_least=2, num_samples=num_samples)
    arrays, rest = split_operator(operator)
    mean, error = _diagonal(arrays, key, rest, num_samples)
    return Estimate(mean, error, num_samples)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _diagonal(arrays, key, rest, num_samples):
    operator = join_operator(arrays, rest)
    product, _, zeros = flatten_operator(operator)
    integrand = stochtrace.monte_carlo_diagonal()

    # Welford's means and squares: the probes' diagonals are not all kept. Squares in
    # units of the largest change, as those of small and large operators do not exist.
    def step(index, carry):
        mean, squares, old = carry
        change = integrand(product, signs(key, index, zeros)[0]) - mean
        unit = jnp.maximum(old, jnp.max(jnp.abs(change)))
        scale = jnp.where(unit > 0, unit, 1)
        grown = (change / scale) ** 2 * (index / (index + 1))
        mean = mean + change / (index + 1)
        return mean, squares * (old / scale) ** 2 + grown, unit

    start = (zeros, zeros, jnp.zeros((), zeros.dtype))
    mean, squares, unit = jax.lax.fori_loop(0, num_samples, step, start)
    error = unit * jnp.sqrt(squares / (num_samples - 1)) / jnp.sqrt(num_samples)
    wide = lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32))
    back = ravel_pytree(jax.tree.map(wide, operator.in_structure()))[1]
    return back(mean), back(error)


def frobenius_norm(
    operator: lx.AbstractLinearOperator, *, key: KeyArray, num_samples: int = 32
) -> Estimate:
    r"""Estimate the Frobenius norm of a square operator.

    .. math:: \Big(\frac{1}{s} \sum_{i=1}^{s} |A z_i|^2\Big)^{1/2}

    with vectors of signs. Its square is without bias for :math:`|A|_F^2 = \sum_{ij}
    A_{ij}^2`; the root is lower by about ``standard_error^2 / (2 value)``. One sample
    of the square has variance ``2 (|B|_F^2 - sum_i B_ii^2)`` for ``B = A^T A``.

    Args:
        operator: Square lineax operator on any pytree; it need not be symmetric.
        key: Probes, the same as those of `trace`.
        num_samples: Number ``s >= 2`` of probes, one product each.

    Returns:
        The norm (no mean over entries), its standard error, that of the square over
        ``2 value`` (delta method), and ``s``.

    Raises:
        ValueError: Fewer than two samples, the operator is not square, or `key` is no
            typed key.

    Memory:
        One probe and its product at a time.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> op = lx.MatrixLinearOperator(jnp.diag(jnp.array([3.0, 4.0])))
        >>> found = frobenius_norm(op, key=jax.random.key(0), num_samples=4)
        >>> float(found.value), float(found.standard_error)
        (5.0, 0.0)

    References:
        Hutchinson (1989), of ``A^T A``.
    """
    check_key(key)
    dimension(operator)
    num_samples = check_count(at_least=2, num_samples=num_samples)
    arrays, rest = split_operator(operator)
    norms = _product_norms(arrays, key, rest, num_samples)
    # Squares in units of the largest: those of small or large operators do not exist.
    unit = jnp.max(norms)
    unit = jnp.where(unit == 0, 1, unit)
    square = estimate((norms / unit) ** 2)
    root = jnp.sqrt(square.value)
    error = square.standard_error / (2 * jnp.where(root == 0, 1, root))
    return Estimate(unit * root, unit * error, num_samples)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _product_norms(arrays, key, rest, num_samples):
    product, _, zeros = flatten_operator(join_operator(arrays, rest))
    sample = lambda index: norm(product(signs(key, index, zeros)[0]))
    return jax.lax.map(sample, jnp.arange(num_samples))
