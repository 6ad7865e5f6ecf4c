"""How well features of target data promise to transfer: scores without training."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_examples, check_number
from jaxtheory.collapse._evidence import evidence_of
from jaxtheory.collapse._moments import check_features, check_labels
from jaxtheory.collapse._ncti import CollapseTerms, collapse_terms
from jaxtheory.collapse._projection import (
    Projection,
    explained_classes,
    project,
    variability_collapse,
)
from jaxtheory.collapse._separation import (
    LayerNames,
    check_is_layers,
    check_layers,
)

_matmul = partial(jnp.matmul, precision="highest")


class TransferScores(NamedTuple):
    """Scores of features with target labels. Higher is better but for the first.

    All are of the examples given, without a held-out part: with as many features as
    examples, features without any information reach the best H-score.

    Attributes:
        variability_collapse_index: ``VCI = 1 - tr(Sigma_T^+ Sigma_B) / min(d, K-1)``
            with classes weighted by their examples; lower is better. NaN where all
            features are equal.
        h_score: ``tr(Sigma_T^+ Sigma_B)``; ``(K-1) (1 - VCI)`` where ``d >= K-1``.
        log_evidence: LogME; see `log_evidence`.
        trans_rate: ``R(Z) - sum_k (n_k/n) R(Z_k)``, ``R(Z) = 1/2 log det(I + Z^T Z /
            (n eps))`` of features centred once, by the mean of all: coding rate gained
            by knowing the classes.
        collapse_terms: What `collapse_transferability` (NCTI) compares over a pool.
        evidence_converged: Whether `log_evidence` is at its maximum.
        num_left_out: Examples left out, for a feature that is not finite or a traced
            label out of range. Where it is not 0, `log_evidence` is NaN.
    """

    variability_collapse_index: Float[Array, ""]
    h_score: Float[Array, ""]
    log_evidence: Float[Array, ""]
    trans_rate: Float[Array, ""]
    collapse_terms: CollapseTerms
    evidence_converged: Array
    num_left_out: Int[Array, ""]


class LayerChoice(NamedTuple):
    """The layer whose features promise best.

    Attributes:
        best: Index of the best layer.
        scores: The score of each layer; higher is better. Shape ``[l]``.
        names: Names of the layers, where a mapping gave them.
    """

    best: Int[Array, ""]
    scores: Float[Array, " l"]
    names: LayerNames | None


def transfer_scores(
    features: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
    distortion: float = 1e-4,
) -> TransferScores:
    """Score features for transfer to labels, from one decomposition of them.

    Which sign the relation between collapse and transfer has is disputed: more collapse
    on *target* data goes with better transfer (Li et al.), while of *source* data
    more variability can. Feed target data.

    Args:
        features: Features of target examples. Trailing axes are flattened.
        labels: Target classes, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.
        distortion: ``eps`` of the coding rate, in squared units of the features: it
            matters how they are scaled.

    Returns:
        The scores.

    Raises:
        ValueError: Shapes or dtypes do not fit, or `distortion` is not positive.

    Memory:
        Four copies of the features; time ``O(n d min(n, d))`` and ``k`` determinants of
        ``min(d, m)``, ``m`` the largest class (``n`` where labels are traced).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(60) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (60, 4))
        >>> scores = transfer_scores(jnp.eye(3, 4)[labels] + 0.1 * noise, labels)
        >>> vci, h_score = scores.variability_collapse_index, scores.h_score
        >>> bool(jnp.isclose(h_score, 2 * (1 - vci))), bool(h_score > 1.8)
        (True, True)

    References:
        Xu & Liu 2023 (VCI), ICML; Bao et al. 2019 (H-score), ICIP; You et al. 2022,
        arXiv:2110.10545 (LogME); Huang et al. 2022, arXiv:2106.09362 (TransRate; its
        published code weighs classes by ``1/K``); Wang et al. 2023 (NCTI), ICCV; Li et
        al. 2022, arXiv:2212.12206.
    """
    check_features(features)
    check_examples(features=features, labels=labels)
    check_number("distortion", distortion, lambda e: 0 < e < float("inf"), "positive")
    num_classes = check_labels(labels, num_classes)
    largest = _largest_class(labels, num_classes)
    return _scores(features, labels, distortion, num_classes, largest)


def choose_layer(
    layers: Mapping[str, Float[Array, "n ..."]] | Sequence[Float[Array, "n ..."]],
    labels: Integer[Array, " n"],
    *,
    score: Literal[
        "log_evidence", "h_score", "trans_rate", "variability_collapse"
    ] = "log_evidence",
    num_classes: int | None = None,
) -> LayerChoice:
    """Choose the layer to transfer from: that of the highest score on target data.

    Args:
        layers: Features of each layer for the same target examples.
        labels: Target classes, in ``[0, k)``.
        score: A field of `TransferScores`; "variability_collapse" is ``1 - VCI``. Only
            "log_evidence" charges for the number of features, so that layers of unequal
            width can be compared.
        num_classes: As in `transfer_scores`.

    Returns:
        The choice, the first of equal ones. A NaN score is never chosen.

    Raises:
        ValueError: There is no layer, one does not fit, or `score` is another word.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(60) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (60, 4))
        >>> layers = [jnp.eye(3, 4)[labels] + s * noise for s in (1.0, 0.2, 0.5)]
        >>> print(choose_layer(layers, labels).best)
        1
    """
    words = ("log_evidence", "h_score", "trans_rate", "variability_collapse")
    if score not in words:
        raise ValueError(f"`score` must be one of {words}, but was {score!r}.")
    check_is_layers(layers)
    if len(layers) == 0:
        raise ValueError("`layers` must hold at least one layer, but is empty.")
    names, features, num_classes = check_layers(layers, labels, num_classes)
    found = [transfer_scores(h, labels, num_classes=num_classes) for h in features]
    if score == "variability_collapse":
        scores = [1 - one.variability_collapse_index for one in found]
    else:
        scores = [getattr(one, score) for one in found]
    stacked = jnp.stack(scores)
    best = jnp.argmax(jnp.where(jnp.isnan(stacked), -jnp.inf, stacked))
    return LayerChoice(best, stacked, names)


def _largest_class(labels, num_classes):
    """Examples in the largest class, or in all where labels are traced."""
    if isinstance(labels, Tracer):
        return labels.shape[0]
    with jax.ensure_compile_time_eval():
        return int(jnp.bincount(jnp.asarray(labels), length=num_classes).max())


@partial(jax.jit, static_argnums=(3, 4))
def _scores(features, labels, distortion, num_classes, largest):
    """`transfer_scores`, of checked arguments."""
    projection = project(features, labels, num_classes)
    dimension = features[0].size
    rows, used = _class_rows(projection, num_classes, largest)
    evidence = evidence_of(projection, dimension)
    return TransferScores(
        variability_collapse_index=variability_collapse(projection, dimension),
        h_score=explained_classes(projection),
        log_evidence=evidence.value,
        trans_rate=_trans_rate(projection, rows, used, distortion),
        collapse_terms=collapse_terms(projection, rows, used),
        evidence_converged=evidence.converged,
        num_left_out=projection.num_left_out,
    )


def _class_rows(projection: Projection, num_classes, largest):
    """Indices of the examples of each class, padded to the largest class."""
    key = jnp.where(projection.used, projection.labels, num_classes)
    order = jnp.argsort(key)
    counts = projection.counts.astype(order.dtype)
    starts = jnp.cumsum(counts) - counts
    place = jnp.arange(largest)[None, :]
    rows = order[jnp.minimum(starts[:, None] + place, order.size - 1)]
    return rows, place < counts[:, None]


def _trans_rate(projection, rows, used, distortion):
    """Coding rate of all features less that of the classes."""
    total, counts = jnp.sum(projection.counts), projection.counts
    epsilon = distortion / jnp.square(projection.unit)
    whole = 0.5 * jnp.sum(jnp.log1p(jnp.square(projection.values) / (total * epsilon)))

    def rate(of_class):
        indices, keep, count = of_class
        scores = jnp.where(keep[:, None], projection.scores[indices], 0)
        # The smaller of the two Gram matrices has the same determinant.
        thin = scores if scores.shape[0] > scores.shape[1] else scores.T
        gram = _matmul(thin.T, thin) / (jnp.maximum(count, 1) * epsilon)
        identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
        return 0.5 * jnp.linalg.slogdet(identity + gram)[1]

    rates = jax.lax.map(rate, (rows, used, counts))
    return whole - jnp.sum(counts * rates) / total
