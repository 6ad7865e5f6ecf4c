"""Whether a critical point of the unconstrained-features model is a strict saddle."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Float

from jaxtheory._types import KeyArray, LossFn
from jaxtheory.batching import check_key, check_number
from jaxtheory.collapse.theory._losses import (
    Counts,
    Examples,
    LossName,
    Number,
    check_concrete,
    resolve_loss,
)
from jaxtheory.collapse.theory._objective import (
    Problem,
    flatten_start,
    hessian_product,
    make_problem,
    unflatten,
    value_and_grad,
)
from jaxtheory.linalg import bottom_eigenpairs, function_operator

_ITERATIONS = 200


class StrictSaddle(NamedTuple):
    """The smallest curvature at a point, and what follows from it.

    Attributes:
        verdict: ``"not_critical"``: the gradient is too large to say anything.
            ``"strict_saddle"``: there is a direction of negative curvature.
            ``"minimum"``: there is none, to second order. ``"undecided"``: Lanczos has
            not converged.
        value: Smallest eigenvalue of the Hessian that Lanczos found. The true one is
            not above it, so a negative one is proved.
        residual: ``|H v - value v|``; an eigenvalue lies within this of the value.
        gradient_norm: Euclidean norm of the gradient.
        direction: Unit eigenvector as ``(layers, features, bias)``: going both ways
            along it lowers the objective where the value is negative.
    """

    verdict: Literal["not_critical", "strict_saddle", "minimum", "undecided"]
    value: float
    residual: float
    gradient_norm: float
    direction: tuple[tuple, Float[np.ndarray, "n d"], Float[np.ndarray, " k"] | None]


class _Product(NamedTuple):
    """The Hessian product of a problem, compared by value."""

    problem: Problem

    def __call__(self, flat, data, vector):
        return hessian_product(self.problem, flat, data, vector)


def strict_saddle(
    loss: LossName | LossFn,
    targets: Examples,
    point: tuple[Any, Any, Any],
    *,
    weight_decay: Number,
    feature_decay: Number,
    bias_decay: Number | None = None,
    counts: Counts | None = None,
    label_smoothing: Number = 0.0,
    focusing: Number = 0.0,
    key: KeyArray,
    tolerance: Number = 1e-6,
) -> StrictSaddle:
    r"""Tell a minimum of the unconstrained-features model from a strict saddle.

    Lanczos with Hessian products gives the smallest eigenvalue of the Hessian in all
    factors, in coordinates where features that `counts` examples share count each
    (``sqrt(n_i) h_i``). For one layer, a convex loss and at least as many features as
    outputs, every critical point that is no global minimum is a strict saddle: a
    minimum to second order is the optimum there, which `optimality_gap` proves. With
    more layers a local minimum need not be global: zero is one.

    Rotations of the features do not change the objective, so the smallest eigenvalue at
    a minimum is 0. As negative counts what is below ``-tolerance max(lw, lh)``, and as
    critical a gradient up to ``tolerance max(lw, lh) max(1, |point|)``: at a critical
    point the decay's own gradient is of that size without the tolerance.

    In float64, whatever JAX's default precision is.

    Args:
        loss: As for `unconstrained_features`, as are the next seven.
        targets: Targets, ``[n, ...]``.
        point: ``(layers, features, bias)``, as in the results of
            `unconstrained_features`, ``[:3]`` (also of `Optimum`).
        weight_decay: ``lw``, for every layer.
        feature_decay: ``lh``, for each example's features.
        bias_decay: ``lb``, may be 0; None leaves the bias out.
        counts: Examples that share features and target; None is 1 each.
        label_smoothing: Weight of the uniform distribution (cross-entropy).
        focusing: Exponent of the focal factor (cross-entropy).
        key: Start vector of Lanczos.
        tolerance: What counts as zero, in units of the decay.

    Returns:
        The verdict, the eigenvalue, and how far they can be trusted.

    Raises:
        ValueError: Shapes do not fit, or a number is out of range.

    Memory:
        ``min(p, 200) p`` numbers for ``p`` entries in all factors.

    Example:
        >>> import jax, numpy as np
        >>> origin = ((np.zeros((4, 4)),), np.zeros((4, 4)), None)
        >>> found = strict_saddle(
        ...     "cross_entropy",
        ...     [0, 1, 2, 3],
        ...     origin,
        ...     counts=[10] * 4,
        ...     weight_decay=5e-3,
        ...     feature_decay=5e-3,
        ...     key=jax.random.key(0),
        ... )
        >>> found.verdict, round(found.value, 6)
        ('strict_saddle', -0.074057)

    References:
        Zhu et al. 2021, arXiv:2105.02375, theorem 3.2 (cross-entropy, ``d > K``).
    """
    check_key(key)
    check_concrete(point=point)
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number")
    loss_fn = resolve_loss(loss, label_smoothing, focusing)
    triple = isinstance(point, tuple | list) and len(point) == 3
    if not triple or not isinstance(point[0], tuple | list) or len(point[0]) < 1:
        raise ValueError(
            "`point` must be `(layers, features, bias)`, the layers a tuple of one or "
            "more weights, but has structure "
            f"{jax.tree.structure(point, is_leaf=lambda leaf: leaf is None)}. Of a "
            "result pass `result[:3]`, of one weight `((weight,), features, bias)`."
        )
    problem, data = make_problem(
        loss_fn,
        targets,
        weight_decay=weight_decay,
        feature_decay=feature_decay,
        bias_decay=bias_decay,
        counts=counts,
        num_outputs=np.shape(point[0][0])[0],
        num_features=np.shape(point[1])[-1],
        num_layers=len(point[0]),
    )
    flat = flatten_start(problem, data, point)
    with jax.enable_x64(True):
        gradient_norm = np.linalg.norm(value_and_grad(problem, flat, data)[1])
        pair = _smallest(problem, flat, data, key)
    value, residual = float(pair.values[0]), float(pair.residuals[0])
    decay = float(tolerance) * max(data.weight_decay, data.feature_decay)
    if gradient_norm > decay * max(1.0, np.linalg.norm(flat)):
        verdict = "not_critical"
    elif value < -decay:
        verdict = "strict_saddle"
    else:
        verdict = "minimum" if pair.converged[0] else "undecided"
    direction = unflatten(problem, np.asarray(pair.vectors[0]), data.counts)
    return StrictSaddle(verdict, value, residual, float(gradient_norm), direction)


def _smallest(problem, flat, data, key):
    """The smallest eigenpair of the Hessian at a flat vector."""
    arrays = jax.tree.map(jnp.asarray, (flat, data))
    structure = jax.ShapeDtypeStruct(flat.shape, np.float64)
    operator = function_operator(
        _Product(problem), *arrays, structure=structure, tags=lx.symmetric_tag
    )
    num_iterations = min(flat.size, _ITERATIONS)
    return bottom_eigenpairs(
        operator, key=key, num_iterations=num_iterations, tolerance=1e-8
    )
