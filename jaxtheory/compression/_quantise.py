"""Few levels for many numbers, learnt from them, and training that knows of it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from jaxtheory._types import KeyArray, Objective, Params
from jaxtheory.batching import (
    check_count,
    check_function,
    check_key,
    check_number,
    check_params,
)

# More levels than this are not worth their own bytes.
MOST_LEVELS = 256
_MOST_ROUNDS = 1000


class Quantised(NamedTuple):
    """An array of few different numbers.

    Attributes:
        symbols: Which level each entry is.
        levels: Increasing; each is a number of half precision, two bytes in a file.
        dtype: Name of the dtype of the array.
    """

    symbols: Int[np.ndarray, "..."]
    levels: Float[np.ndarray, " levels"]
    dtype: str

    def array(self) -> Array:
        """The array itself."""
        return jnp.asarray(self.levels[self.symbols], self.dtype)


def quantise(
    params: Params,
    *,
    num_levels: int | None = None,
    relative_error: float | None = None,
    levels: Float[ArrayLike, " levels"] | None = None,
) -> PyTree:
    r"""Round each array to a few levels of its own.

    The levels are those of Lloyd's algorithm (k-means of numbers), begun from quantiles
    and from equal distances, the better of the two: no other choice of levels near them
    has a smaller squared error. They are rounded to half precision; levels that become
    one, or that no entry is nearest to, are left out.

    Args:
        params: A parameter pytree; of an array ``u [dim]``, a pytree of one leaf.
        num_levels: Largest number of levels of an array, 1 to 256; or
        relative_error: take 2, 4, 8, ..., 256, the first with ``|W' - W|_F <=
            relative_error |W|_F``, in (0, 1); 256 where none has; or
        levels: these, rounded to half precision; of `straight_through` for example.

    Returns:
        A pytree like `params` with a `Quantised` in place of each array. ``restore``
        makes arrays of it again. Computed on the host in float64.

    Raises:
        ValueError: Not one of the three is given, or it is out of range; `params` are
            not floating-point, not finite, or beyond half precision (65,504).

    Memory:
        A few float64 copies of one array.

    Example:
        >>> import jax.numpy as jnp
        >>> found = quantise(jnp.array([0.0, 1.0, 1.5, 8.0]), num_levels=3)
        >>> found.levels.tolist(), found.symbols.tolist()
        ([0.0, 1.25, 8.0], [0, 1, 1, 2])
        >>> restore(found).tolist()
        [0.0, 1.25, 1.25, 8.0]

    References:
        Lloyd, IEEE Transactions on Information Theory 28 (1982); Han et al.,
        arXiv:1510.00149 (k-means of weights).
    """
    check_params(params)
    _check_choice(num_levels, relative_error, levels)
    if levels is not None:
        levels = _checked("levels", levels).reshape(-1)

    def round_off(path, leaf):
        values = _checked(f"params{jax.tree_util.keystr(path)}", leaf)
        dtype = jnp.result_type(leaf).name
        if levels is not None:
            return _nearest(values, levels, dtype)
        if num_levels is not None:
            return _nearest(values, _lloyd(values, num_levels), dtype)
        return _within(values, relative_error, dtype)

    return jax.tree_util.tree_map_with_path(round_off, params)


def restore(quantised: PyTree) -> Params:
    """The parameters that a pytree of `Quantised` stands for.

    Args:
        quantised: What `quantise` returned.

    Returns:
        A pytree of arrays.
    """
    is_leaf = lambda leaf: isinstance(leaf, Quantised)
    return jax.tree.map(Quantised.array, quantised, is_leaf=is_leaf)


class Codebook(NamedTuple):
    """What is trained straight through: numbers and the levels they are rounded to.

    Attributes:
        values: The numbers, before they are rounded.
        levels: The levels.
    """

    values: Float[ArrayLike, " dim"]
    levels: Float[ArrayLike, " levels"]


def straight_through(objective: Objective) -> Objective:
    """An objective of numbers, as one of the numbers that are rounded to levels.

    The objective is taken at each value's nearest level. Its gradient goes to the value
    as if nothing had been rounded, and to the level, by the sum over its values: both
    are trained.

    Args:
        objective: ``objective(u [dim], model_state, batch, key) -> (scalar,
            model_state)``; that of a `Subspace` for example.

    Returns:
        The same of a `Codebook`. ``quantise(codebook.values, levels=codebook.levels)``
        rounds what came out. Equal objectives give equal ones.

    Raises:
        ValueError: `objective` is no hashable function; when called, what is trained is
            no `Codebook`.

    Memory:
        ``dim`` numbers times the number of levels.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import compression
        >>> total = lambda u, model_state, batch, key: (jnp.sum(u**2), model_state)
        >>> codebook = compression.Codebook(
        ...     jnp.array([0.9, 1.2, -2.0]), jnp.array([-2.0, 1.0])
        ... )
        >>> loss, _ = compression.straight_through(total)(
        ...     codebook, (), (), jax.random.key(0)
        ... )
        >>> float(loss)
        6.0

    References:
        Bengio et al., arXiv:1308.3432; Lotfi et al., arXiv:2211.13609, section 4.2.
    """
    check_function("objective", objective)
    return _StraightThrough(objective)


@dataclasses.dataclass(frozen=True)
class _StraightThrough:
    """What `straight_through` returns."""

    objective: Objective

    def __call__(
        self, codebook: Any, model_state: PyTree, batch: PyTree, key: KeyArray
    ) -> tuple[Float[Array, ""], PyTree]:
        check_key(key)
        if not isinstance(codebook, Codebook):
            raise ValueError(
                "what is trained must be a `Codebook`, but is "
                f"{jax.tree.structure(codebook)}. Begin with `Codebook(u, levels)`."
            )
        values, levels = map(jnp.asarray, codebook)
        distances = jnp.abs(values[:, None] - levels[None, :])
        nearest = levels[jnp.argmin(jax.lax.stop_gradient(distances), axis=1)]
        rounded = nearest + (values - jax.lax.stop_gradient(values))
        return self.objective(rounded, model_state, batch, key)


def _check_choice(num_levels, relative_error, levels):
    """Raise unless one of the three is given and in its range."""
    num_given = sum(value is not None for value in (num_levels, relative_error, levels))
    if num_given != 1:
        raise ValueError(
            "Give one of `num_levels`, `relative_error` and `levels`, but "
            f"{f'{num_given} were' if num_given else 'none was'} given."
        )
    if num_levels is not None and check_count(num_levels=num_levels) > MOST_LEVELS:
        raise ValueError(
            f"`num_levels` must be at most {MOST_LEVELS}, but was {num_levels}."
        )
    if relative_error is not None:
        must = "strictly between 0 and 1"
        check_number("relative_error", relative_error, lambda e: 0 < e < 1, must)
    if levels is not None and not 0 < np.size(levels) <= MOST_LEVELS:
        raise ValueError(
            f"`levels` must be 1 to {MOST_LEVELS} numbers, but has shape "
            f"{np.shape(levels)}."
        )


def _checked(name, numbers):
    """The numbers in float64; raise unless half precision can hold them."""
    values = np.asarray(numbers).astype(np.float64)
    if not np.isfinite(values).all() or np.max(np.abs(values), initial=0) > 65_504:
        raise ValueError(
            f"`{name}` must be finite and within half precision (65,504), in which "
            "levels are kept, but is not. Rescale it."
        )
    return values


def _within(values, relative_error, dtype):
    """With the fewest levels that make no larger error, or with the most."""
    norm, num = np.linalg.norm(values), 2
    while True:
        found = _nearest(values, _lloyd(values, num), dtype)
        error = np.linalg.norm(found.levels[found.symbols] - values)
        if error <= relative_error * norm or num == MOST_LEVELS:
            return found
        num *= 2


def _nearest(values, levels, dtype):
    """Each value at its nearest level."""
    levels = np.unique(levels.astype(np.float16).astype(np.float32))
    symbols = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    used, symbols = np.unique(symbols, return_inverse=True)
    return Quantised(symbols.reshape(values.shape), levels[used], dtype)


def _lloyd(values, num_levels):
    """Levels of small squared error."""
    ordered = np.sort(values, axis=None)
    if not ordered.size:
        return np.zeros(0)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    spread = np.linspace(ordered[0], ordered[-1], num_levels)
    quantiles = np.quantile(ordered, (np.arange(num_levels) + 0.5) / num_levels)
    found = [_means(ordered, sums, start) for start in (quantiles, spread)]
    return min(found, key=lambda levels: _squared_error(ordered, sums, levels))


def _means(ordered, sums, levels):
    """Lloyd's rounds from given levels: cells by the nearest, levels by the mean."""
    for _ in range(_MOST_ROUNDS):
        borders = _borders(ordered, levels)
        filled = np.diff(borders) > 0
        means = np.diff(sums[borders])[filled] / np.diff(borders)[filled]
        if np.array_equal(means, levels):
            break
        levels = means
    return levels


def _borders(ordered, levels):
    """Where each level's values begin among the ordered ones, and where they end."""
    inner = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
    return np.concatenate([[0], inner, [ordered.size]])


def _squared_error(ordered, sums, levels):
    """The squared error less the sum of squares, which all levels share."""
    borders = _borders(ordered, levels)
    return np.sum(np.diff(borders) * levels**2 - 2 * levels * np.diff(sums[borders]))
