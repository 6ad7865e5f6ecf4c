"""Randomised low-rank approximation of a kernel, and the preconditioner made of it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.linalg._flat import flatten_operator
from jaxtheory.linalg._operator import (
    dimension,
    function_operator,
    join_operator,
    split_operator,
)


class Nystrom(NamedTuple):
    """A low-rank approximation ``sum_i eigenvalues[i] u_i u_i^T`` from below.

    Attributes:
        eigenvectors: Orthonormal: the operator's input pytree with a leading axis
            ``rank``.
        eigenvalues: Largest first, not negative; each at most the operator's own.
        shift: Multiple of the identity that was added and taken off again to keep the
            factorisation stable: ``eps`` times the Frobenius norm of the sketch.
            If it is much larger, the operator is not positive semidefinite.
    """

    eigenvectors: PyTree[Float[Array, "rank ..."]]
    eigenvalues: Float[Array, " rank"]
    shift: Float[Array, ""]

    def preconditioner(
        self, regularization: Real[ArrayLike, ""]
    ) -> lx.FunctionLinearOperator:
        r"""Approximate the inverse of ``A + regularization``, up to a factor.

        .. math:: P^{-1} = \frac{1}{\mu} \left(
            (\lambda_r + \mu) U (\Lambda + \mu)^{-1} U^\top + I - U U^\top \right)

        with the regularisation :math:`\mu` and the smallest eigenvalue
        :math:`\lambda_r`. The spectrum of :math:`P^{-1} (A + \mu)` starts at about 1,
        whatever the units of ``A``; a factor changes nothing in exact arithmetic, but
        `lineax.CG` gives NaN where products are small.

        Args:
            regularization: The ``mu >= 0`` of the system to be solved (not checked
                when traced). At least ``eps`` times the largest eigenvalue is taken.

        Returns:
            A positive definite operator: `preconditioner` of `conjugate_gradient`, or
            ``options={"preconditioner": ...}`` of `lineax.CG`.

        Raises:
            ValueError: `regularization` is not one number, or negative.

        References:
            Frangella, Tropp & Udell, arXiv:2110.02820, equation 5.3 (here over mu).
        """
        check_number(
            "regularization",
            regularization,
            lambda mu: 0 <= mu < float("inf"),
            "a finite number, at least 0",
        )
        dtype = self.eigenvalues.dtype
        tiny = jnp.finfo(dtype).eps * self.eigenvalues[0]
        mu = jnp.maximum(jnp.asarray(regularization, dtype), tiny)
        mu = jnp.where(mu > 0, mu, 1)
        ratios = (self.eigenvalues[-1] + mu) / (self.eigenvalues + mu)
        one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return function_operator(
            _precondition,
            self.eigenvectors,
            (ratios - 1) / mu,
            1 / mu,
            structure=jax.tree.map(one, self.eigenvectors),
            tags=(lx.symmetric_tag, lx.positive_semidefinite_tag),
        )


def nystrom(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    rank: int,
    block_size: int = 4,
) -> Nystrom:
    r"""Approximate a positive semidefinite operator from products with random vectors.

    .. math:: (A \Omega) (\Omega^\top A \Omega)^{\dagger} (A \Omega)^\top
        = U \Lambda U^\top

    with ``rank`` orthonormalised Gaussian vectors in :math:`\Omega`. Made from the
    shifted operator ``A + shift``, whose shift is taken off the eigenvalues again, so
    that it stays stable where ``A`` is singular to rounding.

    Args:
        operator: Positive semidefinite lineax operator on any pytree.
        key: Random vectors.
        rank: Number of vectors, and of eigenpairs. A good preconditioner for
            ``A + mu`` needs about twice the effective dimension at ``mu``.
        block_size: Vectors multiplied at once, under `jax.vmap`: each takes the memory
            of one product.

    Returns:
        The approximation, see `Nystrom`.

    Raises:
        ValueError: `rank` or `block_size` is no positive integer, `rank` exceeds the
            operator's dimension, or the operator is not square.

    Memory:
        ``4 rank p`` numbers, and `block_size` products; ``rank`` products and
        ``O(rank^2 p)`` operations.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.array([3.0, 0.0, 1.0, 0.0]))
        >>> op = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        >>> found = nystrom(op, key=jax.random.key(0), rank=3)
        >>> [abs(round(float(value), 4)) for value in found.eigenvalues]
        [3.0, 1.0, 0.0]

    References:
        Frangella, Tropp & Udell, arXiv:2110.02820, algorithm 2.1; Tropp, Yurtsever,
        Udell & Cevher, arXiv:1706.05736.
    """
    check_key(key)
    p = dimension(operator)
    rank = check_count(rank=rank)
    block_size = check_count(block_size=block_size)
    if rank > p:
        raise ValueError(
            f"`rank` must be at most the operator's dimension {p}, but was {rank}."
        )
    arrays, rest = split_operator(operator)
    return _nystrom(arrays, key, rest, rank, min(rank, block_size))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _nystrom(arrays, key, rest, rank, block_size):
    operator = join_operator(arrays, rest)
    product, back, zeros = flatten_operator(operator)
    gaussian = jax.random.normal(key, (zeros.size, rank), zeros.dtype)
    test = jnp.linalg.qr(gaussian)[0]
    sketch = jax.lax.map(product, test.T, batch_size=block_size).T
    # Scaled first: squares of small and large kernels leave float32.
    scale = jnp.max(jnp.abs(sketch))
    scale = jnp.where(scale > 0, scale, 1)
    structure = jax.tree.leaves(operator.in_structure())
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in structure)
    vectors, values, shift = _shifted_factor(test, sketch / scale, eps)
    return Nystrom(jax.vmap(back)(vectors.T), values * scale, shift * scale)


def _shifted_factor(test, sketch, eps):
    """Eigenvectors ``[p, rank]``, eigenvalues, and the shift that was needed."""
    matmul = functools.partial(jnp.matmul, precision="highest")
    core = matmul(test.T, sketch)
    values, rotation = jnp.linalg.eigh((core + core.T) / 2)
    # Rounding may leave the core further below zero than the shift of the paper.
    shift = eps * jnp.linalg.norm(sketch)
    shift = jnp.maximum(shift, -2 * values[0])
    lifted = values + shift
    root = jnp.where(lifted > 0, jax.lax.rsqrt(jnp.where(lifted > 0, lifted, 1)), 0)
    factor = matmul(sketch + shift * test, rotation * root[None])
    vectors, singular, _ = jnp.linalg.svd(factor, full_matrices=False)
    return vectors, jnp.maximum(singular**2 - shift, 0), shift


def _precondition(eigenvectors, weights, rest, vector):
    """``rest * vector + U diag(weights) U^T vector``."""
    leaves = list(
        zip(jax.tree.leaves(eigenvectors), jax.tree.leaves(vector), strict=True)
    )
    rank, dtype = weights.size, weights.dtype
    dot = functools.partial(
        jnp.matmul, precision="highest", preferred_element_type=dtype
    )
    coordinates = sum(dot(u.reshape(rank, -1), v.ravel()) for u, v in leaves)
    coordinates = weights * coordinates
    changed = [
        (rest * v + dot(coordinates, u.reshape(rank, -1)).reshape(v.shape)).astype(
            v.dtype
        )
        for u, v in leaves
    ]
    return jax.tree.unflatten(jax.tree.structure(vector), changed)
