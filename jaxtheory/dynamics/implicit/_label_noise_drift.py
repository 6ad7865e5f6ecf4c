"""What label noise minimises along the minima of a squared loss, exactly."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num, PyTree, Real

from jaxtheory._types import ApplyFn, LossFn, Params
from jaxtheory.batching import check_count, check_number, check_problem


class LabelNoiseDrift(NamedTuple):
    """The implicit regulariser of label noise at one point, and where it drives.

    Attributes:
        regulariser: ``R`` of `label_noise_regulariser`; infinite unless `stable`.
        leading: Its leading order in the learning rate,
            ``eta c sigma^2 / (4 B) tr H``.
        gradient: Gradient of `regulariser`, a pytree like the parameters.
        drift: Mean change of the parameters in one step, along the minima:
            ``-eta`` times `gradient`, projected on the kernel of the Jacobian.
        sharpness: Largest eigenvalue of ``H``.
        stable: Whether `sharpness` is below ``2 / eta``. Otherwise there is no
            stationary law, and no drift.
        is_squared: Whether the loss is ``c/2 |f - y|^2`` as far as its second
            derivatives at these outputs tell (to 1e-3). Otherwise the numbers here
            mean nothing.
        loss: Mean loss on the clean targets. All this holds near its zero.
        rank: Rank of the Jacobian; the minima have dimension ``p - rank``.
    """

    regulariser: Float[Array, ""]
    leading: Float[Array, ""]
    gradient: PyTree
    drift: PyTree
    sharpness: Float[Array, ""]
    stable: Bool[Array, ""]
    is_squared: Bool[Array, ""]
    loss: Float[Array, ""]
    rank: Int[Array, ""]


def label_noise_regulariser(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: Num[Array, "n ..."],
    *,
    scale: Real[ArrayLike, ""],
    learning_rate: Real[ArrayLike, ""],
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""What SGD with label noise minimises among the minima of a squared loss.

    .. math:: R = -\frac{c \sigma^2}{2 B} \operatorname{tr}\log
        \left(I - \frac{\eta}{2} H\right), \quad
        H = \frac{c}{n} \sum_i J_i^\top J_i

    for per-example losses ``c/2 |f - y|^2`` (``c`` is read off the loss: 1 for half the
    square, 2 for the square, ``2/k`` for a mean over ``k`` outputs) and noise of
    standard deviation ``sigma`` on every target. In the mean the parameters follow
    ``-eta grad(L + R)``, projected on the minima. To leading order in ``eta`` it is
    ``eta c sigma^2 / (4 B) tr H``; near ``H = 2 / eta`` it is much larger.

    Why: on the minima the noise has covariance ``c sigma^2 / B`` times ``H``, with
    ``H`` the Hessian there, so that the deviations have the stationary covariance
    ``S = eta c sigma^2 / B (2 I - eta H)^-1`` of the discrete recursion (not of its
    continuous limit), and ``1/2 <S, grad H>`` is the gradient of ``R``. It is to
    leading order in ``sigma`` and exact in ``eta`` when a batch is all examples. With
    smaller batches the Hessian of a batch fluctuates too, which is left out.

    To be added to a loss, jitted and differentiated as it is.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: A squared loss, ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters.
        x: Inputs ``[n, ...]``.
        y: Clean targets ``[n, ...]``; only their shape matters.
        scale: Standard deviation ``sigma`` of the noise.
        learning_rate: ``eta``.
        batch_size: Examples ``B`` of a step; None is all ``n``.

    Returns:
        ``R``; infinite where an eigenvalue of ``H`` reaches ``2 / eta``, NaN where the
        second derivatives of the loss are not those of a square.

    Raises:
        ValueError: The model, the loss and the examples do not fit, or a number is out
            of range.

    Memory:
        The Jacobian, ``n k p`` numbers, and its Gram matrix, of the smaller of ``n k``
        and ``p``; cubic time in that.

    Example:
        >>> import jax.numpy as jnp
        >>> value = label_noise_regulariser(
        ...     lambda w, x: x * w[0] * w[1],
        ...     lambda out, y: (out - y) ** 2 / 2,
        ...     jnp.array([1.0, 1.0]),
        ...     jnp.ones(1),
        ...     jnp.ones(1),
        ...     scale=0.5,
        ...     learning_rate=0.1,
        ... )
        >>> round(float(value), 4)  # -.125 log(1 - .1), as H has eigenvalues 2 and 0
        0.0132

    References:
        Damian, Ma & Lee, arXiv:2106.06530, theorem 1 (their ``lambda R``, with
        ``lambda = eta sigma^2 / B``); Blanc et al., arXiv:1904.09080 and Li, Wang &
        Arora, arXiv:2110.06914 (the leading order).
    """
    setting = _check(apply_fn, loss_fn, params, x, y, scale, learning_rate, batch_size)
    noise = setting, scale, learning_rate
    return _regulariser(apply_fn, loss_fn, params, x, y, *noise)


