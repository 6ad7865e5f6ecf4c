"""What every module inside a Flax model puts out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from jaxtyping import Array, Float

from jaxtheory.batching import check_examples


def intermediates(
    module: nn.Module, variables: Any, x: Any, **options: Any
) -> dict[str, Float[Array, "n ..."]]:
    """Features of every layer of any Linen module, in the order they were computed.

    Captured is what each inner module puts out (before an activation that is a plain
    function), and what the model stores by ``self.sow("intermediates", name, value)``:
    sow activations to have them. `features` reads an `MLP` or `CNN` after its
    activations.

    Names are paths such as ``"block_1/conv"``; the model's own output is ``"output"``.
    A module called several times has a name with ``#2``, ``#3`` for later calls. Left
    out is what is not a floating-point array with the examples on axis 0.

    Args:
        module: A Linen module, called as ``module(x, **options)``.
        variables: What ``module.init`` returned, or training made of it.
        x: Inputs ``[n, ...]``.
        **options: What puts the module into eval mode, such as ``train=False`` or
            ``deterministic=True``.

    Returns:
        Features by name, for `collapse.layer_statistics` and `collapse.separation_law`.
        Choose among them first, in order: a law over all names would count a layer
        before and after its activation, and the last one again as ``"output"``. The
        input is not among them, which those laws put first. Inside a module computed
        under a Flax transformation (``nn.jit``, ``nn.remat``) names are in alphabetical
        order, as they are when the dictionary comes out of `jax.jit`.

    Raises:
        ValueError: `module` is no Linen module, or is not in eval mode.

    Memory:
        The outputs of all layers for all examples at once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jaxtheory import models
        >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
        >>> x = jnp.ones((3, 5))
        >>> variables = module.init(jax.random.key(0), x)
        >>> found = models.intermediates(module, variables, x)
        >>> {name: h.shape for name, h in found.items()}
        {'layers_0': (3, 4), 'layers_2': (3, 2), 'output': (3, 2)}
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            "`module` must be a Linen module (an instance of `flax.linen.Module`), but "
            f"is a {type(module).__name__}."
        )
    n = check_examples(x=x)
    try:
        _, state = module.apply(
            variables,
            x,
            capture_intermediates=True,
            mutable=["intermediates"],
            **options,
        )
    except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
        raise ValueError(
            "`module` must be in eval mode, where it updates no statistics and draws "
            f"no random numbers, but was called with {options}. Pass what puts it "
            "there, such as `train=False` or `deterministic=True`."
        ) from error
    found = {}
    for name, value in _flat(state["intermediates"], ()):
        if _is_feature(value, n):
            found[name] = value
    return found


def _is_feature(value, n):
    """Whether it is a floating-point array with `n` examples on axis 0."""
    is_array = isinstance(value, jax.Array) and value.shape[:1] == (n,)
    return is_array and jnp.issubdtype(value.dtype, jnp.floating)


def _flat(tree, path):
    """Names and values in the order in which they were stored."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, (*path, key))
            continue
        name = "/".join(path if key == "__call__" else (*path, key)) or "output"
        for count, one in enumerate(value, start=1):
            yield (name if count == 1 else f"{name}#{count}"), one
