"""Stochastic estimates of an operator's trace."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float
from matfree import stochtrace

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.linalg._flat import flatten_operator, inner_products
from jaxtheory.linalg._operator import dimension, join_operator, split_operator
from jaxtheory.linalg._probes import estimate, signs

_matmul = functools.partial(jnp.matmul, precision="highest")


def trace(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num_samples: int = 32,
    method: Literal["hutchinson", "hutch++", "xtrace"] = "hutchinson",
) -> Estimate:
    r"""Estimate the trace of a square operator from products with random vectors.

    All methods are free of bias; they differ in their error for ``s`` products:

    - ``"hutchinson"``: :math:`\frac{1}{s} \sum_i z_i^\top A z_i` with vectors of signs.
      For a symmetric operator the variance of one is ``2 (|A|_F^2 - sum_i A_ii^2)``.
      Best for flat spectra and in memory; its standard error is that of a mean of
      independent samples.
    - ``"hutch++"``: a third of the products finds an orthonormal ``Q`` along the
      largest eigenvalues, a third takes :math:`\operatorname{tr} Q^\top A Q` exactly,
      the rest estimates the trace on the complement as above. For the positive
      semidefinite the error falls like ``1/s``. The standard error is that of the
      samples on the complement: given ``Q`` they are independent and without bias, so
      that it holds for the whole estimate. `Estimate.num_samples` is their number.
    - ``"xtrace"``: each of ``s/2`` Gaussian vectors is a sample on the complement of
      what the others span, rescaled to its dimension. The most exact for spectra that
      decay. The standard error takes these estimates for independent, which they are
      not quite: with 15 vectors and eigenvalues that fall by a fifth each, it is 0.8 of
      the spread of repeated runs. `Estimate.num_samples` is their number.

    Args:
        operator: Square lineax operator on any pytree; it need not be symmetric.
        key: Random vectors.
        num_samples: Number ``s`` of products; at least 2, or 4 unless `method` is
            ``"hutchinson"``. (XTrace takes an even number, at most ``2 p``.)
        method: See above.

    Returns:
        The trace, its standard error (``1/(s-1)`` variances) and number of samples.

    Raises:
        ValueError: Too few samples, `method` is another word, the operator is not
            square, XTrace of an operator of dimension 1, or `key` is no typed key.

    Memory:
        One product at a time. Beside it Hutchinson keeps one vector, Hutch++ about
        ``s p`` numbers, XTrace about ``4 s p``.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> op = lx.MatrixLinearOperator(jnp.diag(jnp.arange(4.0)), lx.symmetric_tag)
        >>> estimate = trace(op, key=jax.random.key(0), num_samples=4)
        >>> float(estimate.value), float(estimate.standard_error)
        (6.0, 0.0)

    References:
        Hutchinson (1989); Meyer, Musco, Musco & Woodruff, arXiv:2010.09649, algorithm 1
        (Hutch++); Epperly, Tropp & Webber, arXiv:2301.07825, sections 1 and 2 (XTrace,
        with normalisation).
    """
    check_key(key)
    p = dimension(operator)
    if method not in ("hutchinson", "hutch++", "xtrace"):
        raise ValueError(
            f"`method` must be 'hutchinson', 'hutch++' or 'xtrace', but was {method!r}."
        )
    least = 2 if method == "hutchinson" else 4
    num_samples = check_count(at_least=least, num_samples=num_samples)
    if method == "xtrace" and p < 2:
        raise ValueError(
            "`method` 'xtrace' needs an operator of dimension at least 2, but it is "
            f"{p}. Use 'hutchinson', which is exact there."
        )
    arrays, rest = split_operator(operator)
    samples = _METHODS[method](arrays, key, rest, num_samples)
    return estimate(samples)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _hutchinson(arrays, key, rest, num_samples):
    product, _, zeros = flatten_operator(join_operator(arrays, rest))
    integrand = stochtrace.monte_carlo_trace()
    # One probe at a time: matfree's own estimators map over all of them at once, which
    # for a network multiplies the memory of a Hessian product by their number.
    sample = lambda index: integrand(product, signs(key, index, zeros)[0])
    return jax.lax.map(sample, jnp.arange(num_samples))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _hutch_plus_plus(arrays, key, rest, num_samples):
    product, _, zeros = flatten_operator(join_operator(arrays, rest))
    sketch_key, probe_key = jax.random.split(key)
    rank = min(num_samples // 3, zeros.size)
    image = lambda index: product(signs(sketch_key, index, zeros)[0])
    sketch = jax.lax.map(image, jnp.arange(rank))
    basis = jnp.linalg.qr(sketch.T)[0].T
    dot = functools.partial(jnp.dot, precision="highest")
    inside = jnp.sum(jax.lax.map(lambda q: dot(q, product(q)), basis))

    def sample(index):
        probe = signs(probe_key, index, zeros)[0]
        probe = probe - dot(inner_products(basis, probe), basis)
        return dot(probe, product(probe))

    return inside + jax.lax.map(sample, jnp.arange(num_samples - 2 * rank))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _xtrace(arrays, key, rest, num_samples):
    product, _, zeros = flatten_operator(join_operator(arrays, rest))
    num = min(num_samples // 2, zeros.size)
    tests = jax.random.normal(key, (num, zeros.size), zeros.dtype)
    images = jax.lax.map(product, tests)
    # Scaled first: what is zero but for rounding is seen against the largest.
    scale = jnp.max(jnp.abs(images))
    scale = jnp.where(scale > 0, scale, 1)
    basis, triangle = jnp.linalg.qr(images.T / scale)
    of_basis = jax.lax.map(lambda q: product(q) / scale, basis.T).T
    return scale * xtrace_samples(tests.T, basis, triangle, of_basis)


def xtrace_samples(
    tests: Float[Array, "p s"],
    basis: Float[Array, "p s"],
    triangle: Float[Array, "s s"],
    of_basis: Float[Array, "p s"],
) -> Float[Array, " s"]:
    r"""Estimate a trace ``s`` times, each leaving one test vector out.

    With ``A tests = Q R``, the span of all products but the ``i``-th is that of
    :math:`Q (I - u_i u_i^\top)`, where the unit vector :math:`u_i` is orthogonal to
    the other columns of ``R``.

    matfree's routine multiplies all vectors at once, which for a network multiplies the
    memory of a product by their number, calls an operator of low rank by an absolute
    size, and leaves the precision to the device; it is the oracle of the tests.

    Args:
        tests: Gaussian vectors in columns.
        basis: ``Q``.
        triangle: ``R``.
        of_basis: ``A Q``.

    Returns:
        The estimates.
    """
    p, num = tests.shape
    sizes = jnp.abs(jnp.diagonal(triangle))
    # Of an operator of low rank: any direction that the others do not need will do.
    floor = jnp.finfo(triangle.dtype).eps * jnp.max(sizes)
    floor = jnp.where(floor > 0, floor, 1)
    lifted = jnp.where(sizes < floor, floor, jnp.diagonal(triangle))
    lifted = triangle + jnp.diag(lifted - jnp.diagonal(triangle))
    # From the transposed inverse; scaled first, as it may be as large as 1 / floor^num.
    eye = jnp.eye(num, dtype=triangle.dtype)
    left_out = jax.scipy.linalg.solve_triangular(lifted, eye, trans=1)
    left_out = left_out / jnp.max(jnp.abs(left_out), axis=0, keepdims=True)
    left_out = left_out / jnp.linalg.norm(left_out, axis=0, keepdims=True)
    columns = lambda a, b: jnp.sum(a * b, axis=0)
    core = _matmul(basis.T, of_basis)
    inside = _matmul(basis.T, tests)
    along = columns(left_out, inside)
    kept = inside - left_out * along[None]
    residual = along * columns(left_out, triangle)
    residual = residual - columns(_matmul(of_basis.T, tests), kept)
    residual = residual + columns(kept, _matmul(core, kept))
    # A Gaussian vector's direction on the complement, at that dimension's length.
    length = columns(tests, tests) - columns(kept, kept)
    rescaled = residual * (p - num + 1) / length
    return jnp.trace(core) - columns(left_out, _matmul(core, left_out)) + rescaled


_METHODS = {
    "hutchinson": _hutchinson,
    "hutch++": _hutch_plus_plus,
    "xtrace": _xtrace,
}
