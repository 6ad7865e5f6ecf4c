"""Centred kernel alignment of two representations, and how kernels see targets."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.batching import check_examples
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import (
    Estimator,
    _centre,
    _centre_off_diagonal,
    _normalise,
    _single,
    check_estimator,
    check_kernel,
    check_targets,
)
from jaxtheory.kernels._regression import _check_size, eigendecomposition


def cka(
    features1: Float[Array, "n d1"],
    features2: Float[Array, "n d2"],
    *,
    estimator: Estimator = "debiased",
) -> Float[Array, ""]:
    r"""Compute the linear CKA of two sets of features of the same examples.

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` of the kernels ``K = X X^T`` and ``L =
    Z Z^T``. It is 1 for features that agree up to rotation and scale. With the columns
    of both centred, ``k_i = |x_i|^2`` and ``l_i = |z_i|^2``, it takes, up to factors
    that cancel,

    - ``"debiased"``: ``HSIC_1 = |X^T Z|_F^2 - n / (n - 2) sum_i k_i l_i + (sum_i k_i)
      (sum_i l_i) / ((n - 1)(n - 2))``, which is unbiased: independent features give 0
      on average, so single values may be slightly negative.
    - ``"biased"``: ``HSIC_0 = |X^T Z|_F^2``. Independent Gaussian features with ``n =
      100`` and ``d = 1000`` give .91. Compare values at one ``n`` and ``d`` only.

    Args:
        features1: Features, one row an example; flatten other axes.
        features2: Other features of the same examples; the width may differ.
        estimator: ``"debiased"``, which needs ``n >= 4``, or ``"biased"``.

    Returns:
        The CKA, in ``[-1, 1]``, and in ``[0, 1]`` if biased. NaN, because undefined, if
        features are constant or not finite, or for ``"debiased"`` if their centred
        kernel is constant off the diagonal (to rounding), as for one-hot rows that are
        all different.

    Raises:
        ValueError: Features are not ``[n, d]`` of the same examples, `estimator` is not
            one of its values, or ``"debiased"`` is given fewer than 4 examples.

    Memory:
        Matrices ``[d1, d2]``, ``[d1, d1]`` and ``[d2, d2]`` where both widths are below
        ``n``, and otherwise a few ``[n, n]``.

    Example:
        >>> import jax
        >>> keys = jax.random.split(jax.random.key(0))
        >>> x, z = (jax.random.normal(key, (100, 1000)) for key in keys)
        >>> abs(float(cka(x, z))) < 0.05, round(float(cka(x, 2 * x[:, ::-1])), 4)
        (True, 1.0)

    References:
        Kornblith et al., arXiv:1905.00414, section 3; Nguyen, Raghu, Kornblith,
        arXiv:2010.15327, equation 3, with ``HSIC_1`` of Song et al., JMLR 13 (2012),
        theorem 1.
    """
    _check_features(features1, features2)
    check_estimator(estimator, features1=features1)
    x, z = (_normalise(_centre(_single(f))) for f in (features1, features2))
    n = x.shape[0]
    if estimator == "biased":
        product = _product if max(x.shape[1], z.shape[1]) < n else _gram_product
        return product(x, z) / jnp.sqrt(product(x, x) * product(z, z))
    if max(x.shape[1], z.shape[1]) >= n:
        return kernel_cka(_gram(x), _gram(z))
    both, first, second = _unbiased(x, z), _unbiased(x, x), _unbiased(z, z)
    # What is left of the norms after cancellation; below rounding, nothing.
    rounding = 16 * jnp.finfo(x.dtype).eps
    defined = (first > rounding * _product(x, x)) & (second > rounding * _product(z, z))
    ratio = both / jnp.sqrt(jnp.where(defined, first * second, 1))
    return jnp.where(defined, ratio, jnp.nan)


def kernel_cka(
    kernel1: Float[Array, "n n"],
    kernel2: Float[Array, "n n"],
    *,
    estimator: Estimator = "debiased",
) -> Float[Array, ""]:
    r"""Compute the CKA of two kernels on the same examples.

    ``<K~, L~>_F / (|K~|_F |L~|_F)`` with the two ways to centre of
    `centred_alignment`, which is this with the kernel of the labels.

    Args:
        kernel1: A symmetric kernel on ``n`` examples.
        kernel2: Another one on the same examples.
        estimator: ``"debiased"``, which needs ``n >= 4``, or ``"biased"``; see `cka`.

    Returns:
        The CKA, in ``[-1, 1]``. NaN, because undefined, if a kernel is constant or not
        finite, or for ``"debiased"`` constant off its diagonal (to rounding).

    Raises:
        ValueError: A kernel is not square, they differ in size, `estimator` is not one
            of its values, or ``"debiased"`` is given fewer than 4 examples.

    Memory:
        A few matrices ``[n, n]``.

    Example:
        >>> import jax
        >>> features = jax.random.normal(jax.random.key(0), (10, 3))
        >>> kernel = features @ features.T
        >>> round(float(kernel_cka(kernel, 2 * kernel + 1)), 4)
        1.0

    References:
        Kornblith et al., arXiv:1905.00414, section 3; Nguyen, Raghu, Kornblith,
        arXiv:2010.15327, equation 3.
    """
    check_examples(kernel1=kernel1, kernel2=kernel2)
    for kernel in (kernel1, kernel2):
        check_kernel(kernel)
    check_estimator(estimator, kernel1=kernel1)
    if estimator == "debiased":
        centre = _centre_off_diagonal
    else:
        centre = lambda kernel: _centre(_centre(kernel).T)
    kernel1, kernel2 = (_normalise(centre(_single(k))) for k in (kernel1, kernel2))
    return jnp.sum(kernel1 * kernel2)


def target_energy(
    kernel: Float[Array, "n n"], targets: Float[Array, "n k"]
) -> Float[Array, " n"]:
    r"""Compute how much of the targets lies in the top eigenvectors of a kernel.

    ``E_m = sum_{i <= m} |v_i^T Y|^2 / |Y|_F^2`` for ``m = 1, ..., n``, with unit
    eigenvectors ``v_i`` in the order of falling eigenvalues: what gradient descent
    learns first. Nothing is centred: subtract means from the targets beforehand if the
    model has an offset. Among equal eigenvalues the order is arbitrary.

    Args:
        kernel: A symmetric kernel; only its symmetric part matters.
        targets: Targets, one-hot for classes (`jax.nn.one_hot`).

    Returns:
        The cumulative energy, rising to 1. NaN, because undefined, if the targets are
        zero or anything is not finite.

    Raises:
        ValueError: `kernel` is not square or has more than 32,766 examples, or
            `targets` is not ``[n, k]``.

    Memory:
        Two matrices ``[n, n]``; ``O(n^3)`` time, of one symmetric eigendecomposition.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
        >>> target_energy(kernel, jnp.array([[0.0], [1.0], [1.0]])).round(4).tolist()
        [0.5, 1.0, 1.0]

    References:
        Baratin et al., arXiv:2008.00938; Arora et al., arXiv:1901.08584, section 4.
    """
    check_kernel(kernel)
    check_targets(targets, kernel)
    _check_size(kernel)
    kernel, targets = _single(kernel), _normalise(_single(targets))
    eigenvalues, vectors = eigendecomposition(kernel)
    modes = jnp.matmul(vectors.T, targets, precision="highest")[::-1]
    energy = jnp.cumsum(jnp.sum(modes**2, axis=1))
    return jnp.where(jnp.isfinite(eigenvalues), energy / energy[-1], jnp.nan)


def _unbiased(x, z):
    """``n (n - 3) HSIC_1`` of centred features; the diagonals are taken out again."""
    n = x.shape[0]
    k, l = jnp.sum(x**2, axis=1), jnp.sum(z**2, axis=1)
    inside = n / (n - 2) * jnp.sum(k * l)
    outside = jnp.sum(k) * jnp.sum(l) / ((n - 1) * (n - 2))
    return _product(x, z) - inside + outside


def _product(x, z):
    """``<X X^T, Z Z^T>`` through ``X^T Z``."""
    return jnp.sum(jnp.matmul(x.T, z, precision="highest") ** 2)


def _gram_product(x, z):
    """The same through the kernels."""
    return jnp.sum(_gram(x) * _gram(z))


def _gram(x):
    return jnp.matmul(x, x.T, precision="highest")


def _check_features(features1, features2):
    """Raise unless both are ``[n, d]`` of the same examples."""
    check_examples(features1=features1, features2=features2)
    check_real(features1=features1, features2=features2)
    for name, features in (("features1", features1), ("features2", features2)):
        shape = jnp.shape(features)
        if len(shape) != 2 or shape[1] == 0:
            raise ValueError(
                f"`{name}` must be a matrix [n, d], but has shape {shape}. Flatten "
                f"other axes: `{name}.reshape(len({name}), -1)`."
            )
