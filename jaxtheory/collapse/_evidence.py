"""The evidence of a Bayesian linear model of the labels: LogME."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxtheory.batching import check_examples
from jaxtheory.collapse._moments import check_features, check_labels
from jaxtheory.collapse._projection import Projection, project, uncentred

_MAX_STEPS = 1000


class LogEvidence(NamedTuple):
    """Logarithm of the maximum evidence, over examples and classes.

    Attributes:
        value: Mean over classes of ``log p(y_k | features, alpha_k, beta_k) / n``.
        weight_precision: ``alpha_k``, in squared units of the features; infinite where
            weights of zero are best, because the features say nothing of the class. NaN
            for a class without examples, as the next. Shape ``[k]``.
        noise_precision: ``beta_k``. Shape ``[k]``.
        converged: Whether the fixed point was reached for every class. It is not where
            features fit the labels exactly: the evidence has no maximum then.
    """

    value: Float[Array, ""]
    weight_precision: Float[Array, " k"]
    noise_precision: Float[Array, " k"]
    converged: Bool[Array, ""]


def log_evidence(
    features: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
) -> LogEvidence:
    """Evidence of linear regression of one-hot labels on features (LogME).

    For each class, ``y = F w + noise`` with ``w ~ N(0, I / alpha)`` and noise ``N(0, I
    / beta)``, so that ``y ~ N(0, F F^T / alpha + I / beta)``. The precisions that
    maximise this likelihood are found by MacKay's fixed point; the value there is
    exact. Features are not centred and there is no intercept, as published. It rewards
    a good fit by few directions: unlike the H-score, more features do not help by
    themselves.

    Args:
        features: One example for each entry of axis 0; trailing axes are flattened.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        The evidence; higher promises better transfer. NaN if a feature is not finite
        or a traced label is out of range.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    Memory:
        Three copies of the features; time ``O(n d min(n, d))``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(60) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (60, 4))
        >>> values = [
        ...     log_evidence(jnp.eye(3, 4)[labels] + s * noise, labels).value
        ...     for s in (0.1, 0.5)
        ... ]
        >>> bool(values[0] > values[1])
        True

    References:
        You et al. 2021, arXiv:2102.11005; You et al. 2022, arXiv:2110.10545 (fixed
        point).
    """
    check_features(features)
    check_examples(features=features, labels=labels)
    num_classes = check_labels(labels, num_classes)
    return _log_evidence(features, labels, num_classes)


@partial(jax.jit, static_argnums=2)
def _log_evidence(features, labels, num_classes):
    dimension = features[0].size
    return evidence_of(project(features, labels, num_classes), dimension)


def evidence_of(projection: Projection, dimension: int) -> LogEvidence:
    """`log_evidence` from a projection.

    Args:
        projection: Of the features.
        dimension: Number of features.

    Returns:
        The evidence.
    """
    values, sums = uncentred(projection)
    squares, total = jnp.square(values), jnp.sum(projection.counts)
    solve = partial(_maximise, squares, total, dimension)
    found = jax.vmap(solve)(jnp.square(sums), projection.counts)
    value, alpha, beta, converged = found
    present = projection.counts > 0
    mean = jnp.sum(jnp.where(present, value, 0)) / jnp.maximum(jnp.sum(present), 1)
    of_class = lambda numbers: jnp.where(present, numbers, jnp.nan)
    return LogEvidence(
        value=jnp.where(projection.num_left_out == 0, mean, jnp.nan),
        weight_precision=of_class(alpha) * jnp.square(projection.unit),
        noise_precision=of_class(beta),
        converged=jnp.all(converged | ~present) & (projection.num_left_out == 0),
    )


def _maximise(squares, total, dimension, along, length):
    """Maximum over both precisions for one target.

    Args:
        squares: Squared singular values of the features.
        total: Number of examples.
        dimension: Number of features.
        along: Squared coordinates of the target in the left singular basis.
        length: Squared length of the target.

    Returns:
        Evidence over `total`, the two precisions, and whether they are a fixed point.
    """
    # Evidence over alpha / beta can have two maxima, when features share a large mean
    # for example. One start lies below both and one above.
    kept = jnp.where(squares > 0, squares, jnp.inf)
    starts = jnp.stack([jnp.min(kept), jnp.max(squares)])
    climb = partial(_climb, squares, total, dimension, along, length)
    found = jax.vmap(climb)(starts)
    best = jnp.argmax(found[0])
    return tuple(numbers[best] for numbers in found)


def _climb(squares, total, dimension, along, length, start):
    """`_maximise` from one ratio of the precisions."""
    epsilon = jnp.finfo(squares.dtype).eps
    outside = jnp.maximum(length - jnp.sum(along), 0)

    def precisions(ratio):
        norm = jnp.sum(squares * along / jnp.square(ratio + squares))
        inside = jnp.sum(along * jnp.square(ratio / (ratio + squares)))
        residual = jnp.maximum(inside + outside, epsilon * length)
        effective = jnp.sum(squares / (ratio + squares))
        alpha = effective / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
        beta = jnp.maximum(total - effective, epsilon * total) / residual
        return alpha, beta, norm, residual

    def step(state):
        ratio, _, count = state
        alpha, beta, _, _ = precisions(ratio)
        change = jnp.abs(jnp.log(alpha / beta / ratio))
        return alpha / beta, change, count + 1

    # So large a ratio leaves weights of zero, whose evidence is the limit.
    most = jnp.max(squares) / epsilon

    def going(state):
        ratio, change, count = state
        return (change > 16 * epsilon) & (ratio < most) & (count < _MAX_STEPS)

    begin = (start, jnp.full_like(length, jnp.inf), 0)
    ratio, change, _ = jax.lax.while_loop(going, step, begin)
    silent = ratio >= most
    alpha, beta, norm, residual = precisions(jnp.minimum(ratio, most))
    # The determinant has a factor alpha for every direction without a singular value.
    rest = dimension - squares.size
    log_determinant = jnp.sum(jnp.log(alpha + beta * squares)) + rest * jnp.log(alpha)
    value = 0.5 * (
        dimension * jnp.log(alpha)
        + total * jnp.log(beta)
        - beta * residual
        - alpha * norm
        - log_determinant
        - total * jnp.log(2 * jnp.pi)
    )
    # A change of a thousandth of the ratio moves the maximum by a millionth.
    exact = residual > 4 * epsilon * length
    alpha = jnp.where(silent, jnp.inf, alpha)
    return value / total, alpha, beta, ((change < 1e-3) | silent) & exact
