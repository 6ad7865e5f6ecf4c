"""Null models of a path: what a measurement of it would be without any geometry."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key
from jaxtheory.dynamics.topology._checks import as_points


def sign_flipped(
    points: Float[ArrayLike, "r d"], *, key: KeyArray
) -> Float[Array, "r d"]:
    r"""Draw null A of a path: its increments, each times an independent random sign.

    .. math:: x_t = \sum_{u < t} s_u \, (w_{u+1} - w_u), \quad s_u = \pm 1

    It keeps the length and the axis of every step, and destroys drift and the
    correlation of successive steps. `measure_path` draws it by itself; here it is for
    measures of your own.

    Args:
        points: Successive points of the path, one a row.
        key: Random key, for the signs.

    Returns:
        A path of as many points, from the origin.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> path = jnp.array([[0.0], [1.0], [3.0], [7.0]])
        >>> null = sign_flipped(path, key=jax.random.key(0))
        >>> jnp.abs(jnp.diff(null[:, 0])).tolist()
        [1.0, 2.0, 4.0]
    """
    check_key(key)
    points = as_points(points, at_least=2)
    steps = jnp.diff(points, axis=0)
    signs = jax.random.rademacher(key, (steps.shape[0], 1), points.dtype)
    walk = jnp.cumsum(signs * steps, axis=0)
    return jnp.concatenate([jnp.zeros_like(points[:1]), walk])


def ornstein_uhlenbeck(
    points: Float[ArrayLike, "r d"], *, key: KeyArray
) -> tuple[Float[Array, "r d"], Float[Array, ""]]:
    r"""Draw null B of a path: a stationary OU process, sampled once a point.

    .. math:: x_{t+1} = \phi x_t + \sqrt{1 - \phi^2} \, \sigma \odot \xi_t, \quad
        \phi = \frac{2 \sum_t \langle c_t, c_{t+1} \rangle}
                    {\sum_t |c_t|^2 + |c_{t+1}|^2}

    with ``c`` the path minus its mean over records, ``sigma_j^2`` the variance
    (``1/r``) of its coordinate j, ``xi`` standard normal and ``x_0 = sigma xi``. One
    ``phi`` is pooled over all coordinates (Burg's estimator, in [-1, 1]). Where
    ``phi`` is so near 1 that the process relaxes over more than the window, a drawn
    path spans less than the given one.

    Args:
        points: Successive points of the path, one a row.
        key: Random key, for the noise.

    Returns:
        A path of as many points around the origin, and ``1 - phi``.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> path = jnp.array([[1.0], [0.0], [1.0], [0.0]])
        >>> null, decay = ornstein_uhlenbeck(path, key=jax.random.key(0))
        >>> null.shape, float(decay)  # each point is minus the one before
        ((4, 1), 2.0)
    """
    check_key(key)
    points = as_points(points, at_least=2)
    centred = points - jnp.mean(points, axis=0, keepdims=True)
    squares = jnp.sum(centred**2, axis=1)
    # 1 - phi from the steps themselves: of a slow path, phi is 1 to all digits.
    decay = jnp.sum(jnp.diff(points, axis=0) ** 2)
    decay = decay / (jnp.sum(squares[1:]) + jnp.sum(squares[:-1]))
    noise = jax.random.normal(key, points.shape, points.dtype)
    noise = noise * jnp.sqrt(jnp.mean(centred**2, axis=0, keepdims=True))
    scale = jnp.sqrt(decay * (2 - decay))

    def advance(x, kick):
        x = x - decay * x + scale * kick
        return x, x

    path = jax.lax.scan(advance, noise[0], noise[1:])[1]
    return jnp.concatenate([noise[:1], path]), decay


def distances_along(path: Float[Array, "r d"]) -> Float[Array, "r r"]:
    r"""Compute the distances of a path's points from the inner products of its steps.

    .. math:: |x_{t+1} - x_s|^2 - |x_t - x_s|^2
        = 2 \sum_{u=s}^{t-1} \langle \delta_u, \delta_t \rangle + |\delta_t|^2, \quad
        \delta_t = x_{t+1} - x_t

    One matrix product: seven times faster than `pairwise_distances` at d = 1,024. Its
    sums start on the diagonal, so that near points of the path keep their digits,
    which a Gram matrix of the points would lose; but where the path comes back to its
    places, an error of ``sqrt(eps)`` of the way it went is left. Trees of the nulls of
    six paths had their length to .3 %: enough for a null, not for the path itself.
    """
    steps = jnp.diff(path, axis=0)
    products = jnp.matmul(steps, steps.T, precision="highest")
    along = jax.lax.cumsum(jnp.triu(products, 1), axis=0, reverse=True)
    growth = jnp.triu(2 * along + jnp.diag(products)[None, :])
    squares = jnp.pad(jax.lax.cumsum(growth, axis=1), ((0, 1), (1, 0)))
    return jnp.sqrt(jnp.maximum(squares + squares.T, 0))
