"""What an initialiser draws: deviations of parameters, estimated from many draws."""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxtheory._types import Estimate

_ENTRIES = 2**17  # drawn of each parameter, in 16 to 4096 draws
_QUANTILES = 8192
_TINY = float(np.finfo(np.float32).tiny)


class Initial(NamedTuple):
    """What the initialiser of one parameter does.

    Attributes:
        shape: Its shape.
        constant: The number that all its entries start at, or None.
        fixed: Whether it starts at the same values under all keys.
        std: Standard deviation of an entry, about zero.
        is_gaussian: Whether its fourth moment is that of a normal distribution.
        is_independent: Whether its entries are not tied, as those of an orthogonal
            matrix are by its norm.
    """

    shape: tuple[int, ...]
    constant: float | None
    fixed: bool
    std: Estimate
    is_gaussian: bool
    is_independent: bool


def key_path(path: Any) -> str:
    """A key path as words, ``"Dense_0/kernel"``; the collection ``params`` left out.

    Args:
        path: As `jax.tree_util` gives it.

    Returns:
        The path.
    """
    words = jax.tree_util.keystr(path, simple=True, separator="/")
    return words.removeprefix("params/")


def parameters(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by key path."""
    return {key_path(p): a for p, a in jax.tree_util.tree_leaves_with_path(tree)}


def initial(
    init: Callable[[Any, Any], Any], x: Any, key: Any, paths: Collection[str]
) -> dict[str, Initial]:
    """Find out what initialisers do, from draws at the actual shapes.

    Args:
        init: ``init(key, x) -> variables``.
        x: One input ``[1, ...]``.
        key: A typed key.
        paths: Key paths of the parameters to look at.

    Returns:
        For each parameter, by key path, what its initialiser does.

    Raises:
        ValueError: A parameter that is drawn at random has a mean other than zero.
    """
    shapes = parameters(jax.eval_shape(init, key, x))
    if not paths:
        return {}
    draws = _moments(init, tuple(paths), x, key)
    return {path: _read(path, shapes[path].shape, draws[path]) for path in paths}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(init, paths, x, key):
    """Moments of the entries of some parameters, ``[number, 5]`` for each."""
    program, shapes = jax.make_jaxpr(init, return_shape=True)(key, x)
    places = {path: place for place, path in enumerate(parameters(shapes))}

    def moments(a):
        a = a.astype(jax.dtypes.canonicalize_dtype(float))
        powers = [jnp.mean(a**power) for power in (1, 2, 4)]
        return jnp.stack([*powers, jnp.min(a), jnp.max(a)])

    def many(path, size):
        # The other parameters are not computed: nothing depends on them.
        def draw(index):
            key_data = jax.random.fold_in(key, index)
            leaves = jax.core.eval_jaxpr(program.jaxpr, program.consts, key_data, x)
            return moments(leaves[places[path]])

        # Powers of two, so that no remainder is left, which would compile again.
        size = 2 ** math.ceil(math.log2(max(size, 1)))
        number = min(max(_ENTRIES // size, 16), 4096)
        at_once = min(number, max(1, 2**20 // size))
        return jax.lax.map(draw, jnp.arange(number), batch_size=at_once)

    sizes = {path: leaf.size for path, leaf in parameters(shapes).items()}
    return {path: many(path, sizes[path]) for path in paths}


def _read(path, shape, draws):
    """What the moments of many draws say of one initialiser."""
    draws = np.asarray(draws, np.float64)
    number, size = len(draws), math.prod(shape)
    mean, square, fourth = draws[:, 0], draws[:, 1], draws[:, 2]
    fixed = bool(np.all(draws == draws[0]))
    low, high = draws[:, 3].min(), draws[:, 4].max()
    error = lambda a: np.std(a, ddof=1) / math.sqrt(number)
    std = math.sqrt(np.mean(square))
    if fixed or std == 0:
        estimate = Estimate(jnp.asarray(std), jnp.zeros(()), number)
        constant = float(low) if low == high else None
        return Initial(tuple(shape), constant, True, estimate, True, True)
    average = float(np.mean(mean))
    if abs(average) > max(6 * error(mean), 0.02 * std):
        raise ValueError(
            f"`module` must draw its parameters with mean zero, but {path!r} starts "
            f"with mean {average:.3g} and standard deviation {std:.3g}, for which "
            "there is no kernel rule. Use an initialiser that is symmetric about zero."
        )
    variance = float(np.mean(square))
    kurtosis = float(np.mean(fourth)) / variance**2
    spread = error(fourth / variance**2 - 2 * kurtosis * square / variance)
    expected = (kurtosis - 1) * variance**2 / size
    tied = size > 1 and np.var(square, ddof=1) < 0.02 * expected
    estimate = Estimate(
        jnp.asarray(std), jnp.asarray(error(square) / (2 * std)), number
    )
    gaussian = abs(kurtosis - 3) < max(5 * spread, 0.03)
    return Initial(tuple(shape), None, False, estimate, bool(gaussian), not tied)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def quantiles(
    init: Callable[[Any, Any], Any], path: str, size: int, x: Any, key: Any
) -> Any:
    """Quantiles of a parameter's entries at equal steps, of mean square 1.

    Args:
        init: ``init(key, x) -> variables``.
        path: The parameter.
        size: Its number of entries.
        x: One input ``[1, ...]``.
        key: A typed key.

    Returns:
        Quantiles, the ``i``-th one at ``(i + 1/2) / m``.
    """
    number = max(1, -(-(2**18) // size))
    draw = lambda i: parameters(init(jax.random.fold_in(key, i), x))[path]
    entries = jnp.sort(jnp.ravel(jax.lax.map(draw, jnp.arange(number))))
    # A random sign for each entry would do the same: it starts with mean zero.
    step = entries.size / _QUANTILES
    ranks = (jnp.arange(_QUANTILES) + 0.5) * step - 0.5
    low = jnp.floor(ranks).astype(int)
    share = ranks - low
    high = jnp.minimum(low + 1, entries.size - 1)
    table = entries[low] * (1 - share) + entries[high] * share
    table = table - jnp.mean(table)
    return table / jnp.sqrt(jnp.mean(table**2))


def given_deviations(
    weight_std: Any, bias_std: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """Deviations that the caller states, by key path.

    Args:
        weight_std: A number for all weights, a mapping by key path or by the path of
            a layer, nested as the parameters are if need be, or None.
        bias_std: The same for biases.
        shapes: Shapes of the parameters by key path.

    Returns:
        For each parameter that is spoken of, its deviation.

    Raises:
        ValueError: A deviation is not a number that is not negative, or a path names
            no parameter.
    """
    free = [path for path in shapes if not _normalises(path, shapes)]
    weights = [path for path in free if is_weight(path, shapes[path])]
    biases = [path for path in free if path not in weights]
    given = {}
    for name, value, paths in (
        ("weight_std", weight_std, weights),
        ("bias_std", bias_std, biases),
    ):
        if value is None:
            continue
        if not isinstance(value, Mapping):
            _check_deviation(name, "", value, 0 if paths is biases else _TINY)
            given |= dict.fromkeys(paths, float(value))
            continue
        for layer, number in parameters(dict(value)).items():
            _check_deviation(
                name, f"[{layer!r}]", number, 0 if paths is biases else _TINY
            )
            exact = [layer] if layer in shapes else []
            found = exact or [p for p in paths if p.startswith(f"{layer}/")]
            if not found:
                raise ValueError(
                    f"`{name}` must name parameters of `module` by key path, but "
                    f"{layer!r} is none. They are {sorted(paths)}."
                )
            given |= dict.fromkeys(found, float(number))
    return given


def is_weight(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix, by its shape and its name (stacked biases)."""
    return len(shape) > 1 and not path.endswith(("bias", "scale"))


def _normalises(path, shapes):
    """Whether a parameter belongs to a normalisation layer, which has a scale."""
    layer = path.rpartition("/")[0]
    return path.endswith("scale") or f"{layer}/scale" in shapes


def _check_deviation(name, where, value, least):
    """Raise unless a deviation is a number, and large enough."""
    is_number = np.shape(value) == () and np.issubdtype(
        getattr(value, "dtype", np.result_type(type(value))), np.floating
    )
    if not is_number or not least <= float(value) < math.inf:
        was = f"{value!r}" if is_number else f"a {type(value).__name__}"
        raise ValueError(
            f"`{name}{where}` must be a {'positive ' if least else ''}number"
            f"{'' if least else ' that is not negative'}, but was {was}. It is the "
            "standard deviation of a weight times sqrt(fan_in), or of a bias."
        )
