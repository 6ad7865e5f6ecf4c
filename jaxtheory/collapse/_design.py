"""Symmetric geometry put in by hand: fixed classifiers and a collapse penalty."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_examples, check_key, check_number
from jaxtheory.collapse._frames import squared_distances
from jaxtheory.collapse._moments import (
    ClassMoments,
    between_class,
    check_features,
    check_labels,
    class_moments,
    scatter_ratio,
)
from jaxtheory.collapse.theory import simplex_encoded_labels, simplex_frame

_matmul = partial(jnp.matmul, precision="highest")

Frame = Literal["simplex", "seli", "orthoplex"]


def classifier_frame(
    frame: Frame,
    num_classes: int,
    dimension: int,
    *,
    key: KeyArray,
    class_counts: tuple[int, ...] | None = None,
) -> Float[Array, "k d"]:
    """A symmetric classifier, to be fixed instead of trained.

    By `frame`:

    * "simplex": the simplex equiangular tight frame, cosines ``-1/(K-1)``; what
      balanced classes collapse to. Needs ``d >= K - 1``.
    * "seli": the classifier of simplex-encoded-labels interpolation for `class_counts`;
      what imbalanced classes tend to. Needs ``d >= K - 1``.
    * "orthoplex": rows ``+e_i`` and ``-e_i``, the best margin for ``d + 2 <= K <= 2 d``
      classes. Needs ``d >= K / 2``.

    Gains in accuracy by fixed frames have not been reproduced; what is saved is the
    training of the classifier.

    Args:
        frame: "simplex", "seli" or "orthoplex".
        num_classes: Number ``K`` of classes.
        dimension: Number ``d`` of features.
        key: Random key for the rotation of the frame into ``d`` dimensions.
        class_counts: Examples of each class; needed for "seli", and only there.

    Returns:
        Rows of mean squared length 1 (of length 1 but for "seli").

    Raises:
        ValueError: `frame` is another word, the frame does not fit into the dimension,
            or `class_counts` is missing, not needed, or of another length.

    Example:
        >>> import jax
        >>> weight = classifier_frame("simplex", 4, 10, key=jax.random.key(0))
        >>> [f"{cosine:.3f}" for cosine in (weight @ weight.T)[0]]
        ['1.000', '-0.333', '-0.333', '-0.333']

    References:
        Zhu et al. 2021, arXiv:2105.02375, section 4 (fixed simplex frames);
        Thrampoulidis et al. 2022, arXiv:2208.05512 (SELI); Jiang et al. 2024,
        arXiv:2310.05351 (softmax codes).
    """
    check_key(key)
    k = check_count(num_classes=num_classes, at_least=2)
    d = check_count(dimension=dimension)
    if frame not in ("simplex", "seli", "orthoplex"):
        raise ValueError(
            f'`frame` must be "simplex", "seli" or "orthoplex", but was {frame!r}.'
        )
    if (class_counts is None) == (frame == "seli"):
        raise ValueError(
            '`class_counts` must be given where `frame` is "seli", and only there, but '
            f"was {class_counts!r} with {frame!r}."
        )
    if class_counts is not None and len(class_counts) != k:
        raise ValueError(
            f"`class_counts` must have `num_classes` = {k} entries, but has "
            f"{len(class_counts)}."
        )
    needed = -(-k // 2) if frame == "orthoplex" else k - 1
    if d < needed:
        raise ValueError(
            f"`dimension` must be at least {needed} for a {frame} frame of {k} "
            f"classes, but was {d}."
        )
    rows = _rows(frame, k, class_counts)
    square = jax.random.normal(key, (d, rows.shape[1]), jnp.result_type(float))
    rotation = jnp.linalg.qr(square)[0]
    return _matmul(jnp.asarray(rows, rotation.dtype), rotation.T)


def _rows(frame, k, class_counts):
    """Rows of the frame in as few dimensions as it has, in float64."""
    if frame == "orthoplex":
        half = -(-k // 2)
        return np.concatenate([np.eye(half), -np.eye(half)])[:k]
    geometry = (
        simplex_frame(k)
        if class_counts is None
        else simplex_encoded_labels(np.asarray(class_counts))
    )
    values, vectors = np.linalg.eigh(np.asarray(geometry.classifier_gram))
    rows = (vectors * np.sqrt(np.maximum(values, 0)))[:, 1:]
    return rows / np.sqrt(np.mean(np.sum(rows**2, axis=1)))


def collapse_penalty(
    features: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    *,
    num_classes: int,
    variability: float = 1.0,
    uniformity: float = 0.0,
    measure: Literal["trace_ratio", "nc1"] = "trace_ratio",
) -> Float[Array, ""]:
    """A differentiable number that collapse makes small, to be added to a loss.

    ``variability * C + uniformity * U`` of a batch. ``C`` is ``tr Sigma_W / tr
    Sigma_B`` or ``nc1`` of `statistics`; ``U`` is the mean over pairs of classes of
    ``log 1/||m_i - m_j||`` with ``m_i`` the directions of the centred class means,
    least for the simplex frame, where it is ``-1/2 log(2K/(K-1))``. Neither changes
    with the scale of the features, so that neither shrinks them.

    Args:
        features: Features of a batch. Trailing axes are flattened.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; those that the batch lacks take no part.
        variability: Weight of ``C``, not negative.
        uniformity: Weight of ``U``, not negative.
        measure: Which ``C``: "trace_ratio", or "nc1", which a batch needs many examples
            of each class for and whose derivative costs a decomposition.

    Returns:
        The penalty; 0 for a batch where no class means differ, which has no gradient
        that would help, and NaN for one without an example whose features are finite
        (others are left out).

    Raises:
        ValueError: Shapes or dtypes do not fit, `measure` is another word or a weight
            is negative.

    Memory:
        Two copies of the batch, ``n k`` numbers and with `uniformity` ``k^2`` more,
        also of the derivative.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[-1.1], [-0.9], [0.9], [1.1]])
        >>> labels = jnp.array([0, 0, 1, 1])
        >>> print(f"{collapse_penalty(features, labels, num_classes=2):.3f}")
        0.010

    References:
        Liu et al. 2023, arXiv:2303.06484 (uniformity of class means).
    """
    check_features(features)
    check_examples(features=features, labels=labels)
    check_labels(labels, num_classes)
    if measure not in ("trace_ratio", "nc1"):
        raise ValueError(
            f'`measure` must be "trace_ratio" or "nc1", but was {measure!r}.'
        )
    for name, weight in [("variability", variability), ("uniformity", uniformity)]:
        check_number(name, weight, lambda w: 0 <= w < float("inf"), "0 or more")
    return _penalty(features, labels, variability, uniformity, num_classes, measure)


@partial(jax.jit, static_argnums=(4, 5))
def _penalty(features, labels, variability, uniformity, num_classes, measure):
    """`collapse_penalty`, of checked arguments."""
    flat = jnp.reshape(features, (features.shape[0], -1))
    moments = class_moments(flat, labels, num_classes)
    dtype = moments.means.dtype
    present = moments.counts > 0
    occurring = jnp.maximum(jnp.sum(present), 1).astype(dtype)
    weights = present.astype(dtype) / occurring
    centre = _matmul(weights[None, :], moments.means)
    means = jnp.where(present[:, None], moments.means - centre, 0)
    squares = jnp.sum(jnp.square(means), axis=1)
    differ = jnp.sqrt(jnp.sum(squares)) > _rounding(moments)
    if measure == "nc1":
        ratio = scatter_ratio(moments, between_class(moments, weights)) / occurring
    else:
        within = jnp.sum(jnp.square(moments.residuals)) / jnp.sum(moments.counts)
        between = jnp.sum(squares) / occurring
        ratio = within / jnp.where(differ, between, 1)
    spread = _log_uniformity(means, squares, present, _rounding(moments))
    total = variability * jnp.where(differ, ratio, 0) + uniformity * spread
    total = jnp.where(differ, total, 0)
    return jnp.where(jnp.any(present), total, jnp.nan)


def _rounding(moments: ClassMoments):
    """Length below which class means do not differ."""
    return 8 * jnp.finfo(moments.means.dtype).eps * moments.resolution


def _log_uniformity(means, squares, present, rounding):
    """Mean of ``-log`` distance between directions of class means that have one."""
    directed = present & (squares > jnp.square(rounding))
    norms = jnp.sqrt(jnp.where(directed, squares, 1))
    directions = means / norms[:, None]
    chords = squared_distances(directions)
    pairs = directed[:, None] & directed[None, :]
    pairs &= ~jnp.eye(present.size, dtype=bool)
    # Directions nearer than rounding would push with infinite force.
    floor = jnp.square(8 * jnp.finfo(means.dtype).eps)
    logs = -0.5 * jnp.log(jnp.where(pairs, jnp.maximum(chords, floor), 1))
    return jnp.sum(logs) / jnp.maximum(jnp.sum(pairs), 1)
