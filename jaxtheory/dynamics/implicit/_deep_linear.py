"""Deep linear networks: what gradient flow keeps, and the rank of the product."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxtheory.batching import check_params

_product = functools.partial(jnp.matmul, precision="highest")


class Balancedness(NamedTuple):
    """How far neighbouring layers of a linear network are from balanced.

    Attributes:
        differences: ``W_j^T W_j - W_(j+1) W_(j+1)^T`` for each pair of neighbours,
            symmetric, of the width between them. Gradient flow on any loss of the
            product keeps every entry.
        norms: Their Frobenius norms, one a pair.
        relative: `norms` over the larger of ``|W_j^T W_j|`` and
            ``|W_(j+1) W_(j+1)^T|``; 0 where both are zero.
    """

    differences: tuple[Float[Array, "_width _width"], ...]
    norms: Float[Array, " pairs"]
    relative: Float[Array, " pairs"]


class ProductRank(NamedTuple):
    """The spectrum of a product of matrices, and soft counts of its rank.

    Attributes:
        singular_values: Of the product, largest first.
        effective_rank: ``exp(-sum p log p)`` with ``p`` the singular values over their
            sum; 0 for a product of zero.
        stable_rank: ``|W|_F^2 / |W|_2^2``; 0 for a product of zero.
        nuclear_norm: Sum of the singular values.
    """

    singular_values: Float[Array, " min_width"]
    effective_rank: Float[Array, ""]
    stable_rank: Float[Array, ""]
    nuclear_norm: Float[Array, ""]


def balancedness(
    weights: Sequence[Float[ArrayLike, "_in _out"]],
) -> Balancedness:
    """Measure how balanced the layers of a linear network are.

    For ``f(x) = x W_1 W_2 ... W_N`` (kernels as Flax keeps them, ``[inputs,
    outputs]``) the difference of neighbours is ``W_j^T W_j - W_(j+1) W_(j+1)^T``.
    Written for ``W_N ... W_1 x``, as in the papers, it is ``W_(j+1)^T W_(j+1) - W_j
    W_j^T`` up to sign: pass transposed matrices.

    Gradient flow keeps the differences; gradient descent moves them by ``O(eta^2)`` a
    step. Balanced layers (all differences zero, as from a small initialisation, nearly)
    have equal singular values, and depth then acts as a preconditioner alone.

    Args:
        weights: The layers' kernels ``W_1, ..., W_N`` in order, at least two.

    Returns:
        Differences and their norms; see `Balancedness`.

    Raises:
        ValueError: `weights` is no sequence of at least two matrices of floating-point
            numbers, or their widths do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> layers = [jnp.array([[3.0, 0.0]]), jnp.array([[2.0], [0.0]])]
        >>> float(balancedness(layers).norms[0])  # 9 - 4
        5.0

    References:
        Arora, Cohen & Hazan, arXiv:1802.06509, theorem 1; Arora et al.,
        arXiv:1905.13655, equation 5.
    """
    layers = _check_layers(weights, "weights", at_least=2)
    return _balancedness(layers)


def product_rank(
    weights: Sequence[Float[ArrayLike, "_in _out"]],
) -> ProductRank:
    """Measure the rank of the matrix that a linear network computes.

    Of the product ``W_1 W_2 ... W_N``: deeper networks that start small keep it low.

    Args:
        weights: The layers' kernels ``[inputs, outputs]`` in order; one or more.

    Returns:
        Singular values and soft ranks; see `ProductRank`.

    Raises:
        ValueError: As for `balancedness`.

    Example:
        >>> import jax.numpy as jnp
        >>> rank = product_rank([jnp.diag(jnp.array([2.0, 1.0])), jnp.eye(2)])
        >>> float(rank.stable_rank), float(rank.nuclear_norm)
        (1.25, 3.0)
        >>> round(float(rank.effective_rank), 4)  # exp of the entropy of (2/3, 1/3)
        1.8899

    References:
        Roy & Vetterli, EUSIPCO 2007 (effective rank); Arora et al., arXiv:1905.13655,
        section 2.
    """
    return _rank(_check_layers(weights, "weights", at_least=1))


@jax.jit
def _balancedness(layers):
    exponent = _exponent(*layers)
    layers = [jnp.ldexp(layer, -exponent) for layer in layers]
    inner = [_product(layer.T, layer) for layer in layers[:-1]]
    outer = [_product(layer, layer.T) for layer in layers[1:]]
    differences = tuple(a - b for a, b in zip(inner, outer, strict=True))
    norms = jnp.stack([jnp.linalg.norm(d) for d in differences])
    sizes = [
        jnp.maximum(jnp.linalg.norm(a), jnp.linalg.norm(b))
        for a, b in zip(inner, outer, strict=True)
    ]
    sizes = jnp.stack(sizes)
    zero = sizes == 0
    relative = jnp.where(zero, 0, norms / jnp.where(zero, 1, sizes))
    back = lambda a: jnp.ldexp(a, 2 * exponent)
    return Balancedness(tuple(map(back, differences)), back(norms), relative)


@jax.jit
def _rank(layers):
    product, exponent = _scaled(layers[0])
    for layer in layers[1:]:
        # A product of many small layers would leave the range of float32.
        layer, own = _scaled(layer)
        product, rest = _scaled(_product(product, layer))
        exponent = exponent + own + rest
    values = jnp.linalg.svd(product, compute_uv=False)
    total, top = jnp.sum(values), values[0]
    zero = top == 0
    share = values / jnp.where(zero, 1, total)
    entropy = -jnp.sum(jax.scipy.special.xlogy(share, share))
    squares = (values / jnp.where(zero, 1, top)) ** 2
    return ProductRank(
        jnp.ldexp(values, exponent),
        jnp.where(zero, 0, jnp.exp(entropy)),
        jnp.where(zero, 0, jnp.sum(squares)),
        jnp.ldexp(total, exponent),
    )


def _exponent(*layers):
    """The power of two that brings the largest entry to order 1."""
    largest = jnp.stack([jnp.max(jnp.abs(layer)) for layer in layers])
    return jnp.frexp(jax.lax.stop_gradient(jnp.max(largest)))[1]


def _scaled(matrix):
    """A matrix with entries of order 1, and the power of two that it had."""
    exponent = _exponent(matrix)
    return jnp.ldexp(matrix, -exponent), exponent


def _check_layers(weights: Any, name: str, *, at_least: int) -> tuple[Array, ...]:
    """The layers in at least float32; raise unless they can be multiplied."""
    if not isinstance(weights, list | tuple) or len(weights) < at_least:
        was = f"is a {type(weights).__name__}"
        if isinstance(weights, list | tuple):
            was = f"holds {len(weights)}"
        raise ValueError(
            f"`{name}` must be a list of at least {at_least} matrices, in the order of "
            f'the layers, but {was}. Of Flax parameters pass `[params["Dense_0"]'
            '["kernel"], ...]`: a dictionary has no such order.'
        )
    weights = [jnp.asarray(w) if isinstance(w, list | tuple) else w for w in weights]
    check_params(weights, name)
    shapes = [jnp.shape(layer) for layer in weights]
    for index, shape in enumerate(shapes):
        fits = len(shape) == 2 and 0 not in shape
        if not fits or (index and shapes[index - 1][1] != shape[0]):
            raise ValueError(
                f"`{name}[{index}]` must be a matrix [inputs, outputs], whose inputs "
                f"are the outputs of the one before, but the shapes are {shapes}."
            )
    wide = lambda a: jnp.promote_types(jnp.result_type(a), jnp.float32)
    return tuple(jnp.asarray(layer, wide(layer)) for layer in weights)
