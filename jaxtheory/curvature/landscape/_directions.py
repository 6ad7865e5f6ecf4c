"""Random directions in parameter space, as long as the filters they perturb."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import KeyArray, Params
from jaxtheory.batching import check_count, check_key, check_params
from jaxtheory.curvature.landscape._evaluate import at_least_float32, largest_entry

Vectors = Literal["zero", "normalised"]


def filter_normalised(
    params: Params, *, key: KeyArray, num: int = 2, vectors: Vectors = "zero"
) -> PyTree[Float[Array, "num ..."]]:
    r"""Draw Gaussian directions whose filters are as long as those of the parameters.

    .. math:: d_f \leftarrow \frac{d_f}{|d_f|} |w_f|

    for every filter ``f``: all weights that lead to one output unit, which is one index
    of the *last* axis of a Flax kernel (``[in, out]``, ``[height, width, in, out]``).
    A slice along them looks the same after the rescaling ``(a W_1, W_2 / a)`` that
    leaves a ReLU network's function as it is, so that two networks can be compared.

    Several directions are independent and not made orthogonal: the cosine of two is of
    order ``1 / sqrt(p)``.

    Args:
        params: Parameters ``w``.
        key: Which directions.
        num: How many.
        vectors: What to do with leaves of less than two axes (biases, BatchNorm scales
            and shifts): ``"zero"`` leaves them where they are, as Li et al. do;
            ``"normalised"`` takes each leaf as one filter.

    Returns:
        The directions, stacked: a pytree like `params` with a leading axis ``num``.
        One coordinate along each moves every filter by its own length; a filter of
        zeros does not move.

    Raises:
        ValueError: `params` holds no floating-point arrays, `num` is not positive, or
            `vectors` is another word.

    Memory:
        ``num p`` numbers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {
        ...     "kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]),
        ...     "bias": jnp.ones(2),
        ... }
        >>> directions = filter_normalised(params, key=jax.random.key(0))
        >>> jnp.linalg.norm(directions["kernel"], axis=1).round(4).tolist()
        [[5.0, 1.0], [5.0, 1.0]]
        >>> directions["bias"].tolist()
        [[0.0, 0.0], [0.0, 0.0]]

    References:
        Li, Xu, Taylor, Studer & Goldstein, Visualizing the loss landscape of neural
        nets, arXiv:1712.09913, section 4.
    """
    check_params(params)
    check_key(key)
    num = check_count(num=num)
    if vectors not in ("zero", "normalised"):
        raise ValueError(
            f"`vectors` must be 'zero' or 'normalised', but was {vectors!r}."
        )
    return _filter_normalised(params, key, num, vectors)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _filter_normalised(params, key, num, vectors):
    """`filter_normalised` of checked arguments."""
    leaves, structure = jax.tree.flatten(params)
    drawn = []
    for place, leaf in enumerate(map(jnp.asarray, leaves)):
        shape = (num, *leaf.shape)
        if leaf.ndim < 2 and vectors == "zero":
            drawn.append(jnp.zeros(shape, leaf.dtype))
            continue
        noise = jax.random.normal(
            jax.random.fold_in(key, place), shape, at_least_float32(leaf.dtype)
        )
        filters = tuple(range(leaf.ndim - 1)) if leaf.ndim > 1 else None
        like = jax.vmap(functools.partial(_as_long, filters), (0, None))
        drawn.append(like(noise, leaf).astype(leaf.dtype))
    return jax.tree.unflatten(structure, drawn)


def _as_long(axes, noise, leaf):
    """`noise` with the norms of `leaf` over `axes`."""
    norm = lambda a: jnp.sqrt(jnp.sum(a**2, axis=axes, keepdims=True))
    largest = largest_entry(leaf)
    scaled = leaf.astype(noise.dtype) / largest
    ratio = norm(scaled) / norm(noise)
    return largest * noise * jnp.broadcast_to(ratio, np.shape(noise))
