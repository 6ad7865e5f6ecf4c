"""How much one example moves class means and a linear classifier: leave one out."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_examples, check_number
from jaxtheory.collapse._moments import (
    check_features,
    check_labels,
    class_moments,
    rounding_of,
)

_matmul = partial(jnp.matmul, precision="highest")


class LeaveOneOutDrift(NamedTuple):
    """What leaving out each example in turn does; features stay as they are.

    Attributes:
        class_mean: Distance that the mean of the example's class moves, ``||h_i -
            mu_y|| / (n_y - 1)``, over the distance from ``mu_y`` to the nearest other
            class mean. Infinite for a class of one example, and where that distance is
            0 or a rounding of the features. Shape ``[n]``.
        classifier: Frobenius norm of the change of the ridge classifier over the norm
            of the classifier. Shape ``[n]``.
        nearest_mean_error: Share of examples whose nearest class mean is wrong when
            their own class mean is taken without them; a tie counts as wrong. In-sample
            it is lower. NaN where no example is used, as the next.
        classifier_error: Share of examples that the ridge classifier gets wrong when
            fitted without them.
        num_left_out: Examples left out of everything, for a feature that is not finite
            or a traced label out of range. Their rows are 0.
    """

    class_mean: Float[Array, " n"]
    classifier: Float[Array, " n"]
    nearest_mean_error: Float[Array, ""]
    classifier_error: Float[Array, ""]
    num_left_out: Int[Array, ""]


def leave_one_out_drift(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    ridge: float = 1e-3,
    num_classes: int | None = None,
) -> LeaveOneOutDrift:
    """Leave out each example in turn, in closed form.

    Collapsed features depend mildly on any one example: class means and classifier
    hardly move, and no decision changes. The mean of class ``y`` without example ``i``
    is ``mu_y - (h_i - mu_y) / (n_y - 1)``. The classifier is ridge regression of
    one-hot labels on centred features,

        W = (C + r I)^-1 (1/N) sum_i (h_i - m) (y_i - p)^T

    with ``C`` their covariance (``1/N``), ``p`` the class frequencies and ``r`` `ridge`
    times the mean eigenvalue of ``C``; centring and ``r`` stay those of all examples.
    With the leverage ``a_i = (1/N) x_i^T (C + r I)^-1 x_i`` and the residual ``e_i``,
    leaving out ``i`` changes ``W`` by ``-(1/N) (C + r I)^-1 x_i e_i^T / (1 - a_i)`` and
    the residual to ``e_i / (1 - a_i)``.

    Args:
        features: One row for each example.
        labels: Class index of each example, in ``[0, k)``.
        ridge: Strength of the ridge against the mean eigenvalue, positive.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        The drifts and the errors.

    Raises:
        ValueError: Shapes or dtypes do not fit, or `ridge` is not positive.

    Memory:
        Five copies of the features and ``4 n k`` numbers, no ``d x d`` matrix for more
        features than examples; time ``O(n d min(n, d))``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(300) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (300, 4))
        >>> drifts = [
        ...     leave_one_out_drift(jnp.eye(3, 4)[labels] + s * noise, labels)
        ...     for s in (0.1, 0.5)
        ... ]
        >>> bool(drifts[0].class_mean.mean() < drifts[1].class_mean.mean())
        True

    References:
        Allen, Technometrics 16 (1974), for the closed form of ridge regression.
    """
    check_features(features)
    if jnp.ndim(features) != 2:
        raise ValueError(
            "`features` must be a matrix [n, d], but has shape "
            f"{jnp.shape(features)}. Flatten it: `features.reshape(n, -1)`."
        )
    check_examples(features=features, labels=labels)
    check_number("ridge", ridge, lambda r: 0 < r < float("inf"), "positive")
    return _drift(features, labels, ridge, check_labels(labels, num_classes))


@partial(jax.jit, static_argnums=3)
def _drift(features, labels, ridge, num_classes):
    """`leave_one_out_drift`, of checked arguments."""
    moments = class_moments(features, labels, num_classes)
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    wrongly = lambda wrong: jnp.sum(wrong & moments.used) / total
    share = lambda wrong: jnp.where(jnp.any(moments.used), wrongly(wrong), jnp.nan)
    class_mean, far = _mean_drift(moments)
    classifier, wrong = _classifier_drift(moments, ridge, total)
    keep = lambda values: jnp.where(moments.used, values, 0)
    return LeaveOneOutDrift(
        class_mean=keep(class_mean),
        classifier=keep(classifier),
        nearest_mean_error=share(far),
        classifier_error=share(wrong),
        num_left_out=moments.num_nonfinite + moments.num_out_of_range,
    )


def _mean_drift(moments):
    """Relative moves of class means, and which examples are then nearest to another."""
    means, labels = moments.means, moments.labels
    from_row = lambda row: jnp.sum(jnp.square(means - row[None, :]), axis=1)
    squares = jax.lax.map(from_row, means)
    present = moments.counts > 0
    others = present[None, :] & ~jnp.eye(present.size, dtype=bool)
    nearest = jnp.min(jnp.where(others, squares, jnp.inf), axis=1)
    counts = moments.counts[labels].astype(means.dtype)
    lengths = jnp.sum(jnp.square(moments.residuals), axis=1)
    alone = counts <= 1
    rest = jnp.where(alone, 1, counts - 1)
    apart = jnp.sqrt(nearest)
    # Means that differ by rounding alone are one point, and any move is beyond it.
    longest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(means), axis=1)))
    apart = jnp.where(apart > rounding_of(longest, moments.resolution), apart, 0)
    apart = apart[labels]
    drift = jnp.sqrt(lengths) / jnp.where(apart == 0, 1, apart) / rest
    # Without the example its own mean is n / (n - 1) times as far away.
    own = lengths * jnp.square(counts / rest)
    along = _matmul(moments.residuals, means.T)
    along = along - jnp.take_along_axis(along, labels[:, None], axis=1)
    away = lengths[:, None] + squares[labels] - 2 * along
    away = jnp.where(others[labels], away, jnp.inf)
    far = alone | (jnp.min(away, axis=1) <= own)
    return jnp.where(alone | (apart == 0), jnp.inf, drift), far


def _classifier_drift(moments, ridge, total):
    """Relative changes of the ridge classifier, and which examples it then misses.

    From the singular values of the centred features, not from their covariance: that
    has the square of their condition, and collapsed features a large one.
    """
    used = moments.used[:, None]
    rows = jnp.where(used, moments.residuals + moments.means[moments.labels], 0)
    rows = rows - jnp.where(used, jnp.sum(rows, axis=0) / total, 0)
    frequencies = (moments.counts / total).astype(rows.dtype)[None, :]
    onehot = moments.labels[:, None] == jnp.arange(moments.counts.size)[None, :]
    targets = jnp.where(used, onehot - frequencies, 0)
    left, values, _ = jnp.linalg.svd(rows, full_matrices=False)
    energy = jnp.square(values) / total
    strength = ridge * jnp.sum(energy) / rows.shape[1]
    # All features alike: nothing to invert, nothing moves.
    strength = jnp.where(strength == 0, 1, strength)
    damping = values / (energy + strength)  # of (C + r I)^-1 x_i
    kept = strength / (energy + strength)  # what the classifier leaves of a target
    along = _matmul(left.T, targets)
    size = jnp.linalg.norm(damping[:, None] * along)  # N ||W||
    errors = _matmul(left, kept[:, None] * along)
    rest = _matmul(jnp.square(left), kept)  # 1 - a_i, with no difference to cancel
    if rows.shape[0] > rows.shape[1]:  # there is more than the features span
        errors = errors + targets - _matmul(left, along)
        rest = rest + 1 - jnp.sum(jnp.square(left), axis=1)
    # Rows around their mean are dependent: 1 - a_i >= 1/N, and no target lies along
    # the constant, which the ridge would keep whole.
    errors = errors - jnp.where(used, jnp.sum(errors, axis=0) / total, 0)
    errors = errors / jnp.maximum(rest, 1 / total)[:, None]
    moved = jnp.linalg.norm(left * damping[None, :], axis=1)
    moved = moved * jnp.linalg.norm(errors, axis=1) / jnp.where(size == 0, 1, size)
    # Where nothing varies, that target minus error is 0 up to a sign of rounding.
    outputs = jnp.where(jnp.any(values > 0), targets - errors, 0) + frequencies
    outputs = jnp.where((moments.counts > 0)[None, :], outputs, -jnp.inf)
    return moved, jnp.argmax(outputs, axis=1) != moments.labels
