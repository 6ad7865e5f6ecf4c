"""Pruning of weight matrices, by size of entries and of singular values."""

import functools
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtheory._types import Params
from jaxtheory.batching import (
    SelectFn,
    check_params,
    check_word,
    insert_leaves,
    select_leaves,
)
from jaxtheory.compression._amount import check_amount

Centre: TypeAlias = Literal["none", "median"]


class Pruned(NamedTuple):
    """Parameters of which some numbers were left out.

    Attributes:
        params: A pytree like the one given.
        num_kept: How many numbers each pruned array is made of now, by path: entries,
            or ``rank (n + p)`` for the factors of ``[n, p]``; and one for the centre,
            where there is one.
        num_params: How many it was made of.
        relative_error: ``|W' - W| / |W|`` in the Frobenius norm, by path, of what is
            returned. Zero for an array of zeros.
    """

    params: Params
    num_kept: dict[str, Int[Array, ""]]
    num_params: dict[str, int]
    relative_error: dict[str, Float[Array, ""]]


def prune_magnitude(
    params: Params,
    *,
    fraction: float | Float[Array, ""] | None = None,
    relative_error: float | Float[Array, ""] | None = None,
    centre: Centre = "none",
    select: SelectFn | None = None,
) -> Pruned:
    r"""Set the smallest entries of each weight matrix to zero.

    Either the given share of the entries, or as many as leave

    .. math:: \frac{|W' - W|_F}{|W|_F} \le \epsilon

    in each matrix by itself. Heavy-tailed weights lose little by it: of a law with tail
    index below 2 the largest entries hold nearly all of the norm.

    Args:
        params: A parameter pytree.
        fraction: Share of the entries of each array to leave out, in [0, 1), rounded
            down to whole entries.
        relative_error: ``epsilon``, in [0, 1); give this or `fraction`.
        centre: ``"none"`` leaves out what is near zero. ``"median"``, as published,
            leaves out what is near the median of the array and sets it to that: not
            zeros, but one number repeated.
        select: ``select(path) -> bool`` of what is pruned; None takes all arrays of two
            and more axes, not biases.

    Returns:
        The pruned parameters and the error made.

    Raises:
        ValueError: Both or neither of `fraction` and `relative_error` are given, or out
            of range; `params` is no pytree of floating-point arrays; nothing is
            selected.

    Memory:
        A sorted copy of one array at a time.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[3.0, 0.1], [-4.0, 0.2]])}
        >>> found = prune_magnitude(params, fraction=0.5)
        >>> found.params["kernel"].tolist(), int(found.num_kept["['kernel']"])
        ([[3.0, 0.0], [-4.0, 0.0]], 2)
        >>> round(float(found.relative_error["['kernel']"]), 4)  # sqrt(.05 / 25.05)
        0.0447

    References:
        Barsbey et al., arXiv:2106.03795 (pruning and tails; the median); Wan et al.,
        arXiv:2306.08125 (a relative error as the target).
    """
    return _prune(_entries, params, fraction, relative_error, centre, select)


def prune_svd(
    params: Params,
    *,
    fraction: float | Float[Array, ""] | None = None,
    relative_error: float | Float[Array, ""] | None = None,
    centre: Centre = "none",
    select: SelectFn | None = None,
) -> Pruned:
    r"""Leave out the smallest singular values of each weight matrix.

    An array of more than two axes is the matrix ``[product of all axes but the last,
    last]``, as for a Flax kernel of a convolution. Of all matrices of a rank the result
    is the nearest (Eckart-Young). It is smaller only as two factors, which hold
    ``rank (n + p)`` numbers in place of ``n p``.

    Args:
        params: A parameter pytree.
        fraction: Share of the singular values to leave out, in [0, 1), rounded down to
            whole ones.
        relative_error: Leave out as many as keep ``|W' - W|_F / |W|_F`` at or below
            this, in [0, 1); give this or `fraction`.
        centre: ``"median"`` decomposes the array less its median, as published, and
            adds it again; ``"none"`` the array.
        select: As for `prune_magnitude`.

    Returns:
        The pruned parameters and the error made.

    Raises:
        ValueError: As for `prune_magnitude`.

    Memory:
        The singular vectors of one matrix at a time; ``n p^2`` operations.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.outer(jnp.ones(4), jnp.ones(3))}
        >>> found = prune_svd(params, relative_error=1e-3)
        >>> int(found.num_kept["['kernel']"]), found.num_params["['kernel']"]
        (7, 12)

    References:
        Eckart & Young, Psychometrika 1 (1936); Barsbey et al., arXiv:2106.03795.
    """
    return _prune(_singular, params, fraction, relative_error, centre, select)


