"""The record of all collapse statistics, and how it follows from two passes."""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtheory.collapse._frames import frame_distance, geometry, norm, unit
from jaxtheory.collapse._moments import power_of_two_below
from jaxtheory.collapse._second_pass import (
    Reference,
    SecondPass,
    directional_variances,
    distance_normalized,
    over_pairs,
    scatter_ratio_of,
)

_matmul = partial(jnp.matmul, precision="highest")


class CollapseStatistics(NamedTuple):
    """How far features and classifier are from neural collapse (0 is collapsed).

    ``K`` counts the classes that occur, ``N`` the examples used, ``mu_k`` are class
    means and ``mu_G = sum_k a_k mu_k`` their mean with weights ``a_k = 1/K``, or
    ``n_k/N`` under ``class_weights="counts"``.

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
        nc4: Fraction of examples where ``argmax_k (W h + b)_k`` is not a class whose
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
            Zero unless labels were traced or came in batches: concrete ones raise an
            error.
        nc1_ratio: ``tr(Sigma_W) / tr(Sigma_B)``, which needs no inverse but changes
            with the directions in which scatter lies. Infinite where `rank` is 0.
        cdnv: Class-distance normalized variance, the mean over ordered pairs of classes
            of (in the default convention) ``(v_i + v_j) / (2 ||mu_i - mu_j||^2)``. A
            class of one example has variance 0, which biases it down. Infinite where
            two means coincide. `cdnv` has the matrix.
        directional_cdnv: Mean over ordered pairs of ``u^T Sigma_i u / ||mu_i -
            mu_j||^2`` with ``u`` the unit vector from ``mu_i`` to ``mu_j``. Infinite as
            `cdnv`.
        nearest_mean_error: Fraction of examples that are nearer to another class mean
            than to that of their own class.
        nc2_classifier: Distance of the classifier's rows ``w_k`` (not centred) from a
            simplex frame, as `nc2`. None without a classifier, as all that follow.
        nc2_classifier_equinorm: As `nc2_equinorm`, of the rows; NaN for ``W = 0``.
        nc2_classifier_equiangular: As `nc2_equiangular`, of the rows.
        nc3_frame: Self-duality by Zhu et al., ``||W M^T / ||W M^T||_F - (I - J/K) /
            sqrt(K-1)||_F``: zero only where the two are dual *and* a simplex frame.
        bias_collapse: ``||W mu_G + b||``, in units of the outputs. Zero where the bias
            does no more than centre the features; depends on their common shift.
        classifier_error: Fraction of examples that the classifier gets wrong; an
            example whose outputs are not finite is one. NaN where no example is used,
            as `bias_collapse` and the two traces.
        class_variances: ``v_k``, the trace of the covariance (``1/n_k``) of each class,
            in squared units of the features. Shape ``[k]``.
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
    nc1_ratio: Float[Array, ""]
    cdnv: Float[Array, ""]
    directional_cdnv: Float[Array, ""]
    nearest_mean_error: Float[Array, ""]
    nc2_classifier: Float[Array, ""] | None
    nc2_classifier_equinorm: Float[Array, ""] | None
    nc2_classifier_equiangular: Float[Array, ""] | None
    nc3_frame: Float[Array, ""] | None
    bias_collapse: Float[Array, ""] | None
    classifier_error: Float[Array, ""] | None
    class_variances: Float[Array, " k"]


class Conventions(NamedTuple):
    """What papers do not agree on; hashable, for it is static under jit.

    Attributes:
        normalize_by_classes: Whether NC1 is divided by the number of classes.
        class_weights: ``"equal"`` or ``"counts"``.
        cdnv: ``"average"``, ``"ordered"`` or ``"sum"``.
    """

    normalize_by_classes: bool = True
    class_weights: str = "equal"
    cdnv: str = "average"


_WORDS = {
    "class_weights": ("equal", "counts"),
    "cdnv": ("average", "ordered", "sum"),
}


def check_word(name: str, value: Any, argument: str | None = None) -> None:
    """Raise unless `value` is one of the words that an argument can be.

    Args:
        name: Which choice: ``"class_weights"`` or ``"cdnv"``.
        value: What the user passed.
        argument: What an error message calls it; None takes `name`.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, str) or value not in _WORDS[name]:
        words = ", ".join(f'"{word}"' for word in _WORDS[name])
        raise ValueError(
            f"`{argument or name}` must be one of {words}, but was {value!r}."
        )


