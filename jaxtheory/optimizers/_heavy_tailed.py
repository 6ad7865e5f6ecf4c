"""Heavy-tailed noise in the updates: SGD that ends in compressible networks."""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_key, check_number, check_word
from jaxtheory.linalg import isotropic_stable, stable

Form: TypeAlias = Literal["entry", "row", "isotropic"]
_UNIT_AXES = {"last": -1, "first": 0}


class HeavyTailedNoiseState(NamedTuple):
    """State of `heavy_tailed_noise`.

    Attributes:
        count: Number of updates made.
        key: The key given; the noise of an update comes from ``fold_in(key, count)``.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    key: KeyArray


def heavy_tailed_noise(
    scale: float | Float[Array, ""],
    alpha: float | Float[Array, ""],
    *,
    form: Form = "entry",
    key: KeyArray,
    step_size: float | Float[Array, ""] | None = None,
    unit_axis: Literal["last", "first"] = "last",
) -> optax.GradientTransformation:
    r"""Add symmetric alpha-stable noise to the updates (heavy-tailed SGD).

    .. math:: u' = u + \sigma \, c \, X, \quad
        \mathbb{E} e^{i t \sigma X} = e^{-|\sigma t|^\alpha}

    `scale` is the scale ``sigma`` of the stable law, as its characteristic function has
    it: at ``alpha=2`` the noise is normal with variance ``2 sigma^2`` (not
    ``sigma^2``), at ``alpha=1`` Cauchy with quartiles ``-sigma`` and ``sigma``. For
    ``alpha < 2`` there is no variance. ``c`` is 1, or, with `step_size`,
    ``step_size^(1/alpha)``: then ``chain(sgd(eta), heavy_tailed_noise(...,
    step_size=eta))`` is the Euler step of ``dw = -grad L dt + sigma dL_t`` with ``L``
    the Levy motion.

    Put it last in a chain, after the learning rate: what arrives is added to the
    weights, and the noise with it. Before the learning rate, the scale of the noise is
    multiplied by that.

    The weights that enter one hidden unit are a row of the matrix ``W`` of Wan et al.
    In a Flax kernel ``[in, out]`` (``[height, width, in, out]`` of a convolution) they
    are a column: unit ``j`` is ``kernel[..., j]``, the last axis. For kernels ``[out,
    in]``, as of Equinox or PyTorch, pass ``unit_axis="first"``. With ``X`` of unit
    ``j``,

    - ``"entry"``: every weight has its own number, all independent;
    - ``"row"``: one number ``z_j`` for all weights that enter unit ``j``: ``X = z_j (1,
      ..., 1)``;
    - ``"isotropic"``: one rotation-invariant vector a unit, ``X = sqrt(2 phi_j) G``:
      its entries are dependent, and ``E exp(i <t, X>) = exp(-|t|^alpha)``.

    In each, one weight by itself has the same law. A bias ``[out]`` has one number a
    unit in all of them, independent of that of the kernel. `optax.masked` keeps the
    noise to some layers: the theory has it in the hidden layer alone.

    Under `optax.inject_hyperparams`, `scale`, `alpha` and `step_size` may change while
    training, or be schedules; an index out of range then makes the noise NaN. The keys
    of a population are those of one optimizer, so that all its runs have the same
    noise; for one key a run::

        optimizer = optax.chain(optax.sgd(0.1), heavy_tailed_noise(0.01, 1.8, key=key))
        states = dynamics.init_population(optimizer, params)
        opt_state = optax.tree.set(states.opt_state, key=jax.random.split(key, m))
        states = states._replace(opt_state=opt_state)

    Args:
        scale: ``sigma``, not negative, in units of the weights (with `step_size`, of
            weights per ``time^(1/alpha)``).
        alpha: Tail index, in (0, 2].
        form: ``"entry"``, ``"row"`` or ``"isotropic"``: types II, I and III of Wan et
            al.
        key: Random key. The noise of update ``t`` comes from ``fold_in(key, t)``.
        step_size: The step ``eta`` of the Euler scheme; None leaves `scale` as it is.
        unit_axis: Where the units of a kernel are: ``"last"`` or ``"first"``.

    Returns:
        The optax transform, with a `HeavyTailedNoiseState`. Half-precision updates get
        noise that was drawn in single precision.

    Raises:
        ValueError: A number is out of range, `form` or `unit_axis` is another word, or
            `key` is no key. When updating: an update is not floating-point.

    Memory:
        The noise of all updates at once. On a CPU ``"entry"`` takes 60 ns a number,
        eight times as long as ``"isotropic"``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> noise = heavy_tailed_noise(0.01, 1.75, form="row", key=jax.random.key(0))
        >>> optimizer = optax.chain(optax.sgd(0.1), noise)
        >>> params = {"kernel": jnp.zeros((3, 2))}  # three inputs, two hidden units
        >>> updates, _ = optimizer.update(params, optimizer.init(params))
        >>> bool(jnp.all(updates["kernel"] == updates["kernel"][:1]))
        True

    References:
        Wan, Barsbey, Zaidi and Simsekli, arXiv:2306.08125, section 3. Their public code
        adds the noise on a CPU without its scale; here it has it everywhere.
    """
    check_key(key)
    check_number("scale", scale, lambda s: 0 <= s < math.inf, "finite, at least 0")
    check_number("alpha", alpha, lambda a: 0 < a <= 2, "a number in (0, 2]")
    if step_size is not None:
        positive = lambda s: 0 < s < math.inf
        check_number("step_size", step_size, positive, "positive and finite, or None")
    check_word("form", form, ("entry", "row", "isotropic"))
    check_word("unit_axis", unit_axis, _UNIT_AXES)

    def init(params: PyTree) -> HeavyTailedNoiseState:
        del params
        return HeavyTailedNoiseState(jnp.zeros((), jnp.int32), key)

    def update(
        updates: PyTree, state: Any, params: PyTree = None
    ) -> tuple[PyTree, HeavyTailedNoiseState]:
        del params
        now = jax.random.fold_in(state.key, state.count)
        leaves, structure = jax.tree.flatten(updates)
        noisy = []
        for index, leaf in enumerate(map(_floating, leaves)):
            dtype = jnp.promote_types(leaf.dtype, jnp.float32)
            factor = jnp.asarray(scale, dtype)
            if step_size is not None:
                power = 1 / jnp.asarray(alpha, dtype)
                factor = factor * jnp.asarray(step_size, dtype) ** power
            key_leaf = jax.random.fold_in(now, index)
            draw = _draw(key_leaf, alpha, leaf.shape, dtype, form, unit_axis)
            noisy.append(leaf + (factor * draw).astype(leaf.dtype))
        count = optax.safe_increment(state.count)
        return jax.tree.unflatten(structure, noisy), state._replace(count=count)

    return optax.GradientTransformation(init, update)


def _draw(key, alpha, shape, dtype, form, unit_axis):
    """Noise of scale 1 for one array."""
    if form == "entry" or 0 in shape or not shape:
        return stable(key, alpha, shape, dtype=dtype)
    axis = _UNIT_AXES[unit_axis]
    rest = tuple(np.delete(shape, axis).tolist())
    if form == "row":
        draw = stable(key, alpha, (shape[axis],) + (1,) * len(rest), dtype=dtype)
    else:
        size = shape[axis], math.prod(rest)
        draw = isotropic_stable(key, alpha, *size, dtype=dtype).reshape(-1, *rest)
    return jnp.broadcast_to(jnp.moveaxis(draw, 0, axis), shape)


def _floating(leaf):
    """One array of the updates; raise unless it is floating-point."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"`updates` must be floating-point, but one has dtype {leaf.dtype}. Leave "
            "it out with `optax.masked`."
        )
    return leaf
