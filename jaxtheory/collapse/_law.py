"""Straight lines through one number a layer, and what chance makes of them."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count, check_key

InputLayer = Literal["include", "exclude"]
Scale = Literal["linear", "log"]


class LayerLine(NamedTuple):
    """A least-squares line through ``v_l`` against ``l``, or through ``log v_l``.

    Attributes:
        slope: Change per layer.
        intercept: The line's value at ``l = 0``, the first layer given.
        pearson_r: Correlation with ``l``; 0 where all values are equal.
        r_squared: ``pearson_r**2``.
        drop_variation: Standard deviation (one over their number) of the drops
            ``v_l - v_{l+1}`` over their absolute mean. 0 is the exact law; infinite
            where drops differ and average to 0.
        quadratic: Coefficient of ``l^2`` when a parabola is fitted: positive where
            later layers drop less. 0 is the exact law.
        num_undefined: Values used (or their logarithms) that are not finite. Where it
            is not 0, all of the six numbers above are NaN.
    """

    slope: Float[Array, ""]
    intercept: Float[Array, ""]
    pearson_r: Float[Array, ""]
    r_squared: Float[Array, ""]
    drop_variation: Float[Array, ""]
    quadratic: Float[Array, ""]
    num_undefined: Int[Array, ""]


class RandomDropTest(NamedTuple):
    """How often random drops look at least as lawful as the measured ones.

    Attributes:
        pearson_r: Share of random laws whose correlation is as low or lower.
        drop_variation: Share of random laws whose drops vary as little or less. 1 where
            the values do not go down from first to last: however evenly they rise, that
            is no law of drops.
    """

    pearson_r: Estimate
    drop_variation: Estimate


def fit_layer_line(
    values: Float[Array, " l"],
    *,
    scale: Scale = "linear",
    input_layer: InputLayer = "include",
) -> LayerLine:
    """Fit a straight line to one number a layer, or to its logarithm.

    Progressive collapse of deep linear networks makes ``1 - max cos`` of the class
    means linear and ``tr Sigma_W / tr Sigma_B`` geometric in the depth (scale "log").

    Args:
        values: One number for each layer, in network order; `LayerStatistics` has some.
        scale: "linear", or "log" for the natural logarithm of positive values.
        input_layer: "include" fits all values; "exclude" leaves out the first one, the
            raw input, and keeps ``l = 0`` for it.

    Returns:
        The line.

    Raises:
        ValueError: An option is not one of its words, or fewer than three values are
            left to fit.

    Example:
        >>> import jax.numpy as jnp
        >>> line = fit_layer_line(jnp.array([1.0, 0.8, 0.6, 0.4]))
        >>> print(f"{line.slope:.3f} {line.pearson_r:.3f}")
        -0.200 -1.000

    References:
        Wang et al. 2023, arXiv:2311.02960, theorem 1.
    """
    if scale not in ("linear", "log"):
        raise ValueError(f'`scale` must be "linear" or "log", but was {scale!r}.')
    values, first = check_layer_values(values, input_layer)
    return line(jnp.log(values) if scale == "log" else values, first)


def random_drop_test(
    values: Float[Array, " l"],
    *,
    key: KeyArray,
    num_samples: int = 10_000,
    input_layer: InputLayer = "include",
) -> RandomDropTest:
    """Hold a law against laws whose log drops are independent and uniform on [0, 1].

    A high correlation is nearly free, because a sum of positive drops of any kind goes
    down: nine layers with random drops reach -0.98 three times out of four. Neither
    number depends on the scale of the drops. p-values are one-sided, and counted as
    ``(1 + hits) / (1 + num_samples)``. For a law of rising values, pass ``1 / values``.

    Args:
        values: Positive numbers, such as ``D_l``, in network order.
        key: Random key for the drops.
        num_samples: Number of random laws.
        input_layer: As in `fit_layer_line`.

    Returns:
        Two p-values; small ones speak for a law. NaN where the line is undefined.

    Raises:
        ValueError: There are fewer than three values to fit, or an option is invalid.

    Memory:
        ``num_samples`` times the number of layers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> uneven = jnp.exp(-jnp.array([0.0, 0.2, 1.1, 1.3, 2.2]))
        >>> test = random_drop_test(uneven, key=jax.random.key(0))
        >>> bool(test.drop_variation.value > 0.3)
        True
    """
    check_key(key)
    num_samples = check_count(num_samples=num_samples, at_least=2)
    values, first = check_layer_values(values, input_layer)
    return _random_drop_test(values, key, num_samples, first)


@partial(jax.jit, static_argnums=(2, 3))
def _random_drop_test(values, key, num_samples, first):
    measured = line(jnp.log(values), first)
    shape = (num_samples, values.size - first - 1)
    drops = jax.random.uniform(key, shape, dtype=values.dtype)
    start = jnp.zeros((num_samples, 1), values.dtype)
    logs = -jnp.concatenate([start, jnp.cumsum(drops, axis=1)], axis=1)
    chance = jax.vmap(lambda row: line(row, 0))(logs)
    defined = measured.num_undefined == 0
    # `line` divides by the mean drop without its sign; only a fall is a law here.
    falls = values[-1] < values[first]
    variation = jnp.where(falls, measured.drop_variation, jnp.inf)

    def p_value(random, observed):
        hits = jnp.sum(random <= observed, dtype=values.dtype)
        value = jnp.where(defined, (1 + hits) / (1 + num_samples), jnp.nan)
        error = jnp.sqrt(value * (1 - value) / (num_samples - 1))
        return Estimate(value, error, num_samples)

    return RandomDropTest(
        p_value(chance.pearson_r, measured.pearson_r),
        p_value(chance.drop_variation, variation),
    )


def check_layer_values(
    values: ArrayLike, input_layer: InputLayer
) -> tuple[Float[Array, " l"], int]:
    """The values as a floating vector, and the index of the first one to be fitted.

    Args:
        values: One number for each layer.
        input_layer: "include" or "exclude".

    Returns:
        The vector, and 0 or 1.

    Raises:
        ValueError: It is no vector, `input_layer` is another word, or fewer than three
            values are left.
    """
    if isinstance(values, tuple) and hasattr(values, "values"):
        raise ValueError(
            "`values` must be one number for each layer, but is a "
            f"{type(values).__name__}. Pass its `values`."
        )
    array = real_array(values, "values")
    if array.ndim != 1:
        raise ValueError(
            "`values` must be a vector with one entry for each layer, but has shape "
            f"{array.shape}."
        )
    return array, check_num_layers(array.size, input_layer, "values")


def real_array(values: Any, name: str) -> Float[Array, "..."]:
    """Turn what the user passed into a floating-point array.

    Args:
        values: Numbers, in an array or a list.
        name: What an error message calls them.

    Returns:
        The array.

    Raises:
        ValueError: They are no real numbers.
    """
    if not isinstance(values, jax.Array):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise ValueError(
                f"`{name}` must be one array of numbers: {error}"
            ) from error
    if values.dtype.kind not in "iuf" and not jnp.issubdtype(
        values.dtype, jnp.floating
    ):
        raise ValueError(
            f"`{name}` must be real numbers, but has dtype {values.dtype}. Pass an "
            "array or a list of them."
        )
    return jnp.asarray(values, float)


def check_num_layers(count: int, input_layer: InputLayer, name: str) -> int:
    """The index of the first layer to be fitted, after checking that enough are left.

    Args:
        count: Number of layers given.
        input_layer: "include" or "exclude".
        name: What an error message calls the argument that holds them.

    Returns:
        0 or 1.

    Raises:
        ValueError: `input_layer` is another word, or fewer than three layers are left.
    """
    if input_layer not in ("include", "exclude"):
        raise ValueError(
            '`input_layer` must be "include" or "exclude", but was '
            f"{input_layer!r}. It says whether layer 0 takes part in the fit."
        )
    first = int(input_layer == "exclude")
    if count - first < 3:
        rest = " after the input layer" if first else ""
        raise ValueError(
            f"`{name}` must hold at least three layers{rest}, because any two points "
            f"lie on a line, but holds {count - first}."
        )
    return first


@partial(jax.jit, static_argnums=1)
def line(values: Float[Array, " l"], first: int) -> LayerLine:
    """The least-squares line through ``values[first:]`` against ``first, ...``.

    Args:
        values: One number for each layer.
        first: Index of the first one that takes part.

    Returns:
        The line.
    """
    used = values[first:]
    num_undefined = jnp.sum(~jnp.isfinite(used))
    used = jnp.where(num_undefined == 0, used, jnp.nan)
    layer = jnp.arange(used.size) - (used.size - 1) / 2  # centred: sums to zero
    mean = jnp.mean(used)
    covariance, spread = jnp.sum(layer * (used - mean)), jnp.sum(layer * layer)
    slope = covariance / spread
    scale = jnp.sqrt(spread * jnp.sum(jnp.square(used - mean)))
    correlation = jnp.clip(jnp.where(scale == 0, 0, covariance / scale), -1, 1)
    drops = used[:-1] - used[1:]
    deviation = jnp.std(drops)
    # The part of l^2 that is orthogonal to a line, on evenly spaced layers.
    curve = jnp.square(layer) - jnp.mean(jnp.square(layer))
    return LayerLine(
        slope=slope,
        intercept=mean - slope * (first + (used.size - 1) / 2),
        pearson_r=correlation,
        r_squared=jnp.square(correlation),
        drop_variation=jnp.where(
            deviation == 0, 0, deviation / jnp.abs(jnp.mean(drops))
        ),
        quadratic=jnp.sum(curve * (used - mean)) / jnp.sum(jnp.square(curve)),
        num_undefined=num_undefined,
    )
