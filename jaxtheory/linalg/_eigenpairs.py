"""Largest and smallest eigenpairs by Lanczos, with residuals."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.linalg._checks import check_reorthogonalise, check_symmetric
from jaxtheory.linalg._flat import flatten_operator
from jaxtheory.linalg._lanczos import (
    dense,
    lanczos,
    norm,
    unit_start,
)
from jaxtheory.linalg._operator import (
    check_vector,
    dimension,
    join_operator,
    split_operator,
)
from jaxtheory.linalg._two_pass import two_passes
from jaxtheory.linalg._watch import leaf_of

_dot = functools.partial(jnp.dot, precision="highest")


class Eigenpairs(NamedTuple):
    """Extremal eigenpairs and how far they can be trusted.

    Attributes:
        values: The eigenvalues, outermost first, ``[num]``.
        vectors: Unit eigenvectors: the operator's input pytree with a leading axis
            ``num``.
        residuals: ``|A v - value v|`` of the returned pairs, computed with one more
            product each; an eigenvalue lies within this distance of the value.
        converged: ``residuals <= tolerance * max |Ritz value|``, ``[num]``.
        asymmetry: Largest ``|v_i^T A v_j - v_j^T A v_i|`` seen, over the largest entry
            of the tridiagonal matrix: rounding where the operator is symmetric, and a
            sign that nothing here means anything where it is not small.
        nonfinite_step: The first Lanczos iteration whose product was not finite, -1 if
            none.
        nonfinite_leaf: Which leaf of that product was not finite, -1 if none; its name
            is entry `nonfinite_leaf` of
            ``jax.tree_util.tree_leaves_with_path(operator.in_structure())``.
    """

    values: Float[Array, " num"]
    vectors: PyTree[Float[Array, "num ..."]]
    residuals: Float[Array, " num"]
    converged: Bool[Array, " num"]
    asymmetry: Float[Array, ""]
    nonfinite_step: Int[Array, ""]
    nonfinite_leaf: Int[Array, ""]


def top_eigenpairs(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num: int = 1,
    num_iterations: int | None = None,
    start: PyTree | None = None,
    tolerance: Real[ArrayLike, ""] = 1e-3,
    reorthogonalise: Literal["full", "none"] = "full",
) -> Eigenpairs:
    """Find the algebraically largest eigenpairs of a symmetric operator.

    Compiled once for an operator type and its shapes: a new operator of the same kind
    costs no new trace.

    Without reorthogonalisation it takes two passes: the plain recursion gives the
    tridiagonal matrix, and then runs again to add up the eigenvectors, so that two
    Lanczos vectors are stored instead of ``m``, for twice the products. Rounding makes
    copies of converged eigenvalues there. They are told apart so: Ritz values closer
    than ``sqrt(eps)`` of the largest are one eigenvalue, whose vector is the start
    vector's part along all of them; and a value whose weight in the start vector is at
    most ``(10 eps)^2`` is a copy on its way, and is passed over (a genuine one has
    about ``1 / p`` with a random start). Hence each eigenvalue comes once, whatever its
    multiplicity, and where fewer than `num` are left, the rest is NaN, with zero
    vectors and infinite residuals. For `num` above 1 the start must not be one of the
    eigenvectors: it hides the others.

    Args:
        operator: Symmetric lineax operator on any pytree.
        key: Start vector and restarts.
        num: Number of pairs.
        num_iterations: Krylov dimension ``m``; by default ``min(p, 4 num + 40)``.
            Raise it when `converged` is False.
        start: Start vector, for example the top eigenvector of a neighbouring
            operator, or the sum of several; by default random. A random one takes its
            place where it is zero or not finite.
        tolerance: Relative residual below which a pair counts as converged.
        reorthogonalise: ``"full"`` stores all Lanczos vectors; ``"none"`` stores two.

    Returns:
        Values (largest first), vectors, true residuals, `converged`, and what tells an
        operator that is not symmetric or not finite. NaN values (never converged) when
        a product is not finite.

    Raises:
        ValueError: `num` or `num_iterations` is out of range, the operator is not
            square or not tagged as symmetric, `start` does not fit it, several pairs
            of an operator in half precision are asked for without
            reorthogonalisation (its copies are too far apart), `tolerance` is negative,
            `key` is no typed key, or `reorthogonalise` is another word.

    Memory:
        Full: about ``(m + num + 9) p`` numbers and ``m + num`` products. None:
        ``(num + 7) p`` numbers and ``2 m + num`` products. One product at a time.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.array([3.0, -5.0, 1.0]))
        >>> op = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> top = top_eigenpairs(op, num=2, key=jax.random.key(0))
        >>> [round(float(value), 4) for value in top.values]
        [3.0, 1.0]

    References:
        Saad, Numerical Methods for Large Eigenvalue Problems, chapter 6; Cullum &
        Willoughby, Lanczos Algorithms for Large Symmetric Eigenvalue Computations
        (1985), chapter 4, and Greenbaum, Linear Algebra Appl. 113 (1989) (copies).
    """
    check_key(key)
    options = (key, num, num_iterations, start, tolerance, reorthogonalise)
    return _extreme_eigenpairs(operator, 1, *options)


def bottom_eigenpairs(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num: int = 1,
    num_iterations: int | None = None,
    start: PyTree | None = None,
    tolerance: Real[ArrayLike, ""] = 1e-3,
    reorthogonalise: Literal["full", "none"] = "full",
) -> Eigenpairs:
    """Find the algebraically smallest eigenpairs of a symmetric operator.

    `top_eigenpairs` of the negated operator: most negative curvature first. Where the
    operator is positive semidefinite these lie in its dense lower end, which Lanczos
    resolves last; see `converged`.

    Args:
        operator: As for `top_eigenpairs`, as are all others.
        key: Start vector and restarts.
        num: Number of pairs.
        num_iterations: Krylov dimension.
        start: Start vector.
        tolerance: Residual, relative to the largest Ritz value in size, below which a
            pair counts as converged.
        reorthogonalise: ``"full"`` stores all Lanczos vectors; ``"none"`` stores two.

    Returns:
        The pairs, smallest eigenvalue first.

    Raises:
        ValueError: As for `top_eigenpairs`.

    Memory:
        As for `top_eigenpairs`.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.array([3.0, -5.0, 1.0]))
        >>> op = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> bottom = bottom_eigenpairs(op, num=2, key=jax.random.key(0))
        >>> [round(float(value), 4) for value in bottom.values]
        [-5.0, 1.0]

    References:
        As for `top_eigenpairs`.
    """
    check_key(key)
    options = (key, num, num_iterations, start, tolerance, reorthogonalise)
    return _extreme_eigenpairs(operator, -1, *options)


def _extreme_eigenpairs(
    operator, sign, key, num, num_iterations, start, tolerance, reorthogonalise
):
    """Check the arguments, and call the compiled routine."""
    p = dimension(operator)
    check_symmetric(operator)
    check_reorthogonalise(reorthogonalise)
    num = check_count(num=num)
    _check_precision(operator, num, reorthogonalise)
    if num > p:
        raise ValueError(
            f"`num` must be between 1 and the operator's dimension {p}, but was {num}."
        )
    if num_iterations is None:
        num_iterations = min(p, 4 * num + 40)
    num_iterations = check_count(num_iterations=num_iterations)
    if not num <= num_iterations <= p:
        raise ValueError(
            f"`num_iterations` must be between `num` ({num}) and the operator's "
            f"dimension ({p}), but was {num_iterations}."
        )
    if start is not None:
        check_vector(start, operator.in_structure(), "start")
    must = "a finite number, at least 0"
    check_number("tolerance", tolerance, lambda t: 0 <= t < float("inf"), must)
    arrays, rest = split_operator(operator)
    static = (rest, num, num_iterations, sign, reorthogonalise)
    return _eigenpairs(arrays, start, key, tolerance, *static)


def _check_precision(operator, num, reorthogonalise):
    """Raise where copies of an eigenvalue could not be told from others."""
    if num == 1 or reorthogonalise == "full":
        return
    for leaf in jax.tree.leaves(operator.in_structure()):
        if jnp.finfo(leaf.dtype).bits < 32:
            raise ValueError(
                f"`reorthogonalise` must be 'full' for {num} eigenpairs of an operator "
                f"in half precision ({leaf.dtype}), whose rounding spreads the copies "
                "of an eigenvalue too far to know them. Or take the parameters to "
                "float32."
            )


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _eigenpairs(arrays, start, key, tolerance, rest, num, num_iterations, sign, kind):
    operator = join_operator(arrays, rest)
    flat, back, zeros = flatten_operator(operator)
    product = lambda vector: sign * flat(vector)
    start_key, other_key = jax.random.split(key)
    if start is None:
        first = jax.random.normal(start_key, zeros.shape, zeros.dtype)
    else:
        first = ravel_pytree(start)[0].astype(zeros.dtype)
    if kind == "full":
        krylov = lanczos(product, first, num_iterations=num_iterations, key=other_key)
        assert krylov.basis is not None  # stored, as reorthogonalisation needs it
        ritz_values, ritz = jnp.linalg.eigh(dense(krylov))
        values, coordinates = ritz_values[::-1][:num], ritz[:, ::-1][:, :num].T
        vectors = jnp.matmul(coordinates, krylov.basis, precision="highest")
        scale = jnp.max(jnp.abs(ritz_values))
    else:
        unit = unit_start(first, other_key)
        krylov, vectors, scale = two_passes(product, unit, num, num_iterations)
        values = None
    values, residuals = _residuals(product, vectors, values)
    return Eigenpairs(
        sign * values,
        jax.vmap(back)(vectors),
        residuals,
        residuals <= tolerance * scale,
        krylov.asymmetry,
        krylov.nonfinite_step,
        leaf_of(krylov.nonfinite_index, operator.in_structure()),
    )


def _residuals(product, vectors, values):
    """True residuals; values None are Rayleigh quotients, NaN for zero vectors."""

    def one(pair):
        vector, value = pair
        image = product(vector)
        missing = ~jnp.any(vector != 0)
        if value is None:
            value = jnp.where(missing, jnp.nan, _dot(vector, image))
        residual = norm(image - value * vector)
        return value, jnp.where(missing, jnp.inf, residual)

    # One at a time, each reduced to its norm: no stack of products is kept.
    return jax.lax.map(one, (vectors, values))
