"""Attention whose scores are not passed through a softmax, with many heads.

With scores ``S = c q k^T`` of independent Gaussian queries and keys of ``d`` channels
(``c = 1 / sqrt(d)`` as a rule) and heads ``S v``, the mean over ever more heads is

    E[(S v)_t (S' v')_t'] = c^2 d Q_tt' sum_ss' K_ss' V_ss',

with ``Q``, ``K``, ``V`` the covariances of queries, keys and values. Scores stay random
however many channels a head has, so that a softmax of them has no closed form.

Hron, Bahri, Sohl-Dickstein, Novak, arXiv:2006.10540, section 3.
"""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxtheory.kernels._infinite_values import (
    Activation,
    Known,
    NeedsPositions,
    Opaque,
    Refusal,
)

_SOFTMAX = (
    "applies `{}` to attention scores, which stay random with any number of channels: "
    "softmax attention has no limit in closed form. Use the scores as they are (linear "
    "attention, `attention_fn` of `nn.MultiHeadDotProductAttention`), or other layers."
)
_ONLY = (
    "multiplies activations with activations. The product has a limit in attention "
    "with several heads, `[n, tokens, heads, channels]`, between queries and keys of "
    "layers of their own, and between their scores and values."
)


class Scores(NamedTuple):
    """Attention scores ``[n, heads, tokens, tokens]``.

    Attributes:
        query: The queries.
        key: The keys.
        factor: What their products are multiplied by.
        shape: Their shape.
    """

    query: Activation
    key: Activation
    factor: float
    shape: tuple[int, ...]


class Heads(NamedTuple):
    """Values weighed by scores, before their axes are put in order.

    Attributes:
        activation: What they are in the order ``ntHd``.
        order: The order that they have.
    """

    activation: Activation
    order: tuple[str, ...]


def step(walk: Any, eqn: Any, operands: list[Any]) -> Any:
    """The value of an equation that meets scores, or heads out of order.

    Args:
        walk: The walk.
        eqn: The equation.
        operands: Its operands.

    Returns:
        What it is.

    Raises:
        Refusal: It has no limit.
    """
    name = eqn.primitive.name
    first = operands[0]
    if isinstance(first, Heads) and name == "transpose":
        return _ordered(first, eqn.params["permutation"])
    if name == "dot_general":
        return _weigh(walk, eqn, *operands)
    if name in ("convert_element_type", "copy", "reduce_precision"):
        return first
    if name in ("mul", "div") and all(isinstance(v, Scores | Known) for v in operands):
        scores, factor = operands if isinstance(first, Scores) else operands[::-1]
        swapped = name == "div" and scores is not first
        if isinstance(factor, Known) and np.size(factor.array) == 1 and not swapped:
            number = float(np.ravel(np.asarray(factor.array))[0])
            number = 1 / number if name == "div" else number
            return scores._replace(factor=scores.factor * number)
    raise Refusal(_SOFTMAX.format(name))


def score(eqn: Any, query: Activation, key: Activation) -> Scores:
    """Products of queries and keys of each head.

    Args:
        eqn: The equation, a ``dot_general``.
        query: The queries ``[n, tokens, heads, channels]``.
        key: The keys, likewise.

    Returns:
        The scores.

    Raises:
        Refusal: The activations or their axes are others.
    """
    contracted, batch = eqn.params["dimension_numbers"]
    axes = [tuple(map(tuple, pair)) for pair in (contracted, batch)]
    if axes != [((3,), (3,)), ((0, 2), (0, 2))]:
        raise Refusal(_ONLY)
    for value in (query, key):
        if len(value.split) != 2 or len(value.positions) != 1 or not value.is_linear():
            raise Refusal(_ONLY)
    if query.roots() & key.roots():
        raise Refusal(
            "scores tokens by products of outputs of one layer with themselves, which "
            "grow with the number of channels. Give queries and keys layers of their "
            "own."
        )
    return Scores(query, key, 1.0, tuple(eqn.outvars[0].aval.shape))


def _weigh(walk, eqn, left, right):
    """Values times scores."""
    contracted, batch = (list(pair) for pair in eqn.params["dimension_numbers"])
    flipped = isinstance(left, Scores)
    scores, value = (left, right) if flipped else (right, left)
    if flipped:
        contracted, batch = contracted[::-1], batch[::-1]
    axes = [tuple(map(tuple, pair)) for pair in (contracted, batch)]
    expected = [((1,), (3,)), ((0, 2), (0, 1))]
    proper = isinstance(value, Activation) and isinstance(scores, Scores)
    if not proper or axes != expected or not value.is_linear():
        raise Refusal(_ONLY)
    if len(value.split) != 2 or len(value.positions) != 1:
        raise Refusal(_ONLY)
    roots = [v.roots() for v in (scores.query, scores.key, value)]
    if any(a & b for a, b in itertools.combinations(roots, 2)):
        raise Refusal(
            "weighs by attention the outputs of the layer that also gives queries or "
            "keys. Give the values a layer of their own."
        )
    activation = _attend(walk, scores, value)
    return Heads(activation, tuple("nHtd" if flipped else "nHdt"))


def _attend(walk, scores, value):
    """Moments of values weighed by scores."""
    if walk.layout.diagonal:
        raise NeedsPositions
    q, k, v = (walk.moments.of(a) for a in (scores.query, scores.key, value))
    factor = scores.factor**2 * scores.query.split[-1]

    def summed(a, b):
        return jnp.sum(a * b, (-2, -1), keepdims=True) * factor

    blocks = {
        block: getattr(q, block) * summed(getattr(k, block), getattr(v, block))
        for block in walk.layout.blocks
    }
    through = summed(k.ntk, v.nngp) + summed(k.nngp, v.ntk)
    blocks["ntk"] = q.ntk * summed(k.nngp, v.nngp) + q.nngp * through
    record = v.replace(is_gaussian=False, **blocks)
    roots = scores.query.roots() | scores.key.roots() | value.roots()
    moments = (Opaque(record, 0.0, roots),)
    positions = scores.query.positions
    return Activation((), moments, None, positions, value.width, split=value.split)


def _ordered(heads, permutation):
    """Heads with their axes in another order; an activation once that is ``ntHd``."""
    order = tuple(heads.order[axis] for axis in permutation)
    if order == tuple("ntHd"):
        return heads.activation
    return heads._replace(order=order)
