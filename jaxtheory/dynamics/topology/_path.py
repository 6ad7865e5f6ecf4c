"""A recorded path as a curve: how long it is, and how far it went."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxtheory.dynamics.topology._checks import as_points, check_metric
from jaxtheory.dynamics.topology._distances import root


def path_length(
    points: Float[ArrayLike, "r d"], *, metric: str = "euclidean"
) -> Float[Array, ""]:
    r"""Measure the length of the polygon through successive points.

    .. math:: L = \sum_{t=1}^{r-1} \rho(w_t, w_{t-1})

    a sum over steps, not a mean. Of a trained path it grows with the number of points
    that were recorded; sum the traced ``step_length`` for the length of every step.

    Args:
        points: Successive points, one a row; for ``"loss"`` the loss vectors.
        metric: The word ``"euclidean"``, or ``"loss"`` for the mean absolute
            difference of `loss_distances`.

    Returns:
        The length; 0 for one point. The gradient in a step of zero is zero.

    Raises:
        ValueError: `points` is not a non-empty matrix of floating-point numbers, or
            `metric` is another word.

    Example:
        >>> import jax.numpy as jnp
        >>> path = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
        >>> float(path_length(path)), float(path_length(path, metric="loss"))
        (10.0, 7.0)
    """
    points = as_points(points, at_least=1)
    check_metric(metric)
    steps = jnp.diff(points, axis=0)
    if metric == "loss":
        return jnp.sum(jnp.mean(jnp.abs(steps), axis=1))
    return jnp.sum(root(jnp.sum(steps**2, axis=1)))


def displacement(points: Float[ArrayLike, "r d"]) -> Float[Array, ""]:
    """Measure how far the last point is from the first, in Euclidean norm.

    Args:
        points: Successive points, one a row.

    Returns:
        The distance; over `path_length` it is 1 for a straight path.

    Raises:
        ValueError: `points` is not a non-empty matrix of floating-point numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> float(displacement(jnp.array([[0.0, 0.0], [9.0, 9.0], [3.0, 4.0]])))
        5.0
    """
    points = as_points(points, at_least=1)
    return jnp.linalg.norm(points[-1] - points[0])
