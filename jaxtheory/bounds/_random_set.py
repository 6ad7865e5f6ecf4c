"""The gap of a trajectory without an information term, from its stability."""

from typing import Any, Literal

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_count, check_number, check_word
from jaxtheory.bounds._ledger import ESTIMATED, INDEPENDENT, ON_TRUST, check_concrete
from jaxtheory.bounds._topological import check_alpha, smaller_of
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    LOSSES_IN_RANGE,
    check_losses,
    check_setting,
    gap_bound,
)
from jaxtheory.bounds._trajectory_finite_set import finite_set_gap
from jaxtheory.bounds._trajectory_geometry import (
    covering_gap,
    e_alpha,
    published_covering_gap,
    resolve_distances,
)

STABLE = (
    ESTIMATED,
    "`beta` is the random-set stability (paired runs measure a mean over fresh "
    "examples, where the theorem has the swapped ones and their largest difference)",
)


def random_set_stability(
    empirical_risk: float,
    beta: float,
    *,
    num_examples: int,
    num_points: int,
    loss_bound: float,
    num_swapped: int | None = None,
    constants: Literal["derived", "published"] = "derived",
) -> Bound:
    r"""Bound on the gap of all iterates at once, from stability and their number.

    .. math:: \min_{J \le n} \; B \sqrt{\ln T / (2J)} + 2 J \beta

    over whole ``J``, for a loss in ``[0, B]`` and ``T`` iterates. The mean over all
    subsets of ``J`` of the ``n`` examples is the empirical risk, so the expected
    largest gap is at most the one against ``J`` of them. Train again with those ``J``
    swapped for fresh ones: the set of iterates is independent of them, and the maximal
    inequality of `finite_set` holds for ``J`` examples; and every iterate has one in
    the new set whose losses are within ``J beta``, which is paid for the risk and for
    the empirical risk. No information term is left.

    With ``constants="published"`` the first term is ``2 B sqrt(2 ln T / J)``, by way of
    the Rademacher complexity: four times as large.

    Args:
        empirical_risk: Mean training loss of the last iterate (or of another one), in
            ``[0, B]``.
        beta: Stability per swapped example, at least 0 and in units of the loss:
            ``dynamics.stability.random_set_stability(...).beta.value`` from paired
            runs.
        num_examples: Number ``n >= 2`` of training examples.
        num_points: Number ``T`` of iterates in the set.
        loss_bound: Largest loss ``B`` that an example can have.
        num_swapped: Take this ``J`` and no other: that of the paired runs, for which
            alone `beta` is known. None takes the best, as if `beta` were the same for
            all; it is not: on digits it was 9e-4 with 9 of 897 examples swapped, and
            1.6e-4 with 90, because one is enough to set runs apart.
        constants: "derived" or "published".

    Returns:
        Bound in expectation on the risk of that iterate (`delta` is None); `complexity`
        is the bound on the gap of all ``T``. Never a certificate: `beta` is estimated,
        and from below.

    Raises:
        ValueError: An argument is out of range or traced.

    Example:
        >>> shared = dict(num_examples=50_000, num_points=500, loss_bound=1.0)
        >>> tight = random_set_stability(0.0, 1e-4, **shared)
        >>> published = random_set_stability(0.0, 1e-4, constants="published", **shared)
        >>> print(f"{tight.value:.3f} {published.value:.2f}")
        0.161 0.41

    References:
        Tuci, Bastian, Dupuis, Navab, Birdal & Simsekli, arXiv:2507.06775.
    """
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    beta = check_beta(beta)
    num_points = check_count(num_points=num_points)
    check_word("constants", constants, ("derived", "published"))
    size = check_swapped(num_swapped, n)
    gap, size = counted_gap(beta, num_points, n, largest, constants, size)
    return gap_bound(
        empirical_risk=risk,
        gap=gap,
        loss_bound=largest,
        delta=None,
        assumptions=[INDEPENDENT, BOUNDED, STABLE, _at_size(size), IN_EXPECTATION],
    )


