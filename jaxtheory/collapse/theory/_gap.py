"""How far from optimal at most: a lower bound on the best objective by duality."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize

from jaxtheory._types import LossFn
from jaxtheory.batching import check_examples, check_number, example_losses
from jaxtheory.collapse.theory._losses import (
    Counts,
    CrossEntropy,
    Examples,
    LossName,
    Number,
    SquaredError,
    check_concrete,
    check_decay,
    resolve_loss,
)
from jaxtheory.collapse.theory._minimise import Counted, newton, quasi_newton
from jaxtheory.collapse.theory._objective import check_targets

# A free bias makes the gradient of all outputs sum to zero over the examples. What is
# left of that must be rounding for the bound to hold.
_BALANCED = 1e-10


class OptimalityGap(NamedTuple):
    """How far from optimal a classifier and its features are at most.

    Attributes:
        primal: The objective at what was given.
        dual: A number that no classifier and no features can go below; minus infinity
            where none was found, because no free bias balances the gradient.
        gap: ``primal - dual``, at least 0 up to rounding; 0 proves a global optimum.
        scale: Factor ``s`` of the gradient that gives the bound. 1 at an optimum.
        gradient_ratio: Largest singular value of the gradient in the outputs over
            ``sqrt(lw lh)``: 1 at an optimum, below 1 if the origin is one. Above, the
            outputs are held back by more than the decay: training is not over.
    """

    primal: float
    dual: float
    gap: float
    scale: float
    gradient_ratio: float


class _Gradient(NamedTuple):
    """The gradient of the mean loss in the outputs, before weights of examples.

    Attributes:
        rows: Gradient of each example's loss. Shape ``[n, k]``.
        shares: Share of each row in the mean. Shape ``[n]``.
        norm: Largest singular value of the rows times ``sqrt(share / N)``.
        bias: Gradient in the bias. Shape ``[k]``.
    """

    rows: Float[np.ndarray, "n k"]
    shares: Float[np.ndarray, " n"]
    norm: float
    bias: Float[np.ndarray, " k"]


def optimality_gap(
    loss: LossName | LossFn,
    targets: Examples,
    *,
    weight_decay: Number,
    feature_decay: Number,
    logits: Float[Array | np.ndarray, "n k"] | None = None,
    classifier: tuple | None = None,
    features: Float[Array | np.ndarray, "n d"] | None = None,
    bias_decay: Number | None = None,
    counts: Counts | None = None,
    label_smoothing: Number = 0.0,
    conjugate: Callable | None = None,
) -> OptimalityGap:
    r"""Bound how much lower the unconstrained-features objective could be.

    The objective of one layer is ``(1/N) sum_i n_i loss(W h_i + b, y_i) + lw/2 ||W||^2
    + lh/2 sum_i n_i ||h_i||^2 + lb/2 ||b||^2``. Over all factors of outputs ``Z`` it
    is at least ``g(Z) + sqrt(lw lh) ||Z||_*`` (nuclear norm), which is convex for a
    convex loss. By duality no factors of any width go below

        -(1/N) sum_i n_i loss*(s r_i, y_i) - ||s G 1||^2 / (2 lb) ,

    with the convex conjugate ``loss*``, the gradients ``r_i`` of the losses at the
    given outputs, ``G`` the gradient of ``g``, and any ``s`` with ``s ||G||_2 <=
    sqrt(lw lh)``; the best such ``s`` is taken. For cross-entropy the bound is the mean
    entropy of ``(1-s) y + s p``. With a bias, the gradient is taken at the bias that is
    best for the given ``W h_i`` (a free bias needs ``G 1 = 0``).

    The bound holds whatever was given; at an optimum both sides are equal. Computed in
    float64 on the host, and rigorous up to its rounding.

    A network has no ``lh``. Where its features come from trained layers, the question
    "is it at its optimum" can be asked for the ``lh`` at which ``lw ||W||^2 =
    lh sum_i ||h_i||^2``, as holds at every critical point, with features around their
    mean where the bias is free. Far from collapse the bound is loose; how far the
    objective is above that of `predicted_geometry` then says more.

    Args:
        loss: ``"cross_entropy"``, ``"squared_error"`` (``||z - y||^2 / 2``), or a
            convex JAX function ``loss_fn(outputs[n, k], targets[n, ...]) ->
            losses[n]`` together with `conjugate`.
        targets: Class indices ``[n]``, target vectors ``[n, k]``, or whatever the
            function takes.
        weight_decay: ``lw``.
        feature_decay: ``lh``, for each example's features.
        logits: Outputs ``Z`` without factors: `primal` is that of their best factors.
        classifier: Instead, ``(W, b)`` with ``W`` of shape ``[k, d]`` and ``b`` of
            shape ``[k]`` or None.
        features: With the classifier, the features ``h_i``.
        bias_decay: ``lb``; needed if there is a bias, 0 for one without decay.
        counts: Examples ``n_i`` that share row ``i``; None is 1 each.
        label_smoothing: Weight of the uniform distribution (cross-entropy).
        conjugate: ``conjugate(duals[n, k], targets) -> [n]`` for a loss of one's own:
            ``sup_z u . z - loss(z, y)``, infinite outside its domain.

    Returns:
        Objective, lower bound, and their difference.

    Raises:
        ValueError: Shapes do not fit, arguments are traced or contradict each other, or
            `conjugate` is missing.

    Example:
        >>> import numpy as np
        >>> frame = 4.0984288 * (np.eye(4) - 1 / 4)
        >>> gap = optimality_gap(
        ...     "cross_entropy",
        ...     [0, 1, 2, 3],
        ...     counts=[10] * 4,
        ...     logits=frame,
        ...     weight_decay=5e-3,
        ...     feature_decay=5e-3,
        ... )
        >>> round(gap.primal, 7), gap.gap < 1e-8
        (0.2430016, True)

    References:
        Fazel, Hindi & Boyd 2001 and Srebro, Rennie & Jaakkola 2004 (the nuclear norm as
        a minimum over factors); Zhu et al. 2021, arXiv:2105.02375, appendix (its use
        for this objective). The bound itself is Fenchel duality.
    """
    check_concrete(targets=targets, logits=logits, features=features, counts=counts)
    check_concrete(classifier=classifier, bias_decay=bias_decay)
    loss_fn = resolve_loss(loss, label_smoothing)
    conjugate = _conjugate(loss_fn, conjugate)
    lw = check_decay(weight_decay=weight_decay)
    lh = check_decay(feature_decay=feature_decay)
    targets, weights = check_targets(targets, counts)
    outputs, bias = _outputs(targets, logits, classifier, features, bias_decay)
    lb = 0.0 if bias_decay is None else float(bias_decay)
    shares = weights / weights.sum()
    total = outputs if bias is None else outputs + bias[None, :]
    with jax.enable_x64(True):
        primal = float(_mean_loss(loss_fn, total, targets, shares))
        if bias is not None:
            primal += lb / 2 * np.sum(bias**2)
            bias = _best_bias(loss_fn, outputs, targets, shares, lb, bias)
            total = outputs + bias[None, :]
        gradient = _gradient(loss_fn, total, targets, weights)
    threshold = (lw * lh) ** 0.5
    if classifier is None:
        scaled = outputs * weights[:, None] ** 0.5
        primal += threshold * np.linalg.norm(scaled, "nuc")
    else:
        primal += _decay_terms(classifier[0], features, weights, lw, lh)
    penalty = _bias_penalty(gradient.bias, None if bias is None else lb)
    bound = lambda s: _bound(conjugate, gradient, targets, s) - s**2 * penalty
    dual, scale = _best_scale(bound, loss_fn, gradient, targets, threshold)
    primal, ratio = float(primal), gradient.norm / threshold
    return OptimalityGap(primal, dual, primal - dual, scale, ratio)


def _decay_terms(weight, features, weights, lw, lh):
    """The decay of classifier and features."""
    squares = np.sum(np.asarray(features, np.float64) ** 2, axis=1)
    weight = np.asarray(weight, np.float64)
    return lw / 2 * np.sum(weight**2) + lh / 2 * np.sum(weights * squares)


def _conjugate(loss_fn, conjugate):
    """The conjugate of the loss, from its name or from the user."""
    named = isinstance(loss_fn, CrossEntropy | SquaredError)
    if named and conjugate is not None:
        raise ValueError("`conjugate` must be None for a loss that is given by name.")
    if named:
        return loss_fn.conjugate
    if not callable(conjugate):
        raise ValueError(
            "`conjugate` must be given for a loss of your own, as a function "
            f"`conjugate(duals[n, k], targets) -> [n]`, but was {conjugate!r}."
        )
    return conjugate


def _outputs(targets, logits, classifier, features, bias_decay):
    """Outputs without bias, and the bias, after checking how they are given."""
    if bias_decay is not None:
        must = "None or a finite number of at least 0"
        check_number("bias_decay", bias_decay, lambda v: 0 <= v < np.inf, must)
    if logits is not None:
        if classifier is not None or features is not None or bias_decay is not None:
            raise ValueError(
                "`logits` must be given alone, without `classifier`, `features` and "
                "`bias_decay`: the bias in them cannot be told from the rest."
            )
        outputs = np.asarray(logits, np.float64)
        check_examples(targets=targets, logits=outputs)
        _check_matrix("logits", outputs, targets)
        return outputs, None
    if not isinstance(classifier, tuple | list) or len(classifier) != 2:
        raise ValueError(
            "`classifier` must be a pair `(weight, bias)` (the bias may be None) "
            f"unless `logits` are given, but was a {type(classifier).__name__}."
        )
    weight, bias = np.asarray(classifier[0], np.float64), classifier[1]
    check_examples(targets=targets, features=features)
    features = np.asarray(features, np.float64)
    if weight.ndim != 2 or features.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            "`classifier[0]` must have shape [k, d] and `features` [n, d], but have "
            f"shapes {weight.shape} and {features.shape}."
        )
    outputs = features @ weight.T
    _check_matrix("features @ weight.T", outputs, targets)
    if (bias is None) != (bias_decay is None):
        raise ValueError(
            "`bias_decay` must be given with a bias and only then: 0 for one without "
            "decay."
        )
    if bias is not None and np.shape(bias) != weight.shape[:1]:
        raise ValueError(
            f"`classifier[1]` (the bias) must be None or have shape {weight.shape[:1]},"
            f" but has shape {np.shape(bias)}."
        )
    return outputs, None if bias is None else np.asarray(bias, np.float64)


def _check_matrix(name, outputs, targets):
    """Raise unless outputs are ``[n, k]`` and named classes are among the ``k``."""
    if not np.all(np.isfinite(outputs)):
        raise ValueError(
            f"`{name}` must be finite, but {np.sum(~np.isfinite(outputs))} entries are "
            "not. What diverged has no gap."
        )
    if outputs.ndim != 2:
        raise ValueError(f"`{name}` must have shape [n, k], but has {outputs.shape}.")
    k = outputs.shape[1]
    if targets.ndim == 1 and targets.dtype.kind == "i":
        if targets.min() < 0 or targets.max() >= k:
            raise ValueError(
                f"`targets` must lie in [0, {k}) for {k} outputs, but range from "
                f"{targets.min()} to {targets.max()}."
            )
    elif targets.ndim == 2 and targets.shape[1] != k:
        raise ValueError(
            f"`targets` must have shape [n, {k}] for {k} outputs, but have "
            f"{targets.shape}."
        )


@partial(jax.jit, static_argnums=0)
def _mean_loss(loss_fn, outputs, targets, shares):
    losses = example_losses(loss_fn, outputs, targets, len(shares))
    return jnp.sum(shares * losses)


@partial(jax.jit, static_argnums=0)
def _loss_gradients(loss_fn, outputs, targets):
    """Gradient of each example's loss in its own outputs."""
    return jax.grad(lambda z: jnp.sum(loss_fn(z, targets)))(outputs)


