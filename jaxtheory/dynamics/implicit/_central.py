"""The central flow: what gradient descent does at the edge of stability, on average."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from jaxtheory._types import KeyArray, Params
from jaxtheory.batching import check_count, check_key
from jaxtheory.dynamics.implicit._complementarity import (
    matrix,
    pairs,
    solve_complementarity,
    vector,
)
from jaxtheory.dynamics.implicit._loss import (
    check_loss,
    check_times,
    flat_loss,
    flatten,
)
from jaxtheory.linalg import function_operator, top_eigenpairs

_product = functools.partial(jnp.matmul, precision="highest")


class CentralFlow(NamedTuple):
    """The central flow at the times of gradient descent's steps.

    Attributes:
        steps: Gradient descent's steps ``s`` that were recorded, from 0.
        times: ``learning_rate * s``.
        path: The parameters, each leaf with a leading axis ``r``.
        losses: ``L`` on the path.
        average_losses: ``L + 1/2 <H, Sigma>``: what the loss of gradient descent is on
            average while it oscillates around the path.
        sharpness: The largest eigenvalues of ``H``, largest first, ``[r, k]``.
        variances: Eigenvalues of ``Sigma``, largest first, ``[r, k]``: the variances of
            the oscillation.
        slackness: ``<Sigma, I - eta H / 2> / tr Sigma``, 0 where ``Sigma`` is:
            complementarity, as it holds on the path.
        violation: How far the sharpness is above ``2 / eta``, in units of it; else 0.
        residual: Largest residual of the complementarity problems solved since the
            record before.
        converged: Whether, since the record before, all eigenpairs and all of these
            problems were found (to 1e-2 and 1e-3), and the path is finite.
        exhausted: Whether ``Sigma`` has full rank ``k < p``: then more directions may
            oscillate than were followed. Raise `num_directions`.
    """

    steps: Int[np.ndarray, " r"]
    times: Float[Array, " r"]
    path: PyTree[Float[Array, "r ..."]]
    losses: Float[Array, " r"]
    average_losses: Float[Array, " r"]
    sharpness: Float[Array, "r k"]
    variances: Float[Array, "r k"]
    slackness: Float[Array, " r"]
    violation: Float[Array, " r"]
    residual: Float[Array, " r"]
    converged: Bool[Array, " r"]
    exhausted: Bool[Array, " r"]


class _Law(NamedTuple):
    """What the central flow knows at one point."""

    directions: Array  # [k, p], the top eigenvectors of H
    values: Array  # [k]
    covariance: Array  # [k, k], Sigma on them
    force: Array  # [p], 1/2 grad <H, Sigma>
    residual: Array
    converged: Array


class _Setting(NamedTuple):
    """The static numbers of a run; hashable."""

    num_directions: int
    num_substeps: int
    num_iterations: int


def central_flow(
    loss: Callable[..., Float[Array, ""]],
    params: Params,
    *data: PyTree,
    learning_rate: Real[ArrayLike, ""],
    num_steps: int,
    key: KeyArray,
    num_directions: int = 3,
    record_every: int = 1,
    num_substeps: int = 4,
    num_iterations: int | None = None,
) -> CentralFlow:
    r"""Integrate the central flow of gradient descent.

    .. math:: \dot w = -\nabla \left[L(w) + \tfrac12 \langle H(w), \Sigma\rangle\right],
        \quad \Sigma \succeq 0, \quad \tfrac{2}{\eta} I - H(w) \succeq 0, \quad
        \langle \Sigma, \tfrac{2}{\eta} I - H(w) \rangle = 0

    with ``Sigma`` held fixed in the gradient: the covariance of the oscillation around
    the path that keeps the Hessian ``H`` from rising above ``2 / eta``. Away from the
    edge of stability ``Sigma`` is zero and this is `gradient_flow`.

    ``Sigma`` lives on the leading eigenvectors of ``H``, found by Lanczos from those of
    the substep before. There the change of ``H`` in a substep is linear in ``Sigma``,
    and the condition at its end is a semidefinite linear complementarity problem, of
    the size of `num_directions`. Then the path moves with ``Sigma`` held, by
    the classical Runge-Kutta method.

    It starts below the edge of stability: where the sharpness exceeds ``2 / eta`` at
    `params` there is no central flow (`violation` says so), and the first steps bring
    it down as fast as the linear problem allows.

    Args:
        loss: ``loss(params, *data) -> scalar``, the loss as gradient descent
            differentiates it, three times differentiable (no ReLU).
        params: Where gradient descent starts.
        *data: Arrays that `loss` needs. (What it closes over is compiled in.)
        learning_rate: ``eta``.
        num_steps: Steps of gradient descent to go along with.
        key: Start vectors of Lanczos.
        num_directions: Eigenvectors ``k`` to follow: more than reach the edge of
            stability together.
        record_every: Steps between records; divides `num_steps`.
        num_substeps: Substeps to a step; the error is of first order in their length
            while ``Sigma`` is not zero.
        num_iterations: Krylov dimension of a warm start; None is
            ``min(p, 2 k + 16)``.

    Returns:
        The path and what holds on it; see `CentralFlow`.

    Raises:
        ValueError: `loss` does not return one number, `params` are not floating-point,
            a number is out of range, or `key` is no typed key.

    Memory:
        The path; ``num_iterations + k (k + 1) / 2`` vectors ``[p]``. A substep costs
        4 gradients, ``num_iterations + k`` Hessian products and ``k (k + 1) / 2``
        derivatives of these.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> # The sharpness is 1 + b; b rises until eta holds it at 2 / eta = 2.
        >>> loss = lambda w: (1 + w["b"]) * w["a"] ** 2 / 2 - w["b"] / 10
        >>> start = {"a": jnp.array(0.1), "b": jnp.array(0.8)}
        >>> flow = central_flow(
        ...     loss,
        ...     start,
        ...     learning_rate=1.0,
        ...     num_steps=10,
        ...     num_directions=1,
        ...     key=jax.random.key(0),
        ... )
        >>> bool(flow.converged.all()), round(float(flow.path["b"][-1]), 3)
        (True, 1.0)
        >>> round(float(flow.variances[-1, 0]), 3)  # Sigma / 2 balances the slope .1
        0.2

    References:
        Cohen et al., arXiv:2410.24206, definition 1 and appendix A (the differential
        complementarity problem).
    """
    check_key(key)
    check_loss(loss, params, data)
    num_records = check_times(learning_rate, num_steps, record_every)
    p = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    setting = _check_setting(p, num_directions, num_substeps, num_iterations)
    numbers = (learning_rate, record_every)
    rows = _central(loss, setting, num_records, params, data, key, *numbers)
    steps = np.arange(num_records + 1) * int(record_every)
    return CentralFlow(steps, *rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _central(loss, setting, num_records, params, data, key, learning_rate, every):
    flat, unravel = flatten(params)
    eta = jnp.asarray(learning_rate, flat.dtype)
    value = flat_loss(loss, params, data)
    law_of = functools.partial(_law, value, setting, eta)
    substeps = setting.num_substeps * every

    def substep(index, carry):
        w, law, residual, converged, base = carry
        w = _move(value, eta / setting.num_substeps, w, law.force)
        law = law_of(w, law.directions, jax.random.fold_in(key, base + index))
        residual = jnp.maximum(residual, law.residual)
        converged &= law.converged & jnp.all(jnp.isfinite(w))
        return w, law, residual, converged, base

    def interval(carry, record):
        w, law = carry
        base = 1 + record * substeps
        start = (w, law, jnp.zeros_like(eta), jnp.array(True), base)
        w, law, residual, converged, _ = jax.lax.fori_loop(0, substeps, substep, start)
        row = _row(value, eta, w, law)
        return (w, law), (unravel(w), *row, residual, converged, _exhausted(law, w))

    law = law_of(flat, None, jax.random.fold_in(key, 0))
    row = _row(value, eta, flat, law)
    first = (unravel(flat), *row, law.residual, law.converged, _exhausted(law, flat))
    _, rows = jax.lax.scan(interval, (flat, law), jnp.arange(num_records))
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rows)
    times = jnp.arange(num_records + 1, dtype=flat.dtype) * every * eta
    return times, *rows


def _law(value, setting, eta, w, before, key):
    """The leading eigenvectors at a point, and the covariance on them."""
    gradient = jax.grad(value)
    k = setting.num_directions
    noise, other = jax.random.split(key)
    start, num_iterations = None, min(w.size, 4 * k + 40)
    if before is not None:
        # A little of every other direction: what rises among the leading ones would
        # stay hidden from a start that is an eigenspace.
        mixed = jax.random.normal(noise, w.shape, w.dtype) * (0.1 / w.size**0.5)
        start, num_iterations = jnp.sum(before, axis=0) + mixed, setting.num_iterations
    hessian = lambda w, v: jax.jvp(gradient, (w,), (v,))[1]
    operator = function_operator(hessian, w, structure=w, tags=lx.symmetric_tag)
    options = {"num": k, "num_iterations": num_iterations, "start": start}
    found = top_eigenpairs(operator, key=other, tolerance=1e-2, **options)

    slope = gradient(w)
    rows, columns, weights = pairs(k)
    change = lambda u, v: jax.jvp(lambda w: hessian(w, u), (w,), (v,))[1]
    third = jax.vmap(change)(found.vectors[rows], found.vectors[columns])
    third = third * jnp.asarray(weights, w.dtype)[:, None]
    # In units of 2 / eta: the gap now, and what a substep adds to it.
    length = eta**2 / (2 * setting.num_substeps)
    gap = jnp.eye(k, dtype=w.dtype) - jnp.diag(eta / 2 * found.values)
    offset = gap + matrix(length * _product(third, slope), k)
    tolerance = 1e-5 if w.dtype == jnp.float32 else 1e-7
    solved = solve_complementarity(
        offset, length / 2 * _product(third, third.T), tolerance=tolerance
    )
    force = _product(vector(solved.solution), third) / 2
    converged = jnp.all(found.converged) & (solved.residual <= 1e-3)
    return _Law(
        found.vectors, found.values, solved.solution, force, solved.residual, converged
    )


def _move(value, time, w, force):
    """One classical Runge-Kutta step with the force of the oscillation held."""
    velocity = lambda w: -time * (jax.grad(value)(w) + force)

    def stage(carry, shares):
        here, end = carry
        step, (ahead, weight) = velocity(here), shares
        return (w + ahead * step, end + weight * step), None

    # A loop: one gradient to compile instead of four.
    shares = np.array([[0.5, 1 / 6], [0.5, 1 / 3], [1, 1 / 3], [0, 1 / 6]])
    (_, end), _ = jax.lax.scan(stage, (w, w), shares.astype(w.dtype))
    return end


def _row(value, eta, w, law):
    """What is recorded at a point: see `CentralFlow`, from `losses` on."""
    loss, diagonal = value(w), jnp.diag(law.covariance)
    total = jnp.sum(diagonal)
    slack = jnp.sum(diagonal * (1 - eta / 2 * law.values))
    return (
        loss,
        loss + jnp.sum(diagonal * law.values) / 2,
        law.values,
        jnp.linalg.eigvalsh(law.covariance)[::-1],
        jnp.where(total > 0, slack / jnp.where(total > 0, total, 1), 0),
        jnp.maximum(eta / 2 * law.values[0] - 1, 0),
    )


def _exhausted(law, w):
    """Whether the covariance fills all directions that are followed."""
    variances = jnp.linalg.eigvalsh(law.covariance)
    full = (variances[0] > 1e-4 * variances[-1]) & (variances[-1] > 0)
    return full & (len(variances) < w.size)


def _check_setting(
    p: int, num_directions: Any, num_substeps: Any, num_iterations: Any
) -> _Setting:
    k = check_count(num_directions=num_directions)
    if k > p:
        raise ValueError(
            f"`num_directions` must be at most the number of parameters, {p}, but was "
            f"{k}."
        )
    if num_iterations is None:
        num_iterations = min(p, 2 * k + 16)
    num_iterations = check_count(num_iterations=num_iterations)
    if not k <= num_iterations <= p:
        raise ValueError(
            f"`num_iterations` must be between `num_directions` ({k}) and the number "
            f"of parameters ({p}), but was {num_iterations}."
        )
    return _Setting(k, check_count(num_substeps=num_substeps), num_iterations)
