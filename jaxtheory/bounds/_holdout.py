"""The hold-out bound: what fresh examples alone certify."""

from typing import SupportsIndex

import numpy as np

from jaxtheory._types import Bound
from jaxtheory.batching import check_count
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    SETTING,
    check_concrete,
    check_delta,
    make_bound,
)


def holdout(
    num_errors: SupportsIndex, num_examples: SupportsIndex, *, delta: float
) -> Bound:
    r"""Clopper-Pearson upper limit of an error probability, from held-out errors.

    The largest ``q`` with ``P(Binomial(num_examples, q) <= num_errors) >= delta``,
    which is the ``1 - delta`` quantile of a Beta(num_errors + 1, num_examples -
    num_errors) distribution; ``1 - delta^(1/n)`` without errors, 1 with errors only.
    Exact for every ``n``, without a Chernoff or normal approximation: no valid limit
    that never decreases in `num_errors` is smaller. Computed on the host in float64
    and rounded up.

    Args:
        num_errors: Number of held-out examples that the predictor gets wrong.
        num_examples: Number of held-out examples ``n >= 1``.
        delta: Probability that the bound may fail, in (0, 1).

    Returns:
        A bound on the probability that the predictor errs on a new example, with
        complexity 0. Its setting: the predictor was fixed before the held-out examples
        were looked at (one of several, chosen by held-out errors, needs ``delta``
        divided by their number).

    Raises:
        ValueError: A count is not an integer, ``num_errors`` is not between 0 and
            `num_examples`, or `delta` is outside (0, 1).

    Example:
        >>> bound = holdout(3, 100, delta=0.05)
        >>> f"{bound.empirical_risk:.2f} {bound.value:.6f} {bound.certificate}"
        '0.03 0.075711 True'

    References:
        Clopper and Pearson, Biometrika 26 (1934); Langford, "Tutorial on practical
        prediction theory for classification", JMLR 6 (2005), section 3.
    """
    check_concrete(num_errors=num_errors, num_examples=num_examples)
    delta = check_delta(delta)
    errors = check_count(at_least=0, num_errors=num_errors)
    n = check_count(num_examples=num_examples)
    if errors > n:
        raise ValueError(
            f"`num_errors` must be at most `num_examples` = {n}, but was {errors}."
        )
    return make_bound(
        value=_upper_limit(errors, n, delta),
        empirical_risk=errors / n,
        complexity=0.0,
        delta=delta,
        assumptions=(
            INDEPENDENT,
            (SETTING, "the predictor was fixed before they were seen"),
            (BY_CONSTRUCTION, "the number of errors is binomial"),
        ),
    )


def _upper_limit(errors, n, delta):
    """The Clopper-Pearson limit, rounded up by more than SciPy's error."""
    # Imported here because it takes 0.2 s, which `import jaxtheory` should not.
    from scipy.special import betainccinv

    if errors == n:
        return 1.0
    if errors == 0:
        limit = -np.expm1(np.log(delta) / n)
    else:
        # The complement: 1 - delta would round a small delta away.
        limit = betainccinv(errors + 1, n - errors, delta)
    return min(limit * (1 + 1e-12), 1.0)