@partial(jax.jit, static_argnums=0)
def _bias_gradient(loss_fn, bias, outputs, targets, shares, decay):
    """Value and gradient, in the bias, of the mean loss with its decay."""

    def value(bias):
        mean = _mean_loss(loss_fn, outputs + bias[None, :], targets, shares)
        return mean + decay / 2 * jnp.sum(jnp.square(bias))

    return jax.value_and_grad(value)(bias)


@partial(jax.jit, static_argnums=0)
def _bias_product(loss_fn, bias, vector, *rest):
    """Product of the Hessian in the bias with a vector."""
    gradient = lambda point: _bias_gradient(loss_fn, point, *rest)[1]
    return jax.jvp(gradient, (bias,), (vector,))[1]


def _best_bias(loss_fn, outputs, targets, shares, decay, bias):
    """The bias that is best for the given outputs without it."""
    rest = (outputs, targets, shares, decay)
    function = Counted(
        lambda point: _bias_gradient(loss_fn, point, *rest),
        lambda point, vector: _bias_product(loss_fn, point, vector, *rest),
    )
    near = quasi_newton(function, bias, 1e-8, 1000)
    return newton(function, near, 1e-11)


def _gradient(loss_fn, outputs, targets, weights):
    """The gradient at the outputs, in coordinates where repeated rows count each."""
    rows = np.array(_loss_gradients(loss_fn, outputs, targets))
    if isinstance(loss_fn, CrossEntropy):
        # Rows sum to zero. Where the own probability is nearly 1, all that is left of
        # its gradient is rounding: take it from the others, which a scale far above 1
        # would otherwise turn into a wrong bound.
        largest = np.abs(rows).argmax(axis=1)
        rows[np.arange(len(rows)), largest] -= rows.sum(axis=1)
    shares = weights / weights.sum()
    scaled = rows * (shares / weights.sum())[:, None] ** 0.5
    norm = float(np.linalg.norm(scaled, 2))
    return _Gradient(rows, shares, norm, shares @ rows)


