"""Effective ranks of features or class means: how many directions carry them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.collapse._moments import check_feature_matrix


class EffectiveRanks(NamedTuple):
    """Ranks that count directions by size; between 1 and ``min(n, d)``.

    Attributes:
        numerical: ``(||X||_* / ||X||_F)^2 = (sum s)^2 / sum s^2``, with singular values
            ``s``.
        stable: ``||X||_F^2 / ||X||_2^2 = sum s^2 / max s^2``.
        entropy: RankMe, ``exp(-sum p log p)`` with ``p = s / sum s``. The published
            ``p`` has 1e-7 added, which counts directions of no size.
        singular_values: ``s``, from large to small. Shape ``[r]``.
    """

    numerical: Float[Array, ""]
    stable: Float[Array, ""]
    entropy: Float[Array, ""]
    singular_values: Float[Array, " r"]


def effective_ranks(features: Float[Array, "n d"]) -> EffectiveRanks:
    """Measure in how many directions the rows of a matrix extend.

    ``stable <= numerical`` and ``entropy`` are all ``r`` for ``r`` equal singular
    values; a simplex frame of ``K`` class means has ``K - 1``. None changes with scale
    or rotation. Nothing is centred: with a mean that is large against the spread all
    three are near 1. Pass ``features - features.mean(0)`` for the spread.

    Args:
        features: Examples or class means, one in each row.

    Returns:
        The three ranks. NaN where all entries are zero or one is not finite.

    Raises:
        ValueError: `features` is not a floating-point matrix.

    Memory:
        A singular value decomposition: two copies of the matrix, and time ``O(n d
        min(n, d))``.

    Example:
        >>> import jax.numpy as jnp
        >>> ranks = effective_ranks(jnp.diag(jnp.array([2.0, 1.0, 1.0])))
        >>> print(f"{ranks.numerical:.4f} {ranks.stable:.4f} {ranks.entropy:.4f}")
        2.6667 1.5000 2.8284

    References:
        Garrido et al. 2023, arXiv:2210.02885 (RankMe); Rudelson & Vershynin
        2007, arXiv:math/0503442 (stable rank).
    """
    check_feature_matrix(features)
    return _effective_ranks(features)


@jax.jit
def _effective_ranks(features):
    features = jnp.asarray(features)
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    scale = jnp.max(jnp.abs(features))
    known = (scale > 0) & (scale < jnp.inf)
    matrix = jnp.where(known, features / jnp.where(known, scale, 1), 0)
    values = jnp.linalg.svd(matrix, compute_uv=False)
    total, squares = jnp.sum(values), jnp.sum(jnp.square(values))
    shares = values / jnp.where(known, total, 1)
    logs = jnp.log(jnp.where(shares > 0, shares, 1))
    defined = lambda value: jnp.where(known, value, jnp.nan)
    return EffectiveRanks(
        defined(jnp.square(total) / squares),
        defined(squares / jnp.square(values[0])),
        defined(jnp.exp(-jnp.sum(shares * logs))),
        defined(values * scale),
    )
