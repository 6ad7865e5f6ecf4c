"""Local elasticity: whom a training step at one example moves, and what follows."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import (
    check_count,
    check_examples,
    check_key,
    check_number,
)
from jaxtheory.collapse._moments import check_features, check_labels

_matmul = partial(jnp.matmul, precision="highest")
_FORMS = ("relative", "kernel")


class LocalElasticity(NamedTuple):
    """How much more a step at an example moves its own class than the others.

    Attributes:
        similarity: What a step at example ``i`` does to example ``j``, in row ``i``.
            NaN where `defined` is False. Shape ``[n, n]``.
        same_class: Mean over ordered pairs of different examples of one class.
        different_class: Mean over pairs of examples of two classes.
        elasticity: The index ``same_class / different_class``; above 1 is locally
            elastic. NaN where both are 0.
        defined: Whether ``Theta(i, i)`` (and, in the kernel form, ``Theta(j, j)``) is
            positive, so that there is something to divide by. Shape ``[n, n]``.
    """

    similarity: Float[Array, "n n"]
    same_class: Float[Array, ""]
    different_class: Float[Array, ""]
    elasticity: Float[Array, ""]
    defined: Bool[Array, "n n"]


def local_elasticity(
    gram: Float[Array, "n n"], labels: Integer[Array, " n"], *, form: str = "relative"
) -> LocalElasticity:
    """Measure local elasticity from one Gram matrix of the tangent kernel.

    To first order a gradient step at ``x`` on a loss of one output changes the output
    at ``x'`` by ``-eta Theta(x, x') l'(x)``. The ratio of the changes at ``x'`` and at
    ``x`` has neither the step length nor the residual ``l'(x)``, so that it is also
    defined where the residual is zero and both changes are:

        relative   |Theta(x, x')| / Theta(x, x)
        kernel     Theta(x, x') / sqrt(Theta(x, x) Theta(x', x'))

    The relative form is not symmetric: rows are the examples that are trained on. For
    models of several outputs, the Gram matrix of the trace of the kernel is a summary;
    `elasticity_of_changes` takes the changes of an actual step.

    Args:
        gram: Tangent kernel of all pairs of examples, from
            `kernels.empirical_ntk(..., outputs="trace")` for example.
        labels: Class index of each example.
        form: ``"relative"`` or ``"kernel"``.

    Returns:
        Similarities and index, in the precision of the Gram matrix (at least float32).

    Raises:
        ValueError: The Gram matrix is not square, labels do not fit, all are the same,
            or `form` is another word.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[2.0, 1.5, 0.3], [1.5, 2.0, 0.3], [0.3, 0.3, 2.0]])
        >>> found = local_elasticity(gram, jnp.array([0, 0, 1]))
        >>> print(f"{found.same_class:.3f} {found.elasticity:.3f}")
        0.750 5.000

    References:
        He & Su 2020, arXiv:1910.06943 (relative and kernel similarity).
    """
    _check_square("gram", gram)
    check_examples(gram=gram, labels=labels)
    check_labels(labels, None if not isinstance(labels, Tracer) else 2)
    if form not in _FORMS:
        raise ValueError(f"`form` must be one of {_FORMS}, but was {form!r}.")
    return _local_elasticity(gram, labels, form)


def elasticity_of_changes(
    changes: Float[Array, "n n ..."], labels: Integer[Array, " n"]
) -> LocalElasticity:
    """Measure local elasticity from what actual training steps changed.

    Row ``i`` holds ``f(x_j; theta_i) - f(x_j; theta)`` for all ``j``, where ``theta_i``
    is one step at example ``i`` alone. The similarity is

        ||Delta f(x_j)|| / ||Delta f(x_i)|| ,

    not defined, and left out of the means, where the step at ``i`` changed nothing at
    ``i``: a residual of zero gives 0/0.

    Args:
        changes: Changes of the outputs; trailing axes are outputs.
        labels: Class index of each example.

    Returns:
        As `local_elasticity`.

    Raises:
        ValueError: The first two axes differ, or labels do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> changes = jnp.array([[4.0, 2.0, 1.0], [2.0, 4.0, -1.0], [0.0, 0.0, 0.0]])
        >>> found = elasticity_of_changes(changes, jnp.array([0, 0, 1]))
        >>> print(f"{found.elasticity:.3f} {found.defined[:, 0].tolist()}")
        2.000 [True, True, False]

    References:
        He & Su 2020, arXiv:1910.06943 (relative similarity).
    """
    _check_square("changes", changes)
    check_examples(changes=changes, labels=labels)
    check_labels(labels, None if not isinstance(labels, Tracer) else 2)
    n = jnp.shape(changes)[0]
    return _elasticity_of_changes(jnp.reshape(changes, (n, n, -1)), labels)


def _check_square(name: str, array: Any) -> None:
    """Raise unless `array` is floating-point and its first two axes are equal."""
    check_features(array, name)
    shape = jnp.shape(array)
    too_many = name == "gram" and len(shape) != 2
    if len(shape) < 2 or shape[0] != shape[1] or too_many:
        raise ValueError(
            f"`{name}` must have a row and a column for every example, but has shape "
            f"{shape}. Evaluate it on all pairs of the same examples."
        )


@partial(jax.jit, static_argnums=2)
def _local_elasticity(gram, labels, form):
    """`local_elasticity`, of checked arguments."""
    gram = gram.astype(jnp.promote_types(gram.dtype, jnp.float32))
    diagonal = jnp.diagonal(gram)
    positive = diagonal > 0
    safe = jnp.where(positive, diagonal, 1)
    ones = jnp.ones_like(positive)
    if form == "relative":
        return _index(jnp.abs(gram) / safe[:, None], positive, ones, labels)
    roots = jnp.sqrt(safe)
    return _index(gram / roots[:, None] / roots[None, :], positive, positive, labels)


@jax.jit
def _elasticity_of_changes(changes, labels):
    """`elasticity_of_changes`, of checked arguments."""
    changes = changes.astype(jnp.promote_types(changes.dtype, jnp.float32))
    unit = jnp.max(jnp.abs(changes), axis=(1, 2), keepdims=True)
    norms = jnp.linalg.norm(changes / jnp.where(unit > 0, unit, 1), axis=2)
    own = jnp.diagonal(norms)
    ratios = norms / jnp.where(own > 0, own, 1)[:, None]
    return _index(ratios, own > 0, jnp.ones_like(own, bool), labels)


def _index(similarity, rows, columns, labels):
    """Means of the similarity within and between classes, over defined pairs."""
    defined = rows[:, None] & columns[None, :]
    same = labels[:, None] == labels[None, :]
    others = ~jnp.eye(labels.size, dtype=bool)
    mean = lambda pairs: jnp.sum(jnp.where(pairs, similarity, 0)) / jnp.sum(pairs)
    within, between = mean(defined & same & others), mean(defined & ~same)
    similarity = jnp.where(defined, similarity, jnp.nan)
    return LocalElasticity(similarity, within, between, within / between, defined)


class LocallyElasticPath(NamedTuple):
    """A path of the locally elastic stochastic differential equation.

    Attributes:
        times: Times of the records; the first is 0. Shape ``[r]``.
        means: Class means; NaN of a class that does not occur, which nothing else
            counts. Shape ``[r, k, d]``.
        separation: Root mean square distance of class means from their mean, over the
            root mean square distance of features from their class mean. Shape ``[r]``.
        predicted_separation: Its prediction from the same start without the randomness
            of the means; the criterion is whether it grows. Shape ``[r]``.
        separable: Whether `predicted_separation` grows without bound: intra- above
            inter-class impact.
        final: Features at the end. Shape ``[n, d]``.
        class_counts: Features of each class. Shape ``[k]``.
    """

    times: Float[Array, " r"]
    means: Float[Array, "r k d"]
    separation: Float[Array, " r"]
    predicted_separation: Float[Array, " r"]
    separable: Bool[Array, ""]
    final: Float[Array, "n d"]
    class_counts: Int[Array, " k"]


def locally_elastic_sde(
    features: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    intra_class: Real[Array, ""] | float | int,
    inter_class: Real[Array, ""] | float | int,
    noise: Real[Array, ""] | float | int,
    duration: Real[Array, ""] | float | int,
    num_steps: int,
    record_every: int = 1,
    num_classes: int | None = None,
    key: KeyArray,
) -> LocallyElasticPath:
    """Simulate features under locally elastic training, in the isotropic model.

    Each step of training is at a random example; it moves the features of its own class
    by ``alpha`` and those of the others by ``beta`` times the mean feature of its
    class. In continuous time, with ``M_l`` the class means and ``K`` classes,

        dX_i = (1/K) (alpha M_{y_i} + beta sum_{l != y_i} M_l) dt + sigma dB_i .

    The mean of the class means then grows at the rate ``(alpha + (K-1) beta) / K``, and
    differences of class means at the rate ``(alpha - beta) / K``, while the features of
    a class spread around their mean as Brownian motion, ``sigma sqrt(t)`` far in each
    coordinate. So classes become separable if and only if ``alpha > beta``: with
    ``alpha <= beta`` the signal does not outgrow the spread. (For impacts that change
    with time the boundary is where ``exp(int (alpha - beta) / K)`` grows as
    ``sqrt(t)``.) Steps are Euler-Maruyama, of weak order one.

    Args:
        features: Features at time 0.
        labels: Class index of each feature, in ``[0, k)``.
        intra_class: ``alpha``, per unit of time.
        inter_class: ``beta``, per unit of time.
        noise: ``sigma >= 0``, in units of the features over the root of time.
        duration: Time that is simulated.
        num_steps: Steps that it is divided into.
        record_every: Steps between records; it must divide `num_steps`.
        num_classes: Number of classes; None takes the largest label plus one.
        key: Randomness of the Brownian motions.

    Returns:
        The path.

    Raises:
        ValueError: Shapes do not fit, or a number is out of its range.

    Memory:
        The class means of every record, and a few copies of the features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(60) % 3
        >>> path = locally_elastic_sde(
        ...     jnp.eye(3)[labels],
        ...     labels,
        ...     intra_class=3.0,
        ...     inter_class=1.0,
        ...     noise=0.1,
        ...     duration=6.0,
        ...     num_steps=60,
        ...     record_every=30,
        ...     key=jax.random.key(0),
        ... )
        >>> bool(path.separable), bool(path.separation[2] > path.separation[1])
        (True, True)

    References:
        Zhang, Wang & Su 2021, arXiv:2110.05960 (the isotropic model and its
        separability). The rates are derived here.
    """
    check_features(features)
    if jnp.ndim(features) != 2:
        raise ValueError(
            f"`features` must be a matrix [n, d], but has shape {jnp.shape(features)}."
        )
    check_examples(features=features, labels=labels)
    num_classes = check_labels(labels, num_classes)
    num_steps = check_count(num_steps=num_steps)
    record_every = check_count(record_every=record_every)
    if num_steps % record_every:
        raise ValueError(
            f"`record_every` must divide `num_steps` = {num_steps}, but was "
            f"{record_every}."
        )
    finite = lambda v: -float("inf") < v < float("inf")
    check_number("intra_class", intra_class, finite, "a finite number")
    check_number("inter_class", inter_class, finite, "a finite number")
    check_number("noise", noise, lambda v: finite(v) and v >= 0, "a number >= 0")
    positive = lambda v: finite(v) and v > 0
    check_number("duration", duration, positive, "a positive, finite number")
    check_key(key)
    impacts = (intra_class, inter_class, noise, duration)
    statics = (num_classes, num_steps // record_every, record_every)
    return _simulate(features, labels, impacts, key, statics)


@partial(jax.jit, static_argnums=4)
def _simulate(features, labels, impacts, key, statics):
    """`locally_elastic_sde`, of checked arguments."""
    num_classes, num_records, record_every = statics
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    alpha, beta, sigma, duration = (jnp.asarray(a, dtype) for a in impacts)
    step = duration / (num_records * record_every)
    member = (labels[:, None] == jnp.arange(num_classes)[None, :]).astype(dtype)
    counts = jnp.sum(member, axis=0)
    averages = member / jnp.maximum(counts, 1)[None, :]
    means_of = lambda x: _matmul(averages.T, x)  # 0 where a class does not occur
    occurring = jnp.maximum(jnp.sum(counts > 0), 1).astype(dtype)

    # The mean of the class means grows fastest; beside it, rounding would swallow what
    # tells the classes apart. So it is carried apart from the features around it.
    common_rate = (alpha + (occurring - 1) * beta) / occurring

    def recentred(common, x):
        shift = jnp.sum(means_of(x), axis=0, keepdims=True) / occurring
        return common + shift, x - shift

    def advance(carry, index):
        common, x = carry
        drift = (alpha - beta) / occurring * means_of(x)[labels]
        shock = jax.random.normal(jax.random.fold_in(key, index), x.shape, dtype)
        moved = x + step * drift + sigma * jnp.sqrt(step) * shock
        return recentred((1 + step * common_rate) * common, moved), None

    def between_records(carry, record):
        indices = record * record_every + jnp.arange(record_every)
        carry = jax.lax.scan(advance, carry, indices)[0]
        return carry, measure(*carry)

    def measure(common, x):
        means = means_of(x)
        between = jnp.sqrt(jnp.sum(jnp.square(means)) / occurring)
        within = jnp.mean(jnp.sum(jnp.square(x - means[labels]), axis=1))
        return common + means, between, within

    x = features.astype(dtype)
    start = recentred(jnp.zeros((1, x.shape[1]), dtype), x)
    (common, x), path = jax.lax.scan(between_records, start, jnp.arange(num_records))
    final = common + x
    first = measure(*start)
    means, between, within = (
        jnp.concatenate([a[None], b]) for a, b in zip(first, path, strict=True)
    )
    times = step * record_every * jnp.arange(num_records + 1)
    # Around the mean of its own class, a feature has (1 - 1/n_k) of the variance.
    free = x.shape[1] * (1 - occurring / labels.size)
    spread = jnp.sqrt(first[2] + sigma**2 * free * times)
    predicted = first[1] * jnp.exp((alpha - beta) / occurring * times) / spread
    separation = between / jnp.sqrt(within)
    means = jnp.where((counts > 0)[None, :, None], means, jnp.nan)
    return LocallyElasticPath(
        times, means, separation, predicted, alpha > beta, final, counts.astype(int)
    )
