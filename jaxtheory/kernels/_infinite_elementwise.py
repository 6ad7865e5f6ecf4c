"""Gaussian expectations of elementwise functions, whatever they are.

For jointly Gaussian ``u, v`` with variances ``q, r`` and correlation ``rho``,

    E[f(u) g(v)] = sum_k a_k(q) b_k(r) rho^k,    a_k(q) = E[f(sqrt(q) z) h_k(z)],

with ``z`` standard normal and ``h_k`` the normalised Hermite polynomials (Mehler's
formula). The coefficients are integrals in one dimension for each example, and a pair
of examples costs one polynomial: no two-dimensional quadrature.

Daniely, Frostig, Singer, arXiv:1602.05897, section 4 (dual activations).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from scipy.special import erf, erfinv, ndtr

from jaxtheory.kernels._neural_tangents import neural_tangents

# Of tanh at variance 1 this many modes leave 5e-15 of the second moment, 5e-13 of that
# of its derivative; at variance 10, 1e-5 and 7e-4.
_MODES = 128
_REACH = 13.0  # standard deviations: beyond them the weight is below 1e-36
_PANELS = 52  # one ends at zero, where functions have their kinks
_POINTS = 8  # Gauss-Legendre points in a panel


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``[m]``, and the matrix ``[m, modes]`` that gives Hermite coefficients."""
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    edges, width = np.linspace(-_REACH, _REACH, _PANELS + 1, retstep=True)
    nodes = (edges[:-1, None] + width * (points + 1) / 2).ravel()
    density = np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    polynomials = [np.ones_like(nodes), nodes]
    for k in range(1, _MODES - 1):
        last, this = polynomials[-2:]
        polynomials.append((nodes * this - math.sqrt(k) * last) / math.sqrt(k + 1))
    matrix = np.stack(polynomials, 1) * (np.tile(weights, _PANELS) * density)[:, None]
    return nodes, matrix * width / 2


class Expansion(NamedTuple):
    """A function of ``sqrt(q) z`` in Hermite modes.

    Attributes:
        modes: The coefficients, on the last axis.
        rest: Roots of the second moments that higher even and odd modes have.
        moment: Second moment of the function.
    """

    modes: Any
    rest: tuple[Any, Any]
    moment: Any

    def tail(self):
        """Largest share of the second moment that lies beyond the modes kept."""
        missing = self.rest[0] ** 2 + self.rest[1] ** 2
        share = jnp.where(self.moment > 0, missing / self.moment, 0)
        return jnp.max(share, initial=0)


def expand(function: Callable[[Any], Any], variance: Any) -> Expansion:
    """Expand a function of Gaussians in Hermite modes.

    Args:
        function: Elementwise; called on ``[..., m]`` with examples and positions
            leading.
        variance: Variances ``q``, shape ``[...]``.

    Returns:
        The expansion, arrays with the leading axes of `variance`.
    """
    nodes, matrix = (jnp.asarray(a, variance.dtype) for a in _rule())
    line = nodes.reshape((1,) * variance.ndim + (-1,))
    values = function(jnp.sqrt(variance)[..., None] * line)
    values = jnp.broadcast_to(values, (*variance.shape, nodes.size))
    values = values.astype(variance.dtype)
    modes = jnp.matmul(values, matrix, precision="highest")
    mirrored = values[..., ::-1]  # the nodes are symmetric
    parts = [(values + mirrored) / 2, (values - mirrored) / 2]
    moments = [jnp.matmul(part**2, matrix[:, 0], precision="highest") for part in parts]
    kept = [jnp.sum(modes[..., parity::2] ** 2, -1) for parity in (0, 1)]
    # What rounding alone leaves is none.
    noise = 50 * jnp.finfo(variance.dtype).eps * sum(moments)
    missing = (m - k for m, k in zip(moments, kept, strict=True))
    even, odd = (jnp.sqrt(jnp.where(m > noise, m, 0)) for m in missing)
    return Expansion(modes, (even, odd), sum(moments))


