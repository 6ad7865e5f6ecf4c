"""Relative entropy of isotropic Gaussians over parameters, in float64 on the host."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory._types import Params
from jaxtheory.bounds._kl import excess_over_log1p
from jaxtheory.bounds._ledger import check_concrete


def gaussian_kl(
    squared_distance: float,
    num_params: int,
    posterior_scale: Float[ArrayLike, "..."],
    prior_scale: Float[ArrayLike, "..."],
) -> Float[np.ndarray, "..."]:
    r"""``KL(N(w, s^2 I) || N(w0, t^2 I))`` over ``p`` parameters, in nats.

    ``p/2 (s^2/t^2 - 1 - ln(s^2/t^2)) + |w - w0|^2 / (2 t^2)``. Near ``s = t`` the first
    bracket is of second order in ``s - t`` and is computed as such: a million
    parameters multiply what rounding would leave of it. Rounded up.

    Args:
        squared_distance: ``|w - w0|^2``.
        num_params: ``p``.
        posterior_scale: ``s``.
        prior_scale: ``t``, broadcast against `posterior_scale`.

    Returns:
        The relative entropy; infinite where ``t`` is too small for float64.
    """
    s, t = np.asarray(posterior_scale), np.asarray(prior_scale)
    with np.errstate(over="ignore"):
        change = (s - t) / t * ((s + t) / t)
        spread = np.where(
            np.abs(change) <= 0.5,
            excess_over_log1p(np.clip(change, -0.5, 0.5)),
            change - 2 * np.log(s / t),
        )
        shift = squared_distance / t / t
    exact = 0.5 * (num_params * spread + shift)
    return np.asarray(exact * (1 + 64 * np.finfo(np.float64).eps))


def squared_distance(params: Params, prior_params: Params) -> tuple[float, int]:
    """``|params - prior_params|^2`` and the number of parameters.

    Leaves are subtracted in float64, where the difference of two float32 is exact.

    Args:
        params: Parameter pytree.
        prior_params: Pytree of the same structure and shapes.

    Returns:
        Squared distance and number of parameters.

    Raises:
        ValueError: Structures or shapes differ, or a leaf is not finite; names it.
    """
    _check_same_structure(params, prior_params)
    total, size = 0.0, 0
    ours = jax.tree_util.tree_leaves_with_path(params)
    theirs = jax.tree.leaves(prior_params)
    for (path, leaf), prior_leaf in zip(ours, theirs, strict=True):
        difference = np.asarray(leaf, np.float64) - np.asarray(prior_leaf, np.float64)
        part = float(np.sum(np.square(difference)))
        if not np.isfinite(part):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"`params{name}` and `prior_params{name}` must be finite, but hold NaN "
                "or infinity (or differ by more than 1e154). Did training diverge?"
            )
        total += part
        size += difference.size
    return total, size


def _check_same_structure(params, prior_params):
    """Raise, naming the leaf, unless the two trees have the same leaves."""
    shapes = lambda tree: {
        jax.tree_util.keystr(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    ours, theirs = shapes(params), shapes(prior_params)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                "`prior_params` must have the structure and shapes of `params`, but "
                f"`prior_params{name}` {_shape(theirs, name)} and `params{name}` "
                f"{_shape(ours, name)}."
            )
    if jax.tree.structure(params) != jax.tree.structure(prior_params):
        raise ValueError(
            "`prior_params` must have the structure of `params`, but has "
            f"{jax.tree.structure(prior_params)} against "
            f"{jax.tree.structure(params)}. Use the same containers for both."
        )


def _shape(shapes, name):
    """How a message says what leaf `name` is."""
    return f"has shape {shapes[name]}" if name in shapes else "does not exist"


def check_scales(
    **named: float | Sequence[float] | Real[ArrayLike, "..."],
) -> Float[np.ndarray, " s"]:
    """The one named grid of standard deviations as a vector; raise if it is not one.

    Args:
        **named: One number or a sequence of numbers; the keyword is the name that an
            error message uses.

    Returns:
        The scales rounded to float32, as float64: what is sampled with float32 noise
        and what enters the relative entropy are then the same number.

    Raises:
        ValueError: The grid is empty, not a vector, traced, or holds a number that is
            not finite and positive in float32.
    """
    check_concrete(**named)
    ((name, value),) = named.items()
    with np.errstate(over="ignore", under="ignore"):
        scales = np.atleast_1d(np.asarray(value, np.float32)).astype(np.float64)
    if scales.ndim != 1 or scales.size == 0:
        raise ValueError(
            f"`{name}` must be a number or a non-empty sequence of numbers, but has "
            f"shape {np.shape(value)}."
        )
    if not np.all((scales > 0) & np.isfinite(scales)):
        raise ValueError(
            f"`{name}` must hold finite standard deviations above 0 (in float32), but "
            f"the smallest of its {scales.size} is {scales.min()} and the largest "
            f"{scales.max()}."
        )
    return scales
