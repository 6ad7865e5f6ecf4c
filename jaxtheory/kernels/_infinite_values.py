"""What flows through a network of infinite width: known arrays and random fields.

An activation is a sum of terms. A term is an elementwise function of one *base*, and a
base is a sum of independent Gaussian fields times known coefficients: the outputs of
layers with weights of their own. So the branches of a residual sum stay correlated
exactly where they share fields.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Refusal(ValueError):
    """What has no limit here; the walk adds the name of the layer."""


class NeedsPositions(Exception):
    """A step needs covariances between positions, not only at each of them."""


class Layout(NamedTuple):
    """How examples and positions lie in the arrays of a kernel record.

    Attributes:
        rows: Examples ``n1``, the first ones on the leading axis of known arrays.
        columns: Examples ``n2`` after them; None if they are the rows again.
        diagonal: Whether covariances are kept at equal positions alone.
        same: Which rows and columns are the same example, ``[n1, n2]``; None if none.
    """

    rows: int
    columns: int | None
    diagonal: bool
    same: Any = None

    @property
    def total(self) -> int:
        """Number of examples on the leading axis of known arrays."""
        return self.rows + (self.columns or 0)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The covariances that a record has: rows by columns, and each one's own."""
        return ("nngp", "cov1") if self.columns is None else ("nngp", "cov1", "cov2")

    def split(self, array: Any) -> tuple[Any, Any]:
        """The rows' and the columns' part of an array ``[total or 1, ...]``."""
        if array.shape[0] == 1 or self.columns is None:
            return array, array
        return array[: self.rows], array[self.rows :]

    def sides(self, block: str, first: Any, second: Any = None) -> tuple[Any, Any]:
        """Two arrays ``[total or 1, *positions]``, shaped to index that block.

        Args:
            block: Its name.
            first: What the left factor of a covariance has.
            second: What the right one has; None for the same.

        Returns:
            Arrays whose product broadcasts to the block.
        """
        second = first if second is None else second
        rows, columns = self.split(first)[0], self.split(second)[1]
        if block == "cov1":
            columns = self.split(second)[0]
        elif block == "cov2":
            rows = self.split(first)[1]
        positions = range(first.ndim - 1)
        pair = block == "nngp"
        left = [rows.shape[0], *([1] if pair else [])]
        right = [*([1] if pair else []), columns.shape[0]]
        for axis in positions:
            a, b = rows.shape[1 + axis], columns.shape[1 + axis]
            left += [a] if self.diagonal else [a, 1]
            right += [b] if self.diagonal else [1, b]
        return rows.reshape(left), columns.reshape(right)

    def variances(self, record: Any) -> Any:
        """The variance at each example and position, ``[total, *positions]``."""
        parts = [record.cov1] + ([] if self.columns is None else [record.cov2])
        if not self.diagonal:
            for _ in range((record.cov1.ndim - 1) // 2):
                # Each step takes one pair of axes and puts its diagonal last.
                parts = [jnp.diagonal(part, axis1=1, axis2=2) for part in parts]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


class Known(NamedTuple):
    """An array that depends on inputs and constants alone, broadcast only when needed.

    Attributes:
        array: The array, with ones for axes along which it is constant.
        shape: The shape that it stands for.
        by_example: Whether it depends on the inputs, with examples on axis 0.
    """

    array: Any
    shape: tuple[int, ...]
    by_example: bool = False

    def full(self) -> Any:
        """The array in the shape that it stands for."""
        return jnp.broadcast_to(self.array, self.shape)

    def is_concrete(self) -> bool:
        """Whether its values are known while the model is traced."""
        return not isinstance(self.array, Tracer)

    def is_zero(self) -> bool:
        """Whether it is known to be zero while the model is traced."""
        return self.is_concrete() and not np.any(np.asarray(self.array))


class Weight(NamedTuple):
    """A parameter on its way to the layer that it belongs to.

    Attributes:
        path: Its key path.
        factor: What it was multiplied by.
        sizes: Sizes of its axes, ones where it is broadcast.
        shape: The shape that it stands for.
        part: Which slice of the parameter it is, of those stacked for a scan.
    """

    path: str
    factor: float
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    part: str = ""

    @property
    def root(self) -> str:
        """What names the draws that it consists of."""
        return self.path + self.part


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """Independent Gaussians with weights of their own.

    Attributes:
        record: Its covariances and tangent kernel, a neural-tangents ``Kernel``.
        key: Whose weights, and what happened to their outputs since. Fields with one
            key are the same; with other weights, independent.
        draw: For a layer of the first kind (its inputs are known), a function of a key
            and a number ``m`` that draws ``m`` units, once with weights from the
            initialiser and once with Gaussian ones; None for all others.
    """

    record: Any
    key: tuple[str, ...]
    draw: Callable[[Any, int], tuple[Any, Any]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A sum of fields times coefficients (numbers, or ``[total or 1, *positions]``)."""

    parts: tuple[tuple[Field, Any], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """``scale`` times a base, or a function of it.

    Attributes:
        base: The base.
        scale: A number, or an array ``[total or 1, *positions]``.
        function: If not None, an elementwise function of the base that takes arrays
            ``[total, *positions, m]``; `scale` multiplies it.
    """

    base: Base
    scale: Any = 1.0
    function: Callable[[Any], Any] | None = None

    def of(self, z: Any) -> Any:
        """The term as a function of its base."""
        value = z if self.function is None else self.function(z)
        if jnp.ndim(self.scale):
            return self.scale[..., None] * value
        return value if self.scale == 1.0 else self.scale * value


@dataclasses.dataclass(frozen=True, eq=False)
class Opaque:
    """A term of which moments alone are known, such as pooled activations.

    Attributes:
        record: Its second moments and tangent kernel.
        mean: Its mean ``[total or 1, *positions]``, or the number 0.
        roots: Layers whose outputs it was computed from.
    """

    record: Any
    mean: Any
    roots: frozenset[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Activation:
    """Random activations, channels last.

    Attributes:
        terms: Functions of bases, no two of one base.
        opaque: Terms of which only moments are known.
        offset: What is known and added, or None.
        positions: Sizes of the axes between examples and channels.
        width: Number of channels.
        flat: Whether positions and channels have been flattened into one axis.
        split: Sizes of the axes that channels are split into (heads); () for one axis.
    """

    terms: tuple[Term, ...]
    opaque: tuple[Opaque, ...]
    offset: Known | None
    positions: tuple[int, ...]
    width: int
    flat: bool = False
    split: tuple[int, ...] = ()

    def is_linear(self) -> bool:
        """Whether it is a sum of Gaussian fields."""
        functions = [term for term in self.terms if term.function is not None]
        return not (functions or self.opaque or self.offset)

    def roots(self) -> frozenset[str]:
        """The layers that its terms are computed from."""
        fields = (part[0].key[0] for term in self.terms for part in term.base.parts)
        return frozenset(fields).union(*(term.roots for term in self.opaque))

    def shape(self, examples: int) -> tuple[int, ...]:
        """Its shape, for that many examples."""
        if self.flat:
            return (examples, math.prod(self.positions) * self.width)
        return (examples, *self.positions, *(self.split or (self.width,)))


def covariance(layout: Layout, base: Base, other: Base) -> dict[str, Any] | None:
    """Covariances between two bases, and the product of their tangents as ``"ntk"``.

    Args:
        layout: How covariances lie.
        base: The left factor.
        other: The right factor.

    Returns:
        The blocks; None if the bases are independent.

    Raises:
        Refusal: They share a layer's weights in a way that is not followed.
    """
    total: dict[str, Any] = {}
    for field, scale in base.parts:
        for second, factor in other.parts:
            if field.key[0] != second.key[0]:
                continue
            if field.key != second.key:
                raise Refusal(
                    "adds two versions of the same layer's outputs that were moved "
                    "differently in space, whose correlation is not followed. Give "
                    "each branch a layer with weights of its own."
                )
            for block in (*layout.blocks, "ntk"):
                where = "nngp" if block == "ntk" else block
                array = getattr(field.record, block)
                array = array * weight(layout, where, scale, factor)
                total[block] = total[block] + array if block in total else array
    return total or None


def weight(layout: Layout, block: str, scale: Any, factor: Any) -> Any:
    """The product of two coefficients, shaped as a block of covariances."""
    if jnp.ndim(scale) == 0 and jnp.ndim(factor) == 0:
        return scale * factor
    arrays = [scale, factor]
    rank = max(jnp.ndim(a) for a in arrays)
    arrays = [jnp.reshape(a, (1,) * rank) if jnp.ndim(a) == 0 else a for a in arrays]
    left, right = layout.sides(block, *arrays)
    return left * right


def base_record(layout: Layout, base: Base) -> Any:
    """The record of a base: Gaussian, the sum over its fields."""
    first, scale = base.parts[0]
    record = first.record
    if len(base.parts) > 1 or jnp.ndim(scale) or scale != 1.0:
        blocks = covariance(layout, base, base)
        assert blocks is not None  # a base covaries with itself
        record = record.replace(**blocks)
    if layout.same is None:
        return record
    # The angle of an example with itself is zero only if its covariances agree to the
    # last digit; rounding would make it 1e-4 in float32.
    same = layout.same.reshape(layout.same.shape + (1,) * (record.nngp.ndim - 2))
    return record.replace(nngp=jnp.where(same, record.cov1[:, None], record.nngp))


def scaled(layout: Layout, record: Any, scale: Any) -> Any:
    """A record of something times a coefficient."""
    if jnp.ndim(scale) == 0 and scale == 1.0:
        return record
    blocks = {
        block: getattr(record, block)
        * weight(layout, "nngp" if block == "ntk" else block, scale, scale)
        for block in (*layout.blocks, "ntk")
    }
    return record.replace(**blocks)


def lengths(left: Any, right: Any) -> Any:
    """Root of the product of variances, the left one where they are equal.

    Equal to rounding: those of rows and of columns may have been computed apart.
    """
    close = 4 * jnp.finfo(left.dtype).eps * left
    same = jnp.abs(left - right) <= close
    return jnp.where(same, left, jnp.sqrt(left * right))


def correlations(covariance: Any, left: Any, right: Any) -> Any:
    """Covariance over the root of the product of variances; 0 where that is 0."""
    length = lengths(left, right)
    safe = jnp.where(length > 0, length, 1)
    return jnp.clip(jnp.where(length > 0, covariance / safe, 0), -1, 1)
