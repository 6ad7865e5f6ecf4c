"""What a quadratic loss has to say: its curvature, and the largest learning rate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from jaxtheory._types import LossFn
from jaxtheory.batching import check_number, example_losses
from jaxtheory.kernels._regression import eigendecomposition
from jaxtheory.kernels.predict._problem import as_matrix, check_kernels, check_targets

# Over these distances a Huber loss, a log-cosh or a cross-entropy is not quadratic.
_DISTANCES = (-1000.0, -30.0, -2.0, -0.5, 0.25, 1.0, 10.0, 300.0)


def output_curvature(loss_fn: LossFn, num_outputs: int, dtype: np.dtype) -> float:
    """Read the curvature ``c`` from a loss whose gradient is ``c (outputs - targets)``.

    Evaluates the gradient at a few fixed points when it is traced; nothing of it is
    left in the compiled program.

    Args:
        loss_fn: ``loss_fn(outputs[n, k], targets[n, k]) -> losses[n]``.
        num_outputs: ``k``.
        dtype: Precision in which it is read.

    Returns:
        ``c``: 1 for half the sum of squares, 2 for the sum, ``2 / k`` for the mean.

    Raises:
        ValueError: The loss is another one.
    """
    shape = (len(_DISTANCES), num_outputs)
    columns = np.stack([np.roll(_DISTANCES, j) for j in range(num_outputs)], axis=1)
    targets = np.linspace(-1, 1, columns.size).reshape(shape)
    total = lambda f, y: jnp.sum(example_losses(loss_fn, f, y, len(f)))
    with jax.ensure_compile_time_eval():
        targets = jnp.asarray(targets, dtype)
        outputs = targets + jnp.asarray(columns, dtype)
        gradient = np.asarray(jax.grad(total)(outputs, targets), np.float64)
        distances = np.asarray(outputs - targets, np.float64)
    curvature = gradient[0, 0] / distances[0, 0]
    error = np.abs(gradient - curvature * distances)
    # Entry by entry: beside a distance of 1000, what another loss adds is rounding.
    rounding = 1e3 * float(jnp.finfo(dtype).eps) * np.abs(outputs)
    if not (curvature > 0 and np.all(error <= curvature * rounding)):
        raise ValueError(
            "`loss_fn` must be quadratic with one constant curvature, that is have "
            "the gradient c (outputs - targets) in the outputs, for a closed form, but "
            "has another. Use `gradient_flow` or `gradient_descent`, which take any "
            "loss."
        )
    return float(curvature)


def critical_learning_rate(
    loss_fn: LossFn,
    kernel: Float[Array, "n n ..."],
    targets: Float[Array, "n k"],
    *,
    momentum: Real[ArrayLike, ""] = 0.0,
    nesterov: bool = False,
) -> Float[Array, ""]:
    r"""Compute the learning rate above which gradient descent on the kernel diverges.

    For the mean loss over ``n`` examples, with ``c`` the constant curvature of
    `loss_fn` in the outputs (1 for half the sum of squares over the outputs, ``2 / k``
    for their mean) and ``b`` the momentum:

    - ``2 (1 + b) n / (c lambda_max(K))``: gradient descent (``b = 0``), heavy ball
    - ``2 (1 + b) n / ((1 + 2 b) c lambda_max(K))``: Nesterov

    as `optax.sgd` defines momentum. Below it every mode of the model with this kernel
    converges; exactly at it the fastest one oscillates for ever.

    A network with several outputs has the full kernel. The trace divided by ``k`` is
    its mean over outputs, whose largest eigenvalue is at most as large, so that its
    learning rate is *too large*: by some percent for wide networks at initialisation,
    and by a factor of 2 and more after they have learnt features.

    Args:
        loss_fn: Quadratic ``loss_fn(outputs[n, k], targets[n, k]) -> losses[n]``.
        kernel: Kernel of the training examples, ``[n, n]`` for one kernel shared by all
            outputs, or the full ``[n, n, k, k]``, which an empirical NTK of several
            outputs is. (Or ``[n k, n k]`` matrix-free: `ntk_operator`, and
            `linalg.top_eigenpairs` for ``lambda_max``.)
        targets: Training targets; only their shape matters.
        momentum: ``b``, in ``[0, 1)``.
        nesterov: Nesterov's momentum instead of the heavy ball.

    Returns:
        The learning rate; infinite for a zero kernel, NaN, because undefined, where the
        kernel is not finite.

    Raises:
        ValueError: Shapes do not fit, the loss is not quadratic, or `momentum` is out
            of range.

    Memory:
        Two matrices of the size of the kernel; ``O(n^3)`` time (``(n k)^3`` if full).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> loss_fn = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1) / 2
        >>> kernel, y = jnp.diag(jnp.array([4.0, 1.0])), jnp.zeros((2, 1))
        >>> predict.critical_learning_rate(loss_fn, kernel, y).tolist()  # 2 n / 4
        1.0

    References:
        Polyak (1964); Cohen et al., arXiv:2103.00065, appendix B (both momenta);
        Lee et al., arXiv:1902.06720, section 2.3.
    """
    check_targets(targets, kernel)
    check_kernels(kernel, None, jnp.shape(targets)[1])
    check_momentum(momentum)
    return _critical_learning_rate(loss_fn, bool(nesterov), kernel, targets, momentum)


@partial(jax.jit, static_argnums=(0, 1))
def _critical_learning_rate(loss_fn, nesterov, kernel, targets, momentum):
    """The learning rate of checked arguments."""
    n, k = targets.shape
    dtype = jnp.result_type(jnp.float32, kernel)
    eigenvalues, _ = eigendecomposition(as_matrix(kernel.astype(dtype)))
    momentum = jnp.asarray(momentum, dtype)
    widening = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    curvature = output_curvature(loss_fn, k, dtype)
    return widening * n / (curvature * jnp.maximum(eigenvalues[-1], 0))


def check_momentum(momentum: object) -> None:
    """Raise unless `momentum` is a number in ``[0, 1)``."""
    check_number("momentum", momentum, lambda b: 0 <= b < 1, "in [0, 1)")
