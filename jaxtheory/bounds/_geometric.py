"""Few-shot error of the nearest class mean, from how fast features change."""

from typing import SupportsIndex

import numpy as np
from jaxtyping import Array, Float, Integer

from jaxtheory._types import Bound
from jaxtheory.batching import check_count, check_examples, check_number
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    ESTIMATED,
    ON_TRUST,
    SETTING,
    check_concrete,
    make_bound,
)


def geometric_few_shot(
    complexities: Float[Array | np.ndarray, " k"],
    features: Float[Array | np.ndarray, "n d"],
    labels: Integer[Array | np.ndarray, " n"],
    num_shots: SupportsIndex | None,
    *,
    poincare_constant: float,
) -> Bound:
    r"""Few-shot error of the nearest class mean, from geometric complexity.

    Let the inputs of each class satisfy a Poincare inequality with constant ``c``:
    ``Var g(x) <= c E ||grad g(x)||^2`` for every smooth ``g``. Then the variance of the
    features of class ``i`` is ``v_i <= c GC_i``, and the class-distance normalised
    variance of a pair at distance ``d`` is at most ``c (GC_i + GC_j) / (2 d^2)``. An
    example of class ``i`` is as near to the mean of ``m`` shots of class ``j`` only if
    twice its distance from its own mean, and the errors of both sample means, reach
    ``d`` together (triangle inequality); by Markov's and Minkowski's inequalities with
    probability at most

        (c / d^2) (2 sqrt(GC_i) + sqrt(GC_i / m) + sqrt(GC_j / m))^2 .

    The bound is the mean over classes ``i`` of the sum over ``j != i``; a pair counts
    at most 1. No fourth moments enter, unlike `few_shot`, which is tighter where they
    and the variances are at hand. (The paper shows that complexity bounds collapse; the
    form and constants here are derived as said, and are not the paper's.)

    Args:
        complexities: Geometric complexity of the features on each class:
            `collapse.geometric_complexity` with ``labels=``, its ``value``.
        features: Features of examples, for the distances between class means.
        labels: Their class indices, in ``[0, k)``. Two or more classes must occur.
        num_shots: Examples of each class that its mean is taken from; None for means
            that are known (``m`` infinite).
        poincare_constant: ``c``, in squared units of the inputs. Of a Gaussian, the
            largest eigenvalue of its covariance; of data it is not known.

    Returns:
        A bound in expectation over shots and examples (`delta` is None), with the
        fields as in `few_shot`. Never a certificate: the constant is taken on trust,
        complexities and class means are those of a sample.

    Raises:
        ValueError: Shapes do not fit, a value is traced, not finite or out of range, or
            fewer than two classes have examples.

    Example:
        >>> import jax.numpy as jnp
        >>> features, labels = 10 * jnp.eye(2)[jnp.arange(6) % 2], jnp.arange(6) % 2
        >>> bound = geometric_few_shot(
        ...     jnp.array([2.0, 2.0]), features, labels, 5, poincare_constant=1.0
        ... )
        >>> print(f"{bound.value:.3f} {bound.certificate}")
        0.084 False

    References:
        Munn, Dherin & Gonzalvo 2024, arXiv:2405.15706 (complexity, Poincare inequality
        and collapse); Galanti et al. 2022, arXiv:2112.15121 (CDNV and few shots).
    """
    check_concrete(complexities=complexities, features=features, labels=labels)
    check_number(
        "poincare_constant", poincare_constant, lambda c: 0 < c < np.inf, "positive"
    )
    shots = None if num_shots is None else check_count(num_shots=num_shots)
    slopes, distances = _check(complexities, features, labels)
    roots = np.sqrt(float(poincare_constant) * slopes)
    value = _mean_error(roots, distances, shots)
    return make_bound(
        value=value,
        empirical_risk=float("nan"),
        complexity=value - _mean_error(roots, distances, None),
        delta=None,
        assumptions=(
            (SETTING, "shots and examples are drawn independently from their classes"),
            (SETTING, "classes are equally likely, with as many shots of each"),
            (BY_CONSTRUCTION, "the classifier takes the nearest mean of the shots"),
            (ON_TRUST, "inputs of a class have the Poincare constant that was given"),
            (ESTIMATED, "complexities and class means are those of a sample"),
        ),
    )


def _check(complexities, features, labels):
    """Complexities and distances in float64, of the classes that have examples."""
    n = check_examples(features=features, labels=labels)
    slopes, h = (np.asarray(a, np.float64) for a in (complexities, features))
    y = np.asarray(labels)
    if h.ndim != 2 or slopes.ndim != 1:
        raise ValueError(
            "`features` must have shape [n, d] and `complexities` shape [k], but have "
            f"shapes {h.shape} and {slopes.shape}."
        )
    in_range = y.shape == (n,) and np.issubdtype(y.dtype, np.integer)
    if not in_range or y.min() < 0 or y.max() >= len(slopes):
        raise ValueError(
            f"`labels` must be a vector of integers in [0, {len(slopes)}), one class "
            f"for each of `complexities`, but has shape {y.shape} and dtype {y.dtype}, "
            "or a value out of range."
        )
    present = np.unique(y)
    if len(present) < 2:
        raise ValueError("`labels` must hold at least two classes, but hold one.")
    slopes = slopes[present]
    if not np.isfinite(h).all() or not np.all((slopes >= 0) & (slopes < np.inf)):
        raise ValueError(
            "`features` must be finite and `complexities` finite and not negative for "
            "every class that occurs."
        )
    means = np.stack([h[y == c].mean(axis=0) for c in present])
    distances = np.linalg.norm(means[:, None] - means[None, :], axis=2)
    return slopes, distances


def _mean_error(roots, distances, shots):
    """The bound, of the square roots of limits to the class variances."""
    noise = np.zeros_like(roots) if shots is None else roots / np.sqrt(shots)
    lengths = (2 * roots + noise)[:, None] + noise[None, :]
    # Coinciding means have no limit below 1, whatever the complexities.
    apart = distances > 0
    ratios = np.where(apart, lengths / np.where(apart, distances, 1), 1)
    errors = np.minimum(np.square(ratios), 1)
    np.fill_diagonal(errors, 0)
    return errors.sum() / len(roots)
