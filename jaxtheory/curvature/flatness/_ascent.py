"""The largest loss in a neighbourhood: SAM, ASAM, per minibatch, and Keskar's box."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PyTree, Real

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_count,
    check_key,
    check_number,
    check_word,
)
from jaxtheory.curvature.flatness._common import (
    MeanLoss,
    axpy,
    check_positive,
    evaluate,
    gaussian,
    largest,
    mean_estimate,
    norm,
    prepare,
)

Biases = Literal["scaled", "fixed", "unscaled"]


def sam_sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    rho: Real[ArrayLike, ""] = 0.05,
    num_steps: int = 1,
    key: KeyArray | None = None,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""Compute how far the loss rises in a ball around the parameters.

    .. math:: \max_{|e| \le \rho} L(t + e) - L(t), \quad
        L(t) = \frac{1}{n} \sum_i \ell(f(t, x_i), y_i)

    by steps ``e <- rho g / |g|`` with ``g`` the gradient at ``t + e``: each goes to the
    point of the ball that is farthest along the gradient. The first, from ``e = 0``,
    is SAM's; at a minimum they are power iterations, and the result tends to
    ``rho^2 lambda_max / 2``. It is the largest rise among the visited points, which is
    a lower bound on the maximum.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        rho: Radius of the ball.
        num_steps: Ascent steps, one gradient each.
        key: Where given, the ascent starts at a random point of the sphere, which an
            exact minimum needs: it has no gradient, and one step goes nowhere.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The rise. One step too long can make it negative.

    Raises:
        ValueError: `rho` is not positive, no steps, or as for `curvature.hessian`.

    Memory:
        A few copies of the parameters and one chunk's activations.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> x = jnp.diag(jnp.array([2.0, 4.0]))  # Hessian diag(2, 8)
        >>> args = (model, loss, jnp.zeros(2), x, jnp.zeros(2))
        >>> found = sam_sharpness(*args, rho=0.1, num_steps=20, key=jax.random.key(0))
        >>> round(float(found), 4)  # 0.1^2 * 8 / 2
        0.04

    References:
        Foret et al., arXiv:2010.01412, equations 1 and 2.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    return _climb(
        loss,
        _ellipsoid,
        params,
        _ball(params, rho),
        x,
        y,
        *_check_steps_and_key(num_steps, key),
    )


def asam_sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    rho: Real[ArrayLike, ""] = 0.5,
    eta: Real[ArrayLike, ""] = 0.0,
    biases: Biases = "scaled",
    num_steps: int = 1,
    key: KeyArray | None = None,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""Compute how far the loss rises in an ellipsoid that scales with the weights.

    .. math:: \max_{|T^{-1} e| \le \rho} L(t + e) - L(t), \quad T = |t| + \eta

    elementwise, by steps ``e <- rho T^2 g / |T g|`` as for `sam_sharpness`. The
    published code takes ``eta=0.01, biases="unscaled"`` and calls the measure invariant
    to rescaling; so taken it is not. With ``eta=0`` and scaled or fixed biases (the
    default here) it does not move when a ReLU layer is multiplied by ``a`` and the next
    one divided by it.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        rho: Radius, relative to the weights.
        eta: Added to ``|t|``, not negative.
        biases: What ``T`` is for arrays of at most one axis: "scaled" like weights,
            "fixed" (0: they stay), or "unscaled" (1, as published).
        num_steps: Ascent steps, one gradient each.
        key: As for `sam_sharpness`.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The largest rise among the visited points: a lower bound on the maximum.

    Raises:
        ValueError: `rho` is not positive, `eta` negative, an unknown word, no steps, or
            as for `curvature.hessian`.

    Memory:
        As for `sam_sharpness`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w["kernel"]
        >>> loss = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1) / 2
        >>> params = {"kernel": jnp.full((1, 1), 3.0)}
        >>> args = (model, loss, params, jnp.ones((2, 1)), jnp.zeros((2, 1)))
        >>> round(float(asam_sharpness(*args, rho=0.5)), 4)  # 4.5^2 / 2 - 3^2 / 2
        5.625

    References:
        Kwon et al., ASAM, arXiv:2102.11600, definition 2 and equation 7.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    scale = _relative(params, rho, eta, biases)
    return _climb(
        loss, _ellipsoid, params, scale, x, y, *_check_steps_and_key(num_steps, key)
    )


def m_sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    minibatch_size: int,
    key: KeyArray,
    neighbourhood: Literal["ball", "weights"] = "ball",
    rho: Real[ArrayLike, ""] = 0.05,
    num_steps: int = 1,
) -> Estimate:
    r"""Estimate the mean sharpness of minibatches, each at its own worst perturbation.

    .. math:: \frac{1}{B} \sum_{b=1}^{B} \max_e L_b(t + e) - L_b(t)

    over disjoint minibatches of ``m`` examples in random order, ``B = floor(n / m)``;
    up to ``m - 1`` examples are left out. Each batch chooses for itself: exact maxima
    over batches of all ``n`` examples have a mean at or above `sam_sharpness`.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        minibatch_size: ``m``, at most ``n / 2``.
        key: The order.
        neighbourhood: "ball" as for `sam_sharpness`, or "weights" as for
            `asam_sharpness` with ``eta=0, biases="scaled"``.
        rho: Its radius.
        num_steps: Ascent steps, one gradient of a minibatch each.

    Returns:
        The mean over minibatches with its standard error.

    Raises:
        ValueError: Fewer than two minibatches, or as for `sam_sharpness`.

    Memory:
        As for `sam_sharpness`, of one minibatch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.array(1.0), jnp.ones(4), jnp.zeros(4))
        >>> found = m_sharpness(*args, minibatch_size=2, key=jax.random.key(0), rho=0.5)
        >>> round(float(found.value), 4)  # 1.5^2 / 2 - 1 / 2
        0.625

    References:
        arXiv:2010.01412, section 4.1; Andriushchenko et al., A modern look at the
        relationship between sharpness and generalization, arXiv:2302.07011, section 3.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, None)
    check_key(key)
    check_word("neighbourhood", neighbourhood, ("ball", "weights"))
    n = jax.tree.leaves(x)[0].shape[0]
    minibatch_size = check_count(minibatch_size=minibatch_size)
    if 2 * minibatch_size > n:
        raise ValueError(
            f"`minibatch_size` must be at most half of the {n} examples, so that there "
            f"are two minibatches, but was {minibatch_size}."
        )
    is_ball = neighbourhood == "ball"
    scale = _ball(params, rho) if is_ball else _relative(params, rho, 0.0, "scaled")
    num_steps, _ = _check_steps_and_key(num_steps, None)
    return _by_minibatch(loss, params, scale, x, y, key, minibatch_size, num_steps)


