"""The margin bound of a linear classifier on features that were fixed before."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxtheory._types import Bound
from jaxtheory.batching import check_examples
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    SETTING,
    check_concrete,
    check_delta,
    make_bound,
)

_GRID = np.arange(-30, 31)


def linear_margin(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None],
    *,
    delta: float,
) -> Bound:
    r"""Margin bound on the error of a linear classifier trained on `features`.

    For margins ``g_i = o_y - max_{j != y} o_j`` of the outputs ``o = W h + b``, the
    ramp ``r(g) = min(1, max(0, 1 - g))`` and any norm ``t`` fixed before, with
    probability at least ``1 - delta_t``, for all ``(W, b)`` of Frobenius norm at most
    ``t``,

        error <= mean r(g_i) + 4 t sqrt(k mean(||h_i||^2 + 1) / n)
                 + 3 sqrt(log(2 / delta_t) / (2 n)) .

    Norms are taken from the grid ``t = 2^q``, ``|q| <= 30``, with ``delta_t = delta /
    61``; the classifier is scaled to each (which changes no decision, only what counts
    as a margin of 1) and the smallest bound is reported. The mean row is subtracted
    from the classifier first: no margin notices.

    The margin of a point is ``sqrt(2)``-Lipschitz in its outputs, so the Rademacher
    complexity of the ramp is at most ``sqrt(2) * sqrt(2) / n`` times that of linear
    maps (Maurer's contraction), which is at most ``t sqrt(k sum (||h||^2 + 1))``.

    The features may not have been learned from these examples: then the theorem is not
    about them. For a network fine-tuned or trained on them it is a correlate only.

    Args:
        features: Features of the examples that the classifier was trained on.
        labels: Their class indices, in ``[0, k)``.
        classifier: ``(weight, bias)`` as in `collapse.statistics`; the bias may be
            None.
        delta: Probability that the bound may fail, in (0, 1).

    Returns:
        The bound on the probability of error. `empirical_risk` is the mean ramp at the
        norm chosen.

    Raises:
        ValueError: Shapes do not fit, `delta` is outside (0, 1), a value is traced, not
            finite, or a label is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.arange(20_000) % 2
        >>> features = jnp.eye(2)[labels] - 0.5
        >>> bound = linear_margin(features, labels, (jnp.eye(2), None), delta=0.05)
        >>> print(f"{bound.value:.2f} {bound.certificate}")
        0.09 True

    References:
        Mohri, Rostamizadeh & Talwalkar, "Foundations of Machine Learning" (2018),
        theorem 3.3; Maurer 2016, arXiv:1605.00251, corollary 1.
    """
    h, y, weight, bias = _check(features, labels, classifier)
    delta = check_delta(delta)
    n, k = len(h), len(weight)
    outputs = h @ weight.T + bias[None, :]
    own = outputs[np.arange(n), y]
    outputs[np.arange(n), y] = -np.inf
    margins = own - outputs.max(axis=1)
    norm = np.sqrt(np.sum(np.square(weight)) + np.sum(np.square(bias)))
    size = np.sqrt(k * np.mean(np.sum(np.square(h), axis=1) + 1) / n)
    deviation = 3 * np.sqrt(np.log(2 * len(_GRID) / delta) / (2 * n))
    scales = 2.0**_GRID
    # A zero classifier has no margin at any scale.
    factors = scales / (norm if norm > 0 else 1.0)
    risks = [np.mean(np.clip(1 - margins * factor, 0, 1)) for factor in factors]
    complexities = 4 * scales * size + deviation
    best = int(np.argmin(np.asarray(risks) + complexities))
    return make_bound(
        value=risks[best] + complexities[best],
        empirical_risk=risks[best],
        complexity=complexities[best],
        delta=delta,
        assumptions=(
            INDEPENDENT,
            (SETTING, "the features were fixed before the examples were seen"),
            (
                BY_CONSTRUCTION,
                "the classifier is linear, its norm on a grid fixed before",
            ),
        ),
    )


def _check(features, labels, classifier):
    """Everything in float64 on the host, the mean row of the classifier removed."""
    check_concrete(features=features, labels=labels, classifier=classifier)
    n = check_examples(features=features, labels=labels)
    is_pair = isinstance(classifier, tuple | list) and len(classifier) == 2
    if not is_pair:
        raise ValueError("`classifier` must be a pair `(weight, bias)`.")
    shape, rows = jnp.shape(features), jnp.shape(classifier[0])
    if len(shape) != 2 or len(rows) != 2 or rows[1] != shape[1] or rows[0] < 2:
        raise ValueError(
            "`features` must have shape [n, d] and `classifier[0]` shape [k, d] with k "
            f">= 2, but have shapes {shape} and {rows}."
        )
    if classifier[1] is not None and jnp.shape(classifier[1]) != rows[:1]:
        raise ValueError(
            f"`classifier[1]` must be None or have shape {rows[:1]}, but has shape "
            f"{jnp.shape(classifier[1])}."
        )
    y = np.asarray(labels)
    in_range = y.shape == (n,) and np.issubdtype(y.dtype, np.integer)
    if not in_range or y.min() < 0 or y.max() >= rows[0]:
        raise ValueError(
            f"`labels` must be a vector of integers in [0, {rows[0]}), but has shape "
            f"{y.shape} and dtype {y.dtype}, or a value out of range."
        )
    h, weight = (np.asarray(a, np.float64) for a in (features, classifier[0]))
    bias = np.zeros(rows[0]) if classifier[1] is None else classifier[1]
    bias = np.asarray(bias, np.float64)
    if not all(np.isfinite(a).all() for a in (h, weight, bias)):
        raise ValueError("`features` and `classifier` must be finite.")
    return h, y, weight - weight.mean(axis=0, keepdims=True), bias - bias.mean()
