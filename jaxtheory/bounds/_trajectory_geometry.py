"""What the geometry of a finite set says of its Rademacher complexity.

For losses in ``[0, B]`` of ``n`` examples at the points of a finite set, the empirical
Rademacher complexity is the mean over signs ``s`` of ``max_a X_a``, ``X_a = (1/n) sum_i
s_i a_i``. A loss vector may be taken around ``B/2``, because the mean of ``sum_i s_i``
is zero: so ``X_a`` is sub-Gaussian with variance ``B^2 / (4n)``; and ``|X_a - X_b|`` is
at most ``rho_S(a, b)``. The two bounds here follow from these two facts alone, for
every set of signs and every set of points, and so may be optimised after the fact.
"""

from typing import Any

import numpy as np

from jaxtheory.batching import check_number
from jaxtheory.bounds._ledger import BY_CONSTRUCTION, ON_TRUST, check_concrete

_SCALES = np.geomspace(0.01, 1.0, 9)


def loss_distances(losses: np.ndarray) -> np.ndarray:
    """``rho_S``, the mean absolute difference of losses, in float64 ``[r, r]``."""
    # Imported here because it takes 0.2 s, which `import jaxtheory` should not.
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(losses, "cityblock")) / losses.shape[1]


def resolve_distances(
    losses: np.ndarray, distances: Any, lipschitz: Any
) -> tuple[np.ndarray, float, list[tuple[str, str]]]:
    """Distances, the Lipschitz constant in them, and what is assumed of it.

    Args:
        losses: Losses ``[r, n]``, checked.
        distances: Distances between the records, or None for ``rho_S``.
        lipschitz: Their Lipschitz constant; None with ``rho_S``.

    Returns:
        Distances in float64, the constant, and the assumption.
    """
    if (distances is None) != (lipschitz is None):
        raise ValueError(
            "`distances` and `lipschitz` must be given together, or neither: in the "
            "distances of the losses themselves, which None takes, the constant is 1; "
            "in others it is not known."
        )
    if distances is None:
        text = "the loss is 1-Lipschitz, in the mean absolute difference of losses"
        return loss_distances(losses), 1.0, [(BY_CONSTRUCTION, text)]
    check_concrete(distances=distances)
    positive = lambda constant: 0 < constant < np.inf
    check_number("lipschitz", lipschitz, positive, "positive and finite")
    given, num = np.asarray(distances, np.float64), len(losses)
    shape = given.shape
    if shape != (num, num):
        raise ValueError(
            f"`distances` must have one row and column for each of the {num} records "
            f"of `losses`, but has shape {shape}."
        )
    valid = (
        np.isfinite(given) & (given >= 0) & (np.abs(given - given.T) <= 1e-5 * given)
    )
    if not valid.all() or np.diagonal(given).any():
        raise ValueError(
            "`distances` must be symmetric, finite and not negative, with zeros on the "
            f"diagonal, but {int(np.sum(~valid))} entries are not."
        )
    constant = float(lipschitz)
    _check_lipschitz(losses, given, constant)
    text = f"the loss is {constant:g}-Lipschitz in the distances given"
    return (given + given.T) / 2, constant, [(ON_TRUST, text)]


def _check_lipschitz(losses, distances, constant):
    """Raise where successive records show that the constant is too small."""
    changes = np.mean(np.abs(np.diff(losses, axis=0)), axis=1)
    steps = np.diagonal(distances, 1)
    excess = changes > constant * steps * (1 + 1e-5) + 1e-7
    if excess.any():
        raise ValueError(
            f"`lipschitz` must be a Lipschitz constant of the loss in `distances`, but "
            f"at {constant:g} it is too small for {int(excess.sum())} of "
            f"{len(changes)} pairs of successive records."
        )


def tree_lengths(distances: np.ndarray) -> np.ndarray:
    """Edge lengths of the minimum spanning tree (Prim), ``[r-1]`` in float64."""
    num = len(distances)
    nearest = distances[0].copy()
    outside = np.arange(num) > 0
    lengths = np.empty(num - 1)
    for step in range(num - 1):
        new = int(np.argmin(np.where(outside, nearest, np.inf)))
        lengths[step], outside[new] = nearest[new], False
        np.minimum(nearest, distances[new], out=nearest)
    return lengths


def e_alpha(distances: np.ndarray, alpha: float) -> float:
    """Sum of the tree's edge lengths to the power `alpha`; zero lengths count 0."""
    return float(np.sum(tree_lengths(distances) ** alpha))


