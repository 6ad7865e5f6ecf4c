"""Targets of a few hidden directions: multi-index models, sparse parities, staircases.

All are sums of products: a *term* is a tuple of degrees, one for each of ``r`` hidden
coordinates, and stands for the product of orthonormal polynomials of these degrees.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key
from jaxtheory.data._checks import check_count, check_range

Terms: TypeAlias = Sequence[Sequence[int]]


class MultiIndex(NamedTuple):
    """Inputs and functions of a few directions of them.

    Attributes:
        x_train: Training inputs.
        y_train: Training targets.
        x_test: Test inputs, independent of the training examples.
        y_test: Test targets, as noisy as those for training.
        directions: Orthonormal columns that span what targets depend on.
        information_exponent: Smallest total degree of a term that is not constant.
        leap: See `leap`, in the basis of the directions.
    """

    x_train: Float[Array, "n d"]
    y_train: Float[Array, "n k"]
    x_test: Float[Array, "m d"]
    y_test: Float[Array, "m k"]
    directions: Float[Array, "d r"]
    information_exponent: int
    leap: int


class SparseBoolean(NamedTuple):
    """Inputs of random signs and a function of a few of them.

    Attributes:
        x_train: Training inputs, -1 or 1.
        y_train: Training targets.
        x_test: Test inputs, independent of the training examples.
        y_test: Test targets, as noisy as those for training.
        support: The coordinates that matter, in the order of the hidden ones.
        directions: Their unit vectors as columns.
        information_exponent: Size of the smallest product.
        leap: See `leap`.
    """

    x_train: Float[Array, "n d"]
    y_train: Float[Array, "n 1"]
    x_test: Float[Array, "m d"]
    y_test: Float[Array, "m 1"]
    support: Int[Array, " r"]
    directions: Float[Array, "d r"]
    information_exponent: int
    leap: int


def multi_index(
    *,
    dim: int,
    num_train: int,
    num_test: int,
    terms: Terms = ((1, 1),),
    coefficients: Float[Array, "k t"] | None = None,
    directions: Float[Array, "d r"] | None = None,
    covariance: Float[Array, "d d"] | None = None,
    noise: float | Float[Array, ""] = 0.0,
    key: KeyArray,
) -> MultiIndex:
    r"""Draw Gaussian inputs and Hermite polynomials of a few hidden directions.

    :math:`y_k = \sum_t c_{kt} \prod_j h_{\alpha_{tj}}(\langle u_j, x\rangle) +
    \text{noise} \cdot z_k` with :math:`h_m = \mathrm{He}_m / \sqrt{m!}`, the term
    :math:`\alpha_t`, orthonormal directions :math:`u_j` spanning a uniformly random
    subspace and standard normal :math:`z_k`. Under standard normal inputs the products
    are orthonormal, so that :math:`E\, y_k^2 = \sum_t c_{kt}^2 + \text{noise}^2` if no
    term is constant.

    For transfer, draw one task with many outputs (rows of `coefficients`), and another
    with its `directions`, other terms, and if wanted another `covariance` of inputs.

    Args:
        dim: Input dimension ``d``.
        num_train: Number of training examples.
        num_test: Number of test examples.
        terms: Degrees of each term in each of ``r <= d`` hidden coordinates:
            ``((2, 0), (1, 1))`` is :math:`h_2(z_1) + z_1 z_2`.
        coefficients: Weights of the ``t`` terms in each of ``k`` outputs; by default
            one output and all weights ``1 / sqrt(t)``.
        directions: Orthonormal columns; by default random ones.
        covariance: Covariance of the inputs; by default the identity. Targets stay the
            same function, whose products are then not orthonormal.
        noise: Standard deviation of the noise on targets, in training and test data.
        key: Random key. Test examples do not depend on `num_train`.

    Returns:
        The data set, with the directions. Exponent and leap are those of the terms
        under standard normal inputs, whatever their coefficients.

    Raises:
        ValueError: A size is not positive, `noise` is negative, terms have no or other
            numbers of coordinates or are all constant, arrays have other shapes,
            `directions` are not orthonormal or `covariance` is not positive definite.

    Example:
        >>> import jax
        >>> from jaxtheory import data
        >>> task = data.multi_index(
        ...     dim=10,
        ...     num_train=50,
        ...     num_test=20,
        ...     terms=((1, 0), (1, 2)),
        ...     key=jax.random.key(0),
        ... )
        >>> task.y_train.shape, task.directions.shape
        ((50, 1), (10, 2))
        >>> task.information_exponent, task.leap
        (1, 2)

    References:
        Damian, Lee, Soltanolkotabi, arXiv:2206.15144 (learning such subspaces, and
        transfer); Abbe, Boix-Adsera, Misiakiewicz, arXiv:2302.11055 (leap).
    """
    check_key(key)
    check_count(dim=dim, num_train=num_train, num_test=num_test)
    check_range("noise", noise, positive=False)
    degrees = _check_terms(terms, dim)
    num_terms, num_directions = degrees.shape
    if coefficients is None:
        coefficients = jnp.full((1, num_terms), 1 / math.sqrt(num_terms))
    _check_shape("coefficients", coefficients, (None, num_terms))
    key_directions, key_train, key_test = jax.random.split(key, 3)
    if directions is None:
        directions = jax.random.orthogonal(key_directions, num_directions, m=dim).T
    _check_shape("directions", directions, (dim, num_directions))
    _check_orthonormal(directions)
    factor = None if covariance is None else _factor(covariance, dim)

    def draw(key, num_examples):
        key_x, key_noise = jax.random.split(key)
        x = jax.random.normal(key_x, (num_examples, dim))
        x = x if factor is None else jnp.matmul(x, factor.T, precision="highest")
        z = jnp.matmul(x, directions, precision="highest")
        y = jnp.matmul(_products(z, degrees), coefficients.T, precision="highest")
        return x, y + noise * jax.random.normal(key_noise, y.shape)

    train, test = draw(key_train, num_train), draw(key_test, num_test)
    exponent = int(min(total for total in degrees.sum(1) if total))
    return MultiIndex(*train, *test, directions, exponent, leap(terms))


def sparse_parity(
    *,
    dim: int,
    degree: int,
    num_train: int,
    num_test: int,
    noise: float | Float[Array, ""] = 0.0,
    key: KeyArray,
) -> SparseBoolean:
    r"""Draw random signs and the product of a few of them.

    :math:`y = \prod_{i \in S} x_i` with :math:`x` uniform on :math:`\{-1, 1\}^d` and
    :math:`S` a uniformly random set of `degree` coordinates. Targets are flipped with
    the probability `noise`. Labels 0 and 1 are ``(y[:, 0] > 0).astype(int)``.

    Args:
        dim: Input dimension ``d``.
        degree: Size of the set, at most `dim`.
        num_train: Number of training examples.
        num_test: Number of test examples.
        noise: Probability that a target is flipped, in training and test data.
        key: Random key. Test examples do not depend on `num_train`.

    Returns:
        The data set; information exponent and leap are both `degree`.

    Raises:
        ValueError: A size is not positive, `degree` exceeds `dim` or `noise` is no
            probability.

    Example:
        >>> import jax
        >>> from jaxtheory import data
        >>> task = data.sparse_parity(
        ...     dim=10, degree=3, num_train=50, num_test=20, key=jax.random.key(0)
        ... )
        >>> bool((task.x_test[:, task.support].prod(1) == task.y_test[:, 0]).all())
        True

    References:
        Barak et al., arXiv:2207.08799, section 2.
    """
    check_key(key)
    check_count(degree=degree)
    check_range("noise", noise, positive=False, at_most=1.0)
    probability = jnp.asarray(noise, float)
    flip = lambda key, shape: 1 - 2.0 * jax.random.bernoulli(key, probability, shape)
    disturb = lambda key, y: y * flip(key, y.shape)
    return _boolean(((1,) * degree,), dim, num_train, num_test, disturb, key)


def staircase(
    *,
    dim: int,
    num_train: int,
    num_test: int,
    terms: Terms = ((1, 0, 0), (1, 1, 0), (1, 1, 1)),
    noise: float | Float[Array, ""] = 0.0,
    key: KeyArray,
) -> SparseBoolean:
    r"""Draw random signs and a sum of products of a few of them.

    :math:`y = \sum_t \prod_j z_j^{\alpha_{tj}} + \text{noise} \cdot \epsilon`, a sum
    of products of hidden coordinates :math:`z_j = x_{S_j}`, with :math:`x` uniform on
    :math:`\{-1, 1\}^d`, distinct random coordinates :math:`S_j` and standard normal
    :math:`\epsilon`. The default is the staircase :math:`z_1 + z_1 z_2 + z_1 z_2 z_3`,
    of leap 1: each product can be learned once those before it are. Leaving out its
    first steps gives larger leaps.

    Args:
        dim: Input dimension ``d``.
        num_train: Number of training examples.
        num_test: Number of test examples.
        terms: For each product, 1 for each hidden coordinate in it and 0 for others.
        noise: Standard deviation of the noise on targets, in training and test data.
        key: Random key. Test examples do not depend on `num_train`.

    Returns:
        The data set, with the coordinates, the information exponent and the leap.

    Raises:
        ValueError: A size is not positive, `noise` is negative, or terms are not of
            zeros and ones, all constant, or have more coordinates than `dim`.

    Example:
        >>> import jax
        >>> from jaxtheory import data
        >>> task = data.staircase(
        ...     dim=10, num_train=50, num_test=20, key=jax.random.key(0)
        ... )
        >>> task.support.shape, task.information_exponent, task.leap
        ((3,), 1, 1)

    References:
        Abbe et al., arXiv:2108.10573 and arXiv:2202.08658 (staircases).
    """
    check_key(key)
    check_range("noise", noise, positive=False)
    disturb = lambda key, y: y + noise * jax.random.normal(key, y.shape)
    return _boolean(terms, dim, num_train, num_test, disturb, key)


def leap(terms: Terms) -> int:
    r"""Compute the leap of a sum of products: its largest unavoidable step.

    With the terms taken in the best order, each adds the degrees of those coordinates
    that no term before it contains; the leap is the largest such sum. Online gradient
    descent needs about :math:`d^{\max(1, \text{leap} - 1)}` examples. It is that of
    the given coordinates; another basis may have a larger one.

    Args:
        terms: Degrees of each term in each coordinate.

    Returns:
        The leap.

    Raises:
        ValueError: Terms are not tuples of degrees of one length, or all constant.

    Example:
        >>> leap([(1, 0, 0), (1, 1, 0), (1, 1, 1)]), leap([(1, 1, 0), (1, 1, 1)])
        (1, 2)

    References:
        Abbe, Boix-Adsera, Misiakiewicz, arXiv:2302.11055, definition 1.
    """
    remaining = [row for row in _check_terms(terms) if row.sum()]
    known, largest = np.zeros(len(remaining[0]), bool), 0
    # Greedy is best: learning more never makes a later step larger.
    while remaining:
        steps = [int(row[~known].sum()) for row in remaining]
        largest = max(largest, min(steps))
        known |= remaining.pop(steps.index(min(steps))) > 0
    return largest


def _boolean(terms, dim, num_train, num_test, disturb, key):
    """Random signs and sums of products of some of them."""
    check_count(dim=dim, num_train=num_train, num_test=num_test)
    degrees = _check_terms(terms, dim)
    if degrees.max() > 1:
        raise ValueError(
            "`terms` must be of zeros and ones, as the square of a sign is 1, but had "
            f"the degree {degrees.max()}."
        )
    key_support, key_train, key_test = jax.random.split(key, 3)
    support = jax.random.permutation(key_support, dim)[: degrees.shape[1]]

    def draw(key, num_examples):
        key_x, key_noise = jax.random.split(key)
        x = jax.random.rademacher(key_x, (num_examples, dim), float)
        powers = jnp.where(degrees[None] > 0, x[:, None, support], 1)
        y = jnp.sum(jnp.prod(powers, axis=2), axis=1, keepdims=True)
        return x, disturb(key_noise, y)

    train, test = draw(key_train, num_train), draw(key_test, num_test)
    directions = jax.nn.one_hot(support, dim, axis=0)
    exponent = int(min(total for total in degrees.sum(1) if total))
    return SparseBoolean(*train, *test, support, directions, exponent, leap(terms))


def _products(z, degrees):
    """The terms of hidden coordinates ``[n, r]``: orthonormal Hermite products."""
    powers = [jnp.ones_like(z), z]
    for m in range(1, int(degrees.max())):
        following = (z * powers[m] - math.sqrt(m) * powers[m - 1]) / math.sqrt(m + 1)
        powers.append(following)
    columns = [
        math.prod((powers[m][:, j] for j, m in enumerate(row)), start=jnp.ones(len(z)))
        for row in degrees
    ]
    return jnp.stack(columns, axis=1)


def _check_terms(terms, dim=None):
    """Terms as an integer array ``[t, r]``."""
    try:
        rows = [tuple(row) for row in terms]
    except TypeError:  # None, or degrees that are in no tuple of a term
        rows = []
    lengths = {len(row) for row in rows}
    valid = all(type(m) is int and m >= 0 for row in rows for m in row)
    if len(lengths) != 1 or 0 in lengths or not valid or not np.any(rows):
        raise ValueError(
            "`terms` must be tuples of degrees, one for each hidden coordinate, not "
            f"all constant, but was {terms!r}. For z1 + z1 z2: ((1, 0), (1, 1))."
        )
    if dim is not None and len(rows[0]) > dim:
        raise ValueError(
            f"`dim` must be at least the {len(rows[0])} hidden coordinates of the "
            f"terms, but was {dim}."
        )
    return np.array(rows)


def _check_shape(name, array, shape):
    """Raise unless a real array has a shape, of which None is any positive length."""
    dtype = getattr(array, "dtype", None)
    if dtype is None or not np.can_cast(dtype, np.float64, "same_kind"):
        was = f"a {type(array).__name__}" if dtype is None else f"of dtype {dtype}"
        raise ValueError(f"`{name}` must be an array of real numbers, but is {was}.")
    found = jnp.shape(array)
    same = len(found) == len(shape) and all(
        a > 0 if b is None else a == b for a, b in zip(found, shape, strict=True)
    )
    if not same:
        wanted = ", ".join("k" if b is None else str(b) for b in shape)
        raise ValueError(f"`{name}` must have shape [{wanted}], but has {found}.")


def _check_orthonormal(directions):
    """Raise unless columns are orthonormal; traced ones are taken on trust."""
    if isinstance(directions, Tracer):
        return
    gram = np.asarray(directions).T @ np.asarray(directions)
    if not np.allclose(gram, np.eye(len(gram)), atol=1e-4):
        raise ValueError(
            "`directions` must be orthonormal columns, but their Gram matrix is not "
            "the identity. Take `jnp.linalg.qr(directions)[0]`."
        )


def _factor(covariance, dim):
    """The Cholesky factor of a covariance; a traced one is taken on trust."""
    _check_shape("covariance", covariance, (dim, dim))
    factor = jnp.linalg.cholesky(jnp.asarray(covariance, float))
    if isinstance(factor, Tracer):
        return factor
    matrix = np.asarray(covariance, float)
    symmetric = np.allclose(matrix, matrix.T, rtol=0, atol=1e-5 * np.max(matrix))
    if not symmetric or not bool(jnp.all(jnp.isfinite(factor))):
        raise ValueError(
            "`covariance` must be symmetric and positive definite, but has no Cholesky "
            "factor. Add a small multiple of the identity."
        )
    return factor
