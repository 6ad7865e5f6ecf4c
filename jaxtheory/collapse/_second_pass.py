"""What needs the examples again once class means are known; sums that add over batches.

Everything is a projection of ``h - mu_y`` on the class means: memory ``k d``.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtheory.batching import sum_examples
from jaxtheory.collapse._frames import off_diagonal, squared_distances
from jaxtheory.collapse._moments import (
    BetweenClass,
    ClassSummary,
    between_class,
    usable,
)

_matmul = partial(jnp.matmul, precision="highest")


class Reference(NamedTuple):
    """Class means that examples are measured with.

    Attributes:
        summary: Class counts, means and variances.
        between: The same means, centred and inverted.
        squares: Squared distances between the means. Shape ``[k, k]``.
        apart: Pairs of two classes that occur, farther apart than rounding. Shape
            ``[k, k]``.
    """

    summary: ClassSummary
    between: BetweenClass
    squares: Float[Array, "k k"]
    apart: Bool[Array, "k k"]


def reference(summary: ClassSummary, class_weights: str) -> Reference:
    """Prepare class means for the second pass.

    Args:
        summary: The means.
        class_weights: ``"equal"`` or ``"counts"``: weights of the between-class scatter
            and of the mean that class means are centred by.

    Returns:
        The reference.
    """
    present = summary.counts > 0
    weights = summary.counts if class_weights == "counts" else present
    weights = weights.astype(summary.means.dtype)
    weights = weights / jnp.maximum(jnp.sum(weights), 1)
    between = between_class(summary, weights)
    squares = squared_distances(between.means)
    apart = off_diagonal(present) & (squares > jnp.square(between.rounding))
    return Reference(summary, between, squares, apart)


class SecondPass(NamedTuple):
    """Sums over examples, around the class means ``mu`` of a reference.

    Attributes:
        counts: Examples in each class. Shape ``[k]``.
        scatter: ``sum_i ||(h_i - mu_y) A^+||^2``.
        shift: ``sum_i (h_i - mu_y) A^+`` by class: zero but for rounding where `mu`
            are the means of the same examples. Shape ``[k, k]``.
        gaps: ``sum_i ((h_i - mu_y) . (mu_j - mu_y) / ||mu_j - mu_y||^2)^2`` by class
            and ``j``; zero where the two means coincide. Shape ``[k, k]``.
        gap_shift: The same without the square. Shape ``[k, k]``.
        far: Examples that are nearer to another class mean than to that of their class.
        disagree: Examples that are nearer to another class mean than to that of the
            classifier's class; None without a classifier, as `wrong`.
        wrong: Examples where the classifier's class is not the label.
    """

    counts: Int[Array, " k"]
    scatter: Float[Array, ""]
    shift: Float[Array, "k k"]
    gaps: Float[Array, "k k"]
    gap_shift: Float[Array, "k k"]
    far: Int[Array, ""]
    disagree: Int[Array, ""] | None
    wrong: Int[Array, ""] | None


def second_pass(
    reference: Reference,
    classifier: Any,
    features: Float[Array, "n d"],
    labels: Array,
    weights: Array,
) -> SecondPass:
    """Project a batch of examples on what the class means span.

    Args:
        reference: Class means.
        classifier: None, or weight ``[k, d]`` and bias ``[k]`` or None.
        features: One row for each example.
        labels: Class indices.
        weights: 1 for an example that counts and 0 for one that does not. Shape
            ``[n]``.

    Returns:
        The sums. Left out are examples that are not finite, of a label out of range,
        or of a class that the reference does not have.
    """
    summary, between = reference.summary, reference.between
    num_classes = summary.counts.size
    finite, in_range, labels = usable(features, labels, num_classes)
    present = summary.counts > 0
    used = finite & in_range & present[labels] & (weights > 0)
    dtype = summary.means.dtype
    features = jnp.where(used[:, None], features, 0).astype(dtype)
    centred = features / summary.unit - summary.origin[None, :]
    residuals = jnp.where(used[:, None], centred - summary.means[labels], 0)
    member = used[None, :] & (labels[None, :] == jnp.arange(num_classes)[:, None])
    by_class = lambda rows: _matmul(member.astype(dtype), rows)

    projected = _matmul(residuals, between.pseudo_inverse)
    along = _matmul(residuals, between.means.T)
    gaps = along - jnp.take_along_axis(along, labels[:, None], axis=1)
    # Divided before it is squared: the fourth power of a distance underflows.
    inverse = reference.apart / jnp.where(reference.apart, reference.squares, 1)
    gaps = gaps * inverse[labels]
    # -||h - mu_k||^2 / 2 up to what all k share, around the example's own class mean.
    closeness = along - reference.squares[labels] / 2
    closeness = jnp.where(present[None, :], closeness, -jnp.inf)
    closest = jnp.max(closeness, axis=1)
    closeness_to = lambda which: jnp.take_along_axis(closeness, which[:, None], 1)[:, 0]
    count = lambda which: jnp.sum(used & which)
    disagree = wrong = None
    if classifier is not None:
        outputs = _outputs(classifier, features)
        predicted = jnp.argmax(outputs, axis=1)
        valid = jnp.all(jnp.isfinite(outputs), axis=1)
        disagree = count(~valid | (closeness_to(predicted) < closest))
        wrong = count(~valid | (predicted != labels))
    return SecondPass(
        counts=jnp.sum(member, axis=1),
        scatter=jnp.sum(jnp.square(projected)),
        shift=by_class(projected),
        gaps=by_class(jnp.square(gaps)),
        gap_shift=by_class(gaps),
        far=count(closeness_to(labels) < closest),
        disagree=disagree,
        wrong=wrong,
    )


def second_pass_over(
    reference: Reference,
    classifier: Any,
    data: tuple[Array, Array],
    batch_size: int | None = None,
    lanes: int = 1,
) -> SecondPass:
    """`second_pass` over arrays, a chunk at a time.

    Args:
        reference: Class means.
        classifier: None, or weight and bias.
        data: Features ``[n, d]`` and labels ``[n]``.
        batch_size: Examples per chunk and lane; None takes all at once.
        lanes: Number of shards of the examples.

    Returns:
        The sums.
    """

    def part(chunk, weights):
        features, labels = chunk
        return second_pass(reference, classifier, features, labels, weights)

    return sum_examples(part, data, batch_size=batch_size, lanes=lanes)


def _outputs(classifier, features):
    weight, bias = classifier
    outputs = _matmul(features, jnp.asarray(weight, features.dtype).T)
    if bias is not None:
        outputs = outputs + jnp.asarray(bias, features.dtype)[None, :]
    return outputs


def scatter_ratio_of(sums: SecondPass, rank: Int[Array, ""]) -> Float[Array, ""]:
    """``tr(Sigma_W Sigma_B^+)`` with ``Sigma_W`` around the examples' own means.

    Args:
        sums: Of the same examples that the class means are of.
        rank: Directions in which the class means differ.

    Returns:
        The trace, and infinity where no direction separates the classes.
    """
    counts = jnp.maximum(sums.counts, 1).astype(sums.scatter.dtype)
    # Rounding of the means is not scatter. At strong collapse it is all there is.
    rounding = jnp.sum(jnp.square(sums.shift) / counts[:, None])
    total = jnp.maximum(jnp.sum(sums.counts), 1)
    ratio = jnp.maximum(sums.scatter - rounding, 0) / total
    return jnp.where(rank > 0, ratio, jnp.inf)


def directional_variances(sums: SecondPass) -> Float[Array, "k k"]:
    """``u^T Sigma_i u / ||mu_j - mu_i||^2`` along ``u`` from ``mu_i`` to ``mu_j``.

    Args:
        sums: Of the same examples that the class means are of.

    Returns:
        The directional variances, of class ``i`` in row ``i``.
    """
    counts = jnp.maximum(sums.counts, 1).astype(sums.gaps.dtype)[:, None]
    return jnp.maximum(sums.gaps - jnp.square(sums.gap_shift) / counts, 0) / counts


def distance_normalized(reference: Reference, convention: str) -> Float[Array, "k k"]:
    """Class variances over squared distances of class means.

    Args:
        reference: Class means and variances.
        convention: ``"average"``, ``"ordered"`` or ``"sum"``, as `cdnv` has it.

    Returns:
        The matrix, with numbers of no meaning where means are not apart.
    """
    variances = reference.summary.variances
    squares = jnp.where(reference.apart, reference.squares, 1)
    if convention == "ordered":
        return variances[:, None] / squares
    share = 2 if convention == "average" else 1
    return (variances[:, None] + variances[None, :]) / (share * squares)


def over_pairs(
    matrix: Float[Array, "k k"], reference: Reference
) -> tuple[Float[Array, "k k"], Float[Array, ""]]:
    """Mark the entries without a meaning, and average over ordered pairs of classes.

    Args:
        matrix: A number for each ordered pair.
        reference: Class means.

    Returns:
        The matrix, NaN on the diagonal and for classes that do not occur and infinite
        where two means coincide; and the mean over the other pairs, infinite where
        any two means coincide.
    """
    pairs = off_diagonal(reference.summary.counts > 0)
    matrix = jnp.where(reference.apart, matrix, jnp.inf)
    mean = jnp.sum(jnp.where(pairs, matrix, 0)) / jnp.sum(pairs)
    return jnp.where(pairs, matrix, jnp.nan), mean
