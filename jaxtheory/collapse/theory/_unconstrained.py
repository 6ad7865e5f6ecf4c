"""Numerical optima of the unconstrained-features model, to nearly full precision."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxtheory._types import KeyArray, LossFn
from jaxtheory.batching import (
    check_count,
    check_key,
    check_number,
)
from jaxtheory.collapse.theory._losses import (
    Counts,
    Examples,
    LossName,
    Number,
    check_concrete,
    resolve_loss,
)
from jaxtheory.collapse.theory._minimise import (
    gradient_flow,
    newton,
    quasi_newton,
)
from jaxtheory.collapse.theory._objective import (
    counted_objective,
    flatten_start,
    make_problem,
    num_entries,
    outputs_of,
    unflatten,
)

_METHODS = {"quasi_newton": quasi_newton, "gradient_flow": gradient_flow}


class UnconstrainedFeatures(NamedTuple):
    """A critical point of the unconstrained-features model, found numerically.

    Attributes:
        layers: Weights from the last layer to the first: ``([k, d],)`` for one layer,
            ``([k, d], [d, d], ...)`` for more.
        features: The free features, one row for each target. Shape ``[n, d]``.
        bias: Shape ``[k]``; None without `bias_decay`.
        outputs: ``W_M ... W_1 h_i + b``. Shape ``[n, k]``.
        objective: Value of the objective, decay included.
        gradient_norm: Euclidean norm of its gradient in all factors, as if each example
            had its own features.
        imbalance: Largest Frobenius norm of ``lw W_{j+1}^T W_{j+1} - lw W_j W_j^T`` and
            of ``lw W_1^T W_1 - lh sum_i n_i h_i h_i^T``: 0 at every critical point.
        converged: `gradient_norm` is at most the tolerance. It says nothing of whether
            the point is a global optimum: see `optimality_gap` and `strict_saddle`.
        num_evaluations: Gradients and Hessian products that it took.
    """

    layers: tuple[Float[np.ndarray, "_ _"], ...]
    features: Float[np.ndarray, "n d"]
    bias: Float[np.ndarray, " k"] | None
    outputs: Float[np.ndarray, "n k"]
    objective: float
    gradient_norm: float
    imbalance: float
    converged: bool
    num_evaluations: int


def unconstrained_features(
    loss: LossName | LossFn,
    targets: Examples,
    *,
    weight_decay: Number,
    feature_decay: Number,
    bias_decay: Number | None = None,
    counts: Counts | None = None,
    num_outputs: int | None = None,
    num_features: int | None = None,
    num_layers: int = 1,
    label_smoothing: Number = 0.0,
    focusing: Number = 0.0,
    key: KeyArray | None = None,
    start: tuple | None = None,
    method: Literal["quasi_newton", "gradient_flow"] = "quasi_newton",
    tolerance: float = 1e-10,
    max_evaluations: int = 20_000,
) -> UnconstrainedFeatures:
    r"""Minimise a loss over the last layers and the features themselves.

    The objective, with ``N = sum_i n_i`` examples, is

        (1/N) sum_i n_i loss(W_M ... W_1 h_i + b, y_i)
            + lw/2 sum_j ||W_j||_F^2 + lh/2 sum_i n_i ||h_i||^2 + lb/2 ||b||^2 .

    Give one target for each example to let every example have its own features (the
    full problem), or one for each class with `counts` to let its examples share them.
    For a convex loss, sharing loses nothing: replacing features by their class mean
    never raises the objective, and at the optimum all examples of a class coincide.

    With one layer, a convex loss and at least as many features as outputs, every local
    minimum is global and descent from a random start finds it. With more layers, zero
    is a local minimum: what is found depends on the start, and on the method.

    Solved on the host in float64, whatever JAX's default precision is. ``quasi_newton``
    is L-BFGS (SciPy) in coordinates where layers and features decay alike;
    ``gradient_flow`` integrates ``d theta / dt = -gradient`` with a stiff solver, in
    the factors themselves (features times the root of their counts). Both then take
    Newton steps by MINRES as long as these lower the gradient.

    Args:
        loss: ``"cross_entropy"``, ``"squared_error"`` (``||z - y||^2 / 2``), or a JAX
            function ``loss_fn(outputs[n, k], targets[n, ...]) -> losses[n]``.
        targets: Class indices ``[n]``, target vectors ``[n, k]``, or whatever the
            function takes.
        weight_decay: ``lw``, for every layer.
        feature_decay: ``lh``, for each example's features.
        bias_decay: ``lb``, may be 0; None leaves the bias out.
        counts: Examples ``n_i`` that share features and target ``i``; None is 1 each.
        num_outputs: Number of outputs ``k``. None takes the largest class index plus
            one, or the width of the target vectors.
        num_features: Width ``d``. None takes ``k``, with which nothing is lost.
        num_layers: Number ``M`` of linear layers above the features.
        label_smoothing: Weight of the uniform distribution (cross-entropy).
        focusing: Exponent of the focal factor ``(1 - p_y)^focusing`` (cross-entropy).
        key: Random start: entries of variance ``1/d`` in layers and 1 in features.
        start: Instead of `key`: ``(layers, features, bias)``, as in the result.
        method: Descent that is used before Newton's method.
        tolerance: Gradient norm below which the result counts as converged.
        max_evaluations: Gradients to spend on the descent.

    Returns:
        The point that was found, and whether it is critical.

    Raises:
        ValueError: A decay is not positive, arguments are traced or do not fit, or not
            exactly one of `key` and `start` is given.

    Memory:
        ``60 p`` numbers for ``p`` entries in all factors; flow: ``p^2``, the dense
        Jacobian of the stiff solver.

    Example:
        >>> import jax
        >>> found = unconstrained_features(
        ...     "cross_entropy",
        ...     [0, 1, 2, 3],
        ...     counts=[10] * 4,
        ...     weight_decay=5e-3,
        ...     feature_decay=5e-3,
        ...     key=jax.random.key(0),
        ... )
        >>> found.converged, round(found.objective, 7)
        (True, 0.2430016)

    References:
        Mixon, Parshall & Pi 2020, arXiv:2011.11619; Zhu et al. 2021, arXiv:2105.02375
        (the objective, eq. 3, and its landscape, theorem 3.2).
    """
    if (key is None) == (start is None):
        raise ValueError(
            "Exactly one of `key` and `start` must be given. For a random start pass "
            "`key=jax.random.key(0)`."
        )
    if key is not None:
        check_key(key)
    check_concrete(start=start)
    loss_fn = resolve_loss(loss, label_smoothing, focusing)
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number")
    max_evaluations = check_count(max_evaluations=max_evaluations)
    if method not in _METHODS:
        raise ValueError(
            f"`method` must be 'quasi_newton' or 'gradient_flow', but was {method!r}."
        )
    problem, data = make_problem(
        loss_fn,
        targets,
        weight_decay=weight_decay,
        feature_decay=feature_decay,
        bias_decay=bias_decay,
        counts=counts,
        num_outputs=num_outputs,
        num_features=num_features,
        num_layers=num_layers,
    )
    with jax.enable_x64(True):
        flat = _start(problem, data, key, start)
        return _minimise(problem, data, flat, method, float(tolerance), max_evaluations)


def _start(problem, data, key, start):
    """The flat vector to start from."""
    if start is None:
        flat = np.array(jax.random.normal(key, (num_entries(problem),), jnp.float64))
        num_features = problem.shapes[0][1]
        layers = len(problem.shapes) - 1 - problem.has_bias
        end = sum(int(np.prod(shape)) for shape in problem.shapes[:layers])
        flat[:end] /= num_features**0.5
        return flat
    return flatten_start(problem, data, start)


def _minimise(problem, data, flat, method, tolerance, max_evaluations):
    """Descend, refine, and report."""
    # A flow has its own coordinates; for all else take those in which decays are equal.
    scale = _scale(problem, data) if method == "quasi_newton" else np.ones(flat.size)
    function = counted_objective(problem, data, scale)
    small = tolerance * scale.min()
    flat = _METHODS[method](function, flat / scale, small, max_evaluations)
    flat = newton(function, flat, small)
    value, gradient = function(flat)
    size, flat = float(np.linalg.norm(gradient / scale)), flat * scale
    layers, features, bias = unflatten(problem, flat, data.counts)
    return UnconstrainedFeatures(
        layers,
        features,
        bias,
        outputs_of(layers, features, bias),
        value,
        size,
        _imbalance(layers, features, data),
        size <= tolerance,
        function.count,
    )


def _scale(problem, data):
    """Lengths of entries in which layers and features decay alike.

    ``W = a W'`` and ``H = c H'`` with ``a^M c = 1`` leave the outputs, and ``a^2 lw =
    c^2 lh`` makes the decays equal. Where they differ by orders of magnitude, so do
    curvatures otherwise.
    """
    num_layers = len(problem.shapes) - 1 - problem.has_bias
    ratio = data.feature_decay / data.weight_decay
    layer = ratio ** (0.5 / (num_layers + 1))
    lengths = [layer] * num_layers + [layer**-num_layers] + [1.0] * problem.has_bias
    return np.repeat(lengths, [int(np.prod(shape)) for shape in problem.shapes])


def _imbalance(layers, features, data):
    """How far neighbouring factors are from having equal, decay-weighted Grams."""
    scaled = (data.counts[:, None] * features).T @ features * data.feature_decay
    left = [data.weight_decay * layer.T @ layer for layer in layers]
    right = [data.weight_decay * layer @ layer.T for layer in layers[1:]] + [scaled]
    apart = [np.linalg.norm(a - b) for a, b in zip(left, right, strict=True)]
    return float(max(apart))
