"""A probe of whether a function is a model that can be measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Shaped

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching._checks import check_examples, check_params


class ModelCheck(NamedTuple):
    """What a model turned out to be.

    Attributes:
        num_parameters: Number of trained numbers.
        num_outputs: Outputs of one example, all trailing axes together.
        difference: Largest change of an output when other examples stood beside it,
            relative to the largest output: rounding, for a model that passes.
        unused: Paths of parameter arrays that no output depends on, to first order, at
            these parameters and inputs.
    """

    num_parameters: int
    num_outputs: int
    difference: float
    unused: tuple[str, ...]


def check_model(
    apply_fn: ApplyFn, params: Params, x: PyTree[Shaped[ArrayLike, "n ..."]]
) -> ModelCheck:
    """Probe that a model is deterministic, differentiable, and mixes no examples.

    Every measurement here calls a model on other batches than it was trained on: on one
    example at a time, in chunks, in another order. One that normalises by the batch
    (BatchNorm in training mode), drops units at random or counts its calls then gives
    other outputs, and numbers that look right. This calls it twice on all examples,
    once in reverse order and once on each example alone, takes one gradient, and
    compares. Call it once on a handful of examples; not under `jit`.

    Args:
        apply_fn: The model, ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``.
        params: Parameters.
        x: Two or more inputs ``[n, ...]`` that differ from each other.

    Returns:
        What was found.

    Raises:
        ValueError: There are fewer than two examples, or all are equal; parameters are
            not floating-point, outputs are not one floating-point array with a row for
            each example, or they are not finite, change between equal calls, or depend
            on the other examples; or the gradient is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.batching import check_model
        >>> def linear(params, x):
        ...     return x @ params["w"]
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
        >>> check_model(linear, params, jnp.array([[1.0, 0.0], [1.0, 1.0]]))
        ModelCheck(num_parameters=9, num_outputs=3, difference=0.0, unused=("['b']",))
    """
    check_params(params)
    n = check_examples(x=x)
    if n < 2:
        raise ValueError(
            "`x` must hold at least two examples, to see whether one changes another, "
            f"but holds {n}."
        )
    x = jax.tree.map(jnp.asarray, x)
    if all(bool(jnp.all(leaf == leaf[:1])) for leaf in jax.tree.leaves(x)):
        raise ValueError(
            f"`x` must hold inputs that differ, but all {n} rows are equal: what one "
            "example does to another would not show. Pass a handful of real inputs."
        )
    apply = jax.jit(lambda params, x: apply_fn(params, x))
    outputs = apply(params, x)
    _check_rows(outputs, n)
    scale = float(jnp.max(jnp.abs(outputs)))
    if not np.isfinite(scale):
        raise ValueError(
            f"`apply_fn` must return finite outputs, but {_num_bad(outputs)} of "
            f"{outputs.size} are not. Look at the parameters and inputs."
        )
    again = jax.jit(lambda params, x: apply_fn(params, x))(params, x)
    _check_same(outputs, again, scale, _RANDOM)
    at = lambda index: apply(params, jax.tree.map(lambda a: a[index], x))
    alone = jnp.concatenate([at(slice(i, i + 1)) for i in range(n)])
    others = [at(slice(None, None, -1))[::-1], alone]
    difference = max(_check_same(outputs, other, scale, _MIXES) for other in others)
    return ModelCheck(
        sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)),
        outputs.size // n,
        difference,
        _unused(apply_fn, params, x),
    )


_RANDOM = (
    "be deterministic, but two calls on the same inputs differ by {:.1e} of the "
    "largest output. Bind dropout and other noise to evaluation (`train=False`, "
    "`deterministic=True`, `interop.flax.evaluate`)."
)
_MIXES = (
    "treat examples independently, but an output changes by {:.1e} of the largest "
    "with the examples beside it. BatchNorm must use its running statistics "
    "(`use_running_average=True`, `interop.flax.evaluate`), and nothing may reduce "
    "over axis 0."
)


def _check_rows(outputs: Any, n: int) -> None:
    """Raise unless outputs are one floating-point array with `n` rows."""
    if not isinstance(outputs, jax.Array):
        was = f"a pytree {jax.tree.structure(outputs)}"
    elif outputs.shape[:1] != (n,) or outputs.size == 0:
        was = f"shape {outputs.shape}"
    elif not jnp.issubdtype(outputs.dtype, jnp.floating):
        was = f"dtype {outputs.dtype}"
    else:
        return
    raise ValueError(
        f"`apply_fn` must return one floating-point array [{n}, ...] with a row for "
        f"each of {n} examples, but returned {was}. Wrap it so that it does."
    )


def _num_bad(array: Array) -> int:
    return int(jnp.sum(~jnp.isfinite(array)))


def _check_same(outputs: Array, other: Array, scale: float, message: str) -> float:
    """The largest difference relative to `scale`; raise if it is more than rounding."""
    if other.shape != outputs.shape:
        raise ValueError(
            f"`apply_fn` must return one row for each example, but gave shape "
            f"{other.shape} where {outputs.shape} was expected, on the same examples "
            "one by one. Keep examples on the leading axis."
        )
    change = float(jnp.max(jnp.abs(outputs - other))) / (scale or 1.0)
    # Products of another shape add in another order; what mixes is far above.
    if not change <= float(jnp.finfo(outputs.dtype).eps) ** 0.5:
        raise ValueError("`apply_fn` must " + message.format(change))
    return change


def _unused(apply_fn, params, x):
    """Paths of the arrays with a zero gradient; raise where it is not finite."""

    @jax.jit
    def gradient(params, x):
        outputs, back = jax.vjp(lambda params: apply_fn(params, x), params)
        # No constant cotangent: outputs that sum to one (softmax) would hide in it.
        key = jax.random.key(0)
        return back(jax.random.normal(key, outputs.shape, outputs.dtype))[0]

    leaves = jax.tree_util.tree_leaves_with_path(gradient(params, x))
    for path, leaf in leaves:
        if _num_bad(leaf):
            raise ValueError(
                f"`apply_fn` must be differentiable where it is measured, but its "
                f"gradient with respect to `params{jax.tree_util.keystr(path)}` has "
                f"{_num_bad(leaf)} entries that are not finite. Look for a square root "
                "or a norm at zero."
            )
    return tuple(
        jax.tree_util.keystr(path) for path, leaf in leaves if not jnp.any(leaf != 0)
    )
