"""How much classes vary against how far apart they are: CDNV and VCI."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory.batching import check_batch_size, check_examples, num_shards
from jaxtheory.collapse._accumulator import finalize, of_examples
from jaxtheory.collapse._moments import check_feature_matrix, check_labels
from jaxtheory.collapse._projection import project, variability_collapse
from jaxtheory.collapse._record import check_word
from jaxtheory.collapse._second_pass import (
    directional_variances,
    distance_normalized,
    over_pairs,
    reference,
    second_pass_over,
)


class CDNV(NamedTuple):
    """Class-distance normalized variances; 0 is collapsed.

    Attributes:
        value: Mean of `matrix` over ordered pairs of classes. Infinite where two class
            means coincide.
        directional: Mean of `directional_matrix`. Infinite as `value`.
        matrix: The chosen convention for classes ``i`` (row) and ``j``. NaN on the
            diagonal and for classes without examples, infinite where the means
            coincide. Shape ``[k, k]``.
        directional_matrix: ``u^T Sigma_i u / ||mu_i - mu_j||^2``: the variance of class
            ``i`` along the unit vector ``u`` from ``mu_i`` to ``mu_j``, which is all
            that can carry an example across; not symmetric. Shape ``[k, k]``.
    """

    value: Float[Array, ""]
    directional: Float[Array, ""]
    matrix: Float[Array, "k k"]
    directional_matrix: Float[Array, "k k"]


def cdnv(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    convention: str = "average",
    num_classes: int | None = None,
    batch_size: int | None = 512,
) -> CDNV:
    """Measure the variance of classes in units of the distance between them.

    With class variances ``v_i = (1/n_i) sum ||h - mu_i||^2`` and squared distances
    ``d_ij^2 = ||mu_i - mu_j||^2``, three conventions are in use:

    - ``"average"``: ``(v_i + v_j) / (2 d_ij^2)`` (Galanti et al. 2022);
    - ``"ordered"``: ``v_i / d_ij^2``, not symmetric, with the same mean over ordered
      pairs (Galanti et al. 2212.12532);
    - ``"sum"``: ``(v_i + v_j) / d_ij^2``, twice the first (the paper of the directional
      bound).

    The directional matrix has one convention only, that of ``"ordered"``.

    Args:
        features: One row for each example.
        labels: Class index of each example, in ``[0, k)``.
        convention: One of the three words.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.
        batch_size: Examples at a time, on each device; None takes all at once, which is
            slower on CPUs.

    Returns:
        Means and matrices. A class of one example has variance 0. Examples that are
        not finite, or (traced) of a label out of range, are left out.

    Raises:
        ValueError: Shapes or dtypes do not fit, `convention` is another word,
            `num_classes` is missing, or concrete labels are out of range or all the
            same.

    Memory:
        ``O(k d + k^2)``, and two copies of ``batch_size`` examples.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[0.0, 0.1], [0.0, -0.1], [1.2, 0.0], [0.8, 0.0]])
        >>> found = cdnv(features, jnp.array([0, 0, 1, 1]))
        >>> print(f"{found.value:.4f} {found.directional:.4f}")
        0.0250 0.0200

    References:
        Galanti, Gyorgy & Hutter 2022, arXiv:2112.15121; Galanti et al. 2022,
        arXiv:2212.12532; Luthra, Salunkhe & Galanti 2026, arXiv:2603.03530
        (directional).
    """
    num_classes = _check(features, labels, num_classes)
    check_word("cdnv", convention, "convention")
    check_batch_size(batch_size)
    loop = (batch_size, num_shards(features))
    return _cdnv(features, labels, convention, num_classes, loop)


def _check(features: Any, labels: Any, num_classes: int | None) -> int:
    """The number of classes, of features and labels that fit."""
    check_feature_matrix(features)
    check_examples(features=features, labels=labels)
    return check_labels(labels, num_classes)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _cdnv(features, labels, convention, num_classes, loop):
    data = (jnp.asarray(features), jnp.asarray(labels))
    summary = finalize(of_examples(*data, num_classes, *loop))
    means = reference(summary, "equal")
    sums = second_pass_over(means, None, data, *loop)
    matrix, value = over_pairs(distance_normalized(means, convention), means)
    along, directional = over_pairs(directional_variances(sums), means)
    return CDNV(value, directional, matrix, along)


def variability_collapse_index(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
) -> Float[Array, ""]:
    """Measure how little of the between-class directions a linear probe cannot fit.

    ``VCI = 1 - tr(Sigma_T^+ Sigma_B) / min(d, K-1)`` with classes weighted by their
    examples, ``Sigma_B = (1/N) sum_k n_k (mu_k - mu) (mu_k - mu)^T``, and ``Sigma_T =
    Sigma_W + Sigma_B`` the covariance (``1/N``) of all examples; only with these
    weights do the two belong together. It lies between 0 (collapsed) and 1, and no
    invertible linear map of the features changes it, while one does change
    `CollapseStatistics.nc1_ratio`.

    For balanced classes, and ``d`` at least ``K-1``, the least mean squared error of a
    linear probe with bias to one-hot labels, summed over outputs, is ``(K-1) VCI / K``;
    the H-score is ``(K-1) (1 - VCI)`` for any.

    With at least as many features as examples, features in general position have VCI
    0 whatever the labels: a probe fits anything there.

    Args:
        features: One row for each example.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        The index; ``K`` counts classes that occur. NaN where all features coincide.
        Examples that are not finite, or (traced) of a label out of range, are left out.

    Raises:
        ValueError: Shapes or dtypes do not fit, `num_classes` is missing, or concrete
            labels are out of range or all the same.

    Memory:
        The singular value decomposition of the features: three copies of them, and time
        ``O(n d min(n, d))``. Scatter *outside* of the class means' span matters here,
        so nothing smaller will do.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[-1.1], [-0.9], [0.9], [1.1]])
        >>> print(
        ...     f"{variability_collapse_index(features, jnp.array([0, 0, 1, 1])):.4f}"
        ... )
        0.0099

    References:
        Xu & Liu 2023, "Quantifying the Variability Collapse of Neural Networks", ICML.
    """
    return _index(features, labels, _check(features, labels, num_classes))


@partial(jax.jit, static_argnums=2)
def _index(features, labels, num_classes):
    projection = project(jnp.asarray(features), jnp.asarray(labels), num_classes)
    return variability_collapse(projection, features.shape[1])