def label_noise_drift(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: Num[Array, "n ..."],
    *,
    scale: Real[ArrayLike, ""],
    learning_rate: Real[ArrayLike, ""],
    batch_size: int | None = None,
) -> LabelNoiseDrift:
    """Where label noise drives the parameters along the minima of a squared loss.

    The mean change in one step is ``-eta P grad R``, with ``R`` the full regulariser of
    `label_noise_regulariser` and ``P`` the projection on the kernel of the Jacobian,
    along which a minimum can move without a loss.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: A squared loss, ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at, or near, a minimum with zero loss.
        x: Inputs ``[n, ...]``.
        y: Clean targets ``[n, ...]``.
        scale: Standard deviation of the noise.
        learning_rate: ``eta``.
        batch_size: Examples of a step; None is all ``n``.

    Returns:
        Regulariser, drift, and what tells whether they hold: see `LabelNoiseDrift`.

    Raises:
        ValueError: As for `label_noise_regulariser`.

    Memory:
        A few times the Jacobian, ``n k p`` numbers, with its singular vectors.

    Example:
        >>> import jax.numpy as jnp
        >>> result = label_noise_drift(
        ...     lambda w, x: x * w[0] * w[1],
        ...     lambda out, y: (out - y) ** 2 / 2,
        ...     jnp.array([2.0, 0.5]),
        ...     jnp.ones(1),
        ...     jnp.ones(1),
        ...     scale=0.5,
        ...     learning_rate=0.1,
        ... )
        >>> bool(result.stable), float(result.loss), int(result.rank)
        (True, 0.0, 1)
        >>> [round(float(step), 4) for step in result.drift]  # towards equal factors
        [-0.0028, 0.0007]

    References:
        Damian, Ma & Lee, arXiv:2106.06530, theorem 1; Li, Wang & Arora,
        arXiv:2110.06914, corollary 5.2 (the leading order).
    """
    setting = _check(apply_fn, loss_fn, params, x, y, scale, learning_rate, batch_size)
    noise = setting, scale, learning_rate
    return _drift(apply_fn, loss_fn, params, x, y, *noise)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _regulariser(apply_fn, loss_fn, params, x, y, batch_size, scale, learning_rate):
    jacobian, _ = _jacobian(apply_fn, params, x)
    curvature, is_squared = _curvature(loss_fn, apply_fn(params, x), y)
    full, _, _ = _values(jacobian, curvature, y, batch_size, scale, learning_rate)
    return jnp.where(is_squared, full, jnp.nan)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _drift(apply_fn, loss_fn, params, x, y, batch_size, scale, learning_rate):
    outputs = apply_fn(params, x)
    curvature, is_squared = _curvature(loss_fn, outputs, y)
    jacobian, unravel = _jacobian(apply_fn, params, x)
    noise = curvature, y, batch_size, scale, learning_rate
    full, leading, sharpness = _values(jacobian, *noise)

    def regulariser(params):
        return _values(_jacobian(apply_fn, params, x)[0], *noise)[0]

    gradient, _ = ravel_pytree(jax.grad(regulariser)(params))
    gradient = gradient.astype(jacobian.dtype)
    _, singular, rows = jnp.linalg.svd(jacobian, full_matrices=False)
    tolerance = max(jacobian.shape) * jnp.finfo(jacobian.dtype).eps
    seen = singular > tolerance * singular[0]
    product = functools.partial(jnp.matmul, precision="highest")
    normal = product(jnp.where(seen, product(rows, gradient), 0), rows)
    return LabelNoiseDrift(
        regulariser=full,
        leading=leading,
        gradient=unravel(gradient),
        drift=unravel(-learning_rate * (gradient - normal)),
        sharpness=sharpness,
        stable=learning_rate * sharpness < 2,
        is_squared=is_squared,
        loss=jnp.mean(loss_fn(outputs, y)),
        rank=jnp.sum(seen),
    )


