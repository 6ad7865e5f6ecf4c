"""What training differentiates."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Objective
from jaxtheory.batching import check_pair, example_losses


@dataclasses.dataclass(frozen=True)
class _Supervised:
    """Mean loss of a model on a batch ``(x, y)``; equal when built from equals.

    A value rather than a closure: two calls of `supervised` with the same functions
    give one static argument to `jit`, so the second training run does not retrace.
    """

    apply_fn: ApplyFn
    loss_fn: LossFn

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: KeyArray
    ) -> tuple[Float[Array, ""], PyTree]:
        x, y, n = check_pair(batch)
        losses = example_losses(self.loss_fn, self.apply_fn(params, x), y, n)
        return jnp.mean(losses), model_state


def supervised(apply_fn: ApplyFn, loss_fn: LossFn) -> Objective:
    """The mean loss of a model on a batch ``(x, y)``, as an objective for `train`.

    Computes ``1/b sum_i loss_fn(apply_fn(params, x), y)_i`` over the ``b`` examples of
    the batch. The model state is passed through unchanged and the key is not used: for
    BatchNorm or dropout in training mode take `interop.flax.objective`.

    Args:
        apply_fn: ``apply_fn(params, x[b, ...]) -> outputs[b, ...]``.
        loss_fn: ``loss_fn(outputs[b, ...], y[b, ...]) -> losses[b]``, one per example.

    Returns:
        ``objective(params, model_state, batch, key) -> (scalar, model_state)``. Equal
        functions give equal objectives.

    Raises:
        ValueError: When called: the batch is not a pair ``(x, y)`` of the same
            examples, or `loss_fn` does not return one loss per example.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = supervised(lambda w, x: x @ w, lambda out, y: (out - y) ** 2)
        >>> batch = (jnp.eye(2), jnp.array([1.0, 3.0]))
        >>> loss, model_state = objective(jnp.zeros(2), (), batch, jax.random.key(0))
        >>> float(loss), model_state
        (5.0, ())
    """
    return _Supervised(apply_fn, loss_fn)