def covering_gap(
    lifetime_sum: float,
    *,
    num_points: int,
    alpha: float,
    lipschitz: float,
    num_examples: int | float | np.ndarray,
    loss_bound: float,
) -> np.ndarray:
    r"""Twice the Rademacher complexity at most, from the lifetime sum ``E_alpha``.

    ``min_k 2 L (2 E_alpha / (k + 1))^(1/alpha) + B sqrt(2 ln(k) / n)`` over numbers
    ``k`` of points up to all ``r``, which need no radius. A largest subset of ``N``
    points further apart than ``s`` covers all within ``s``. In the distance
    ``d^alpha``, which is one for ``alpha <= 1``, walking around the tree of all points
    and stopping at those alone is a round trip of ``N`` steps above ``s^alpha`` and of
    length at most ``2 E_alpha``. So ``N <= k`` for the ``s`` above; and the maximal
    inequality over the ``N`` points is the rest.

    Args:
        lifetime_sum: ``E_alpha`` of the distances.
        num_points: ``r``.
        alpha: Power, in (0, 1].
        lipschitz: Of the loss in the distances.
        num_examples: ``n``, or several.
        loss_bound: ``B``.

    Returns:
        One bound for each number of examples.
    """
    n = np.asarray(num_examples, np.float64)[..., None]
    k = np.arange(1, num_points + 1)
    with np.errstate(over="ignore"):  # an infinite radius is no candidate
        radii = (2 * lifetime_sum / (k + 1)) ** (1 / alpha)
    radii[-1] = 0.0
    values = 2 * lipschitz * radii + loss_bound * np.sqrt(2 * np.log(k) / n)
    return np.asarray(values.min(axis=-1))


def published_covering_gap(
    lifetime_sum: float,
    *,
    alpha: float,
    lipschitz: float,
    num_examples: int | float,
    loss_bound: float,
) -> float:
    """``2B sqrt(2 ln(1 + K E_alpha) / n) + 2B/sqrt(n)``, K = 2 (2L sqrt(n)/B)^alpha."""
    root = np.sqrt(num_examples)
    constant = 2 * (2 * lipschitz * root / loss_bound) ** alpha
    logarithm = np.log1p(constant * lifetime_sum)
    return float(2 * loss_bound / root * (1 + np.sqrt(2 * logarithm)))


def positive_magnitude(distances: np.ndarray, scale: float) -> float:
    """Least found ``sum(b)`` of weights ``b >= 0`` with ``exp(-scale d) b >= 1``.

    The positive part of the magnitude's weights, divided by their smallest row sum: at
    most the positive magnitude (where the equations are solved exactly the row sums of
    the positive part are at least 1), and a valid number whatever the solver's error.
    """
    from scipy.linalg import get_lapack_funcs

    kernel = np.exp(-scale * distances)
    ones = np.ones(len(kernel))
    (solve,) = get_lapack_funcs(("posv",), (kernel,))
    _, weights, info = solve(kernel, ones)
    tried = [ones] if info else [ones, np.maximum(weights, 0)]
    return float(min(b.sum() / (kernel @ b).min() for b in tried))


def magnitude_gap(
    distances: np.ndarray,
    *,
    lipschitz: float,
    num_examples: int | float,
    loss_bound: float,
) -> float:
    r"""Twice the Rademacher complexity at most, from the positive magnitude.

    ``min_t (2/t) ln PMag(t L d) + t B^2 / (4n)``, over nine scales ``t``. Weights
    with ``sum_b exp(-t L d(a, b)) w_b >= 1`` for every ``a`` give ``exp(t X_a) <=
    sum_b w_b exp(t X_b)``, since ``X_a - L d(a, b) <= X_b``; so ``exp(t max X) <= sum_b
    w_b exp(t X_b)``, whose mean is at most ``PMag exp(t^2 B^2 / (8n))``.
    """
    points = _distinct(distances)
    if len(points) == 1:
        return 0.0
    top = np.sqrt(8 * num_examples * np.log(len(points))) / loss_bound
    values = [
        2 / t * np.log(positive_magnitude(points, t * lipschitz))
        + t * loss_bound**2 / (4 * num_examples)
        for t in top * _SCALES
    ]
    return float(min(values))


def published_magnitude_gap(
    distances: np.ndarray,
    *,
    lipschitz: float,
    num_examples: int | float,
    loss_bound: float,
) -> float:
    """``(2/t) ln PMag(t L d) + 2 t B^2 / n`` at the scale ``t = sqrt(n)``."""
    t = np.sqrt(num_examples)
    size = positive_magnitude(_distinct(distances), t * lipschitz)
    return float(2 / t * np.log(size) + 2 * t * loss_bound**2 / num_examples)


def _distinct(distances):
    """Without the points at distance zero from an earlier one."""
    first = np.argmax(distances == 0, axis=1)
    kept = np.flatnonzero(first == np.arange(len(distances)))
    return distances[np.ix_(kept, kept)]
