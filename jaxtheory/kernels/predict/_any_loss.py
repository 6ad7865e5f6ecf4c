"""Training of the linearised model under any loss: by integration, or step by step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Real, Shaped

from jaxtheory._types import LossFn
from jaxtheory.batching import (
    check_count,
    check_examples,
    check_number,
    example_losses,
)
from jaxtheory.kernels.predict._mse import check_descent
from jaxtheory.kernels.predict._ode import integrate
from jaxtheory.kernels.predict._problem import (
    Prediction,
    check_times,
    count_nonfinite,
    make_problem,
)


def gradient_flow(
    loss_fn: LossFn,
    kernel: Float[Array, "n n ..."],
    targets: PyTree[Shaped[ArrayLike, "n ..."]],
    kernel_test: Float[Array, "m n ..."] | None = None,
    *,
    time: Real[ArrayLike, "*r"],
    initial_outputs: Float[Array, "n k"],
    initial_outputs_test: Float[Array, "m k"] | None = None,
    tolerance: Real[ArrayLike, ""] = 1e-6,
    max_steps: int = 10_000,
) -> Prediction:
    r"""Predict a linearised model after gradient flow under any differentiable loss.

    Integrates ``da/dt = -(1 / n) grad loss_fn(f_0 + K a)`` for the coefficients ``a``
    of the outputs ``f_t(z) = f_0(z) + K(z, X) a``: what ``dw/dt = -grad L(w)`` with the
    *mean* ``L`` of `loss_fn` does to the outputs of the linear model. Kernels have the
    shapes of `gradient_flow_mse`, which has the closed form for squared error; they are
    used as they are here, without regard to symmetry or to negative eigenvalues.

    The method is that of Dormand and Prince, with steps chosen so that each errs by
    less than ``tolerance (1 + |output|)``, root mean square over training outputs. It
    is explicit: it needs about ``0.3 c lambda_max(K) t / n`` steps where the loss keeps
    a curvature ``c`` in the outputs, fewer where cross-entropy flattens as it is
    fitted. Look at `Prediction.reached`.

    Compiled once for each `loss_fn`, `max_steps` and shapes; test examples cost one
    product for each time. Differentiable in forward mode (`jax.jvp`).

    Args:
        loss_fn: ``loss_fn(outputs[n, k], targets) -> losses[n]``.
        kernel: Kernel of the training examples, ``[n, n]`` or ``[n, n, k, k]``.
        targets: Training targets, as `loss_fn` takes them (integer labels, say).
        kernel_test: Kernel of (test, train), or None.
        time: One time or a vector of them, in any order; finite.
        initial_outputs: Outputs ``f_0`` on the training examples.
        initial_outputs_test: Those on the test examples; needed with `kernel_test`.
        tolerance: At least about ten units of rounding: in float32, 1e-6.
        max_steps: Most steps tried.

    Returns:
        Outputs at each time, see `Prediction`.

    Raises:
        ValueError: Shapes do not fit, a time is negative or infinite, or the loss is
            not one number per example.

    Memory:
        The kernel and some ten arrays ``[n, k]``; a step takes ``O(n^2 k)`` time
        (``(n k)^2`` if full).

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jaxtheory.kernels import predict
        >>> out = predict.gradient_flow(
        ...     optax.softmax_cross_entropy_with_integer_labels,
        ...     jnp.eye(2),
        ...     jnp.array([0, 1]),
        ...     time=jnp.array([0.0, 10.0]),
        ...     initial_outputs=jnp.zeros((2, 2)),
        ... )
        >>> [round(output, 2) for output in out.train[1, 0].tolist()]
        [1.09, -1.09]

    References:
        Lee et al., arXiv:1902.06720, section 2.2; Dormand and Prince (1980), Journal of
        Computational and Applied Mathematics 6.
    """
    problem = _check(
        kernel, targets, kernel_test, initial_outputs, initial_outputs_test
    )
    check_times(time, infinite=False)
    check_number("tolerance", tolerance, lambda v: 0 < v < 1, "between 0 and 1")
    max_steps = check_count(max_steps=max_steps)
    return _gradient_flow(loss_fn, max_steps, problem, targets, time, tolerance)


@partial(jax.jit, static_argnums=(0, 1))
def _gradient_flow(loss_fn, max_steps, problem, targets, time, tolerance):
    """The prediction of checked arguments."""
    gradient = _output_gradient(loss_fn, problem, targets)
    times = jnp.asarray(time, problem.kernel.dtype)
    moved = lambda a: problem.outputs(a)[0] - problem.initial

    def error(change, coefficients):
        allowed = tolerance * (1 + jnp.abs(moved(coefficients) + problem.initial))
        return jnp.sqrt(jnp.mean((moved(change) / allowed) ** 2))

    order = jnp.argsort(times.ravel())
    coefficients, reached = integrate(
        lambda a: -gradient(a),
        jnp.zeros_like(problem.initial),
        times.ravel()[order],
        error,
        max_steps=max_steps,
    )
    return _collect(problem, coefficients, reached, order, times.shape)


def gradient_descent(
    loss_fn: LossFn,
    kernel: Float[Array, "n n ..."],
    targets: PyTree[Shaped[ArrayLike, "n ..."]],
    kernel_test: Float[Array, "m n ..."] | None = None,
    *,
    learning_rate: Real[ArrayLike, ""],
    num_steps: Int[ArrayLike, "*r"],
    initial_outputs: Float[Array, "n k"],
    initial_outputs_test: Float[Array, "m k"] | None = None,
    momentum: Real[ArrayLike, ""] = 0.0,
    nesterov: bool = False,
) -> Prediction:
    r"""Predict a linearised model after steps of gradient descent under any loss.

    Exactly what ``optax.sgd(learning_rate, momentum, nesterov)`` does to the linear
    model in full batches, on the *mean* of `loss_fn` over ``n`` examples, computed on
    the outputs: without momentum ``a <- a - (eta / n) grad loss_fn(f_0 + K a)``, and
    ``f_T(z) = f_0(z) + K(z, X) a``. Kernels are as for `gradient_flow`;
    `gradient_descent_mse` has the closed form for squared error.

    Compiled once for each `loss_fn` and shapes, whatever the numbers. Differentiable in
    forward mode (`jax.jvp`), also in the kernel.

    Args:
        loss_fn: ``loss_fn(outputs[n, k], targets) -> losses[n]``.
        kernel: Kernel of the training examples, ``[n, n]`` or ``[n, n, k, k]``.
        targets: Training targets, as `loss_fn` takes them.
        kernel_test: Kernel of (test, train), or None.
        learning_rate: ``eta``.
        num_steps: One number of steps or a vector of them, in any order.
        initial_outputs: Outputs ``f_0`` on the training examples.
        initial_outputs_test: Those on the test examples; needed with `kernel_test`.
        momentum: In ``[0, 1)``.
        nesterov: Nesterov's momentum instead of the heavy ball.

    Returns:
        Outputs after each number of steps, see `Prediction`.

    Raises:
        ValueError: Shapes do not fit, the loss is not one number per example, the
            learning rate is not positive and finite, a number of steps is no integer or
            negative, or `momentum` is out of range.

    Memory:
        The kernel and a few arrays ``[n, k]``; a step takes ``O(n^2 k)`` time
        (``(n k)^2`` if full).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> logistic = lambda f, y: jnp.log1p(jnp.exp(-y * f[:, 0]))
        >>> out = predict.gradient_descent(
        ...     logistic,
        ...     jnp.eye(1),
        ...     jnp.ones(1),
        ...     learning_rate=1.0,
        ...     num_steps=1,
        ...     initial_outputs=jnp.zeros((1, 1)),
        ... )
        >>> out.train.tolist()
        [[0.5]]

    References:
        Lee et al., arXiv:1902.06720, section 2.3.
    """
    problem = _check(
        kernel, targets, kernel_test, initial_outputs, initial_outputs_test
    )
    check_descent(learning_rate, num_steps, momentum)
    numbers = (learning_rate, momentum)
    return _gradient_descent(
        loss_fn, bool(nesterov), problem, targets, num_steps, numbers
    )


@partial(jax.jit, static_argnums=(0, 1))
def _gradient_descent(loss_fn, nesterov, problem, targets, num_steps, numbers):
    """The prediction of checked arguments."""
    gradient = _output_gradient(loss_fn, problem, targets)
    dtype = problem.kernel.dtype
    learning_rate, momentum = (jnp.asarray(number, dtype) for number in numbers)
    num_steps = jnp.asarray(num_steps, int)

    def step(_, state):
        coefficients, trace = state
        slope = gradient(coefficients)
        trace = slope + momentum * trace
        update = slope + momentum * trace if nesterov else trace
        return coefficients - learning_rate * update, trace

    def advance(state, steps):
        state = jax.lax.fori_loop(0, steps, step, state)
        return state, state[0]

    order = jnp.argsort(num_steps.ravel())
    steps = jnp.diff(num_steps.ravel()[order], prepend=0)
    zeros = jnp.zeros_like(problem.initial)
    coefficients = jax.lax.scan(advance, (zeros, zeros), steps)[1]
    reached = jnp.ones(order.shape, bool)
    return _collect(problem, coefficients, reached, order, num_steps.shape)


def _check(kernel, targets, kernel_test, initial, initial_test):
    """The problem of checked arrays."""
    check_examples(kernel=kernel, targets=targets, initial_outputs=initial)
    if len(jnp.shape(initial)) != 2:
        raise ValueError(
            "`initial_outputs` must be [n, k], but has shape "
            f"{jnp.shape(initial)}. Use `outputs[:, None]` for one output."
        )
    return make_problem(kernel, kernel_test, initial, initial_test, jnp.shape(initial))


def _output_gradient(loss_fn, problem, targets) -> Any:
    """The gradient of the mean loss in the training outputs, of their coefficients."""
    n = problem.initial.shape[0]
    mean_loss = lambda f: jnp.mean(example_losses(loss_fn, f, targets, n))
    train = problem._replace(kernel_test=None)
    return lambda coefficients: jax.grad(mean_loss)(train.outputs(coefficients)[0])


def _collect(problem, coefficients, reached, order, shape):
    """The result, from coefficients at sorted times."""
    back = jnp.argsort(order)
    shaped = lambda a: a[back].reshape(*shape, *a.shape[1:])
    train, test = jax.vmap(problem.outputs)(coefficients)
    return Prediction(
        train=shaped(train),
        test=None if test is None else shaped(test),
        coefficients=shaped(coefficients),
        num_dropped=jnp.zeros((), int),
        reached=shaped(reached),
        num_nonfinite=count_nonfinite(train, test),
    )
