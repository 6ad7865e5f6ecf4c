"""Training, test and target data side by side."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxtheory.batching import num_shards
from jaxtheory.collapse._accumulator import finalize, of_examples
from jaxtheory.collapse._moments import check_feature_matrix
from jaxtheory.collapse._record import CollapseStatistics
from jaxtheory.collapse._second_pass import reference as prepare
from jaxtheory.collapse._second_pass import second_pass_over
from jaxtheory.collapse._statistics import statistics


class AcrossSets(NamedTuple):
    """Examples of one set, measured with the class means of the reference set.

    ``mu_k`` and ``Sigma_B`` are those of the reference; ``N`` counts the examples of
    the set that could be used.

    Attributes:
        nc1: ``tr(S Sigma_B^+) / K`` (or without ``1/K``) with ``S = (1/N) sum_i (h_i -
            mu_{y_i}) (h_i - mu_{y_i})^T``: scatter of the set around the reference's
            means, so what the means moved by counts too. Infinite where the
            reference's means coincide.
        nearest_mean_error: Fraction of the set's examples whose nearest ``mu_k`` is not
            that of their class: the error of the reference's nearest-mean classifier.
        nc4: Fraction of the set's examples where the classifier's class is not that of
            the nearest ``mu_k``. None without a classifier.
        mean_shift: ``(1/K) sum_k ||mu_k' - mu_k||^2 / tr(Sigma_B)`` with ``mu_k'`` the
            set's own class means, over the classes that both have.
        num_left_out: Examples not used: not finite, a (traced) label out of range, or
            of a class that the reference does not have.
    """

    nc1: Float[Array, ""]
    nearest_mean_error: Float[Array, ""]
    nc4: Float[Array, ""] | None
    mean_shift: Float[Array, ""]
    num_left_out: Int[Array, ""]


class SetStatistics(NamedTuple):
    """The collapse of one set of examples.

    Attributes:
        own: Everything measured with the set's own class means.
        across: Measured with the reference's class means; None for the reference
            itself and for sets of other classes.
    """

    own: CollapseStatistics
    across: AcrossSets | None


def compare_sets(
    sets: Mapping[str, tuple[Any, Any]],
    *,
    reference: str,
    other_classes: Sequence[str] = (),
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None] | None = None,
    num_classes: int | None = None,
    normalize_by_classes: bool = True,
    class_weights: str = "equal",
    cdnv: str = "average",
    batch_size: int | None = 512,
) -> dict[str, SetStatistics]:
    """Measure collapse on several sets, with their own means and with one set's.

    Collapse on training data need not be seen on test data (Hui et al. 2022), and "test
    NC1" has meant two things: scatter of test examples around *their own* class means
    (`own`), or around those of the training data (`across`). Both are here, by name.

    Args:
        sets: Features ``[n, d]`` and labels of each set, by name.
        reference: Name of the set whose class means the others are measured with,
            usually the training data.
        other_classes: Names of sets whose labels name other classes than those of the
            reference (a transfer target): measured with their own means alone, without
            the classifier.
        classifier: As in `statistics`.
        num_classes: As in `statistics`, of all sets that share their classes. None
            takes the largest label of any of them, plus one.
        normalize_by_classes: As in `statistics`.
        class_weights: As in `statistics`; in `across` of the reference's counts.
        cdnv: As in `statistics`.
        batch_size: As in `statistics`.

    Returns:
        The statistics of each set, by name.

    Raises:
        ValueError: A name is not one of `sets`, or an input does not fit as in
            `statistics`.

    Example:
        >>> import jax.numpy as jnp
        >>> labels = jnp.array([0, 0, 1, 1])
        >>> train = jnp.array([[-1.1], [-0.9], [0.9], [1.1]])
        >>> both = {"train": (train, labels), "test": (train + 0.5, labels)}
        >>> test = compare_sets(both, reference="train")["test"]
        >>> assert test.across is not None
        >>> print(f"{test.own.nc1:.4f} {test.across.nc1:.4f}")
        0.0050 0.1300

    References:
        Hui, Belkin & Nakkiran 2022, arXiv:2202.08384.
    """
    _check_names(sets, reference, other_classes)
    shared = [name for name in sets if name not in other_classes]
    dims = {}
    for name in sets:
        features = sets[name][0]
        check_feature_matrix(features, f"sets[{name!r}][0]")
        dims[name] = jnp.shape(features)[1]
        if name in shared and dims[name] != dims[shared[0]]:
            raise ValueError(
                f"`sets[{name!r}][0]` must have the {dims[shared[0]]} features of "
                f"`sets[{shared[0]!r}][0]`, but has {dims[name]}."
            )
    options: dict[str, Any] = {
        "normalize_by_classes": normalize_by_classes,
        "class_weights": class_weights,
        "cdnv": cdnv,
        "batch_size": batch_size,
    }
    common = {**options, "classifier": classifier, "num_classes": num_classes}
    if classifier is None and num_classes is None:
        common["num_classes"] = _most_classes([sets[name][1] for name in shared])
    own = {}
    for name in sets:
        own[name] = statistics(*sets[name], **(common if name in shared else options))
    count = own[reference].class_counts.size
    means = _means(
        *sets[reference],
        count,
        class_weights,
        (batch_size, num_shards(sets[reference])),
    )
    found = {}
    for name in sets:
        across = None
        if name in shared and name != reference:
            loop = (batch_size, num_shards(sets[name]))
            scale = bool(normalize_by_classes)
            across = _across(means, classifier, *sets[name], scale, loop)
        found[name] = SetStatistics(own[name], across)
    return found


def _check_names(sets, reference, other_classes):
    """Raise unless every name is that of a set of pairs."""
    if not isinstance(sets, Mapping) or not all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in sets.values()
    ):
        raise ValueError(
            "`sets` must be a dictionary of pairs (features, labels), but was "
            f"{jax.tree.structure(sets)}."
        )
    if isinstance(other_classes, str):
        raise ValueError(
            "`other_classes` must be a sequence of names, but was the string "
            f"{other_classes!r}. Pass `({other_classes!r},)`."
        )
    for name in (reference, *other_classes):
        if name not in sets:
            raise ValueError(f"`sets` must hold {name!r}, but holds {list(sets)}.")
    if reference in other_classes:
        raise ValueError(
            f"`other_classes` must not hold the reference {reference!r} itself."
        )


def _most_classes(labels):
    """The largest label of any set plus one; None where one is traced."""
    if any(isinstance(each, Tracer) for each in labels):
        return None
    with jax.ensure_compile_time_eval():
        return max(2, *(int(jnp.max(jnp.asarray(each))) + 1 for each in labels))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _means(features, labels, num_classes, class_weights, loop):
    data = (jnp.asarray(features), jnp.asarray(labels))
    return prepare(finalize(of_examples(*data, num_classes, *loop)), class_weights)


@partial(jax.jit, static_argnums=(4, 5))
def _across(means, classifier, features, labels, normalize_by_classes, loop):
    """One set around the class means of another."""
    data = (jnp.asarray(features), jnp.asarray(labels))
    summary, between = means.summary, means.between
    sums = second_pass_over(means, classifier, data, *loop)
    dtype = summary.means.dtype
    total = jnp.maximum(jnp.sum(sums.counts), 1).astype(dtype)
    classes = jnp.sum(summary.counts > 0) if normalize_by_classes else 1
    separates = between.rank > 0
    other = finalize(of_examples(*data, summary.counts.size, *loop))
    both = (summary.counts > 0) & (other.counts > 0)
    # In units of the reference; origins first, because they are near each other.
    scale = other.unit / summary.unit
    shift = (other.origin * scale - summary.origin)[None, :]
    shift = shift + other.means * scale - summary.means
    squares = jnp.where(both, jnp.sum(jnp.square(shift), axis=1), 0)
    moved = jnp.sum(squares) / jnp.maximum(jnp.sum(both), 1)
    ratio = moved / jnp.where(separates, between.trace, 1)
    defined = lambda value: jnp.where(separates, value, jnp.nan)
    disagree = sums.disagree
    return AcrossSets(
        nc1=jnp.where(separates, sums.scatter / total / classes, jnp.inf),
        nearest_mean_error=defined(sums.far.astype(dtype) / total),
        nc4=None if disagree is None else defined(disagree.astype(dtype) / total),
        mean_shift=jnp.where(separates, ratio, jnp.inf),
        num_left_out=data[1].size - jnp.sum(sums.counts),
    )
