"""Compare kernels with each other and with labels."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from jaxtheory.batching import check_examples, check_number
from jaxtheory.kernels._checks import check_real

Estimator = Literal["debiased", "biased"]


def kernel_distance(
    kernel1: Float[Array, "*shape"], kernel2: Float[Array, "*shape"]
) -> Float[Array, ""]:
    r"""Compute how far two kernels point apart, whatever their scales.

    ``S = 1 - <K, K'>_F / (|K|_F |K'|_F)``, from 0 (proportional) through 1 (orthogonal)
    to 2 (opposite); positive semidefinite kernels stay within ``[0, 1]``. Evaluated as
    half the squared distance of the normalised kernels, so that the small distances
    between successive training steps keep their digits. ``S`` over the time between
    two measurements is the `kernel_velocity`.

    Args:
        kernel1: A kernel, ``[n1, n2]`` or with output axes.
        kernel2: Another one for the same examples and outputs.

    Returns:
        The distance. NaN, because undefined, if a kernel is zero or not finite.

    Raises:
        ValueError: The kernels differ in shape, or have no examples.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel_distance(jnp.eye(2), 3 * jnp.eye(2)).tolist()
        0.0
        >>> kernel_distance(jnp.eye(2), 1 - jnp.eye(2)).round(6).tolist()
        1.0

    References:
        Fort et al., arXiv:2010.15110 (kernel distance and kernel velocity).
    """
    _check_same_shape(kernel1, kernel2)
    difference = _normalise(_single(kernel1)) - _normalise(_single(kernel2))
    return jnp.sum(difference**2) / 2


def kernel_velocity(
    kernel1: Float[Array, "*shape"],
    kernel2: Float[Array, "*shape"],
    *,
    time: Real[ArrayLike, ""],
) -> Float[Array, ""]:
    r"""Compute how fast a kernel turns: its distance from a later one, per time.

    ``v = S(K(t), K(t + time)) / time`` with the `kernel_distance` ``S``. The distance
    grows with the square of a small time, so velocities compare at one `time` only.

    Args:
        kernel1: The kernel at a time ``t``, ``[n1, n2]`` or with output axes.
        kernel2: The kernel at ``t + time``.
        time: Time between the two, in the units that the velocity is wanted in (steps,
            epochs, steps times learning rate); positive.

    Returns:
        The velocity. NaN, because undefined, if a kernel is zero or not finite.

    Raises:
        ValueError: The kernels differ in shape, or have no examples; `time` is not a
            positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel_velocity(jnp.eye(2), 1 - jnp.eye(2), time=4).round(6).tolist()
        0.25

    References:
        Fort et al., arXiv:2010.15110, section 3 (kernel velocity).
    """
    check_number("time", time, lambda t: 0 < t < float("inf"), "positive and finite")
    return kernel_distance(kernel1, kernel2) / time


def kernel_change(
    kernel1: Float[Array, "*shape"], kernel2: Float[Array, "*shape"]
) -> Float[Array, ""]:
    r"""Compute how far a kernel moved, relative to where it was.

    ``|K' - K|_F / |K|_F`` for `kernel1` ``K`` and `kernel2` ``K'``. Unlike
    `kernel_distance` it sees a change of scale. From the first to the last step of
    training it tends to 0 with growing width in the NTK parametrisation.

    Args:
        kernel1: The kernel at the start, ``[n1, n2]`` or with output axes.
        kernel2: The kernel later, for the same examples and outputs.

    Returns:
        The relative change. NaN, because undefined, if `kernel1` is zero or not finite;
        not finite if `kernel2` is not.

    Raises:
        ValueError: The kernels differ in shape, or have no examples.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel_change(jnp.eye(2), 3 * jnp.eye(2)).tolist()
        2.0

    References:
        Lee et al., arXiv:1902.06720, section 3.1 (relative change of the kernel).
    """
    _check_same_shape(kernel1, kernel2)
    kernel1, kernel2 = _single(kernel1), _single(kernel2)
    # Scaled first, as in `_normalise`, by one factor for both.
    scale = jnp.max(jnp.abs(kernel1))
    difference = jnp.ravel(kernel2 / scale - kernel1 / scale)
    return jnp.linalg.norm(difference) / jnp.linalg.norm(jnp.ravel(kernel1 / scale))


def uncentred_alignment(
    kernel: Float[Array, "n n"], targets: Float[Array, "n k"]
) -> Float[Array, ""]:
    r"""Compute the alignment of a kernel with the labels, neither of them centred.

    ``A = <K, Y Y^T>_F / (|K|_F |Y Y^T|_F)``, which for one output is ``y^T K y / (|K|_F
    |y|^2)``. A constant part of the kernel counts: `centred_alignment` does not see
    it, and tells kernels of networks apart better, whose entries are all positive.

    Args:
        kernel: A symmetric kernel on ``n`` examples.
        targets: Labels, one-hot for classes (`jax.nn.one_hot`).

    Returns:
        The alignment, in ``[-1, 1]``, and in ``[0, 1]`` for a positive semidefinite
        kernel. NaN, because undefined, if the kernel or the targets are zero or not
        finite.

    Raises:
        ValueError: `kernel` is not square, or `targets` is not ``[n, k]``.

    Memory:
        One matrix ``[n, n]``.

    Example:
        >>> import jax.numpy as jnp
        >>> targets = jnp.array([[1.0], [-1.0], [1.0], [1.0]])
        >>> float(uncentred_alignment(jnp.eye(4), targets))  # 1 / sqrt(n)
        0.5

    References:
        Cristianini et al., On kernel-target alignment, NIPS 2001, definition 2.
    """
    check_kernel(kernel)
    check_targets(targets, kernel)
    return _overlap(_normalise(_single(kernel)), _normalise(_single(targets)))


def centred_alignment(
    kernel: Float[Array, "n n"],
    targets: Float[Array, "n k"],
    *,
    estimator: Estimator = "debiased",
) -> Float[Array, ""]:
    r"""Compute the alignment of a kernel with the labels, both centred.

    With ``L = Y Y^T`` it is ``A = <K~, L~>_F / (|K~|_F |L~|_F)``, in which neither
    the scales of `kernel` and `targets` nor constants added to them matter. It is 1 if
    the centred kernel is that of the labels. For a kernel of features it is the linear
    CKA of features and labels. The two estimators centre differently:

    - ``"debiased"``: off the diagonal ``K~_ij = K_ij - (r_i + r_j) / (n - 2) + s /
      ((n - 1)(n - 2))``, with ``r`` and ``s`` the sums of rows and of all entries
      without the diagonal; ``K~_ii = 0``. Then ``<K~, L~> / (n (n - 3))`` is the
      unbiased ``HSIC_1``. Features that are independent of the labels give 0 on
      average, so single values may be slightly negative.
    - ``"biased"``: ``K~ = H K H`` with ``H = I - 1 1^T / n``. The diagonal alone aligns
      with any labels: ``K = I`` gives ``sqrt((k - 1) / (n - 1))`` for ``k`` balanced
      classes, .30 for ``n = 100``, ``k = 10``, and independent Gaussian features with
      ``n = 100``, ``d = 1000`` on both sides give .91. Compare values at one ``n``
      only.

    Args:
        kernel: A symmetric kernel on ``n`` examples.
        targets: Labels, one-hot for classes (`jax.nn.one_hot`).
        estimator: ``"debiased"``, which needs ``n >= 4``, or ``"biased"``.

    Returns:
        The alignment, in ``[-1, 1]``; ``"biased"`` in ``[0, 1]`` for a positive
        semidefinite kernel. NaN, because undefined, if the kernel or the targets are
        constant or not finite, or for ``"debiased"``, which does not see the diagonal,
        if ``K`` or ``L`` is constant off it (to rounding), as ``K = I`` is.

    Raises:
        ValueError: `kernel` is not square, `targets` is not ``[n, k]``, `estimator` is
            not one of its values, or ``"debiased"`` is given fewer than 4 examples.

    Memory:
        ``"debiased"`` a few matrices ``[n, n]``, ``"biased"`` one.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> kernel = labels @ labels.T + jnp.eye(4)
        >>> round(float(centred_alignment(kernel, labels)), 6)
        1.0
        >>> biased = centred_alignment(kernel, labels, estimator="biased")
        >>> round(float(biased), 6)  # 3 / sqrt(11)
        0.904534

    References:
        Song et al., Feature selection via dependence maximization, JMLR 13 (2012),
        theorem 1 (``HSIC_1``); Nguyen, Raghu, Kornblith, arXiv:2010.15327, equation 3
        (CKA with it); Cortes, Mohri, Rostamizadeh, arXiv:1203.0550 (``"biased"``);
        Kornblith et al., arXiv:1905.00414, section 3 (CKA); Baratin et al.,
        arXiv:2008.00938 (along training).
    """
    check_kernel(kernel)
    check_targets(targets, kernel)
    check_estimator(estimator, kernel=kernel)
    kernel, labels = _single(kernel), _normalise(_centre(_single(targets)))
    if estimator == "biased":
        return _biased(kernel, labels)
    label_kernel = jnp.matmul(labels, labels.T, precision="highest")
    return jnp.sum(
        _normalise(_centre_off_diagonal(kernel))
        * _normalise(_centre_off_diagonal(label_kernel))
    )


def _biased(kernel, labels):
    """The plain alignment with centred labels."""
    return _overlap(_normalise(_centre(_centre(kernel).T)), labels)


def _overlap(kernel, labels):
    """``<K, Y Y^T> / |Y Y^T|``, for a kernel of unit norm."""
    overlap = jnp.vdot(
        labels, jnp.matmul(kernel, labels, precision="highest"), precision="highest"
    )
    # |Y Y^T| = |Y^T Y|, which is only k x k.
    gram = jnp.matmul(labels.T, labels, precision="highest")
    return overlap / jnp.linalg.norm(gram)


def check_kernel(kernel: Array) -> None:
    """Raise unless `kernel` is a square matrix with at least one example."""
    check_examples(kernel=kernel)
    check_real(kernel=kernel)
    shape = jnp.shape(kernel)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"`kernel` must be a square matrix [n, n], but has shape {shape}. Of an "
            'empirical kernel with k outputs take `empirical_ntk(..., outputs="trace") '
            "/ k`, on one set of examples."
        )


def check_targets(targets: Array, kernel: Array, *, name: str = "targets") -> None:
    """Raise unless `targets` is ``[n, k]`` for the ``n`` examples of `kernel`."""
    check_examples(**{"kernel": kernel, name: targets})
    check_real(**{name: targets})
    if len(jnp.shape(targets)) != 2 or jnp.shape(targets)[1] == 0:
        raise ValueError(
            f"`{name}` must be [n, k], but has shape {jnp.shape(targets)}. Use "
            f"`{name}[:, None]` for one output, `jax.nn.one_hot` for class labels."
        )


def check_estimator(estimator: str, **array: Array) -> None:
    """Raise unless `estimator` exists, and the named array has examples enough."""
    if estimator not in get_args(Estimator):
        raise ValueError(
            f"`estimator` must be one of {get_args(Estimator)}, but was {estimator!r}."
        )
    ((name, value),) = array.items()
    if estimator == "debiased" and jnp.shape(value)[0] < 4:
        raise ValueError(
            f"`{name}` must be on at least 4 examples to be debiased, but has shape "
            f'{jnp.shape(value)}. Pass more, or `estimator="biased"`.'
        )


def _check_same_shape(kernel1, kernel2):
    """Raise unless two kernels have examples and one shape."""
    check_examples(kernel1=kernel1)
    check_examples(kernel2=kernel2)
    check_real(kernel1=kernel1, kernel2=kernel2)
    if jnp.shape(kernel1) != jnp.shape(kernel2):
        raise ValueError(
            "`kernel2` must have the shape of `kernel1`, but has shape "
            f"{jnp.shape(kernel2)} against {jnp.shape(kernel1)}. Compute both with the "
            "same examples and the same `outputs`."
        )


def _single(values):
    """The values in at least single precision: differences of labels may wrap round."""
    return jnp.asarray(values, jnp.result_type(jnp.float32, values))


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


def _centre_off_diagonal(kernel):
    """The matrix that makes inner products unbiased: zero diagonal, zero row sums."""
    n = kernel.shape[0]
    # Scaled first, as in `_normalise`; from one entry on, as in `_centre`. Multiplied,
    # not selected: a diagonal that is not finite has to show.
    kernel = kernel / jnp.max(jnp.abs(kernel))
    off_diagonal = 1 - jnp.eye(n, dtype=kernel.dtype)
    shifted = (kernel - kernel[:1, 1:2]) * off_diagonal
    rows = jnp.sum(shifted, axis=1, keepdims=True) / (n - 2)
    columns = jnp.sum(shifted, axis=0, keepdims=True) / (n - 2)
    everything = jnp.sum(shifted, keepdims=True) / ((n - 1) * (n - 2))
    centred = (shifted - rows - columns + everything) * off_diagonal
    # Entries that agree leave rounding errors, which normalising would turn into a
    # number that looks right.
    rounding = 16 * jnp.finfo(kernel.dtype).eps
    return jnp.where(jnp.max(jnp.abs(centred)) > rounding, centred, 0.0)