def keskar_sharpness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    epsilon: Real[ArrayLike, ""] = 1e-3,
    num_steps: int = 10,
    key: KeyArray | None = None,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""Compute Keskar's sharpness: the relative rise of the loss in a box, in percent.

    .. math:: 100 \, \frac{\max_{e} L(t + e) - L(t)}{1 + L(t)}, \quad
        |e_i| \le \epsilon (|t_i| + 1)

    in the whole space, by steps to the corner of the box that the gradient points to,
    ``e_i <- epsilon (|t_i| + 1) sign(g_i)``. (The paper takes ten iterations of
    L-BFGS-B.) It is the largest rise among the visited points: a lower bound.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``, not negative.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        epsilon: Half the width of the box, for an entry of size 0.
        num_steps: Ascent steps, one gradient each.
        key: Where given, the ascent starts at a random corner, which an exact minimum
            needs.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The sharpness, in percent.

    Raises:
        ValueError: `epsilon` is not positive, no steps, or as for `curvature.hessian`.

    Memory:
        As for `sam_sharpness`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> args = (model, loss, jnp.array(1.0), jnp.ones(3), jnp.zeros(3))
        >>> round(float(keskar_sharpness(*args, epsilon=0.5)), 4)  # 100 (2^2 - 1) / 2
        150.0

    References:
        Keskar et al., On large-batch training for deep learning, arXiv:1609.04836,
        metric 2.1.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    check_positive("epsilon", epsilon)
    half_width = lambda p: (epsilon * (jnp.abs(p) + 1)).astype(jnp.result_type(p))
    box = jax.tree.map(half_width, params)
    rise = _climb(loss, _box, params, box, x, y, *_check_steps_and_key(num_steps, key))
    return 100 * rise / (1 + evaluate(loss, params, x, y))