def _jacobian(apply_fn, params, x):
    """The Jacobian ``[n k, p]`` in at least float32, and the way back from ``[p]``."""
    flat, unravel = ravel_pytree(params)
    outputs = lambda w: jnp.ravel(apply_fn(unravel(w), x))
    wide = flat.size < jax.eval_shape(outputs, flat).size
    jacobian = (jax.jacfwd if wide else jax.jacrev)(outputs)(flat)
    dtype = jnp.promote_types(jacobian.dtype, jnp.float32)
    return jacobian.astype(dtype), lambda w: unravel(w.astype(flat.dtype))


def _curvature(loss_fn, outputs, y):
    """``c`` of a loss ``c/2 |f - y|^2``, and whether it is one."""

    def one(output, target):
        loss = lambda f, t: loss_fn(f[None], t[None])[0]
        own, mixed = jax.jacfwd(jax.grad(loss), argnums=(0, 1))(output, target)
        shape = (output.size, output.size)
        return jnp.reshape(own, shape), jnp.reshape(mixed, shape)

    own, mixed = jax.vmap(one)(outputs, y.astype(outputs.dtype))
    curvature = jnp.mean(jnp.diagonal(own, axis1=1, axis2=2))
    exact = curvature * jnp.eye(own.shape[-1], dtype=own.dtype)[None]
    worst = jnp.maximum(jnp.max(jnp.abs(own - exact)), jnp.max(jnp.abs(mixed + exact)))
    return curvature, (worst <= 1e-3 * curvature) & (curvature > 0)


def _values(jacobian, curvature, y, batch_size, scale, learning_rate):
    """The regulariser, its leading order, and the largest eigenvalue of H."""
    wide = jacobian if jacobian.shape[0] <= jacobian.shape[1] else jacobian.T
    gram = jnp.matmul(wide, wide.T, precision="highest")
    eigenvalues = jnp.linalg.eigvalsh(gram) * curvature / y.shape[0]
    half = learning_rate * jnp.maximum(eigenvalues, 0) / 2
    stable = half[-1] < 1
    logs = jnp.sum(jnp.log1p(-jnp.where(stable, half, 0)))
    strength = curvature * scale**2 / (2 * batch_size)
    full = jnp.where(stable, -strength * logs, jnp.inf)
    return full, strength * jnp.sum(half), eigenvalues[-1]


def _check(apply_fn, loss_fn, params, x, y, scale, learning_rate, batch_size):
    """Check what both functions are given; the number of examples of a step."""
    n = check_problem(apply_fn, loss_fn, params, x, y)
    outputs = jax.eval_shape(apply_fn, params, x)
    if getattr(outputs, "shape", None) != jnp.shape(y):
        raise ValueError(
            "`y` must have the shape of the outputs, as a squared loss compares them "
            f"entry by entry, but has shape {jnp.shape(y)} where `apply_fn` returned "
            f"{jax.tree.map(jnp.shape, outputs)}."
        )
    finite = lambda s: 0 <= s < float("inf")
    check_number("scale", scale, finite, "a finite number, at least 0")
    positive = lambda s: 0 < s < float("inf")
    check_number("learning_rate", learning_rate, positive, "positive and finite")
    if batch_size is None:
        return n
    if check_count(batch_size=batch_size) > n:
        raise ValueError(
            f"`batch_size` must be at most the number of examples, {n}, but was "
            f"{batch_size}."
        )
    return batch_size