def derivative(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The derivative of an elementwise function, as automatic differentiation has it.

    Args:
        function: Elementwise.

    Returns:
        Its derivative; zero where it has integer values.
    """

    def slope(z):
        values, tangents = jax.jvp(function, (z,), (jnp.ones_like(z),))
        floating = jnp.issubdtype(values.dtype, jnp.floating)
        return tangents if floating else jnp.zeros_like(z)

    return slope


def expectation(left: Expansion, right: Expansion, correlation: Any) -> Any:
    """``E[f(u) g(v)]`` of two expansions.

    What lies beyond the modes kept is put at the next two powers, which makes the
    expectation of one function with itself exact at correlations 1 and -1.

    Args:
        left: Expansion of ``f``; its axes broadcast against `correlation`.
        right: Expansion of ``g``, likewise.
        correlation: Correlations of the arguments.

    Returns:
        The expectations, shape of `correlation`.
    """
    rest = [a * b for a, b in zip(left.rest, right.rest, strict=True)]
    start = rest[0] + rest[1] * correlation  # _MODES is even: the next mode is even

    def step(total, modes):
        a, b = modes
        return total * correlation + a * b, None

    modes = (jnp.moveaxis(side.modes, -1, 0) for side in (left, right))
    total, _ = jax.lax.scan(step, start, tuple(modes), reverse=True)
    return total


# Where a function is held against a closed form, and where one is read off.
_STEP = 0.25
_READ = (
    -1.0,
    0.5,
    1.0,
    100.0,
    *(s + h for s in (0.0, 1.0) for h in (-_STEP, 0, _STEP)),
)
_GRID = np.concatenate(
    [
        np.linspace(-6, 6, 1201),
        *(s * np.geomspace(1e-4, 1e-2, 9) for s in (-1, 1)),
        [-30.0, 30.0],
    ]
)


def closed_form(
    function: Callable[[Any], Any], rank: int
) -> Callable[[Any, dict[str, Any]], Any] | None:
    """The kernel rule of a function that has one in closed form.

    The function is recognised by its values, however it was written: two functions
    that agree to rounding have the same kernel to rounding. Polynomials are not here:
    their Hermite expansions are finite, and exact.

    Args:
        function: Elementwise.
        rank: Number of axes of the arrays that it takes.

    Returns:
        ``rule(record, lengths) -> record``, where `lengths` has the roots of products
        of variances for each block of covariances; None if no closed form is known.
    """
    # Constants are as precise as the model; the rest is not to add to their rounding.
    eps = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
    points = np.concatenate([_READ, _GRID]).reshape((1,) * (rank - 1) + (-1,))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        result = jax.jit(function)(jnp.asarray(points))
    if isinstance(result, Tracer):  # it depends on the example
        return None
    values = np.ravel(np.asarray(result)).astype(float)
    read = dict(zip(_READ, values, strict=False))
    values = values[len(_READ) :]
    if not np.all(np.isfinite(values[np.abs(_GRID) <= 6])):
        return None
    for guess in (_piecewise_linear, _erf, _gelu, _sine, _exponential, _sign):
        found = guess(read)
        if found is None:
            continue
        kernel, candidate, reach = found
        chosen = np.abs(_GRID) <= reach
        expected = candidate(_GRID[chosen])
        unit = np.max(np.abs(expected[np.abs(_GRID[chosen]) <= 1]))
        close = np.abs(values[chosen] - expected) <= 32 * eps * (abs(expected) + unit)
        if np.all(close):
            return kernel
    return None


def _stax():
    return neural_tangents().stax


def _layer(layer, factor=1.0):
    """The rule of a neural-tangents layer, times a number."""
    return lambda record, _: layer[2](record) * factor


def _piecewise_linear(read):
    """Slopes ``a`` and ``b`` left and right of zero: relu, leaky relu, abs.

    Our own rule: compiled, that of neural-tangents takes ``q q - k k`` with a fused
    multiplication, and is off by 1e-8 where both are equal.
    """
    a, b = -read[-1.0], read[1.0]
    even, bend = (a**2 + b**2) / 2, (a - b) ** 2 / (2 * math.pi)

    def rule(record, lengths):
        blocks = {}
        for block, length in lengths.items():
            covariance = getattr(record, block)
            sine = jnp.sqrt(jnp.maximum(length - abs(covariance), 0))
            sine = sine * jnp.sqrt(length + abs(covariance))
            angle = jnp.arctan2(sine, covariance)
            # Of a zero input, on both sides of the kink at once.
            angle = jnp.where(length > 0, angle, math.pi / 2)
            slope = even - bend * angle
            blocks[block] = bend * sine + slope * covariance
            if block == "nngp":
                blocks["ntk"] = slope * record.ntk
        return record.replace(is_gaussian=False, **blocks)

    shape = lambda z: a * np.minimum(z, 0) + b * np.maximum(z, 0)
    return rule, shape, np.inf


def _erf(read):
    """``a erf(b z)``."""
    a, half = read[100.0], read[0.5]
    if not 0 < abs(half) < abs(a) or half / a < 0:
        return None
    b = 2 * float(erfinv(half / a))
    return _layer(_stax().Erf(a, b)), lambda z: a * erf(b * z), np.inf


def _gelu(read):
    """``a z Phi(z)``, the exact one; its tanh approximation is integrated."""
    a = read[1.0] / float(ndtr(1))
    return _layer(_stax().Gelu(), a), (lambda z: a * z * ndtr(z)), np.inf


def _sine(read):
    """``a sin(b z + c)``, from second differences ``-4 sin(b h / 2)^2``."""
    start = 0.0 if abs(read[0.0]) > abs(read[1.0]) else 1.0
    below, here, above = (read[start + h] for h in (-_STEP, 0, _STEP))
    square = (2 * here - above - below) / (4 * here) if here else 0.0
    if not 0 < square < 1:
        return None
    b = 2 * math.asin(math.sqrt(square)) / _STEP
    sine = read[0.0]
    cosine = (read[_STEP] - read[-_STEP]) / (2 * math.sin(b * _STEP))
    a, c = math.hypot(cosine, sine), math.atan2(sine, cosine)
    return _layer(_stax().Sin(a, b, c)), lambda z: a * np.sin(b * z + c), 6.0


def _exponential(read):
    """``a exp(b z)``."""
    a, one = read[0.0], read[1.0]
    if not a or one / a <= 0:
        return None
    b = math.log(one / a)
    return _layer(_stax().Exp(a, b)), lambda z: a * np.exp(b * z), 6.0


def _sign(read):
    """``a sign(z)``."""
    a = read[1.0]
    return _layer(_stax().Sign(), a), (lambda z: a * np.sign(z)), np.inf