def _check_steps_and_key(num_steps, key):
    """The checked number of steps, and the key or None."""
    if key is not None:
        check_key(key)
    return check_count(num_steps=num_steps), key


def _ball(params, rho):
    """The scale of a ball."""
    check_positive("rho", rho)
    return jax.tree.map(lambda p: jnp.full_like(p, rho), params)


def _relative(params, rho, eta, biases):
    """The scale ``rho T`` of ASAM."""
    check_positive("rho", rho)
    check_number("eta", eta, lambda e: 0 <= e < jnp.inf, "finite and at least 0")
    check_word("biases", biases, ("scaled", "fixed", "unscaled"))

    def scale(array):
        array = jnp.asarray(array)
        if array.ndim < 2 and biases != "scaled":
            return jnp.full_like(array, rho if biases == "unscaled" else 0.0)
        return (rho * (jnp.abs(array) + eta)).astype(array.dtype)

    return jax.tree.map(scale, params)


def _ellipsoid(direction, scale):
    """The point with ``|e / scale| <= 1`` that is farthest along a direction."""
    scaled = jax.tree.map(jnp.multiply, scale, direction)
    top = largest(scaled)
    unit = jax.tree.map(lambda s: s / jnp.where(top > 0, top, 1), scaled)
    length = jnp.where(top > 0, norm(unit), 1)
    return jax.tree.map(lambda s, u: (s * u / length).astype(s.dtype), scale, unit)


def _box(direction, scale):
    """The corner with ``|e_i| <= scale_i`` that is farthest along a direction."""
    return jax.tree.map(lambda s, d: s * jnp.sign(d), scale, direction)


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def _climb(loss, reach, params, scale, x, y, num_steps, key):
    """Largest rise among the points that steps to the farthest point visit."""
    shifted = lambda e: loss(axpy(1, e, params), x, y)
    zeros = jax.tree.map(jnp.zeros_like, params)
    base = shifted(zeros)
    if key is None:
        start, best = zeros, jnp.full_like(base, -jnp.inf)
    else:
        start = reach(gaussian(key, params), scale)
        best = shifted(start)

    def step(_, carry):
        e, best = carry
        e = reach(jax.grad(shifted)(e), scale)
        return e, jnp.maximum(best, shifted(e))

    _, best = jax.lax.fori_loop(0, num_steps, step, (start, best))
    return best - base


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _by_minibatch(loss, params, scale, x, y, key, minibatch_size, num_steps):
    """Mean of `_climb` over disjoint minibatches."""
    n = jax.tree.leaves(x)[0].shape[0]
    num_batches = n // minibatch_size
    order = jax.random.permutation(key, n)[: num_batches * minibatch_size]
    plain = MeanLoss(loss.apply_fn, loss.loss_fn)

    def one(rows):
        batch_x, batch_y = jax.tree.map(lambda a: jnp.asarray(a)[rows], (x, y))
        return _climb(
            plain, _ellipsoid, params, scale, batch_x, batch_y, num_steps, None
        )

    rises = jax.lax.map(one, order.reshape(num_batches, minibatch_size))
    return mean_estimate(rises)
