"""The Gibbs risk of a Gaussian over parameters, by Monte Carlo in one program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtheory import batching
from jaxtheory._types import ApplyFn, KeyArray, LossFn, Params


def zero_one_error(
    outputs: Float[Array, "n k"], targets: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Whether the largest output misses the label: 1.0 or 0.0 for each example.

    An example with an output that is not finite counts as an error, whatever `argmax`
    would make of it.

    Args:
        outputs: One score a class, ``k >= 2``.
        targets: Class labels, 0 to ``k - 1``.

    Returns:
        The error of each example (a `LossFn`).

    Raises:
        ValueError: The shapes are not ``[n, k]`` with ``k >= 2`` and ``[n]``, or the
            labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> zero_one_error(jnp.eye(3), jnp.array([0, 2, 2])).tolist()
        [0.0, 1.0, 0.0]
    """
    if jnp.ndim(outputs) != 2 or jnp.shape(outputs)[1] < 2:
        raise ValueError(
            "`outputs` must have shape [n, k] with one score for each of k >= 2 "
            f"classes, but has shape {jnp.shape(outputs)}. Give a single-score model a "
            "second output (`jnp.concatenate([-score, score], axis=-1)`), or pass "
            "another `loss_fn`."
        )
    shape, dtype = jnp.shape(targets), jnp.result_type(targets)
    if shape != outputs.shape[:1] or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"`targets` must be integer class labels of shape {outputs.shape[:1]}, "
            f"but has shape {shape} and dtype {dtype}. "
            "Turn one-hot rows into labels with `jnp.argmax(y, axis=-1)`."
        )
    wrong = jnp.argmax(outputs, axis=-1) != targets
    return (wrong | ~jnp.isfinite(outputs).all(axis=-1)).astype(float)


def gibbs_risk(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: Any,
    y: Any,
    scales: Float[np.ndarray, " s"],
    *,
    num_samples: int,
    key: KeyArray,
    batch_size: int | None,
    spread: Params | None = None,
) -> Float[np.ndarray, " s"]:
    """Monte-Carlo means of the empirical risk under ``N(params, scale^2 I)``.

    Every draw of the weights is evaluated on all examples, so that the draws' risks are
    independent and identically distributed in [0, 1] given the examples. All scales
    see the same noise, which makes them comparable and costs the union bound nothing.

    Args:
        apply_fn: Model.
        loss_fn: Loss, clipped to [0, 1] here; NaN counts as 1.
        params: Centre.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        scales: Standard deviations, exactly representable in float32.
        num_samples: Draws for each scale.
        key: Random key.
        batch_size: Examples per chunk; None takes all at once.
        spread: What multiplies the scale, a pytree like `params`; None for ones.

    Returns:
        The mean over draws for each scale, in float64, rounded up where the sum over
        examples is not exact.
    """
    batching.check_key(key)
    n = batching.check_examples(x=x, y=y)
    batching.check_params(params)
    batching.check_batch_size(batch_size)
    outputs = _outputs.eval_shape(apply_fn, params, x)
    _check_outputs(outputs, n)
    if loss_fn is zero_one_error:
        _check_labels(y, outputs)
    sums = _summed_losses(
        apply_fn,
        loss_fn,
        params,
        (x, y),
        scales,
        spread,
        key,
        num_samples=num_samples,
        batch_size=batch_size,
        lanes=batching.num_shards(x),
    )
    risks = np.asarray(sums, np.float64).mean(axis=1) / n
    # Whole numbers below 2^24 add exactly in float32. Anything else: the error of a sum
    # of n positive numbers, in whatever order, is below n units in the last place.
    exact = loss_fn is zero_one_error and n < 2**24
    slack = 0.0 if exact else n * float(jnp.finfo(sums.dtype).eps)
    return np.minimum(risks * (1 + slack), 1.0)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(apply_fn, params, x):
    """The model's outputs; jitted so that their shape is traced once."""
    return apply_fn(params, x)


def _check_outputs(outputs, n):
    """Raise unless the model returned something for each example."""
    for leaf in jax.tree.leaves(outputs):
        if leaf.shape[:1] != (n,):
            raise ValueError(
                f"`apply_fn` must return outputs for each of {n} examples on the "
                f"leading axis, but returned shape {leaf.shape}."
            )


def _check_labels(y, outputs):
    """Raise if `y` is not a valid label of `outputs`, a shape `[n, k]`."""
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ValueError(
            "`apply_fn` must return one array of outputs [n, k], but returned "
            f"{jax.tree.structure(outputs)}. Return the scores alone."
        )
    labels = np.asarray(y)
    shaped = len(outputs.shape) == 2 and outputs.shape[1] > 1
    if not shaped or not np.issubdtype(labels.dtype, np.integer):
        return  # the loss says what is wrong, when it is traced
    low, high, k = labels.min(), labels.max(), outputs.shape[1]
    if low < 0 or high >= k:
        raise ValueError(
            f"`y` must hold class labels from 0 to {k - 1} (the model has {k} "
            f"outputs), but they range from {low} to {high}."
        )


@functools.partial(
    jax.jit,
    static_argnames=("apply_fn", "loss_fn", "num_samples", "batch_size", "lanes"),
)
def _summed_losses(
    apply_fn,
    loss_fn,
    params,
    data,
    scales,
    spread,
    key,
    *,
    num_samples,
    batch_size,
    lanes,
):
    """Losses summed over examples, for each scale and draw: `[s, num_samples]`."""

    def draw(scale, index):
        drawn = _perturb(params, scale, spread, jax.random.fold_in(key, index))

        def total(chunk, weights):
            x, y = chunk
            outputs = apply_fn(drawn, x)
            losses = batching.example_losses(loss_fn, outputs, y, weights.size)
            losses = losses.astype(weights.dtype)
            losses = jnp.where(jnp.isnan(losses), 1.0, jnp.clip(losses, 0.0, 1.0))
            return jnp.sum(weights * losses)

        return batching.sum_examples(total, data, batch_size=batch_size, lanes=lanes)

    draws = jnp.arange(num_samples)
    at_scale = lambda scale: jax.lax.map(lambda index: draw(scale, index), draws)
    return jax.lax.map(at_scale, jnp.asarray(scales, float))


def _perturb(params, scale, spread, key):
    """One draw of ``N(params, scale^2 I)``, rounded to each leaf's dtype.

    Noise is made in at least float32. Rounding is the same map for every Gaussian, so
    by the data-processing inequality it can only lower the relative entropy.
    """
    leaves, treedef = jax.tree.flatten(params)

    def perturb(leaf, key, *relative):
        leaf = jnp.asarray(leaf)
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        noise = jax.random.normal(key, leaf.shape, wide)
        deviation = scale.astype(wide)
        for factor in relative:
            # The product of the two in float32 is what the relative entropy is of.
            factor = jnp.asarray(factor, jnp.float32)
            deviation = (scale.astype(jnp.float32) * factor).astype(wide)
        return (leaf + deviation * noise).astype(leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    relative = [] if spread is None else [jax.tree.leaves(spread)]
    return jax.tree.unflatten(treedef, [*map(perturb, leaves, keys, *relative)])
