"""The layer-peeled model: minority collapse under energy budgets, and its threshold."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, root, root_scalar
from scipy.special import log_softmax, logsumexp

from jaxtheory.batching import check_count, check_number
from jaxtheory.collapse.theory._seli import Geometry

# Which of the three blocks of the logits differ from zero, from the fewest to the most.
# The majority's always does: at zero its multiplier is the largest that there is.
_VANISHED, _COLLAPSED = (True, False, False), (True, False, True)
_BRANCHES = (_VANISHED, _COLLAPSED, (True, True, False), (True, True, True))
# To which the multipliers of two blocks are told apart.
_TOLERANCE = 1e-12


class LayerPeeledModel(NamedTuple):
    """The optimum of the layer-peeled model with two groups of classes.

    Majority classes come first.

    Attributes:
        logits: ``W H``, column ``k`` for the examples of class ``k``. Shape ``[k, k]``.
        geometry: ``W W^T`` and Gram matrix of the features, each with its full budget.
        loss: Average cross-entropy per example, in nats.
        minority_cosine: Cosine of two minority rows of ``W``: 1 where they have
            collapsed, NaN where they are zero.
        majority_cosine: Cosine of two majority rows.
        collapsed: Whether minority rows coincide exactly (also where they are zero).
        optimality_gap: Upper bound, from convexity, on how far `loss` is above the
            least loss that any logits in the budget have, in nats.
    """

    logits: Float[np.ndarray, "k k"]
    geometry: Geometry
    loss: float
    minority_cosine: float
    majority_cosine: float
    collapsed: bool
    optimality_gap: float


class _Problem(NamedTuple):
    """Group sizes, imbalance ratio (its logarithm) and budget of the nuclear norm."""

    majority: int
    minority: int
    log_ratio: float
    budget: float

    @property
    def total(self):
        return self.majority + self.minority


def layer_peeled(
    imbalance_ratio: float | int,
    *,
    num_majority: int,
    num_minority: int,
    feature_energy: float | int,
    weight_energy: float | int,
) -> LayerPeeledModel:
    """Solve the layer-peeled model for majority and minority classes.

    With ``K`` classes, ``R`` times as many examples in each majority class as in each
    minority class, and cross-entropy ``l``, it is

        min (1/N) sum_k n_k l(W h_k, k)
        subject to (1/K) sum_k ||w_k||^2 <= E_W and (1/K) sum_k ||h_k||^2 <= E_H,

    with at least ``K`` features. Given ``Z = W H`` that is one convex constraint, on
    the sum of singular values: ``||Z||_* <= K sqrt(E_H E_W)``. Classes of a group can
    be exchanged, so that ``Z`` has six numbers: a diagonal and an off-diagonal one in
    each group's block, and one for each block between groups. Columns sum to zero,
    which leaves four; they are found from the stationarity conditions, on whichever
    face of the problem is optimal.

    Solved on the host in float64.

    Args:
        imbalance_ratio: ``R >= 1``.
        num_majority: Majority classes, at least 2.
        num_minority: Minority classes, at least 2.
        feature_energy: ``E_H > 0``, the mean squared length of class features.
        weight_energy: ``E_W > 0``, the mean squared length of classifier rows.

    Returns:
        The optimum. `optimality_gap` proves it, whatever the solver did.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = layer_peeled(
        ...     10, num_majority=5, num_minority=5, feature_energy=5, weight_energy=1
        ... )
        >>> print(f"{model.minority_cosine:.4f} {model.collapsed}")
        0.5175 False

    References:
        Fang, He, Long & Su 2021, arXiv:2101.12699 (the model, its convex relaxation
        and minority collapse).
    """
    problem = _check(num_majority, num_minority, feature_energy, weight_energy)
    must = "a finite number of at least 1"
    check_number("imbalance_ratio", imbalance_ratio, lambda v: 1 <= v < np.inf, must)
    problem = problem._replace(log_ratio=np.log(float(imbalance_ratio)))
    blocks = _first_optimal(problem, _BRANCHES)
    logits = _logits(problem, blocks)
    gap, loss = _gap(problem, logits)
    left, values, right = np.linalg.svd(logits)
    scale = np.sqrt(float(weight_energy) / float(feature_energy))
    weight = (left * values * scale) @ left.T
    means = (right.T * values / scale) @ right
    cosine = lambda i: weight[i, i + 1] / weight[i, i] if weight[i, i] > 0 else np.nan
    collapsed = blocks[1] == 0
    vanished = collapsed and blocks[2] == 0
    return LayerPeeledModel(
        logits,
        Geometry(weight, means),
        loss,
        np.nan if vanished else 1.0 if collapsed else float(cosine(problem.majority)),
        float(cosine(0)),
        bool(collapsed),
        gap,
    )


def layer_peeled_threshold(
    *,
    num_majority: int,
    num_minority: int,
    feature_energy: float | int,
    weight_energy: float | int,
) -> float:
    """The imbalance ratio ``R_0`` from which on minority classifiers coincide.

    On the branch where minority rows are equal, splitting them apart stops paying where
    ``R (1 - p_k + p_o) = 1``: ``p_k`` is the probability of the own class in a majority
    example, ``p_o`` that of another majority class. Between the two groups the rows
    may be equal because they are zero, which the same condition covers. Grows
    exponentially with ``sqrt(E_H E_W)``.

    Args:
        num_majority: Majority classes, at least 2.
        num_minority: Minority classes, at least 2.
        feature_energy: ``E_H > 0``, the mean squared length of class features.
        weight_energy: ``E_W > 0``, the mean squared length of classifier rows.

    Returns:
        The threshold, to about 12 digits; infinite where it exceeds float64.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> threshold = layer_peeled_threshold(
        ...     num_majority=5, num_minority=5, feature_energy=5, weight_energy=1
        ... )
        >>> print(f"{threshold:.6f}")
        12.192447

    References:
        Fang, He, Long & Su 2021, arXiv:2101.12699 (that there is a threshold; the
        condition is derived here).
    """
    problem = _check(num_majority, num_minority, feature_energy, weight_energy)

    def excess(log_ratio):
        at = problem._replace(log_ratio=log_ratio)
        blocks = _optimum(at, _VANISHED)
        multipliers = _log_multipliers(at, blocks)
        if multipliers[2] > multipliers[0]:
            multipliers = _log_multipliers(at, _optimum(at, _COLLAPSED))
        return log_ratio + multipliers[0]

    highest = 1.0
    while excess(highest) < 0:
        highest *= 2
        if highest > 700:
            return np.inf
    log_threshold = root_scalar(excess, bracket=(0.0, highest), xtol=1e-14).root
    return float(np.exp(log_threshold))


def _check(num_majority, num_minority, feature_energy, weight_energy):
    """The problem at ratio 1, after checking what it is made of."""
    majority = check_count(num_majority=num_majority, at_least=2)
    minority = check_count(num_minority=num_minority, at_least=2)
    for name, value in [
        ("feature_energy", feature_energy),
        ("weight_energy", weight_energy),
    ]:
        check_number(name, value, lambda v: 0 < v < np.inf, "a positive, finite number")
    budget = (majority + minority) * np.sqrt(float(feature_energy * weight_energy))
    return _Problem(majority, minority, 0.0, budget)


def _blocks(problem, branch, free):
    """Blocks ``(a, e, n, angle)`` of the logits that spend the whole budget.

    ``a`` and ``e`` multiply the centring matrices of the two groups, ``n`` is the
    length of what is between the groups and the angle divides it (NaN where there is
    none): the budget is ``(K_A - 1) a + (K_B - 1) e + sqrt(K) n``. `free` holds
    logarithms of shares, then the angle.
    """
    shares = np.full(3, -np.inf)
    shares[np.flatnonzero(branch)] = [0, *free[: sum(branch) - 1]]
    shares = np.exp(log_softmax(shares)) * problem.budget
    a = shares[0] / (problem.majority - 1)
    e = shares[1] / (problem.minority - 1)
    return a, e, shares[2] / np.sqrt(problem.total), free[-1]


def _entries(problem, blocks):
    """The six different logits: own, same group, other group; majority's first."""
    a, e, n, angle = np.nan_to_num(blocks)
    d = -n * np.exp(-0.5 * np.logaddexp(0, -2 * angle)) / np.sqrt(problem.minority)
    c = -n * np.exp(-0.5 * np.logaddexp(0, 2 * angle)) / np.sqrt(problem.majority)
    b = -(a + problem.minority * d) / problem.majority
    f = -(e + problem.majority * c) / problem.minority
    return (a + b, b, d), (e + f, f, c)


