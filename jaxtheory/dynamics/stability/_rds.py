"""Sharpness of a random dynamical system: singular values of training's Jacobian."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from jaxtheory._types import Estimate, KeyArray, Objective, TrainState
from jaxtheory.batching import check_count, check_key
from jaxtheory.dynamics._run import strong
from jaxtheory.dynamics.stability._jacobian import (
    check_training,
    coordinates,
    linearise,
)


class RDSSharpness(NamedTuple):
    """Expected largest logarithms of singular values of one training step.

    Attributes:
        sharpness: ``lambda_k``, descending, ``[D]``, in nats per step, with standard
            errors over batches (infinite for a single one, which has no spread).
        num_nonfinite: Number of Jacobians that were not finite; `sharpness` is NaN
            where there is one.
    """

    sharpness: Estimate
    num_nonfinite: Int[Array, ""]


def rds_sharpness(
    objective: Objective,
    states: TrainState,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    num_batches: int,
    key: KeyArray,
    batch_size: int | None = None,
) -> RDSSharpness:
    r"""The sharpness of training as a random dynamical system, over recorded points.

    .. math:: \lambda_k = \frac{1}{s} \sum_{b=1}^{s} \max_{w} \,
        \log \sigma_k(J_b(w))

    with ``J_b(w)`` the Jacobian at ``w`` of one step on batch ``b``, ``sigma_k`` its
    ``k``-th largest singular value, the maximum over the recorded states (which stands
    for a supremum over the attractor, and is at most that), and the mean over
    independent batches, each drawn without replacement. `sharpness_dimension` of the
    value is the Sharpness Dimension of these points. It changes sign with the learning
    rate: a fixed point of full-batch descent beyond ``2/eta`` has ``lambda_1 > 0``.

    The paper treats SGD, where ``J = I - eta H`` and ``sigma_k = |1 - eta lambda|``.
    For momentum and Adam ours are the singular values of the optimizer's own Jacobian
    on the parameters and the floating-point leaves of its state together. Unlike
    Lyapunov exponents they depend on the units in which the buffers are kept: heavy
    ball has ``lambda_1 > 0`` on quadratics that it contracts. Compare them for one
    optimizer alone.

    Args:
        objective: ``objective(params, model_state, batch, key) -> (scalar,
            model_state)``.
        states: States of `optimizer` stacked on a leading axis of records, as
            ``record={"state": lambda s: s}`` gives them.
        optimizer: The optax optimizer.
        data: Pytree of arrays ``[n, ...]``.
        num_batches: Number ``s`` of random batches; 1 is enough for full batches of an
            objective without randomness.
        key: Random key of batches and objective.
        batch_size: Examples per batch; None takes all.

    Returns:
        All ``D`` values with standard errors.

    Raises:
        ValueError: `states` are not stacked, or an argument does not fit the others.

    Memory:
        ``D^2`` numbers a few times over and ``D`` products at once, one Jacobian after
        the other; ``D^3`` operations for each. For networks of up to a few thousand
        parameters; for larger ones see `sharpness_dimension_from_density`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> loss = lambda w, state, h, key: (jnp.sum(h[0] * w**2) / 2, state)
        >>> optimizer = optax.sgd(0.1)
        >>> state = dynamics.init(optimizer, jnp.ones(2))
        >>> states = jax.tree.map(lambda leaf: leaf[None], state)
        >>> h = jnp.array([[1.0, 30.0]])
        >>> got = rds_sharpness(
        ...     loss, states, optimizer, h, num_batches=1, key=jax.random.key(0)
        ... )
        >>> [round(float(x), 3) for x in got.sharpness.value]  # log 2 and log 0.9
        [0.693, -0.105]

    References:
        Tuci, Korkmaz, Simsekli & Birdal, arXiv:2604.19740, section 4.
    """
    check_key(key)
    num_batches = check_count(num_batches=num_batches)
    _check_stacked(states)
    one = jax.tree.map(lambda leaf: leaf[0], states)
    recipe, _, data = check_training(objective, one, optimizer, data, batch_size)
    value, error, num_nonfinite = _sharpness(
        recipe, num_batches, strong(states), data, key
    )
    return RDSSharpness(Estimate(value, error, num_batches), num_nonfinite)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sharpness(recipe, num_batches, states, data, key):
    def logarithms(state, batch, noise):
        _, push = linearise(recipe, state, batch, noise)
        flat, _ = coordinates(state)
        wide = jnp.promote_types(flat.dtype, jnp.float32)
        # Its rows are the columns of the Jacobian: the same singular values.
        transposed = jax.vmap(push)(jnp.eye(flat.size, dtype=wide))
        return jnp.log(jnp.linalg.svd(transposed, compute_uv=False))

    def of_batch(index):
        draw, noise = jax.random.split(jax.random.fold_in(key, index))
        batch = _draw(recipe, data, draw)
        values = jax.lax.map(lambda state: logarithms(state, batch, noise), states)
        return jnp.max(values, axis=0), jnp.sum(jnp.isnan(values[:, 0]))

    values, num_nonfinite = jax.lax.map(of_batch, jnp.arange(num_batches))
    value = jnp.mean(values, axis=0)
    error = jnp.full_like(value, jnp.inf)
    if num_batches > 1:
        spread = jnp.std(values, axis=0, ddof=1) / np.sqrt(num_batches)
        error = jnp.where(jnp.isneginf(value), jnp.inf, spread)
    return value, error, jnp.sum(num_nonfinite)


def _draw(recipe, data, key):
    """A batch without replacement."""
    if recipe.batch_size is None:
        return data
    num_examples = jax.tree.leaves(data)[0].shape[0]
    chosen = jax.random.permutation(key, num_examples)[: recipe.batch_size]
    return jax.tree.map(lambda a: a[chosen], data)


def _check_stacked(states):
    """Raise unless they are training states on a leading axis of records."""
    shape = np.shape(states.step) if isinstance(states, TrainState) else None
    if shape is None or len(shape) != 1 or not shape[0]:
        was = (
            f"is a {type(states).__name__}"
            if shape is None
            else f"has a `step` of shape {shape}"
        )
        raise ValueError(
            "`states` must be a `TrainState` whose leaves are stacked on a leading "
            f"axis of records, but {was}. Record them with `record={{'state': lambda "
            "s: s}`, or stack them with `jax.tree.map(lambda *a: jnp.stack(a), *list)`."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(states):
        if np.shape(leaf)[:1] != shape:
            raise ValueError(
                f"`states{jax.tree_util.keystr(path)}` must have as many records (axis "
                f"0) as `states.step`, {shape[0]}, but has shape {np.shape(leaf)}."
            )
