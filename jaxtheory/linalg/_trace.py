"""Stochastic estimates of an operator's trace."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
from matfree import stochtrace

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count
from jaxtheory.linalg._operator import dimension, join_operator, split_operator


def trace(
    operator: lx.AbstractLinearOperator, *, key: KeyArray, num_samples: int = 32
) -> Estimate:
    r"""Estimate the trace of a square operator by Hutchinson's method.

    .. math:: \frac{1}{s} \sum_{i=1}^{s} z_i^\top A z_i

    with Rademacher probes. For a symmetric operator the variance of one probe is
    ``2 (|A|_F^2 - sum_i A_ii^2)``.

    Args:
        operator: Square lineax operator on any pytree.
        key: Probes.
        num_samples: Number ``s >= 2`` of probes, one product each.

    Returns:
        The mean over probes, its standard error (``1/(s-1)`` variance) and ``s``.

    Raises:
        ValueError: Fewer than two samples, or the operator is not square.

    Memory:
        One probe and its product at a time.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> op = lx.MatrixLinearOperator(jnp.diag(jnp.arange(4.0)), lx.symmetric_tag)
        >>> estimate = trace(op, key=jax.random.key(0), num_samples=4)
        >>> float(estimate.value), float(estimate.standard_error)
        (6.0, 0.0)

    References:
        Hutchinson (1989); Epperly, Tropp & Webber, arXiv:2301.07825, section 1.
    """
    dimension(operator)
    num_samples = check_count(at_least=2, num_samples=num_samples)
    arrays, rest = split_operator(operator)
    return _trace(arrays, key, rest, num_samples)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _trace(arrays, key, rest, num_samples):
    operator = join_operator(arrays, rest)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    draw = stochtrace.sampler_signs(zeros, num=1)
    integrand = stochtrace.monte_carlo_trace()
    product = lambda probe: jax.tree.map(_at_least_single, operator.mv(probe))

    # One probe at a time: matfree's own estimator maps over all of them at once, which
    # for a network multiplies the memory of a Hessian product by their number.
    def sample(index):
        probe = jax.tree.map(lambda z: z[0], draw(jax.random.fold_in(key, index)))
        return integrand(product, probe)

    samples = jax.lax.map(sample, jnp.arange(num_samples))
    error = jnp.std(samples, ddof=1) / jnp.sqrt(num_samples)
    return Estimate(jnp.mean(samples), error, num_samples)


def _at_least_single(array):
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
