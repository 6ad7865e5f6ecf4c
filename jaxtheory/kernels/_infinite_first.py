"""The first layer with its real initialiser, which no width averages out.

A unit of the first layer is a sum over the inputs' features, of which there are
finitely many: with weights that are not Gaussian it is not Gaussian either, however
wide the network. Units are drawn in pairs, with weights from the initialiser and with
Gaussian ones that are a monotone function of them; the mean difference corrects the
Gaussian kernel, at a fraction of the variance of either.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.kernels._infinite_elementwise import derivative
from jaxtheory.kernels._infinite_values import (
    Base,
    Layout,
    Term,
    base_record,
    correlations,
)

_GROUPS = 32  # their spread is the standard error
_MODES = 12


class FirstLayer(NamedTuple):
    """How units of the first layer are drawn.

    Attributes:
        key: A typed key.
        num_draws: Number of units drawn.
        quantiles: For each parameter that is not Gaussian, by key path, its quantiles
            at equal steps, of mean square 1.
    """

    key: Any
    num_draws: int
    quantiles: Mapping[str, Any]

    def weights(self, path: str, key: Any, shape: tuple[int, ...], dtype: Any):
        """Entries of a parameter of variance 1, and Gaussian ones coupled to them."""
        gaussian = jax.random.normal(key, shape, dtype)
        if path not in self.quantiles:
            return gaussian, gaussian
        table = self.quantiles[path].astype(dtype)
        rank = jax.scipy.special.ndtr(gaussian) * table.size - 0.5
        return jnp.interp(rank, jnp.arange(table.size, dtype=dtype), table), gaussian

    def draws(self, term: Term) -> bool:
        """Whether a term is a function of units that are not Gaussian.

        Args:
            term: The term.

        Returns:
            Whether it has to be corrected.
        """
        paths = (field.key[0].partition("[")[0] for field, _ in term.base.parts)
        return term.function is not None and any(p in self.quantiles for p in paths)

    def correct(self, layout: Layout, term: Term, tangents: Any):
        """Difference that the initialiser makes to the moments of a term.

        Args:
            layout: How covariances lie.
            term: A function of the first layer, and perhaps of others beside it.
            tangents: Tangent kernel of its base.

        Returns:
            The differences by block, and the standard error of that of ``"nngp"``
            (root mean square over its entries).
        """
        rest = _Rest.of(layout, term.base)

        def group(_, index):
            pairs = self._units(term, index)
            slopes = [rest.modes(derivative(term.of), units) for units in pairs]
            values = [rest.modes(term.of, units) for units in pairs]
            found = {b: rest.product(layout, b, values) for b in layout.blocks}
            found["slopes"] = rest.product(layout, "nngp", slopes)
            known = {b: _difference(layout, b, *pairs) for b in layout.blocks}
            return None, (found, known)

        _, (found, known) = jax.lax.scan(group, None, jnp.arange(_GROUPS))
        known["slopes"] = known["nngp"]
        regressed = {name: _regress(found[name], known[name]) for name in found}
        blocks = {name: value for name, (value, _) in regressed.items()}
        blocks["ntk"] = tangents * blocks.pop("slopes")
        return blocks, jnp.sqrt(jnp.mean(regressed["nngp"][1]))

    def mean(self, layout: Layout, term: Term):
        """Difference the initialiser makes to the mean, ``[total, *positions]``."""
        rest = _Rest.of(layout, term.base)

        def group(_, index):
            real, gaussian = self._units(term, index)
            value = lambda units: rest.modes(term.of, units)[..., 0]
            found = jnp.mean(value(real) - value(gaussian), -1)
            return None, (found, jnp.mean(real**2 - gaussian**2, -1))

        _, (found, known) = jax.lax.scan(group, None, jnp.arange(_GROUPS))
        return _regress(found, known)[0]

    def _units(self, term, group):
        """Units of the base, with weights from the initialiser and Gaussian ones."""
        key = jax.random.fold_in(self.key, group)
        total = [0.0, 0.0]
        for index, (field, scale) in enumerate(term.base.parts):
            if field.draw is None:
                continue
            number = -(-self.num_draws // (2 * _GROUPS))
            units = field.draw(jax.random.fold_in(key, index), number)
            scale = scale[..., None] if jnp.ndim(scale) else scale
            total = [t + scale * u for t, u in zip(total, units, strict=True)]
        # Each unit with its mirror image, as likely: odd parts of products cancel.
        return [jnp.concatenate([units, -units], -1) for units in total]


class _Rest(NamedTuple):
    """The deeper layers that a residual sum adds to the first: Gaussian.

    Given the units of the first layer, a function of the sum is expanded in Hermite
    modes of the rest. Few are enough, for they only carry the small difference.

    Attributes:
        deviation: Standard deviation of the rest, ``[total, *positions]``; None if
            there is none.
        correlation: Its correlations by block.
    """

    deviation: Any
    correlation: dict[str, Any]

    @classmethod
    def of(cls, layout, base):
        """The rest of a base."""
        parts = tuple(part for part in base.parts if part[0].draw is None)
        if not parts:
            return cls(None, {})
        record = base_record(layout, Base(parts))
        q = layout.variances(record)
        blocks = {
            b: correlations(getattr(record, b), *layout.sides(b, q, q))
            for b in layout.blocks
        }
        return cls(jnp.sqrt(q), blocks)

    def modes(self, function, units):
        """Modes of a function given the units, ``[total, *positions, m, modes]``."""
        if self.deviation is None:
            return function(units)[..., None]
        points, weights = np.polynomial.hermite_e.hermegauss(2 * _MODES)
        basis = np.polynomial.hermite_e.hermevander(points, _MODES - 1)
        basis /= np.sqrt([math.factorial(k) for k in range(_MODES)])
        basis *= (weights / weights.sum())[:, None]
        points, basis = (jnp.asarray(a, units.dtype) for a in (points, basis))
        shape = np.broadcast_shapes(self.deviation.shape, units.shape[:-1])
        rest = self.deviation[..., None, None] * points.reshape(
            (1,) * units.ndim + (-1,)
        )
        arguments = units[..., None] + rest
        line = arguments.reshape(*shape, units.shape[-1] * points.size)
        values = function(line).reshape(arguments.shape).astype(units.dtype)
        return jnp.matmul(values, basis, precision="highest")

    def product(self, layout, block, pair):
        """Mean product of a function with itself, real less Gaussian."""
        total = 0.0
        for k in range(pair[0].shape[-1]):
            difference = _difference(layout, block, *(modes[..., k] for modes in pair))
            total = total + (
                difference * self.correlation[block] ** k if k else difference
            )
        return total


def _regress(found, known):
    """Mean over groups, less what a quantity of mean zero explains; its variance.

    The second moments of the units themselves are the same for both kinds of weights:
    what their sample moments differ by says much of the error.
    """
    centred = known - jnp.mean(known, 0, keepdims=True)
    spread = jnp.sum(centred**2, 0)
    slope = jnp.sum(centred * found, 0) / jnp.where(spread > 0, spread, 1)
    groups = found - slope[None] * known
    return jnp.mean(groups, 0), jnp.var(groups, 0, ddof=2) / _GROUPS


def _difference(layout, block, real, gaussian):
    """Mean product over units of one block, real less Gaussian."""

    def product(units):
        rows, columns = layout.split(units)
        rows = columns if block == "cov2" else rows
        columns = rows if block == "cov1" else columns
        spatial = range(units.ndim - 2)
        left = [3 + s for s in spatial]
        right = left if layout.diagonal else [20 + s for s in spatial]
        pairs = left
        if not layout.diagonal:
            pairs = [axis for pair in zip(left, right, strict=True) for axis in pair]
        first, second = (0, 1) if block == "nngp" else (0, 0)
        batch = [0, 1] if block == "nngp" else [0]
        return jnp.einsum(
            *(rows, [first, *left, 2]),
            *(columns, [second, *right, 2]),
            [*batch, *pairs],
            precision="highest",
        )

    return (product(real) - product(gaussian)) / real.shape[-1]
