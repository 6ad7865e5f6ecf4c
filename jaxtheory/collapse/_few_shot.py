"""Pairs of classes: the moments that few-shot errors follow from, and those errors."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_examples
from jaxtheory.collapse._frames import off_diagonal, squared_distances
from jaxtheory.collapse._moments import check_features, check_labels, class_moments

_matmul = partial(jnp.matmul, precision="highest")


class PairMoments(NamedTuple):
    """Moments of class ``i`` (row) against the distance to class ``j`` (column).

    With ``mu_i`` and ``Sigma_i`` (``1/n_i``) of the examples given, ``d_ij = ||mu_i -
    mu_j||`` and ``u_ij`` the unit vector between the two. No number has a unit. Where
    two means coincide, entries are infinite; on the diagonal and for classes without
    examples they are NaN.

    Attributes:
        variance: ``v_i / d_ij^2``, ``v_i = tr Sigma_i``. Shape ``[k, k]``.
        directional: ``u^T Sigma_i u / d_ij^2``, the directional variance. Shape
            ``[k, k]``.
        fourth: ``mean ||h - mu_i||^4 / d_ij^4``. Shape ``[k, k]``.
        measured_error: Share of the examples of ``i`` that are nearer to ``mu_j`` than
            to ``mu_i``; 1/2 where the two coincide. Shape ``[k, k]``.
        counts: Examples used in each class. Shape ``[k]``.
        num_left_out: Examples left out, for a feature that is not finite or a traced
            label out of range.
    """

    variance: Float[Array, "k k"]
    directional: Float[Array, "k k"]
    fourth: Float[Array, "k k"]
    measured_error: Float[Array, "k k"]
    counts: Int[Array, " k"]
    num_left_out: Int[Array, ""]


class PairwiseErrors(NamedTuple):
    """Three errors of class ``i`` against class ``j`` when both means are known.

    Attributes:
        gaussian: What Gaussian classes make of the directional variance,
            ``Phi(-1 / (2 sqrt(V_ij)))``. Shape ``[k, k]``.
        cantelli: What no distribution can exceed, ``4 V_ij / (1 + 4 V_ij)``. Shape
            ``[k, k]``.
        measured: Share of examples of ``i`` nearer to ``mu_j``. Shape ``[k, k]``.
    """

    gaussian: Float[Array, "k k"]
    cantelli: Float[Array, "k k"]
    measured: Float[Array, "k k"]


def pair_moments(
    features: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
) -> PairMoments:
    """Measure what the few-shot error between two classes depends on.

    `bounds.few_shot` turns it into a bound, `pairwise_errors` into predictions. The sum
    ``V_ij = variance + variance^T`` is the class-distance normalised variance without
    the factor 1/2.

    Args:
        features: One example for each entry of axis 0; trailing axes are flattened.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        The moments.

    Raises:
        ValueError: Shapes or dtypes do not fit, `num_classes` is missing, or concrete
            labels are out of range or all the same.

    Memory:
        Two copies of the features and ``3 n k`` numbers; no ``d x d`` matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[-1.2], [-0.8], [0.8], [1.2]])
        >>> moments = pair_moments(features, jnp.array([0, 0, 1, 1]))
        >>> print(f"{moments.variance[0, 1]:.3f} {moments.fourth[0, 1]:.4f}")
        0.010 0.0001

    References:
        Luthra, Salunkhe & Galanti 2026, arXiv:2603.03530, section 4.
    """
    check_features(features)
    check_examples(features=features, labels=labels)
    return _pair_moments(features, labels, check_labels(labels, num_classes))


def pairwise_errors(moments: PairMoments) -> PairwiseErrors:
    """Hold the measured error of each pair of classes against two predictions.

    For one example ``h`` of class ``i``, the nearer of two known means is the wrong one
    where ``u.(h - mu_i) > d_ij / 2``: a Gaussian class does so with probability
    ``Phi(-1 / (2 sqrt(V_ij)))``, ``V`` the directional variance, and no class of this
    variance more often than Cantelli's inequality has it, whose constant 4 cannot be
    improved. Measured errors far above the Gaussian ones speak of heavy tails.

    Args:
        moments: What `pair_moments` returned.

    Returns:
        The errors; each in [0, 1], NaN where the moments are.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[-1.5], [-0.5], [0.5], [1.5]])
        >>> moments = pair_moments(features, jnp.array([0, 0, 1, 1]))
        >>> print([f"{float(e[0, 1]):.3f}" for e in pairwise_errors(moments)])
        ['0.023', '0.200', '0.000']

    References:
        Luthra, Salunkhe & Galanti 2026, arXiv:2603.03530, section 4.
    """
    if not isinstance(moments, PairMoments):
        raise ValueError(
            "`moments` must be `PairMoments`, but is a "
            f"{type(moments).__name__}. Pass what `pair_moments` returned."
        )
    variance = moments.directional
    gaussian = jax.scipy.stats.norm.cdf(-0.5 / jnp.sqrt(variance))
    cantelli = 1 / (1 + 1 / (4 * variance))  # 1 where the variance is infinite
    return PairwiseErrors(gaussian, cantelli, moments.measured_error)


@partial(jax.jit, static_argnums=2)
def _pair_moments(features, labels, num_classes):
    """`pair_moments`, of checked arguments."""
    flat = jnp.reshape(features, (features.shape[0], -1))
    moments = class_moments(flat, labels, num_classes)
    means, residuals = moments.means, moments.residuals
    counts = jnp.maximum(moments.counts, 1)[:, None]
    member = moments.used[:, None] & (
        moments.labels[:, None] == jnp.arange(num_classes)[None, :]
    )
    average = lambda rows: _matmul(member.T.astype(means.dtype), rows) / counts

    squares = squared_distances(means)
    pairs = off_diagonal(moments.counts > 0)
    # Means that differ by rounding coincide.
    epsilon = jnp.finfo(means.dtype).eps
    apart = pairs & (squares > jnp.square(2 * epsilon * moments.resolution))
    inverse = jnp.where(apart, 1 / jnp.where(apart, squares, 1), 0)

    lengths = jnp.sum(jnp.square(residuals), axis=1, keepdims=True)
    # (h - mu_i).(mu_j - mu_i) / d_ij^2: above 1/2 where mu_j is the nearer mean.
    along = _matmul(residuals, means.T)
    along = along - jnp.take_along_axis(along, moments.labels[:, None], axis=1)
    along = along * inverse[moments.labels]

    def defined(matrix):
        return jnp.where(pairs, jnp.where(apart, matrix, jnp.inf), jnp.nan)

    errors = average((along > 0.5).astype(means.dtype))
    errors = jnp.where(apart, errors, 0.5)
    return PairMoments(
        variance=defined(average(lengths) * inverse),
        directional=defined(average(jnp.square(along))),
        fourth=defined(_fourth(lengths, inverse, moments.labels, average)),
        measured_error=jnp.where(pairs, errors, jnp.nan),
        counts=moments.counts,
        num_left_out=moments.num_nonfinite + moments.num_out_of_range,
    )


def _fourth(lengths, inverse, labels, average):
    """Mean of ``(||h - mu_i||^2 / d_ij^2)^2``, divided before it is squared."""
    return average(jnp.square(lengths * inverse[labels]))
