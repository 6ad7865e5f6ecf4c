"""Neural collapse of features and classifier: NC1 to NC4."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_examples
from jaxtheory.collapse._moments import (
    between_class,
    check_features,
    check_labels,
    class_moments,
    scatter_ratio,
)

_matmul = partial(jnp.matmul, precision="highest")


class CollapseStatistics(NamedTuple):
    """How far features and classifier are from neural collapse (0 is collapsed).

    ``K`` counts the classes that occur, ``N`` the examples used, ``mu_k`` are class
    means and ``mu_G = (1/K) sum_k mu_k`` their unweighted mean.

    Attributes:
        nc1: Variability collapse, ``tr(Sigma_W Sigma_B^+) / K``, without ``1/K`` under
            ``normalize_by_classes=False``. Infinite where `rank` is 0.
        nc2: Distance of the class means from a simplex equiangular tight frame,
            ``||G / ||G||_F - (I - J/K) / sqrt(K-1)||_F`` with ``G`` the Gram matrix of
            the ``mu_k - mu_G``. NaN where `rank` is 0, as the next two.
        nc2_equinorm: Standard deviation (``1/K``) over mean of ``||mu_k - mu_G||``.
        nc2_equiangular: Mean over ordered pairs ``i != j`` of
            ``|cos(mu_i - mu_G, mu_j - mu_G) + 1/(K-1)|``; a class mean that equals
            ``mu_G`` (to rounding) counts as cosine 0.
        nc3: Self-duality, ``||W / ||W||_F - M / ||M||_F||_F`` with rows ``mu_k - mu_G``
            of ``M`` (not squared); 1 for ``W = 0``, which has no direction. None
            without a classifier, NaN where `rank` is 0 or ``W`` is not finite.
        nc3_cosine: ``1 - (1/K) sum_k cos(w_k, mu_k - mu_G)``, the per-class form, which
            ignores lengths. None and NaN as `nc3`.
        nc4: Fraction of examples where ``argmax_k (W h + b)_k`` is not the class whose
            mean is nearest to ``h``. A class without examples has no mean to be nearest
            but can be predicted; an example whose outputs are not finite disagrees.
            None and NaN as `nc3`.
        within_class_trace: ``tr(Sigma_W)``, in squared units of the features.
        between_class_trace: ``tr(Sigma_B)``, in squared units of the features.
        class_counts: Examples used in each class. Shape ``[k]``.
        rank: Directions in which class means differ beyond rounding. Below
            ``min(K-1, d)`` some classes coincide along a direction that `nc1` ignores.
        num_nonfinite: Examples with a NaN or infinite feature. They are left out, and
            all numbers are exactly those of the other examples.
        num_out_of_range: Examples left out because their label is outside ``[0, k)``.
            Zero unless labels were traced: concrete ones raise an error.
    """

    nc1: Float[Array, ""]
    nc2: Float[Array, ""]
    nc2_equinorm: Float[Array, ""]
    nc2_equiangular: Float[Array, ""]
    nc3: Float[Array, ""] | None
    nc3_cosine: Float[Array, ""] | None
    nc4: Float[Array, ""] | None
    within_class_trace: Float[Array, ""]
    between_class_trace: Float[Array, ""]
    class_counts: Int[Array, " k"]
    rank: Int[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_out_of_range: Int[Array, ""]


def statistics(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None] | None = None,
    num_classes: int | None = None,
    normalize_by_classes: bool = True,
) -> CollapseStatistics:
    """Measure neural collapse NC1 to NC4 of last-layer features.

    The scatters are

        Sigma_W = (1/N) sum_i (h_i - mu_{y_i}) (h_i - mu_{y_i})^T        per example
        Sigma_B = (1/K) sum_k (mu_k - mu_G) (mu_k - mu_G)^T              per class

    so under imbalance every class weighs the same in ``Sigma_B``, and its centre is the
    mean of class means; `separation` weighs classes by their examples instead. Classes
    without examples take no part: ``K`` counts those that occur.

    `CollapseStatistics` has the definition of every number. Differentiable in the
    features where the rank is locally constant (for `nc1`, also at a perfect frame).

    Args:
        features: Last-layer features, one row for each example. Evaluate the model in
            its eval mode; report training and test data apart.
        labels: Class index of each example, in ``[0, k)``.
        classifier: ``(weight, bias)`` of the last layer: rows of the weight are classes
            (a Flax ``kernel`` is ``[d, k]``: pass ``kernel.T``; for ``k == d`` nothing
            can notice), and the bias may be None. Without it `nc3` and `nc4` are None.
        num_classes: Number of classes. None takes that of the classifier, or else the
            largest label plus one; needed where labels are traced.
        normalize_by_classes: Whether `nc1` is divided by ``K``, as in Zhu et al. Papyan
            et al. and He & Su do not.

    Returns:
        The statistics, in the precision of the features (at least float32). Where all
        class means coincide, `rank` is 0, `nc1` infinite and NC2 to NC4 are NaN. A
        class with one example adds nothing to ``Sigma_W``. With ``K > d + 1`` no
        simplex frame fits and `nc2` cannot reach 0.

    Raises:
        ValueError: Shapes or dtypes do not fit, `num_classes` is missing or contradicts
            the classifier, or concrete labels are out of range or all the same.

    Memory:
        Two copies of the features and ``2 n k`` numbers; no ``d x d`` matrix. Time
        ``O(n d k + d k^2)``.

    Example:
        >>> import jax.numpy as jnp
        >>> frame = jnp.eye(3) - 1 / 3
        >>> labels = jnp.array([0, 0, 1, 1, 2, 2])
        >>> noise = 0.1 * jnp.array([1.0, -1.0] * 3)[:, None] * frame[labels]
        >>> nc = statistics(frame[labels] + noise, labels, classifier=(frame, None))
        >>> print(f"{nc.nc1:.4f} {nc.nc2:.4f} {nc.nc3:.4f} {nc.nc4:.4f}")
        0.0067 0.0000 0.0000 0.0000

    References:
        Papyan, Han & Donoho 2020, arXiv:2008.08186 (NC1 to NC4); Zhu et al. 2021,
        arXiv:2105.02375 (``1/K`` in NC1 and the frame distance).
    """
    check_features(features)
    if jnp.ndim(features) != 2:
        raise ValueError(
            "`features` must be a matrix [n, d], but has shape "
            f"{jnp.shape(features)}. Flatten it: `features.reshape(n, -1)`."
        )
    check_examples(features=features, labels=labels)
    num_classes = _check_classifier(classifier, jnp.shape(features)[1], num_classes)
    num_classes = check_labels(labels, num_classes)
    return _statistics(
        features, labels, classifier, num_classes, bool(normalize_by_classes)
    )


def _check_classifier(classifier, num_features, num_classes):
    """The number of classes, after checking that the classifier's shapes fit."""
    if classifier is None:
        return num_classes
    if not isinstance(classifier, tuple | list) or len(classifier) != 2:
        raise ValueError(
            "`classifier` must be None or a pair `(weight, bias)`, but was a "
            f"{type(classifier).__name__}. Pass `(weight, None)` if there is no bias; "
            "of a Flax layer, pass `(kernel.T, bias)`."
        )
    shape, bias = jnp.shape(classifier[0]), classifier[1]
    if len(shape) != 2 or shape[1] != num_features:
        flipped = len(shape) == 2 and shape[0] == num_features
        fix = " This looks like a Flax kernel [d, k]: transpose it." if flipped else ""
        raise ValueError(
            "`classifier[0]` (the weight) must have shape [k, d] with d = "
            f"{num_features} features, but has shape {shape}.{fix}"
        )
    if bias is not None and jnp.shape(bias) != shape[:1]:
        raise ValueError(
            f"`classifier[1]` (the bias) must be None or have shape {shape[:1]}, one "
            f"entry for each row of the weight, but has shape {jnp.shape(bias)}."
        )
    if num_classes not in (None, shape[0]):
        raise ValueError(
            f"`num_classes` must be {shape[0]}, the number of rows of the classifier's "
            f"weight, but was {num_classes}. Leave it out."
        )
    return shape[0]


