"""Training of the linearised model under squared error, in closed form."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory._types import LossFn
from jaxtheory.batching import check_number
from jaxtheory.kernels._regression import (
    _check_size,
    eigendecomposition,
    rounding_level,
)
from jaxtheory.kernels.predict._curvature import check_momentum, output_curvature
from jaxtheory.kernels.predict._modes import descent_factor, flow_factor
from jaxtheory.kernels.predict._problem import (
    Prediction,
    Problem,
    check_steps,
    check_targets,
    check_times,
    count_nonfinite,
    make_problem,
)


def gradient_flow_mse(
    loss_fn: LossFn,
    kernel: Float[Array, "n n ..."],
    targets: Float[Array, "n k"],
    kernel_test: Float[Array, "m n ..."] | None = None,
    *,
    time: Real[ArrayLike, "*r"],
    initial_outputs: Float[Array, "n k"] | None = None,
    initial_outputs_test: Float[Array, "m k"] | None = None,
) -> Prediction:
    r"""Predict a linearised model after gradient flow under squared error.

    Under ``dw/dt = -grad L(w)`` with ``L`` the *mean* of `loss_fn` over ``n`` examples,
    of curvature ``c`` in the outputs,

        ``f_t(z) = f_0(z) + K(z, X) K^-1 (1 - exp(-c K t / n)) (y - f_0(X))``.

    ``c`` is read from `loss_fn`: 1 for half the sum of squares over the outputs
    (``jnp.sum((f - y)**2, axis=1) / 2``), 2 for the sum, ``2 / k`` for the mean.

    A kernel ``[n, n]`` is shared by all outputs: of an infinitely wide network, or of
    an empirical NTK its trace *divided by* ``k``. The full ``[n, n, k, k]`` kernel
    gives the linearised model exactly.

    Time is that of the flow. Gradient descent with learning rate ``eta`` is near it at
    ``t = eta * steps`` while ``eta`` is far below `critical_learning_rate`; with
    momentum ``b`` at about ``eta * steps / (1 - b)``. `gradient_descent_mse` is exact.

    A singular kernel (duplicates, more outputs than parameters) is no error, and no
    jitter is added: see `Prediction.num_dropped`.

    Works in the precision of its arguments, and at least float32. Compiled once for
    each `loss_fn` and shapes. Differentiable in all but the kernel, whose derivative is
    not finite where eigenvalues coincide (`gradient_descent` has it).

    Args:
        loss_fn: Quadratic ``loss_fn(outputs[n, k], targets[n, k]) -> losses[n]``.
        kernel: Kernel of the training examples; only its symmetric part matters, and
            negative eigenvalues count as zero.
        targets: Training targets.
        kernel_test: Kernel of the ``m`` test examples (rows) with the training examples
            (columns); None predicts the training examples alone.
        time: One time or a vector of them, in any order; infinity is one.
        initial_outputs: Outputs ``f_0`` on the training examples; None is zero.
        initial_outputs_test: Those on the test examples.

    Returns:
        Outputs at each time, see `Prediction`.

    Raises:
        ValueError: Shapes do not fit, the loss is not quadratic, a time is negative, or
            there are more than 32,766 examples (times ``k`` if full).

    Memory:
        Three matrices of the size of the kernel; ``O(n^3)`` time (``(n k)^3`` if
        full), once for all times.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> loss_fn = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1) / 2
        >>> kernel, y = jnp.diag(jnp.array([2.0, 0.0])), jnp.ones((2, 1))
        >>> out = predict.gradient_flow_mse(
        ...     loss_fn, kernel, y, time=jnp.array([jnp.log(2.0), jnp.inf])
        ... )
        >>> out.train[:, :, 0].tolist()
        [[0.5, 0.0], [1.0, 0.0]]

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572, section 5; Lee et al.,
        arXiv:1902.06720, equations 10 and 11.
    """
    check_targets(targets, kernel)
    problem = make_problem(
        kernel, kernel_test, initial_outputs, initial_outputs_test, jnp.shape(targets)
    )
    check_times(time, infinite=True)
    return _gradient_flow(loss_fn, problem, targets, time)


@partial(jax.jit, static_argnums=0)
def _gradient_flow(loss_fn, problem, targets, time):
    """The prediction of checked arguments."""
    n, k = targets.shape
    dtype = problem.kernel.dtype
    rate = output_curvature(loss_fn, k, dtype) / n
    duration = rate * jnp.asarray(time, dtype)
    return _predict(problem, targets, duration, flow_factor)


def gradient_descent_mse(
    loss_fn: LossFn,
    kernel: Float[Array, "n n ..."],
    targets: Float[Array, "n k"],
    kernel_test: Float[Array, "m n ..."] | None = None,
    *,
    learning_rate: Real[ArrayLike, ""],
    num_steps: Int[ArrayLike, "*r"],
    momentum: Real[ArrayLike, ""] = 0.0,
    nesterov: bool = False,
    initial_outputs: Float[Array, "n k"] | None = None,
    initial_outputs_test: Float[Array, "m k"] | None = None,
) -> Prediction:
    r"""Predict a linearised model after steps of gradient descent under squared error.

    Exactly what ``optax.sgd(learning_rate, momentum, nesterov)`` does to the linear
    model in full batches, on the *mean* of `loss_fn` over ``n`` examples; without
    momentum

        ``f_T(z) = f_0(z) + K(z, X) K^-1 (1 - (1 - c eta K / n)^T) (y - f_0(X))``

    with the curvature ``c`` as in `gradient_flow_mse`, which says the rest too. The
    cost does not depend on the number of steps. Above `critical_learning_rate` it
    diverges as descent does.

    Args:
        loss_fn: Quadratic ``loss_fn(outputs[n, k], targets[n, k]) -> losses[n]``.
        kernel: Kernel of the training examples, ``[n, n]`` or ``[n, n, k, k]``.
        targets: Training targets.
        kernel_test: Kernel of (test, train), or None.
        learning_rate: ``eta``.
        num_steps: One number of steps ``T`` or a vector of them, in any order.
        momentum: In ``[0, 1)``.
        nesterov: Nesterov's momentum instead of the heavy ball.
        initial_outputs: Outputs ``f_0`` on the training examples; None is zero.
        initial_outputs_test: Those on the test examples.

    Returns:
        Outputs after each number of steps, see `Prediction`.

    Raises:
        ValueError: As `gradient_flow_mse`; or the learning rate is not positive and
            finite, a number of steps is no integer or negative, or `momentum` is out
            of range.

    Memory:
        As `gradient_flow_mse`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> loss_fn = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1) / 2
        >>> out = predict.gradient_descent_mse(
        ...     loss_fn, jnp.eye(1), jnp.ones((1, 1)), learning_rate=0.5, num_steps=3
        ... )
        >>> out.train.tolist()  # 1 - (1 - 0.5)^3
        [[0.875]]

    References:
        Lee et al., arXiv:1902.06720, section 2.3; Polyak (1964) and Sutskever et al.
        (2013) for the momenta.
    """
    check_targets(targets, kernel)
    problem = make_problem(
        kernel, kernel_test, initial_outputs, initial_outputs_test, jnp.shape(targets)
    )
    check_descent(learning_rate, num_steps, momentum)
    return _gradient_descent(
        loss_fn, bool(nesterov), problem, targets, learning_rate, num_steps, momentum
    )


def check_descent(learning_rate: object, num_steps: object, momentum: object) -> None:
    """Raise unless these describe gradient descent."""
    positive = lambda eta: 0 < eta < float("inf")
    check_number("learning_rate", learning_rate, positive, "positive and finite")
    check_steps(num_steps)
    check_momentum(momentum)


@partial(jax.jit, static_argnums=(0, 1))
def _gradient_descent(
    loss_fn, nesterov, problem, targets, learning_rate, num_steps, momentum
):
    """The prediction of checked arguments."""
    n, k = targets.shape
    dtype = problem.kernel.dtype
    step = output_curvature(loss_fn, k, dtype) / n * jnp.asarray(learning_rate, dtype)
    momentum = jnp.asarray(momentum, dtype)
    factor = lambda eigenvalues, num: descent_factor(
        eigenvalues, num, step, momentum, nesterov
    )
    return _predict(problem, targets, jnp.asarray(num_steps), factor)


def _predict(
    problem: Problem,
    targets: Array,
    durations: Array,
    factor: Callable[[Array, Array], Array],
) -> Prediction:
    """Outputs when mode ``lambda`` has the factor ``factor(lambda, duration)``."""
    _check_size(problem.kernel)
    eigenvalues, vectors = eigendecomposition(problem.kernel)
    residual = targets.astype(problem.kernel.dtype) - problem.initial
    modes = jnp.matmul(vectors.T, problem.columns(residual), precision="highest")

    def at(duration):
        phi = factor(eigenvalues, duration)
        phi = jnp.where(jnp.isnan(eigenvalues), jnp.nan, phi)
        combine = lambda weights: jnp.matmul(
            vectors, weights[:, None] * modes, precision="highest"
        ).reshape(problem.initial.shape)
        coefficients = combine(phi)
        # Not the kernel times the coefficients, which rounds where they are large.
        train = problem.initial + combine(jnp.maximum(eigenvalues, 0) * phi)
        return train, problem.outputs(coefficients)[1], coefficients

    train, test, coefficients = jax.vmap(at)(durations.ravel())
    shaped = lambda a: a.reshape(*durations.shape, *a.shape[1:])
    return Prediction(
        train=shaped(train),
        test=None if test is None else shaped(test),
        coefficients=shaped(coefficients),
        num_dropped=jnp.sum(eigenvalues <= rounding_level(eigenvalues)),
        reached=jnp.ones(durations.shape, bool),
        num_nonfinite=count_nonfinite(train, test),
    )