def _logits(problem, blocks):
    """The ``K x K`` matrix of logits."""
    (own_a, same_a, d), (own_b, same_b, c) = _entries(problem, blocks)
    first = np.arange(problem.total) < problem.majority
    rows, columns = first[:, None], first[None, :]
    off = np.where(columns, np.where(rows, same_a, d), np.where(rows, c, same_b))
    own = np.where(first, own_a, own_b)
    return np.where(np.eye(problem.total, dtype=bool), own[None, :], off)


def _log_probabilities(problem, blocks):
    """Log-probabilities of own, same-group and other-group classes, by group."""
    for entries, same, other in zip(
        _entries(problem, blocks),
        (problem.majority, problem.minority),
        (problem.minority, problem.majority),
        strict=True,
    ):
        yield np.array(entries) - logsumexp(entries, b=[1, same - 1, other])


def _log_multipliers(problem, blocks):
    """Log of what each block gains per unit of budget; equal where it is optimal.

    In the order ``a``, ``e``, and what is between the groups: in the best direction
    where it is zero, else in each of its two entries.
    """
    angle = blocks[3]
    own, other = _log_probabilities(problem, blocks)
    majority, minority, total = np.log(
        [problem.majority, problem.minority, problem.total]
    )
    to_minority, to_majority = own[2], other[2] - problem.log_ratio
    groups = (
        np.logaddexp(majority + own[1], minority + own[2]),
        np.logaddexp(minority + other[1], majority + other[2]) - problem.log_ratio,
    )
    if np.isnan(angle):
        between = np.logaddexp(minority + 2 * to_minority, majority + 2 * to_majority)
        return np.array([*groups, (total + between) / 2])
    between = (
        (total + minority + np.logaddexp(0, -2 * angle)) / 2 + to_minority,
        (total + majority + np.logaddexp(0, 2 * angle)) / 2 + to_majority,
    )
    return np.array([*groups, *between])


