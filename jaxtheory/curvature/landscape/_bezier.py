"""Mode connectivity: a trained curve of low loss between two networks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, PyTree, Real

from jaxtheory._types import KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_count,
    check_examples,
    check_key,
    check_number,
    check_params,
    num_shards,
)
from jaxtheory.curvature.landscape._evaluate import (
    Recompute,
    check_landscape,
    check_same,
    losses_at,
    mean_loss,
)
from jaxtheory.curvature.landscape._interpolate import barrier


class BezierCurve(NamedTuple):
    """A curve between two networks, and the loss along it.

    Attributes:
        bend: The trained control point, parameters; see `bezier_point`.
        coordinates: Curve parameter ``t`` from 0 to 1, ``[r]``.
        losses: Mean loss over all examples along the curve, ``[r]``.
        largest_loss: The largest of `losses`.
        barrier: As for `interpolate`, along the curve.
        training_losses: Loss that each training step saw, at its own random ``t`` and
            on its own examples, ``[num_steps]``.
    """

    bend: PyTree
    coordinates: Float[Array, " r"]
    losses: Float[Array, " r"]
    largest_loss: Float[Array, ""]
    barrier: Float[Array, ""]
    training_losses: Float[Array, " num_steps"]


def bezier_curve(
    apply_fn: Callable[..., Any],
    loss_fn: LossFn,
    params_a: Params,
    params_b: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    key: KeyArray,
    bend: Params | None = None,
    examples_per_step: int | None = None,
    num: int = 25,
    recompute: Recompute | None = None,
    batch_size: int | None = None,
) -> BezierCurve:
    r"""Train a quadratic Bezier curve of low loss between two networks.

    .. math:: \min_\phi \mathbb E_{t \sim U[0, 1]} L(\theta_\phi(t)), \qquad
        \theta_\phi(t) = (1-t)^2 \theta_A + 2 t (1-t) \phi + t^2 \theta_B

    by stochastic gradients, one ``t`` a step; the ends stay fixed. The mean is uniform
    in ``t``, as Garipov et al. train it: the loss that they would like to minimise is
    uniform in the curve's *length*, which is another thing where the speed
    :math:`|\theta'_\phi(t)|` varies.

    Args:
        apply_fn: The model, as for `slice_1d`.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params_a: Parameters at ``t = 0``.
        params_b: Parameters at ``t = 1``, of the same network.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        optimizer: An optax optimizer for the bend that needs gradients alone (no line
            search: every step has another ``t``). Keep it: another object compiles
            again.
        num_steps: Training steps.
        key: Which ``t``, and which examples.
        bend: Where the bend begins; by default in the middle of the ends. Where the
            loss is symmetric about their line its gradient there is along the line, and
            the curve stays straight: begin beside it.
        examples_per_step: Examples of a step, drawn without replacement; None takes all
            of them.
        num: Points of `losses`, equally spaced in ``t``, at least 2.
        recompute: As for `slice_1d`; in training it is called with the step's examples
            and differentiated, which is what BatchNorm does in training mode.
        batch_size: As for `slice_1d`.

    Returns:
        The bend and the loss along the curve.

    Raises:
        ValueError: `params_b` or `bend` is not like `params_a`, `optimizer` is none,
            `examples_per_step` exceeds ``n``, or as for `interpolate`.

    Memory:
        One gradient's activations and the optimizer's state; `num_steps` gradients on
        `examples_per_step` examples and `num` evaluations on all: about as dear as
        training the network again.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> model = lambda w, x: x @ w
        >>> ring = lambda outputs, y: (jnp.sum(outputs**2, -1) - y) ** 2
        >>> x, y = jnp.eye(2)[None], jnp.ones(1)
        >>> ends = (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
        >>> curve = bezier_curve(
        ...     model,
        ...     ring,
        ...     *ends,
        ...     x,
        ...     y,
        ...     optimizer=optax.adam(0.02),
        ...     num_steps=300,
        ...     key=jax.random.key(0),
        ... )
        >>> bool(curve.barrier < 0.01)  # 0.25 on the straight line
        True

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, arXiv:1802.10026, eqs. 2 and 4.
    """
    check_params(params_a, "params_a")
    problem = check_landscape(
        apply_fn,
        loss_fn,
        params_a,
        x,
        y,
        recompute=recompute,
        batch_size=batch_size,
    )
    check_key(key)
    _check_optimizer(optimizer)
    check_same(params_b, params_a, "params_b")
    num = check_count(at_least=2, num=num)
    num_steps = check_count(num_steps=num_steps)
    n = check_examples(x=x, y=y)
    if examples_per_step is not None:
        num_shards((x, y))  # refuses explicit axes, on which no batch can be drawn
        if check_count(examples_per_step=examples_per_step) > n:
            raise ValueError(
                f"`examples_per_step` must be between 1 and the {n} examples, but was "
                f"{examples_per_step}."
            )
    if bend is None:
        bend = bezier_point(params_a, None, params_b, 0.5)
    check_same(bend, params_a, "bend")
    check_params(bend, "bend")
    ends = (params_a, params_b)
    settings = (problem, optimizer, num_steps, examples_per_step)
    bend, seen = _train(settings, ends, bend, key, x, y)
    coordinates = jnp.linspace(0.0, 1.0, num)
    anchors = (params_a, bend, params_b)
    losses = losses_at(problem, _on_curve, anchors, coordinates, x, y)
    return BezierCurve(
        bend, coordinates, losses, jnp.max(losses), barrier(coordinates, losses), seen
    )


def bezier_point(
    params_a: Params, bend: Params | None, params_b: Params, t: Real[ArrayLike, ""]
) -> PyTree:
    r"""Compute a point of a quadratic Bezier curve in parameter space.

    :math:`(1-t)^2 \theta_A + 2 t (1-t) \phi + t^2 \theta_B`

    Args:
        params_a: Parameters at ``t = 0``.
        bend: The control point; None for the straight line, whose bend is in the
            middle.
        params_b: Parameters at ``t = 1``.
        t: Curve parameter, one number.

    Returns:
        Parameters.

    Raises:
        ValueError: The three differ in structure or shapes, or `t` is no real number.

    Example:
        >>> import jax.numpy as jnp
        >>> a, bend, b = jnp.array([0.0]), jnp.array([1.0]), jnp.array([4.0])
        >>> bezier_point(a, bend, b, 0.5).tolist()
        [1.5]
    """
    check_number("t", t, lambda t: True, "one real number")
    check_same(params_b, params_a, "params_b")
    if bend is None:
        middle = lambda a, b: (jnp.asarray(a) + jnp.asarray(b)) / 2
        bend = jax.tree.map(middle, params_a, params_b)
    check_same(bend, params_a, "bend")
    return _on_curve((params_a, bend, params_b), t)


def _check_optimizer(optimizer):
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "`optimizer` must be an optax optimizer, such as `optax.adam(1e-2)`, but "
            f"is of type {type(optimizer).__name__}."
        )


def _on_curve(anchors, t):
    """The point of the curve at `t`, exact at both ends."""

    def leaf(a, bend, b):
        a, bend, b = jnp.asarray(a), jnp.asarray(bend), jnp.asarray(b)
        point = (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b
        return point.astype(a.dtype)

    return jax.tree.map(leaf, *anchors)


@functools.partial(jax.jit, static_argnums=0)
def _train(settings, ends, bend, key, x, y):
    """The trained bend, and the loss at each step."""
    problem, optimizer, num_steps, examples_per_step = settings
    n = check_examples(x=x, y=y)
    # Drawn rows lie on no device in particular.
    drawn = problem if examples_per_step is None else problem._replace(lanes=1)

    def step(carry, index):
        bend, opt_state = carry
        t_key, rows_key = jax.random.split(jax.random.fold_in(key, index))
        t = jax.random.uniform(t_key)
        batch = (x, y)
        if examples_per_step is not None:
            rows = jax.random.choice(rows_key, n, (examples_per_step,), replace=False)
            batch = jax.tree.map(lambda a: jnp.asarray(a)[rows], batch)
        loss = lambda bend: mean_loss(
            drawn, _on_curve((ends[0], bend, ends[1]), t), *batch
        )
        value, gradient = jax.value_and_grad(loss)(bend)
        updates, opt_state = optimizer.update(gradient, opt_state, bend)
        return (optax.apply_updates(bend, updates), opt_state), value

    bend = jax.tree.map(jnp.asarray, bend)
    start = (bend, optimizer.init(bend))
    (bend, _), seen = jax.lax.scan(step, start, jnp.arange(num_steps))
    return bend, seen
