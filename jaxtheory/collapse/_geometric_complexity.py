"""Geometric complexity: how fast features change with the input, on average."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory._types import ApplyFn, Estimate, KeyArray, Params
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_function,
    check_key,
    check_params,
    sum_examples,
)
from jaxtheory.collapse._moments import check_floating, check_labels


def geometric_complexity(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array, "n ..."],
    *,
    labels: Integer[Array, " n"] | None = None,
    num_classes: int | None = None,
    num_probes: int | None = None,
    key: KeyArray | None = None,
    batch_size: int | None = None,
) -> Estimate:
    """Mean squared Frobenius norm of the Jacobian of outputs by inputs.

    ``GC = (1/n) sum_i ||d f(x_i) / d x_i||_F^2``, a sum over outputs and input entries.
    With `num_probes` it is estimated as the mean of ``||J^T z||^2`` over random signs
    ``z`` (Hutchinson), one reverse pass each. Exactly, it takes a reverse pass for each
    output or a forward one (``J e``) for each input entry, whichever are fewer.

    Under a Poincare inequality with constant ``c`` for the inputs of a class, its
    feature variance is ``v <= c GC`` (over that class), so that low complexity bounds
    the class-distance normalised variance, and few-shot errors:
    `bounds.geometric_few_shot`. For Gaussian inputs ``c`` is the largest eigenvalue of
    their covariance; for data it is not known.

    Args:
        apply_fn: ``apply_fn(params, x[n, ...]) -> features[n, ...]``.
        params: Parameters.
        x: Inputs, floating-point.
        labels: Class index of each example, in ``[0, k)``, for one complexity of each
            class; None for that of all examples.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.
        num_probes: Number of probes, at least 2; None computes the exact number.
        key: Random key for the probes; needed with `num_probes`.
        batch_size: Examples per chunk; None takes all at once.

    Returns:
        The complexity (shape ``[k]`` with `labels`, NaN for a class that does not
        occur; NaN where an input or a feature is not finite), with the standard error
        over probes (0 when exact). It does not cover the choice of examples.

    Raises:
        ValueError: Inputs are not floating-point, `key` is missing or not needed, or
            another argument is invalid.

    Memory:
        One chunk's derivative, and with probes one probe of the size of all outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> apply_fn = lambda w, x: x @ w
        >>> w, x = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.ones((5, 2))
        >>> print(geometric_complexity(apply_fn, w, x).value)
        6.0

    References:
        Munn, Dherin & Gonzalvo 2024, arXiv:2405.15706; Dherin et al. 2022,
        arXiv:2209.13083.
    """
    check_function("apply_fn", apply_fn)
    check_params(params)
    check_batch_size(batch_size)
    check_examples(x=x)
    check_floating(x, "x")
    if (num_probes is None) != (key is None):
        raise ValueError(
            "`key` must be given where `num_probes` is, and only there: without probes "
            "nothing is random."
        )
    classes, labels = _check_classes(x, labels, num_classes)
    if num_probes is None:
        value = _exact(apply_fn, batch_size, classes, params, x, labels)
        return Estimate(value, jnp.zeros_like(value), 1)
    check_key(key)
    num_probes = check_count(num_probes=num_probes, at_least=2)
    samples = _probes(apply_fn, batch_size, num_probes, classes, params, x, labels, key)
    error = jnp.std(samples, axis=0, ddof=1) / jnp.sqrt(num_probes)
    return Estimate(jnp.mean(samples, axis=0), error, num_probes)


def _check_classes(x, labels, num_classes):
    """The number of classes and the labels; None and zeros without labels."""
    if labels is None:
        if num_classes is not None:
            raise ValueError(
                "`num_classes` must be None without `labels`, but was "
                f"{num_classes!r}. Pass `labels=` for one complexity of each class."
            )
        return None, jnp.zeros(jnp.shape(x)[0], jnp.int32)
    check_examples(x=x, labels=labels)
    return check_labels(labels, num_classes), jnp.asarray(labels)


def _rows(apply_fn, params):
    """``x -> features`` as one row for each example."""

    def rows(x):
        outputs = apply_fn(params, x)
        is_array = hasattr(outputs, "dtype") and hasattr(outputs, "shape")
        floating = is_array and jnp.issubdtype(outputs.dtype, jnp.floating)
        if not floating or outputs.shape[:1] != x.shape[:1]:
            was = f"a {type(outputs).__name__}"
            if is_array:
                was = f"shape {outputs.shape} and dtype {outputs.dtype}"
            raise ValueError(
                "`apply_fn` must return one floating-point row for each of "
                f"{x.shape[0]} examples, but returned {was}. Pick one array out of "
                "what the model returns."
            )
        return jnp.reshape(outputs, (x.shape[0], -1))

    return rows


def _squares(tangents):
    """Squared norm of each example's row, in at least float32."""
    rows = jnp.reshape(tangents, (tangents.shape[0], -1))
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return jnp.sum(jnp.square(rows), axis=1)