def _first_optimal(problem, branches):
    """The optimum of the first branch on which no zero block should grow."""
    for branch in branches[:-1]:
        blocks = _optimum(problem, branch)
        gains = _log_multipliers(problem, blocks)[:3]
        if np.all(np.where(branch, -np.inf, gains) <= gains[0] + _TOLERANCE):
            return blocks
    return _optimum(problem, branches[-1])


def _log_loss(problem, blocks):
    """Log of ``K_A l_A + (K_B / R) l_B``, without underflow where both are tiny."""
    logs = []
    for (own, same, other), own_size, other_size in zip(
        _entries(problem, blocks),
        (problem.majority, problem.minority),
        (problem.minority, problem.majority),
        strict=True,
    ):
        odds = logsumexp([same - own, other - own], b=[own_size - 1, other_size])
        # log(log(1 + odds)) is the log of the odds where they are small.
        logs.append(np.log(np.log1p(np.exp(odds))) if odds > -40 else odds)
    weights = np.log([problem.majority, problem.minority])
    return np.logaddexp(weights[0] + logs[0], weights[1] + logs[1] - problem.log_ratio)


def _optimum(problem, branch):
    """The optimum of one branch: descent first, then the roots of its conditions."""
    angle = 0.5 * np.log(problem.minority / problem.majority)
    sizes = np.array([problem.majority - 1, problem.minority - 1, 1.0])[list(branch)]
    start = np.append(np.log(sizes[1:] / sizes[0]), angle)
    if not branch[2]:
        start = start[:-1]
    tail = [] if branch[2] else [np.nan]
    blocks_of = lambda free: _blocks(problem, branch, [*free, *tail])
    if start.size == 0:
        return blocks_of(start)
    conditions = [*np.flatnonzero(branch[:2]), *([2, 3] if branch[2] else [])]

    def unequal(free):
        multipliers = _log_multipliers(problem, blocks_of(free))[conditions]
        return multipliers[1:] - multipliers[0]

    candidates = []
    # Near the threshold the minority's share is tiny, and a start far from it misses.
    for lowered in (0, 2, 5, 9, 14):
        at = start - lowered * (np.arange(start.size) == 0)
        at = minimize(lambda free: _log_loss(problem, blocks_of(free)), at).x
        solution = root(unequal, at, tol=1e-14)
        candidates += [blocks_of(at), blocks_of(solution.x)]
        if np.max(np.abs(solution.fun)) < _TOLERANCE:
            return candidates[-1]
    return min(candidates, key=lambda blocks: _log_loss(problem, blocks))


def _gap(problem, logits):
    """How far the loss can be above its minimum on the ball, and the loss."""
    k = problem.total
    weights = np.where(np.arange(k) < problem.majority, 1.0, np.exp(-problem.log_ratio))
    weights = weights / weights.sum()
    off = logits - np.where(np.eye(k, dtype=bool), np.inf, np.diag(logits)[None, :])
    odds = np.exp(logsumexp(off, axis=0))
    # No difference 1 - p is taken: it would be rounding where the fit is good.
    gradient = np.exp(off) / (1 + odds)[None, :]
    gradient = (gradient - np.diag(gradient.sum(axis=0))) * weights[None, :]
    # The linearised loss is least at -budget times the top singular pair.
    gap = np.sum(gradient * logits) + problem.budget * np.linalg.norm(gradient, 2)
    return float(gap), float(np.sum(weights * np.log1p(odds)))
