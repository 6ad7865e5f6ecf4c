"""Diagonal linear networks, and the penalty that gradient flow minimises on them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Real

from jaxtheory.batching import check_count, check_number


@dataclasses.dataclass(frozen=True)
class DiagonalNetwork:
    """The network ``f(x) = sum_j (u_j^depth - v_j^depth) x_j``; see `diagonal_network`.

    Attributes:
        depth: Number of layers.
    """

    depth: int

    def init(
        self, num_features: int, *, scale: Real[ArrayLike, ""]
    ) -> dict[str, Float[Array, " d"]]:
        """The unbiased start, ``u = v = scale``, which computes zero.

        Args:
            num_features: Number of inputs ``d``.
            scale: Scale ``alpha`` of the initialisation, positive: small is rich,
                large is a kernel.

        Returns:
            ``{"u": [d], "v": [d]}``.

        Raises:
            ValueError: A number is out of range.
        """
        _check_scale(scale)
        layer = jnp.full(check_count(num_features=num_features), scale, float)
        return {"u": layer, "v": layer}

    def coefficients(self, params: dict[str, Float[Array, " d"]]) -> Float[Array, " d"]:
        """The linear function that the network is, ``beta = u^depth - v^depth``.

        Args:
            params: ``{"u": [d], "v": [d]}``.

        Returns:
            ``beta``.

        Raises:
            ValueError: `params` is another dictionary, or `u` and `v` differ in shape.
        """
        _check_layers(params)
        return params["u"] ** self.depth - params["v"] ** self.depth

    def apply(
        self, params: dict[str, Float[Array, " d"]], x: Float[ArrayLike, "n d"]
    ) -> Float[Array, " n"]:
        """The outputs, as a model: ``apply_fn(params, x)``.

        Args:
            params: ``{"u": [d], "v": [d]}``.
            x: Inputs.

        Returns:
            One output for each input.

        Raises:
            ValueError: As for `coefficients`, or `x` has another number of features.
        """
        beta = self.coefficients(params)
        if jnp.ndim(x) != 2 or jnp.shape(x)[1] != beta.shape[0]:
            raise ValueError(
                f"`x` must be [n, {beta.shape[0]}], with as many features as `params`, "
                f"but has shape {jnp.shape(x)}."
            )
        return jnp.matmul(jnp.asarray(x), beta, precision="highest")


@functools.cache
def _network(depth: int) -> DiagonalNetwork:
    """One object for each depth: its methods are compiled once."""
    return DiagonalNetwork(depth)


def diagonal_network(*, depth: int = 2) -> DiagonalNetwork:
    """Build the diagonal linear network of some depth.

    ``f(x) = <u^depth - v^depth, x>``: linear in `x`, with parameters that make gradient
    flow prefer some interpolations over others. From ``u = v = scale`` and with a
    loss that it can bring to zero it ends in the interpolation of least
    `diagonal_network_penalty`; for depth 2 `kernels.diagonal_network_limit` computes
    that one from the data.

    Args:
        depth: Number of layers, at least 2.

    Returns:
        The network, with methods ``init(num_features, scale=...)``,
        ``apply(params, x)`` and ``coefficients(params)``.

    Raises:
        ValueError: `depth` is no integer of at least 2.

    Example:
        >>> import jax.numpy as jnp
        >>> network = diagonal_network(depth=2)
        >>> params = network.init(3, scale=0.5)
        >>> params["u"] = jnp.array([1.5, 0.5, 0.0])
        >>> network.coefficients(params).tolist()
        [2.0, 0.0, -0.25]
        >>> network.apply(params, jnp.ones((1, 3))).tolist()
        [1.75]

    References:
        Woodworth et al., arXiv:2002.09277, equation 3 and section 5.
    """
    return _network(check_count(depth=depth, at_least=2))


def diagonal_network_penalty(
    coefficients: Float[ArrayLike, " d"],
    *,
    scale: Real[ArrayLike, ""],
    depth: int = 2,
) -> Float[Array, ""]:
    r"""The penalty that gradient flow on a diagonal linear network minimises.

    .. math:: Q(\beta) = \alpha^D \sum_j q(\beta_j / \alpha^D), \quad
        q(z) = \int_0^z h^{-1}

    with ``alpha`` the `scale` and ``D`` the `depth`. For depth 2 ``h = 2 sinh``, so
    that ``q(z) = 2 - sqrt(4 + z^2) + z arcsinh(z / 2)``, the hyperbolic entropy; for
    larger depths ``h(s) = (1 - s)^(-D / (D - 2)) - (1 + s)^(-D / (D - 2))``. Among the
    interpolations gradient flow from ``u = v = alpha`` takes the one of least ``Q``.

    Large scales make it a multiple of the squared ``l2`` norm (a kernel), small ones a
    multiple of the ``l1`` norm (rich): at depth 2 only up to a factor
    ``log(1 / alpha^2)``, hence at exponentially small scales; deeper networks at
    polynomially small ones.

    Jitted, differentiable twice, exact to rounding on both ends.

    Args:
        coefficients: ``beta``.
        scale: Scale ``alpha`` of the initialisation, positive, with ``alpha^D`` no
            smaller than the least number of the dtype (of a traced one that is not,
            the penalty is NaN).
        depth: Number of layers ``D``, at least 2.

    Returns:
        ``Q``.

    Raises:
        ValueError: `coefficients` is no vector of floating-point numbers, `scale` not
            positive or ``alpha^D`` no number of the dtype, or `depth` below 2.

    Example:
        >>> import jax.numpy as jnp
        >>> dense, sparse = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.0])
        >>> for scale in (10.0, 1e-3):  # by l2 norm dense is less, by l1 sparse is
        ...     penalty = [
        ...         diagonal_network_penalty(b, scale=scale) for b in (dense, sparse)
        ...     ]
        ...     print(bool(penalty[0] < penalty[1]))
        True
        False

    References:
        Woodworth et al., arXiv:2002.09277, theorem 1 (depth 2) and theorem 3.
    """
    depth = check_count(depth=depth, at_least=2)
    _check_scale(scale)
    dtype = getattr(coefficients, "dtype", np.result_type(float))
    if jnp.ndim(coefficients) != 1 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "`coefficients` must be a vector [d] of floating-point numbers, but has "
            f"shape {jnp.shape(coefficients)} and dtype {dtype}."
        )
    _check_power(scale, depth, jnp.promote_types(dtype, jnp.float32))
    return _penalty(coefficients, scale, depth)


@functools.partial(jax.jit, static_argnums=2)
def _penalty(coefficients, scale, depth):
    coefficients = jnp.asarray(coefficients)
    dtype = jnp.promote_types(coefficients.dtype, jnp.float32)
    unit = jnp.asarray(scale, dtype) ** depth
    coefficients = coefficients.astype(dtype)
    z = coefficients / unit
    return jnp.sum(
        _two_layers(coefficients, z, unit)
        if depth == 2
        else _deep(coefficients, z, unit, depth)
    )


def _two_layers(coefficients, z, unit):
    # 2 - sqrt(4 + z^2), without the cancellation for small z or the overflow for large.
    root = jnp.sqrt(4 + jnp.minimum(jnp.abs(z), 1e4) ** 2)
    small = -(z * (z / (2 + root)))
    large = 2 - jnp.abs(z)
    root = jnp.where(jnp.abs(z) < 1e4, small, large)
    return unit * root + coefficients * jnp.arcsinh(z / 2)


def _deep(coefficients, z, unit, depth):
    # By the Legendre transform: q(z) = z s - int_0^s h at the s = tanh t with h(s) = z.
    power = 2 / (depth - 2)
    size = jnp.abs(z)
    t = _inverse(depth, size)
    # ((1-s)^-power + (1+s)^-power - 2) / power in terms that do not cancel.
    rest = jnp.expm1(power * _log_cosh(t)) * jnp.cosh(power * t)
    integral = 2 * (rest + 2 * jnp.sinh(power * t / 2) ** 2) / power
    return jnp.abs(coefficients) * jnp.tanh(t) - unit * integral


def _log_cosh(t):
    return jnp.log1p(2 * jnp.sinh(t / 2) ** 2)


def _h(t, depth):
    """``h(tanh t)`` and its derivative, with all digits on both ends."""
    power = depth / (depth - 2)
    log_cosh = _log_cosh(t)
    slope = jnp.exp((power - 1) * log_cosh) * jnp.cosh((power + 1) * t)
    return 2 * jnp.exp(power * log_cosh) * jnp.sinh(power * t), 2 * power * slope


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inverse(depth, z):
    """The ``t >= 0`` with ``h(tanh t) = z``."""
    # At s = 1 - (1 + z)^(-1 / power) h is at least z; from there Newton's method falls
    # monotonically, as h is convex in t.
    log = jnp.log1p(z) * (depth - 2) / depth
    start = (jnp.log1p(-jnp.expm1(-log)) + log) / 2

    def newton(_, t):
        value, slope = _h(t, depth)
        return t - (value - z) / slope

    return jax.lax.fori_loop(0, 30, newton, start)


@_inverse.defjvp
def _inverse_jvp(depth, primals, tangents):
    t = _inverse(depth, *primals)
    return t, tangents[0] / _h(t, depth)[1]


def _check_scale(scale: Any) -> None:
    positive = lambda s: 0 < s < float("inf")
    check_number("scale", scale, positive, "positive and finite")


def _check_power(scale, depth, dtype):
    """Raise where the unit of the coefficients leaves the range of their dtype."""
    # As JAX reads it: without x64 double precision is single.
    info = jnp.finfo(jax.dtypes.canonicalize_dtype(dtype))
    low, high = float(info.tiny) ** (1 / depth), float(info.max) ** (1 / depth)
    if not isinstance(scale, Tracer) and not low <= float(scale) <= high:
        raise ValueError(
            f"`scale` must be from {low:.1e} to {high:.1e} at depth {depth}, so that "
            f"its power is a number in {info.dtype}, but was {scale!r}. Compute in "
            "double precision (`jax.enable_x64`) for more."
        )


def _check_layers(params: Any) -> None:
    shapes = jax.tree.map(jnp.shape, params)
    matches = isinstance(params, dict) and set(params) == {"u", "v"}
    if not matches or shapes["u"] != shapes["v"] or len(shapes["u"]) != 1:
        raise ValueError(
            '`params` must be {"u": [d], "v": [d]}, as `init` makes it, but has shapes '
            f"{shapes}."
        )
