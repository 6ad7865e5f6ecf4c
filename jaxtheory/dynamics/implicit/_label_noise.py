"""Label noise as an objective: each step sees targets that are noised anew."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Objective
from jaxtheory.batching import (
    check_function,
    check_key,
    check_number,
    check_pair,
    example_losses,
)

_KINDS = ("sign", "gaussian", "flip")


@dataclasses.dataclass(frozen=True)
class _LabelNoise:
    """Mean loss against noisy targets; equal when built from equals.

    A value rather than a closure, so that a second run of training does not retrace.
    """

    apply_fn: ApplyFn
    loss_fn: LossFn
    scale: float
    kind: str

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: KeyArray
    ) -> tuple[Float[Array, ""], PyTree]:
        check_key(key)
        x, y, n = check_pair(batch)
        outputs = self.apply_fn(params, x)
        if self.kind == "flip":
            _check_labels(y, outputs)
            noisy = _flipped(y, outputs.shape[-1], self.scale, key)
        else:
            _check_targets(y, self.kind)
            noisy = y + self.scale * _DRAW[self.kind](key, y.shape, y.dtype)
        losses = example_losses(self.loss_fn, outputs, noisy, n)
        return jnp.mean(losses), model_state


_DRAW = {"sign": jax.random.rademacher, "gaussian": jax.random.normal}


def label_noise(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    *,
    scale: Real[ArrayLike, ""],
    kind: Literal["sign", "gaussian", "flip"] = "sign",
) -> Objective:
    """The mean loss on a batch whose targets get fresh noise at every step.

    Computes ``1/b sum_i loss_fn(apply_fn(params, x), y + noise)_i`` over the ``b``
    examples of the batch, as an objective for `train`. The noise comes from the
    objective's key, which `train` makes anew for every step; it is independent for
    each entry of `y`.

    At an interpolating minimum nothing else moves the parameters: they drift along the
    set of minima towards flatter ones. `label_noise_drift` says how fast, for a squared
    loss.

    Args:
        apply_fn: ``apply_fn(params, x[b, ...]) -> outputs[b, ...]``.
        loss_fn: ``loss_fn(outputs[b, ...], y[b, ...]) -> losses[b]``, one per example.
        scale: For ``"sign"`` and ``"gaussian"`` the standard deviation of the noise, in
            units of `y`; for ``"flip"`` the probability of a wrong label. A Python
            number: it is compiled in.
        kind: ``"sign"`` adds plus or minus `scale`; ``"gaussian"`` a normal number
            (both for floating-point `y`); ``"flip"`` replaces a class, an integer in
            ``0..k-1`` with ``k`` the last axis of the outputs, with probability `scale`
            by one of the ``k - 1`` others, each equally likely.

    Returns:
        ``objective(params, model_state, batch, key) -> (scalar, model_state)``. Equal
        arguments give equal objectives.

    Raises:
        ValueError: `kind` is another word or `scale` out of range. When called: the
            batch is no pair ``(x, y)`` of the same examples, `y` does not fit `kind`,
            or `loss_fn` does not return one loss per example.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = label_noise(
        ...     lambda w, x: x @ w, lambda out, y: (out - y) ** 2, scale=2.0
        ... )
        >>> batch = (jnp.eye(2), jnp.zeros(2))
        >>> loss, _ = objective(jnp.zeros(2), (), batch, jax.random.key(0))
        >>> float(loss)  # every target is 2 or -2
        4.0

    References:
        Blanc et al., arXiv:1904.09080, section 2.1; Damian, Ma & Lee,
        arXiv:2106.06530, section 2 (signs and flipped labels).
    """
    check_function("apply_fn", apply_fn)
    check_function("loss_fn", loss_fn)
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {_KINDS}, but was {kind!r}.")
    if isinstance(scale, Tracer):
        raise ValueError(
            "`scale` must be a Python number, because the objective is compiled by its "
            "value, but is traced. Build the objective outside `jit` and `vmap`."
        )
    most = 1.0 if kind == "flip" else float("inf")
    must = "a probability" if kind == "flip" else "a finite number, at least 0"
    in_range = lambda s: 0 <= s <= most and s != float("inf")
    check_number("scale", scale, in_range, must)
    return _LabelNoise(apply_fn, loss_fn, float(np.asarray(scale)), kind)


def _flipped(y, num_classes, probability, key):
    """Labels of which each is wrong with some probability."""
    where, which = jax.random.split(key)
    wrong = jax.random.bernoulli(where, probability, y.shape)
    shift = jax.random.randint(which, y.shape, 1, num_classes)
    # Not in the labels' own type: of 8 bits it has no room for the sum.
    other = (y.astype(shift.dtype) + shift) % num_classes
    return jnp.where(wrong, other.astype(y.dtype), y)


def _check_targets(y: Any, kind: str) -> None:
    if not hasattr(y, "dtype") or not jnp.issubdtype(y.dtype, jnp.floating):
        was = f"has dtype {y.dtype}" if hasattr(y, "dtype") else f"is a {type(y)}"
        raise ValueError(
            f'`y` must be one floating-point array for kind="{kind}", but {was}. Cast '
            'targets to a float; for classes take kind="flip".'
        )


def _check_labels(y: Any, outputs: Any) -> None:
    shape = jnp.shape(outputs)
    is_class = hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer)
    if is_class and y.shape == shape[:-1] and shape[-1] > 1:
        return
    was = (
        f"dtype {y.dtype} and shape {y.shape}" if hasattr(y, "dtype") else f"{type(y)}"
    )
    raise ValueError(
        '`y` must hold one integer class for each row of outputs for kind="flip", '
        f"which has shape {shape}, the last axis being at least two classes, but is of "
        f"{was}."
    )
