"""The separating directions that algorithms converge to, from an LP or a QP."""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import scipy.optimize
from jax.core import Tracer
from jaxtyping import ArrayLike, Float, Real

from jaxtheory.batching import check_count

_NORMS = ("l2", "linf", "l1")
_TOLERANCE = 1e-8


class MaxMargin(NamedTuple):
    """The direction that separates with the largest margin.

    Attributes:
        direction: ``w``, of norm 1, in double precision: ``[d]``, or ``[d, k]`` for
            classes. Zero where the data cannot be separated.
        margin: The smallest ``y_i <w, x_i>``, or ``<w_(y_i) - w_c, x_i>``, computed
            from `direction`; 0 where the data cannot be separated.
        dual: The weights of the examples, not negative, of sum 1: ``[n]``, or
            ``[n, k - 1]`` for each example and each wrong class, in order. Positive
            for support vectors alone.
        gap: Dual value minus `margin`: how much larger a margin could be at most.
        separable: Whether `direction` separates the data, by more than 1e-10 of the
            largest example.
        converged: Whether `gap` is at most 1e-8 of the largest example, also where the
            data cannot be separated.
    """

    direction: Float[np.ndarray, "..."]
    margin: float
    dual: Float[np.ndarray, "..."]
    gap: float
    separable: bool
    converged: bool


