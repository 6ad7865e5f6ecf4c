"""Neural collapse of features and classifier: NC1 to NC4."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory.batching import check_batch_size, check_examples, num_shards
from jaxtheory.collapse._accumulator import finalize, of_examples
from jaxtheory.collapse._moments import (
    check_feature_matrix,
    check_floating,
    check_labels,
)
from jaxtheory.collapse._record import (
    CollapseStatistics,
    Conventions,
    check_word,
    report,
)
from jaxtheory.collapse._second_pass import reference, second_pass_over


def statistics(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None] | None = None,
    num_classes: int | None = None,
    normalize_by_classes: bool = True,
    class_weights: str = "equal",
    cdnv: str = "average",
    batch_size: int | None = 512,
) -> CollapseStatistics:
    """Measure neural collapse NC1 to NC4 of last-layer features.

    The scatters are

        Sigma_W = (1/N) sum_i (h_i - mu_{y_i}) (h_i - mu_{y_i})^T        per example
        Sigma_B = (1/K) sum_k (mu_k - mu_G) (mu_k - mu_G)^T              per class

    so under imbalance every class weighs the same in ``Sigma_B``, and its centre is the
    mean of class means. ``class_weights="counts"`` puts ``n_k/N`` in place of ``1/K``
    in both, as `separation` does. Classes without examples take no part: ``K`` counts
    those that occur.

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
        class_weights: What a class weighs in ``mu_G`` and ``Sigma_B``: ``"equal"``
            (``1/K``, Zhu et al.) or ``"counts"`` (``n_k/N``, He & Su; then ``Sigma_W +
            Sigma_B`` is the covariance of all examples). Same for balanced classes.
        cdnv: Which of three conventions `cdnv` has, as the function `cdnv` explains.
        batch_size: Examples at a time, on each device; None takes all at once, which is
            slower on CPUs.

    Returns:
        The statistics, in the precision of the features (at least float32). Where all
        class means coincide, `rank` is 0, `nc1` infinite and NC2 to NC4 are NaN; where
        no example could be used, traces and errors are NaN too. A class with one
        example adds nothing to ``Sigma_W``. With ``K > d + 1`` no simplex frame fits
        and `nc2` cannot reach 0. Batches, their order, the numbering
        of classes and sharding change the numbers by rounding alone.

    Raises:
        ValueError: Shapes or dtypes do not fit, `num_classes` is missing or contradicts
            the classifier, concrete labels are out of range or all the same, or an
            option is not one of its words.

    Memory:
        Four arrays ``[k, d]``, and for ``b`` examples at a time three copies of their
        features and ``6 b k`` numbers; no ``d x d`` matrix. Time ``O(n d k + d k^2)``.

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
    check_feature_matrix(features)
    check_examples(features=features, labels=labels)
    num_classes = check_classifier(classifier, jnp.shape(features)[1], num_classes)
    num_classes = check_labels(labels, num_classes)
    check_word("class_weights", class_weights)
    check_word("cdnv", cdnv)
    check_batch_size(batch_size)
    conventions = Conventions(bool(normalize_by_classes), class_weights, cdnv)
    loop = (batch_size, num_shards(features))
    return _statistics(features, labels, classifier, num_classes, conventions, loop)


def check_classifier(
    classifier: Any, num_features: int, num_classes: int | None
) -> int | None:
    """Return the number of classes after checking that the classifier's shapes fit.

    Args:
        classifier: What the user passed.
        num_features: Number of features.
        num_classes: Number of classes, or None.

    Returns:
        The number of classes; None where neither argument says it.

    Raises:
        ValueError: It is no pair of floating-point arrays, or a shape does not fit.
    """
    if classifier is None:
        return num_classes
    if not isinstance(classifier, tuple | list) or len(classifier) != 2:
        raise ValueError(
            "`classifier` must be None or a pair `(weight, bias)`, but was a "
            f"{type(classifier).__name__}. Pass `(weight, None)` if there is no bias; "
            "of a Flax layer, pass `(kernel.T, bias)`."
        )
    check_floating(classifier[0], "classifier[0]")
    shape, bias = classifier[0].shape, classifier[1]
    if len(shape) != 2 or shape[1] != num_features:
        flipped = len(shape) == 2 and shape[0] == num_features
        fix = " This looks like a Flax kernel [d, k]: transpose it." if flipped else ""
        raise ValueError(
            "`classifier[0]` (the weight) must have shape [k, d] with d = "
            f"{num_features} features, but has shape {shape}.{fix}"
        )
    if bias is not None:
        check_floating(bias, "classifier[1]")
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


@partial(jax.jit, static_argnums=(3, 4, 5))
def _statistics(features, labels, classifier, num_classes, conventions, loop):
    """`statistics`, of checked arguments."""
    batch_size, lanes = loop
    data = (jnp.asarray(features), jnp.asarray(labels))
    summary = finalize(of_examples(*data, num_classes, batch_size, lanes))
    means = reference(summary, conventions.class_weights)
    sums = second_pass_over(means, classifier, data, batch_size, lanes)
    return report(means, sums, classifier, conventions)
