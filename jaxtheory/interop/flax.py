"""Flax Linen modules with BatchNorm, dropout or other state, as pure functions."""

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict, unfreeze
from jaxtyping import Array, Float

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Objective, Params
from jaxtheory.batching import check_pair, example_losses


def split(variables: Any) -> tuple[Params, Any]:
    """Split variables into what is trained and what is not.

    Args:
        variables: What ``module.init`` returned.

    Returns:
        ``(params, model_state)``: ``variables["params"]``, and a dictionary of all
        other collections, ``()`` if there are none. Both are plain dictionaries, also
        where `variables` is frozen.

    Raises:
        ValueError: There is no collection ``"params"``.

    Example:
        >>> from jaxtheory import interop
        >>> interop.flax.split({"params": {"w": 1.0}, "batch_stats": {"mean": 0.0}})
        ({'w': 1.0}, {'batch_stats': {'mean': 0.0}})
        >>> interop.flax.split({"params": {"w": 1.0}})
        ({'w': 1.0}, ())
    """
    collections = (
        unfreeze(variables) if isinstance(variables, FrozenDict | dict) else {}
    )
    if "params" not in collections:
        was = f"has {sorted(collections)}" if collections else f"is {type(variables)}"
        raise ValueError(
            '`variables` must have the collection "params", as `module.init` returns '
            f'it, but {was}. Pass the whole dictionary, not its "params".'
        )
    params = collections.pop("params")
    return params, collections or ()


def evaluate(module: nn.Module, variables: Any) -> tuple[ApplyFn, Params]:
    """A module in eval mode as ``(apply_fn, params)``.

    ``apply_fn(params, x)`` is ``module.apply({"params": params, **others}, x)`` with
    all other collections (BatchNorm statistics) bound, and in eval mode: with False for
    ``train``, ``training`` and ``is_training``, and True for ``deterministic`` and
    ``use_running_average``, where ``module.__call__`` has an argument of that name.

    Two such functions are equal when their modules are equal and the bound arrays are
    the same objects. Without other collections (no BatchNorm) they are therefore always
    equal, and nothing compiles twice. With them, every new set of statistics is a new
    function and compiles once: nothing else would be sound, since a function that a
    compiled program was built from stands for its values. Inside `jax.jit` (a
    measurement recorded during training) statistics that are traced stay arguments of
    the program, which compiles once.

    Args:
        module: A Linen module, called as ``module(x)``.
        variables: What ``module.init`` returned, or training made of it.

    Returns:
        ``(apply_fn, params)``, with ``params = variables["params"]``.

    Raises:
        ValueError: `module` is no Linen module, or there is no collection ``"params"``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import interop, models
        >>> model = models.MLP((4,), num_outputs=2, batch_norm=True)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> apply_fn, params = interop.flax.evaluate(model, variables)
        >>> apply_fn(params, jnp.ones((5, 3))).shape
        (5, 2)
    """
    _check_module(module)
    params, model_state = split(variables)
    # A NumPy array could change under the compiled program: bind a copy.
    bind = lambda a: a if isinstance(a, jax.Array) else jnp.array(a)
    return _Evaluation(module, jax.tree.map(bind, model_state)), params


def objective(module: nn.Module, loss_fn: LossFn) -> Objective:
    """A module in training mode as an objective for `jaxtheory.dynamics.train`.

    ``objective(params, model_state, (x, y), key) -> (loss, model_state)``: the mean of
    ``loss_fn(outputs, y)`` over the batch and the collections of `model_state` after
    this batch. The module is called in training mode, by the same arguments as in
    `evaluate` with opposite values, with every collection of `model_state` mutable and
    with `key` for dropout. Equal modules and the same `loss_fn` make equal objectives.

    Args:
        module: A Linen module, called as ``module(x)``.
        loss_fn: ``loss_fn(outputs[n, ...], y[n, ...]) -> losses[n]``.

    Returns:
        The objective; `split` gives the ``params`` and ``model_state`` to start from.

    Raises:
        ValueError: `module` is no Linen module. When called: the batch is not a pair
            ``(x, y)`` of the same examples, or `loss_fn` does not return one loss per
            example.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import interop, models
        >>> model = models.MLP((4,), num_outputs=2, batch_norm=True)
        >>> x, y = jnp.ones((5, 3)), jnp.zeros(5, int)
        >>> params, model_state = interop.flax.split(model.init(jax.random.key(0), x))
        >>> loss_fn = optax.softmax_cross_entropy_with_integer_labels
        >>> train = interop.flax.objective(model, loss_fn)
        >>> loss, model_state = train(params, model_state, (x, y), jax.random.key(1))
        >>> loss.shape, list(model_state)
        ((), ['batch_stats'])
    """
    _check_module(module)
    return _Objective(module, loss_fn)


def _check_module(module):
    """Raise unless `module` is a Linen module."""
    if not isinstance(module, nn.Module):
        raise ValueError(
            "`module` must be a Linen module (an instance of `flax.linen.Module`), but "
            f"is a {type(module).__name__}. Make one of a class by calling it."
        )


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """A module in eval mode; a value, so that equal ones share compiled programs."""

    module: nn.Module
    model_state: Any

    def _identity(self):
        # Both sides of a comparison keep their arrays alive, so ids tell them apart.
        leaves, structure = jax.tree.flatten(self.model_state)
        return self.module, structure, tuple(map(id, leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Evaluation) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __call__(self, params: Params, x: Any) -> Any:
        variables = {"params": params, **dict(self.model_state)}
        return self.module.apply(variables, x, **_mode(self.module, train=False))


@dataclass(frozen=True)
class _Objective:
    """Mean loss of a module in training mode; a value, like `_Evaluation`."""

    module: nn.Module
    loss_fn: LossFn

    def __call__(
        self, params: Params, model_state: Any, batch: Any, key: KeyArray
    ) -> tuple[Float[Array, ""], Any]:
        x, y, n = check_pair(batch)
        outputs, updated = self.module.apply(
            {"params": params, **dict(model_state)},
            x,
            mutable=list(model_state),
            rngs={"dropout": key},
            **_mode(self.module, train=True),
        )
        losses = example_losses(self.loss_fn, outputs, y, n)
        return jnp.mean(losses), updated or ()


def _mode(module: nn.Module, *, train: bool) -> dict[str, Any]:
    """The arguments of ``__call__`` that say whether the module is being trained."""
    known = dict.fromkeys(("train", "training", "is_training"), train)
    known |= dict.fromkeys(("deterministic", "use_running_average"), not train)
    accepted = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in known.items() if name in accepted}
