"""Geometry of class means or classifier rows: frame, uniformity, one-vs-rest margin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float
from scipy.optimize import nnls

from jaxtheory.batching import check_number
from jaxtheory.collapse._frames import (
    FrameGeometry,
    geometry,
    off_diagonal,
    squared_distances,
    unit,
)
from jaxtheory.collapse._moments import check_feature_matrix


def frame_geometry(vectors: Float[Array, "k d"]) -> FrameGeometry:
    """Measure how near vectors are to a simplex equiangular tight frame.

    What `statistics` reports as NC2 for class means and for the classifier's rows, of
    any vectors: those of a theory's optimum for example. Nothing is centred: pass
    ``vectors - vectors.mean(0)`` for class means.

    Args:
        vectors: ``K`` vectors, one in each row.

    Returns:
        Distance of the Gram matrix, spread of norms and of angles. All are averages of
        absolute values, so that nothing cancels, and the numbering of the vectors does
        not matter. With ``K > d + 1`` no simplex frame fits and neither `distance` nor
        `equiangular` can reach 0. NaN where all vectors are zero.

    Raises:
        ValueError: `vectors` is not a floating-point matrix of two rows or more.

    Example:
        >>> import jax.numpy as jnp
        >>> found = frame_geometry(jnp.eye(3))  # orthogonal, so no simplex frame
        >>> print(f"{found.distance:.4f} {found.equinorm:.4f} {found.equiangular:.4f}")
        0.6058 0.0000 0.5000

    References:
        Papyan, Han & Donoho 2020, arXiv:2008.08186; Zhu et al. 2021, arXiv:2105.02375
        (the distance).
    """
    _check_vectors(vectors)
    return _frame_geometry(vectors)


@jax.jit
def _frame_geometry(vectors):
    vectors = _in_single(vectors)
    scale = jnp.max(jnp.abs(vectors))
    vectors = vectors / jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1))
    found = geometry(vectors, jnp.ones(vectors.shape[0], bool))
    return FrameGeometry(*(jnp.where(scale > 0, value, jnp.nan) for value in found))


def _in_single(vectors):
    """At least float32."""
    vectors = jnp.asarray(vectors)
    return vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))


def _check_vectors(vectors: Any) -> None:
    """Raise unless `vectors` is a floating-point matrix of two rows or more."""
    check_feature_matrix(vectors, "vectors")
    if jnp.shape(vectors)[0] < 2:
        raise ValueError(
            "`vectors` must hold at least two vectors to compare, but has shape "
            f"{jnp.shape(vectors)}."
        )


def uniformity(
    vectors: Float[Array, "k d"],
    *,
    kernel: str = "log",
    exponent: float | None = None,
) -> Float[Array, ""]:
    """Measure how evenly directions spread over the sphere; smaller is more even.

    With unit vectors ``u_i = v_i / ||v_i||``, over ordered pairs ``i != j``:

    - ``"log"``: ``mean_{ij} log(1 / ||u_i - u_j||)``;
    - ``"riesz"``: ``log mean_{ij} ||u_i - u_j||^-s``, the *logarithm* of the usual
      energy. The energy itself is ``2^(-s/2)`` for orthogonal vectors, which is 0.0 in
      float32 for ``d = 512`` and in the usual ``s = d - 2``.

    No centring: pass ``vectors - vectors.mean(0)`` for class means. Up to ``K = d + 1``
    the simplex frame is the minimum of all of them, with value ``-log(2K/(K-1)) / 2``,
    respectively `exponent` times that; beyond, these still have a minimum to compare
    with, where frame distances have none.

    Args:
        vectors: ``K`` vectors, one in each row.
        kernel: ``"log"`` or ``"riesz"``.
        exponent: ``s > 0`` of the Riesz kernel; None takes ``d - 2``, for which the
            kernel is harmonic, and at least 1. Not for ``"log"``.

    Returns:
        The logarithmic energy. Infinite where two directions coincide, NaN where a
        vector is zero or not finite. Differentiable where directions differ.

    Raises:
        ValueError: `vectors` is not a floating-point matrix of two rows or more,
            `kernel` is another word, or `exponent` is not positive or has no use.

    Example:
        >>> import jax.numpy as jnp
        >>> frame = jnp.eye(10) - 1 / 10
        >>> print(f"{uniformity(frame):.5f}")
        -0.39925

    References:
        Liu et al. 2023, arXiv:2303.06484 (generalized neural collapse, hyperspherical
        uniformity).
    """
    _check_vectors(vectors)
    if kernel not in ("log", "riesz"):
        raise ValueError(f'`kernel` must be "log" or "riesz", but was {kernel!r}.')
    if kernel == "log":
        if exponent is not None:
            raise ValueError(
                f'`exponent` must be None for the "log" kernel, but was {exponent!r}. '
                'Pass `kernel="riesz"` with it.'
            )
        return _uniformity(vectors, None)
    if exponent is None:
        exponent = float(max(1, jnp.shape(vectors)[1] - 2))
    check_number("exponent", exponent, lambda s: 0 < s < np.inf, "a positive number")
    return _uniformity(vectors, exponent)


@jax.jit
def _uniformity(vectors, exponent):
    vectors = _in_single(vectors)
    scale = jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    known = jnp.all((scale > 0) & (scale < jnp.inf))
    directions = unit(vectors / jnp.where(scale > 0, scale, 1), axis=1)
    # From differences: 2 - 2 cos has no digits left where directions are close.
    squares = squared_distances(directions)
    pairs = off_diagonal(jnp.ones(len(vectors), bool))
    apart = pairs & (squares > 0)
    logs = -jnp.log(jnp.where(apart, squares, 1)) / 2
    logs = jnp.where(apart, logs, jnp.inf)
    number = pairs.sum()
    if exponent is None:
        energy = jnp.sum(jnp.where(pairs, logs, 0)) / number
    else:
        powers = jnp.where(pairs, jnp.asarray(exponent, logs.dtype) * logs, -jnp.inf)
        energy = jax.nn.logsumexp(powers) - jnp.log(number)
        energy = jnp.where(jnp.all(apart == pairs), energy, jnp.inf)
    return jnp.where(known, energy, jnp.nan)


def one_vs_rest_margin(vectors: Float[ArrayLike, "k d"]) -> float:
    """Measure how far the worst direction is from the hull of all others.

    ``min_k dist(u_k, conv{u_j : j != k})`` with unit vectors ``u_k``: what generalized
    neural collapse maximises where ``K > d + 1`` and no simplex frame fits (softmax
    codes). A quadratic program for each ``k``, solved exactly by an active-set method
    (non-negative least squares) in float64 on the host; not under `jit`.

    The maximum over all arrangements is ``K/(K-1)`` for ``K <= d + 1`` (the simplex
    frame), 1 for ``d + 2 <= K <= 2d`` (part of an orthoplex), and ``1 - cos(2 pi / K)``
    for ``d = 2``.

    Args:
        vectors: ``K`` vectors, one in each row, concrete.

    Returns:
        The margin, between 0 and 2. 0 (to rounding) where a direction lies in the hull
        of the others. NaN where a vector is zero or not finite.

    Raises:
        ValueError: `vectors` is traced, or not a floating-point matrix of two rows or
            more.

    Memory:
        ``O(k d)``; time ``O(k^4)`` at worst, 0.1 s for 200 vectors.

    Example:
        >>> import numpy as np
        >>> print(f"{one_vs_rest_margin(np.eye(4) - 1 / 4):.4f}")
        1.3333

    References:
        Jiang et al. 2024, arXiv:2310.05351 (softmax codes, Definition of GNC2).
    """
    _check_vectors(vectors)
    if isinstance(vectors, Tracer):
        raise ValueError(
            "`vectors` must be concrete, because the programs are solved on the host, "
            "but was traced. Call it outside of `jit`."
        )
    rows = np.asarray(vectors, np.float64)
    rows = rows / np.abs(rows).max(axis=1, keepdims=True, initial=1e-300)
    with np.errstate(invalid="ignore"):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all():
        return float("nan")
    # All distances lie in the span: at most K coordinates.
    if rows.shape[1] > len(rows):
        rows = np.swapaxes(np.linalg.qr(rows.T, mode="r"), 0, 1)
    return min(_hull_distance(rows, index) for index in range(len(rows)))


def _hull_distance(rows, index):
    """Distance of one row from the convex hull of the others.

    The ``x >= 0`` that minimises ``||B x||^2 + (sum(x) - 1)^2``, with the differences
    from the row in the columns of ``B``, is ``x = t y``: for fixed ``y`` on the simplex
    the best ``t = 1/(1 + D^2)`` leaves ``D^2/(1 + D^2)``, which grows with ``D = ||B
    y||``. So ``y = x / sum(x)`` is the nearest point of the hull.
    """
    differences = np.delete(rows, index, axis=0) - rows[index]
    system = np.vstack([differences.T, np.ones(len(differences))])
    target = np.zeros(len(system))
    target[-1] = 1
    weights = nnls(system, target)[0]
    return float(np.linalg.norm(differences.T @ (weights / weights.sum())))
