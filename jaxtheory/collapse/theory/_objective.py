"""The objective of the unconstrained-features model, in float64 on the host."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxtheory._types import LossFn
from jaxtheory.batching import (
    check_count,
    check_examples,
    check_number,
    example_losses,
)
from jaxtheory.collapse.theory._losses import check_concrete, check_decay
from jaxtheory.collapse.theory._minimise import Counted


class Problem(NamedTuple):
    """The static half of an objective: what it is a function of, and which loss."""

    loss_fn: LossFn
    shapes: tuple[tuple[int, ...], ...]  # layers from last to first, features, [bias]
    has_bias: bool


class ProblemData(NamedTuple):
    """The arrays of an objective, in float64 on the host."""

    targets: Any
    counts: Float[np.ndarray, " n"]
    weight_decay: float
    feature_decay: float
    bias_decay: float


def check_targets(targets: Any, counts: Any) -> tuple[Any, Float[np.ndarray, " n"]]:
    """Targets in float64 or int64 on the host, and how many examples have each."""
    targets = np.asarray(targets)
    check_examples(targets=targets)
    if targets.dtype.kind in "iu":
        targets = targets.astype(np.int64)
    elif targets.dtype.kind == "f":
        targets = targets.astype(np.float64)
    else:
        raise ValueError(
            "`targets` must be class indices (integers) or vectors of floating-point "
            f"numbers, but have dtype {targets.dtype}."
        )
    if counts is None:
        return targets, np.ones(len(targets))
    counts = np.asarray(counts, np.float64)
    check_examples(targets=targets, counts=counts)
    if counts.ndim != 1 or not np.all((counts > 0) & np.isfinite(counts)):
        raise ValueError(
            "`counts` must be a vector of positive, finite numbers, one for each "
            f"target, but has shape {counts.shape} and smallest entry {counts.min()}."
        )
    return targets, counts


def make_problem(
    loss_fn: LossFn,
    targets: Any,
    *,
    weight_decay: Any,
    feature_decay: Any,
    bias_decay: Any,
    counts: Any,
    num_outputs: Any,
    num_features: Any,
    num_layers: Any,
) -> tuple[Problem, ProblemData]:
    """The objective of the user's arguments; raises unless they make sense."""
    check_concrete(targets=targets, counts=counts, bias_decay=bias_decay)
    lw = check_decay(weight_decay=weight_decay)
    lh = check_decay(feature_decay=feature_decay)
    if bias_decay is not None:
        must = "None or a finite number of at least 0"
        check_number("bias_decay", bias_decay, lambda v: 0 <= v < np.inf, must)
    targets, counts = check_targets(targets, counts)
    shapes = _factor_shapes(targets, num_outputs, num_features, num_layers)
    if bias_decay is not None:
        shapes = (*shapes, shapes[0][:1])
    problem = Problem(loss_fn, shapes, bias_decay is not None)
    data = ProblemData(targets, counts, lw, lh, float(bias_decay or 0))
    with jax.enable_x64(True):
        zeros = np.zeros(num_entries(problem))
        jax.eval_shape(partial(objective, problem), zeros, data)
    return problem, data


def _factor_shapes(targets, num_outputs, num_features, num_layers):
    """Shapes of the layers, from last to first, and of the features."""
    if num_outputs is None:
        is_index = targets.ndim == 1 and targets.dtype.kind == "i"
        if not is_index and targets.ndim != 2:
            raise ValueError(
                "`num_outputs` must be given unless `targets` are class indices [n] or "
                f"vectors [n, k], but they have shape {targets.shape}."
            )
        num_outputs = int(targets.max()) + 1 if is_index else targets.shape[1]
    k = check_count(num_outputs=num_outputs)
    if targets.ndim == 1 and targets.dtype.kind == "i":
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest < 0 or highest >= k:
            raise ValueError(
                f"`targets` must lie in [0, {k}) for {k} outputs, but range from "
                f"{lowest} to {highest}."
            )
    d = check_count(num_features=k if num_features is None else num_features)
    inner = ((d, d),) * (check_count(num_layers=num_layers) - 1)
    return ((k, d), *inner, (len(targets), d))


