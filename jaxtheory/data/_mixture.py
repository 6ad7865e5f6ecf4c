"""Classes that are Gaussian clouds at the corners of a simplex."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key
from jaxtheory.data._checks import check_count, check_range


class GaussianMixture(NamedTuple):
    """A Gaussian mixture with known means and Bayes error.

    Attributes:
        x_train: Training inputs.
        y_train: Training labels, int32.
        x_test: Test inputs, independent of the training examples.
        y_test: Test labels.
        num_classes: Number ``k`` of classes.
        means: Class means, which average to zero.
        bayes_error: Probability that the best classifier (nearest mean) errs.
    """

    x_train: Float[Array, "n d"]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Int[Array, " m"]
    num_classes: int
    means: Float[Array, "k d"]
    bayes_error: Float[Array, ""]


def gaussian_mixture(
    *,
    num_classes: int,
    dim: int,
    num_train: int,
    num_test: int,
    separation: float | Float[Array, ""],
    noise: float | Float[Array, ""] = 1.0,
    key: KeyArray,
) -> GaussianMixture:
    r"""Draw classes with isotropic Gaussian noise around the corners of a simplex.

    Examples are independent draws: a label :math:`y` uniform over the classes (class
    counts vary), then :math:`x = \mu_y + \sigma z` with standard normal :math:`z`. Any
    two means are the same distance :math:`\Delta` apart; they average to zero and are
    turned by a uniformly random rotation.

    The Bayes error depends on :math:`a = \Delta / (\sqrt 2 \sigma)` alone, as for
    orthogonal signals of equal energy, and is computed by quadrature:

    .. math::
        \int \phi(t) \left[1 - \Phi(t + a)^{k-1}\right] dt,

    which is :math:`\Phi(-\Delta / 2\sigma)` for two classes.

    Args:
        num_classes: Number of classes ``k``, at least 2.
        dim: Input dimension, at least ``k - 1``.
        num_train: Number of training examples.
        num_test: Number of test examples.
        separation: Distance :math:`\Delta` between any two means.
        noise: Standard deviation :math:`\sigma` of each coordinate within a class.
        key: Random key. Test examples do not depend on `num_train`.

    Returns:
        The data set.

    Raises:
        ValueError: A size is too small, `separation` is negative or `noise` is not
            positive.

    Example:
        >>> import jax
        >>> from jaxtheory import data
        >>> mixture = data.gaussian_mixture(
        ...     num_classes=2,
        ...     dim=20,
        ...     num_train=100,
        ...     num_test=1000,
        ...     separation=2.0,
        ...     key=jax.random.key(0),
        ... )
        >>> print(f"{mixture.bayes_error:.4f}")
        0.1587
    """
    check_key(key)
    check_count(2, num_classes=num_classes)
    check_count(num_train=num_train, num_test=num_test)
    if not isinstance(dim, int) or dim < num_classes - 1:
        raise ValueError(
            "`dim` must be at least `num_classes - 1`, for a simplex to fit, but was "
            f"{dim!r} for {num_classes} classes."
        )
    check_range("separation", separation, positive=False)
    check_range("noise", noise, positive=True)
    key_means, key_train, key_test = jax.random.split(key, 3)
    means = separation * _simplex(num_classes, dim, key_means)
    x_train, y_train = _sample(means, noise, num_train, key_train)
    x_test, y_test = _sample(means, noise, num_test, key_test)
    error = _bayes_error(separation / noise, num_classes)
    return GaussianMixture(x_train, y_train, x_test, y_test, num_classes, means, error)


def _simplex(num_classes, dim, key):
    """Corners at distance 1 of each other, centred, in a random orientation."""
    corners = (jnp.eye(num_classes) - 1 / num_classes) / jnp.sqrt(2.0)
    # Helmert's contrasts: an orthonormal basis of the space that the corners span.
    rows = jnp.arange(1, num_classes)[:, None]
    columns = jnp.arange(num_classes)[None]
    below = (columns < rows) - rows * (columns == rows)
    basis = below / jnp.sqrt(rows * (rows + 1.0))
    rotation = jax.random.orthogonal(key, num_classes - 1, m=dim)
    dot = lambda a, b: jnp.matmul(a, b, precision="highest")
    return dot(dot(corners, basis.T), rotation)


def _sample(means, noise, num_examples, key):
    """Labels uniform over classes, inputs around their means."""
    key_labels, key_noise = jax.random.split(key)
    num_classes, dim = means.shape
    y = jax.random.randint(key_labels, (num_examples,), 0, num_classes, jnp.int32)
    return means[y] + noise * jax.random.normal(key_noise, (num_examples, dim)), y


def _bayes_error(ratio, num_classes):
    """Trapezoidal rule, which converges faster than any power for this integrand."""
    a = ratio / jnp.sqrt(2.0)
    # Most errors happen near t = -a / 2; nine standard deviations to either side.
    start, stop = -a / 2 - 9.0, 9.0
    t = start + (stop - start) * jnp.linspace(0.0, 1.0, 2_001)
    # Through the tail beyond t + a: its complement rounds to one, and the logarithm
    # of that to zero, where errors are rare.
    one_rival = jax.scipy.special.ndtr(-(t + a))
    wrong = -jnp.expm1((num_classes - 1) * jnp.log1p(-one_rival))
    return jnp.trapezoid(jax.scipy.stats.norm.pdf(t) * wrong, t)
