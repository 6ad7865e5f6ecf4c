"""Confidence intervals of averaged SGD by means of batches of iterates."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxtheory.batching import (
    check_count,
    check_examples,
    check_function,
    check_number,
    check_params,
)
from jaxtheory.dynamics.inference._interval import (
    Interval,
    check_known,
    check_prediction,
    column_norms,
    quantile,
)


def batch_means(
    predict: Callable[[Any, Any], Array],
    iterates: PyTree,
    points: PyTree,
    *,
    power: float = 0.55,
    num_batches: int = 8,
    confidence: float = 0.95,
) -> Interval:
    r"""Confidence intervals of predictions from the iterates of one run of SGD.

    The iterates of a run with steps of order ``j^{-power}`` are cut into
    ``num_batches + 1`` batches that end at ``e_k = r ((k + 1) / (M + 1))^{1 / (1 -
    power)}``: iterates are correlated over ``j^{power}`` steps, and each batch is about
    as many of these as any other. The first is burn-in and dropped. With the averages
    of the others, ``n_k`` iterates each of ``N``,

    .. math:: \hat\sigma^2 = \frac{1}{M - 1} \sum_{k=1}^{M} n_k
        (\mu_k - \mu)^2, \qquad \mu \pm t_{M-1} \frac{\hat\sigma}{\sqrt{N}}

    where ``mu_k`` and ``mu`` are `predict` of the average of batch ``k`` and of all.
    ``M`` stays fixed as the run grows and the batches become independent: hence
    Student's distribution, where the papers let ``M`` grow and take the normal one,
    which covers too little for long.

    Batches that are not long against the correlation make the interval too short. At
    nominal 95 % and 1,000 repetitions of linear and logistic regression with two
    features, 2,300 steps on batches of 8, with first steps of 1.2 in units of the
    inverse curvature, covered 94 to 95 % (logistic with twenty batches 93 to 94 %);
    3,000 single examples with first steps of 0.3 in three dimensions and ten batches 83
    to 90 %.

    Iterates have to be of one pass over fresh examples; repeated epochs converge to
    the minimiser of the training loss, and the interval says nothing of other samples.

    For a population map it over the runs: ``jax.vmap(lambda some: batch_means(predict,
    some, points))(iterates)``.

    Args:
        predict: ``predict(params, points) -> [...]``, for example a model.
        iterates: Parameters stacked on a leading axis ``[r, ...]``: of every step, or
            equally spaced records, ``record={"params": lambda s: s.params}``. Averages,
            which `predict` gets, are in at least float32: rounded to half precision
            they would all be the same.
        points: What `predict` gets: inputs to predict at.
        power: Decay of the learning rate, in [0, 1); 0 for a constant one, which makes
            equal batches.
        num_batches: Number ``M`` of batches in the average, at least 2.
        confidence: Nominal coverage.

    Returns:
        The interval; `parts` are the predictions of the batches.

    Raises:
        ValueError: An option is out of range, `iterates` are too few, or `predict`
            returns something else than one array.

    Memory:
        ``num_batches`` averages beside the iterates.

    Example:
        >>> import jax.numpy as jnp
        >>> iterates = jnp.array([9.0, 1.0, 3.0, 2.0, 4.0])
        >>> got = batch_means(
        ...     lambda w, x: w * x, iterates, jnp.array([1.0]), power=0.0, num_batches=4
        ... )
        >>> got.parts[:, 0].tolist(), float(got.value[0])
        ([1.0, 3.0, 2.0, 4.0], 2.5)

    References:
        Chen, Lee, Tong & Zhang, arXiv:1610.08637, section 3.2 (increasing batches);
        Zhu, Chen & Wu, arXiv:2002.03979 (online); Zhu & Dong, arXiv:1911.01483 (a
        fixed number of batches and Student's distribution).
    """
    check_function("predict", predict)
    check_params(iterates, "iterates")
    num = check_examples(iterates=iterates)
    num_batches = check_count(at_least=2, num_batches=num_batches)
    check_known("power", power)
    check_number("power", power, lambda a: 0 <= a < 1, "in [0, 1)")
    ends = _ends(num, num_batches, float(power))
    if min(np.diff(ends)) < 1 or ends[0] < 1:
        raise ValueError(
            f"`iterates` must be enough for {num_batches} batches and burn-in, but "
            f"there are {num}. Record more often, or take fewer `num_batches`."
        )
    width = quantile(confidence, num_batches - 1)
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), iterates)
    check_prediction(jax.eval_shape(predict, one, points))
    value, error, parts, num_nonfinite = _intervals(predict, ends, iterates, points)
    half = width * error
    return Interval(
        value, error, value - half, value + half, num_batches - 1, parts, num_nonfinite
    )


def _ends(num, num_batches, power):
    """Where each batch ends, that of the burn-in first."""
    shares = np.arange(1, num_batches + 2) / (num_batches + 1)
    return tuple(int(e) for e in np.round(num * shares ** (1 / (1 - power))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _intervals(predict, ends, iterates, points):
    lengths = np.diff(ends)
    wide = lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))

    def average(leaf):
        pairs = itertools.pairwise(ends)
        return jnp.stack([jnp.mean(wide(leaf[a:b]), axis=0) for a, b in pairs])

    def weighted(means):
        shares = jnp.asarray(lengths / lengths.sum(), means.dtype)
        return jnp.tensordot(shares, means, axes=1, precision="highest")

    means = jax.tree.map(average, iterates)
    parts = wide(jax.lax.map(lambda some: predict(some, points), means))
    value = wide(predict(jax.tree.map(weighted, means), points))
    roots = jnp.asarray(np.sqrt(lengths / lengths.sum()), parts.dtype)
    deviations = (parts - value[None]).reshape(len(lengths), -1) * roots[:, None]
    error = column_norms(deviations) / np.sqrt(len(lengths) - 1)
    bad = ~jnp.all(jnp.isfinite(parts.reshape(len(lengths), -1)), axis=1)
    return value, error.reshape(value.shape), parts, jnp.sum(bad)
