"""Measures of a path, each beside what it is of two null models."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.dynamics.topology._checks import (
    MINIMUM_POINTS,
    as_points,
    as_real,
    check_metric,
    count_nonfinite,
)
from jaxtheory.dynamics.topology._dimensions import correlation, levina_bickel, two_nn
from jaxtheory.dynamics.topology._distances import distances_in
from jaxtheory.dynamics.topology._magnitude import Magnitude, magnitude
from jaxtheory.dynamics.topology._nulls import (
    distances_along,
    ornstein_uhlenbeck,
    sign_flipped,
)
from jaxtheory.dynamics.topology._path import path_length
from jaxtheory.dynamics.topology._ph_dimension import estimate
from jaxtheory.dynamics.topology._tree import (
    e_alpha,
    minimum_spanning_tree,
)

_TREE = ("e_1", "e_1_over_path_length")
_NEIGHBOURS = {
    "correlation_dimension": lambda d: correlation(d, (0.005, 0.05), 16)[:2],
    "two_nn_dimension": lambda d: two_nn(d, discard=0.1)[:2],
    "levina_bickel_dimension": lambda d: levina_bickel(
        d, num_neighbours=(10, 20), correction="mackay_ghahramani"
    )[:2],
}
_ON_HOST = ("magnitude", "positive_magnitude")
_MEASURES = (*_TREE, "ph_dimension", *_NEIGHBOURS, *_ON_HOST)


class NullDraws(NamedTuple):
    """What a measure is over draws of a null model of the path.

    Attributes:
        mean: Mean over draws.
        standard_deviation: Standard deviation over draws (``1/(n-1)``): the scale on
            which a path is apart from the null, or is not.
    """

    mean: Float[Array | np.ndarray, ""]
    standard_deviation: Float[Array | np.ndarray, ""]


class PathMeasure(NamedTuple):
    """A measure of a path beside the same of its nulls.

    Attributes:
        value: The measure of the path.
        standard_error: Its standard error ``[]``, as the function of that name says;
            None for a measure that has none because it is exact.
        sign_flipped: Draws of null A, the increments times independent random signs.
        ou: Draws of null B, a stationary Ornstein-Uhlenbeck process with the path's
            lag-1 autocorrelation and variances.
    """

    value: Float[Array | np.ndarray, ""]
    standard_error: Any
    sign_flipped: NullDraws
    ou: NullDraws


class PathMeasures(NamedTuple):
    """Measures of a path, each beside its nulls, and the conditions.

    Attributes:
        measures: What was asked for, by name.
        path_length: Length of the path in the metric: of the exact steps where they
            were given, NaN where one of them is negative.
        ou_decay: One minus the fitted lag-1 autocorrelation of null B.
        magnitude: The path's magnitude at the one scale that was used, with the flags
            that say whether to believe it; None where it was not asked for.
        num_points: Number of points ``r``.
        num_nonfinite: Number of points with a coordinate that is not finite; unless
            it is 0, every measure of the points is NaN.
        too_few: True for fewer than 500 points: the dimensions are NaN.
    """

    measures: dict[str, PathMeasure]
    path_length: Float[Array, ""]
    ou_decay: Float[Array, ""]
    magnitude: Magnitude | None
    num_points: int
    num_nonfinite: Int[Array, ""]
    too_few: Bool[Array, ""] | bool


class _Settings(NamedTuple):
    """What the compiled programs depend on."""

    metric: str
    measures: tuple[str, ...]
    num_sizes: int
    num_repeats: int


def measure_path(
    points: Float[ArrayLike, "r d"],
    *,
    key: KeyArray,
    metric: str = "euclidean",
    measures: Sequence[str] = (*_TREE, "ph_dimension"),
    step_lengths: Float[ArrayLike, " s"] | None = None,
    magnitude_scale: float | None = None,
    num_nulls: int = 20,
    num_sizes: int = 8,
    num_repeats: int = 5,
) -> PathMeasures:
    r"""Measure the tree, the dimension or the magnitude of a path, beside two nulls.

    The tree of a training path is nearly the path itself (``E_1`` was .995 to 1.000 of
    its length on seven runs), and the dimension of any slowly diffusing path is about
    2.2: no such number says much alone. So the length comes with them, and each comes
    with the same measure of two null models, drawn `num_nulls` times:

    - A, `sign_flipped`: the increments times independent random signs, which keeps
      every step's length and destroys drift.
    - B, `ou`: ``x_{t+1} = phi x_t + sqrt(1 - phi^2) sigma xi_t`` from its stationary
      law. ``phi`` is one lag-1 autocorrelation of the centred path ``c``, pooled over
      coordinates (Burg: ``2 sum <c_t, c_{t+1}>`` over ``sum |c_t|^2 + |c_{t+1}|^2``),
      ``sigma_j^2`` the variance (``1/r``) of coordinate j.

    Judge whether a path is apart from a null by the spread of the null's draws, because
    a path is one draw too: of 80 Brownian paths of 600 points in the plane, three
    standard deviations of the dimension over draws called none apart from A and three
    from B, but three of its standard errors every second one from A. The standard error
    is that of the estimate of one path alone.

    The measures are ``"e_1"`` and ``"e_1_over_path_length"`` (at most 1: near 1 the
    tree says nothing that the length does not say; NaN for a path of length 0),
    ``"ph_dimension"`` at ``alpha = 1`` (a value near 1 is not told apart from less),
    ``"correlation_dimension"``, ``"levina_bickel_dimension"``, ``"two_nn_dimension"``,
    ``"magnitude"`` and ``"positive_magnitude"``, each with the default options of the
    function of its name.

    Args:
        points: Successive points of the path, or sketches of them, one a row. For
            ``metric="loss"`` the loss vectors ``[r, n]`` of the same examples; the
            nulls then act on them.
        key: Random key, for the subsets and the nulls.
        metric: The word ``"euclidean"``, or ``"loss"`` for the mean absolute
            difference of `loss_distances`.
        measures: Names of what to measure. Magnitudes are solved on the host: with one
            of them, call it outside `jax.jit`.
        step_lengths: Exact distances between successive points, ``[r-1]``, where
            `points` are sketches. Of a traced path
            ``history.trace["step_length"][:-1]`` (the last step leads away from the
            last point), of one recorded at every step all of them. All distances are
            then rescaled by exact over sketched path length, which takes the error of
            the tree from some 2 % to .1 %.
        magnitude_scale: Scale of the magnitudes, the same for the nulls; None is one
            over the mean distance of two points of the path, where it does not
            saturate. The published ``sqrt(n)`` does.
        num_nulls: Number of draws of each null, at least 2.
        num_sizes: As for `persistent_homology_dimension`.
        num_repeats: As for `persistent_homology_dimension`.

    Returns:
        The measures, those of the nulls, and the conditions.

    Raises:
        ValueError: `points` is not a matrix of at least two floating-point rows,
            `step_lengths` does not have one real length a step, a word or an option is
            out of range, or a magnitude is asked for inside `jit`.

    Memory:
        A few times ``r^2`` and a few copies of `points`, whatever `num_nulls` is.
        Operations of each draw: ``2 r^2 d`` for the distances (``3 r^2 n``, and slower
        ones, for losses: take a random thousand of the examples) and about ``num_sizes
        num_repeats r^2`` for the trees: 9 s of one core for 2,000 points in 1,024
        coordinates. Magnitudes cost ``r^3 / 3`` a draw.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> time = jnp.arange(100.0)
        >>> line = jnp.stack([3 * time, 4 * time], axis=1)
        >>> result = measure_path(line, key=jax.random.key(0))
        >>> float(result.measures["e_1"].value), result.too_few
        (495.0, True)

    References:
        Birdal et al., arXiv:2111.13171; Andreeva et al., arXiv:2407.08723; Dupuis et
        al., arXiv:2302.02766 (the metric of losses).
    """
    check_key(key)
    points = as_points(points, at_least=2)
    check_metric(metric)
    check_count(num_nulls=num_nulls, at_least=2)
    check_count(num_sizes=num_sizes, at_least=2)
    check_count(num_repeats=num_repeats, at_least=2)
    _check_step_lengths(step_lengths, points.shape[0])
    on_host = _check_measures(measures, points, magnitude_scale)
    settings = _Settings(metric, tuple(measures), num_sizes, num_repeats)
    num_nonfinite = count_nonfinite(points)
    points = jnp.where(num_nonfinite == 0, points, jnp.nan)

    key_own, key_nulls = jax.random.split(key)
    values, errors, length, distances = _measure_own(points, key_own, settings)
    keys = jax.random.split(key_nulls, num_nulls)
    exact = length if step_lengths is None else _total(step_lengths)
    rescale = 1.0 if step_lengths is None else exact / length
    whole = None
    if on_host:
        solve = _magnitude_solver(distances, rescale, magnitude_scale)
        whole = solve(distances)
        values |= {name: getattr(whole, name)[0] for name in on_host}
        draws, decay = _draw_on_host(points, keys, settings, solve, on_host)
    else:
        draws, decay = _draw_all(points, keys, settings)
    if "e_1" in values:
        values["e_1"], draws["e_1"] = values["e_1"] * rescale, draws["e_1"] * rescale
    return PathMeasures(
        measures={
            name: _beside(values[name], errors.get(name), draws[name])
            for name in settings.measures
        },
        path_length=exact,
        ou_decay=decay,
        magnitude=whole,
        num_points=points.shape[0],
        num_nonfinite=num_nonfinite,
        too_few=points.shape[0] < MINIMUM_POINTS,
    )


@functools.partial(jax.jit, static_argnums=2)
def _measure_own(points, key, settings):
    """Values, standard errors, length and distances of the path."""
    distances = distances_in(points, metric=settings.metric)
    length = path_length(points, metric=settings.metric)
    values, errors = _evaluate(distances, length, key, settings)
    return values, errors, length, distances


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draw(points, key, settings, keep_distances=False):
    """One draw of both nulls: values ``[2]`` by name, distances, the second's decay."""
    along = distances_along
    if settings.metric == "loss":
        along = functools.partial(distances_in, metric="loss")

    def measure(args):
        path, key = args
        distances = along(path)
        length = path_length(path, metric=settings.metric)
        values, _ = _evaluate(distances, length, key, settings)
        return values, distances if keep_distances else None

    key_a, key_b, *keys = jax.random.split(key, 4)
    null_a = sign_flipped(points, key=key_a)
    null_b, decay = ornstein_uhlenbeck(points, key=key_b)
    # One after another: the memory of one draw, and one copy of the program.
    both = jnp.stack([null_a, null_b]), jnp.stack(keys)
    return *jax.lax.map(measure, both), decay


