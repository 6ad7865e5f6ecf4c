"""Collapse statistics of data that does not fit into memory."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.batching import check_examples
from jaxtheory.collapse._accumulator import finalize, init, update
from jaxtheory.collapse._moments import (
    check_feature_matrix,
    check_label_vector,
    check_num_classes,
)
from jaxtheory.collapse._record import (
    CollapseStatistics,
    Conventions,
    check_word,
    report,
)
from jaxtheory.collapse._second_pass import reference, second_pass
from jaxtheory.collapse._statistics import check_classifier


def statistics_from_batches(
    batches: Iterable[tuple[Any, Any]] | Callable[[], Iterable[tuple[Any, Any]]],
    *,
    num_classes: int | None = None,
    features_fn: Callable[[Any], Any] | None = None,
    classifier: tuple[Float[Array, "k d"], Float[Array, " k"] | None] | None = None,
    normalize_by_classes: bool = True,
    class_weights: str = "equal",
    cdnv: str = "average",
) -> CollapseStatistics:
    """Measure neural collapse, going through batches of examples twice.

    The same numbers as `statistics` of all examples at once, to rounding: the first
    pass takes class means and variances with the `accumulator`, the second projects on
    the class means. The batches may come in another order the second time.

    Args:
        batches: Pairs ``(features, labels)``, or with `features_fn` pairs ``(x,
            labels)``: a list, a data loader, anything that starts anew each time one
            iterates over it, or a function that starts anew each time it is called,
            such as ``lambda: generator(x, labels)``. Arrays of NumPy or JAX; a new size
            compiles again.
        num_classes: Number of classes; not needed where `classifier` has it.
        features_fn: Maps the first of each pair to features ``[n, d]``, for example
            ``jax.jit(lambda x: model.apply(params, x))``; called twice for each batch.
        classifier: As in `statistics`.
        normalize_by_classes: As in `statistics`.
        class_weights: As in `statistics`.
        cdnv: As in `statistics`.

    Returns:
        The statistics. Labels out of range are left out and counted, as are features
        that are not finite.

    Raises:
        ValueError: `batches` can be gone through only once (a generator) or is empty,
            the second pass holds fewer or more examples than the first, `num_classes`
            is missing, or a batch, the classifier or an option does not fit.

    Memory:
        ``O(k d + k^2)`` beside one batch.

    Example:
        >>> import jax.numpy as jnp
        >>> first = (jnp.array([[-1.1], [0.9]]), jnp.array([0, 1]))
        >>> second = (jnp.array([[1.1], [-0.9]]), jnp.array([1, 0]))
        >>> nc = statistics_from_batches([first, second], num_classes=2)
        >>> print(f"{nc.nc1:.4f} {nc.cdnv:.4f}")
        0.0050 0.0025
    """
    check_word("class_weights", class_weights)
    check_word("cdnv", cdnv)
    _check_batches(batches, num_classes, classifier)
    pairs = lambda: _pairs(_start(batches), features_fn)
    acc, counts = None, [0, 0]
    for features, labels in pairs():
        counts[0] += len(labels)
        if acc is None:
            dim, dtype = features.shape[1], features.dtype
            num_classes = check_classifier(classifier, dim, num_classes)
            dtype = jnp.promote_types(dtype, jnp.float32)
            acc = init(num_classes, dim, dtype=dtype)  # pyright: ignore
        acc = update(acc, features, labels)
    if acc is None:
        raise ValueError("`batches` must hold at least one batch, but was empty.")
    means = jax.jit(reference, static_argnums=1)(finalize(acc), class_weights)
    total = None
    for features, labels in pairs():
        counts[1] += len(labels)
        sums = _second_pass(means, classifier, features, labels)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if counts[0] != counts[1]:
        raise ValueError(
            "`batches` must hold the same examples each time it is gone through, but "
            f"held {counts[0]} and then {counts[1]}. Pass a list or a data loader that "
            "drops none, or a function that makes the generator anew."
        )
    conventions = Conventions(bool(normalize_by_classes), class_weights, cdnv)
    return _report(means, total, classifier, conventions)


_report = partial(jax.jit, static_argnums=3)(report)


@jax.jit
def _second_pass(means, classifier, features, labels):
    return second_pass(means, classifier, features, labels, jnp.ones(labels.shape))


def _start(batches):
    """What one pass goes through."""
    return batches if isinstance(batches, Iterable) else batches()


def _check_batches(batches, num_classes, classifier):
    """Raise unless one can go through the batches twice, and classes are known."""
    once = isinstance(batches, Iterator)
    if once or not (isinstance(batches, Iterable) or callable(batches)):
        raise ValueError(
            "`batches` must be something to iterate over twice, because class means "
            "have to be known before scatter can be projected on them, but was a "
            f"{type(batches).__name__}. Pass a list or a data loader; instead of a "
            "generator, a function that makes it: `lambda: generator(...)`."
        )
    check_num_classes(num_classes)
    if num_classes is None and classifier is None:
        raise ValueError(
            "`num_classes` must be given without a `classifier`, because no batch "
            "needs to hold all classes, but was None. Pass `num_classes=`."
        )


def _pairs(batches, features_fn):
    """Features and labels of each batch, checked."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                "`batches` must hold pairs (features, labels), but holds a "
                f"{type(batch).__name__} of structure {jax.tree.structure(batch)}."
            )
        features, labels = batch
        if features_fn is not None:
            features = features_fn(features)
        check_feature_matrix(features)
        check_examples(features=features, labels=labels)
        check_label_vector(labels)
        yield jnp.asarray(features), jnp.asarray(labels)
