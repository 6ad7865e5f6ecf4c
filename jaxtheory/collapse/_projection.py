"""What transfer scores share: one decomposition of the features, summed by class."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxtheory.collapse._moments import ClassMoments, class_moments, rounding_of

_matmul = partial(jnp.matmul, precision="highest")


class Projection(NamedTuple):
    """Singular value decomposition ``U S V^T`` of centred features, and sums of ``U``.

    Lengths are in units of `unit`.

    Attributes:
        scores: ``U S``: principal components of each example; zero for those left out.
            Shape ``[n, r]``.
        values: Singular values; zero below rounding. Shape ``[r]``.
        sums: Rows of ``U`` summed by class: one-hot labels in the basis. Shape
            ``[k, r]``.
        right: ``V^T``. Shape ``[r, d]``.
        mean: Mean of the features. Shape ``[d]``.
        counts: Examples used in each class. Shape ``[k]``.
        labels: Labels, zero where an example is left out. Shape ``[n]``.
        used: Which examples were used. Shape ``[n]``.
        unit: What one unit is in the units of the features.
        num_left_out: Examples left out.
    """

    scores: Float[Array, "n r"]
    values: Float[Array, " r"]
    sums: Float[Array, "k r"]
    right: Float[Array, "r d"]
    mean: Float[Array, " d"]
    counts: Float[Array, " k"]
    labels: Integer[Array, " n"]
    used: Bool[Array, " n"]
    unit: Float[Array, ""]
    num_left_out: Int[Array, ""]


def project(
    features: Float[Array, "n ..."], labels: Integer[Array, " n"], num_classes: int
) -> Projection:
    """Decompose centred features and sum by class.

    Args:
        features: One example for each entry of axis 0.
        labels: Class indices.
        num_classes: Number of classes.

    Returns:
        The projection.
    """
    flat = jnp.reshape(features, (features.shape[0], -1))
    moments: ClassMoments = class_moments(flat, labels, num_classes)
    dtype = moments.means.dtype
    counts = moments.counts.astype(dtype)
    total = jnp.maximum(jnp.sum(counts), 1)
    centre = _matmul(counts[None, :] / total, moments.means)
    rows = moments.residuals + (moments.means - centre)[moments.labels]
    rows = jnp.where(moments.used[:, None], rows, 0)
    left, values, right = jnp.linalg.svd(rows, full_matrices=False)
    root = jnp.sqrt(total)
    keep = values > root * rounding_of(values[0] / root, moments.resolution)
    left, values = jnp.where(keep[None, :], left, 0), jnp.where(keep, values, 0)
    member = moments.labels[None, :] == jnp.arange(num_classes)[:, None]
    member = (member & moments.used[None, :]).astype(dtype)
    used_rows = jnp.where(moments.used[:, None], flat.astype(dtype) / moments.unit, 0)
    return Projection(
        scores=left * values[None, :],
        values=values,
        sums=_matmul(member, left),
        right=right,
        mean=jnp.sum(used_rows, axis=0) / total,
        counts=counts,
        labels=moments.labels,
        used=moments.used,
        unit=moments.unit,
        num_left_out=moments.num_nonfinite + moments.num_out_of_range,
    )


def explained_classes(projection: Projection) -> Float[Array, ""]:
    """``tr(Sigma_T^+ Sigma_B)`` with ``Sigma_B`` weighted by examples.

    Args:
        projection: Of the features.

    Returns:
        The trace: the part of one-hot labels, over the class counts, that the span of
        the features holds. NaN where no example could be used.
    """
    squares = jnp.sum(jnp.square(projection.sums), axis=1)
    trace = jnp.sum(squares / jnp.maximum(projection.counts, 1))
    return jnp.where(jnp.any(projection.counts > 0), trace, jnp.nan)


def variability_collapse(projection: Projection, num_features: int) -> Float[Array, ""]:
    """``1 - tr(Sigma_T^+ Sigma_B) / min(d, K - 1)`` with ``K`` classes that occur.

    Args:
        projection: Of the features.
        num_features: Their number ``d``.

    Returns:
        The index, in ``[0, 1]``; NaN where all features are equal.
    """
    classes = jnp.sum(projection.counts > 0)
    most = jnp.minimum(num_features, jnp.maximum(classes - 1, 1))
    index = jnp.clip(1 - explained_classes(projection) / most, 0, 1)
    return jnp.where(projection.values[0] > 0, index, jnp.nan)


def uncentred(
    projection: Projection,
) -> tuple[Float[Array, " s"], Float[Array, "k s"]]:
    """Singular values of the features as they are, and class sums in their basis.

    With centred features ``U S V^T`` and ``e`` the unit vector along ones, the features
    are ``[U e] [S V^T; sqrt(n) mean^T]``, and ``e`` is orthogonal to ``U``: only the
    small factor has to be decomposed.

    Args:
        projection: Of the features.

    Returns:
        Singular values and sums.
    """
    total = jnp.maximum(jnp.sum(projection.counts), 1)
    root = jnp.sqrt(total)
    small = jnp.concatenate(
        [
            projection.values[:, None] * projection.right,
            (root * projection.mean)[None, :],
        ]
    )
    rotation, values, _ = jnp.linalg.svd(small, full_matrices=False)
    sums = jnp.concatenate([projection.sums, projection.counts[:, None] / root], axis=1)
    return values, _matmul(sums, rotation)
