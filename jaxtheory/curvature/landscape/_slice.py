"""The loss along a line and over a plane of parameter space."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PyTree, Real

from jaxtheory._types import LossFn, Params
from jaxtheory.curvature.landscape._evaluate import (
    Recompute,
    check_landscape,
    check_same,
    check_stacked,
    losses_at,
)


class Slice1D(NamedTuple):
    """The loss along a line.

    Attributes:
        coordinates: Multiples ``c`` of the direction, ``[r]``.
        losses: Mean loss at ``params + c direction``, ``[r]``; NaN or infinite where
            the model is.
    """

    coordinates: Float[Array, " r"]
    losses: Float[Array, " r"]


class Slice2D(NamedTuple):
    """The loss over a plane.

    Attributes:
        first: Multiples ``u`` of the first direction, ``[r]``.
        second: Multiples ``v`` of the second, ``[s]``.
        losses: Mean loss at ``params + u directions[0] + v directions[1]``, ``[r, s]``:
            the first direction on axis 0; NaN or infinite where the model is.
    """

    first: Float[Array, " r"]
    second: Float[Array, " s"]
    losses: Float[Array, "r s"]


def slice_1d(
    apply_fn: Callable[..., Any],
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    direction: PyTree[Float[ArrayLike, "..."]],
    coordinates: Real[ArrayLike, " r"],
    recompute: Recompute | None = None,
    batch_size: int | None = None,
    points_at_once: int = 1,
) -> Slice1D:
    """Evaluate the mean loss along a line through the parameters.

    ``(1/n) sum_i loss_i`` at ``params + c direction`` for each coordinate ``c``:
    coordinates are in units of the direction's own length, which is not changed. A unit
    direction makes them distances; a filter-normalised one makes 1 the length of each
    filter.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Where the line is at coordinate 0.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        direction: A pytree like `params`: one of `filter_normalised`, an eigenvector of
            `linalg.top_eigenpairs`, a difference of parameters.
        coordinates: Where to evaluate, ``[r]``, any order and spacing.
        recompute: ``recompute(params, x) -> model_state``, called at every point with
            *all* inputs at once, for statistics that belong to the parameters
            (BatchNorm); the model is then ``apply_fn(params, x, model_state)``. Without
            it the statistics that the model holds are those of another network. What
            one pass in training mode leaves in Flax's BatchNorm is
            ``momentum * before + (1 - momentum) * statistics``: start it from zeros and
            divide by ``1 - momentum``.
        batch_size: Examples per chunk and device; None takes all at once.
        points_at_once: Points evaluated side by side. One is fastest on CPU; more fill
            an accelerator that a small network leaves idle.

    Returns:
        Coordinates and losses.

    Raises:
        ValueError: `direction` is not like `params`, `coordinates` no vector of at
            least two points, or as for `curvature.hessian`.

    Memory:
        ``points_at_once`` times the parameters and one chunk's activations; `r`
        evaluations of the loss, no gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> along = slice_1d(
        ...     model,
        ...     loss,
        ...     jnp.zeros(2),
        ...     jnp.eye(2),
        ...     jnp.zeros(2),
        ...     direction=jnp.array([1.0, 1.0]),
        ...     coordinates=jnp.array([-1.0, 0.0, 2.0]),
        ... )
        >>> along.losses.tolist()
        [1.0, 0.0, 4.0]

    References:
        Goodfellow, Vinyals & Saxe, arXiv:1412.6544 (lines); Li et al.,
        arXiv:1712.09913, section 3.
    """
    problem = check_landscape(
        apply_fn,
        loss_fn,
        params,
        x,
        y,
        recompute=recompute,
        batch_size=batch_size,
        points_at_once=points_at_once,
    )
    check_same(direction, params, "direction")
    coordinates = check_coordinates("coordinates", coordinates)
    anchors = (params, jax.tree.map(lambda d: jnp.asarray(d)[None], direction))
    losses = losses_at(problem, _displaced, anchors, coordinates[:, None], x, y)
    return Slice1D(coordinates, losses)


def slice_2d(
    apply_fn: Callable[..., Any],
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    directions: PyTree[Float[ArrayLike, "2 ..."]],
    first: Real[ArrayLike, " r"],
    second: Real[ArrayLike, " s"],
    recompute: Recompute | None = None,
    batch_size: int | None = None,
    points_at_once: int = 1,
) -> Slice2D:
    """Evaluate the mean loss over a plane through the parameters.

    ``(1/n) sum_i loss_i`` at ``params + u directions[0] + v directions[1]`` for each
    ``u`` of `first` and ``v`` of `second`, in units of each direction's own length. The
    directions need not be orthogonal; a picture with perpendicular axes shows angles
    and distances as they are only where they are orthonormal, as those of
    `trajectory_plane` and eigenvectors.

    Args:
        apply_fn: As for `slice_1d`.
        loss_fn: As for `slice_1d`.
        params: Where the plane is at ``(0, 0)``.
        x: As for `slice_1d`.
        y: As for `slice_1d`.
        directions: Two directions, stacked: a pytree like `params` with a leading axis
            2, as `filter_normalised`, `trajectory_plane(...).directions` and
            `linalg.top_eigenpairs(..., num=2).vectors` are.
        first: Coordinates along the first direction, ``[r]``.
        second: Coordinates along the second direction, ``[s]``.
        recompute: As for `slice_1d`.
        batch_size: As for `slice_1d`.
        points_at_once: As for `slice_1d`.

    Returns:
        Coordinates and losses ``[r, s]``.

    Raises:
        ValueError: `directions` are not two pytrees like `params`, or as for
            `slice_1d`.

    Memory:
        As for `slice_1d`; ``r s`` evaluations of the loss.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> over = slice_2d(
        ...     model,
        ...     loss,
        ...     jnp.zeros(2),
        ...     jnp.eye(2),
        ...     jnp.zeros(2),
        ...     directions=jnp.eye(2),
        ...     first=jnp.array([0.0, 1.0]),
        ...     second=jnp.array([0.0, 2.0]),
        ... )
        >>> over.losses.tolist()  # (u^2 + v^2) / 2
        [[0.0, 2.0], [0.5, 2.5]]

    References:
        Li et al., arXiv:1712.09913, sections 3 and 4.
    """
    problem = check_landscape(
        apply_fn,
        loss_fn,
        params,
        x,
        y,
        recompute=recompute,
        batch_size=batch_size,
        points_at_once=points_at_once,
    )
    num = check_stacked(directions, params, "directions")
    if num != 2:
        raise ValueError(
            f"`directions` must hold two directions on axis 0, but holds {num}. For "
            "one, call `slice_1d`."
        )
    u, v = check_coordinates("first", first), check_coordinates("second", second)
    grid = jnp.stack(jnp.meshgrid(u, v, indexing="ij"), axis=-1)
    anchors = (params, directions)
    losses = losses_at(problem, _displaced, anchors, jnp.reshape(grid, (-1, 2)), x, y)
    return Slice2D(u, v, jnp.reshape(losses, (len(u), len(v))))


def check_coordinates(name: str, coordinates: Any) -> Float[Array, " r"]:
    """Return coordinates as a floating-point vector of at least two points.

    Args:
        name: What an error message calls them.
        coordinates: The numbers.

    Returns:
        The vector.

    Raises:
        ValueError: They are no vector of real numbers, or fewer than two.
    """
    shape = np.shape(coordinates)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"`{name}` must be a vector of at least two coordinates, but has shape "
            f"{shape}. Pass `jnp.linspace(-1, 1, 51)`."
        )
    is_array = hasattr(coordinates, "dtype")
    dtype = coordinates.dtype if is_array else np.asarray(coordinates).dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(f"`{name}` must be real numbers, but has dtype {dtype}.")
    found = jnp.asarray(coordinates)
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def _displaced(anchors, coordinates):
    """``origin + sum_i coordinates[i] directions[i]``, in the origin's dtypes."""

    def leaf(origin, directions):
        origin = jnp.asarray(origin)
        moved = jnp.tensordot(coordinates, directions, 1, precision="highest")
        return (origin + moved).astype(origin.dtype)

    return jax.tree.map(leaf, *anchors)
