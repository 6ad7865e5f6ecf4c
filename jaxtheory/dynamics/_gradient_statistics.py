"""A measurement of the gradient and of its minibatch noise."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, TrainState
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_function,
    check_key,
    check_problem,
    num_shards,
    sum_examples,
)
from jaxtheory.dynamics._held import Held, check_known
from jaxtheory.dynamics._sketch import Sketch
from jaxtheory.dynamics._snapshots import Projections


class GradientStatistics(NamedTuple):
    """The gradient at one point of training, and samples of its minibatch noise.

    Attributes:
        gradient_norm: Norm of the mean gradient ``G`` over all ``n`` examples.
        covariance_trace: Trace of the covariance (``1/(n-1)``) of the per-example
            gradients, estimated from the noise samples.
        noise_scale: ``covariance_trace / gradient_norm^2``, in examples. Its error is
            that of the trace alone: the gradient is exact. Infinite where the gradient
            is zero; NaN where the noise is zero too.
        noise_norms: Norm of each noise sample ``g_B - G``, one a minibatch.
        noise: The noise samples themselves, sketched or projected, one a row.
    """

    gradient_norm: Float[Array, ""]
    covariance_trace: Estimate
    noise_scale: Estimate
    noise_norms: Float[Array, " m"]
    noise: Float[Array, "m dim"]


def gradient_statistics(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    x: PyTree[Num[ArrayLike, "n ..."]],
    y: PyTree[Num[ArrayLike, "n ..."]],
    *,
    batch_size: int,
    num_batches: int,
    key: KeyArray,
    onto: Sketch | Projections | None = None,
    chunk_size: int | None = None,
) -> "GradientStatisticsMeasurement":
    r"""A measurement of the mean gradient and of the noise of minibatch gradients.

    With ``G`` the gradient of the mean loss over all ``n`` examples and ``g_B`` that
    over ``b`` of them, drawn without replacement,

    .. math:: \mathbb{E} |g_B - G|^2
        = \frac{1}{b} \Big(1 - \frac{b}{n}\Big) \operatorname{tr} \Sigma

    with ``Sigma`` the covariance (``1/(n-1)``) of the per-example gradients. So the
    mean of ``|g_B - G|^2`` over `num_batches` independent minibatches gives an
    unbiased estimate of the trace, and over ``|G|^2`` the simple noise scale of these
    examples. `noise.noise_scale` computes both exactly, from ``n`` gradients.

    Minibatch ``j`` at a step is drawn from ``fold_in(fold_in(key, step), j)``.

    Args:
        apply_fn: ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        batch_size: Examples ``b`` of a minibatch, below ``n``.
        num_batches: Number ``m`` of minibatches, at least 2.
        key: Random key of the minibatches.
        onto: What is kept of a noise sample: `sketch(...)` or `projections(...)`; None
            takes ``sketch(dim=128)``. One unit vector as the only direction gives
            one-dimensional samples for tail estimators.
        chunk_size: Examples at once in the full gradient; None takes all.

    Returns:
        ``measure(state) -> GradientStatistics``. Measurements of the same functions,
        arrays and numbers are equal and hashable.

    Raises:
        ValueError: `batch_size` is not from 1 to ``n - 1``, `num_batches` below 2, or
            `onto` neither sketch nor projections; when called, model and loss do not
            fit each other.

    Memory:
        Three gradients and the activations of one chunk or minibatch. A measurement
        costs one pass over the data and `num_batches` minibatch gradients. The data are
        constants of the compiled program.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> measure = dynamics.gradient_statistics(
        ...     lambda w, x: w * x,
        ...     lambda out, y: out - y,
        ...     jnp.array([1.0, 3.0]),
        ...     jnp.zeros(2),
        ...     batch_size=1,
        ...     num_batches=4,
        ...     key=jax.random.key(0),
        ... )
        >>> result = measure(dynamics.init(optax.sgd(0.1), jnp.array(0.0)))
        >>> float(result.gradient_norm), result.noise_norms.tolist()
        (2.0, [1.0, 1.0, 1.0, 1.0])
        >>> float(result.covariance_trace.value), float(result.noise_scale.value)
        (2.0, 0.5)

    References:
        McCandlish et al., arXiv:1812.06162, equation 2.9 (the simple noise scale).
    """
    check_function("apply_fn", apply_fn)
    check_function("loss_fn", loss_fn)
    check_key(key)
    check_known(key=key)
    n = check_examples(x=x, y=y)
    if check_count(batch_size=batch_size) >= n:
        raise ValueError(
            f"`batch_size` must be below the number of examples, {n}, but was "
            f"{batch_size}: all of them have no noise."
        )
    check_count(num_batches=num_batches, at_least=2)
    check_batch_size(chunk_size)
    if not isinstance(onto, Sketch | Projections | None):
        raise ValueError(
            "`onto` must be `sketch(...)`, `projections(...)` or None, but is a "
            f"{type(onto).__name__}."
        )
    with jax.ensure_compile_time_eval():
        key_data = tuple(jax.random.key_data(key).tolist())
    return GradientStatisticsMeasurement(
        apply_fn,
        loss_fn,
        Held((x, y)),
        batch_size,
        num_batches,
        key_data,
        jax.random.key_impl(key),
        Sketch(128, 0) if onto is None else onto,
        chunk_size,
        num_shards((x, y)),
    )


@dataclasses.dataclass(frozen=True)
class GradientStatisticsMeasurement:
    """What `gradient_statistics` returns; see its arguments."""

    apply_fn: ApplyFn
    loss_fn: LossFn
    data: Held
    batch_size: int
    num_batches: int
    key_data: tuple[int, ...]
    key_impl: Any
    onto: Sketch | Projections
    chunk_size: int | None
    num_shards: int

    def __call__(self, state: TrainState) -> GradientStatistics:
        """The statistics at the parameters of a state."""
        params, (x, y) = state.params, self.data.tree
        n = check_problem(self.apply_fn, self.loss_fn, params, x, y)
        gradient = self._gradient(params, (x, y), n)
        key = jax.random.wrap_key_data(
            jnp.array(self.key_data, jnp.uint32), impl=self.key_impl
        )
        key = jax.random.fold_in(key, state.step)

        def sample(index):
            order = jax.random.permutation(jax.random.fold_in(key, index), n)
            chosen = order[: self.batch_size]
            take = lambda a: a.at[chosen].get(mode="promise_in_bounds")
            ones = jnp.ones(self.batch_size)
            summed = jax.grad(self._summed)(params, jax.tree.map(take, (x, y)), ones)
            noise = jax.tree.map(lambda s, g: s / self.batch_size - g, summed, gradient)
            return _norm(noise), self.onto.project(noise)

        norms, noise = jax.lax.map(sample, jnp.arange(self.num_batches))
        factor = self.batch_size / (1 - self.batch_size / n)
        norm = _norm(gradient)
        # Squares of ratios: a square by itself leaves the range of float32.
        return GradientStatistics(
            gradient_norm=norm,
            covariance_trace=_mean_square(norms, factor),
            noise_scale=_mean_square(norms / norm, factor),
            noise_norms=norms,
            noise=noise,
        )

    def _summed(self, params, chunk, weights):
        x, y = chunk
        losses = self.loss_fn(self.apply_fn(params, x), y)
        return jnp.sum(weights.astype(losses.dtype) * losses)

    def _gradient(self, params, data, n):
        """The gradient of the mean loss over all examples."""
        part = lambda chunk, weights: jax.grad(self._summed)(params, chunk, weights)
        total = sum_examples(
            part, data, batch_size=self.chunk_size, lanes=self.num_shards
        )
        return jax.tree.map(lambda g: g / n, total)


def _norm(tree):
    """Euclidean norm of a pytree in float32 or better, whose squares stay in range."""
    wide = [
        jnp.ravel(leaf).astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in jax.tree.leaves(tree)
    ]
    scale = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in wide if leaf.size]))
    safe = jnp.where(scale > 0, scale, 1)
    return scale * jnp.sqrt(sum(jnp.sum((leaf / safe) ** 2) for leaf in wide))


def _mean_square(values, factor):
    """The mean of ``factor * values^2`` with its standard error."""
    num = values.shape[0]
    squares = factor * values**2
    error = jnp.std(squares, ddof=1) / num**0.5
    return Estimate(jnp.mean(squares), error, num)