def _bias_penalty(gradient, decay):
    """What the bound loses for the gradient in the bias at scale 1."""
    square = float(np.sum(gradient**2))
    if decay is None:
        return 0.0
    if decay > 0:
        return square / (2 * decay)
    return 0.0 if square**0.5 <= _BALANCED else np.inf


def _bound(conjugate, gradient, targets, scale):
    """The lower bound for one scale of the gradient, without the bias."""
    values = np.asarray(conjugate(scale * gradient.rows, targets), np.float64)
    return -float(gradient.shares @ values)


def _best_scale(bound, loss_fn, gradient, targets, threshold):
    """The largest bound among feasible scales; it is concave in the scale."""
    largest = threshold / gradient.norm if gradient.norm > 0 else 1.0
    if isinstance(loss_fn, CrossEntropy | SquaredError):
        largest = min(largest, loss_fn.largest_scale(gradient.rows, targets))

    def depth(scale):  # SciPy's search wants finite numbers
        value = bound(scale)
        return -value if np.isfinite(value) else 1e300

    found = optimize.fminbound(depth, 0.0, largest)
    scales = [min(1.0, largest), largest, float(np.asarray(found))]
    best = min(scales, key=depth)
    value = bound(best)
    return (float(value) if np.isfinite(value) else -np.inf), float(best)
