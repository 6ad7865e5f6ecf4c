"""Spectral density and traces of functions by stochastic Lanczos quadrature."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count, check_number
from jaxtheory.linalg._flat import flatten_operator
from jaxtheory.linalg._lanczos import lanczos
from jaxtheory.linalg._operator import dimension, join_operator, split_operator


class SpectralDensity(NamedTuple):
    """Where the eigenvalues of an operator lie, seen by ``s`` random probes.

    Attributes:
        nodes: Ritz values of each probe, ascending, ``[s, m]``.
        weights: Their shares of the spectrum, not negative; each row sums to 1.
        dimension: Number ``p`` of eigenvalues, which the shares are shares of.
    """

    nodes: Float[Array, "s m"]
    weights: Float[Array, "s m"]
    dimension: Int[Array, ""] | int

    def density(
        self, grid: Float[Array, " g"], *, width: Real[ArrayLike, ""]
    ) -> Estimate:
        """Evaluate the density of eigenvalues, smoothed by a Gaussian.

        Args:
            grid: Where to evaluate it, ``[g]``, in the units of the eigenvalues.
            width: Standard deviation of the Gaussian, in the same units. The peak of a
                single eigenvalue has the height ``1 / (p width sqrt(2 pi))``.

        Returns:
            The density at each point of the grid, which integrates to 1 over the real
            line, averaged over probes, with its standard error; both ``[g]``.

        Raises:
            ValueError: `width` is not a positive number, or `grid` no vector.
        """
        check_number("width", width, lambda w: 0 < w < jnp.inf, "a positive number")
        if len(jnp.shape(grid)) != 1:
            raise ValueError(
                f"`grid` must be a vector [g], but has shape {jnp.shape(grid)}."
            )
        grid = jnp.asarray(grid, self.nodes.dtype)

        def smooth(nodes, weights):
            distances = (grid[:, None] - nodes[None, :]) / width
            peaks = jnp.exp(-(distances**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
            return jnp.matmul(peaks, weights, precision="highest")

        return _estimate(jax.vmap(smooth)(self.nodes, self.weights).T)

    def trace_of(self, function: Callable[[Array], Array]) -> Estimate:
        """Estimate the trace of a function of the operator, ``sum_i f(lambda_i)``.

        Args:
            function: ``f``, elementwise; or several at once, which return
                ``[..., s, m]``.

        Returns:
            The sum over all ``p`` eigenvalues (no mean), averaged over probes, with
            its standard error; both ``[...]``.
        """
        values = function(self.nodes)
        means = jnp.einsum("...sm,sm->...s", values, self.weights, precision="highest")
        return _estimate(self.dimension * means)


def spectral_density(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num_probes: int = 16,
    num_iterations: int | None = None,
) -> SpectralDensity:
    r"""Estimate the density of eigenvalues of a symmetric operator.

    Stochastic Lanczos quadrature. Lanczos, started from a random vector of signs,
    gives the nodes :math:`\theta_{ij}` (eigenvalues of the tridiagonal matrix) and
    weights :math:`\tau_{ij}` (squared first entries of its eigenvectors) of a Gauss
    quadrature, and

    .. math:: \frac{1}{p} \operatorname{tr} f(A) \approx
        \frac{1}{s} \sum_{i=1}^{s} \sum_{j=1}^{m} \tau_{ij} f(\theta_{ij})

    The average over probes is without bias for polynomials ``f`` of degree up to
    ``2 m - 1``; the standard errors are those of the average over probes and say
    nothing of what ``m`` iterations cannot resolve: raise `num_iterations` until
    nothing moves by more than them.

    Args:
        operator: Symmetric lineax operator on any pytree.
        key: Probes and restarts.
        num_probes: Number ``s >= 2`` of probes, one after the other.
        num_iterations: Number ``m`` of Lanczos iterations for each, one product each;
            by default ``min(p, 64)``.

    Returns:
        Nodes and weights; ``.density(grid, width=...)`` smooths them,
        ``.trace_of(function)`` sums a function over the eigenvalues. NaN when the
        operator returns something that is not finite.

    Raises:
        ValueError: Fewer than two probes, `num_iterations` is not between 1 and ``p``,
            or the operator is not square.

    Memory:
        ``m p`` numbers, and one product at a time; ``s m`` products.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> op = lx.MatrixLinearOperator(jnp.diag(jnp.arange(4.0)), lx.symmetric_tag)
        >>> spectrum = spectral_density(op, key=jax.random.key(0), num_probes=4)
        >>> spectrum.nodes.shape
        (4, 4)
        >>> round(float(spectrum.trace_of(lambda x: x**2).value), 4)
        14.0

    References:
        Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017); Lin, Saad & Yang,
        arXiv:1308.5467, section 3.2 (density); Ghorbani, Krishnan & Xiao,
        arXiv:1901.10159 (of network Hessians).
    """
    p = dimension(operator)
    num_probes = check_count(at_least=2, num_probes=num_probes)
    if num_iterations is None:
        num_iterations = min(p, 64)
    num_iterations = check_count(num_iterations=num_iterations)
    if num_iterations > p:
        raise ValueError(
            f"`num_iterations` must be at most the operator's dimension {p}, but was "
            f"{num_iterations}."
        )
    arrays, rest = split_operator(operator)
    nodes, weights = _quadratures(arrays, key, rest, num_probes, num_iterations)
    return SpectralDensity(nodes, weights, p)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _quadratures(arrays, key, rest, num_probes, num_iterations):
    """Nodes and weights of each probe's Gauss quadrature."""
    product, _, zeros = flatten_operator(join_operator(arrays, rest))

    def quadrature(index):
        start_key, restart_key = jax.random.split(jax.random.fold_in(key, index))
        start = jax.random.rademacher(start_key, zeros.shape, zeros.dtype)
        krylov = lanczos(product, start, num_iterations=num_iterations, key=restart_key)
        beside = krylov.off_diagonal
        matrix = jnp.diag(krylov.diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
        nodes, vectors = jnp.linalg.eigh(matrix)
        return nodes, vectors[0] ** 2

    return jax.lax.map(quadrature, jnp.arange(num_probes))


def _estimate(samples):
    """Mean over the last axis, that of the probes, and its standard error."""
    num_samples = samples.shape[-1]
    error = jnp.std(samples, axis=-1, ddof=1) / jnp.sqrt(num_samples)
    return Estimate(jnp.mean(samples, axis=-1), error, num_samples)


def effective_dimension(
    operator: lx.AbstractLinearOperator,
    regularization: Real[ArrayLike, "..."],
    *,
    key: KeyArray,
    num_probes: int = 16,
    num_iterations: int | None = None,
) -> Estimate:
    r"""Estimate how many directions of an operator stand out of a regularisation.

    .. math:: d(\lambda) = \operatorname{tr} A (A + \lambda)^{-1}
        = \sum_i \frac{\lambda_i}{\lambda_i + \lambda}

    by stochastic Lanczos quadrature. For a kernel it is the number of degrees of
    freedom of ridge regression, for a Hessian the number of parameters that the data
    determine. Negative eigenvalues, of rounding or of an indefinite Hessian, count as
    zero.

    Args:
        operator: Symmetric lineax operator on any pytree.
        regularization: Positive ``lambda``, in the units of the eigenvalues, of any
            shape: all are read from the same probes.
        key: Probes and restarts.
        num_probes: As for `spectral_density`.
        num_iterations: As for `spectral_density`; the smaller ``lambda``, the more it
            takes.

    Returns:
        The effective dimension, in ``[0, p]``, with the shape of `regularization`, and
        its standard error over probes.

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
    # On the host: under `jit`, what JAX computes is traced even from known numbers.
    known = not isinstance(regularization, Tracer)
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

    return spectrum.trace_of(share)
