"""Weight matching: the order of a network's units that is nearest to another's."""

from typing import NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Int, PyTree
from scipy.optimize import linear_sum_assignment

from jaxtheory._types import KeyArray, Params
from jaxtheory.batching import check_count, check_key, check_params
from jaxtheory.curvature.landscape._axes import (
    UnitAxes,
    check_axes,
    entries,
    leaves_by_path,
    permute_units,
    sequential_axes,
)
from jaxtheory.curvature.landscape._evaluate import check_same


class Matching(NamedTuple):
    """A network with its units in the order of another's.

    Attributes:
        params: `params_b` with its units permuted: the same function, where the axes
            name all that touches the units. Compare outputs where they were written by
            hand.
        permutations: By name, unit ``permutations[name][i]`` of `params_b` stands at
            place ``i``.
        distance: Euclidean distance of `params` from `params_a`, all leaves.
        distance_before: That of `params_b`.
        num_sweeps: Sweeps over the layers that were made.
        converged: Whether the last sweep changed nothing: no layer alone can be put
            into a better order. That is a local optimum: matching all layers at once
            is a hard problem, and another key may find a better one.
    """

    params: PyTree
    permutations: dict[str, Int[np.ndarray, " c"]]
    distance: float
    distance_before: float
    num_sweeps: int
    converged: bool


def match_weights(
    params_a: Params,
    params_b: Params,
    *,
    key: KeyArray,
    axes: UnitAxes | None = None,
    max_sweeps: int = 100,
) -> Matching:
    r"""Permute the hidden units of a network so that its weights are near another's.

    .. math:: \min_\pi |\theta_A - \pi(\theta_B)|^2

    over orders ``pi`` of the units of each layer, which leave the function as it is.
    Coordinate descent: layer after layer, in random order in every sweep, is put into
    the best order given all others, a linear assignment problem, until a sweep changes
    nothing. The distance never grows.

    Runs on the host in double precision, not under `jit`. Statistics of BatchNorm
    belong to units too: recompute them (`interpolate` with `recompute`), or put them in
    order with `permute_units`.

    Args:
        params_a: The network whose order is taken.
        params_b: The network to permute, of the same architecture.
        key: The order of the layers.
        axes: Which axes list the units of which layer; by default those of a plain
            chain of layers, `sequential_axes`.
        max_sweeps: Sweeps after which to stop; few are needed.

    Returns:
        The permuted network, its permutations and its distance.

    Raises:
        ValueError: The two differ in structure or shapes, `axes` does not fit them, or
            they are traced.

    Memory:
        Two copies of the parameters in double precision; for ``c`` units with ``q``
        weights a sweep costs ``c q + c^3`` operations per layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> model = models.MLP((8,), num_outputs=2)
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> name, order = "params/layer_1", [3, 1, 0, 2, 7, 6, 5, 4]
        >>> turned = permute_units(params, sequential_axes(params), {name: order})
        >>> found = match_weights(params, turned, key=jax.random.key(1))
        >>> found.distance, found.permutations[name].tolist()  # back again
        (0.0, [2, 1, 3, 0, 7, 6, 5, 4])

    References:
        Ainsworth, Hayase & Srinivasa, Git Re-Basin, arXiv:2209.04836, section 3.2 and
        algorithm 1.
    """
    check_params(params_a, "params_a")
    check_same(params_b, params_a, "params_b")
    check_key(key)
    max_sweeps = check_count(max_sweeps=max_sweeps)
    if any(isinstance(a, Tracer) for a in jax.tree.leaves((params_a, params_b, key))):
        raise ValueError(
            "`params_a`, `params_b` and `key` must be known, but are traced: the "
            "assignments are solved on the host. Call `match_weights` outside `jit`."
        )
    axes = sequential_axes(params_a) if axes is None else axes
    sizes = check_axes(axes, params_a)
    a, b = (_doubles(tree) for tree in (params_a, params_b))
    found = {name: np.arange(size) for name, size in sizes.items()}
    converged, sweep = False, 0
    while not converged and sweep < max_sweeps:
        order = jax.random.permutation(jax.random.fold_in(key, sweep), len(found))
        names = [list(found)[i] for i in np.asarray(order)]
        changed = [_improve(name, a, b, axes, found) for name in names]
        converged, sweep = not any(changed), sweep + 1
    return Matching(
        permute_units(params_b, axes, found),
        found,
        _distance(a, b, axes, found),
        _distance(a, b, axes, {}),
        sweep,
        converged,
    )


def _doubles(params):
    leaves = leaves_by_path(params).items()
    return {path: np.asarray(leaf, np.float64) for path, leaf in leaves}


def _improve(name, a, b, axes, found):
    """Put one layer into its best order; whether that brought the networks nearer."""
    size = len(found[name])
    gains = np.zeros((size, size))
    for path, names in axes.items():
        for axis in (i for i, other in enumerate(names) if other == name):
            # All other axes in the order found so far, this one as it came.
            others = _permuted(b[path], names, found, leave=axis)
            gains += _units(a[path], axis, size) @ _units(others, axis, size).T
    _, best = linear_sum_assignment(gains, maximize=True)
    places = np.arange(size)
    now, then = (gains[places, order].sum() for order in (found[name], best))
    if then <= now + 1e-12 * np.abs(gains).max() * size:
        return False
    # Where a leaf has the name on two axes the problem is no longer linear: look.
    before, trial = _distance(a, b, axes, found), {**found, name: best}
    if _distance(a, b, axes, trial) >= before:
        return False
    found[name] = best
    return True


def _units(leaf, axis, size):
    """A row for each unit: all that stands at its places along `axis`."""
    moved = np.moveaxis(leaf, axis, 0)
    by_unit = moved.reshape(-1, size, *moved.shape[1:])  # pixels, units, the rest
    return np.moveaxis(by_unit, 1, 0).reshape(size, -1)


def _permuted(leaf, names, orders, leave=None):
    """A leaf with its named axes in order, but for the axis `leave`."""
    for axis, name in enumerate(names):
        if name in orders and axis != leave:
            leaf = np.take(leaf, entries(orders[name], leaf.shape[axis]), axis=axis)
    return leaf


def _distance(a, b, axes, orders):
    """Euclidean distance of `a` from `b` in these orders, over all leaves."""
    ends = ((a[p], _permuted(b[p], axes.get(p, ()), orders)) for p in a)
    norms = [np.linalg.norm((left - right).ravel()) for left, right in ends]
    return float(np.linalg.norm(norms))
