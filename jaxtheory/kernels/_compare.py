"""Compare kernels with each other and with labels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.batching import check_examples


def kernel_distance(
    kernel1: Float[Array, "*shape"], kernel2: Float[Array, "*shape"]
) -> Float[Array, ""]:
    r"""Compute how far two kernels point apart, whatever their scales.

    ``S = 1 - <K, K'>_F / (|K|_F |K'|_F)``, from 0 (proportional) through 1 (orthogonal)
    to 2 (opposite); positive semidefinite kernels stay within ``[0, 1]``. Evaluated as
    half the squared distance of the normalised kernels, so that the small distances
    between successive training steps keep their digits. ``S`` over the time between
    two measurements is the kernel velocity.

    Args:
        kernel1: A kernel, ``[n1, n2]`` or with output axes.
        kernel2: Another one for the same examples and outputs.

    Returns:
        The distance. NaN, because undefined, if a kernel is zero or not finite.

    Raises:
        ValueError: The kernels differ in shape.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel_distance(jnp.eye(2), 3 * jnp.eye(2)).tolist()
        0.0
        >>> kernel_distance(jnp.eye(2), 1 - jnp.eye(2)).round(6).tolist()
        1.0

    References:
        Fort et al., arXiv:2010.15110 (kernel distance and kernel velocity).
    """
    if jnp.shape(kernel1) != jnp.shape(kernel2):
        raise ValueError(
            "`kernel2` must have the shape of `kernel1`, but has shape "
            f"{jnp.shape(kernel2)} against {jnp.shape(kernel1)}. Compute both with the "
            "same examples and the same `outputs`."
        )
    return jnp.sum((_normalise(kernel1) - _normalise(kernel2)) ** 2) / 2


def centred_alignment(
    kernel: Float[Array, "n n"], targets: Float[Array, "n k"]
) -> Float[Array, ""]:
    r"""Compute the alignment of a kernel with the labels, both centred.

    ``A = <H K H, Y Y^T>_F / (|H K H|_F |H Y Y^T H|_F)`` with ``H = I - 1 1^T / n``:
    1 if the centred kernel is that of the labels, 0 if it says nothing about them.
    Neither the scales of `kernel` and `targets` nor constants added to them matter.

    For a kernel of ``d`` features this is the plain linear CKA, which is biased upwards
    when examples are fewer than features: independent Gaussian features with
    ``n = 100``, ``d = 1000`` on both sides have a CKA of .91. Compare values at one
    ``n`` only.

    Args:
        kernel: A symmetric kernel on ``n`` examples.
        targets: Labels, one-hot for classes (`jax.nn.one_hot`).

    Returns:
        The alignment, in ``[0, 1]`` for a positive semidefinite kernel. NaN, because
        undefined, if the kernel or the targets are constant or not finite.

    Raises:
        ValueError: `kernel` is not square, or `targets` is not ``[n, k]``.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(centred_alignment(labels @ labels.T, labels)), 6)
        1.0
        >>> round(float(centred_alignment(jnp.eye(4), labels)), 6)  # 1 / sqrt(3)
        0.57735

    References:
        Cortes, Mohri, Rostamizadeh, arXiv:1203.0550 (centred alignment); Kornblith et
        al., arXiv:1905.00414, section 3 (CKA); Baratin et al., arXiv:2008.00938 (along
        training).
    """
    check_kernel(kernel)
    check_targets(targets, kernel)
    labels = _normalise(_centre(targets))
    centred = _normalise(_centre(_centre(kernel).T))
    overlap = jnp.vdot(
        labels, jnp.matmul(centred, labels, precision="highest"), precision="highest"
    )
    # |Y Y^T| = |Y^T Y|, which is only k x k.
    gram = jnp.matmul(labels.T, labels, precision="highest")
    return overlap / jnp.linalg.norm(gram)


def check_kernel(kernel: Array) -> None:
    """Raise unless `kernel` is a square matrix with at least one example."""
    check_examples(kernel=kernel)
    shape = jnp.shape(kernel)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"`kernel` must be a square matrix [n, n], but has shape {shape}. Of an "
            'empirical kernel take `outputs="trace"`, on one set of examples.'
        )


def check_targets(targets: Array, kernel: Array) -> None:
    """Raise unless `targets` is ``[n, k]`` for the ``n`` examples of `kernel`."""
    check_examples(kernel=kernel, targets=targets)
    if len(jnp.shape(targets)) != 2:
        raise ValueError(
            f"`targets` must be [n, k], but has shape {jnp.shape(targets)}. Use "
            "`targets[:, None]` for one output, `jax.nn.one_hot` for class labels."
        )


def _normalise(kernel):
    """A matrix divided by its Frobenius norm; NaN if that is zero or not finite."""
    # Scaled first: the squares of small and large kernels would leave float32.
    kernel = kernel / jnp.max(jnp.abs(kernel))
    return kernel / jnp.linalg.norm(kernel.ravel())


def _centre(values):
    """Values minus their mean over the first axis."""
    # From the first row on, so that constants give exactly zero and not rounding
    # errors, which normalising would turn into a number that looks right.
    shifted = values - values[:1]
    return shifted - jnp.mean(shifted, axis=0, keepdims=True)
