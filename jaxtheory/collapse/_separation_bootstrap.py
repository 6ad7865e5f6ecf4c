"""How sure a law of separation is: the bootstrap over examples."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.collapse._law import InputLayer, check_num_layers
from jaxtheory.collapse._moments import (
    ClassMoments,
    between_class,
    class_moments,
)
from jaxtheory.collapse._separation import (
    check_is_layers,
    check_layers,
    fit_log_line,
)

_matmul = partial(jnp.matmul, precision="highest")

_AT_ONCE = 16  # resamples that share one reading of the features


class LawBootstrap(NamedTuple):
    """Percentile intervals of a law's numbers: ``[lower, upper]`` each.

    Attributes:
        log_slope: See `SeparationLaw`, as for the next four. Shape ``[2]``.
        ratio: Shape ``[2]``.
        pearson_r: Shape ``[2]``.
        drop_variation: Shape ``[2]``. Every resample adds noise to the drops, so that
            this interval lies too high where the drops hardly vary.
        quadratic: Shape ``[2]``. Where 0 is outside, the law is bent.
        resampled_values: ``D_l`` of every resample, from which other intervals can be
            taken, for example over the resamples of several seeds. Shape
            ``[s, l]``.
    """

    log_slope: Float[Array, "2"]
    ratio: Float[Array, "2"]
    pearson_r: Float[Array, "2"]
    drop_variation: Float[Array, "2"]
    quadratic: Float[Array, "2"]
    resampled_values: Float[Array, "s l"]


def bootstrap_separation_law(
    layers: Mapping[str, Float[Array, "n ..."]] | Sequence[Float[Array, "n ..."]],
    labels: Integer[Array, " n"],
    *,
    key: KeyArray,
    num_resamples: int = 200,
    level: float = 0.95,
    num_classes: int | None = None,
    input_layer: InputLayer = "include",
) -> LawBootstrap:
    """Intervals for `separation_law`, drawing examples again within their class.

    Each resample draws, for every class, as many examples as it has, with replacement;
    the same ones in all layers. Intervals are quantiles over resamples (percentile
    method). They cover the choice of examples, not that of the seed of training. A
    resample has ``1 - 1/n_k`` of the scatter of its class: nearly the same factor in
    every layer, which slopes do not see and levels do.

    Args:
        layers: As in `separation_law`.
        labels: Class index of each example, in ``[0, k)``.
        key: Random key for the draws.
        num_resamples: Number of resamples ``s``.
        level: Probability that an interval covers, strictly between 0 and 1.
        num_classes: As in `separation_law`.
        input_layer: As in `separation_law`.

    Returns:
        The intervals. NaN where an example would have been left out of a layer, or a
        resample of it has no scatter, which has no logarithm; classes of a few examples
        give such resamples.

    Raises:
        ValueError: As in `separation_law`; or `key`, `num_resamples` or `level` is
            invalid.

    Memory:
        Two copies of the features and ``(s + 32 k) n`` numbers. Time is that of two
        products ``[n, d] [d, k]`` for each layer and resample, ``O(s l n d k)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(90) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (90, 4))
        >>> layers = [jnp.eye(3, 4)[labels] + noise / 2**l for l in range(4)]
        >>> law = bootstrap_separation_law(layers, labels, key=jax.random.key(1))
        >>> bool(law.ratio[0] < 0.25 < law.ratio[1])
        True

    References:
        Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    check_key(key)
    num_resamples = check_count(num_resamples=num_resamples, at_least=2)
    check_number("level", level, lambda p: 0 < p < 1, "strictly between 0 and 1")
    check_is_layers(layers)
    first = check_num_layers(len(layers), input_layer, "layers")
    _, features, num_classes = check_layers(layers, labels, num_classes)
    weights = _draw(labels, key, num_resamples, num_classes)
    values = [_resampled(h, labels, weights, num_classes) for h in features]
    return _intervals(jnp.stack(values, axis=1), level, first)


@partial(jax.jit, static_argnums=2)
def _intervals(values, level, first):
    """Quantiles of the law's numbers over the rows of `values`."""
    laws = jax.vmap(lambda row: fit_log_line(row, first))(values)
    tail = (1 - level) / 2
    names = [name for name in LawBootstrap._fields if name != "resampled_values"]
    ends = jnp.asarray([tail, 1 - tail], values.dtype)
    quantiles = {name: jnp.quantile(getattr(laws, name), ends) for name in names}
    return LawBootstrap(**quantiles, resampled_values=values)


@partial(jax.jit, static_argnums=(2, 3))
def _draw(labels, key, num_resamples, num_classes):
    """How often each resample draws each example. Shape ``[s, n]``."""
    labels = jnp.clip(labels.astype(int), 0, num_classes - 1)
    counts = jnp.zeros(num_classes, int).at[labels].add(1)
    order = jnp.argsort(labels)
    starts = (jnp.cumsum(counts) - counts)[labels]

    def weights(index):
        draws = jax.random.uniform(jax.random.fold_in(key, index), labels.shape)
        # Rounding up to the count itself would be an example of the next class.
        place = (draws * counts[labels]).astype(labels.dtype)
        picked = order[starts + jnp.minimum(place, counts[labels] - 1)]
        return jnp.zeros(labels.size, jnp.float32).at[picked].add(1.0)

    return jax.lax.map(weights, jnp.arange(num_resamples))


@partial(jax.jit, static_argnums=3)
def _resampled(features, labels, weights, num_classes):
    """``D`` of one layer for each row of `weights`."""
    flat = jnp.reshape(features, (features.shape[0], -1))
    moments = class_moments(flat, labels, num_classes)
    member = moments.labels[:, None] == jnp.arange(num_classes)[None, :]
    left_out = moments.num_nonfinite + moments.num_out_of_range
    measure = lambda row: _reweighted(moments, member, row)
    values = jax.lax.map(measure, weights, batch_size=_AT_ONCE)
    return jnp.where(left_out == 0, values, jnp.nan)


def _reweighted(moments: ClassMoments, member, weights):
    """``D`` when examples weigh `weights`, which sum to its count in each class.

    The residuals stay those around the means of all examples: new means are ``shift``
    away from those, and ``sum w ||(r - shift) P||^2 = sum w ||r P||^2 - sum n_k
    ||shift_k P||^2``, where the second sum is ``1/n_k`` of the first.
    """
    weights = weights.astype(moments.means.dtype)
    counts = moments.counts.astype(weights.dtype)
    total = jnp.maximum(jnp.sum(counts), 1)
    sums = _matmul((member * weights[:, None]).T, moments.residuals)
    shift = sums / jnp.maximum(counts, 1)[:, None]
    moved = moments._replace(means=moments.means + shift)
    between = between_class(moved, counts / total)
    projected = jnp.square(_matmul(moments.residuals, between.pseudo_inverse))
    moved_back = jnp.square(_matmul(shift, between.pseudo_inverse))
    second = jnp.sum(projected * weights[:, None])
    value = (second - jnp.sum(moved_back * counts[:, None])) / total
    # The same few examples drawn over and over do not scatter, up to rounding.
    return jnp.where(between.rank > 0, jnp.maximum(value, 0), jnp.inf)
