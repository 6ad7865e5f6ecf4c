"""The neural collapse transferability index: three numbers of a model, and a pool."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.collapse._projection import Projection

_matmul = partial(jnp.matmul, precision="highest")

_COMPONENTS, _LEADING, _SHRINKAGE = 64, 32, 1e-10


class CollapseTerms(NamedTuple):
    """What the index of a model is made of; `collapse_transferability` ranks a pool.

    Attributes:
        feature_rank: Nuclear norm of the features in the ``K - 1`` discriminant
            directions, ``K`` the classes that occur, in units where classes have
            covariance 1 there. Where classes have no variance in a direction it says
            how small rounding is.
        nearest_centre: Mean posterior probability of the true class.
        variability: Logarithm of the sum over classes of the nuclear norm of the
            posterior probabilities of their examples; lower is more collapsed.
    """

    feature_rank: Float[Array, "..."]
    nearest_centre: Float[Array, "..."]
    variability: Float[Array, "..."]


def collapse_transferability(terms: CollapseTerms) -> Float[Array, " m"]:
    """Rank a pool of models by how collapsed their features of target data are (NCTI).

    ``mm(feature_rank) + mm(nearest_centre) - mm(variability)``, where ``mm`` maps the
    pool's smallest value to 0 and its largest to 1. The index of a model depends on the
    pool; that of one model alone is not defined.

    Args:
        terms: The terms of each model (`TransferScores.collapse_terms`) stacked, with
            shape ``[m]`` each: ``jax.tree.map(lambda *a: jnp.stack(a), *terms)``.

    Returns:
        One score for each model, between -1 and 2; higher promises better transfer. A
        term that is the same in all models counts as 0.

    Raises:
        ValueError: The terms are not vectors of one length of at least two.

    Example:
        >>> import jax.numpy as jnp
        >>> terms = CollapseTerms(*jnp.array([[1.0, 3.0], [0.2, 0.8], [2.0, 1.0]]))
        >>> print(collapse_transferability(terms))
        [-1.  2.]

    References:
        Wang et al. 2023, "How far pre-trained models are from neural collapse on the
        target dataset informs their transferability", ICCV.
    """
    shapes = {jnp.shape(term) for term in terms}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape[0] < 2:
        raise ValueError(
            "`terms` must hold vectors of one length, with an entry for each of at "
            "least two models, but has shapes "
            f"{[jnp.shape(term) for term in terms]}."
        )
    return _rescale(terms[0]) + _rescale(terms[1]) - _rescale(terms[2])


def _rescale(values):
    low, high = jnp.min(values), jnp.max(values)
    spread = high - low
    return jnp.where(spread == 0, 0, (values - low) / jnp.where(spread == 0, 1, spread))


def collapse_terms(
    projection: Projection, class_rows: Array, row_used: Array
) -> CollapseTerms:
    """The terms from a projection.

    The first 64 principal components, their within-class covariance shrunk towards a
    multiple of the identity by ``max(exp(-sum of the 32 largest variances), 1e-10)``,
    and linear discriminant analysis with it.

    Args:
        projection: Of the features.
        class_rows: Indices of the examples of each class. Shape ``[k, m]``.
        row_used: Which of them are not padding. Shape ``[k, m]``.

    Returns:
        The terms.
    """
    p = min(_COMPONENTS, projection.values.size)
    scores, counts = projection.scores[:, :p], projection.counts
    total = jnp.sum(counts)
    means = projection.sums[:, :p] * projection.values[None, :p]
    means = means / jnp.maximum(counts, 1)[:, None]
    residuals = jnp.where(
        projection.used[:, None], scores - means[projection.labels], 0
    )
    within = _matmul(residuals.T, residuals) / total
    weighted = means * jnp.sqrt(counts / total)[:, None]
    between = _matmul(weighted.T, weighted)

    # In the units of the features, as published: the exponential has no other unit.
    variances = jnp.square(projection.values[:_LEADING] * projection.unit)
    variances = variances / jnp.maximum(total - 1, 1)
    shrink = jnp.maximum(jnp.exp(-jnp.sum(variances)), _SHRINKAGE)
    whiten = _whitener(_shrunk(within, shrink))
    rotated = _matmul(_matmul(whiten.T, _shrunk(between, shrink)), whiten)
    directions = jnp.linalg.eigh(rotated)[1][:, ::-1]
    discriminant = jnp.arange(p) < jnp.sum(counts > 0) - 1
    directions = jnp.where(discriminant[None, :], directions, 0)
    features = _matmul(_matmul(scores, whiten), directions)

    white, centres = _matmul(scores, whiten), _matmul(means, whiten)
    logits = _matmul(white, centres.T)
    logits = logits - 0.5 * jnp.sum(jnp.square(centres), axis=1)[None, :]
    prior = jnp.log(jnp.maximum(counts, 1) / total)
    logits = jnp.where((counts > 0)[None, :], logits + prior[None, :], -jnp.inf)
    posterior = jax.nn.softmax(logits, axis=1)
    true = jnp.take_along_axis(posterior, projection.labels[:, None], axis=1)[:, 0]

    def nuclear(rows_and_used):
        rows, used = rows_and_used
        return _nuclear_norm(jnp.where(used[:, None], posterior[rows], 0))

    norms = jax.lax.map(nuclear, (class_rows, row_used))
    return CollapseTerms(
        feature_rank=_nuclear_norm(features),
        nearest_centre=jnp.sum(jnp.where(projection.used, true, 0)) / total,
        variability=jnp.log(jnp.sum(norms)),
    )


def _shrunk(covariance, shrink):
    size = covariance.shape[0]
    level = jnp.trace(covariance) / size * jnp.eye(size, dtype=covariance.dtype)
    return (1 - shrink) * covariance + shrink * level


def _whitener(covariance):
    """``C^(-1/2)`` up to a rotation; directions within rounding count as rounding."""
    values, vectors = jnp.linalg.eigh(covariance)
    floor = jnp.finfo(values.dtype).eps * values.size * values[-1]
    floor = jnp.maximum(floor, jnp.finfo(values.dtype).tiny)
    return vectors / jnp.sqrt(jnp.maximum(values, floor))[None, :]


def _nuclear_norm(matrix):
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))
