"""Geometry under class imbalance: distances to the frames that theory predicts."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxtheory.batching import check_examples
from jaxtheory.collapse._moments import (
    check_features,
    check_labels,
    class_moments,
    rounding_of,
)
from jaxtheory.collapse._statistics import check_classifier

_matmul = partial(jnp.matmul, precision="highest")


class FrameDistances(NamedTuple):
    """Distances ``||G / ||G||_F - T / ||T||_F||_F`` of one Gram matrix to three frames.

    Each is between 0 and 2. NaN where the Gram matrix is zero or not finite.

    Attributes:
        etf: To the simplex equiangular tight frame ``I - J/K``, which ignores counts.
        seli: To the simplex-encoded-labels interpolation of these counts, the limit of
            cross-entropy.
        orthogonal: To the general orthogonal frame of these counts, the limit of the
            squared error without a bias: ``diag(sqrt(n_k))`` for a classifier,
            ``diag(1 / sqrt(n_k))`` for means.
    """

    etf: Float[Array, ""]
    seli: Float[Array, ""]
    orthogonal: Float[Array, ""]


class ImbalanceStatistics(NamedTuple):
    """Which frame class means and classifier are near, and minority collapse.

    Attributes:
        means: Distances of the Gram matrix of the class means.
        classifier: Distances of ``W W^T``. None without a classifier, as the next two.
        minority_cosine: Mean cosine of two different minority rows of ``W``; 1 is
            minority collapse, ``-1/(K-1)`` balance. A zero row counts as cosine 0. NaN
            with fewer than two minority classes.
        minority_norm_ratio: Mean length of minority rows over that of majority rows; 0
            is how the squared error collapses.
        minority_mean_cosine: `minority_cosine` of the class means.
        minority: Which classes are in the minority. Shape ``[k]``.
        class_counts: Examples used in each class. Shape ``[k]``.
        num_nonfinite: Examples left out for a feature that is NaN or infinite.
        num_out_of_range: Examples left out for a label outside ``[0, k)``; zero unless
            labels were traced.
    """

    means: FrameDistances
    classifier: FrameDistances | None
    minority_cosine: Float[Array, ""] | None
    minority_norm_ratio: Float[Array, ""] | None
    minority_mean_cosine: Float[Array, ""]
    minority: Bool[Array, " k"]
    class_counts: Int[Array, " k"]
    num_nonfinite: Int[Array, ""]
    num_out_of_range: Int[Array, ""]


def imbalance_statistics(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None] | None = None,
    minority: Bool[Array, " k"] | None = None,
    num_classes: int | None = None,
    centre_means: bool = True,
) -> ImbalanceStatistics:
    """Hold the geometry of imbalanced classes against ETF, SELI and orthogonal frame.

    All frames and Gram matrices are divided by their Frobenius norm, so that lengths
    count relative to each other and a common scale does not. Classes without examples
    take no part: ``K`` counts those that occur.

    The minority-collapse theory is exact for unconstrained features. A network has no
    decay of its features: there it is a trend.

    Args:
        features: Last-layer features, one row for each example.
        labels: Class index of each example, in ``[0, k)``.
        classifier: ``(weight, bias)`` of the last layer, as `statistics` takes it; the
            weight is never centred, and the bias has no part in this.
        minority: Which classes are in the minority; None takes those with fewer
            examples than the average ``N / K``.
        num_classes: Number of classes; None takes that of `classifier` or `minority`,
            or else the largest label plus one. Needed where labels are traced.
        centre_means: Whether the unweighted mean of class means is subtracted from
            means *and* from the orthogonal frame of means. ETF and SELI are centred
            already. Without it, the offset that nonnegative features have counts.

    Returns:
        The statistics, in the precision of the features (at least float32).

    Raises:
        ValueError: Shapes or dtypes do not fit, or concrete labels are out of range or
            all the same.

    Memory:
        Three copies of the features and ``n k`` numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([0] * 6 + [1] * 6 + [2, 3])
        >>> weight = jnp.array([[2.0, 0], [0, 2.0], [-1.0, -1], [-1.0, -1]])
        >>> found = imbalance_statistics(
        ...     weight[labels], labels, classifier=(weight, None)
        ... )
        >>> print(f"{found.minority_cosine:.4f} {found.minority_norm_ratio:.4f}")
        1.0000 0.7071

    References:
        Thrampoulidis et al. 2022, arXiv:2208.05512 (SELI and the distance); Dang et al.
        2023, arXiv:2301.00437 (orthogonal frame); Fang et al. 2021, arXiv:2101.12699
        (minority collapse).
    """
    check_features(features)
    if jnp.ndim(features) != 2:
        raise ValueError(
            f"`features` must be a matrix [n, d], but has shape {jnp.shape(features)}. "
            "Flatten it: `features.reshape(n, -1)`."
        )
    check_examples(features=features, labels=labels)
    num_features = jnp.shape(features)[1]
    num_classes = check_classifier(classifier, num_features, num_classes)
    num_classes = _check_minority(minority, num_classes)
    num_classes = check_labels(labels, num_classes)
    weight = None if classifier is None else classifier[0]
    return _imbalance(
        features, labels, weight, minority, num_classes, bool(centre_means)
    )


def _check_minority(minority: Any, num_classes: int | None) -> int | None:
    """The number of classes, after checking that `minority` has an entry for each."""
    if minority is None:
        return num_classes
    shape = jnp.shape(minority)
    if len(shape) != 1 or num_classes not in (None, *shape):
        wanted = "k" if num_classes is None else num_classes
        raise ValueError(
            f"`minority` must have shape [{wanted}], True or False for each class, but "
            f"has shape {shape}."
        )
    kind = getattr(minority, "dtype", type(minority).__name__)
    if str(kind) != "bool":
        raise ValueError(
            "`minority` must be an array of True or False for each class, but is of "
            f"{kind}. Of indices, it is `np.isin(np.arange(k), indices)`."
        )
    return shape[0]


@partial(jax.jit, static_argnums=(4, 5))
def _imbalance(features, labels, weight, minority, num_classes, centre_means):
    """`imbalance_statistics`, of checked arguments."""
    moments = class_moments(features, labels, num_classes)
    counts, dtype = moments.counts, moments.means.dtype
    present = (counts > 0).astype(dtype)
    occurring = jnp.sum(present)
    projector = jnp.diag(present) - present[:, None] * present[None, :] / occurring
    if minority is None:
        minority = counts * occurring < jnp.sum(counts)
    minority = minority & (counts > 0)
    weight_frames, mean_frames = _frames(counts, projector, centre_means)
    if centre_means:
        # Of means relative to a point between them, which keeps what an offset rounds.
        means = _matmul(projector, moments.means)
        rounding = rounding_of(jnp.max(jnp.abs(means)), moments.resolution)
        means = jnp.where(jnp.linalg.norm(means) > rounding, means, 0)
    else:
        means = (moments.means + moments.origin[None, :]) * present[:, None]
    distances = minority_cosine = norm_ratio = None
    if weight is not None:
        weight = jnp.asarray(weight, dtype) * present[:, None]
        distances = FrameDistances(*(_distance(weight, t) for t in weight_frames))
        minority_cosine = _mean_cosine(weight, minority)
        norm_ratio = _norm_ratio(weight, minority, counts > 0)
    return ImbalanceStatistics(
        means=FrameDistances(*(_distance(means, t) for t in mean_frames)),
        classifier=distances,
        minority_cosine=minority_cosine,
        minority_norm_ratio=norm_ratio,
        minority_mean_cosine=_mean_cosine(means, minority),
        minority=minority,
        class_counts=counts,
        num_nonfinite=moments.num_nonfinite,
        num_out_of_range=moments.num_out_of_range,
    )


def _frames(counts, projector, centre_means):
    """ETF, SELI and orthogonal Gram matrices of the classifier, then of the means.

    As `collapse.theory` has them, but traced, and with classes that do not occur.
    """
    dtype = projector.dtype
    roots = jnp.sqrt(counts.astype(dtype))
    inverse = jnp.where(counts > 0, 1 / jnp.where(counts > 0, roots, 1), 0)
    left, values, right = jnp.linalg.svd(projector * roots[None, :])
    means = right.T * inverse[:, None]
    spread = lambda vectors: _matmul(vectors * values[None, :], vectors.T)
    orthogonal = jnp.diag(inverse)
    if centre_means:
        orthogonal = _matmul(projector, _matmul(orthogonal, projector))
    weight_frames = (projector, spread(left), jnp.diag(roots))
    return weight_frames, (projector, spread(means), orthogonal)


def _distance(vectors, target):
    """Frobenius distance of the normalised Gram matrix of rows to a normalised one."""
    largest = jnp.max(jnp.abs(vectors))
    vectors = vectors / jnp.where(largest > 0, largest, 1)
    gram = _matmul(vectors, vectors.T)
    gram = gram / jnp.linalg.norm(gram)  # NaN for no Gram matrix at all, as documented
    return jnp.linalg.norm(gram - target / jnp.linalg.norm(target))


def _mean_cosine(vectors, minority):
    """Mean cosine over ordered pairs of different minority rows."""
    largest = jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    vectors = vectors / jnp.where(largest > 0, largest, 1)
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / jnp.where(norms > 0, norms, 1)
    pairs = minority[:, None] & minority[None, :] & ~jnp.eye(minority.size, dtype=bool)
    cosines = jnp.where(pairs, _matmul(directions, directions.T), 0)
    return jnp.sum(cosines) / jnp.sum(pairs)


def _norm_ratio(vectors, minority, present):
    """Mean norm of minority rows over mean norm of the others."""
    norms = jnp.linalg.norm(vectors, axis=1)
    mean = lambda mask: jnp.sum(jnp.where(mask, norms, 0)) / jnp.sum(mask)
    return mean(minority) / mean(present & ~minority)
