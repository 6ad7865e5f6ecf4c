"""Neural collapse in regression: where features lie, and what last layers look like."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxtheory.batching import check_examples
from jaxtheory.collapse._law import real_array
from jaxtheory.collapse._moments import check_features, check_floating, rounding_of

_matmul = partial(jnp.matmul, precision="highest")


class RegressionStatistics(NamedTuple):
    """Neural regression collapse NRC1 to NRC3 of last-layer features.

    Attributes:
        nrc1: Mean squared distance of the features' directions from the span of the
            first ``t`` principal components of the features; between 0 and 1.
        nrc2: The same distance from the span of the rows of ``W``. None without a
            weight, as all that follows but the counts.
        nrc3: Least squared distance ``||W W^T / ||.||_F - B_s / ||.||_F||_F^2`` over
            ``s >= 0``, with ``B_s = [S^(1/2) - s I]_+``. For one target it is 0
            whatever ``W`` is. NaN where ``W`` is zero or the targets are constant.
        gamma: The ``s^2`` that attains it; at the optimum of the theory
            ``lambda_W lambda_H``.
        num_clipped: Directions of the targets that ``[.]_+`` sets to zero. Where it is
            0, `nrc3` is that of the paper, whose ``gamma`` stays below the least
            eigenvalue of ``S``.
        num_nonfinite: Examples left out for a feature or target that is not finite.
        num_zero: Examples left out of NRC1 and NRC2 because their feature vector is
            zero and has no direction.
    """

    nrc1: Float[Array, ""]
    nrc2: Float[Array, ""] | None
    nrc3: Float[Array, ""] | None
    gamma: Float[Array, ""] | None
    num_clipped: Int[Array, ""] | None
    num_nonfinite: Int[Array, ""]
    num_zero: Int[Array, ""]


def regression_statistics(
    features: Float[Array, "n d"],
    targets: Real[Array, "n t"],
    *,
    weight: Float[Array, "t d"] | None = None,
    centre_features: bool = False,
) -> RegressionStatistics:
    """Measure neural regression collapse.

    With ``u_i = h_i / ||h_i||``, the projector ``P`` on the first ``t`` principal
    components of the (centred) features, that ``Q`` on the rows of ``W``, and
    ``S = (1/N) sum_i (y_i - m)(y_i - m)^T`` the covariance of the targets,

        NRC1 = (1/N) sum_i ||u_i - P u_i||^2
        NRC2 = (1/N) sum_i ||u_i - Q u_i||^2
        NRC3 = min_s || W W^T / ||W W^T||_F - B_s / ||B_s||_F ||_F^2

    ``B_s = [S^(1/2) - s I]_+`` is what `theory.regression_optimum` predicts for ``W
    W^T`` up to scale. The paper has no positive part and keeps ``s`` below the least
    standard deviation, where there is nothing to cut; beyond it, this is the optimum
    that decays strong enough to give up directions have. The minimum is exact: between
    two standard deviations the distance has one stationary point, in closed form. (One
    published implementation returns 1.03 at the exact optimum, because it treats
    ``W W^T`` as a vector; the largest possible value is 2.)

    Args:
        features: Last-layer features, one row for each example.
        targets: One row for each example; one target is one column.
        weight: Weight of the last layer, rows are targets (of a Flax ``kernel``, pass
            ``kernel.T``). Without it only `nrc1` is measured.
        centre_features: Whether the mean feature is subtracted before directions are
            taken. The paper does not, so that an offset which no component explains
            (nonnegative features have one) counts in NRC1 and NRC2.

    Returns:
        The statistics, in the precision of the features (at least float32).

    Raises:
        ValueError: Shapes or dtypes do not fit.

    Memory:
        Two copies of the features; time ``O(n d min(n, d))``.

    Example:
        >>> import jax.numpy as jnp
        >>> targets = jnp.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
        >>> weight = 3 * jnp.eye(2, 5)
        >>> found = regression_statistics(targets @ weight, targets, weight=weight)
        >>> print(f"{found.nrc1:.4f} {found.nrc2:.4f} {found.nrc3:.4f}")
        0.0000 0.0000 0.1026

    References:
        Andriopoulos, Dong, Guo, Zhao & Ross 2024, arXiv:2409.04180, section 3.1 (the
        three measures).
    """
    check_features(features)
    check_examples(features=features, targets=targets)
    for name, array in (("features", features), ("targets", targets)):
        if jnp.ndim(array) != 2:
            raise ValueError(
                f"`{name}` must be a matrix, one row for each example, but has shape "
                f"{jnp.shape(array)}. A single column is `{name}[:, None]`."
            )
    real_array(targets, "targets")
    if isinstance(weight, tuple):
        raise ValueError(
            "`weight` must be the weight of the last layer alone, without a bias, but "
            "is a tuple. Of a pair `(weight, bias)` pass the first."
        )
    if weight is not None:
        check_floating(weight, "weight")
    shape = (jnp.shape(targets)[1], jnp.shape(features)[1])
    if shape[0] == 0:
        raise ValueError("`targets` must have at least one column, but has none.")
    if weight is not None and jnp.shape(weight) != shape:
        flipped = jnp.shape(weight) == shape[::-1]
        fix = " This looks like a Flax kernel [d, t]: transpose it." if flipped else ""
        raise ValueError(
            f"`weight` must have shape {shape}, targets by features, but has shape "
            f"{jnp.shape(weight)}.{fix}"
        )
    return _regression_statistics(features, targets, weight, bool(centre_features))


@partial(jax.jit, static_argnums=3)
def _regression_statistics(features, targets, weight, centre_features):
    """`regression_statistics`, of checked arguments."""
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    used = jnp.all(jnp.isfinite(features), axis=1)
    used &= jnp.all(jnp.isfinite(targets), axis=1)
    rows, y = (
        jnp.where(used[:, None], a, 0).astype(dtype) for a in (features, targets)
    )
    rows = rows / jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(dtype).tiny)
    centred = _centred(rows, used)
    span = _span(centred, jnp.linalg.norm(rows))[: targets.shape[1]]
    directions = centred if centre_features else rows
    norms = jnp.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions / jnp.where(norms > 0, norms, 1)
    has_direction = used & (norms[:, 0] > 0)
    away = lambda basis: (
        jnp.sum(jnp.square(directions - _matmul(_matmul(directions, basis.T), basis)))
        / jnp.sum(has_direction)
    )
    nrc2 = nrc3 = gamma = num_clipped = None
    if weight is not None:
        weight = jnp.asarray(weight, dtype)
        weight = weight / jnp.maximum(jnp.max(jnp.abs(weight)), jnp.finfo(dtype).tiny)
        nrc2 = away(_span(weight, jnp.linalg.norm(weight)))
        nrc2 = jnp.where(jnp.all(jnp.isfinite(weight)), nrc2, jnp.nan)
        unit = jnp.maximum(jnp.max(jnp.abs(y)), jnp.finfo(dtype).tiny)
        y = _centred(y / unit, used) / jnp.sqrt(jnp.sum(used))
        nrc3, shift, num_clipped = _least_distance(_matmul(weight, weight.T), y)
        gamma = jnp.square(shift * unit)
    return RegressionStatistics(
        nrc1=away(span),
        nrc2=nrc2,
        nrc3=nrc3,
        gamma=gamma,
        num_clipped=num_clipped,
        num_nonfinite=jnp.sum(~used),
        num_zero=jnp.sum(used & ~has_direction),
    )


def _centred(rows, used):
    """Rows around the mean of those used; zero where not used, or constant."""
    mean = jnp.sum(rows, axis=0) / jnp.sum(used)
    centred = jnp.where(used[:, None], rows - mean[None, :], 0)
    # What is left of a constant column is the rounding of its mean.
    rounding = 8 * jnp.finfo(rows.dtype).eps * jnp.linalg.norm(rows, axis=0)
    varies = jnp.linalg.norm(centred, axis=0) > rounding
    return jnp.where(varies[None, :], centred, 0)


def _span(rows, length):
    """Orthonormal rows that span the given ones, longest direction first.

    Directions that are rounding, of rows that had the Frobenius norm `length` before
    they were centred, become zero rows, so that they project nothing.
    """
    _, values, right = jnp.linalg.svd(rows, full_matrices=False)
    return jnp.where((values > rounding_of(values[0], length))[:, None], right, 0)


def _least_distance(gram, targets):
    """Least squared distance over the shifts ``s``, that shift, and what it clips."""
    _, scales, right = jnp.linalg.svd(targets, full_matrices=False)
    gram = gram / jnp.linalg.norm(gram)
    # In B_s of the m largest scales, with a_j the Gram matrix along direction j, the
    # cosine is (sum a_j sigma_j - s sum a_j) / sqrt(sum (sigma_j - s)^2).
    along = jnp.sum(_matmul(right, gram) * right, axis=1)
    alpha, beta = jnp.cumsum(along * scales), jnp.cumsum(along)
    first, square = jnp.cumsum(scales), jnp.cumsum(scales**2)
    active = jnp.arange(1, scales.size + 1)
    slope = beta * first - alpha * active
    low, high = jnp.append(scales[1:], 0), scales
    stationary = (beta * square - alpha * first) / jnp.where(slope == 0, 1, slope)
    stationary = jnp.where(slope == 0, low, jnp.clip(stationary, low, high))
    shifts = jnp.concatenate([stationary, low])

    def distance(shift):
        kept = jnp.maximum(scales - shift, 0)
        norm = jnp.linalg.norm(kept)
        predicted = _matmul(right.T * (kept / norm)[None, :], right)
        return jnp.where(norm > 0, jnp.sum(jnp.square(gram - predicted)), jnp.inf)

    distances = jax.vmap(distance)(shifts)
    best = jnp.argmin(distances)
    undefined = ~jnp.isfinite(distances[best])
    answer = lambda value: jnp.where(undefined, jnp.nan, value)
    num_clipped = jnp.sum(scales <= shifts[best])
    return answer(distances[best]), answer(shifts[best]), num_clipped