@partial(jax.jit, static_argnums=(3, 4))
def _statistics(features, labels, classifier, num_classes, normalize_by_classes):
    """`statistics`, of checked arguments."""
    moments = class_moments(features, labels, num_classes)
    present = moments.counts > 0
    occurring = jnp.maximum(jnp.sum(present), 1)
    weights = (present / occurring).astype(moments.means.dtype)
    between = between_class(moments, weights)
    nc1 = scatter_ratio(moments, between)
    if normalize_by_classes:
        nc1 = nc1 / occurring
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    within = moments.residuals * moments.unit
    defined = lambda value: jnp.where(between.rank > 0, value, jnp.nan)
    nc2, equinorm, equiangular = map(defined, _frame_geometry(between, present))
    nc3 = nc3_cosine = nc4 = None
    if classifier is not None:
        weight = jnp.asarray(classifier[0], moments.means.dtype)
        nc3, nc3_cosine = map(defined, _self_duality(weight, between, present))
        nc4 = defined(_disagreement(features, moments, weight, classifier[1]))
    return CollapseStatistics(
        nc1=nc1,
        nc2=nc2,
        nc2_equinorm=equinorm,
        nc2_equiangular=equiangular,
        nc3=nc3,
        nc3_cosine=nc3_cosine,
        nc4=nc4,
        within_class_trace=jnp.sum(jnp.square(within)) / total,
        between_class_trace=between.trace * moments.unit * moments.unit,
        class_counts=moments.counts,
        rank=between.rank,
        num_nonfinite=moments.num_nonfinite,
        num_out_of_range=moments.num_out_of_range,
    )


