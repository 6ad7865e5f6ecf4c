"""The NTK parametrisation of a network, as factors of its parameters' kernels."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree, Shaped

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_examples, check_key, check_number
from jaxtheory.kernels._infinite_model import as_model
from jaxtheory.kernels._initial import initial, key_path

ZeroVariance = Literal["drop", "error"] | float


class NTKScaling(NamedTuple):
    """Initial variances of a network's parameters.

    Attributes:
        param_scale: The variance of each parameter array, structured as the
            parameters: what `empirical_ntk` takes under this name.
        standard_error: That of each variance, estimated from draws.
        dropped: Key paths of the arrays that start at fixed values and were given
            variance zero, so that their kernel drops out.
    """

    param_scale: PyTree[Any]
    standard_error: PyTree[Any]
    dropped: tuple[str, ...]


def ntk_scaling(
    module: Any,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    *,
    key: KeyArray,
    zero_variance: ZeroVariance = "drop",
) -> NTKScaling:
    r"""Find the factors that turn a network's kernel into its NTK parametrisation's.

    A parameter ``w = s v`` with a standard normal ``v`` has the gradient ``df/dv = s
    df/dw``, so the kernel of the NTK parametrisation is the sum over parameter arrays
    of (initial variance ``s^2``) times (kernel of the array), whatever way the network
    is written. With these factors `empirical_ntk` converges to `infinite_width` at
    growing width (its trace: to ``k`` times that), where without them it grows with
    the width.

    The variances are those of the initialisers at the arrays' actual shapes, estimated
    from draws under many keys; the network's own, perhaps trained, parameters do not
    enter.

    Args:
        module: A Linen module, or a pair of functions ``(init, apply)``, as
            `infinite_width` takes it.
        x: An input of one or more examples; its shape and dtype alone matter.
        key: For the draws.
        zero_variance: What becomes of arrays that start at fixed values. ``"drop"``:
            biases and scales (one axis) get factor zero and are listed in `dropped`,
            while an array of more axes is an error: without its weights nothing below
            a zero-initialised head would train. ``"error"``: all are errors. A number:
            the variance that they all get, as a prior on them would say.

    Returns:
        The factors.

    Raises:
        ValueError: An array starts at fixed values where that is an error, or a
            random one has a mean other than zero; or `zero_variance` is none of these.

    Example:
        A layer of ``f = x W / sqrt(d)`` has ``NTK = x x'^T / d``; in the standard
        parametrisation the weights have variance ``1 / d``:

        >>> import flax.linen as nn
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> layer = nn.Dense(1, kernel_init=nn.initializers.lecun_normal())
        >>> x = jnp.array([[2.0, 0.0, 0.0, 0.0]])
        >>> found = kernels.ntk_scaling(layer, x, key=jax.random.key(0))
        >>> found.dropped
        ('bias',)
        >>> params = layer.init(jax.random.key(1), x)
        >>> ntk = kernels.empirical_ntk(
        ...     layer.apply, params, x, param_scale=found.param_scale
        ... )
        >>> round(float(ntk[0, 0]), 1)
        1.0

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572, section 2 (the parametrisation).
    """
    check_key(key)
    _check(zero_variance)
    init = as_model(module).init
    check_examples(x=x)
    example = jax.tree.map(lambda a: jnp.asarray(a)[:1], x)
    shapes = jax.eval_shape(init, key, example)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = [key_path(path) for path, _ in leaves]
    found = initial(init, example, key, paths)
    variance, error, dropped = [], [], []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        std = found[path].std
        if not found[path].fixed:
            variance.append(std.value**2)
            error.append(2 * std.value * std.standard_error)
            continue
        if isinstance(zero_variance, str):
            _check_fixed(path, leaf.shape, zero_variance)
            dropped.append(path)
        value = 0.0 if isinstance(zero_variance, str) else zero_variance
        variance.append(np.float32(value))
        error.append(np.float32(0.0))
    unflatten = jax.tree.structure(shapes).unflatten
    return NTKScaling(unflatten(variance), unflatten(error), tuple(dropped))


def _check(zero_variance):
    """Raise unless there is a rule for parameters that start at fixed values."""
    if isinstance(zero_variance, str):
        if zero_variance not in ("drop", "error"):
            raise ValueError(
                '`zero_variance` must be "drop", "error" or a variance, but was '
                f"{zero_variance!r}."
            )
        return
    check_number(
        "zero_variance",
        zero_variance,
        lambda a: 0.0 <= a < float("inf"),
        '"drop", "error" or a finite variance >= 0',
    )


def _check_fixed(path, shape, rule):
    """Raise if an array may not start at fixed values."""
    if rule == "drop" and len(shape) <= 1:
        return
    raise ValueError(
        f"`module` must draw {path!r} {shape} at random to have an NTK "
        "parametrisation, but starts it at fixed values. Use another initialiser, give "
        "the variance of such arrays as `zero_variance=`, or freeze it by "
        "`param_scale` instead of `ntk_scaling`."
    )