def _mean(per_example, labels, classes, weights):
    """Weighted sum over examples and their number, of each class or of all."""
    if classes is None:
        return jnp.sum(per_example * weights), jnp.sum(weights)
    member = labels[:, None] == jnp.arange(classes)[None, :]
    weights = jnp.where(member, weights[:, None], 0)
    weighted = jnp.where(member, per_example[:, None] * weights, 0)
    return jnp.sum(weighted, axis=0), jnp.sum(weights, axis=0)


def _where_finite(squares, *arrays):
    """NaN for examples with an entry that is not finite, whose slopes can be 0."""
    finite = [jnp.all(jnp.isfinite(a), axis=tuple(range(1, a.ndim))) for a in arrays]
    return jnp.where(jnp.all(jnp.stack(finite), axis=0), squares, jnp.nan)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _exact(apply_fn, batch_size, classes, params, x, labels):
    rows = _rows(apply_fn, params)
    shape: Any = jax.eval_shape(rows, x)
    forward = x[0].size < shape.shape[1]

    def part(data, weights):
        chunk, own = data
        # A pass moves one entry of the inputs, or pulls one of the outputs back.
        like = jnp.reshape(chunk, (chunk.shape[0], -1)) if forward else rows(chunk)
        pull = None if forward else jax.vjp(rows, chunk)[1]

        def one(index):
            basis = jnp.broadcast_to(
                (jnp.arange(like.shape[1]) == index)[None, :], like.shape
            ).astype(like.dtype)
            if pull is not None:
                return _squares(pull(basis)[0])
            tangent = jnp.reshape(basis, chunk.shape)
            return _squares(jax.jvp(rows, (chunk,), (tangent,))[1])

        squares = jnp.sum(jax.lax.map(one, jnp.arange(like.shape[1])), axis=0)
        squares = _where_finite(squares, chunk, rows(chunk))
        return _mean(squares, own, classes, weights)

    total, number = sum_examples(part, (x, labels), batch_size=batch_size)
    return total / number


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _probes(apply_fn, batch_size, num_probes, classes, params, x, labels, key):
    shape: Any = jax.eval_shape(_rows(apply_fn, params), x)

    def sample(index):
        key_of_probe = jax.random.fold_in(key, index)
        signs = jax.random.rademacher(key_of_probe, shape.shape, dtype=shape.dtype)

        def part(data, weights):
            chunk, own, probe = data
            outputs, pull = jax.vjp(_rows(apply_fn, params), chunk)
            squares = _where_finite(_squares(pull(probe)[0]), chunk, outputs)
            return _mean(squares, own, classes, weights)

        total, number = sum_examples(part, (x, labels, signs), batch_size=batch_size)
        return total / number

    return jax.lax.map(sample, jnp.arange(num_probes))
