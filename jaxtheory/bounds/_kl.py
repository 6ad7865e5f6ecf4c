"""The inverse of the binary relative entropy, from which every certificate is read."""

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory.bounds._ledger import check_concrete

_EPS = np.finfo(np.float64).eps
_TINY = np.finfo(np.float64).tiny
# The bracket below holds at least 2**-28 of itself under the root (risk one ulp below
# 1), so 100 halvings reach the last bit of the distance, however small it is.
_HALVINGS = 100


def kl_inverse(
    risk: Real[ArrayLike, "..."], budget: Real[ArrayLike, "..."]
) -> float | Float[np.ndarray, "..."]:
    r"""The largest risk whose binary relative entropy to `risk` fits a budget.

    ``sup{q in [0, 1] : kl(risk || q) <= budget}``, with
    ``kl(r || q) = r ln(r / q) + (1 - r) ln((1 - r) / (1 - q))`` in nats. It turns a
    deviation inequality ``kl(observed || true) <= budget`` into an upper confidence
    limit of the true risk. Special values: ``kl_inverse(0, c) = 1 - exp(-c)``,
    ``kl_inverse(r, 0) = r``, ``kl_inverse(1, c) = 1``, and 1 for an infinite budget.

    Computed on the host in float64, whatever JAX's default precision is: a certificate
    is a Python number. It is always rounded up, by a few units in the last place.
    Never decreasing in `budget`.

    Args:
        risk: Observed risk, in [0, 1]. A number, or an array of any shape.
        budget: Right-hand side ``c >= 0``, in nats; may be infinite. Broadcasts
            against `risk`.

    Returns:
        The inverse, in [`risk`, 1]: a float when both are numbers, else a NumPy
        float64 array.

    Raises:
        ValueError: `risk` is outside [0, 1], `budget` is negative, one of them is NaN,
            or one of them is traced by a JAX transformation.

    Example:
        >>> round(kl_inverse(0.02, 0.05), 10)
        0.0985721677

    References:
        Langford, "Tutorial on practical prediction theory for classification", JMLR 6
        (2005), section 3; Maurer, arXiv cs/0411099.
    """
    check_concrete(risk=risk, budget=budget)
    r, c = np.asarray(risk, np.float64), np.asarray(budget, np.float64)
    if not np.all((r >= 0) & (r <= 1)):
        raise ValueError(
            "`risk` must lie in [0, 1] and not be NaN: it is a mean of losses in "
            "[0, 1]. Rescale or clip the losses."
        )
    if not np.all(c >= 0):
        raise ValueError("`budget` must be >= 0 and not NaN: it is in nats.")
    q = _invert(*np.broadcast_arrays(r, c))
    return float(q) if q.ndim == 0 else q


def _invert(r, c):
    """`kl_inverse` of valid float64 arrays of one shape.

    Bisects the distance ``q - r``, not ``q``: a distance far below the spacing of
    numbers around `r` still has all its digits. The sum is rounded up by more than
    the error of `_binary_kl`, a few eps, can move it: ``q kl'(q) >= kl``, so that no
    relative error grows on its way from kl to ``q``.
    """
    with np.errstate(over="ignore"):
        # kl(r||q) >= (q - r)^2 / (2 q), solved for q - r.
        high = np.minimum(1 - r, c + np.sqrt(c) * np.sqrt(2 * r + c))
    low = np.zeros_like(high)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = _binary_kl(r, middle) >= c
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    q = np.minimum((r + high) * (1 + 16 * _EPS), 1.0)
    return np.where(c == 0, r, q)


def _binary_kl(r, distance):
    """``kl(r || r + distance)`` for ``0 <= distance <= 1 - r``.

    As ``r h(t) + (1 - r) h(u)`` with ``h(t) = t - log(1 + t)``, ``t = distance / r``
    and ``u = -distance / (1 - r)``: both terms are positive, where the textbook form
    subtracts two numbers of order ``distance`` to get one of order ``distance^2``.
    """
    # Dividing by at least the smallest normal number leaves r = 0 and r = 1 exact.
    t = distance / np.maximum(r, _TINY)
    u = -distance / np.maximum(1 - r, _TINY)
    with np.errstate(divide="ignore", invalid="ignore"):
        far = distance - r * np.log1p(t)
        near = r * excess_over_log1p(np.minimum(t, 1.0))
        rest = (1 - r) * excess_over_log1p(u)
    return np.where(t < 0.5, near, far) + np.where(r == 1, 0.0, rest)


def excess_over_log1p(t: Float[ArrayLike, "..."]) -> Float[np.ndarray, "..."]:
    """``t - log(1 + t)`` for ``t >= -1`` in float64, without cancellation near 0.

    With ``s = t / (2 + t)``, ``log(1 + t) = 2 (s + s^3/3 + s^5/5 + ...)`` and
    ``t - 2 s = t s`` exactly, so the leading terms are subtracted on paper.
    """
    t = np.asarray(t)
    s = t / (2 + t)
    square = s * s
    tail = np.zeros_like(square)
    # |t| <= 1/2 gives s^2 <= 1/9: the first term left out is below 1e-17 of the sum.
    for k in range(37, 1, -2):
        tail = tail * square + 1 / k
    with np.errstate(divide="ignore"):
        direct = t - np.log1p(t)
    return np.where(np.abs(t) <= 0.5, s * (t - 2 * square * tail), direct)
