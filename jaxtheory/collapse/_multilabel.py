"""Neural collapse with several tags for each example."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Real

from jaxtheory.batching import check_examples
from jaxtheory.collapse._frames import norm, unit
from jaxtheory.collapse._moments import check_features, class_moments
from jaxtheory.collapse._record import CollapseStatistics
from jaxtheory.collapse._statistics import statistics

_matmul = partial(jnp.matmul, precision="highest")


class MultiLabelStatistics(NamedTuple):
    """Collapse of single tags, and how features of several tags are composed.

    Entry ``m - 1`` is that of label sets with ``m`` tags. ``h_S`` is the mean feature
    of the examples with exactly the tags ``S`` and ``t_S`` the sum of the ``h_{k}`` of
    its tags. A set with a tag that no example has alone has no ``t_S`` and takes no
    part in the next four.

    Attributes:
        angle_ratio: Mean angle of ``h_S`` and ``t_S`` over the mean angle of ``h_S``
            and ``t_T``, ``T`` all sets of the same size (``S`` included): 0 where
            features of several tags are sums, near 1 where they are not. Shape
            ``[m]``. NaN where there are no such sets, as the next three.
        angles: The mean angle of ``h_S`` and ``t_S``, in radians. Shape ``[m]``.
        scales: Tag-wise scale: the ``a`` with the least ``sum_S ||h_S - a t_S||^2``.
            At the optimum of the theory ``a_m / a_1``. Shape ``[m]``.
        residuals: ``||h - a t|| / ||h||`` over all sets of a size. Shape ``[m]``.
        single: `CollapseStatistics` of the examples with one tag; its
            `num_out_of_range` counts all others.
        set_index: Row of `label_sets` that each example has; -1 where none. The
            collapse of examples with two tags, say, is that of `statistics` with these
            as labels. Shape ``[n]``.
        label_sets: The label sets, smallest first. Shape ``[s, k]``.
        set_counts: Examples used of each set. Shape ``[s]``.
        num_nonfinite: Examples left out for a feature that is NaN or infinite.
        num_untagged: Examples left out because they have no tag.
        num_unknown: Examples left out because their tags are not among `label_sets`,
            or are not 0 and 1; zero unless `label_sets` was given.
    """

    angle_ratio: Float[Array, " m"]
    angles: Float[Array, " m"]
    scales: Float[Array, " m"]
    residuals: Float[Array, " m"]
    single: CollapseStatistics
    set_index: Int[Array, " n"]
    label_sets: Bool[Array, "s k"]
    set_counts: Int[Array, " s"]
    num_nonfinite: Int[Array, ""]
    num_untagged: Int[Array, ""]
    num_unknown: Int[Array, ""]


def multi_label_statistics(
    features: Float[Array, "n d"],
    labels: Real[Array, "n k"] | Bool[Array, "n k"],
    *,
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None] | None = None,
    label_sets: Bool[np.ndarray, "s k"] | None = None,
    centre_means: bool = False,
) -> MultiLabelStatistics:
    """Measure neural collapse of multi-label features.

    Under the pick-all-label loss features of single tags collapse as in single-label
    classification, and those of more tags to scaled sums of them:
    `theory.pick_all_label_optimum` has the scales.

    Every example counts once, in the label set that it has. (One published
    implementation adds into the first example of each class while it sums, and divides
    the sum over single tags by the number of all examples.)

    Args:
        features: Last-layer features, one row for each example.
        labels: Multi-hot rows of 0 and 1. For one label for each example there is
            `statistics`.
        classifier: ``(weight, bias)`` of the last layer, as `statistics` takes it.
        label_sets: The label sets to look for, as a NumPy array. None takes those that
            occur; needed where labels are traced.
        centre_means: Whether the (unweighted) mean of the single-tag means is
            subtracted from all means before angles and scales are taken. The paper does
            not; features with an offset, nonnegative ones for example, are nearer to
            sums with it.

    Returns:
        The statistics, in the precision of the features (at least float32).

    Raises:
        ValueError: Shapes or dtypes do not fit, concrete labels are not 0 and 1, or no
            label set has two tags.

    Memory:
        ``n s`` numbers for ``s`` label sets, and what `statistics` needs.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
        >>> single = (jnp.eye(3) - 1 / 3) @ jnp.eye(3, 5)
        >>> features = (labels @ single) * jnp.array([1, 1, 1, 0.8, 0.8])[:, None]
        >>> found = multi_label_statistics(features, labels)
        >>> print(f"{found.scales[1]:.4f} {found.residuals[1]:.4f}")
        0.8000 0.0000

    References:
        Li, Wang, Li & Qu 2023, arXiv:2310.15903 (the geometry; the angle ratio is that
        of their experiments, there for pairs of tags).
    """
    check_features(features)
    if jnp.ndim(features) != 2:
        raise ValueError(
            f"`features` must be a matrix [n, d], but has shape {jnp.shape(features)}. "
            "Flatten it: `features.reshape(n, -1)`."
        )
    check_examples(features=features, labels=labels)
    sets = _check_label_sets(labels, label_sets)
    sizes = tuple(int(size) for size in sets.sum(axis=1))
    return _multi_label(
        features, labels, jnp.asarray(sets), classifier, bool(centre_means), sizes
    )


def _check_label_sets(labels: Any, label_sets: Any) -> np.ndarray:
    """The label sets, smallest first, after checking labels and what was given."""
    shape, dtype = jnp.shape(labels), jnp.result_type(labels)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            "`labels` must be multi-hot rows [n, k] with at least two tags, but has "
            f"shape {shape} and dtype {dtype}. One label for each example is what "
            "`statistics` is for; in between, `jax.nn.one_hot(labels, k)`."
        )
    if label_sets is None:
        if isinstance(labels, Tracer):
            raise ValueError(
                "`label_sets` must be given where `labels` are traced (under jit, vmap "
                "or scan), because their values are not known there."
            )
        rows = np.asarray(labels)
        if not np.all((rows == 0) | (rows == 1)):
            raise ValueError(
                "`labels` must hold 0 and 1 only. Threshold what is between them."
            )
        label_sets = np.unique(rows.astype(bool), axis=0)
    elif isinstance(label_sets, Tracer) or np.shape(label_sets)[1:] != shape[1:]:
        raise ValueError(
            f"`label_sets` must be a NumPy array [s, {shape[1]}], one row for each set "
            f"of tags, but is a {type(label_sets).__name__} of shape "
            f"{np.shape(label_sets)}."
        )
    sets = np.unique(np.asarray(label_sets, bool), axis=0)
    sets = sets[sets.any(axis=1)]
    sets = sets[np.lexsort((*(~sets).T[::-1], sets.sum(axis=1)))]
    if not np.any(sets.sum(axis=1) > 1):
        raise ValueError(
            "`labels` must hold at least one set of two or more tags, but every "
            "example has one tag at most. Use `statistics` with `labels.argmax(-1)`."
        )
    return sets


@partial(jax.jit, static_argnums=5)
def _multi_label(features, labels, sets, classifier, centre, sizes):
    """`multi_label_statistics`, of checked arguments."""
    tagged = jnp.any(labels != 0, axis=1)
    # Two rows of 0 and 1 are equal where as many entries agree as there are.
    signs = (2 * sets - 1).astype(jnp.float32)
    agree = _matmul(2 * labels.astype(jnp.float32) - 1, signs.T) == labels.shape[1]
    binary = jnp.all((labels == 0) | (labels == 1), axis=1)
    member = agree & binary[:, None]
    known = jnp.any(member, axis=1)
    index = jnp.where(known, jnp.argmax(member, axis=1), -1)
    # Means relative to a point between them, which keeps what an offset rounds.
    moments = class_moments(features, index, len(sizes))
    occurs = moments.counts > 0
    means = moments.means + jnp.where(centre, 0, moments.origin)[None, :]
    composed = [
        _composition(means, occurs, sets, size, sizes, centre)
        for size in range(1, max(sizes) + 1)
    ]
    # The classes are the tags, so that the rows of a classifier fit.
    alone = known & (jnp.sum(labels != 0, axis=1) == 1)
    single = statistics(
        features,
        jnp.where(alone, jnp.argmax(labels, axis=1), -1),
        classifier=classifier,
        num_classes=labels.shape[1],
    )
    return MultiLabelStatistics(
        *(jnp.stack(column) for column in zip(*composed, strict=True)),
        single=single,
        set_index=index,
        label_sets=sets,
        set_counts=moments.counts,
        num_nonfinite=moments.num_nonfinite,
        num_untagged=jnp.sum(~tagged),
        num_unknown=jnp.sum(tagged & ~known),
    )


def _composition(means, occurs, sets, size, sizes, centre):
    """Angle ratio, mean angle, scale and residual of the sets with `size` tags."""
    singles = np.flatnonzero(np.asarray(sizes) == 1)
    chosen = np.flatnonzero(np.asarray(sizes) == size)
    alone = sets[singles] & occurs[singles, None]  # [number of single-tag sets, k]
    weights = occurs[singles] / jnp.sum(occurs[singles])
    offset = _matmul(weights[None, :], means[singles])
    means = means - jnp.where(centre, offset, 0)
    by_tag = _matmul(alone.astype(means.dtype).T, means[singles])  # [k, d]
    has_alone = jnp.any(alone, axis=0)
    rows = sets[chosen]
    complete = occurs[chosen] & ~jnp.any(rows & ~has_alone[None, :], axis=1)
    sums = jnp.where(complete[:, None], _matmul(rows.astype(means.dtype), by_tag), 0)
    actual = jnp.where(complete[:, None], means[chosen], 0)
    angles = _angles(actual, sums)
    number = jnp.sum(complete)
    pairs = complete[:, None] & complete[None, :]
    own = jnp.sum(jnp.where(complete, jnp.diagonal(angles), 0)) / number
    all_pairs = jnp.sum(jnp.where(pairs, angles, 0)) / jnp.sum(pairs)
    scale = jnp.sum(actual * sums) / jnp.sum(jnp.square(sums))
    residual = norm(actual - scale * sums)[0, 0] / norm(actual)[0, 0]
    return own / all_pairs, own, scale, residual


def _angles(first, second):
    """Angles of every row of one matrix with every row of the other.

    As ``2 arctan(||u - v|| / ||u + v||)`` of unit vectors, which keeps small angles
    that the arc cosine of a number near 1 has lost.
    """

    def to_all(row):
        difference = norm(second - row[None, :], axis=1)[:, 0]
        total = norm(second + row[None, :], axis=1)[:, 0]
        # Two rows of zeros have no angle; of (0, 0) there would be no derivative.
        nothing = (difference == 0) & (total == 0)
        return 2 * jnp.arctan2(difference, jnp.where(nothing, 1, total))

    first, second = unit(first, axis=1), unit(second, axis=1)
    return jax.lax.map(to_all, first)
