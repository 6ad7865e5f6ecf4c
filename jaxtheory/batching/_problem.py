"""Checks of a model together with its loss; only shapes are traced."""

from typing import Any

import jax
from jaxtyping import Array, PyTree

from jaxtheory._types import ApplyFn, LossFn
from jaxtheory.batching._checks import check_examples, check_params


def check_losses(losses: Any, num_examples: int) -> None:
    """Raise unless a loss function returned one number per example.

    Args:
        losses: What it returned, or the shape of that.
        num_examples: Number ``n`` of examples.

    Raises:
        ValueError: `losses` is not one array of shape ``[n]``.
    """
    shape = getattr(losses, "shape", None)
    if shape != (num_examples,):
        was = f"shape {shape}" if shape is not None else f"a {type(losses).__name__}"
        raise ValueError(
            "`loss_fn` must return one loss per example [n], but with "
            f"n = {num_examples} it returned {was}. Sum or average over the outputs of "
            "each example (`losses.sum(-1)`), and leave the mean over examples to the "
            "caller."
        )


def example_losses(loss_fn: LossFn, outputs: Any, targets: Any, n: int) -> Array:
    """Evaluate a loss function, and raise unless it treats each example by itself.

    Args:
        loss_fn: ``loss_fn(outputs[n, ...], targets[n, ...]) -> losses[n]``.
        outputs: Outputs of a model.
        targets: Targets.
        n: Number of examples.

    Returns:
        The losses, ``[n]``.

    Raises:
        ValueError: As `check_losses`; or outputs ``[n, 1]`` met targets ``[n]`` and
            broadcast, so that each output was compared with every target.
    """
    # Summed over the wrong axis, the losses [n, n] have the right shape again: the
    # broadcast has to be caught where it happens.
    shapes = [getattr(a, "shape", None) for a in (outputs, targets)]
    if n > 1 and shapes == [(n, 1), (n,)]:
        _check_pairing(loss_fn, outputs, targets)
    losses = loss_fn(outputs, targets)
    check_losses(losses, n)
    return losses


def check_problem(
    apply_fn: ApplyFn, loss_fn: LossFn, params: PyTree, x: Any, y: Any
) -> int:
    """Check a model, its loss, its parameters and its examples; only shapes are traced.

    Args:
        apply_fn: ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.

    Returns:
        The number of examples.

    Raises:
        ValueError: As `check_params`, `check_examples` and `example_losses`.
    """
    check_params(params)
    n = check_examples(x=x, y=y)
    losses = lambda p, x, y: example_losses(loss_fn, apply_fn(p, x), y, n)
    jax.eval_shape(losses, params, x, y)
    return n


def _check_pairing(loss_fn, outputs, targets):
    """Raise if outputs ``[n, 1]`` and targets ``[n]`` broadcast to ``[n, n]``."""

    def shapes(rank_promotion):
        with jax.numpy_rank_promotion(rank_promotion):
            return jax.eval_shape(lambda *args: loss_fn(*args), outputs, targets)

    shapes("allow")  # whatever else is wrong comes up here, unchanged
    try:
        shapes("raise")
    except ValueError as error:
        raise ValueError(
            "`loss_fn` must compare each output with its own target, but broadcasts "
            f"outputs of shape {outputs.shape} against targets of shape "
            f"{targets.shape}. Pass targets `y[:, None]`, or take `outputs[:, 0]`."
        ) from error
