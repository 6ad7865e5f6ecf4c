"""Geometric complexity: how fast features change with the input, on average."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory._types import ApplyFn, Estimate, KeyArray, Params
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_key,
    check_params,
    sum_examples,
)


def geometric_complexity(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array, "n ..."],
    *,
    num_probes: int | None = None,
    key: KeyArray | None = None,
    batch_size: int | None = None,
) -> Estimate:
    """Mean squared Frobenius norm of the Jacobian of outputs by inputs.

    ``GC = (1/n) sum_i ||d f(x_i) / d x_i||_F^2``, a sum over outputs and input entries.
    With `num_probes` it is estimated as the mean of ``||J^T z||^2`` over random signs
    ``z`` (Hutchinson), one reverse pass each; exactly, it takes one for each output.

    Under a Poincare inequality with constant ``c`` for the inputs of a class, its
    feature variance is ``v <= c GC`` (over that class), so that low complexity bounds
    the class-distance normalised variance. For Gaussian inputs ``c`` is the largest
    eigenvalue of their covariance; for data it is not known.

    Args:
        apply_fn: ``apply_fn(params, x[n, ...]) -> features[n, ...]``.
        params: Parameters.
        x: Inputs, floating-point.
        num_probes: Number of probes, at least 2; None computes the exact number.
        key: Random key for the probes; needed with `num_probes`.
        batch_size: Examples per chunk; None takes all at once.

    Returns:
        The complexity, with the standard error over probes (0 when exact). It does not
        cover the choice of examples.

    Raises:
        ValueError: Inputs are not floating-point, `key` is missing or not needed, or
            another argument is invalid.

    Memory:
        One chunk's reverse pass, and with probes one probe of the size of all outputs.

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
    check_params(params)
    check_batch_size(batch_size)
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(
            "`x` must be floating-point to be differentiated, but has dtype "
            f"{jnp.result_type(x)}."
        )
    if (num_probes is None) != (key is None):
        raise ValueError(
            "`key` must be given where `num_probes` is, and only there: without probes "
            "nothing is random."
        )
    if num_probes is None:
        value = _exact(apply_fn, batch_size, params, x)
        return Estimate(value, jnp.zeros_like(value), 1)
    check_key(key)
    num_probes = check_count(num_probes=num_probes, at_least=2)
    samples = _probes(apply_fn, batch_size, num_probes, params, x, key)
    error = jnp.std(samples, ddof=1) / jnp.sqrt(num_probes)
    return Estimate(jnp.mean(samples), error, num_probes)


def _rows(apply_fn, params):
    """``x -> features`` as one row for each example."""
    return lambda x: jnp.reshape(apply_fn(params, x), (x.shape[0], -1))


def _squares(pull, cotangents, weights):
    """Weighted sum over examples of ``||J_i^T z_i||^2``, in at least float32."""
    (gradient,) = pull(cotangents)
    gradient = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    per_example = jnp.sum(jnp.square(gradient), axis=tuple(range(1, gradient.ndim)))
    return jnp.sum(per_example * weights)


@partial(jax.jit, static_argnums=(0, 1))
def _exact(apply_fn, batch_size, params, x):
    def part(chunk, weights):
        outputs, pull = jax.vjp(_rows(apply_fn, params), chunk)

        def of_output(index):
            basis = jnp.arange(outputs.shape[1]) == index
            basis = jnp.broadcast_to(basis[None, :], outputs.shape)
            return _squares(pull, basis.astype(outputs.dtype), weights)

        return jnp.sum(jax.lax.map(of_output, jnp.arange(outputs.shape[1])))

    return sum_examples(part, x, batch_size=batch_size) / x.shape[0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _probes(apply_fn, batch_size, num_probes, params, x, key):
    shape: Any = jax.eval_shape(_rows(apply_fn, params), x)

    def sample(index):
        key_of_probe = jax.random.fold_in(key, index)
        signs = jax.random.rademacher(key_of_probe, shape.shape, dtype=shape.dtype)

        def part(chunk, weights):
            _, pull = jax.vjp(_rows(apply_fn, params), chunk[0])
            return _squares(pull, chunk[1], weights)

        return sum_examples(part, (x, signs), batch_size=batch_size) / x.shape[0]

    return jax.lax.map(sample, jnp.arange(num_probes))
