"""Second moments and tangent kernels of activations: what the next layer needs."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxtheory.kernels._infinite_elementwise import (
    Expansion,
    closed_form,
    derivative,
    expand,
    expectation,
)
from jaxtheory.kernels._infinite_first import FirstLayer
from jaxtheory.kernels._infinite_values import (
    Activation,
    Base,
    Layout,
    Refusal,
    Term,
    base_record,
    correlations,
    covariance,
    lengths,
    scaled,
)


@dataclasses.dataclass
class Moments:
    """Integrals over the units of a layer, and what they left out so far.

    Attributes:
        layout: How covariances lie.
        first: How units of the first layer are drawn; None for Gaussian ones.
        only_shapes: Leave integrals out, in a walk for what it meets.
        tails: For each numerical integral, the share of the second moment left out.
        errors: For each first layer drawn, the relative standard error.
    """

    layout: Layout
    first: FirstLayer | None
    only_shapes: bool = False
    tails: list[Any] = dataclasses.field(default_factory=list)
    errors: list[Any] = dataclasses.field(default_factory=list)

    def of(self, activation: Activation) -> Any:
        """The record of an activation: mean product over its channels.

        Args:
            activation: The activation, not flattened.

        Returns:
            A neural-tangents ``Kernel``.

        Raises:
            Refusal: Its terms are correlated in a way that is not followed.
        """
        terms, opaque = activation.terms, activation.opaque
        records = [self._own(term) for term in terms] + [o.record for o in opaque]
        if activation.offset is None and len(records) == 1:
            return records[0]
        self._check_opaque(activation)
        pieces = [{b: getattr(r, b) for b in self._names()} for r in records]
        means = [self.mean(term) for term in terms] + [o.mean for o in opaque]
        for i, j in itertools.permutations(range(len(means)), 2):
            both = i < len(terms) and j < len(terms)
            shared = both and covariance(self.layout, terms[i].base, terms[j].base)
            if shared:
                pieces.append(self._function(terms[i], terms[j], shared))
            else:
                pieces.append(self._product(means[i], means[j]))
        if activation.offset is not None:
            known, average = self._known(activation.offset)
            pieces.append(known)
            pieces += [self._product(average, m) for m in means]
            pieces += [self._product(m, average) for m in means]
        blocks = {
            name: sum(piece[name] for piece in pieces if name in piece)
            for name in self._names()
        }
        return records[0].replace(is_gaussian=False, **blocks)

    def mean(self, term: Term) -> Any:
        """Mean of a term, ``[total, *positions]``, or the number 0."""
        if term.function is None:
            return 0.0
        if self.only_shapes:
            return self._variances(term.base)
        average = expand(term.of, self._variances(term.base)).modes[..., 0]
        if self.first is not None and self.first.draws(term):
            average = average + self.first.mean(self.layout, term)
        return average

    def _names(self):
        return (*self.layout.blocks, "ntk")

    def _variances(self, base: Base):
        return self.layout.variances(base_record(self.layout, base))

    def _own(self, term: Term):
        """Record of one term."""
        record = base_record(self.layout, term.base)
        if term.function is None:
            return scaled(self.layout, record, term.scale)
        if self.only_shapes:
            return record.replace(is_gaussian=False)
        q = self.layout.variances(record)
        rule = closed_form(term.function, q.ndim + 1)
        if rule is None:
            base = {name: getattr(record, name) for name in self._names()}
            blocks = self._function(term, term, base)
            found = record.replace(is_gaussian=False, **blocks)
        else:
            sides = {b: self.layout.sides(b, q) for b in self.layout.blocks}
            length = {block: lengths(*pair) for block, pair in sides.items()}
            found = scaled(self.layout, rule(record, length), term.scale)
        if self.first is None or not self.first.draws(term):
            return found
        blocks, error = self.first.correct(self.layout, term, record.ntk)
        self.errors.append(error / jnp.sqrt(jnp.mean(found.nngp**2)))
        return found.replace(**{b: getattr(found, b) + blocks[b] for b in blocks})

    def _function(self, term, other, base):
        """Moments of two terms from the covariances of their bases."""
        if self.only_shapes:
            return base
        q, r = self._variances(term.base), self._variances(other.base)
        values = expand(term.of, q), expand(other.of, r)
        slopes = expand(derivative(term.of), q), expand(derivative(other.of), r)
        found = {}
        for block in self.layout.blocks:
            rho = correlations(base[block], *self.layout.sides(block, q, r))
            found[block] = expectation(*self._sides(block, values), rho)
            if block == "nngp":
                slope = expectation(*self._sides(block, slopes), rho)
                found["ntk"] = slope * base["ntk"]
        self.tails += [e.tail() for e in (*values, *slopes)]
        return found

    def _sides(self, block, expansions):
        """Two expansions, shaped to index a block of covariances."""

        def shape(expansion, side):
            pick = lambda a: self.layout.sides(block, a)[side]
            modes = jax.vmap(pick, -1, -1)(expansion.modes)
            even, odd = map(pick, expansion.rest)
            return Expansion(modes, (even, odd), expansion.moment)

        left, right = expansions
        return shape(left, 0), shape(right, 1)

    def _product(self, left, right):
        """Covariances of two independent terms: the products of their means."""
        if any(jnp.ndim(m) == 0 and m == 0 for m in (left, right)):
            return {}
        sides = {b: self.layout.sides(b, left, right) for b in self.layout.blocks}
        return {block: a * b for block, (a, b) in sides.items()}

    def _known(self, offset):
        """Second moments and mean over channels of what is known."""
        array = jnp.moveaxis(jnp.asarray(offset.array), -1, 0)
        product = jax.vmap(self._product)(array, array)
        blocks = {block: jnp.mean(a, 0) for block, a in product.items()}
        return blocks, jnp.mean(array, 0)

    def _check_opaque(self, activation):
        """Raise if a pooled term may be correlated with another one."""
        bare = dataclasses.replace(activation, terms=(), opaque=(), offset=None)
        parts = [dataclasses.replace(bare, terms=(t,)) for t in activation.terms]
        parts += [dataclasses.replace(bare, opaque=(o,)) for o in activation.opaque]
        for a, b in itertools.combinations(parts, 2):
            if (a.opaque or b.opaque) and a.roots() & b.roots():
                raise Refusal(
                    "adds pooled or reshaped activations to others of the same layer, "
                    "and their correlation is not followed. Give each branch a layer "
                    "with weights of its own after the pooling."
                )
