"""Class counts, means and variances of examples that go by in batches.

Four pure functions: `init`, `update`, `merge` and `finalize`. An accumulator is a
pytree of ``k d + d + 2 k`` numbers, never ``d x d``; it passes through jit, scan, vmap
and over devices.

Two batches with counts ``n_a, n_b``, means ``m_a, m_b`` and sums ``s_a, s_b`` of
squares around them make one (Chan, Golub & LeVeque 1983) with

    n = n_a + n_b,   m = m_a + (m_b - m_a) n_b / n,
    s = s_a + s_b + ||m_b - m_a||^2 n_a n_b / n .

The sum of squares minus the square of the sum, in its place, is 0.0 in float32 for
features around 20 whose squared distance from their class mean is 1e-6.
"""

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_count, check_examples
from jaxtheory.collapse._moments import (
    ClassSummary,
    check_feature_matrix,
    check_label_vector,
    class_moments,
    fixed,
)

_matmul = partial(jnp.matmul, precision="highest")


class ClassAccumulator(NamedTuple):
    """Class counts, means and scatters of the examples seen so far.

    Lengths are in units of `unit`, a power of two near the largest feature seen, so
    that squares neither overflow nor underflow.

    Attributes:
        counts: Examples used in each class. Shape ``[k]``.
        means: Class means minus `origin`; zero where a class is empty. Shape
            ``[k, d]``.
        scatters: Sums (no ``1/n``) of squared distances from the class mean. Shape
            ``[k]``.
        origin: The mean of the first batch that had an example to use. Means are kept
            relative to it, or their differences would round at the size of the
            features. Shape ``[d]``.
        unit: What one unit is in the units of the features.
        num_nonfinite: Examples left out for a feature that is NaN or infinite.
        num_out_of_range: Examples left out for a label outside ``[0, k)``.
    """

    counts: Int[Array, " *r k"]
    means: Float[Array, " *r k d"]
    scatters: Float[Array, " *r k"]
    origin: Float[Array, " *r d"]
    unit: Float[Array, " *r"]
    num_nonfinite: Int[Array, " *r"]
    num_out_of_range: Int[Array, " *r"]


def init(
    num_classes: int, dim: int, *, dtype: DTypeLike | None = None
) -> ClassAccumulator:
    """Make the accumulator of no examples.

    Args:
        num_classes: Number of classes ``k``, at least 2.
        dim: Number of features ``d``.
        dtype: Precision to accumulate in, at least float32. None takes JAX's default
            (float32, or float64 where that is enabled).

    Returns:
        The accumulator.

    Raises:
        ValueError: A number is too small, or `dtype` is not floating with at least 32
            bits.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.collapse import accumulator
        >>> acc = accumulator.init(num_classes=2, dim=1)
        >>> for features in [[[19.0], [20.0]], [[21.0], [30.0]]]:
        ...     labels = jnp.array([0, int(features[1][0] > 25)])
        ...     acc = accumulator.update(acc, jnp.array(features), labels)
        >>> summary = accumulator.finalize(acc)
        >>> print(summary.counts, (summary.variances * summary.unit**2).round(4))
        [3 1] [0.6667 0.    ]
    """
    check_count(num_classes=num_classes, at_least=2)
    check_count(dim=dim)
    dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(float if dtype is None else dtype))
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
        raise ValueError(
            "`dtype` must be a floating-point type of at least 32 bits, in which sums "
            f"over examples keep growing, but was {dtype}. Leave it out."
        )
    zero = jnp.zeros((), int)
    return ClassAccumulator(
        jnp.zeros(num_classes, int),
        jnp.zeros((num_classes, dim), dtype),
        jnp.zeros(num_classes, dtype),
        jnp.zeros(dim, dtype),
        _smallest(dtype),
        zero,
        zero,
    )


def _smallest(dtype):
    """The unit of no examples: below every other, so that it never wins."""
    return jnp.asarray(jnp.finfo(dtype).smallest_normal, dtype)


def update(
    acc: ClassAccumulator,
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
) -> ClassAccumulator:
    """Add a batch of examples.

    Args:
        acc: What was seen so far.
        features: One row for each example of the batch; may be sharded by examples.
        labels: Class indices. A batch may lack any classes.

    Returns:
        The accumulator with the batch in it. Examples with a feature that is not
        finite, or a label outside ``[0, k)``, are left out and counted.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    Memory:
        Two copies of the batch and ``2 n k`` numbers.
    """
    check_feature_matrix(features)
    check_examples(features=features, labels=labels)
    check_label_vector(labels)
    dim = acc.means.shape[-1]
    if jnp.shape(features)[1] != dim:
        raise ValueError(
            f"`features` must have the {dim} features that the accumulator was made "
            f"for, but has shape {jnp.shape(features)}. Pass `init(num_classes, dim)` "
            "the dimension of the features."
        )
    return _update(acc, features, labels)


@jax.jit
def _update(acc, features, labels):
    features = jnp.asarray(features, acc.means.dtype)
    return _merge(acc, of_batch(features, jnp.asarray(labels), acc.counts.size))


