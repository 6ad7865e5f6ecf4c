"""How sharp a quadratic may be before an optimizer diverges on it."""

import math
from typing import Literal, NamedTuple

from jaxtheory.batching import check_number

Method = Literal["gradient_descent", "heavy_ball", "nesterov", "adam"]


class StabilityThreshold(NamedTuple):
    """Where the edge of stability lies.

    Attributes:
        full_batch: Largest stable sharpness of full-batch training; preconditioned
            sharpness for Adam.
        minibatch_low: Batch sharpness at which small-batch training settles.
        minibatch_high: Batch sharpness at which large-batch training settles.
    """

    full_batch: float
    minibatch_low: float
    minibatch_high: float


def stability_threshold(
    method: Method, *, learning_rate: float, momentum: float | None = None
) -> StabilityThreshold:
    r"""Compute the sharpness above which an optimizer diverges on a quadratic.

    From the spectral radius of each optimizer's linear recursion on a quadratic of
    curvature ``h``, with learning rate ``eta`` and momentum ``b``:

    - ``gradient_descent``: ``2 / eta``
    - ``heavy_ball`` (``optax.sgd(momentum=b)``): ``(2 + 2 b) / eta``
    - ``nesterov``: ``(2 + 2 b) / (eta (1 + 2 b))``
    - ``adam`` (exponential averaging, ``b = b1``): ``2 (1 + b) / ((1 - b) eta)``, on
      the preconditioned sharpness (``38 / eta`` at ``b1 = 0.9``)

    Minibatch training settles where *batch sharpness* is ``2 / eta``; with heavy-ball
    momentum between ``2 (1 - b) / eta`` (small batches) and ``2 (1 + b) / eta`` (large
    ones). Other methods have no published minibatch form, and the fields are NaN.

    Args:
        method: Which recursion.
        learning_rate: ``eta``.
        momentum: ``b``; Adam's ``b1``. Required but for gradient descent, which has
            none.

    Returns:
        The full-batch threshold and the range for minibatches.

    Raises:
        ValueError: `learning_rate` is not positive and finite, `momentum` is outside
            ``[0, 1)``, missing or without meaning, or the method is unknown.

    Example:
        >>> edge = stability_threshold("heavy_ball", learning_rate=0.5, momentum=0.5)
        >>> edge.full_batch, edge.minibatch_low
        (6.0, 2.0)

    References:
        arXiv:2103.00065; arXiv:2207.14484; minibatch forms arXiv:2412.20553 and
        arXiv:2604.14108.
    """
    check_number(
        "learning_rate",
        learning_rate,
        lambda eta: 0 < eta < math.inf,
        "positive and finite",
    )
    if method == "gradient_descent":
        if momentum not in (None, 0):
            raise ValueError(
                "`momentum` must be left out for 'gradient_descent', but was "
                f"{momentum}. Choose 'heavy_ball' or 'nesterov'."
            )
    else:
        check_number(
            "momentum", momentum, lambda b: 0 <= b < 1, f"in [0, 1) for {method!r}"
        )
    return _threshold(method, learning_rate, momentum)


def _threshold(method, eta, b):
    """`stability_threshold` of checked numbers."""
    if method == "gradient_descent":
        return StabilityThreshold(2 / eta, 2 / eta, 2 / eta)
    if method == "heavy_ball":
        high = (2 + 2 * b) / eta
        return StabilityThreshold(high, 2 * (1 - b) / eta, high)
    nan = float("nan")
    if method == "nesterov":
        return StabilityThreshold((2 + 2 * b) / (eta * (1 + 2 * b)), nan, nan)
    if method == "adam":
        return StabilityThreshold(2 * (1 + b) / ((1 - b) * eta), nan, nan)
    raise ValueError(
        "`method` must be 'gradient_descent', 'heavy_ball', 'nesterov' or 'adam', but "
        f"was {method!r}. Sign-based and actively clipped methods have no threshold."
    )