def num_entries(problem: Problem) -> int:
    """Entries of all factors together."""
    return sum(int(np.prod(shape)) for shape in problem.shapes)


def unflatten(problem: Problem, flat: Any, counts: Any) -> tuple[tuple, Any, Any]:
    """Layers, features and bias of a flat vector that holds ``sqrt(n_i) h_i``."""
    ends = np.cumsum([int(np.prod(shape)) for shape in problem.shapes])
    parts = [
        flat[end - int(np.prod(shape)) : end].reshape(shape)
        for end, shape in zip(ends, problem.shapes, strict=True)
    ]
    bias = parts.pop() if problem.has_bias else None
    features = parts.pop() / counts[:, None] ** 0.5
    return tuple(parts), features, bias


def outputs_of(layers: tuple, features: Any, bias: Any) -> Any:
    """``W_M ... W_1 h_i + b`` for each row of the features."""
    outputs = features
    for layer in reversed(layers):
        outputs = outputs @ layer.T
    return outputs if bias is None else outputs + bias[None, :]


def objective(problem: Problem, flat: Any, data: ProblemData) -> Any:
    """The objective of `unconstrained_features` at a flat vector."""
    layers, features, bias = unflatten(problem, flat, data.counts)
    outputs = outputs_of(layers, features, bias)
    n = len(data.counts)
    losses = example_losses(problem.loss_fn, outputs, data.targets, n)
    value = jnp.sum(data.counts / data.counts.sum() * losses)
    for layer in layers:
        value += data.weight_decay / 2 * jnp.sum(jnp.square(layer))
    squares = jnp.sum(jnp.square(features), axis=1)
    value += data.feature_decay / 2 * jnp.sum(data.counts * squares)
    if bias is not None:
        value += data.bias_decay / 2 * jnp.sum(jnp.square(bias))
    return value


value_and_grad = jax.jit(jax.value_and_grad(objective, argnums=1), static_argnums=0)


@partial(jax.jit, static_argnums=0)
def hessian_product(problem: Problem, flat: Any, data: ProblemData, vector: Any) -> Any:
    """Product of the Hessian of `objective` at `flat` with a flat vector."""
    gradient = lambda point: jax.grad(objective, argnums=1)(problem, point, data)
    return jax.jvp(gradient, (flat,), (vector,))[1]


def counted_objective(
    problem: Problem, data: ProblemData, scale: Float[np.ndarray, " p"]
) -> Counted:
    """The objective at ``scale * flat``, as the minimisers take it."""

    def scaled_value_and_grad(flat):
        value, gradient = value_and_grad(problem, scale * flat, data)
        return value, scale * np.asarray(gradient)

    def scaled_product(flat, vector):
        image = hessian_product(problem, scale * flat, data, scale * vector)
        return scale * np.asarray(image)

    return Counted(scaled_value_and_grad, scaled_product)


def flatten_start(problem: Problem, data: ProblemData, start: Any) -> np.ndarray:
    """The flat vector of ``(layers, features, bias)``; raises unless they fit."""
    if not isinstance(start, tuple | list) or len(start) != 3:
        raise ValueError(
            "`start` must be `(layers, features, bias)`, but was a "
            f"{type(start).__name__}. Of a result pass `result[:3]`."
        )
    layers, features, bias = start
    if problem.has_bias and bias is None:
        bias = np.zeros(problem.shapes[-1])
    parts = [np.asarray(layer, np.float64) for layer in layers]
    parts.append(np.asarray(features, np.float64))
    parts += [np.asarray(bias, np.float64)] if problem.has_bias else []
    shapes = tuple(part.shape for part in parts)
    if shapes != problem.shapes:
        raise ValueError(
            f"`start` must hold factors of shapes {problem.shapes} (layers from last "
            f"to first, features, and the bias if there is one), but has {shapes}."
        )
    parts[len(layers)] = parts[len(layers)] * data.counts[:, None] ** 0.5
    return np.concatenate([part.ravel() for part in parts])