@functools.partial(jax.jit, static_argnums=2)
def _draw_all(points, keys, settings):
    """Values ``[num_nulls, 2]`` by name, and the decay of the second null."""
    draw = lambda key: _draw(points, key, settings)
    values, _, decays = jax.lax.map(draw, keys)
    return values, decays[0]


def _draw_on_host(points, keys, settings, solve, names):
    """The same with magnitudes, whose distances come to the host draw by draw."""
    draws, decays = [], []
    for key in keys:
        values, distances, decay = _draw(points, key, settings, True)
        decays.append(decay)
        solved = [solve(one) for one in distances]
        for name in names:
            values[name] = np.array([getattr(one, name)[0] for one in solved])
        draws.append(values)
    return {name: np.stack([v[name] for v in draws]) for name in draws[0]}, decays[0]


def _evaluate(distances, length, key, settings):
    """Values and standard errors, by name, of what JAX measures."""
    names, errors = settings.measures, {}
    if "ph_dimension" in names:
        sizes = settings.num_sizes, settings.num_repeats
        e_1, dimension, error, _ = estimate(distances, key, 1.0, *sizes)
        values = {"ph_dimension": dimension}
        errors["ph_dimension"] = error
    else:
        e_1 = e_alpha(minimum_spanning_tree(distances).lengths)
        values = {}
    values |= {"e_1": e_1, "e_1_over_path_length": e_1 / length}
    for name, function in _NEIGHBOURS.items():
        if name in names:
            values[name], errors[name] = function(distances)
    return {name: values[name] for name in names if name in values}, errors


