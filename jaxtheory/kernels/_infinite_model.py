"""A model whose infinite-width kernels are asked for: its initialiser and its map."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


@dataclasses.dataclass(frozen=True)
class _Init:
    """``init(key, x)`` of a module; equal for equal modules."""

    module: Any

    def __call__(self, key, x):
        return self.module.init(key, x)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """``apply(variables, x)`` of a module; equal for equal modules."""

    module: Any

    def __call__(self, variables, x):
        return self.module.apply(variables, x)


class Model(NamedTuple):
    """How to draw a model's variables, and how to apply it.

    Attributes:
        init: ``init(key, x) -> variables``.
        apply: ``apply(variables, x) -> outputs``.
    """

    init: Callable[[Any, Any], Any]
    apply: Callable[[Any, Any], Any]

    def variables(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Shapes of the variables, for examples of that shape."""
        example = jax.ShapeDtypeStruct((1, *shape), dtype)
        return jax.eval_shape(self.init, jax.random.key(0), example)


def as_model(module: Any) -> Model:
    """The pair of functions of a module, or a pair as it is.

    Args:
        module: A Linen module, or ``(init, apply)``.

    Returns:
        The pair.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(module, tuple) and len(module) == 2 and all(map(callable, module)):
        return Model(*module)
    if isinstance(module, type) or not all(
        callable(getattr(module, name, None)) for name in ("init", "apply")
    ):
        is_class = isinstance(module, type)
        was = f"the class {module.__name__}" if is_class else type(module).__name__
        raise ValueError(
            "`module` must be a Linen module, or a pair of functions `(init, apply)` "
            f"with `init(key, x)` and `apply(variables, x)`, but is a {was}."
            f"{' Make a module of it by calling it.' if is_class else ''} Pass the "
            "module itself, not its parameters or `module.apply`."
        )
    try:
        hash(module)
    except TypeError:
        # A module with a list in it (`nn.Sequential([...])`) has no value to compare:
        # its methods compare by identity, and equal modules compile again.
        linen: Any = module
        return Model(linen.init, linen.apply)
    return Model(_Init(module), _Apply(module))