def _prune(how, params, fraction, relative_error, centre, select):
    """Prune every selected array."""
    check_params(params)
    check_word("centre", centre, ("none", "median"))
    name, amount = check_amount(fraction, relative_error)
    paths = {
        jax.tree_util.keystr(path): np.ndim(leaf) > 1
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    chosen = select_leaves(params, paths.__getitem__ if select is None else select)
    found = {
        path: _pruned(jnp.asarray(leaf), amount, how, name, centre)
        for path, leaf in chosen.items()
    }
    return Pruned(
        insert_leaves(params, {path: one[0] for path, one in found.items()}),
        {path: one[1] for path, one in found.items()},
        {path: int(np.size(leaf)) for path, leaf in chosen.items()},
        {path: one[2] for path, one in found.items()},
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _pruned(array, amount, how, name, centre):
    """One array pruned, the numbers that it is made of, and the relative error."""
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    # Of entries of size one, so that squares neither over- nor underflow, by a power of
    # two, so that what is kept stays as it was.
    largest = jnp.max(jnp.abs(wide))
    largest = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1)
    scale = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1)
    unit = wide / scale
    middle = jnp.median(unit) if centre == "median" else jnp.zeros((), unit.dtype)
    norm = jnp.sqrt(jnp.sum(unit**2))
    kept, num_kept = how(unit, middle, amount, name, norm)
    pruned = (kept * scale).astype(array.dtype)
    difference = pruned.astype(wide.dtype) / scale - unit
    error = jnp.sqrt(jnp.sum(difference**2))
    error = jnp.where(norm > 0, error / jnp.where(norm > 0, norm, 1), error)
    return pruned, num_kept + (centre == "median"), error


def _num_left_out(sizes, amount, name, norm):
    """How many of ascending sizes to leave out."""
    if name == "fraction":
        return jnp.floor(jnp.asarray(amount) * sizes.shape[0]).astype(int)
    # From the smallest on, so that small squares are not lost beside large ones.
    errors = jnp.sqrt(jnp.cumsum(sizes**2))
    return jnp.sum(errors <= jnp.asarray(amount) * norm)


def _entries(array, middle, amount, name, norm):
    """The array with its entries nearest to the centre there, and how many are left."""
    sizes = jnp.abs(array - middle).reshape(-1)
    order = jnp.argsort(sizes)
    num = _num_left_out(sizes[order], amount, name, norm)
    left_out = jnp.zeros(sizes.shape, bool)
    left_out = left_out.at[order].set(jnp.arange(sizes.shape[0]) < num)
    kept = jnp.where(left_out.reshape(array.shape), middle, array)
    return kept, sizes.shape[0] - num


def _singular(array, middle, amount, name, norm):
    """The array of lower rank, and the numbers in its two factors."""
    matrix = (array - middle).reshape(-1, array.shape[-1])
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    num = _num_left_out(values[::-1], amount, name, norm)
    rank = values.shape[0] - num
    values = jnp.where(jnp.arange(values.shape[0]) < rank, values, 0)
    product = jnp.matmul(left * values[None, :], right, precision="highest")
    return product.reshape(array.shape) + middle, rank * sum(matrix.shape)
