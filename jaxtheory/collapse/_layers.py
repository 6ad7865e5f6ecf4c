"""Collapse layer by layer: seven measures of each, from one pass over its features."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.collapse._frames import off_diagonal, squared_distances
from jaxtheory.collapse._moments import (
    BetweenClass,
    ClassMoments,
    between_class,
    class_moments,
    scatter_ratio,
)
from jaxtheory.collapse._separation import (
    LayerNames,
    check_is_layers,
    check_layers,
)

_matmul = partial(jnp.matmul, precision="highest")


class LayerStatistics(NamedTuple):
    """How collapsed each layer is; every number is a vector with one entry a layer.

    ``mu_k`` are class means, ``mu_G`` their unweighted mean, ``v_k`` the mean of
    ``||h - mu_k||^2`` over class ``k``, ``K`` the number of classes that occur.

    Attributes:
        separation: ``D = tr(SS_W SS_B^+)``, classes weighed by their examples; see
            `separation`.
        trace_ratio: ``C = tr(Sigma_W) / tr(Sigma_B)``, every class weighing the same
            in ``Sigma_B``; infinite where that is 0.
        angular_separation: ``1 - max_{i != j} cos(mu_i, mu_j)`` of the class means as
            they are, not centred; NaN where a class mean is zero.
        nc1: ``tr(Sigma_W Sigma_B^+) / K``; see `statistics`.
        cdnv: Mean over pairs ``i < j`` of ``(v_i + v_j) / (2 ||mu_i - mu_j||^2)``;
            infinite where two means coincide, to rounding.
        numerical_rank: ``(||A||_* / ||A||_F)^2`` of the matrix ``A`` of centred class
            means, or of centred features: from 1 to the rank, a count of directions by
            how much they carry. 0 where there is nothing but rounding.
        nearest_mean_error: Share of examples that are nearer to another class mean than
            to that of their class. NaN where all class means coincide.
        ranks: Directions in which class means differ beyond rounding.
        num_left_out: Examples left out of the layer, because a feature is not finite or
            a traced label is out of range. The numbers are those of the others.
        names: Names of the layers in the order used, where a mapping gave them.
    """

    separation: Float[Array, " l"]
    trace_ratio: Float[Array, " l"]
    angular_separation: Float[Array, " l"]
    nc1: Float[Array, " l"]
    cdnv: Float[Array, " l"]
    numerical_rank: Float[Array, " l"]
    nearest_mean_error: Float[Array, " l"]
    ranks: Int[Array, " l"]
    num_left_out: Int[Array, " l"]
    names: LayerNames | None


def layer_statistics(
    layers: Mapping[str, Float[Array, "n ..."]] | Sequence[Float[Array, "n ..."]],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
    rank_of: Literal["class_means", "features"] = "class_means",
) -> LayerStatistics:
    """Measure collapse in every layer.

    What to do with a measure: `fit_separation_law` for `separation` and `trace_ratio`,
    which laws say are geometric in the depth, `fit_layer_line` for
    `angular_separation`, which deep linear networks make linear, `effective_depth` for
    `nearest_mean_error`. `models.features` and `models.intermediates` give the layers
    of a Flax model.

    Args:
        layers: Features of each layer from input to output, all for the same examples.
            Trailing axes are flattened. A mapping must be in network order.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.
        rank_of: Whose numerical rank: "class_means", or "features", which costs a
            decomposition of all features, ``O(n d min(n, d))``.

    Returns:
        The measures.

    Raises:
        ValueError: There is no layer, a mapping is sorted so that ``layer_10`` comes
            before ``layer_2``, or an input does not fit.

    Memory:
        Two copies of one layer's features and ``2 n k`` numbers; no ``d x d`` matrix.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(90) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (90, 4))
        >>> layers = [jnp.eye(3, 4)[labels] + noise / 2**l for l in range(4)]
        >>> measured = layer_statistics(layers, labels)
        >>> print(measured.nearest_mean_error[0] > 0.1, measured.nearest_mean_error[3])
        True 0.0

    References:
        He & Su 2023, arXiv:2210.17020 (D); Wang et al. 2023, arXiv:2311.02960 (C and
        the angle); Galanti et al. 2022, arXiv:2112.15121 (CDNV) and arXiv:2202.09028
        (nearest class centres).
    """
    check_is_layers(layers)
    if len(layers) == 0:
        raise ValueError("`layers` must hold at least one layer, but is empty.")
    if rank_of not in ("class_means", "features"):
        raise ValueError(
            f'`rank_of` must be "class_means" or "features", but was {rank_of!r}.'
        )
    names, features, num_classes = check_layers(layers, labels, num_classes)
    measured = [_measure(h, labels, num_classes, rank_of) for h in features]
    columns = [jnp.stack(column) for column in zip(*measured, strict=True)]
    return LayerStatistics(*columns, names=names)


@partial(jax.jit, static_argnums=(2, 3))
def _measure(features, labels, num_classes, rank_of):
    """All measures of one layer, in the order of the record."""
    flat = jnp.reshape(features, (features.shape[0], -1))
    moments = class_moments(flat, labels, num_classes)
    dtype = moments.means.dtype
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    present = moments.counts > 0
    occurring = jnp.maximum(jnp.sum(present), 1)
    by_example = between_class(moments, (moments.counts / total).astype(dtype))
    by_class = between_class(moments, (present / occurring).astype(dtype))
    within = jnp.sum(jnp.square(moments.residuals)) / total
    separates = by_class.rank > 0
    matrix = jnp.where(separates, by_class.means, 0)
    if rank_of == "features":
        matrix = moments.residuals + by_example.means[moments.labels]
        matrix = jnp.where(moments.used[:, None], matrix, 0)
    return (
        scatter_ratio(moments, by_example),
        jnp.where(separates, within / by_class.trace, jnp.inf),
        _angular_separation(flat, moments, present),
        scatter_ratio(moments, by_class) / occurring,
        _mean_cdnv(moments, by_class),
        _numerical_rank(matrix),
        jnp.where(separates, _nearest_centre_error(moments, by_class), jnp.nan),
        by_class.rank,
        moments.num_nonfinite + moments.num_out_of_range,
    )


def _angular_separation(flat, moments: ClassMoments, present):
    """One minus the largest cosine between two class means, not centred."""
    used = jnp.where(moments.used[:, None], flat, 0).astype(moments.means.dtype)
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    origin = jnp.sum(used / moments.unit, axis=0, keepdims=True) / total
    means = moments.means + origin
    directions = means / jnp.linalg.norm(means, axis=1, keepdims=True)
    # Half the squared chord: 1 - cos without cancellation where directions coincide.
    chords = squared_distances(directions) / 2
    return jnp.min(jnp.where(off_diagonal(present), chords, jnp.inf))


def _mean_cdnv(moments: ClassMoments, between: BetweenClass):
    """Mean class-distance normalised variance over pairs of classes that occur."""
    member = moments.labels[:, None] == jnp.arange(moments.counts.size)[None, :]
    squares = jnp.sum(jnp.square(moments.residuals), axis=1, keepdims=True)
    variances = jnp.sum(jnp.where(member, squares, 0), axis=0)
    variances = variances / jnp.maximum(moments.counts, 1)
    distances = squared_distances(between.means)
    apart = distances > jnp.square(between.rounding)
    sums = variances[:, None] + variances[None, :]
    ratios = jnp.where(apart, sums / (2 * jnp.where(apart, distances, 1)), jnp.inf)
    pairs = off_diagonal(moments.counts > 0)
    return jnp.sum(jnp.where(pairs, ratios, 0)) / jnp.sum(pairs)


def _numerical_rank(matrix):
    """Squared ratio of nuclear to Frobenius norm; 0 for a zero matrix."""
    values = jnp.linalg.svd(matrix, compute_uv=False)
    squares = jnp.sum(jnp.square(values))
    rank = jnp.square(jnp.sum(values)) / jnp.where(squares == 0, 1, squares)
    return jnp.where(squares == 0, 0, rank)


def _nearest_centre_error(moments: ClassMoments, between: BetweenClass):
    """Share of examples that are nearer to another class mean than to their own."""
    # ||h - mu_c||^2 - ||h - mu_y||^2 around the example's own mean mu_y, where nothing
    # cancels: ||mu_c - mu_y||^2 - 2 r.(mu_c - mu_y).
    products = _matmul(moments.residuals, between.means.T)
    own = jnp.take_along_axis(products, moments.labels[:, None], axis=1)
    gaps = squared_distances(between.means)[moments.labels]
    excess = gaps - 2 * (products - own)
    present = (moments.counts > 0)[None, :]
    wrong = jnp.any(present & (excess < 0), axis=1) & moments.used
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    return jnp.sum(wrong, dtype=excess.dtype) / total
