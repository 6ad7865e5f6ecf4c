"""How sharp a quadratic may be before an optimizer diverges on it."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, Num

from jaxtheory.batching import check_number

Method = Literal[
    "gradient_descent", "heavy_ball", "nesterov", "ema_momentum", "adam", "nadam", "sam"
]
Decay = Literal["decoupled", "coupled"]

_WITHOUT_MOMENTUM = ("gradient_descent", "sam")
_PRECONDITIONED = ("adam", "nadam")


class StabilityThreshold(NamedTuple):
    """Where the edge of stability lies.

    Numbers of Python, or scalar arrays where an argument was one.

    Attributes:
        full_batch: Largest stable sharpness of full-batch training, of the loss
            without weight decay; preconditioned sharpness for Adam and NAdam.
        minibatch_low: Batch sharpness at which small-batch training settles.
        minibatch_high: Batch sharpness at which large-batch training settles.
    """

    full_batch: Any
    minibatch_low: Any
    minibatch_high: Any


def stability_threshold(
    method: Method,
    *,
    learning_rate: Num[ArrayLike, ""],
    momentum: Num[ArrayLike, ""] | None = None,
    weight_decay: Num[ArrayLike, ""] = 0.0,
    decay: Decay = "decoupled",
    radius: Num[ArrayLike, ""] | None = None,
    gradient_norm: Num[ArrayLike, ""] | None = None,
) -> StabilityThreshold:
    r"""Compute the sharpness above which an optimizer diverges on a quadratic.

    Each optimizer with fixed hyperparameters is a linear recursion along an eigenvector
    of curvature ``h``; the threshold is the ``h`` at which a root of its
    characteristic polynomial reaches -1 (no other root leaves the unit disc before).
    With learning rate ``eta`` and momentum ``b``:

    - ``gradient_descent``: ``2 / eta``
    - ``heavy_ball`` (``optax.sgd(momentum=b)``): ``2 (1 + b) / eta``
    - ``nesterov`` (``optax.sgd(momentum=b, nesterov=True)``):
      ``2 (1 + b) / ((1 + 2 b) eta)``
    - ``ema_momentum`` (``m <- b m + (1 - b) g``): ``2 (1 + b) / ((1 - b) eta)``
    - ``adam`` (``b = b1``): as ``ema_momentum``, on the *preconditioned* sharpness with
      the preconditioner held fixed (``38 / eta`` at ``b1 = 0.9``). RMSProp is
      ``b1 = 0``.
    - ``nadam`` (``optax.nadam``, once its bias corrections are 1):
      ``2 (1 + b) / ((1 - b) (1 + 2 b) eta)``, on the preconditioned sharpness
    - ``sam`` over plain gradient descent, with radius ``rho``, at gradient ``g``:
      ``|g| / (2 rho) (sqrt(1 + 8 rho / (eta |g|)) - 1)``

    **Weight decay.** The sharpness is that of the loss *without* decay. Decoupled
    (``w <- (1 - eta wd) w - ...``, as `optax.adamw`), it multiplies the threshold by
    ``1 - eta wd / 2``: for Adam ``(2 - eta wd) (1 + b) / ((1 - b) eta)``. Coupled
    (``wd w`` added to the gradient, which momentum then averages), it lowers the
    threshold by ``wd``. For gradient descent the two are the same.

    **SAM.** On a quadratic its gradient, at ``w + rho g / |g|``, is ``g + rho H g /
    |g|``: it descends with curvature ``h + rho h^2 / |g|``. That is the linearisation
    for motion along eigenvectors orthogonal to ``g``, which leave ``|g|`` as it is to
    first order. Along ``g`` itself the edge is not a divergence: there the motion has
    an orbit of period two, stable below ``2 / eta``, and the formula relates ``h`` to
    the gradient on it. The decay of an optimizer inside SAM enters as for gradient
    descent.

    **Minibatches.** Training settles where *batch sharpness* is ``2 / eta``; with
    heavy-ball momentum between ``2 (1 - b) / eta`` (small batches) and
    ``2 (1 + b) / eta`` (large ones). ``ema_momentum`` is heavy ball with the learning
    rate ``(1 - b) eta``. Other methods, and weight decay, have no published minibatch
    form, and the fields are NaN.

    Late in training the sharpness of cross-entropy falls by itself, because confident
    outputs have no curvature: a sharpness below the threshold is then no sign of
    stability.

    Args:
        method: Which recursion. Sign descent, Lion, Muon and active clipping take steps
            whose length does not shrink with the gradient: at no curvature do they
            converge or diverge, and they have no threshold.
        learning_rate: ``eta``. Traced (a schedule inside `jit`) it is taken on trust,
            and 0 gives an infinite threshold.
        momentum: ``b``; Adam's ``b1``. Required but for gradient descent and SAM, which
            have none.
        weight_decay: ``wd``, below ``2 / eta`` where it is decoupled.
        decay: How the decay enters.
        radius: ``rho``; for SAM alone.
        gradient_norm: Euclidean norm of the full-batch gradient where SAM begins its
            ascent; for SAM alone.

    Returns:
        The full-batch threshold and the range for minibatches.

    Raises:
        ValueError: The method has no threshold or is unknown; an argument is out of
            range, missing, or without meaning for the method; the decay is coupled
            under a preconditioner, which then scales it too: measure the sharpness of
            ``hessian(...)`` plus ``weight_decay`` times the identity instead.

    Example:
        >>> edge = stability_threshold("heavy_ball", learning_rate=0.5, momentum=0.5)
        >>> edge.full_batch, edge.minibatch_low
        (6.0, 2.0)
        >>> edge = stability_threshold(
        ...     "sam", learning_rate=0.5, radius=0.25, gradient_norm=0.5
        ... )
        >>> round(edge.full_batch, 6)  # h + rho h^2 / |g| = 2 / eta
        2.0

    References:
        arXiv:2103.00065 (gradient descent, momentum); arXiv:2207.14484 (Adam); Long &
        Bartlett, arXiv:2309.12488 (SAM); minibatch forms arXiv:2412.20553 and
        arXiv:2604.14108.
    """
    _check_method(method)
    _check_rates(method, learning_rate, momentum)
    _check_decay(method, learning_rate, weight_decay, decay)
    _check_ascent(method, radius, gradient_norm)
    if method == "sam":
        full = _sam(learning_rate, weight_decay, radius, gradient_norm)
        found = StabilityThreshold(full, math.nan, math.nan)
    else:
        b = 0.0 if method == "gradient_descent" else momentum
        found = _with_momentum(method, learning_rate, b, weight_decay, decay)
    _check_positive(found.full_batch, weight_decay)
    return found


def _sam(eta, weight_decay, radius, gradient_norm):
    """The root of ``h + rho h^2 / |g| = 2 / eta - wd``, without its cancellation."""
    inverse = eta / (2 - eta * weight_decay)
    nonlinear = 4 * radius * inverse / gradient_norm
    return 2 / (inverse + (inverse**2 + nonlinear) ** 0.5)


def _with_momentum(method, eta, b, weight_decay, decay):
    """`stability_threshold` of checked numbers, but for SAM."""
    factor = _momentum_factor(method, b)
    if decay == "coupled":
        full = 2 * factor / eta - weight_decay
    else:
        full = (2 - eta * weight_decay) * factor / eta
    low = _minibatch_low(method, eta, b, weight_decay)
    return StabilityThreshold(full, low, math.nan if low is math.nan else full)


def _momentum_factor(method, b):
    """The full-batch threshold over that of gradient descent."""
    averaged = method in ("ema_momentum", *_PRECONDITIONED)
    looks_ahead = method in ("nesterov", "nadam")
    scale = (1 - b) if averaged else 1
    return (1 + b) / (scale * (1 + 2 * b) if looks_ahead else scale)


def _minibatch_low(method, eta, b, weight_decay):
    """Where small batches settle, NaN where nobody has said."""
    decays = isinstance(weight_decay, Tracer) or bool(weight_decay != 0)
    if decays or method not in ("gradient_descent", "heavy_ball", "ema_momentum"):
        return math.nan
    return 2 / eta if method == "ema_momentum" else 2 * (1 - b) / eta


def _check_method(method):
    if method not in Method.__args__:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, Method.__args__))}, but was "
            f"{method!r}. Sign descent, Lion, Muon and active clipping have no "
            "threshold: the length of their steps does not shrink with the gradient."
        )


def _check_rates(method, learning_rate, momentum):
    positive = lambda eta: 0 < eta < math.inf
    check_number("learning_rate", learning_rate, positive, "positive and finite")
    if method not in _WITHOUT_MOMENTUM:
        inside = lambda b: 0 <= b < 1
        check_number("momentum", momentum, inside, f"in [0, 1) for {method!r}")
    elif momentum is not None and not _is_zero(momentum):
        raise ValueError(
            f"`momentum` must be left out for {method!r}, but was {momentum}. Choose "
            "'heavy_ball' or 'nesterov'."
        )


def _is_zero(number):
    """Whether a number is known to be zero."""
    return not isinstance(number, Tracer) and np.ndim(number) == 0 and number == 0


def _check_decay(method, learning_rate, weight_decay, decay):
    inside = lambda wd: 0 <= wd < math.inf
    check_number("weight_decay", weight_decay, inside, "at least 0 and finite")
    if decay not in Decay.__args__:
        raise ValueError(
            f"`decay` must be 'decoupled' or 'coupled', but was {decay!r}."
        )
    if decay == "coupled" and method in _PRECONDITIONED:
        raise ValueError(
            f"`decay` must be 'decoupled' for {method!r}, but was 'coupled': the "
            "preconditioner scales a coupled decay too. Leave it out, and measure the "
            "sharpness of the Hessian plus `weight_decay` times the identity."
        )
    traced = isinstance(learning_rate, Tracer) or isinstance(weight_decay, Tracer)
    if decay == "decoupled" and not traced and learning_rate * weight_decay >= 2:
        raise ValueError(
            "`weight_decay` must be below 2 / learning_rate when decoupled, but was "
            f"{weight_decay}: the decay alone diverges."
        )


def _check_positive(threshold, weight_decay):
    """Raise where the decay alone diverges, whatever the loss."""
    if not isinstance(threshold, Tracer) and threshold <= 0:
        raise ValueError(
            "`weight_decay` must leave room for a loss, but with "
            f"{weight_decay} the threshold would be {threshold}: the decay alone "
            "diverges. Lower it or the learning rate."
        )


def _check_ascent(method, radius, gradient_norm):
    positive = lambda value: 0 < value < math.inf
    for name, value in (("radius", radius), ("gradient_norm", gradient_norm)):
        if method == "sam":
            check_number(name, value, positive, "positive and finite for 'sam'")
        elif value is not None:
            raise ValueError(f"`{name}` must be left out for {method!r}: it is SAM's.")
