"""How near training is to its edge of stability, followed from record to record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Num, PyTree

from jaxtheory._types import (
    ApplyFn,
    KeyArray,
    LossFn,
    StatefulMeasurement,
    TrainState,
)
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_key,
    num_shards,
    sum_examples,
)
from jaxtheory.curvature._operators import hessian
from jaxtheory.curvature._preconditioner import preconditioned
from jaxtheory.curvature._threshold import Decay, Method, stability_threshold
from jaxtheory.linalg import check_vector, dimension, top_eigenpairs

_COLD, _WARM, _NOISE = 0, 1, 2  # streams of the key
# So much of each start is random: a direction that the eigenvector followed has no
# part in could overtake it unseen.
_RANDOM_PART = 0.1
_TOLERANCE = 1e-2


class SharpnessOverThreshold(NamedTuple):
    """Where training stands against its edge of stability.

    Attributes:
        sharpness: Largest Ritz value of the Hessian of the mean loss (preconditioned,
            if a preconditioner is given): a lower bound on the largest eigenvalue.
        threshold: `stability_threshold` of the optimizer, at this step's learning rate.
        ratio: ``sharpness / threshold``; 1 at the edge.
        residual: ``|H v - sharpness v|`` of the unit Ritz vector: an eigenvalue lies
            within this distance of `sharpness`.
        converged: The residual is at most 1 % of the largest Ritz value's size.
        defined: False where the preconditioner is not positive and finite (Adam's
            before the first update is 0/0), the gradient that SAM climbs is zero or
            not finite, or the threshold is not positive (a negative learning rate):
            then the other numbers are NaN. A learning rate of 0 (a warm-up) is
            defined: its threshold is infinite.
    """

    sharpness: Float[Array, ""]
    threshold: Float[Array, ""]
    ratio: Float[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    defined: Bool[Array, ""]


def sharpness_over_threshold(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    method: Method,
    learning_rate: float | Callable[[TrainState], Any],
    key: KeyArray,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    decay: Decay = "decoupled",
    radius: float | None = None,
    preconditioner: Callable[[TrainState], PyTree] | None = None,
    num_iterations: int = 8,
    batch_size: int | None = None,
) -> StatefulMeasurement:
    r"""A measurement of sharpness over its threshold, for ``train(record=...)``.

    Each record runs a few Lanczos iterations on the Hessian of the mean loss over all
    data, starting from the top eigenvector found at the record before (and a tenth of
    its length in a random direction, which lets another eigenvector take over). It has
    to change little from record to record: where `converged` says otherwise, record
    more often or raise `num_iterations`.

    Weight decay is in the threshold and not in the Hessian: the loss is without it.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``; the loss that is trained.
        x: Inputs ``[n, ...]``: all training data, whatever the batches.
        y: Targets ``[n, ...]``.
        method: The optimizer, as for `stability_threshold`.
        learning_rate: A number; or a function of the state, where it changes:
            ``lambda state: schedule(state.step)``.
        key: First start vector, and the random part of the others.
        momentum: As for `stability_threshold`.
        weight_decay: As for `stability_threshold`.
        decay: As for `stability_threshold`.
        radius: As for `stability_threshold`; the gradient's norm is computed (one more
            gradient a record).
        preconditioner: Where to find the optimizer's diagonal ``P``, for Adam
            ``lambda state: curvature.preconditioner(state.opt_state, b1=0.9,
            b2=0.999, eps=1e-8)``. The sharpness is then that of
            ``P^-1/2 H P^-1/2``. Required for ``adam`` and ``nadam``.
        num_iterations: Lanczos iterations a record.
        batch_size: As for `hessian`.

    Returns:
        A measurement of `SharpnessOverThreshold`. Where the Hessian is not finite the
        sharpness is NaN and not `converged`, and the vector before is kept. To record
        in several runs without compiling again, build it once.

    Raises:
        ValueError: A preconditioner is missing or no function, `key` is no typed key, a
            count is no positive integer, or as for `stability_threshold`. When training
            begins: as for `hessian`; `learning_rate` cannot take a state, or a
            preconditioner is not like the parameters.

    Memory:
        ``(num_iterations + 1) p`` numbers and one chunk's activations;
        ``num_iterations + 1`` Hessian products a record (9 by default: the last is for
        the residual). The first record has ``min(p, 44) + 1`` more to find its start,
        and as much memory.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import curvature, dynamics
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> x, y = jnp.eye(4) * 2, jnp.ones(4)  # sharpness 2^2 / 4
        >>> measurement = curvature.sharpness_over_threshold(
        ...     model,
        ...     loss,
        ...     x,
        ...     y,
        ...     method="gradient_descent",
        ...     learning_rate=0.5,
        ...     num_iterations=4,
        ...     key=jax.random.key(0),
        ... )
        >>> optimizer = optax.sgd(0.5)
        >>> history = dynamics.train(
        ...     dynamics.supervised(model, loss),
        ...     dynamics.init(optimizer, jnp.zeros(4)),
        ...     optimizer,
        ...     (x, y),
        ...     num_steps=2,
        ...     key=jax.random.key(1),
        ...     record={"edge": measurement},
        ...     progress=False,
        ... )
        >>> history.records["edge"].ratio.round(4).tolist()
        [0.25, 0.25]

    References:
        Cohen et al., arXiv:2103.00065 and arXiv:2207.14484.
    """
    check_key(key)
    num_iterations = check_count(num_iterations=num_iterations)
    check_batch_size(batch_size)
    # Here and not where training begins: with numbers that pass for what changes.
    changes = callable(learning_rate)
    stability_threshold(
        method,
        learning_rate=1e-30 if changes else learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        decay=decay,
        radius=radius,
        gradient_norm=1.0 if method == "sam" else None,
    )
    if preconditioner is None and method in ("adam", "nadam"):
        raise ValueError(
            f"`preconditioner` must be given for {method!r}, whose threshold is one on "
            "the preconditioned sharpness. Pass `lambda state: "
            "curvature.preconditioner(state.opt_state, ...)`."
        )
    if preconditioner is not None and not callable(preconditioner):
        raise ValueError(
            "`preconditioner` must be a function of the state, because it changes, but "
            f"is of type {type(preconditioner).__name__}. Pass `lambda state: "
            "curvature.preconditioner(state.opt_state, ...)`."
        )
    monitor = _Monitor(
        problem=(apply_fn, loss_fn, x, y, batch_size),
        learning_rate=learning_rate,
        recursion={
            "method": method,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decay": decay,
            "radius": radius,
        },
        preconditioner=preconditioner,
        num_iterations=num_iterations,
        key=key,
    )
    # Compiled also where the caller does not: numbers of the state are then values,
    # whose range is part of the result, inside and outside `jit` alike.
    return StatefulMeasurement(monitor.init, jax.jit(monitor.measure))


@dataclass(frozen=True, eq=False)
class _Monitor:
    """What `sharpness_over_threshold` was given; its methods are the measurement."""

    problem: tuple
    learning_rate: float | Callable[[TrainState], Any]
    recursion: dict[str, Any]
    preconditioner: Callable[[TrainState], PyTree] | None
    num_iterations: int
    key: KeyArray

    def init(self, state: TrainState) -> PyTree:
        """The vector from which the first record starts."""
        top, _ = self._top(state, _COLD)
        return _kept(top, jax.tree.map(jnp.ones_like, state.params))

    def measure(
        self, state: TrainState, vector: PyTree
    ) -> tuple[SharpnessOverThreshold, PyTree]:
        """One record, and the vector from which the next one starts."""
        start = _perturbed(vector, self._key(state, _NOISE))
        top, seen = self._top(
            state, _WARM, start=start, num_iterations=self.num_iterations
        )
        threshold, exists = self._threshold(state)
        defined = seen & exists & (threshold > 0)
        sharpness = top.values[0]
        known = lambda number: jnp.where(defined, number, jnp.nan)
        threshold = jnp.asarray(threshold, sharpness.dtype)
        value = SharpnessOverThreshold(
            sharpness=known(sharpness),
            threshold=known(threshold),
            ratio=known(sharpness / threshold),
            residual=known(top.residuals[0]),
            converged=top.converged[0] & defined,
            defined=defined,
        )
        return value, _kept(top, vector)

    def _key(self, state, stream):
        return jax.random.fold_in(jax.random.fold_in(self.key, stream), state.step)

    def _top(self, state, stream, *, start=None, num_iterations=None):
        """The top eigenpair, and whether the preconditioner is what it must be."""
        apply_fn, loss_fn, x, y, batch_size = self.problem
        operator = hessian(apply_fn, loss_fn, state.params, x, y, batch_size=batch_size)
        seen = jnp.array(True)
        if self.preconditioner is not None:
            diagonal = self.preconditioner(state)
            check_vector(diagonal, state.params, "preconditioner")
            good = jax.tree.map(lambda d: jnp.all((d > 0) & (d < jnp.inf)), diagonal)
            seen = jax.tree.reduce(jnp.logical_and, good)
            # Else no vector could be kept for the records where it is.
            safe = jax.tree.map(lambda d: jnp.where(seen, d, 1), diagonal)
            operator = preconditioned(operator, safe)
        if num_iterations is not None:
            num_iterations = min(num_iterations, dimension(operator))
        top = top_eigenpairs(
            operator,
            key=self._key(state, stream),
            num_iterations=num_iterations,
            start=start,
            tolerance=_TOLERANCE,
        )
        return top, seen

    def _threshold(self, state):
        """The threshold, and whether there is one."""
        rate = _rate(self.learning_rate, state)
        if self.recursion["method"] != "sam":
            edge = stability_threshold(learning_rate=rate, **self.recursion)
            return edge.full_batch, jnp.array(True)
        norm = _gradient_norm(state.params, *self.problem)
        edge = stability_threshold(
            learning_rate=rate, gradient_norm=norm, **self.recursion
        )
        return edge.full_batch, (norm > 0) & (norm < jnp.inf)


def _rate(learning_rate, state):
    """The learning rate at a state."""
    if not callable(learning_rate):
        return learning_rate
    try:
        return learning_rate(state)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            "`learning_rate` must be a number or a function of the state, but given a "
            f"state it raised {type(error).__name__}: {error}. Of an optax schedule, "
            "pass `lambda state: schedule(state.step)`."
        ) from error


def _perturbed(vector, key):
    """A unit vector plus a random one of a tenth of its length."""
    flat, back = ravel_pytree(vector)
    noise = jax.random.normal(key, flat.shape, flat.dtype)
    return back(flat + _RANDOM_PART * noise / jnp.linalg.norm(noise))


def _kept(top, before):
    """The top eigenvector, or the vector before where it is not finite."""
    finite = jnp.isfinite(top.values[0])
    return jax.tree.map(
        lambda new, old: jnp.where(finite, new[0], old).astype(old.dtype),
        top.vectors,
        before,
    )


def _gradient_norm(params, apply_fn, loss_fn, x, y, batch_size):
    """Euclidean norm of the gradient of the mean loss."""

    def gradient(chunk, weights):
        def total(params):
            losses = loss_fn(apply_fn(params, chunk[0]), chunk[1])
            return jnp.sum(weights.astype(losses.dtype) * losses)

        return jax.grad(total)(params)

    lanes = num_shards((x, y))
    total = sum_examples(gradient, (x, y), batch_size=batch_size, lanes=lanes)
    mean = jax.tree.map(lambda g: g / check_examples(x=x, y=y), total)
    # Scaled first: in float32 squares below 1e-38 are zero.
    largest = optax.tree.norm(mean, ord="inf")
    scale = jnp.where(largest > 0, largest, 1)
    return scale * optax.tree.norm(jax.tree.map(lambda g: g / scale, mean))
