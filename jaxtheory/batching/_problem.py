"""Checks of a model together with its loss; only shapes are traced."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxtheory._types import ApplyFn, LossFn
from jaxtheory.batching._checks import (
    check_examples,
    check_function,
    check_params,
)


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


def check_rows(outputs: Any, num_examples: int) -> None:
    """Raise unless a model returned one row per example.

    Args:
        outputs: What it returned, or the shapes of that.
        num_examples: Number ``n`` of examples.

    Raises:
        ValueError: An array of `outputs` has no leading axis of length ``n``.
    """
    for leaf in jax.tree.leaves(outputs):
        if jnp.shape(leaf)[:1] != (num_examples,):
            raise ValueError(
                "`apply_fn` must return one row of outputs per example, [n, ...], but "
                f"with n = {num_examples} it returned the shape {jnp.shape(leaf)}. "
                "Return outputs of every example, and leave means to the caller."
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
        ValueError: As `check_rows` and `check_losses`; or outputs and targets broadcast
            against each other, so that each output was compared with every target.
    """
    check_rows(outputs, n)
    # Summed over the wrong axis, losses [n, n] have the right shape again: a broadcast
    # has to be caught where it happens.
    if n > 1:
        with jax.numpy_rank_promotion("allow"):
            _check_pairing(loss_fn, outputs, targets, n)
    losses = loss_fn(outputs, targets)
    check_losses(losses, n)
    return losses


def check_problem(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: PyTree,
    x: Any,
    y: Any,
    *,
    differentiable: bool = True,
) -> int:
    """Check a model, its loss, its parameters and its examples; only shapes are traced.

    Args:
        apply_fn: ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        differentiable: Whether derivatives will be taken: of whole numbers they are
            zero.

    Returns:
        The number of examples.

    Raises:
        ValueError: As `check_function`, `check_params`, `check_examples` and
            `example_losses`; or outputs
            or losses are not floating-point.
    """
    check_function("apply_fn", apply_fn)
    check_function("loss_fn", loss_fn)
    check_params(params)
    n = check_examples(x=x, y=y)

    def evaluate(params, x, y):
        outputs = apply_fn(params, x)
        return outputs, example_losses(loss_fn, outputs, y, n)

    outputs, losses = jax.eval_shape(evaluate, params, x, y)
    if differentiable:
        _check_floating("apply_fn", outputs, jnp.inexact)
        _check_floating("loss_fn", losses, jnp.floating)
    return n


def _check_floating(name, results, kind):
    """Raise unless something of what a function returned can be differentiated."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(results)]
    if not any(jnp.issubdtype(dtype, kind) for dtype in dtypes):
        raise ValueError(
            f"`{name}` must return floating-point numbers, because derivatives are "
            f"taken of them, but returned {', '.join(map(str, dtypes)) or 'none'}. Use "
            "a smooth stand-in for what counts."
        )


def _check_pairing(loss_fn, outputs, targets, n):
    """Raise if a loss takes one target more than outputs: then it broadcasts."""
    grown = lambda a: jax.ShapeDtypeStruct((n + 1, *jnp.shape(a)[1:]), _dtype(a))
    fixed = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), _dtype(a))
    rows, pairs = jax.tree.map(fixed, (outputs, targets))
    try:
        jax.eval_shape(loss_fn, rows, jax.tree.map(grown, pairs))
    except (TypeError, ValueError, AssertionError, IndexError):
        return
    if not _uses(loss_fn, rows, pairs):
        return
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (rows, pairs)]
    raise ValueError(
        "`loss_fn` must compare each output with its own target, but broadcasts "
        f"outputs of shape {shapes[0]} against targets of shape {shapes[1]}. Give both "
        "the same axes: pass targets `y[:, None]`, or take `outputs[:, 0]`."
    )


def _dtype(a):
    return a.dtype if hasattr(a, "dtype") else jnp.result_type(a)


def _uses(loss_fn, outputs, targets):
    """Whether a loss looks at its targets."""
    program = jax.make_jaxpr(loss_fn)(outputs, targets).jaxpr
    given = program.invars[len(jax.tree.leaves(outputs)) :]
    used = {id(atom) for eqn in program.eqns for atom in eqn.invars}
    return any(id(atom) in used for atom in given)
