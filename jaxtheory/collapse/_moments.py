"""Class means and scatters, and the pseudo-inverse that every collapse number rests on.

Nothing here is ever ``d x d``. Write ``A`` for the ``[k, d]`` matrix whose rows are
``sqrt(w_k) (mu_k - mu_G)``. Then ``Sigma_B = A^T A``, so ``Sigma_B^+ = A^+ A^{+T}`` and

    tr(Sigma_W Sigma_B^+) = (1/N) sum_i ||(h_i - mu_{y_i}) A^+||^2 ,

one singular value decomposition of ``A`` and one projection of the data. An
eigendecomposition of the Gram matrix ``A A^T`` would square the condition number.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxtheory.batching import check_examples, num_shards

_matmul = partial(jnp.matmul, precision="highest")


class ClassMoments(NamedTuple):
    """First and second moments by class, over the examples that could be used.

    Lengths are in units of `unit`, a power of two near the largest feature, so that
    squares neither overflow nor underflow and scaling costs no rounding.

    Attributes:
        counts: Examples used in each class. Shape ``[k]``.
        means: Class means minus the mean of all examples; zero where a class is empty.
            Shape ``[k, d]``.
        residuals: Examples minus their class mean; zero for those left out. Shape
            ``[n, d]``.
        used: Which examples were used. Shape ``[n]``.
        labels: Labels with zero in place of one that is out of range. Shape ``[n]``.
        unit: What one unit is in the units of the features.
        resolution: Root mean square norm of the features before centring: the size
            that their rounding is relative to.
        num_nonfinite: Examples left out for a feature that is NaN or infinite.
        num_out_of_range: Examples left out for a label outside ``[0, k)``.
        origin: What `means` are taken from: the mean of all examples, to rounding.
            Shape ``[d]``.
    """

    counts: Int[Array, " k"]
    means: Float[Array, "k d"]
    residuals: Float[Array, "n d"]
    used: Bool[Array, " n"]
    labels: Integer[Array, " n"]
    unit: Float[Array, ""]
    resolution: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_out_of_range: Int[Array, ""]
    origin: Float[Array, " d"]


class ClassSummary(NamedTuple):
    """What is kept of the examples once they have gone by: counts, means, variances.

    Lengths are in units of `unit`, a power of two near the largest feature, so that
    squares neither overflow nor underflow: ``origin + means`` times `unit` are the
    class means in the units of the features, and `variances` times ``unit**2``.

    Attributes:
        counts: Examples used in each class, ``n_k``. Shape ``[k]``.
        means: Class means minus `origin`; zero where a class is empty. Shape
            ``[k, d]``.
        variances: ``v_k = (1/n_k) sum_i ||h_i - mu_k||^2``, summed over the ``d``
            directions: traces of the class covariances. Zero for a class of one
            example and for an empty one. Shape ``[k]``.
        origin: A point within rounding of the mean of all examples. Means are kept
            relative to it because their differences are what matters. Shape ``[d]``.
        unit: What one unit is in the units of the features.
        resolution: Root mean square norm of the features.
        num_nonfinite: Examples left out for a feature that is NaN or infinite.
        num_out_of_range: Examples left out for a label outside ``[0, k)``.
    """

    counts: Int[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, " k"]
    origin: Float[Array, " d"]
    unit: Float[Array, ""]
    resolution: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_out_of_range: Int[Array, ""]


class BetweenClass(NamedTuple):
    """Where the class means lie around their weighted mean.

    Attributes:
        means: Class means minus their weighted mean; zero where a class is empty. Shape
            ``[k, d]``.
        trace: ``sum_k w_k ||mu_k - mu_G||^2``.
        pseudo_inverse: Of the matrix with rows ``sqrt(w_k) (mu_k - mu_G)``. Shape
            ``[d, k]``.
        rank: Number of directions that the pseudo-inverse keeps.
        rounding: Length below which one of `means` is rounding and has no direction.
    """

    means: Float[Array, "k d"]
    trace: Float[Array, ""]
    pseudo_inverse: Float[Array, "d k"]
    rank: Int[Array, ""]
    rounding: Float[Array, ""]


def check_features(features: Any, name: str = "features") -> None:
    """Raise unless `features` is a floating-point array ``[n, ...]`` that has entries.

    Args:
        features: What the user passed.
        name: What an error message calls it.

    Raises:
        ValueError: It is not one array, there are no examples or no features, the dtype
            is not floating, or it is sharded over a mesh with explicit axes.
    """
    check_examples(**{name: features})
    check_floating(features, name)
    num_shards(features)  # refuses explicit axes and says how to make others
    if 0 in jnp.shape(features):
        raise ValueError(
            f"`{name}` must hold at least one feature for every example, but has shape "
            f"{jnp.shape(features)}."
        )


def check_floating(array: Any, name: str) -> None:
    """Raise unless `array` is one floating-point array of JAX or NumPy.

    Args:
        array: What the user passed.
        name: What an error message calls it.

    Raises:
        ValueError: It is something else, such as a list, or its dtype is not floating
            (integers, complex numbers, strings, objects).
    """
    if not isinstance(array, jax.Array | np.ndarray):
        raise ValueError(
            f"`{name}` must be one array, but is a {type(array).__name__}. Pass "
            "`jnp.asarray(...)` of it."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must be floating-point, but has dtype {array.dtype}. Cast it, "
            "for example with `.astype(jnp.float32)`."
        )


def check_labels(labels: Any, num_classes: int | None) -> int:
    """Return the number of classes after checking all that can be known of the labels.

    Args:
        labels: Class index of each example.
        num_classes: Number of classes; None takes the largest label plus one.

    Returns:
        The number of classes.

    Raises:
        ValueError: `labels` is not a vector of integers; `num_classes` is not an
            integer above 1, or is needed because labels are traced; or (concrete labels
            only) a label is out of range or all are the same.
    """
    shape = check_label_vector(labels)
    check_num_classes(num_classes)
    if isinstance(labels, Tracer):
        if num_classes is None:
            raise ValueError(
                "`num_classes` must be given where `labels` are traced (under jit, "
                "vmap or scan), because their values are not known there. Pass "
                "`num_classes=`."
            )
        return num_classes
    # Inside jit also the minimum of a constant would be traced.
    with jax.ensure_compile_time_eval():
        lowest, highest = int(labels.min()), int(labels.max())
    upper = highest + 1 if num_classes is None else num_classes
    if lowest < 0 or highest >= upper:
        raise ValueError(
            f"`labels` must lie in [0, {upper}) for {upper} classes, but range from "
            f"{lowest} to {highest}. Number the classes from 0, or pass a larger "
            "`num_classes`."
        )
    if lowest == highest:
        raise ValueError(
            "`labels` must hold at least two classes, because everything here compares "
            f"classes, but all {shape[0]} of them are {lowest}."
        )
    return upper


def check_label_vector(labels: Any) -> tuple[int, ...]:
    """Return the shape of `labels`; raise unless it is a vector of integers.

    Args:
        labels: What the user passed; values are not looked at.

    Returns:
        The shape, ``(n,)``.

    Raises:
        ValueError: It is something else, multi-hot rows for example.
    """
    if not isinstance(labels, jax.Array | np.ndarray):
        raise ValueError(
            "`labels` must be a vector of integer class indices, one for each example, "
            f"but is a {type(labels).__name__}. Pass `jnp.asarray(labels)`."
        )
    check_examples(labels=labels)
    num_shards(labels)
    shape, dtype = labels.shape, labels.dtype
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            "`labels` must be a vector of integer class indices, one for each example, "
            f"but has shape {shape} and dtype {dtype}. For one-hot labels pass "
            "`labels.argmax(-1)`; an example of several classes has no place here."
        )
    return shape


def check_feature_matrix(features: Any, name: str = "features") -> None:
    """Raise unless `features` is a floating-point matrix ``[n, d]``.

    Args:
        features: What the user passed.
        name: What an error message calls it.

    Raises:
        ValueError: As `check_features`, or it has another number of axes.
    """
    check_features(features, name)
    if jnp.ndim(features) != 2:
        raise ValueError(
            f"`{name}` must be a matrix [n, d], but has shape "
            f"{jnp.shape(features)}. Flatten it: `{name}.reshape(n, -1)`."
        )


def check_num_classes(num_classes: Any) -> None:
    """Raise unless `num_classes` is None or an integer of at least 2.

    Args:
        num_classes: What the user passed.

    Raises:
        ValueError: It is something else.
    """
    if num_classes is None:
        return
    is_integer = isinstance(num_classes, int | np.integer)
    if not is_integer or isinstance(num_classes, bool) or num_classes < 2:
        raise ValueError(
            "`num_classes` must be None or an integer of at least 2, but was "
            f"{num_classes!r}."
        )


def class_moments(
    features: Float[Array, "n d"], labels: Integer[Array, " n"], num_classes: int
) -> ClassMoments:
    """Take class means, then what is left of each example around its class mean.

    Args:
        features: One row for each example.
        labels: Class indices; an example whose label is out of range is left out.
        num_classes: Number of classes.

    Returns:
        The moments.

    Memory:
        Two arrays of the size of the features, and ``n k`` numbers.
    """
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    finite, in_range, labels = usable(features, labels, num_classes)
    used = finite & in_range
    features = jnp.where(used[:, None], features, 0).astype(dtype)
    member = used[:, None] & (labels[:, None] == jnp.arange(num_classes)[None, :])
    counts = jnp.sum(member, axis=0)
    total = jnp.maximum(jnp.sum(counts), 1)

    unit = power_of_two_below(jnp.max(jnp.abs(features)))
    features = features / unit
    resolution = jnp.sqrt(jnp.sum(jnp.square(features)) / total)
    origin = fixed(jnp.sum(features, axis=0) / total)
    residuals = jnp.where(used[:, None], features - origin[None, :], 0)
    means = jnp.zeros((num_classes, features.shape[1]), dtype)
    # The second turn removes the rounding of the first means, which would otherwise be
    # counted as scatter. At strong collapse that rounding is all there is to see.
    for _ in range(2):
        sums = _matmul(member.astype(dtype).T, residuals)
        shift = sums / jnp.maximum(counts, 1)[:, None]
        residuals = residuals - jnp.where(used[:, None], shift[labels], 0)
        means = means + shift
    return ClassMoments(
        counts,
        means,
        residuals,
        used,
        labels,
        unit,
        jax.lax.stop_gradient(resolution),
        jnp.sum(~finite),
        jnp.sum(~in_range),
        origin,
    )


def class_indices(labels: Integer[Array, "*n"]) -> Integer[Array, "*n"]:
    """Labels as signed integers of at least 32 bits.

    The number of classes need not fit into the type of the labels, and an unsigned type
    has no signed one above it to compare in.

    Args:
        labels: Class indices, of any integer type.

    Returns:
        The same numbers; those of ``uint64`` above ``2^63`` are negative, as out of
        range as before.
    """
    wide = jnp.dtype(labels.dtype).itemsize == 8
    return labels.astype(jnp.int64 if wide else jnp.int32)


def usable(
    features: Float[Array, "n d"], labels: Integer[Array, " n"], num_classes: int
) -> tuple[Bool[Array, " n"], Bool[Array, " n"], Integer[Array, " n"]]:
    """Find the examples that can be used.

    Args:
        features: One row for each example.
        labels: Class indices.
        num_classes: Number of classes.

    Returns:
        Which examples have finite features, which have a label in range, and the
        labels with zero in place of one that cannot be used.
    """
    finite = jnp.all(jnp.isfinite(features), axis=1)
    labels = class_indices(labels)
    in_range = (labels >= 0) & (labels < num_classes)
    return finite, in_range, jnp.where(finite & in_range, labels, 0)


def fixed(x: Array) -> Array:
    """Round off two bits, so that every use of `x` sees the same number.

    A compiler may compute it twice, once rounded and once (in a fused multiply-add)
    not; what is subtracted from the examples then differs from what is returned by the
    rounding of the features, and small class means far from the origin by all they are.

    Args:
        x: A floating-point array.

    Returns:
        The rounded array.
    """
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant - 2)


def power_of_two_below(largest: Array) -> Array:
    """The power of two at or just below `largest`, so that dividing by it is exact.

    Args:
        largest: A number that is not negative.

    Returns:
        The power, a constant to derivatives; 1/2 for 0.
    """
    exponent = jnp.frexp(jax.lax.stop_gradient(largest))[1]
    return jnp.ldexp(jnp.ones((), largest.dtype), exponent - 1)


def between_class(
    moments: ClassMoments | ClassSummary, weights: Float[Array, " k"]
) -> BetweenClass:
    """Centre the class means and invert what they span.

    Args:
        moments: The moments by class.
        weights: Weight of each class, summing to 1, zero for an empty one.

    Returns:
        Centred means and the pseudo-inverse. Kept are singular values above
        ``eps max(8 s_1, R)``: ``s_1`` is the largest (the decomposition's own error),
        ``R`` the root mean square feature norm (twice what rounding of the features
        can produce). No more are kept than classes occur minus one, because the
        weighted means sum to zero.
    """
    centre = _matmul(weights[None, :], moments.means)
    occurs = (moments.counts > 0)[:, None]
    means = jnp.where(occurs, moments.means - centre, 0)
    weighted = jnp.sqrt(weights)[:, None] * means
    longest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(means), axis=1)))
    rounding = rounding_of(jax.lax.stop_gradient(longest), moments.resolution)
    num_present = jnp.sum(moments.counts > 0)
    inverse = _pseudo_inverse(weighted, moments.resolution, num_present - 1)
    # The trace of the projector A A^+ counts what was kept.
    kept = jax.lax.stop_gradient(jnp.sum(weighted * inverse.T))
    rank = jnp.round(kept).astype(moments.counts.dtype)
    trace = jnp.sum(jnp.square(weighted))
    return BetweenClass(means, trace, inverse, rank, rounding)


def scatter_ratio(moments: ClassMoments, between: BetweenClass) -> Float[Array, ""]:
    """Within-class over between-class scatter, ``tr(Sigma_W Sigma_B^+)``.

    Args:
        moments: The moments by class; ``Sigma_W`` carries 1/N.
        between: Centred class means; their weights are those of ``Sigma_B``.

    Returns:
        The trace, and infinity where no direction separates the classes.
    """
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    projected = _matmul(moments.residuals, between.pseudo_inverse)
    ratio = jnp.sum(jnp.square(projected)) / total
    return jnp.where(between.rank > 0, ratio, jnp.inf)


def rounding_of(largest: Array, resolution: Array) -> Array:
    """What rounding can make of a zero among lengths up to `largest`.

    Args:
        largest: The largest of the lengths.
        resolution: Root mean square norm of what they were computed from.

    Returns:
        The length.
    """
    return jnp.finfo(largest.dtype).eps * jnp.maximum(8 * largest, resolution)


@jax.custom_jvp
def _pseudo_inverse(matrix, resolution, max_rank):
    """Pseudo-inverse; its derivative is finite also where singular values coincide."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    keep = values > rounding_of(values[0], resolution)
    keep &= jnp.arange(values.size) < max_rank
    inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
    return _matmul(right.T * inverse[None, :], left.T)


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(primals, tangents):
    """The derivative at constant rank (Golub & Pereyra 1973, eq. 4.12).

    Equal singular values are what collapse looks like, and there the derivative of the
    singular vectors does not exist while that of the pseudo-inverse does. Products are
    ordered so that none is ``d x d``.
    """
    a, da = primals[0], tangents[0]
    p = _pseudo_inverse(*primals)
    row_part = _matmul(p, _matmul(p.T, da.T))
    column_part = _matmul(da.T, _matmul(p.T, p))
    tangent = (
        row_part
        - _matmul(row_part, _matmul(a, p))
        + column_part
        - _matmul(p, _matmul(a, column_part))
        - _matmul(p, _matmul(da, p))
    )
    return p, tangent
