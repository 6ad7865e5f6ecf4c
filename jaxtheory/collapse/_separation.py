"""The law of data separation: each layer separates classes by the same factor."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxtheory.batching import check_examples
from jaxtheory.collapse._law import (
    InputLayer,
    check_layer_values,
    check_num_layers,
    line,
)
from jaxtheory.collapse._moments import (
    between_class,
    check_features,
    check_labels,
    class_moments,
    scatter_ratio,
)


@jax.tree_util.register_static
class LayerNames(tuple[str, ...]):
    """A tuple of strings that passes through jit, scan and vmap as structure."""


class SeparationLaw(NamedTuple):
    """A straight line through ``log D_l`` against the layer index ``l = 0, 1, ...``.

    A correlation near -1 says little: nine layers whose log drops are independent and
    uniform reach -0.98 three times out of four. `drop_variation` is the sharper number.

    Attributes:
        values: Separation ``D_l`` of every layer. Shape ``[l]``.
        log_slope: Least-squares slope of ``log D_l`` (natural logarithm) per layer.
        log_intercept: The line's value at ``l = 0``, the first layer given.
        ratio: ``exp(log_slope)``, the factor by which a layer multiplies ``D``. Below
            1, layers separate the classes.
        pearson_r: Correlation of ``log D_l`` and ``l``; 0 where all ``D_l`` are equal.
        r_squared: ``pearson_r**2``, the share of the variance of ``log D_l`` that the
            line explains.
        drop_variation: Coefficient of variation of the drops ``log D_l - log D_{l+1}``:
            their standard deviation (one over the number of drops) over their absolute
            mean. 0 is the exact law; infinite where drops differ and average to 0.
        num_undefined: Layers in the fit whose ``log D_l`` is not finite, because
            ``D_l`` is zero, infinite or NaN. Where it is not 0, no line can be drawn
            and all of the six numbers above are NaN, as is `quadratic`.
        ranks: Directions in which the class means of each layer differ. Shape ``[l]``.
            Those of layers of unequal rank measure different things. None if only
            values were given.
        names: Names of the layers in the order used, where a mapping gave them.
        quadratic: Coefficient of ``l^2`` in the least-squares parabola through
            ``log D_l``; 0 is the exact law, positive where later layers separate less.
            `bootstrap_separation_law` gives it an interval.
    """

    values: Float[Array, " l"]
    log_slope: Float[Array, ""]
    log_intercept: Float[Array, ""]
    ratio: Float[Array, ""]
    pearson_r: Float[Array, ""]
    r_squared: Float[Array, ""]
    drop_variation: Float[Array, ""]
    num_undefined: Int[Array, ""]
    ranks: Int[Array, " l"] | None
    names: LayerNames | None
    quadratic: Float[Array, ""]


def separation(
    features: Float[Array, "n ..."],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
) -> Float[Array, ""]:
    """Measure how fuzzily features separate the classes, ``D = tr(SS_W SS_B^+)``.

    With class means ``m_k``, the mean ``m`` of all examples and ``N`` examples,

        SS_W = (1/N) sum_i (h_i - m_{y_i}) (h_i - m_{y_i})^T
        SS_B = (1/N) sum_k n_k (m_k - m) (m_k - m)^T

    so classes weigh by their examples, and there is no ``1/K``. For balanced classes it
    is `statistics(..., normalize_by_classes=False).nc1`. It does not change when the
    features are rotated, translated or scaled.

    Args:
        features: One example for each entry of axis 0. Trailing axes (of convolutional
            features, tokens) are flattened; nothing is pooled or projected.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.

    Returns:
        ``D``; smaller is better separated. Infinite where no class means differ. NaN if
        any feature is not finite or any (traced) label is out of range, because a bare
        number cannot say that it left examples out.

    Raises:
        ValueError: Shapes or dtypes do not fit, `num_classes` is missing, or concrete
            labels are out of range or all the same.

    Memory:
        Two copies of the features and ``2 n k`` numbers; no ``d x d`` matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[-1.1], [-0.9], [0.9], [1.1]])
        >>> print(f"{separation(features, jnp.array([0, 0, 1, 1])):.4f}")
        0.0100

    References:
        He & Su 2023, arXiv:2210.17020.
    """
    check_features(features)
    check_examples(features=features, labels=labels)
    return _separation(features, labels, check_labels(labels, num_classes))[0]


def separation_law(
    layers: Mapping[str, Float[Array, "n ..."]] | Sequence[Float[Array, "n ..."]],
    labels: Integer[Array, " n"],
    *,
    num_classes: int | None = None,
    input_layer: InputLayer = "include",
) -> SeparationLaw:
    """Measure `separation` layer by layer and fit ``D_l = D_0 ratio^l``.

    Every layer is measured, in the order given; the first one is ``l = 0``. He & Su
    put the raw input first, then the output of every layer after its nonlinearity, of
    the model in eval mode, on training data, and fit all of them. Leaving the input
    out of the fit is as legitimate a law for the hidden layers, and a different number:
    say which one you report.

    Args:
        layers: Features of each layer from input to output, all for the same examples.
            Trailing axes are flattened, as in `separation`. A mapping must be in
            network order, but `jax.jit` returns dictionaries sorted by key: return a
            sequence from there.
        labels: Class index of each example, in ``[0, k)``.
        num_classes: Number of classes; None takes the largest label plus one. Needed
            where labels are traced.
        input_layer: Whether the first layer given takes part in the fit: "include"
            (He & Su), or "exclude". Its value is reported either way.

    Returns:
        The values and the fit.

    Raises:
        ValueError: There are fewer than three layers to fit, a mapping is sorted so
            that ``layer_10`` comes before ``layer_2``, or an input does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.arange(90) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (90, 4))
        >>> layers = [jnp.eye(3, 4)[labels] + noise / 2**l for l in range(5)]
        >>> law = separation_law(layers, labels)
        >>> bool(0.15 < law.ratio < 0.35), bool(law.pearson_r < -0.99)
        (True, True)

    References:
        He & Su 2023, arXiv:2210.17020.
    """
    check_is_layers(layers)
    first = check_num_layers(len(layers), input_layer, "layers")
    names, features, num_classes = check_layers(layers, labels, num_classes)
    measured = [_separation(h, labels, num_classes) for h in features]
    values = jnp.stack([value for value, _ in measured])
    ranks = jnp.stack([rank for _, rank in measured])
    return fit_log_line(values, first)._replace(ranks=ranks, names=names)


def fit_separation_law(
    values: Float[Array, " l"], *, input_layer: InputLayer = "include"
) -> SeparationLaw:
    """Fit ``D_l = D_0 ratio^l`` to given separations by least squares on ``log D_l``.

    Args:
        values: Positive numbers ``D_l``, one for each layer, in network order. Any
            other measure that should be geometric in the depth will do.
        input_layer: As in `separation_law`.

    Returns:
        The fit; `ranks` and `names` are None.

    Raises:
        ValueError: There are fewer than three values to fit.

    Example:
        >>> import jax.numpy as jnp
        >>> law = fit_separation_law(jnp.array([8.0, 4.0, 2.0, 1.0]))
        >>> print(f"{law.ratio:.3f} {law.pearson_r:.3f} {law.drop_variation:.3f}")
        0.500 -1.000 0.000
    """
    return fit_log_line(*check_layer_values(values, input_layer))


def check_layers(
    layers: Mapping[str, Float[Array, "n ..."]] | Sequence[Float[Array, "n ..."]],
    labels: Integer[Array, " n"],
    num_classes: int | None,
) -> tuple[LayerNames | None, list[Float[Array, "n ..."]], int]:
    """Take layers apart, after checking that they and the labels fit.

    Args:
        layers: Features by layer, a mapping or a sequence.
        labels: Class index of each example.
        num_classes: Number of classes, or None.

    Returns:
        The names (None for a sequence), the features, and the number of classes.

    Raises:
        ValueError: Something does not fit; see `separation_law`.
    """
    named = isinstance(layers, Mapping)
    names = LayerNames(str(name) for name in layers) if named else None
    if names is not None:
        check_order(names)
    num_classes = check_labels(labels, num_classes)
    for name, features in layers.items() if named else enumerate(layers):
        check_features(features, f"layers[{name!r}]")
        check_examples(**{f"layers[{name!r}]": features, "labels": labels})
    return names, list(layers.values() if named else layers), num_classes


def check_is_layers(layers: Any) -> None:
    """Raise unless `layers` is a mapping or a list of what layers put out.

    Args:
        layers: What the user passed.

    Raises:
        ValueError: It is something else, such as one array.
    """
    if not isinstance(layers, Mapping | list | tuple):
        raise ValueError(
            "`layers` must be a mapping from names to features, or a list of features "
            f"in network order, but is a {type(layers).__name__}."
        )


def check_order(names: LayerNames) -> None:
    """Raise where the order is the alphabet's and not the numbers' in the names.

    Args:
        names: Names of layers, in the order given.

    Raises:
        ValueError: ``layer_10`` comes before ``layer_2``.
    """
    natural = lambda name: [
        int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)
    ]
    if list(names) == sorted(names) != sorted(names, key=natural):
        raise ValueError(
            f"`layers` must be in network order, but its keys {list(names)} are in "
            "alphabetical order, as `jax.jit` returns dictionaries. Pass a sequence, "
            "or a dictionary built in network order."
        )


@partial(jax.jit, static_argnums=2)
def _separation(features, labels, num_classes):
    """``D`` and the rank behind it, of checked arguments."""
    flat = jnp.reshape(features, (features.shape[0], -1))
    moments = class_moments(flat, labels, num_classes)
    total = jnp.maximum(jnp.sum(moments.counts), 1)
    weights = (moments.counts / total).astype(moments.means.dtype)
    between = between_class(moments, weights)
    left_out = moments.num_nonfinite + moments.num_out_of_range
    value = scatter_ratio(moments, between)
    return jnp.where(left_out == 0, value, jnp.nan), between.rank


def fit_log_line(values: Float[Array, " l"], first: int) -> SeparationLaw:
    """The law through the logarithms of ``values[first:]``.

    Args:
        values: Separation of every layer.
        first: Index of the first layer that takes part.

    Returns:
        The fit; `ranks` and `names` are None.
    """
    fit = line(jnp.log(values), first)
    return SeparationLaw(
        values=values,
        log_slope=fit.slope,
        log_intercept=fit.intercept,
        ratio=jnp.exp(fit.slope),
        pearson_r=fit.pearson_r,
        r_squared=fit.r_squared,
        drop_variation=fit.drop_variation,
        num_undefined=fit.num_undefined,
        ranks=None,
        names=None,
        quadratic=fit.quadratic,
    )
