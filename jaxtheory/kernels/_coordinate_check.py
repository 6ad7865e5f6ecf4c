"""Coordinate check: how far training moves each layer's activations as width grows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn
from jaxtheory.batching import check_count, check_examples, check_key, example_losses
from jaxtheory.kernels._power_law import power_law


class FamilyMember(NamedTuple):
    """A network of one width, and how it is trained.

    Attributes:
        init: ``init(key) -> params``.
        apply_fn: ``apply_fn(params, x) -> outputs``, the outputs that the loss takes.
        activations: ``activations(params, x) -> {name: array [n, ...]}``, the same
            names at every width.
        optimizer: Any optax optimizer. Learning rates that differ between layers or
            with the width are part of a parametrisation, so they belong here
            (`optax.partition`).
    """

    init: Callable[[Any], Any]
    apply_fn: ApplyFn
    activations: Callable[[Any, Any], dict[str, Any]]
    optimizer: optax.GradientTransformation


class CoordinateCheck(NamedTuple):
    """Typical sizes of activations against width, ``s`` seeds at each of ``w`` widths.

    The layers are those of `FamilyMember.activations` and ``"outputs"``.

    Attributes:
        widths: The widths.
        initial: For each layer, the root mean square over examples and coordinates of
            its activations before training, ``[w, s]``.
        change: The same of their change by training, ``[w, s]``. Not finite where
            training diverged.
        initial_exponent: For each layer, the fitted power of the width in `initial`.
        exponent: For each layer, that in `change`: 0 where training moves every
            coordinate by the same amount at every width. NaN where a layer does not
            move (the input) or training diverged.
    """

    widths: tuple[int, ...]
    initial: dict[str, Float[Array, "w s"]]
    change: dict[str, Float[Array, "w s"]]
    initial_exponent: dict[str, Estimate]
    exponent: dict[str, Estimate]


def coordinate_check(
    family: Callable[[int], FamilyMember],
    loss_fn: LossFn,
    x: Any,
    y: Any,
    *,
    widths: Sequence[int],
    num_steps: int,
    key: KeyArray,
    num_seeds: int = 4,
) -> CoordinateCheck:
    r"""Measure how the change of activations in early training depends on the width.

    Each network takes `num_steps` full-batch steps on the mean loss; then the root mean
    square of each layer's change is compared across widths. The fitted exponents are a
    fingerprint of the parametrisation. With SGD at a rate that does not depend on the
    width, at first, with two hidden layers (``layer_1, layer_2, outputs``): standard
    ``-1/2, 1/2, 1``, which grow beyond bounds; NTK ``-1/2, -1/2, 0``, whose features
    stop moving; mu-P ``0, 0, 0``, whose features move at every width. For SGD, mu-P is
    a network of width ``n`` with weights of variance ``1 / fan_in`` whose outputs are
    divided by ``sqrt(n)``, with rates ``eta n`` for the input layer and ``eta`` for all
    others; the same numbers, as `param_scale`, weigh its tangent kernel.

    Args:
        family: ``family(width) -> FamilyMember``.
        loss_fn: ``loss_fn(outputs, y) -> losses[n]``.
        x: Inputs, any pytree of arrays ``[n, ...]``.
        y: Targets.
        widths: At least two different widths; small ones have corrections of their own.
        num_steps: Number of steps; few, as long training saturates.
        key: For the initialisations, which are independent of each other.
        num_seeds: Networks at each width.

    Returns:
        Sizes, changes and their exponents with standard errors; see `CoordinateCheck`
        and `power_law`.

    Raises:
        ValueError: Fewer than two widths or three networks in all, counts that are not
            positive, layers that differ between widths, or a loss that is not one
            number an example.

    Memory:
        `num_seeds` networks of one width in training, all examples at once. One
        compilation for each width.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def family(width):  # mean-field: outputs are a mean over units
        ...     init = lambda key: jax.random.normal(key, (width,))
        ...     units = lambda a, x: {"units": x * a[None] + 1.0}
        ...     outputs = lambda a, x: units(a, x)["units"].mean(1)
        ...     return FamilyMember(init, outputs, units, optax.sgd(0.1 * width))
        >>> loss_fn = lambda out, y: (out - y) ** 2
        >>> check = coordinate_check(
        ...     family,
        ...     loss_fn,
        ...     jnp.ones((1, 1)),
        ...     jnp.zeros(1),
        ...     widths=(100, 10_000),
        ...     num_steps=2,
        ...     key=jax.random.key(0),
        ... )
        >>> abs(float(check.exponent["units"].value)) < 0.1
        True

    References:
        Yang and Hu, arXiv:2011.14522, section 3 and definition 5.1 (mu-P); Yang et al.,
        arXiv:2203.03466, appendix D.1 (coordinate check).
    """
    check_key(key)
    check_count(num_steps=num_steps)
    check_count(num_seeds=num_seeds)
    check_examples(x=x, y=y)
    widths = tuple(check_count(widths=width) for width in widths)
    if len(set(widths)) < 2 or len(widths) * num_seeds < 3:
        raise ValueError(
            "`widths` must hold at least two different widths, and with `num_seeds` at "
            f"least three networks, but was {widths} with {num_seeds}."
        )
    sizes = []
    for i, width in enumerate(widths):
        keys = jax.random.split(jax.random.fold_in(key, i), num_seeds)
        member = family(width)
        if not isinstance(member, FamilyMember):
            raise ValueError(
                "`family` must return a `kernels.FamilyMember` for a width, but "
                f"returned a {type(member).__name__}."
            )
        sizes.append(_sizes(*member, loss_fn, num_steps, x, y, keys))
    names = list(sizes[0][0])
    for width, (initial, _) in zip(widths, sizes, strict=True):
        if set(initial) != set(names):
            raise ValueError(
                "`family` must name the same layers at every width, but they are "
                f"{sorted(names)} at {widths[0]} and {sorted(initial)} at {width}."
            )
    initial, change = (
        {name: jnp.stack([pair[i][name] for pair in sizes]) for name in names}
        for i in (0, 1)
    )
    slopes = lambda table: {
        name: power_law(jnp.array(widths), values) for name, values in table.items()
    }
    return CoordinateCheck(widths, initial, change, slopes(initial), slopes(change))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _sizes(init, apply_fn, activations, optimizer, loss_fn, num_steps, x, y, keys):
    """Sizes of all layers before training, and of their change; one row a seed."""
    n = check_examples(x=x, y=y)

    def loss(params):
        return jnp.mean(example_losses(loss_fn, apply_fn(params, x), y, n))

    def layers(params):
        return {**activations(params, x), "outputs": apply_fn(params, x)}

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def one(key):
        params = init(key)
        before = layers(params)
        start = (params, optimizer.init(params))
        trained, _ = jax.lax.fori_loop(0, num_steps, step, start)
        moved = jax.tree.map(jnp.subtract, layers(trained), before)
        return jax.tree.map(_size, (before, moved))

    return jax.vmap(one)(keys)


def _size(values):
    """Root mean square, scaled first: squares of small changes vanish in float32."""
    largest = jnp.max(jnp.abs(values))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.mean((values / scale) ** 2))
