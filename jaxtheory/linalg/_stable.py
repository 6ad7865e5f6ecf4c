"""Random variables of stable laws, with explicit keys."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number


def stable(
    key: KeyArray,
    alpha: float | Real[Array, ""],
    shape: tuple[int, ...] = (),
    *,
    dtype: jnp.dtype | type = jnp.float32,
) -> Float[Array, "..."]:
    r"""Draw independent symmetric alpha-stable numbers.

    Their characteristic function is ``exp(-|t|^alpha)``: variance 2 at ``alpha=2``
    (not 1), the standard Cauchy law at ``alpha=1``. By Chambers, Mallows and Stuck,

    .. math:: X = \frac{\sin \alpha U}{(\cos U)^{1/\alpha}}
        \left( \frac{\cos (1 - \alpha) U}{W} \right)^{(1 - \alpha) / \alpha}

    with ``U`` uniform on ``(-pi/2, pi/2)`` and ``W`` exponential.

    Args:
        key: Random key.
        alpha: Tail index in ``(0, 2]``; may be traced, and out of range makes all
            numbers NaN there.
        shape: Shape of the result.
        dtype: Floating-point type of the result. Below ``alpha = 0.2`` or so single
            precision overflows to infinity.

    Returns:
        The numbers.

    Raises:
        ValueError: `key` is no key, `alpha` is not in ``(0, 2]``, `shape` is none, or
            `dtype` is not single or double precision.

    Example:
        >>> import jax, numpy as np
        >>> x = stable(jax.random.key(0), 1.0, (1001,))
        >>> bool(abs(np.median(np.abs(x)) - 1) < 0.2)  # quartiles of Cauchy: -1 and 1
        True

    References:
        Chambers, Mallows & Stuck, JASA 71 (1976); Weron, Statist. Probab. Lett. 28
        (1996), theorem 3.1.
    """
    check_key(key)
    _check_alpha(alpha)
    alpha = jnp.asarray(alpha, _check_dtype(dtype))
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    sizes = tuple(check_count(at_least=0, shape=size) for size in sizes)
    return _stable(key, alpha, sizes)


def isotropic_stable(
    key: KeyArray,
    alpha: float | Real[Array, ""],
    num: int,
    dimension: int,
    *,
    dtype: jnp.dtype | type = jnp.float32,
) -> Float[Array, "num dimension"]:
    r"""Draw independent vectors of a rotation-invariant alpha-stable law.

    .. math:: X = \sqrt{2 \phi} \, G, \quad
        \mathbb{E} e^{-s \phi} = e^{-s^{\alpha/2}}, \quad
        \mathbb{E} e^{i \langle t, X \rangle} = e^{-|t|^\alpha}

    with ``G`` standard normal and ``phi`` positive stable, drawn by Kanter's formula.
    One ``phi`` a vector: its entries are dependent. Each entry alone has the law of
    `stable`, variance 2 at ``alpha=2``.

    Args:
        key: Random key.
        alpha: As for `stable`.
        num: Number of vectors.
        dimension: Their dimension.
        dtype: As for `stable`.

    Returns:
        One vector a row.

    Raises:
        ValueError: As for `stable`, or a size is not a positive integer.

    Example:
        >>> import jax
        >>> isotropic_stable(jax.random.key(0), 1.5, 4, 3).shape
        (4, 3)

    References:
        Kanter, Ann. Probab. 3 (1975), corollary 4.1; Samorodnitsky & Taqqu, Stable
        Non-Gaussian Random Processes (1994), proposition 2.5.2.
    """
    check_key(key)
    _check_alpha(alpha)
    size = check_count(num=num), check_count(dimension=dimension)
    return _isotropic(key, jnp.asarray(alpha, _check_dtype(dtype)), size)


@functools.partial(jax.jit, static_argnums=2)
def _stable(key, alpha, shape):
    key_angle, key_sign, key_exponential = jax.random.split(key, 3)
    # The distance from the ends of the interval, where the tail is, keeps its digits.
    distance = 0.5 * jnp.pi * _fine_uniform(key_angle, shape, alpha.dtype)
    angle = 0.5 * jnp.pi - distance
    sign = jax.random.rademacher(key_sign, shape, alpha.dtype)
    exponential = -jnp.log1p(-_fine_uniform(key_exponential, shape, alpha.dtype))
    alpha = _in_range(alpha)
    power = (1 - alpha) / alpha
    # Both factors are near 0 at the end if alpha is near 2: there, from the end.
    from_end = (1 - 0.5 * alpha) * jnp.pi
    sine = jnp.where(
        alpha > 1, jnp.sin(from_end + alpha * distance), jnp.sin(alpha * angle)
    )
    cosine = jnp.where(
        alpha > 1,
        jnp.sin(from_end + (alpha - 1) * distance),
        jnp.cos((1 - alpha) * angle),
    )
    log_size = -jnp.log(jnp.sin(distance)) / alpha
    log_size += power * (jnp.log(cosine) - jnp.log(exponential))
    return sign * sine * jnp.exp(log_size)


@functools.partial(jax.jit, static_argnums=2)
def _isotropic(key, alpha, size):
    key_scale, key_direction = jax.random.split(key)
    alpha = _in_range(alpha)
    half_log = 0.5 * (jnp.log(2.0) + _log_positive(key_scale, alpha / 2, size[:1]))
    normal = jax.random.normal(key_direction, size, alpha.dtype)
    return jnp.exp(half_log.astype(alpha.dtype))[:, None] * normal


def _log_positive(key, b, shape):
    """Logarithms of positive stable numbers, with Laplace transform exp(-s^b)."""
    key_angle, key_exponential = jax.random.split(key)
    u = _fine_uniform(key_angle, shape, b.dtype)
    exponential = -jnp.log1p(-_fine_uniform(key_exponential, shape, b.dtype))
    # Kanter's angle is pi (1 - u). Sines near pi are taken from the other end.
    log_sine = lambda z, rest: jnp.log(jnp.sin(jnp.pi * jnp.minimum(z, rest)))
    whole = log_sine(1 - u, u)
    inner = log_sine(b * (1 - u), 1 - b + b * u)
    outer = log_sine((1 - b) * (1 - u), b + (1 - b) * u)
    power = (1 - b) / b
    # At b = 1 the last factor is 0 to the power 0.
    last = jnp.where(b < 1, power * (outer - jnp.log(exponential)), 0)
    return inner - whole / b + last


def _fine_uniform(key, shape, dtype):
    """Uniform numbers in (0, 1) that are fine near 0.

    One draw has spacing `eps`, which would end the tail of 1e7 numbers too early.
    """
    key_coarse, key_fine = jax.random.split(key)
    eps = jnp.finfo(dtype).eps
    coarse = jax.random.uniform(key_coarse, shape, dtype)
    both = coarse + eps * jax.random.uniform(key_fine, shape, dtype)
    return jnp.clip(both, eps**2 / 2, 1 - eps / 2)


def _check_alpha(alpha):
    check_number("alpha", alpha, lambda a: 0 < a <= 2, "a number in (0, 2]")


def _in_range(alpha):
    """The index; NaN where a traced one is out of range."""
    return jnp.where((alpha > 0) & (alpha <= 2), alpha, jnp.nan)


def _check_dtype(dtype):
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"`dtype` must be single or double precision, but was {dtype!r}."
        )
    return dtype
