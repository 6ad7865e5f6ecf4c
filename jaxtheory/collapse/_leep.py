"""LEEP and its form for any features: labels predicted through a soft clustering."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_examples, check_key
from jaxtheory.collapse._moments import check_features, check_labels
from jaxtheory.collapse._projection import project

_matmul = partial(jnp.matmul, precision="highest")


def leep(
    assignments: Float[Array, "n z"],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
) -> Float[Array, ""]:
    """Log expected empirical prediction of labels through soft assignments.

    ``(1/n) sum_i log sum_z P(y_i | z) p_z(x_i)`` with ``P(y, z) = (1/n) sum_i p_z(x_i)
    1[y_i = y]``. Code in circulation leaves out the logarithm; the paper has it.

    Args:
        assignments: ``p_z(x)``: probabilities of source classes (a softmax), rows sum
            to 1.
        labels: Target classes, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        The score, at most 0; higher promises better transfer. NaN if a traced label is
        out of range, or a row is no probabilities: not finite, negative, or a sum that
        is not 1 to the rounding of its precision (logits, for example).

    Raises:
        ValueError: Shapes or dtypes do not fit, or a concrete label is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> assignments = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> print(f"{leep(assignments, jnp.array([0, 0, 1, 0])):.3f}")
        -0.347

    References:
        Nguyen et al. 2020, arXiv:2002.12462, eq. 2.
    """
    check_features(assignments, "assignments")
    if jnp.ndim(assignments) != 2:
        raise ValueError(
            "`assignments` must be a matrix [n, z] of probabilities, but has shape "
            f"{jnp.shape(assignments)}."
        )
    check_examples(assignments=assignments, labels=labels)
    score = _leep(assignments, labels, check_labels(labels, num_classes))
    return jnp.where(_are_probabilities(assignments), score, jnp.nan)


@jax.jit
def _are_probabilities(rows):
    """Whether rows are not negative and sum to 1, to the rounding of their precision.

    A softmax of ``z`` terms is off by some ``sqrt(z)`` roundings.
    """
    rounding = 8 * float(jnp.finfo(rows.dtype).eps) * rows.shape[1] ** 0.5
    sums = jnp.sum(rows, axis=1, dtype=jnp.promote_types(rows.dtype, jnp.float32))
    return jnp.all(rows >= 0) & jnp.all(jnp.abs(sums - 1) <= rounding)


def gaussian_leep(
    features: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    *,
    key: KeyArray,
    components_per_class: int = 5,
    num_steps: int = 100,
    num_classes: int | None = None,
) -> Float[Array, ""]:
    """`leep` with the responsibilities of a Gaussian mixture of the features (NLEEP).

    The mixture has `components_per_class` times ``k`` components on the leading
    principal components that hold 80 % of the variance. It is fitted by expectation
    maximisation from examples drawn by `key`. Components are Gaussians of independent
    coordinates; the published code has full covariances.

    Args:
        features: Features of target examples. Trailing axes are flattened.
        labels: Target classes, in ``[0, k)``.
        key: Random key for where the mixture starts.
        components_per_class: Components for each class.
        num_steps: Steps of expectation maximisation.
        num_classes: As in `leep`.

    Returns:
        The score, at most 0; NaN if an example would be left out. It depends on the
        key: average some.

    Raises:
        ValueError: Shapes or dtypes do not fit, a count is not positive, or there are
            more components than examples.

    Memory:
        Three copies of the features and a few arrays of ``n`` times the number of
        components.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(60) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (60, 4))
        >>> features = 5 * jnp.eye(3, 4)[labels] + 0.1 * noise
        >>> score = gaussian_leep(features, labels, key=jax.random.key(1))
        >>> bool(score > -0.3)
        True

    References:
        Li et al. 2021, arXiv:2011.11200 (NLEEP).
    """
    check_key(key)
    check_features(features)
    n = check_examples(features=features, labels=labels)
    num_classes = check_labels(labels, num_classes)
    count = check_count(components_per_class=components_per_class) * num_classes
    num_steps = check_count(num_steps=num_steps)
    if count > n:
        raise ValueError(
            f"`components_per_class` must be at most {n // num_classes} for {n} "
            f"examples of {num_classes} classes, but was {components_per_class}."
        )
    return _gaussian_leep(features, labels, key, num_classes, count, num_steps)


@partial(jax.jit, static_argnums=2)
def _leep(assignments, labels, num_classes):
    assignments = assignments.astype(jnp.promote_types(assignments.dtype, jnp.float32))
    onehot = jax.nn.one_hot(labels, num_classes, dtype=assignments.dtype)
    joint = _matmul(onehot.T, assignments)
    marginal = jnp.sum(joint, axis=0, keepdims=True)
    conditional = joint / jnp.where(marginal == 0, 1, marginal)
    predicted = jnp.sum(_matmul(assignments, conditional.T) * onehot, axis=1)
    valid = jnp.all((labels >= 0) & (labels < num_classes))
    return jnp.where(valid, jnp.mean(jnp.log(predicted)), jnp.nan)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _gaussian_leep(features, labels, key, num_classes, count, num_steps):
    projection = project(features, labels, num_classes)
    energy = jnp.square(projection.values)
    before = (jnp.cumsum(energy) - energy) / jnp.maximum(jnp.sum(energy), 1e-30)
    kept = before < 0.8
    scores = jnp.where(kept[None, :], projection.scores, 0)
    responsibilities = _mixture(scores, kept, key, count, num_steps)
    value = _leep(responsibilities, labels, num_classes)
    return jnp.where(projection.num_left_out == 0, value, jnp.nan)


def _mixture(rows, kept, key, count, num_steps):
    """Responsibilities of a mixture of Gaussians with independent coordinates."""
    n = rows.shape[0]
    spread = jnp.sum(jnp.square(rows), axis=0) / n
    floor = 1e-6 * jnp.max(spread)
    start = rows[jax.random.choice(key, n, (count,), replace=False)]

    def expect(state):
        weights, means, variances = state
        # ||x - m||^2 / v in three products; rows and means are centred.
        inverse = jnp.where(kept[None, :], 1 / variances, 0)
        squares = (
            _matmul(jnp.square(rows), inverse.T)
            - 2 * _matmul(rows, (means * inverse).T)
            + jnp.sum(jnp.square(means) * inverse, axis=1)[None, :]
        )
        volume = jnp.sum(jnp.where(kept[None, :], jnp.log(variances), 0), axis=1)
        logits = jnp.log(weights)[None, :] - 0.5 * (squares + volume[None, :])
        return jax.nn.softmax(logits, axis=1)

    def step(_, state):
        shares = expect(state)
        mass = jnp.sum(shares, axis=0) + 1e-8
        means = _matmul(shares.T, rows) / mass[:, None]
        second = _matmul(shares.T, jnp.square(rows)) / mass[:, None]
        variances = jnp.maximum(second - jnp.square(means), 0) + floor
        return mass / jnp.sum(mass), means, variances

    uniform = jnp.full(count, 1 / count, rows.dtype)
    wide = jnp.broadcast_to((spread / count + floor)[None, :], start.shape)
    state = jax.lax.fori_loop(0, num_steps, step, (uniform, start, wide))
    return expect(state)
