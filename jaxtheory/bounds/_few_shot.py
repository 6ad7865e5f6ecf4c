"""Few-shot error of the nearest class mean, from moments of pairs of classes."""

from typing import Literal, SupportsIndex

import numpy as np

from jaxtheory._types import Bound
from jaxtheory.batching import check_count
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    ESTIMATED,
    ON_TRUST,
    SETTING,
    check_concrete,
    make_bound,
)
from jaxtheory.collapse import PairMoments


def few_shot(
    moments: PairMoments,
    num_shots: SupportsIndex | None,
    *,
    axis_variance: Literal["directional", "total"] = "directional",
    inequality: Literal["chebyshev", "cantelli"] = "chebyshev",
    num_target_classes: SupportsIndex | None = None,
) -> Bound:
    r"""Expected error of the nearest of class means taken from a few shots a class.

    With ``V = (v_i + v_j) / d^2``, ``Theta = (M4_i + M4_j) / d^4``, ``V~_ij`` the
    variance of class ``i`` along the line to class ``j`` over ``d^2`` and ``m`` shots,
    the difference of the two squared distances, over ``d^2``, has mean and variance

        mean     = 1 + (v_j - v_i) / (m d^2)
        variance <= S = 4 V~_ij + (sqrt(E1) + sqrt(E2) + sqrt(E3))^2
        E1 = (4/m) (V^2 + V/4),  E2 = V/m,  E3 = (Theta + 2 (m-1) V^2) / m^3

    and an error needs it to be negative: probability at most ``S / mean^2`` (Chebyshev,
    the published theorem) or ``S / (S + mean^2)`` (Cantelli, always smaller). The bound
    is the mean over classes ``i`` of the sum over ``j != i``. A pair counts at most 1,
    and 1 where its mean is not positive, where neither inequality says anything.

    From source to target classes: if the classes behind `moments` and `K'` others are
    drawn from one law, the mean over pairs is the same for both, and the bound on the
    new task is ``K' - 1`` times it (`num_target_classes`). With axis_variance "total"
    that is a bound by the CDNV of the source classes. Features trained on the source
    classes are more collapsed there than elsewhere; published bounds pay for it with a
    capacity that nobody has computed, so here it is an assumption taken on trust.

    Args:
        moments: What `collapse.pair_moments` returned.
        num_shots: Examples of each class that its mean is taken from; None for means
            that are known (``m`` infinite).
        axis_variance: "directional" takes ``V~_ij`` as measured; "total" replaces it by
            ``v_i / d^2``, which is all that the class-distance normalised variance
            (CDNV) knows.
        inequality: "chebyshev" or "cantelli".
        num_target_classes: Classes ``K'`` of a new task, at least 2, that the bound is
            carried over to; None for the classes of `moments` themselves.

    Returns:
        A bound in expectation over shots and examples (`delta` is None). Its
        `empirical_risk` is NaN, because it starts from moments and not from a risk;
        `complexity` is what the few shots cost against known means. Never a
        certificate: the moments are those of a sample, and the sample means, not upper
        limits.

    Raises:
        ValueError: `moments` are traced or of something else, `num_shots` is not a
            positive integer, an option is not one of its words, or fewer than two
            classes have examples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import collapse
        >>> labels = jnp.arange(4000) % 2
        >>> noise = 0.1 * jax.random.normal(jax.random.key(0), (4000, 20))
        >>> moments = collapse.pair_moments(
        ...     jnp.eye(1, 20) * labels[:, None] + noise, labels
        ... )
        >>> bound = few_shot(moments, 20)
        >>> print(f"{bound.value:.1f} {bound.certificate}")
        0.2 False

    References:
        Luthra, Salunkhe & Galanti 2026, arXiv:2603.03530, theorem 4.1; Galanti et al.
        2022, arXiv:2112.15121 (CDNV; from source to target classes).
    """
    if not isinstance(moments, PairMoments):
        raise ValueError(
            "`moments` must be what `collapse.pair_moments` returned, but is a "
            f"{type(moments).__name__}."
        )
    check_concrete(moments=moments)
    _check_word("axis_variance", axis_variance, ("directional", "total"))
    _check_word("inequality", inequality, ("chebyshev", "cantelli"))
    shots = None if num_shots is None else check_count(num_shots=num_shots)
    present = np.flatnonzero(np.asarray(moments.counts) > 0)
    if len(present) < 2:
        raise ValueError(
            "`moments` must be of at least two classes with examples, but are of "
            f"{len(present)}."
        )
    factor, transfer = 1.0, ()
    if num_target_classes is not None:
        targets = check_count(num_target_classes=num_target_classes, at_least=2)
        factor = (targets - 1) / (len(present) - 1)
        text = "target classes are drawn as those of the moments, which taught nothing"
        transfer = ((ON_TRUST, text),)
    value = factor * _mean_error(moments, present, shots, axis_variance, inequality)
    limit = factor * _mean_error(moments, present, None, axis_variance, inequality)
    return make_bound(
        value=value,
        empirical_risk=float("nan"),
        complexity=value - limit,
        delta=None,
        assumptions=(
            (SETTING, "shots and examples are drawn independently from their classes"),
            (SETTING, "classes are equally likely, with as many shots of each"),
            (BY_CONSTRUCTION, "the classifier takes the nearest mean of the shots"),
            (ESTIMATED, "the moments are those of a sample, not upper limits of them"),
            *transfer,
        ),
    )


def _check_word(name, value, words):
    """Raise unless `value` is one of `words`."""
    if value not in words:
        listed = " or ".join(f'"{word}"' for word in words)
        raise ValueError(f"`{name}` must be {listed}, but was {value!r}.")


def _mean_error(moments, present, shots, axis_variance, inequality):
    """The bound in float64, over the classes that have examples."""
    pick = lambda matrix: np.asarray(matrix, np.float64)[np.ix_(present, present)]
    own, fourth = pick(moments.variance), pick(moments.fourth)
    axis = own if axis_variance == "total" else pick(moments.directional)
    rest, mean = 0.0, 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        if shots is not None:
            both = own + own.T
            first = 4 / shots * (both**2 + both / 4)
            third = (fourth + fourth.T + 2 * (shots - 1) * both**2) / shots**3
            rest = np.sqrt(first) + np.sqrt(both / shots) + np.sqrt(third)
            mean = 1 + (own.T - own) / shots
        spread = 4 * axis + np.square(rest)
        base = spread if inequality == "cantelli" else 0.0
        errors = spread / (np.square(mean) + base)
    # Not a number: infinite over infinite, where two means coincide.
    useless = ~(np.asarray(mean) > 0) | np.isnan(errors)
    errors = np.where(useless, 1.0, np.minimum(errors, 1.0))
    np.fill_diagonal(errors, 0.0)
    return float(errors.sum() / len(present))
