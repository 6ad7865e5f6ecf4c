"""The gap of a set from its dimension, as if coverings of it were known."""

from typing import Literal

import numpy as np

from jaxtheory._types import Bound
from jaxtheory.batching import check_number, check_word
from jaxtheory.bounds._ledger import ESTIMATED, INDEPENDENT, ON_TRUST, check_concrete
from jaxtheory.bounds._random_set import (
    STABLE,
    check_beta,
    check_swapped,
    published_size,
    swap_sizes,
)
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    IN_EXPECTATION,
    NO_INFORMATION_TERM,
    check_setting,
    gap_bound,
)


def fractal_dimension(
    empirical_risk: float,
    dimension: float,
    *,
    num_examples: int,
    loss_bound: float,
    scale: float | None = None,
    lipschitz: float = 1.0,
    constants: Literal["derived", "published"] = "derived",
) -> Bound:
    r"""Bound on the gap of a trajectory from its fractal dimension ``D``.

        derived:    2 L s + B sqrt(4 D ln(1/s) / n)
        published:  2 L s + 2 B sqrt(4 D ln(1/s) / n) + (I + ln(1/zeta))/sqrt(n) + ...

    for a set that ``s^(-2D)`` balls of radius ``s`` cover, and a loss in ``[0, B]``:
    twice the Rademacher complexity of the centres, of losses taken around ``B/2``. Of
    the published sum only the two terms that are written out can be computed. What it
    has besides is named in the assumptions: the information ``I`` that the set has
    about the examples, a constant ``C`` in ``C B^2 / sqrt(n)``, and the radius below
    which the covering number behaves like its limit.

    Args:
        empirical_risk: Mean training loss at the end of the run, in ``[0, B]``.
        dimension: Upper box dimension ``D >= 0`` of the set, for instance
            `dynamics.topology.persistent_homology_dimension` of distances in the losses
            (``rho_S``). The dimension of a slowly moving path is near 2 whatever it
            learned; hold it against its nulls.
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.
        scale: Radius ``s`` in (0, 1); None is ``1 / sqrt(n)``.
        lipschitz: Of the loss in the metric of `dimension`; 1 in ``rho_S``.
        constants: "derived" or "published".

    Returns:
        The two known terms as a bound in expectation (`delta` is None). Never a
        certificate, and without the unknown terms not even a bound: a correlate in
        units of the loss.

    Raises:
        ValueError: An argument is out of range or traced.

    Example:
        >>> bound = fractal_dimension(0.1, 1.5, num_examples=50_000, loss_bound=1.0)
        >>> round(bound.complexity, 4)
        0.0344

    References:
        Simsekli et al., arXiv:2006.09313; Dupuis et al., arXiv:2302.02766; the form of
        Tuci et al., arXiv:2604.19740, theorem 4.5 and corollary A.4.
    """
    return _dimension_bound(
        empirical_risk,
        dimension,
        (ESTIMATED, "the dimension, from finitely many iterates"),
        num_examples=num_examples,
        loss_bound=loss_bound,
        scale=scale,
        lipschitz=lipschitz,
        constants=constants,
    )


def sharpness_dimension(
    empirical_risk: float,
    dimension: float,
    *,
    num_examples: int,
    loss_bound: float,
    scale: float | None = None,
    lipschitz: float = 1.0,
    constants: Literal["derived", "published"] = "derived",
) -> Bound:
    r"""Bound on the gap at the edge of stability from the Sharpness Dimension.

    `fractal_dimension` with the Sharpness Dimension for ``D``, which is at least the
    box dimension of the random attractor of training, if there is one. It is that of a
    set in weight space: its metric is the Euclidean one, and `lipschitz` must be known
    in it. It saturates near the number of parameters, where the bound is vacuous.

    Args:
        empirical_risk: Mean training loss at the end of the run, in ``[0, B]``.
        dimension: ``dynamics.stability.sharpness_dimension(...).value``, or the one
            from a spectral density.
        num_examples: As for `fractal_dimension`.
        loss_bound: As for `fractal_dimension`.
        scale: As for `fractal_dimension`.
        lipschitz: Lipschitz constant of the loss in the weights; 1 is a wish.
        constants: As for `fractal_dimension`.

    Returns:
        The two known terms as a bound in expectation (`delta` is None). Never a
        certificate.

    Raises:
        ValueError: An argument is out of range or traced.

    Example:
        >>> bound = sharpness_dimension(
        ...     0.1, 12_000.0, num_examples=50_000, loss_bound=1.0
        ... )
        >>> bound.vacuous
        True

    References:
        Tuci, Korkmaz, Simsekli & Birdal, arXiv:2604.19740, theorem 4.5.
    """
    return _dimension_bound(
        empirical_risk,
        dimension,
        (ON_TRUST, "the Sharpness Dimension is at least the attractor's"),
        num_examples=num_examples,
        loss_bound=loss_bound,
        scale=scale,
        lipschitz=lipschitz,
        constants=constants,
    )