def of_batch(features, labels, num_classes):
    """The accumulator of one batch, of checked arguments; residuals are centred twice.

    Args:
        features: One row for each example.
        labels: Class indices.
        num_classes: Number of classes.

    Returns:
        The accumulator.
    """
    moments = class_moments(features, labels, num_classes)
    member = moments.used[None, :] & (
        moments.labels[None, :] == jnp.arange(num_classes)[:, None]
    )
    squares = jnp.sum(jnp.square(moments.residuals), axis=1)
    unit = jnp.where(
        jnp.any(moments.used), moments.unit, _smallest(moments.means.dtype)
    )
    return ClassAccumulator(
        moments.counts,
        moments.means,
        _matmul(member.astype(squares.dtype), squares),
        moments.origin,
        unit,
        moments.num_nonfinite,
        moments.num_out_of_range,
    )


def of_examples(features, labels, num_classes, batch_size=None, lanes=1):
    """The accumulator of arrays, a chunk at a time inside one program.

    Args:
        features: One row for each example.
        labels: Class indices.
        num_classes: Number of classes.
        batch_size: Examples per chunk and lane; None takes all at once.
        lanes: Number of shards of the examples, each of which scans its own.

    Returns:
        The accumulator.
    """
    n = features.shape[0]
    if batch_size is None or batch_size >= n // lanes:
        return of_batch(features, labels, num_classes)
    if lanes == 1:
        return _scan(features, labels, num_classes, batch_size)
    split = lambda a: jnp.reshape(a, (lanes, n // lanes, *a.shape[1:]))
    each = lambda h, y: _scan(h, y, num_classes, batch_size)
    accs = jax.vmap(each)(split(features), split(labels))
    lane = lambda i: jax.tree.map(lambda a: a[i], accs)
    return reduce(_merge, map(lane, range(lanes)))


def _scan(features, labels, num_classes, batch_size):
    """Chunks of `batch_size` one after the other, after what is over at the end."""
    n = features.shape[0]
    over = n - n // batch_size * batch_size or batch_size
    # Reverse mode computes each chunk again instead of storing it.
    part = jax.checkpoint(lambda h, y: of_batch(h, y, num_classes), prevent_cse=False)

    def step(acc, index):
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, index * batch_size, batch_size)
        return _merge(acc, part(cut(features), cut(labels))), None

    first = of_batch(features[n - over :], labels[n - over :], num_classes)
    return jax.lax.scan(step, first, jnp.arange((n - over) // batch_size))[0]


def merge(a: ClassAccumulator, b: ClassAccumulator) -> ClassAccumulator:
    """Put two accumulators together, as if one had seen the examples of both.

    Args:
        a: An accumulator.
        b: Another one, of as many classes and features and the same precision.

    Returns:
        The accumulator of all examples. The order of `a` and `b`, and how examples
        were divided between them, changes it by rounding alone.

    Raises:
        ValueError: The two do not have the same shapes and dtypes.
    """
    shapes = [[(x.shape, x.dtype.name) for x in acc] for acc in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`b` must have the shapes and dtypes of `a`, but means are "
            f"{shapes[1][1]} against {shapes[0][1]}. Make both with one "
            "`init(num_classes, dim)`."
        )
    return _merge(a, b)


@jax.jit
def _merge(a, b):
    dtype = a.means.dtype
    # The larger unit wins; the other's numbers shrink by a power of two, exactly.
    unit = jnp.maximum(a.unit, b.unit)
    by_a, by_b = a.unit / unit, b.unit / unit
    first = jnp.any(a.counts > 0)
    origin_a, origin_b = a.origin * by_a, b.origin * by_b
    origin = jnp.where(first, origin_a, origin_b)
    counts = a.counts + b.counts
    share = b.counts.astype(dtype) / jnp.maximum(counts, 1)
    means_a = a.means * by_a
    moved = b.means * by_b + (origin_b - origin)[None, :]
    occurs = (b.counts > 0)[:, None]
    delta = jnp.where(occurs, moved - means_a, 0)
    between = jnp.sum(jnp.square(delta), axis=1) * a.counts * share
    return ClassAccumulator(
        counts,
        means_a + delta * share[:, None],
        a.scatters * by_a * by_a + b.scatters * by_b * by_b + between,
        origin,
        unit,
        a.num_nonfinite + b.num_nonfinite,
        a.num_out_of_range + b.num_out_of_range,
    )


@jax.jit
def finalize(acc: ClassAccumulator) -> ClassSummary:
    """Turn an accumulator into class means and variances around a common origin.

    Args:
        acc: The accumulator of all examples.

    Returns:
        The summary, in units of its field `unit`.
    """
    counts = acc.counts.astype(acc.means.dtype)
    total = jnp.maximum(jnp.sum(counts), 1)
    # The origin rounds; means move by what was really added to it.
    origin = fixed(acc.origin + _matmul(counts, acc.means) / total)
    moved = origin - acc.origin
    occurs = (acc.counts > 0)[:, None]
    means = jnp.where(occurs, acc.means - moved[None, :], 0)
    norms = jnp.sum(jnp.square(origin[None, :] + means), axis=1)
    power = (jnp.sum(acc.scatters) + jnp.vdot(counts, norms)) / total
    return ClassSummary(
        acc.counts,
        means,
        acc.scatters / jnp.maximum(acc.counts, 1),
        origin,
        acc.unit,
        jax.lax.stop_gradient(jnp.sqrt(power)),
        acc.num_nonfinite,
        acc.num_out_of_range,
    )