def _norm(x, axis=None):
    """Euclidean norm over `axis` (kept), whose derivative at zero is 0 and not NaN."""
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    zero = squared == 0  # and not NaN, which has to stay NaN
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def _unit(x, axis=None, rounding=0):
    """``x`` over its norm along `axis`; zero where that is not above `rounding`."""
    norm = _norm(x, axis)
    return jnp.where(norm <= rounding, 0, x / jnp.where(norm == 0, 1, norm))


def _frame_geometry(between, present):
    """Frame distance, spread of norms and spread of angles of the centred means."""
    means = between.means
    occurring = jnp.sum(present, dtype=means.dtype)
    norms = _norm(means, axis=1)[:, 0]
    mean_norm = jnp.sum(norms) / occurring
    deviations = jnp.where(present, norms - mean_norm, 0)
    equinorm = _norm(deviations)[0] / jnp.sqrt(occurring) / mean_norm

    both = present[:, None] & present[None, :]
    identity = jnp.eye(present.size, dtype=means.dtype)
    pairs = both & (identity == 0)
    directions = _unit(means, axis=1, rounding=between.rounding)
    deviations = jnp.abs(_matmul(directions, directions.T) + 1 / (occurring - 1))
    equiangular = jnp.sum(jnp.where(pairs, deviations, 0)) / jnp.sum(pairs)

    frame = jnp.where(both, identity - 1 / occurring, 0)
    gram = _unit(_matmul(means, means.T))
    distance = _norm(gram - frame / jnp.sqrt(occurring - 1))[0, 0]
    return distance, equinorm, equiangular


def _self_duality(weight, between, present):
    """Distance of classifier and class means, and one minus their mean cosine."""
    weight = jnp.where(present[:, None], weight, 0)
    directions = _unit(between.means, axis=1, rounding=between.rounding)
    cosines = _unit(weight, axis=1) * directions
    distance = _norm(_unit(weight) - _unit(between.means))[0, 0]
    return distance, 1 - jnp.sum(cosines) / jnp.sum(present)


def _disagreement(features, moments, weight, bias):
    """Fraction of the examples used where the classifier is not nearest class mean."""
    features = jnp.where(moments.used[:, None], features, 0).astype(weight.dtype)
    outputs = _matmul(features, weight.T)
    if bias is not None:
        outputs = outputs + jnp.asarray(bias, weight.dtype)[None, :]
    # -||h - mu_k||^2 / 2 up to what all k share, around the example's own class mean
    # mu_y: with ||mu_k||^2 two close means that are far from the others would cancel.
    squares = jax.lax.map(
        lambda mean: jnp.sum(jnp.square(moments.means - mean[None, :]), axis=1),
        moments.means,
    )
    closeness = _matmul(moments.residuals, moments.means.T)
    closeness = closeness - squares[moments.labels] / 2
    closeness = jnp.where((moments.counts > 0)[None, :], closeness, -jnp.inf)
    agree = jnp.argmax(outputs, axis=1) == jnp.argmax(closeness, axis=1)
    agree &= jnp.all(jnp.isfinite(outputs), axis=1)
    disagreements = jnp.sum(moments.used & ~agree, dtype=weight.dtype)
    return disagreements / jnp.maximum(jnp.sum(moments.counts), 1)