def random_set_box(
    empirical_risk: float,
    beta: float,
    dimension: float,
    *,
    num_examples: int,
    loss_bound: float,
    num_swapped: int | None = None,
    scale: float | None = None,
    lipschitz: float = 1.0,
    constants: Literal["derived", "published"] = "derived",
) -> Bound:
    r"""Bound on the gap of a random set, from stability and its box dimension ``D``.

        derived:    min_J  2 s L + B sqrt(4 D ln(1/s) / J) + 2 J beta
        published:  2 (B/n + s L + beta^(1/3) (1 + B sqrt(4 D ln(1/s))))

    over ``J`` up to ``n``, at a radius ``s`` below which the set is covered by at most
    ``s^(-2D)`` balls. (The published form is that of ``J = beta^(-2/3)``; taking losses
    around ``B/2`` halves its square root.)

    Args:
        empirical_risk: Mean training loss, in ``[0, B]``.
        beta: As for `random_set_stability`.
        dimension: Upper box dimension ``D >= 0``.
        num_examples: Number ``n >= 2`` of training examples.
        loss_bound: Largest loss ``B`` that an example can have.
        num_swapped: As for `random_set_stability`.
        scale: Radius ``s`` in (0, 1); None is ``1 / sqrt(n)``.
        lipschitz: Of the loss in the metric of `dimension`; 1 in ``rho_S``.
        constants: "derived" or "published".

    Returns:
        Bound in expectation (`delta` is None). Never a certificate: a dimension is a
        limit of radii to zero, and a finite set has dimension 0.

    Raises:
        ValueError: An argument is out of range or traced.

    Example:
        >>> bound = random_set_box(0.0, 1e-6, 1.5, num_examples=50_000, loss_bound=1.0)
        >>> round(bound.complexity, 3)
        0.085

    References:
        Tuci et al., arXiv:2507.06775 (box-counting form).
    """
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    beta = check_beta(beta)
    dimension, scale, lipschitz = _check_covering(dimension, scale, lipschitz, n)
    check_word("constants", constants, ("derived", "published"))
    swapped = check_swapped(num_swapped, n)
    root = largest * np.sqrt(-4 * dimension * np.log(scale))
    if constants == "published":
        size = published_size(beta, n, swapped)
        gap = 2 * (largest / n + scale * lipschitz + size * beta + root / np.sqrt(size))
    else:
        sizes = swap_sizes(n, swapped)
        gap = 2 * scale * lipschitz + np.min(root / np.sqrt(sizes) + 2 * sizes * beta)
    return gap_bound(
        empirical_risk=risk,
        gap=float(gap),
        loss_bound=largest,
        delta=None,
        assumptions=[
            INDEPENDENT,
            BOUNDED,
            STABLE,
            (ESTIMATED, "the dimension"),
            *_covering_assumptions(scale, lipschitz),
            IN_EXPECTATION,
        ],
    )


def _dimension_bound(
    empirical_risk,
    dimension,
    assumed,
    *,
    num_examples,
    loss_bound,
    scale,
    lipschitz,
    constants,
):
    """``2 L s + c B sqrt(4 D ln(1/s) / n)``, c = 1 or 2, as a bound."""
    risk, n, largest = check_setting(empirical_risk, num_examples, loss_bound)
    dimension, radius, constant = _check_covering(dimension, scale, lipschitz, n)
    check_word("constants", constants, ("derived", "published"))
    factor = 1 if constants == "derived" else 2
    root = np.sqrt(-4 * dimension * np.log(radius) / n)
    return gap_bound(
        empirical_risk=risk,
        gap=float(2 * constant * radius + factor * largest * root),
        loss_bound=largest,
        delta=None,
        assumptions=[
            INDEPENDENT,
            NO_INFORMATION_TERM,
            BOUNDED,
            assumed,
            *_covering_assumptions(radius, constant),
            (ON_TRUST, "the published C B^2 / sqrt(n), of unknown C, is left out"),
            IN_EXPECTATION,
        ],
    )


def _check_covering(
    dimension: float, scale: float | None, lipschitz: float, num_examples: int
) -> tuple[float, float, float]:
    """Dimension, radius and Lipschitz constant as floats; raise if out of range."""
    check_concrete(dimension=dimension, scale=scale, lipschitz=lipschitz)
    finite = lambda value: 0 <= value < np.inf
    check_number("dimension", dimension, finite, "finite and at least 0")
    radius = 1 / np.sqrt(num_examples) if scale is None else scale
    check_number("scale", radius, lambda s: 0 < s < 1, "a radius in (0, 1)")
    positive = lambda value: 0 < value < np.inf
    check_number("lipschitz", lipschitz, positive, "positive and finite")
    return float(dimension), float(radius), float(lipschitz)


def _covering_assumptions(scale: float, lipschitz: float) -> list[tuple[str, str]]:
    """What a dimension is taken to say of the set."""
    return [
        (
            ON_TRUST,
            f"a set of dimension D is covered by s^(-2D) balls of radius {scale:.3g}",
        ),
        (ON_TRUST, f"the loss is {lipschitz:g}-Lipschitz in its metric (1 in rho_S)"),
    ]
