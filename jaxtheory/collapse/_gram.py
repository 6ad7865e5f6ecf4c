"""Variability collapse of features that are known by their kernel alone."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory.batching import check_examples
from jaxtheory.collapse._moments import check_feature_matrix, check_labels
from jaxtheory.collapse._record import check_word

_matmul = partial(jnp.matmul, precision="highest")


def nc1_ratio_from_gram(
    gram: Float[Array, "n n"],
    labels: Integer[Array, " n"],
    *,
    class_weights: str = "equal",
    num_classes: int | None = None,
) -> Float[Array, ""]:
    """Measure ``tr(Sigma_W) / tr(Sigma_B)`` from inner products of features.

    For kernels whose features are not at hand, or infinitely many: a kernel's Gram
    matrix ``Q`` holds all that both traces need. With ``q_kl`` the mean of ``Q`` over
    the examples of classes ``k`` and ``l``,

        tr(Sigma_W) = tr(Q)/N - sum_k (n_k/N) q_kk
        tr(Sigma_B) = sum_k a_k q_kk - sum_kl a_k a_l q_kl

    with ``a_k = 1/K`` or ``n_k/N``. Published code for kernels mixes averages over
    examples and over classes, which agree for balanced classes only.

    Args:
        gram: Inner products of the features of all pairs of examples; symmetric.
        labels: Class index of each example.
        class_weights: ``"equal"`` or ``"counts"``, as in `statistics`.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        The ratio, `statistics` ``.nc1_ratio`` of any features with these inner
        products. Infinite where the class means coincide, NaN where an entry is not
        finite or a (traced) label out of range.

    Raises:
        ValueError: `gram` is not square or floating-point, `class_weights` is another
            word, or labels do not fit.

    Memory:
        Two copies of the matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> found = nc1_ratio_from_gram(jnp.eye(30), jnp.arange(30) % 3)
        >>> print(f"{found:.4f}")
        13.5000

    References:
        Kothapalli & Tirer 2024, arXiv:2406.02105 (kernels of two-layer networks, for
        balanced classes).
    """
    check_word("class_weights", class_weights)
    num_classes = _check_gram(gram, labels, num_classes)
    return _ratio(gram, labels, class_weights, num_classes)


def _check_gram(gram: Any, labels: Any, num_classes: int | None) -> int:
    """The number of classes, of a square matrix and labels that fit."""
    check_feature_matrix(gram, "gram")
    shape = jnp.shape(gram)
    if shape[0] != shape[1]:
        raise ValueError(
            "`gram` must be square, inner products of all pairs of examples, but has "
            f"shape {shape}. Of features, take `statistics`."
        )
    check_examples(gram=gram, labels=labels)
    return check_labels(labels, num_classes)


@partial(jax.jit, static_argnums=(2, 3))
def _ratio(gram, labels, class_weights, num_classes):
    gram = jnp.asarray(gram)
    gram = gram.astype(jnp.promote_types(gram.dtype, jnp.float32))
    labels = jnp.asarray(labels).astype(jnp.int32)
    n = labels.size
    valid = jnp.all((labels >= 0) & (labels < num_classes))
    # Centred features have the same scatter, and much smaller inner products.
    rows = jnp.mean(gram, axis=0)
    gram = gram - rows[None, :] - (rows - jnp.mean(rows))[:, None]
    member = (labels[None, :] == jnp.arange(num_classes)[:, None]).astype(gram.dtype)
    counts = jnp.sum(member, axis=1)
    average = member / jnp.maximum(counts, 1)[:, None]
    blocks = _matmul(_matmul(average, gram), average.T)
    weights = counts if class_weights == "counts" else (counts > 0).astype(gram.dtype)
    weights = weights / jnp.maximum(jnp.sum(weights), 1)
    same = jnp.diagonal(blocks)
    within = jnp.trace(gram) / n - _matmul(counts / n, same)
    between = _matmul(weights, same) - _matmul(weights, _matmul(blocks, weights))
    noise = 8 * jnp.finfo(gram.dtype).eps * jnp.max(jnp.abs(same))
    apart = ~(between <= noise)  # and not NaN, which has to stay NaN
    ratio = jnp.where(apart, within / jnp.where(apart, between, 1), jnp.inf)
    return jnp.where(valid, ratio, jnp.nan)
