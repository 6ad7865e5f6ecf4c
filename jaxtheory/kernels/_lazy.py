"""Lazy training: a model scaled up around its start, and its loss scaled down."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import ArrayLike, PyTree, Real

from jaxtheory._types import ApplyFn, LossFn, Params
from jaxtheory.batching import check_number, check_params


@dataclass(frozen=True, eq=False)
class _Lazy:
    """The scaled model; equal to itself alone, for its arrays do not hash."""

    apply_fn: ApplyFn
    params: PyTree
    scale: Any

    def __call__(self, params, x):
        return self.scale * (self.apply_fn(params, x) - self.apply_fn(self.params, x))


@dataclass(frozen=True)
class _LazyLoss:
    """The loss over the squared scale; equal when built from equals."""

    loss_fn: LossFn
    scale: Any

    def __call__(self, outputs, targets):
        return self.loss_fn(outputs, targets) / self.scale**2


def lazy(apply_fn: ApplyFn, params: Params, *, scale: Real[ArrayLike, ""]) -> ApplyFn:
    r"""Scale a model up around its start, which makes its training lazy.

    ``F(w, x) = scale * (f(w, x) - f(params, x))``, zero at the start. Trained on a loss
    over ``scale^2`` (`lazy_loss`) with an unchanged learning rate, the outputs move at
    a speed that does not depend on the scale, while the parameters move by about ``1 /
    scale``: for large scales the training of the linearised model, for small ones that
    of features.

    Give the result to ``dynamics.supervised`` as any other model. Each call returns a
    new function, which a jitted routine compiles anew: keep it.

    Args:
        apply_fn: The model ``f``, ``apply_fn(params, x) -> outputs``.
        params: Where training starts.
        scale: The scale, positive.

    Returns:
        The scaled model, ``apply_fn(params, x) -> outputs``.

    Raises:
        ValueError: `params` are not floating-point, or `scale` is not positive.

    Memory:
        Twice the forward pass of the model; it keeps `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> scaled = lazy(lambda w, x: x @ w, jnp.ones(2), scale=10.0)
        >>> scaled(jnp.array([1.0, 1.5]), jnp.eye(2)).tolist()
        [0.0, 5.0]

    References:
        Chizat, Oyallon, Bach, arXiv:1812.07956, section 1.1.
    """
    check_params(params)
    _check_scale(scale)
    return _Lazy(apply_fn, params, scale)


def lazy_loss(loss_fn: LossFn, *, scale: Real[ArrayLike, ""]) -> LossFn:
    r"""Scale a loss down for the model that `lazy` scaled up.

    ``loss_fn(outputs, targets) / scale^2``, so that the same learning rate serves every
    scale.

    Args:
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        scale: The scale given to `lazy`, positive.

    Returns:
        The scaled loss; equal functions and scales give equal losses.

    Raises:
        ValueError: `scale` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> scaled = lazy_loss(lambda out, y: (out - y) ** 2, scale=10.0)
        >>> print(f"{scaled(jnp.array([3.0]), jnp.array([1.0]))[0]:.4f}")
        0.0400

    References:
        Chizat, Oyallon, Bach, arXiv:1812.07956, equation 2.
    """
    _check_scale(scale)
    return _LazyLoss(loss_fn, scale)


def _check_scale(scale):
    """Raise unless the scale is a positive number."""
    check_number("scale", scale, lambda s: 0 < s < float("inf"), "positive and finite")
