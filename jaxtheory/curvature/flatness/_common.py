"""The mean loss as a function of parameters, and arithmetic that measures share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from jaxtheory._types import ApplyFn, Estimate, LossFn
from jaxtheory.batching import (
    check_batch_size,
    check_number,
    check_problem,
    num_shards,
)
from jaxtheory.curvature._mean_product import mean_examples


@dataclass(frozen=True)
class MeanLoss:
    """The mean loss over all examples; hashable, so that equal ones share code."""

    apply_fn: ApplyFn
    loss_fn: LossFn
    batch_size: int | None = None
    lanes: int = 1

    def losses(self, params: PyTree, x: Any, y: Any) -> Array:
        """One loss per example, in at least single precision."""
        losses = self.loss_fn(self.apply_fn(params, x), y)
        return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))

    def mean(self, function: Callable, x: Any, y: Any) -> PyTree:
        """The mean over examples of what ``function(x, y)`` gives for each, ``[b]``."""
        options = {"batch_size": self.batch_size, "lanes": self.lanes}
        return mean_examples(function, (x, y), **options)

    def __call__(self, params: PyTree, x: Any, y: Any) -> Array:
        """The mean loss."""
        return self.mean(lambda x, y: self.losses(params, x, y), x, y)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(loss: MeanLoss, params: PyTree, x: Any, y: Any) -> Array:
    """The mean loss, compiled."""
    return loss(params, x, y)


def prepare(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: PyTree,
    x: Any,
    y: Any,
    batch_size: int | None,
) -> MeanLoss:
    """Check what every measure is given; the mean loss as a static argument."""
    check_batch_size(batch_size)
    check_problem(apply_fn, loss_fn, params, x, y, differentiable=False)
    return MeanLoss(apply_fn, loss_fn, batch_size, num_shards((x, y)))


def check_positive(name: str, value: Any) -> None:
    """Raise unless a number, where it is known, is positive and finite."""
    check_number(name, value, lambda v: 0 < v < jnp.inf, "positive and finite")


def mean_estimate(samples: Array) -> Estimate:
    """Mean of independent samples and its standard error."""
    error = jnp.std(samples, ddof=1) / jnp.sqrt(samples.shape[0])
    return Estimate(jnp.mean(samples), error, samples.shape[0])


def gaussian(key: Any, like: PyTree) -> PyTree:
    """Independent standard normal entries in a pytree like another."""
    # One draw, not one a leaf: that compiles several times faster.
    flat, unravel = ravel_pytree(like)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def axpy(factor: Any, direction: PyTree, params: PyTree) -> PyTree:
    """``params + factor * direction``, in the precision of the parameters."""
    add = lambda d, p: (p + factor * d).astype(jnp.result_type(p))
    return jax.tree.map(add, direction, params)


def dot(left: PyTree, right: PyTree) -> Array:
    """Inner product of two pytrees, in at least single precision."""
    wide = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))
    parts = jax.tree.map(lambda a, b: jnp.sum(wide(a) * wide(b)), left, right)
    return sum(jax.tree.leaves(parts), jnp.zeros(()))


def largest(tree: PyTree) -> Array:
    """Largest absolute entry of a pytree."""
    return optax.tree.norm(tree, ord="inf")


def norm(tree: PyTree) -> Array:
    """Euclidean norm, scaled first: in float32 squares vanish below 1e-19."""
    top = largest(tree)
    unit = jnp.where(top > 0, top, 1)
    scaled = jax.tree.map(lambda leaf: leaf / unit, tree)
    return unit * jnp.sqrt(dot(scaled, scaled))


def size(tree: PyTree) -> int:
    """Number of entries."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))