def report(
    reference: Reference, sums: SecondPass, classifier: Any, conventions: Conventions
) -> CollapseStatistics:
    """Put the record together from class means and the second pass.

    Args:
        reference: Class means, variances and the between-class scatter.
        sums: The second pass over the same examples.
        classifier: None, or weight ``[k, d]`` and bias ``[k]`` or None.
        conventions: What papers do not agree on.

    Returns:
        The record.
    """
    summary, between = reference.summary, reference.between
    present = summary.counts > 0
    occurring = jnp.maximum(jnp.sum(present), 1)
    total = jnp.maximum(jnp.sum(summary.counts), 1)
    dtype = summary.means.dtype
    # Of no examples at all, no number may look like a perfect one.
    measured = lambda value: jnp.where(jnp.any(present), value, jnp.nan)
    nc1 = scatter_ratio_of(sums, between.rank)
    if conventions.normalize_by_classes:
        nc1 = nc1 / occurring
    within = jnp.vdot(summary.counts.astype(dtype), summary.variances) / total
    separates = between.rank > 0
    defined = lambda value: jnp.where(separates, value, jnp.nan)
    frame = geometry(between.means, present, between.rounding)
    cdnv = over_pairs(distance_normalized(reference, conventions.cdnv), reference)[1]
    directional = over_pairs(directional_variances(sums), reference)[1]
    far = sums.far.astype(dtype) / total
    return CollapseStatistics(
        nc1=nc1,
        nc2=defined(frame.distance),
        nc2_equinorm=defined(frame.equinorm),
        nc2_equiangular=defined(frame.equiangular),
        within_class_trace=measured(within * summary.unit * summary.unit),
        between_class_trace=measured(between.trace * summary.unit * summary.unit),
        class_counts=summary.counts,
        rank=between.rank,
        num_nonfinite=summary.num_nonfinite,
        num_out_of_range=summary.num_out_of_range,
        nc1_ratio=jnp.where(
            separates, within / jnp.where(separates, between.trace, 1), jnp.inf
        ),
        cdnv=cdnv,
        directional_cdnv=directional,
        nearest_mean_error=defined(far),
        class_variances=summary.variances * summary.unit * summary.unit,
        **_of_classifier(reference, sums, classifier, defined, measured),
    )


_OF_CLASSIFIER = (
    "nc3",
    "nc3_cosine",
    "nc4",
    "nc2_classifier",
    "nc2_classifier_equinorm",
    "nc2_classifier_equiangular",
    "nc3_frame",
    "bias_collapse",
    "classifier_error",
)


def _of_classifier(reference, sums, classifier, defined, measured):
    """The fields that need a classifier; None without one."""
    if classifier is None:
        return dict.fromkeys(_OF_CLASSIFIER)
    summary, between = reference.summary, reference.between
    present, dtype = summary.counts > 0, summary.means.dtype
    total = jnp.maximum(jnp.sum(summary.counts), 1)
    weight = jnp.asarray(classifier[0], dtype)
    scale = power_of_two_below(jnp.max(jnp.abs(weight)))
    weight = jnp.where(present[:, None], weight / scale, 0)  # squares stay in range
    directions = unit(between.means, axis=1, rounding=between.rounding)
    cosines = unit(weight, axis=1) * directions
    distance = norm(unit(weight) - unit(between.means))[0, 0]
    rows = geometry(weight, present)
    product = _matmul(unit(weight), unit(between.means).T)
    return {
        "nc3": defined(distance),
        "nc3_cosine": defined(1 - jnp.sum(cosines) / jnp.sum(present)),
        "nc4": defined(sums.disagree.astype(dtype) / total),
        "nc2_classifier": rows.distance,
        "nc2_classifier_equinorm": rows.equinorm,
        "nc2_classifier_equiangular": rows.equiangular,
        "nc3_frame": defined(frame_distance(product, present)),
        "bias_collapse": measured(
            _bias_collapse(summary, between, weight, classifier[1], scale)
        ),
        "classifier_error": measured(sums.wrong.astype(dtype) / total),
    }


def _bias_collapse(summary, between, weight, bias, scale):
    """``||scale W mu_G + b||`` over the classes that occur."""
    present = summary.counts > 0
    # The first class that occurs knows where the centre is.
    row = jnp.argmax(present)
    centre = summary.origin + summary.means[row] - between.means[row]
    outputs = _matmul(weight, centre)
    if bias is not None:
        outputs = outputs + jnp.asarray(bias, outputs.dtype) / summary.unit / scale
    return norm(jnp.where(present, outputs, 0))[0] * summary.unit * scale
