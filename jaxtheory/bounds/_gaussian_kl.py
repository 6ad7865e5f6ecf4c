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


def anisotropy(
    spread: Params, params: Params, scales: Float[np.ndarray, " s"]
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    r"""What standard deviations ``scale * spread_i`` cost beyond those of one size.

    ``KL(N(w, diag(s_i^2)) || N(w0, t^2 I))`` is that of the isotropic posterior with
    the same trace of the covariance, plus ``1/2 (p ln mean(s_i^2) - sum ln s_i^2)``,
    which is not negative and does not depend on ``t``. Products are rounded to float32,
    as the draws are made.

    Args:
        spread: Pytree like `params` of relative standard deviations.
        params: Parameter pytree.
        scales: What multiplies all of them.

    Returns:
        For each scale the root of the mean square, and the excess in nats, rounded up.

    Raises:
        ValueError: Structures or shapes differ, or a product is not positive and finite
            in float32; names the leaf.
    """
    check_same_structure(params, spread, "posterior_spread")
    num = sum(np.size(leaf) for leaf in jax.tree.leaves(spread))
    squares, logarithms, size = (np.zeros(len(scales)) for _ in range(3))
    for path, leaf in jax.tree_util.tree_leaves_with_path(spread):
        values = np.asarray(leaf, np.float32)
        for index, scale in enumerate(scales):
            with np.errstate(over="ignore", under="ignore"):
                product = np.float64(np.float32(scale) * values)
            if not np.all((product > 0) & np.isfinite(product)):
                raise ValueError(
                    f"`posterior_spread{jax.tree_util.keystr(path)}` must be positive "
                    "and finite (in float32, also after multiplication with "
                    f"`posterior_scales`), but times {scale:.3g} it ranges from "
                    f"{product.min():.3g} to {product.max():.3g}."
                )
            logarithm = 2 * np.log(product)
            squares[index] += np.sum(product**2)
            logarithms[index] += np.sum(logarithm)
            size[index] += np.sum(np.abs(logarithm))
    mean = squares / num
    excess = (num * np.log(mean) - logarithms) / 2
    slack = 64 * np.finfo(np.float64).eps * (size + num)
    return np.sqrt(mean), np.maximum(excess, 0) + slack


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
    check_same_structure(params, prior_params, "prior_params")
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


def check_same_structure(params: Params, other: Params, name: str) -> None:
    """Raise, naming the leaf of `other`, unless the two trees have the same leaves."""
    shapes = lambda tree: {
        jax.tree_util.keystr(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    ours, theirs = shapes(params), shapes(other)
    for leaf in [*ours, *theirs]:
        if ours.get(leaf) != theirs.get(leaf):
            raise ValueError(
                f"`{name}` must have the structure and shapes of `params`, but "
                f"`{name}{leaf}` {_shape(theirs, leaf)} and `params{leaf}` "
                f"{_shape(ours, leaf)}."
            )
    if jax.tree.structure(params) != jax.tree.structure(other):
        raise ValueError(
            f"`{name}` must have the structure of `params`, but has "
            f"{jax.tree.structure(other)} against "
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
