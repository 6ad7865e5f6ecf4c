"""The gap of a trajectory from its topology, beside what counting its points gives."""

from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_number, check_word
from jaxtheory.bounds._ledger import INDEPENDENT, VERIFIED, check_delta
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    LOSSES_IN_RANGE,
    NO_INFORMATION_TERM,
    check_losses,
    count_examples,
    gap_bound,
)
from jaxtheory.bounds._trajectory_finite_set import finite_set_gap
from jaxtheory.bounds._trajectory_geometry import (
    covering_gap,
    e_alpha,
    magnitude_gap,
    published_covering_gap,
    published_magnitude_gap,
    resolve_distances,
)


def topological(
    losses: Real[ArrayLike, "r n"],
    *,
    loss_bound: float,
    num_examples: int | None = None,
    complexity: Literal["e_alpha", "positive_magnitude"] = "e_alpha",
    alpha: float = 1.0,
    constants: Literal["derived", "published"] = "derived",
    distances: Float[ArrayLike, "r r"] | None = None,
    lipschitz: float | None = None,
    delta: float | None = None,
) -> Bound:
    r"""Bound on the gap of all recorded iterates at once, from their topology.

    The smaller of `finite_set`, which only counts the ``r`` records, and twice the
    Rademacher complexity of the set they form in ``rho_S``, the mean absolute
    difference of losses, at most (for a loss in ``[0, B]``)

        e_alpha:            min_k 2 L (2 E_alpha/(k+1))^(1/alpha) + B sqrt(2 ln(k)/n)
        positive_magnitude: min_t (2/t) ln PMag(t L W) + t B^2 / (4n)

    with the lifetime sum ``E_alpha`` (tree edges to the power alpha, summed, see
    `dynamics.topology.e_alpha`) and the positive magnitude at scale ``t L``, ``L = 1``
    in ``rho_S``. Both are proved in ``_trajectory_geometry.py`` for every finite set;
    they hold for each number ``k`` of points up to ``r`` and each scale ``t``, so the
    best is taken.
    The published forms, ``constants="published"``, are larger:

        2 B sqrt(2 ln(1 + K E_alpha) / n) + 2 B / sqrt(n), K = 2 (2 L sqrt(n)/B)^alpha
        (2/t) ln PMag(t L W) + 2 t B^2 / n                 at t = sqrt(n)

    With `delta`, ``3 B sqrt(ln(4 / delta) / (2n))`` is added (two deviations of bounded
    differences, at half of `delta`), and the other half goes to `finite_set`.

    Passing through the Rademacher complexity costs a factor of 2: geometry wins only
    where the iterates' losses are so close together that ``r`` points count for fewer
    than ``r^(1/4)`` (published: ``1 + K E_alpha < r^(1/16)``). Which one won is said in
    the assumptions.

    Never a certificate. The theorem is about a set fixed before the examples; for the
    iterates of training an information term is missing, in both. Nor is the smaller of
    two bounds in expectation, chosen by the data, a bound in expectation.

    Args:
        losses: Losses of the ``n`` training examples at each of ``r`` records, such as
            `dynamics.example_losses` recorded.
        loss_bound: Largest loss ``B`` that an example can have.
        num_examples: Number of training examples where `losses` are those of a random
            subset, which then estimate risk and distances; None if they are of all.
        complexity: "e_alpha" or "positive_magnitude".
        alpha: Power of the edge lengths, in (0, 1]; for a larger one a fine path from
            end to end has a sum near zero, and no such bound holds.
        constants: "derived" or "published".
        distances: Other distances between the records, for instance
            `dynamics.topology.pairwise_distances`; None computes ``rho_S`` in float64.
        lipschitz: Lipschitz constant ``L`` in `distances`: ``rho_S <= L d``. Taken on
            trust, and refused where successive records contradict it.
        delta: Probability that the bound may fail (but for the information term), in
            (0, 1); None for the statement in expectation.

    Returns:
        Bound on the risk of the last record; `complexity` is the bound on the gap.

    Raises:
        ValueError: An argument is out of range, of another shape or traced, or
            `lipschitz` is contradicted.

    Memory:
        ``r^2`` numbers; ``r^2 n`` operations for ``rho_S`` and ``3 r^3`` for magnitudes
        (1,000 records of 6,000 examples: 1.2 s of one core, and 5 s).

    Example:
        >>> import numpy as np
        >>> still = 0.2 + 1e-6 * np.arange(500)[:, None] * np.ones((1, 10_000))
        >>> bound = topological(still, loss_bound=1.0)
        >>> print(
        ...     f"{bound.complexity:.4f} {finite_set_gap(500, 10_000, 1.0, None):.4f}"
        ... )
        0.0010 0.0176

    References:
        Andreeva et al., arXiv:2407.08723, theorems on lifetime sums and on positive
        magnitude (constants of the published forms as quoted by arXiv:2507.06775).
    """
    array, largest = check_losses(losses, loss_bound)
    check_word("complexity", complexity, ("e_alpha", "positive_magnitude"))
    check_word("constants", constants, ("derived", "published"))
    alpha = check_alpha(alpha)
    delta = None if delta is None else check_delta(delta)
    metric, constant, assumed = resolve_distances(array, distances, lipschitz)
    n, estimated = count_examples(array, num_examples)
    num = len(array)
    own = set_gap(
        metric,
        complexity=complexity,
        alpha=alpha,
        constants=constants,
        lipschitz=constant,
        num_examples=n,
        loss_bound=largest,
    )
    if delta is not None:
        own += 3 * largest * np.sqrt(np.log(4 / delta) / (2 * n))
    counted = finite_set_gap(num, n, largest, None if delta is None else delta / 2)
    return gap_bound(
        empirical_risk=float(array[-1].mean()),
        gap=min(own, counted),
        loss_bound=largest,
        delta=delta,
        assumptions=[
            INDEPENDENT,
            NO_INFORMATION_TERM,
            BOUNDED,
            LOSSES_IN_RANGE,
            *estimated,
            *assumed,
            smaller_of(own, counted),
            *([IN_EXPECTATION] if delta is None else []),
        ],
    )


def set_gap(
    distances: np.ndarray,
    *,
    complexity: str,
    alpha: float,
    constants: str,
    lipschitz: float,
    num_examples: int,
    loss_bound: float,
) -> float:
    """The term of `topological` without the finite set, in expectation."""
    shared = dict(lipschitz=lipschitz, num_examples=num_examples, loss_bound=loss_bound)
    if complexity == "positive_magnitude":
        bound = magnitude_gap if constants == "derived" else published_magnitude_gap
        return bound(distances, **shared)
    lifetimes = e_alpha(distances, alpha)
    if constants == "published":
        return published_covering_gap(lifetimes, alpha=alpha, **shared)
    num = len(distances)
    return float(covering_gap(lifetimes, num_points=num, alpha=alpha, **shared))


def smaller_of(own: float, counted: float) -> tuple[str, str]:
    """The assumption that says which term was the smaller one."""
    texts = (f"the topological term, {own:.6g}", f"the finite set's, {counted:.6g}")
    less, more = texts if own < counted else texts[::-1]
    return VERIFIED, f"the gap is at most {less}, which is not above {more}"


def check_alpha(alpha: float) -> float:
    """The power as a float; raise unless it lies in (0, 1]."""
    check_number(
        "alpha", alpha, lambda a: 0 < a <= 1, "in (0, 1], where d^alpha is a distance"
    )
    return float(alpha)
