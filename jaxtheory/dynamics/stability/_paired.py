"""Algorithmic stability from pairs of runs whose training sets differ a little."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PyTree

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count, check_examples, check_key
from jaxtheory.linalg import check_vector


class SwappedExamples(NamedTuple):
    """A training set of which some examples have been replaced.

    Attributes:
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        indices: Which examples were replaced, ``[J]``; the ``i``-th of them by the
            ``i``-th replacement.
    """

    x: Any
    y: Any
    indices: Int[Array, " J"]


class RandomSetStability(NamedTuple):
    """How far two trajectories are apart in loss, for each swapped example.

    Attributes:
        beta: The estimate; with an axis of pairs its mean over pairs and standard
            error, infinite for a single pair, which has no spread.
        worst_record: The record ``t`` of the maximum, ``[m]`` or scalar.
        best_match: The record ``t'`` of the other run that is nearest to it, ``[m]`` or
            scalar.
    """

    beta: Estimate
    worst_record: Int[Array, "*m"]
    best_match: Int[Array, "*m"]


def swap_examples(
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    replacements: tuple[PyTree, PyTree],
    *,
    num: int,
    key: KeyArray,
) -> SwappedExamples:
    """Replace random training examples by fresh ones.

    The positions of the others stay, so that a run with the same key visits them in the
    same steps: the two runs differ by the swapped examples alone.

    Args:
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        replacements: Fresh examples ``(x, y)`` of the same distribution, at least
            `num`; the first `num` are used.
        num: Number ``J`` of examples to replace, at most ``n``.
        key: Random key of which to replace, drawn without replacement.

    Returns:
        The new training set, and which examples are new in it.

    Raises:
        ValueError: `num` is out of range, or the replacements are too few, of another
            structure or shape, or of a dtype that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jnp.zeros((5, 2)), jnp.zeros(5)
        >>> fresh = jnp.ones((2, 2)), jnp.ones(2)
        >>> swapped = swap_examples(x, y, fresh, num=2, key=jax.random.key(0))
        >>> float(swapped.y.sum()), swapped.indices.shape
        (2.0, (2,))
    """
    check_key(key)
    n = check_examples(x=x, y=y)
    if not isinstance(replacements, tuple | list) or len(replacements) != 2:
        raise ValueError(
            "`replacements` must be a pair (x, y) of fresh examples, but has structure "
            f"{jax.tree.structure(replacements)}."
        )
    most = min(n, check_examples(replacements=replacements))
    num = check_count(num=num)
    if num > most:
        raise ValueError(
            f"`num` must be at most {most}, the number of examples and of replacements "
            f"alike, but was {num}."
        )
    old, new = (x, y), tuple(replacements)
    first = lambda tree: jax.tree.map(lambda a: jnp.asarray(a)[0], tree)
    check_vector(first(new), first(old), "replacements")
    for leaf, like in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        dtype, into = jnp.result_type(leaf), jnp.result_type(like)
        if jnp.promote_types(dtype, into) != into:
            raise ValueError(
                f"`replacements` must fit into the dtype of the examples, {into}, but "
                f"has dtype {dtype}, which would be rounded. Cast one of them."
            )
    indices = jax.random.permutation(key, n)[:num]
    put = lambda a, b: jnp.asarray(a).at[indices].set(jnp.asarray(b)[:num])
    new_x, new_y = jax.tree.map(put, old, new)
    return SwappedExamples(new_x, new_y, indices)


def random_set_stability(
    losses: Float[Array, "*m r n"],
    losses_swapped: Float[Array, "*m q n"],
    *,
    num_swapped: int,
) -> RandomSetStability:
    r"""Random-set stability of the trajectory, from pairs of runs.

    .. math:: \beta = \frac{1}{J} \max_{t} \min_{t'} \frac{1}{n} \sum_{i=1}^{n}
        |\ell(w_t, z_i) - \ell(w'_{t'}, z_i)|

    over the records ``t`` of a run and ``t'`` of its twin, trained with ``J`` examples
    swapped, and fresh test examples ``z``; the mean over pairs. This is our reading of
    the paper's experiment. Its definition has the supremum over ``z`` in place of the
    mean, and holds for every data set in expectation: what is estimated here is
    smaller, and no certificate. Records that are thinned out can only raise it at a
    record, by a poorer match.

    Args:
        losses: Losses of the test examples at the records of the run, ``[r, n]``, or
            ``[m, r, n]`` for ``m`` pairs with draws of their own; from training with
            ``record={"losses": ...}``.
        losses_swapped: Of the runs on the swapped data, ``[q, n]`` or ``[m, q, n]``.
        num_swapped: Number ``J`` of swapped examples.

    Returns:
        The estimate, per swapped example and in units of the loss, and where the
        maximum is attained. NaN where a loss is.

    Raises:
        ValueError: The shapes do not fit, or `num_swapped` is not positive.

    Memory:
        ``q n`` numbers for each pair; ``r q n`` operations.

    Example:
        >>> import jax.numpy as jnp
        >>> losses = jnp.array([[1.0, 1.0], [0.5, 0.0]])
        >>> twin = jnp.array([[1.0, 1.0], [0.4, 0.1]])
        >>> got = random_set_stability(losses, twin, num_swapped=2)
        >>> round(float(got.beta.value), 4), int(got.worst_record), int(got.best_match)
        (0.05, 1, 1)

    References:
        Tuci, Bastian, Dupuis, Navab, Birdal & Simsekli, arXiv:2507.06775, definition
        of random-set stability and appendix A.5.
    """
    num_swapped = check_count(num_swapped=num_swapped)
    _check_losses(losses, losses_swapped, same_records=False)
    largest, at, match = _farthest(*_stacked(losses, losses_swapped))
    if np.ndim(losses) == 2:
        at, match = at[0], match[0]
    return RandomSetStability(_over_pairs(largest / num_swapped), at, match)


def on_average_stability(
    losses: Float[Array, "*m r n"],
    losses_swapped: Float[Array, "*m r n"],
    *,
    num_swapped: int,
) -> Estimate:
    r"""On-average stability of the last iterate, from pairs of runs.

    .. math:: \frac{1}{J} \Big| \frac{1}{n} \sum_{i=1}^{n}
        \big( \ell(w_r, z_i) - \ell(w'_r, z_i) \big) \Big|

    at the last record ``r`` of both runs; the mean over pairs. Differences of opposite
    sign cancel within a pair, so that it is at most what `random_set_stability` would
    measure at the same two iterates.

    Args:
        losses: Losses of ``n`` fresh test examples at the records of a run, ``[r, n]``,
            or ``[m, r, n]`` for ``m`` pairs.
        losses_swapped: Of the runs on the swapped data, the same shape.
        num_swapped: Number ``J`` of swapped examples.

    Returns:
        The mean over pairs, per swapped example and in units of the loss, with its
        standard error, infinite for a single pair.

    Raises:
        ValueError: The shapes do not fit, or `num_swapped` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> losses = jnp.array([[1.0, 1.0], [0.5, 0.1]])
        >>> twin = jnp.array([[1.0, 1.0], [0.3, 0.1]])
        >>> round(float(on_average_stability(losses, twin, num_swapped=1).value), 4)
        0.1

    References:
        Bousquet & Elisseeff, JMLR 2 (2002), definition 5 (error stability);
        Shalev-Shwartz, Shamir, Srebro & Sridharan, JMLR 11 (2010).
    """
    num_swapped = check_count(num_swapped=num_swapped)
    _check_losses(losses, losses_swapped, same_records=True)
    ours, others = _stacked(losses, losses_swapped)
    means = jnp.abs(jnp.mean(ours[:, -1] - others[:, -1], axis=-1))
    return _over_pairs(means / num_swapped)


@jax.jit
def _farthest(losses, others):
    """For each pair: the largest best match, where it is, and with which record."""

    def of_pair(pair):
        losses, others = pair

        def best(row):
            distances = jnp.mean(jnp.abs(others - row[None]), axis=-1)
            # `argmin` and `argmax` pick what is not a number.
            match = jnp.argmin(distances)
            return distances[match], match

        distances, matches = jax.lax.map(best, losses)
        worst = jnp.argmax(distances)
        return distances[worst], worst, matches[worst]

    return jax.lax.map(of_pair, (losses, others))


def _stacked(*losses):
    """With an axis of pairs, in at least float32."""
    arrays = [jnp.asarray(a) for a in losses]
    arrays = [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in arrays]
    return [a.reshape(-1, *a.shape[-2:]) for a in arrays]


def _over_pairs(values):
    num = values.shape[0]
    if num == 1:
        return Estimate(values[0], jnp.full_like(values[0], jnp.inf), 1)
    error = jnp.std(values, ddof=1) / np.sqrt(num)
    return Estimate(jnp.mean(values), error, num)


def _check_losses(losses, losses_swapped, *, same_records):
    """Raise unless both are losses of the same examples in as many pairs."""
    shapes = [jnp.shape(losses), jnp.shape(losses_swapped)]
    good = all(len(shape) in (2, 3) and 0 not in shape for shape in shapes)
    types = [jnp.asarray(a).dtype for a in (losses, losses_swapped)] if good else []
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in types):
        raise ValueError(
            f"`losses` and `losses_swapped` must be real, but have dtypes {types}."
        )
    # All but the records, and those too if they are compared one by one.
    rest = [shape if same_records else (*shape[:-2], shape[-1:]) for shape in shapes]
    if not good or rest[0] != rest[1]:
        raise ValueError(
            "`losses` and `losses_swapped` must be losses of the same test examples "
            "at the records of as many runs, [r, n] or [m, r, n], but have the shapes "
            f"{shapes[0]} and {shapes[1]}."
        )
