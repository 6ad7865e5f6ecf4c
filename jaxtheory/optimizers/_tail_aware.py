"""Learning rates of layers by the tails of their weight spectra (TempBalance)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxtheory._types import Params
from jaxtheory.batching import check_count, check_function, check_number


class TailAwareRatesState(NamedTuple):
    """State of `tail_aware_rates`.

    Attributes:
        count: Number of updates made.
        indices: The tail index of each layer that was measured last, by path; NaN
            before the first update.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    indices: dict[str, Float[Array, ""]]


def tail_aware_rates(
    measure: Callable[[Params], Mapping[str, Float[Array, ""]]],
    *,
    every: int,
    smallest: float | Float[Array, ""] = 0.5,
    largest: float | Float[Array, ""] = 1.5,
) -> optax.GradientTransformation:
    r"""Give layers with lighter-tailed spectra larger learning rates (TempBalance).

    The updates of layer ``i`` are multiplied by

    .. math:: s_1 + (s_2 - s_1) \,
        \frac{\alpha_i - \min_j \alpha_j}{\max_j \alpha_j - \min_j \alpha_j}

    so that the layer with the heaviest tail (smallest ``alpha``, thought to be trained
    most) has `smallest` times the rate of the optimizer and that with the lightest
    `largest` times. The indices are measured at the first update and at every
    `every`-th after it, inside the compiled program.

    Put it last in a chain: then it multiplies the learning rate (and with `optax.adamw`
    the weight decay too). What has no index, or one that is not finite, keeps the
    rate of the optimizer, and so does everything while all indices are equal.

    The exponent of a power law fitted to each spectrum is that of
    `dynamics.tails.weight_spectra` (NaN below 20 eigenvalues: small output layers)::

        def measure(params):
            spectra = dynamics.tails.weight_spectra(params, key=jax.random.key(0))
            return {path: s.power_law.exponent for path, s in spectra.items()}


        optimizer = optax.chain(optax.sgd(0.1), tail_aware_rates(measure, every=100))

    The published index (PL_Alpha_Hill) is Hill's of the upper half of the eigenvalues:
    ``1 + dynamics.tails.hill(s.noise.eigenvalues, num_tail=k).value`` with ``k`` half
    their number. The published code leaves out the first and the last layer; here
    `measure` says which layers there are.

    Args:
        measure: ``measure(params) -> {path: index}``, jittable; paths as
            `jax.tree_util.keystr` writes them, as of `dynamics.tails.weight_spectra`.
            Compiled once: what it closes over must not change.
        every: Updates from one measurement to the next (published: an epoch).
        smallest: Factor ``s_1`` of the layer with the smallest index, positive.
        largest: Factor ``s_2`` of that with the largest.

    Returns:
        The optax transform, with a `TailAwareRatesState`. Its `update` needs `params`.

    Raises:
        ValueError: An argument is out of range; when called, `params` are missing, or
            `measure` does not return numbers by paths of the parameters.

    Memory:
        That of `measure`, whose cost comes once in `every` updates. In a population,
        whose runs are vectorised, it comes at each update.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> measure = lambda params: {"['a']": jnp.array(4.0), "['b']": jnp.array(2.0)}
        >>> optimizer = tail_aware_rates(measure, every=10)
        >>> params = {"a": jnp.ones(1), "b": jnp.ones(1), "bias": jnp.ones(1)}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> [float(updates[name][0]) for name in ("a", "b", "bias")]
        [1.5, 0.5, 1.0]

    References:
        Zhou et al., arXiv:2312.00359, section 3 (TempBalance).
    """
    check_function("measure", measure)
    every = check_count(every=every)
    positive = lambda s: 0 < s < math.inf
    check_number("smallest", smallest, positive, "positive and finite")
    check_number("largest", largest, positive, "positive and finite")

    def init(params: PyTree) -> TailAwareRatesState:
        shapes = jax.eval_shape(measure, params)
        _check_indices(shapes, params)
        nothing = {path: jnp.full((), jnp.nan, a.dtype) for path, a in shapes.items()}
        return TailAwareRatesState(jnp.zeros((), jnp.int32), nothing)

    def update(
        updates: PyTree, state: Any, params: PyTree = None
    ) -> tuple[PyTree, TailAwareRatesState]:
        if params is None:
            raise ValueError(
                "`params` must be given, because layers are measured, but is None. Call"
                " `update(updates, state, params)`."
            )
        indices = jax.lax.cond(
            state.count % every == 0,
            lambda params: dict(measure(params)),
            lambda params: state.indices,
            params,
        )
        factors = _factors(indices, smallest, largest)
        scale = lambda path, leaf: _scaled(
            leaf, factors.get(jax.tree_util.keystr(path))
        )
        updates = jax.tree_util.tree_map_with_path(scale, updates)
        count = optax.safe_increment(state.count)
        return updates, state._replace(count=count, indices=indices)

    return optax.GradientTransformation(init, update)


def _factors(indices, smallest, largest):
    """The factor of each layer that has an index."""
    alphas = jnp.stack([*indices.values()])
    known = jnp.isfinite(alphas)
    low = jnp.min(jnp.where(known, alphas, jnp.inf))
    width = jnp.max(jnp.where(known, alphas, -jnp.inf)) - low
    apart = known & (width > 0)
    # Nothing that is not finite is divided: a NaN would pass through `where` too.
    share = jnp.where(apart, alphas - low, 0) / jnp.where(width > 0, width, 1)
    factors = jnp.where(apart, smallest + (largest - smallest) * share, 1)
    return dict(zip(indices, factors, strict=True))


def _scaled(leaf, factor):
    if factor is None:
        return leaf
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        raise ValueError(
            "`updates` of layers that are measured must be floating-point, but one has "
            f"dtype {jnp.result_type(leaf)}, in which a factor would be 0 or 1."
        )
    return leaf * factor.astype(leaf.dtype)


def _check_indices(shapes, params):
    """Raise unless there is one real number for each of some paths."""
    paths = {
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    if not isinstance(shapes, Mapping) or not shapes or not set(shapes) <= paths:
        was = sorted(shapes) if isinstance(shapes, Mapping) else type(shapes).__name__
        raise ValueError(
            f"`measure` must return indices by paths of the parameters, {sorted(paths)}"
            f", but returned {was}."
        )
    for path, a in shapes.items():
        is_array = isinstance(a, jax.ShapeDtypeStruct)
        if is_array and not a.shape and jnp.issubdtype(a.dtype, jnp.floating):
            continue
        was = f"has shape {a.shape} and dtype {a.dtype}" if is_array else f"is {a!r}"
        raise ValueError(
            f"`measure` must return floating-point scalars, but that of {path!r} {was}."
        )
