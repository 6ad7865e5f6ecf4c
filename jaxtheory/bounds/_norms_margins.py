"""The margin bound of a class of functions, at the best margin or at a quantile."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

from jaxtheory._types import Bound
from jaxtheory.batching import check_number
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    ON_TRUST,
    check_concrete,
    check_delta,
    make_bound,
)


def margin_distribution(
    margins: Float[ArrayLike, " n"],
    rademacher: float,
    *,
    delta: float,
    quantile: float | None = None,
) -> Bound:
    r"""Bound on the error of a classifier from the distribution of its margins.

    For a class of functions whose margins ``g = f_y - max_{j != y} f_j`` have the
    empirical Rademacher complexity ``R`` on the ``n`` examples, the ramp ``r(g) =
    min(1, max(0, 1 - g / gamma))`` and any ``gamma``, with probability at least ``1 -
    delta w``, for all functions of the class,

    .. math:: \text{error} \le \frac1n \sum_i r(g_i) + \frac{2 R}{\gamma}
        + 3 \sqrt{\frac{\ln(2 / (\delta w))}{2 n}} .

    The margins are those of the grid ``gamma = 2^(q/2)``, all whole ``q``, each with
    its own ``w = 2 / (3 (|q| + 1) (|q| + 2))``, which add up to 1: the best is chosen,
    and paid for. At large ``gamma`` all of it tends to 1, so that the best bound is
    never far above: to see how vacuous one is, give a `quantile`.

    Args:
        margins: Of the training examples, one each.
        rademacher: ``R = E sup_f (1/n) sum_i s_i g_f(i)`` over random signs ``s``, or
            an upper limit of it. `linear_margin`, `spectral` and `path_norm` compute
            their own.
        delta: Probability that the bound may fail, in (0, 1).
        quantile: Take the margin below which this share of the examples is, in [0, 1],
            rounded down to the grid; None takes the margin that is best.

    Returns:
        The bound on the probability of error; `empirical_risk` is the mean ramp. No
        certificate: that `rademacher` is what it must be is taken on trust.

    Raises:
        ValueError: A value is out of range, traced or not finite; or the margin at the
            quantile is not positive.

    Example:
        >>> import numpy as np
        >>> margins = np.linspace(0.1, 1.9, 10_000)
        >>> bound = margin_distribution(margins, 0.01, delta=0.05)
        >>> f"{bound.value:.3f} {bound.empirical_risk:.3f} {bound.certificate}"
        '0.163 0.025 False'

    References:
        Koltchinskii & Panchenko, Ann. Statist. 30 (2002), theorem 2; Mohri,
        Rostamizadeh & Talwalkar, "Foundations of Machine Learning" (2018), theorem
        3.3 and 5.9.
    """
    check_concrete(margins=margins, rademacher=rademacher, quantile=quantile)
    finite = lambda value: 0 <= value < np.inf
    check_number("rademacher", rademacher, finite, "finite and at least 0")
    given = np.asarray(margins)
    real = given.dtype.kind in "fiu" or given.dtype.name == "bfloat16"
    if given.ndim != 1 or len(given) < 2 or not real:
        raise ValueError(
            "`margins` must be one real number for each of at least two examples, but "
            f"has shape {given.shape} and dtype {given.dtype}."
        )
    given = given.astype(np.float64)
    if not np.isfinite(given).all():
        raise ValueError(
            f"`margins` must be finite, but {int((~np.isfinite(given)).sum())} of "
            f"{len(given)} are not."
        )
    return margin_bound(
        given,
        lambda gammas: float(rademacher) / gammas,
        price=0.0,
        delta=delta,
        quantile=quantile,
        assumptions=(
            (ON_TRUST, "the class of functions was fixed before the examples"),
            (ON_TRUST, "`rademacher` is its empirical Rademacher complexity, or above"),
        ),
    )


def margin_bound(
    margins: np.ndarray,
    complexity: Callable[[np.ndarray], np.ndarray],
    *,
    price: float,
    delta: float,
    quantile: Any,
    assumptions: Sequence[tuple[str, str]],
) -> Bound:
    """The smallest bound over margins, or that at a quantile.

    Args:
        margins: One of each example, finite.
        complexity: Of margins ``gamma``, limits to the empirical Rademacher
            complexity of the ramp.
        price: Nats paid already, for the class.
        delta: As of `margin_distribution`.
        quantile: As of `margin_distribution`.
        assumptions: Beside those on the examples and the grid.
    """
    delta = check_delta(delta)
    check_concrete(quantile=quantile)
    places = _places(margins, quantile)
    gammas, n = 2.0 ** (places / 2), len(margins)
    with np.errstate(over="ignore"):
        risks = np.array([np.mean(np.clip(1 - margins / g, 0, 1)) for g in gammas])
    paid = price + grid_price(places)
    deviations = 3 * np.sqrt((np.log(2 / delta) + paid) / (2 * n))
    # What overflows is no limit.
    with np.errstate(over="ignore", invalid="ignore"):
        values = risks + 2 * complexity(gammas) + deviations
    values = np.where(np.isnan(values), np.inf, values)
    best = int(np.argmin(values))
    gamma, value, risk = gammas[best], values[best], risks[best]
    below = float(np.mean(margins < gamma))
    chosen = f"the margin {gamma:.3g} (above those of {below:.1%} of the examples)"
    return make_bound(
        value=value,
        empirical_risk=risk,
        complexity=value - risk,
        delta=delta,
        assumptions=(
            INDEPENDENT,
            *assumptions,
            (
                BY_CONSTRUCTION,
                f"{chosen} is one of a grid, {paid[best]:.1f} nats pay for it",
            ),
        ),
    )


def grid_price(places: Any) -> Any:
    """``-ln w`` of whole numbers, with ``w`` that add up to 1 over all of them."""
    sizes = np.abs(np.asarray(places, np.float64))
    return np.log(1.5 * (sizes + 1) * (sizes + 2))


def grid_up(value: float) -> tuple[float, float]:
    """A norm rounded up to the grid ``2^(q/8)``, and the price of ``q``."""
    if not np.isfinite(value):
        return np.inf, np.inf
    # A norm of zero would be infinitely far down the grid. The grid itself is larger
    # by 1e-9, so that rounding does not put a norm above its limit.
    place = int(np.ceil(8 * np.log2(max(value, 1e-12)) - 1e-9))
    return 2.0 ** (place / 8) * (1 + 1e-9), float(grid_price(place))


def _places(margins, quantile):
    """Where on the grid of margins to look."""
    if quantile is None:
        sizes = np.abs(margins)[margins != 0]
        if len(sizes) == 0:
            return np.zeros(1)
        low, high = 2 * np.log2(sizes.min()), 2 * np.log2(sizes.max())
        # Below the smallest margin nothing is gained; where the complexity is huge, far
        # above the largest, as the risk goes to 1. Double precision ends beyond +-2000.
        places = np.arange(np.floor(low) - 1, np.ceil(high) + 61)
        return np.unique(np.clip(places, -2000, 2000))
    check_number("quantile", quantile, lambda q: 0 <= q <= 1, "in [0, 1], or None")
    gamma = float(np.quantile(margins, quantile, method="lower"))
    if gamma <= 0:
        raise ValueError(
            f"`quantile` must be one at which the margin is positive, but at "
            f"{float(quantile)} it was {gamma:.3g}: {np.mean(margins <= 0):.1%} of the "
            "margins are not. Take a larger one, or None for the best margin."
        )
    return np.clip([np.floor(2 * np.log2(gamma))], -2000, 2000)
