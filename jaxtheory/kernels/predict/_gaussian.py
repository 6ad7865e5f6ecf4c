"""Gaussian predictions: ensembles of trained networks, and posteriors."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory._types import LossFn
from jaxtheory.batching import check_number
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import check_kernel
from jaxtheory.kernels._regression import (
    _check_size,
    eigendecomposition,
    rounding_level,
)
from jaxtheory.kernels.predict._curvature import output_curvature
from jaxtheory.kernels.predict._modes import flow_factor
from jaxtheory.kernels.predict._problem import (
    check_kernels,
    check_targets,
    check_times,
    count_nonfinite,
)


class Gaussian(NamedTuple):
    """A Gaussian distribution over outputs on test examples.

    The ``k`` outputs are independent given the data and share the covariance. Axes
    ``*r`` are those of the times that were asked for.

    Attributes:
        mean: Mean of each output.
        covariance: Covariance over test examples, of each output; positive semidefinite
            to rounding of the prior's. Of the function: add the noise of new labels to
            its diagonal.
        num_dropped: Number of eigenvalues of the training kernel (with noise) not told
            from zero, as in `Prediction` and `KernelRegression`. No jitter is added.
        num_nonfinite: Number of entries of `mean` and `covariance` that are NaN or
            infinite, because an argument was.
    """

    mean: Float[Array, "*r m k"]
    covariance: Float[Array, "*r m m"]
    num_dropped: Int[Array, ""]
    num_nonfinite: Int[Array, ""]


def ensemble(
    loss_fn: LossFn,
    kernels: Any,
    targets: Float[Array, "n k"],
    kernels_test: Any,
    kernels_test_test: Any,
    *,
    time: Real[ArrayLike, "*r"],
) -> Gaussian:
    r"""Predict the mean and covariance of trained, infinitely wide networks.

    Over initialisations, after gradient flow for a time ``t`` as in `gradient_flow_mse`
    (mean over examples, ``c`` read from `loss_fn`), with the NTK ``T`` and the NNGP
    kernel ``K``,

    - ``A_t = T(z, X) T^-1 (1 - exp(-c T t / n))``
    - mean ``A_t y``
    - covariance ``K(z, z') - A_t K(X, z') - K(z, X) A_t^T + A_t K A_t^T``

    This is the distribution of ``f_0(z) + A_t (y - f_0(X))`` for a Gaussian ``f_0`` of
    mean zero with the kernel ``K``: exact for linear models too. For the ensemble of a
    finite network use kernels averaged over initialisations. With ``K = T`` and
    ``t = inf`` it is `posterior` without noise, but otherwise no posterior.

    Works in the precision of its arguments, and at least float32. Compiled once for
    each `loss_fn` and shapes.

    Args:
        loss_fn: Quadratic ``loss_fn(outputs[n, k], targets[n, k]) -> losses[n]``.
        kernels: Of the training examples: any object with attributes `nngp` and `ntk`,
            both ``[n, n]``, as `infinite_width` returns it.
        targets: Training targets.
        kernels_test: The same between test examples (rows) and training examples
            (columns), ``[m, n]``.
        kernels_test_test: Of the test examples, ``[m, m]``; only `nngp` is needed.
        time: One time or a vector of them; infinity is one.

    Returns:
        The distribution at each time, see `Gaussian`.

    Raises:
        ValueError: Shapes do not fit, an attribute is missing, the loss is not
            quadratic, or a time is negative.

    Memory:
        A few matrices ``[n, n]`` and ``[r, m, n]``; ``O(n^3 + r m n^2)`` time.

    Example:
        >>> from types import SimpleNamespace
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> loss_fn = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1) / 2
        >>> one = SimpleNamespace(nngp=jnp.ones((1, 1)), ntk=jnp.ones((1, 1)))
        >>> out = predict.ensemble(
        ...     loss_fn, one, jnp.ones((1, 1)), one, one, time=jnp.log(2.0)
        ... )
        >>> out.mean.tolist(), out.covariance.tolist()  # half way; half the deviation
        ([[0.5]], [[0.25]])

    References:
        Lee et al., arXiv:1902.06720, equations 14 to 16.
    """
    pairs = {"kernels": kernels, "kernels_test": kernels_test}
    ntk, ntk_test = (_attribute(name, pairs[name], "ntk") for name in pairs)
    nngp, nngp_test = (_attribute(name, pairs[name], "nngp") for name in pairs)
    prior = _attribute("kernels_test_test", kernels_test_test, "nngp")
    check_kernel(ntk)
    check_targets(targets, ntk)
    _check_blocks(ntk, ntk_test, prior)
    for name, first, second in (
        ("kernels", nngp, ntk),
        ("kernels_test", nngp_test, ntk_test),
    ):
        if jnp.shape(first) != jnp.shape(second):
            raise ValueError(
                f"`{name}.nngp` must have the shape of `{name}.ntk`, but has shape "
                f"{jnp.shape(first)} against {jnp.shape(second)}."
            )
    check_times(time, infinite=True)
    arrays = (ntk, targets, ntk_test, nngp, nngp_test, prior)
    return _ensemble(loss_fn, _promote(*arrays), time)


@partial(jax.jit, static_argnums=0)
def _ensemble(loss_fn, arrays, time):
    """The distribution of checked arguments."""
    ntk, targets, ntk_test, nngp, nngp_test, prior = arrays
    _check_size(ntk)
    n, k = targets.shape
    rate = output_curvature(loss_fn, k, ntk.dtype) / n
    duration = rate * jnp.asarray(time, ntk.dtype)
    eigenvalues, vectors = eigendecomposition(ntk)
    cross = _product(ntk_test, vectors)

    def at(duration):
        phi = flow_factor(eigenvalues, duration)
        phi = jnp.where(jnp.isnan(eigenvalues), jnp.nan, phi)
        smoother = _product(cross * phi[None], vectors.T)
        mixed = _product(smoother, nngp_test.T)
        trained = _product(_product(smoother, (nngp + nngp.T) / 2), smoother.T)
        covariance = prior - mixed - mixed.T + trained
        return _product(smoother, targets), (covariance + covariance.T) / 2

    mean, covariance = jax.vmap(at)(duration.ravel())
    shaped = lambda a: a.reshape(*duration.shape, *a.shape[1:])
    return Gaussian(
        mean=shaped(mean),
        covariance=shaped(covariance),
        num_dropped=jnp.sum(eigenvalues <= rounding_level(eigenvalues)),
        num_nonfinite=count_nonfinite(mean, covariance),
    )


def posterior(
    kernel: Float[Array, "n n"],
    targets: Float[Array, "n k"],
    kernel_test: Float[Array, "m n"],
    kernel_test_test: Float[Array, "m m"],
    *,
    noise_variance: Real[ArrayLike, ""],
) -> Gaussian:
    r"""Compute the posterior of a Gaussian process under noisy observations.

    - mean ``K(z, X) (K + s2 I)^-1 y``
    - covariance ``K(z, z') - K(z, X) (K + s2 I)^-1 K(X, z')``

    With the NNGP kernel this is Bayesian inference in the infinitely wide network, and
    without noise what training only its last layer gives an ensemble; with the NTK it
    is a Gaussian process whose mean, without noise, is that of `ensemble` at infinite
    time, but whose covariance is not. The mean is that of `kernel_regression` with
    ``ridge = s2``, which has the leave-one-out errors.

    Works in the precision of its arguments, and at least float32, where noise below
    about ``1e-6 lambda_max`` is lost in rounding.

    Args:
        kernel: Kernel of the training examples; of an empirical NTK, the trace divided
            by ``k``.
        targets: Training targets.
        kernel_test: Kernel of test examples (rows) and training examples (columns).
        kernel_test_test: Kernel of the test examples.
        noise_variance: ``s2``, not negative. With 0, a singular kernel is inverted on
            its range.

    Returns:
        The posterior, see `Gaussian`.

    Raises:
        ValueError: Shapes do not fit, or the variance is negative or not finite.

    Memory:
        Three matrices ``[n, n]``; ``O(n^3 + m n^2)`` time.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> one = jnp.ones((1, 1))
        >>> out = predict.posterior(one, one, one, one, noise_variance=3.0)
        >>> out.mean.tolist(), out.covariance.tolist()
        ([[0.25]], [[0.75]])

    References:
        Rasmussen and Williams (2006), equations 2.23 and 2.24; Lee et al.,
        arXiv:1711.00165, equations 8 and 9.
    """
    check_kernel(kernel)
    check_targets(targets, kernel)
    _check_blocks(kernel, kernel_test, kernel_test_test)
    check_number(
        "noise_variance",
        noise_variance,
        lambda v: 0 <= v < float("inf"),
        "finite and at least 0",
    )
    arrays = (kernel, targets, kernel_test, kernel_test_test)
    return _posterior(_promote(*arrays), noise_variance)


@jax.jit
def _posterior(arrays, noise_variance):
    """The posterior of checked arguments."""
    kernel, targets, kernel_test, prior = arrays
    _check_size(kernel)
    eigenvalues, vectors = eigendecomposition(kernel)
    eigenvalues = eigenvalues + jnp.asarray(noise_variance, kernel.dtype)
    dropped = eigenvalues <= rounding_level(eigenvalues)
    inverse = jnp.where(dropped, 0, 1 / jnp.where(dropped, 1, eigenvalues))
    cross = _product(kernel_test, vectors)
    mean = _product(cross, inverse[:, None] * _product(vectors.T, targets))
    half = cross * jnp.sqrt(inverse)[None]
    covariance = (prior + prior.T) / 2 - _product(half, half.T)
    dropped = jnp.sum(dropped)
    return Gaussian(mean, covariance, dropped, count_nonfinite(mean, covariance))


def _product(a, b):
    """Matrix product at the highest precision."""
    return jnp.matmul(a, b, precision="highest")


def _promote(*arrays):
    """The arrays in one precision, at least single."""
    dtype = jnp.result_type(jnp.float32, *arrays)
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def _attribute(name, kernels, attribute):
    """One kernel of a pair, or an error that names it."""
    if not hasattr(kernels, attribute):
        raise ValueError(
            f"`{name}` must have the attribute `{attribute}`, as `infinite_width` "
            f"returns it, but is a {type(kernels).__name__}. Pass the whole result, or "
            "a named tuple of both kernels."
        )
    return getattr(kernels, attribute)


def _check_blocks(kernel, kernel_test, kernel_test_test):
    """Raise unless the kernels to and among test examples fit."""
    check_real(kernel_test=kernel_test, kernel_test_test=kernel_test_test)
    check_kernels(kernel, kernel_test, 1)
    m = jnp.shape(kernel_test)[0]
    if jnp.shape(kernel_test_test) != (m, m):
        raise ValueError(
            f"`kernel_test_test` must be the kernel of the {m} test examples, shape "
            f"({m}, {m}), but has shape {jnp.shape(kernel_test_test)}."
        )