def _total(step_lengths):
    """The sum of lengths; NaN unless they can be lengths."""
    steps = as_real("step_lengths", step_lengths)
    return jnp.where(jnp.all(steps >= 0), jnp.sum(steps), jnp.nan)


def _magnitude_solver(distances, rescale, scale):
    """A function that solves the magnitude of rescaled distances at one scale."""
    rescale, mean = float(rescale), float(jnp.mean(distances))
    if scale is None:
        # Of points that all coincide the magnitude is 1 at every scale; of what are
        # no distances it is NaN.
        known = 0 < mean * rescale < math.inf
        scale = 1 / (mean * rescale) if known else 1.0
    on_host = lambda distances: np.asarray(distances, np.float64) * rescale
    return lambda distances: magnitude(on_host(distances), scales=[float(scale)])


def _beside(value, error, draws):
    """A measure beside the mean and deviation of its draws ``[num_nulls, 2]``."""
    means, deviations = draws.mean(axis=0), draws.std(axis=0, ddof=1)
    null_a, null_b = map(NullDraws, means, deviations)
    return PathMeasure(value, error, null_a, null_b)


def _check_measures(measures, points, magnitude_scale):
    """The names that are solved on the host; raise unless all are known."""
    listed = isinstance(measures, Sequence) and not isinstance(measures, str)
    if not listed or not measures or any(one not in _MEASURES for one in measures):
        raise ValueError(
            f"`measures` must be names out of {', '.join(_MEASURES)}, but was "
            f"{measures!r}."
        )
    if magnitude_scale is not None:
        positive = lambda a: 0 < a < math.inf
        check_number(
            "magnitude_scale", magnitude_scale, positive, "positive and finite"
        )
    on_host = [name for name in measures if name in _ON_HOST]
    if on_host and isinstance(points, Tracer):
        raise ValueError(
            "`measures` must hold no magnitude inside `jax.jit`, because it is solved "
            f"in double precision on the host, but was {measures!r}. Call "
            "`measure_path` outside."
        )
    return on_host


def _check_step_lengths(step_lengths, r):
    """Check that there is one length a step."""
    if step_lengths is not None and np.shape(step_lengths) != (r - 1,):
        raise ValueError(
            f"`step_lengths` must hold one length a step, shape ({r - 1},), but has "
            f"shape {np.shape(step_lengths)}. Entry t is the distance from point t to "
            "point t + 1: of points from `history.trace` that is "
            '`history.trace["step_length"][:-1]`. Leave it out where it is not known.'
        )
