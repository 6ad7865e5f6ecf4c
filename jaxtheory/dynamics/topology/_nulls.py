"""Null models of a path: what a measurement of it would be without any geometry."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key


def sign_flipped(points: Float[Array, "r d"], *, key: KeyArray) -> Float[Array, "r d"]:
    """Draw null A: the path's increments, each times an independent random sign.

    It keeps the length and the axis of every step, and destroys drift and the
    correlation of successive steps.
    """
    check_key(key)
    steps = jnp.diff(points, axis=0)
    signs = jax.random.rademacher(key, (steps.shape[0], 1), points.dtype)
    walk = jnp.cumsum(signs * steps, axis=0)
    return jnp.concatenate([jnp.zeros_like(points[:1]), walk])


def ornstein_uhlenbeck(
    points: Float[Array, "r d"], *, key: KeyArray
) -> tuple[Float[Array, "r d"], Float[Array, ""]]:
    r"""Draw null B: a stationary OU process, sampled once a record, fitted to the path.

    .. math:: x_{t+1} = \phi x_t + \sqrt{1 - \phi^2} \, \sigma \odot \xi_t, \quad
        \phi = \frac{2 \sum_t \langle c_t, c_{t+1} \rangle}
                    {\sum_t |c_t|^2 + |c_{t+1}|^2}

    with ``c`` the path minus its mean over records, ``sigma_j^2`` the variance
    (``1/r``) of its coordinate j, ``xi`` standard normal and ``x_0 = sigma xi``. One
    ``phi`` is pooled over all coordinates (Burg's estimator, in [-1, 1]). Where
    ``phi`` is so near 1 that the process relaxes over more than the window, a drawn
    path spans less than the given one.

    Returns:
        The drawn path, and ``1 - phi``.
    """
    check_key(key)
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