def max_margin(
    x: Float[ArrayLike, "n d"],
    y: Real[ArrayLike, " n"],
    *,
    norm: Literal["l2", "linf", "l1"] = "l2",
    num_classes: int | None = None,
) -> MaxMargin:
    """Find the separating direction of largest margin, in the norm of an algorithm.

    ``max_w min_i y_i <w, x_i>`` subject to ``|w| <= 1``. On separable data and a loss
    with an exponential tail (logistic, cross-entropy) steepest descent in some norm
    converges in direction to its solution in that norm: gradient descent ``"l2"``, sign
    descent ``"linf"``, coordinate descent (AdaBoost) ``"l1"``. It does so as slowly as
    ``1 / log t``, faster with steps over the norm of the gradient (which gets far below
    the default `eps` of `optax.normalize_by_update_norm`). For more than two classes
    the margin is ``min_i min_(c != y_i) <w_(y_i) - w_c, x_i>``, and the norm is that of
    all entries.

    There is no offset: append a column of ones to `x`, and the offset counts in the
    norm, as it does for the algorithm.

    On the host, in double precision; not to be jitted. ``"l2"`` is the least distance
    problem of Lawson and Hanson, solved by non-negative least squares; the others are
    linear programs, whose solution need not be unique: the margin is.

    Args:
        x: Inputs.
        y: Labels, 1 and -1; with `num_classes` whole numbers ``0..k-1``.
        norm: ``"l2"``, ``"linf"`` or ``"l1"``: the norm of the direction.
        num_classes: Number ``k`` of classes; None for labels 1 and -1.

    Returns:
        Direction, margin, and whether the data can be separated; see `MaxMargin`.

    Raises:
        ValueError: Shapes do not fit, values are not finite, `x` is all zero, labels
            are others, or `norm` is another word.

    Memory:
        A copy of `x`; for classes ``n (k - 1) k d`` numbers.

    Example:
        >>> import numpy as np
        >>> x = np.array([[3.0, 1.0], [-1.0, -3.0]])
        >>> y = np.array([1, -1])
        >>> for norm in ("l2", "linf", "l1"):
        ...     found = max_margin(x, y, norm=norm)
        ...     print(found.direction.round(3), round(found.margin, 3))
        [0.707 0.707] 2.828
        [1. 1.] 4.0
        [0.5 0.5] 2.0
        >>> max_margin(x, np.array([1, 1])).separable
        True
        >>> max_margin(np.array([[1.0], [2.0]]), y).separable
        False

    References:
        Soudry et al., arXiv:1710.10345, theorems 3 and 7 (gradient descent);
        Gunasekar et al., arXiv:1802.08246, theorem 5 (steepest descent); Lawson &
        Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    if norm not in _NORMS:
        raise ValueError(f"`norm` must be one of {_NORMS}, but was {norm!r}.")
    x, y = _check(x, y, num_classes)
    rows = y[:, None] * x if num_classes is None else _class_rows(x, y, num_classes)
    size = float(np.max(np.abs(rows)))
    rows = rows / size
    solve = _least_distance if norm == "l2" else _linear_program
    direction, dual = solve(rows, norm)
    margin = float(np.min(rows @ direction))
    separable = margin > 1e-10
    if not separable:
        direction, margin = np.zeros_like(direction), 0.0
    gap = _dual_norm(rows.T @ dual, norm) - margin
    if num_classes is not None:
        direction = direction.reshape(num_classes, -1).T
        dual = dual.reshape(len(x), -1)
    found = (direction, margin * size, dual, gap * size, separable)
    return MaxMargin(*found, gap <= _TOLERANCE)


def _least_distance(rows, norm):
    """The hard-margin direction and its dual, through non-negative least squares."""
    del norm
    system = np.concatenate([rows, np.ones((len(rows), 1))], axis=1).T
    target = np.zeros(len(system))
    target[-1] = 1
    # The residual is what no mixture of the rows can cancel.
    dual, _ = scipy.optimize.nnls(system, target, maxiter=30 * max(system.shape))
    dual = dual / np.sum(dual)
    direction = rows.T @ dual
    length = np.linalg.norm(direction)
    return direction / (length if length > 0 else 1), dual


def _linear_program(rows, norm):
    """The same for a norm whose ball is a polytope; variables ``w+, w-, margin``."""
    n, p = rows.shape
    cost = np.zeros(2 * p + 1)
    cost[-1] = -1
    upper = np.concatenate([-rows, rows, np.ones((n, 1))], axis=1)
    limit, most = np.zeros(n), 1.0
    if norm == "l1":
        budget = np.append(np.ones(2 * p), 0)[None]
        upper, limit, most = np.concatenate([upper, budget]), np.append(limit, 1), None
    bounds = [(0, most)] * (2 * p) + [(0, None)]
    found = scipy.optimize.linprog(cost, upper, limit, bounds=bounds, method="highs")
    if found.x is None:
        return np.zeros(p), np.full(n, 1 / n)
    direction = found.x[:p] - found.x[p : 2 * p]
    length = np.max(np.abs(direction)) if norm == "linf" else np.sum(np.abs(direction))
    dual = np.maximum(-found.ineqlin.marginals[:n], 0)
    total = np.sum(dual)
    dual = dual / total if total > 0 else np.full(n, 1 / n)
    return direction / (length if length > 0 else 1), dual


def _dual_norm(vector, norm):
    order = {"l2": 2, "linf": 1, "l1": np.inf}[norm]
    return float(np.linalg.norm(vector, order))


def _class_rows(x, y, num_classes):
    """One row ``x_i (e_(y_i) - e_c)`` for each example and each wrong class."""
    n, d = x.shape
    every = np.arange(num_classes)
    others = np.stack([every[every != label] for label in y])
    rows = np.zeros((n, num_classes - 1, num_classes, d))
    example, slot = np.arange(n)[:, None], np.arange(num_classes - 1)[None]
    rows[example, slot, y[:, None]] = x[:, None]
    rows[example, slot, others] = -x[:, None]
    return rows.reshape(n * (num_classes - 1), num_classes * d)


def _check(x: Any, y: Any, num_classes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs in double precision and labels as whole numbers, on the host."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((x, y))):
        raise ValueError(
            "`x` and `y` must be arrays with values, but are traced: `max_margin` runs "
            "on the host. Call it outside `jit`."
        )
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1] or 0 in x.shape:
        raise ValueError(
            f"`x` must be [n, d] and `y` be [n], but have shapes {x.shape} and "
            f"{y.shape}."
        )
    if not np.can_cast(x.dtype, np.float64, "same_kind"):
        raise ValueError(f"`x` must hold real numbers, but has dtype {x.dtype}.")
    x = x.astype(np.float64)
    if not np.all(np.isfinite(x)) or not np.any(x):
        raise ValueError("`x` must be finite, and not all zero.")
    if num_classes is None:
        allowed, must = np.array([-1, 1]), "1 and -1"
    else:
        allowed = np.arange(check_count(num_classes=num_classes, at_least=2))
        must = f"whole numbers from 0 to {num_classes - 1}"
    if not np.all(np.isin(y, allowed)):
        raise ValueError(
            f"`y` must hold {must}, but holds other labels. Binary labels are 1 and -1 "
            "without `num_classes`, and 0 and 1 with `num_classes=2`."
        )
    return x, y.astype(np.int64)