def random_set_topological(
    fresh_losses: Real[ArrayLike, "r m"],
    beta: float,
    *,
    empirical_risk: float,
    num_examples: int,
    loss_bound: float,
    num_swapped: int | None = None,
    alpha: float = 1.0,
    constants: Literal["derived", "published"] = "derived",
    distances: Float[ArrayLike, "r r"] | None = None,
    lipschitz: float | None = None,
) -> Bound:
    r"""Bound on the gap of all iterates at once, from stability and topology.

    The smaller of `random_set_stability` and ``min_J G(J) + 2 J beta``, with ``G`` the
    lifetime-sum term of `topological` for ``J`` in place of ``n`` examples:

        G(J) = min_k  2 L (2 E_alpha / (k + 1))^(1/alpha) + B sqrt(2 ln(k) / J)

    The published theorem has ``J = beta^(-2/3)`` (here never above ``n``: no more can
    be swapped, and the theorem is wrong beyond), where it reads

        beta^(1/3) (2 + 2B + 2B sqrt(2 ln(1 + K E_alpha))), K = 2 (2 L sqrt(J)/B)^alpha

    The examples of ``G`` are ``J`` fresh ones, independent of the set. So in ``rho_S``
    the distances must be those of the losses of *fresh* examples, as paired runs record
    them, not of the training examples. That there are ``m`` of them and not ``J`` only
    raises the mean of ``G``: it is concave in the distances.

    Args:
        fresh_losses: Losses of ``m`` fresh examples at each of ``r`` records.
        beta: As for `random_set_stability`.
        empirical_risk: Mean training loss of the last record (or of another one).
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.
        num_swapped: As for `random_set_stability`.
        alpha: Power of the edge lengths, in (0, 1].
        constants: "derived" or "published", in both terms.
        distances: As for `topological`.
        lipschitz: As for `topological`.

    Returns:
        Bound in expectation on the risk of that record (`delta` is None). Never a
        certificate; which of the two terms won, and at which ``J``, is in the
        assumptions.

    Raises:
        ValueError: An argument is out of range, of another shape or traced, or
            `lipschitz` is contradicted.

    Memory:
        ``r^2`` numbers and ``200 r``; ``r^2 m`` operations.

    Example:
        >>> import numpy as np
        >>> still = 0.2 + 1e-6 * np.arange(500)[:, None] * np.ones((1, 1000))
        >>> bound = random_set_topological(
        ...     still, 1e-4, empirical_risk=0.0, num_examples=50_000, loss_bound=1.0
        ... )
        >>> round(bound.complexity, 4)  # 2 E_1 + 2 beta, with J = 1
        0.0012

    References:
        Tuci et al., arXiv:2507.06775, theorem 4.4.
    """
    array, _ = check_losses(fresh_losses, loss_bound, name="fresh_losses")
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    beta, alpha = check_beta(beta), check_alpha(alpha)
    check_word("constants", constants, ("derived", "published"))
    metric, constant, assumed = resolve_distances(array, distances, lipschitz)
    swapped = check_swapped(num_swapped, n)
    own, size = topological_gap(
        e_alpha(metric, alpha),
        beta,
        num_points=len(array),
        alpha=alpha,
        lipschitz=constant,
        num_examples=n,
        loss_bound=largest,
        constants=constants,
        num_swapped=swapped,
    )
    counted, other = counted_gap(beta, len(array), n, largest, constants, swapped)
    return gap_bound(
        empirical_risk=risk,
        gap=min(own, counted),
        loss_bound=largest,
        delta=None,
        assumptions=[
            INDEPENDENT,
            BOUNDED,
            LOSSES_IN_RANGE,
            (ON_TRUST, "`fresh_losses` are of examples that training has not seen"),
            *assumed,
            STABLE,
            smaller_of(own, counted),
            _at_size(size if own < counted else other),
            IN_EXPECTATION,
        ],
    )


def counted_gap(
    beta: float,
    num_points: int,
    num_examples: int,
    loss_bound: float,
    constants: str,
    num_swapped: int | None = None,
) -> tuple[float, float]:
    """The least of ``c B sqrt(ln T / (2J)) + 2 J beta``, and its ``J``; c is 1 or 4.

    The derivative in ``J`` vanishes at ``(c B sqrt(ln T / 2) / (4 beta))^(2/3)``, and
    the sum is convex: the best whole ``J`` is next to it.
    """
    factor = 1 if constants == "derived" else 4
    price = factor * loss_bound * np.sqrt(np.log(num_points) / 2)
    best = (price / (4 * beta)) ** (2 / 3) if beta > 0 else np.inf
    near = np.clip([np.floor(best), np.ceil(best)], 1, num_examples)
    if num_swapped is not None:
        near = np.array([float(num_swapped)])
    gap = lambda size: (
        factor * finite_set_gap(num_points, size, loss_bound, None) + 2 * size * beta
    )
    size = min(near.tolist(), key=gap)
    return gap(size), size


def topological_gap(
    lifetime_sum: float,
    beta: float,
    *,
    num_points: int,
    alpha: float,
    lipschitz: float,
    num_examples: int,
    loss_bound: float,
    constants: str,
    num_swapped: int | None = None,
) -> tuple[float, float]:
    """The topological term of `random_set_topological`, and its ``J``."""
    shared = dict(alpha=alpha, lipschitz=lipschitz, loss_bound=loss_bound)
    if constants == "published":
        size = published_size(beta, num_examples, num_swapped)
        term = published_covering_gap(lifetime_sum, num_examples=size, **shared)
        return term + 2 * size * beta, size
    sizes = swap_sizes(num_examples, num_swapped)
    terms = covering_gap(
        lifetime_sum, num_points=num_points, num_examples=sizes, **shared
    )
    gaps = terms + 2 * sizes * beta
    best = int(np.argmin(gaps))
    return float(gaps[best]), float(sizes[best])


def swap_sizes(num_examples: int, num_swapped: int | None) -> np.ndarray:
    """The given number, or 200 at most up to `num_examples`, evenly in logarithm."""
    if num_swapped is not None:
        return np.array([float(num_swapped)])
    return np.unique(np.round(np.geomspace(1, num_examples, 200)))


def published_size(beta: float, num_examples: int, num_swapped: int | None) -> float:
    """The given number, or ``beta^(-2/3)``, but from 1 to ``n``."""
    if num_swapped is not None:
        return float(num_swapped)
    size = beta ** (-2 / 3) if beta > 0 else np.inf
    return float(np.clip(size, 1, num_examples))


def check_swapped(num_swapped: Any, num_examples: int) -> int | None:
    """The number of swapped examples, or None; raise if it is above all of them."""
    if num_swapped is None:
        return None
    if (size := check_count(num_swapped=num_swapped)) > num_examples:
        raise ValueError(
            f"`num_swapped` must be at most `num_examples` = {num_examples}, but was "
            f"{size}."
        )
    return size


def _at_size(size):
    return (
        ESTIMATED,
        f"`beta` for J = {size:.6g} swapped examples, which the bound uses",
    )


def check_beta(beta: Any) -> float:
    """The stability as a float; raise unless it is finite and not negative."""
    check_concrete(beta=beta)
    check_number(
        "beta",
        beta,
        lambda value: 0 <= value < np.inf,
        "finite and at least 0, in units of the loss",
    )
    return float(beta)
