"""What every prediction is given and gives: checked kernels, outputs, results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxtheory.batching import check_examples
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import check_targets as check_targets


class Prediction(NamedTuple):
    """Outputs of a linearised model in training, and how far they can be trusted.

    Axes ``*r`` are those of the times (or numbers of steps) that were asked for.

    Attributes:
        train: Outputs on the training examples.
        test: Outputs on the test examples; None if no kernel to them was given.
        coefficients: What makes them, ``f(z) = f_0(z) + K(z, X) coefficients``. With
            the full kernel (or one output) the trained parameters are ``w = w_0 +
            J(X)^T coefficients``, a vector-Jacobian product of the model. Directions
            in which the kernel vanishes do not change any output.
        num_dropped: Number of eigenvalues of the training kernel at or below ``10 eps
            lambda_max``, which are not told from zero. Their directions count as long
            as the kernel's rounding errors, which grow to ``eps lambda_max c t / n``
            in the outputs, are small; from ``10 eps lambda_max c t / n = 1`` on nothing
            is learnt in them. 0 where no eigenvalues are computed.
        reached: Whether the integration came to that time; False if it ran out of
            steps, and the values are those of an earlier time. Always True without
            an integration.
        num_nonfinite: Number of entries of `train` and `test` that are NaN or infinite:
            an argument was not finite, or gradient descent diverged.
    """

    train: Float[Array, "*r n k"]
    test: Float[Array, "*r m k"] | None
    coefficients: Float[Array, "*r n k"]
    num_dropped: Int[Array, ""]
    reached: Bool[Array, "*r"]
    num_nonfinite: Int[Array, ""]


class Problem(NamedTuple):
    """Checked arrays in one precision: one column and block for each free output.

    Attributes:
        kernel: ``[N, N]``; ``N = n k`` if full, else ``n``.
        kernel_test: ``[M, N]`` or None.
        initial: ``[n, k]``.
        initial_test: ``[m, k]`` or None.
    """

    kernel: Array
    kernel_test: Array | None
    initial: Array
    initial_test: Array | None

    def columns(self, values: Array) -> Array:
        """``[n, k]`` as what `kernel` multiplies, ``[N, columns]``."""
        return values.reshape(self.kernel.shape[0], -1)

    def outputs(self, coefficients: Array) -> tuple[Array, Array | None]:
        """Train and test outputs ``[n, k]``, ``[m, k]`` of coefficients ``[n, k]``."""
        columns = self.columns(coefficients)
        moved = lambda kernel, start: (
            start
            + jnp.matmul(kernel, columns, precision="highest").reshape(start.shape)
        )
        test = None
        if self.kernel_test is not None:
            test = moved(self.kernel_test, self.initial_test)
        return moved(self.kernel, self.initial), test


def make_problem(
    kernel: Any, kernel_test: Any, initial: Any, initial_test: Any, shape: tuple
) -> Problem:
    """Check kernels and initial outputs against each other; zeros where None.

    Args:
        kernel: ``[n, n]`` or ``[n, n, k, k]``.
        kernel_test: ``[m, n]`` or ``[m, n, k, k]`` or None.
        initial: ``[n, k]`` or None.
        initial_test: ``[m, k]`` or None.
        shape: ``(n, k)``.

    Returns:
        The problem.

    Raises:
        ValueError: Shapes do not fit, or initial outputs are given for one of train and
            test only.
    """
    check_kernels(kernel, kernel_test, shape[1])
    _check_initial(initial, initial_test, kernel_test, shape)
    arrays = [kernel, kernel_test, initial, initial_test]
    given = [a for a in arrays if a is not None]
    dtype = jnp.result_type(jnp.float32, *given)
    start = lambda outputs, n: jnp.asarray(
        np.zeros((n, shape[1])) if outputs is None else outputs, dtype
    )
    problem = Problem(
        as_matrix(jnp.asarray(kernel, dtype)), None, start(initial, shape[0]), None
    )
    if kernel_test is None:
        return problem
    return problem._replace(
        kernel_test=as_matrix(jnp.asarray(kernel_test, dtype)),
        initial_test=start(initial_test, jnp.shape(kernel_test)[0]),
    )


def as_matrix(kernel: Any) -> Array:
    """A full kernel ``[m, n, k, k]`` as ``[m k, n k]``; ``[m, n]`` as it is."""
    if kernel.ndim == 2:
        return kernel
    m, n, k, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(m * k, n * k)


def check_kernels(kernel: Any, kernel_test: Any, num_outputs: int) -> None:
    """Raise unless both are kernels, of one kind, for `num_outputs` outputs."""
    check_examples(kernel=kernel)
    check_real(kernel=kernel)
    shape, k = jnp.shape(kernel), num_outputs
    if len(shape) == 3:
        raise ValueError(
            f"`kernel` must be [n, n] or [n, n, k, k], but has shape {shape}. For one "
            "kernel per output, use `jax.vmap` over outputs, or "
            '`empirical_ntk(..., outputs="full")`.'
        )
    if shape not in {(shape[0],) * 2, (shape[0], shape[0], k, k)}:
        raise ValueError(
            "`kernel` must be [n, n] (one kernel for all outputs) or [n, n, k, k] "
            f"(full) with k = {k}, but has shape {shape}. Compute it on the training "
            "examples alone."
        )
    if kernel_test is None:
        return
    check_real(kernel_test=kernel_test)
    test = jnp.shape(kernel_test)
    if len(test) != len(shape) or test[1:] != shape[1:]:
        raise ValueError(
            "`kernel_test` must be the kernel of (x_test, x_train), in this order, "
            f"with shape (m, {', '.join(map(str, shape[1:]))}) like `kernel`, but has "
            f"shape {test}."
        )


def _check_initial(initial, initial_test, kernel_test, shape):
    """Raise unless initial outputs are there for all examples, or for none."""
    named = {"initial_outputs": initial, "initial_outputs_test": initial_test}
    check_real(**{name: given for name, given in named.items() if given is not None})
    if initial is not None and jnp.shape(initial) != shape:
        raise ValueError(
            f"`initial_outputs` must be [n, k] like the targets, {shape}, but has "
            f"shape {jnp.shape(initial)}."
        )
    if kernel_test is None:
        if initial_test is not None:
            raise ValueError(
                "`initial_outputs_test` was given without `kernel_test`. Pass the "
                "kernel of (x_test, x_train) too."
            )
        return
    if (initial is None) != (initial_test is None):
        raise ValueError(
            "`initial_outputs` and `initial_outputs_test` must both be given, or both "
            "be left out for a model that starts from zero, but one is None."
        )
    test = (jnp.shape(kernel_test)[0], shape[1])
    if initial_test is not None and jnp.shape(initial_test) != test:
        raise ValueError(
            f"`initial_outputs_test` must be [m, k], {test}, but has shape "
            f"{jnp.shape(initial_test)}."
        )


def check_times(time: Any, *, infinite: bool) -> None:
    """Raise unless `time` is a number or a vector of them, not negative.

    Args:
        time: The times.
        infinite: Whether infinity is one.

    Raises:
        ValueError: They are not.
    """
    shape = jnp.shape(time)
    if len(shape) > 1:
        raise ValueError(
            f"`time` must be a number or a vector of them, but has shape {shape}."
        )
    if isinstance(time, Tracer):
        return
    values = np.asarray(time, float)
    if not np.all((values >= 0) & (np.isfinite(values) | infinite)):
        limit = "at least 0 (or infinity)" if infinite else "finite and at least 0"
        raise ValueError(f"`time` must be {limit}, but some of it is not.")


def check_steps(num_steps: int | Sequence[int] | Any) -> None:
    """Raise unless `num_steps` is an integer or a vector of them, not negative."""
    shape = np.shape(num_steps)
    dtype = getattr(num_steps, "dtype", np.asarray(num_steps).dtype)
    if len(shape) > 1 or not np.issubdtype(dtype, np.integer):
        raise ValueError(
            "`num_steps` must be an integer or a vector of them, but has shape "
            f"{shape} and dtype {dtype}."
        )
    if isinstance(num_steps, Tracer):
        return
    values = np.asarray(num_steps)
    if not np.all((values >= 0) & (values < 2**31)):
        raise ValueError(
            "`num_steps` must be at least 0 and below 2^31, but some of it is not."
        )


def count_nonfinite(*arrays: Array | None) -> Array:
    """Number of entries that are NaN or infinite."""
    counts = [jnp.sum(~jnp.isfinite(a)) for a in arrays if a is not None]
    return sum(counts, start=jnp.zeros((), int))
