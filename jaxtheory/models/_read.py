"""Reading a network: its features layer by layer, and its classifier."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtheory.models._layers import forward_scale
from jaxtheory.models._networks import CNN, MLP


def features(
    model: MLP | CNN, variables: Any, x: Float[Array, "n ..."]
) -> dict[str, Float[Array, "n ..."]]:
    """Features of every layer in eval mode, from the input side.

    Layer 0, ``"input"``, is the raw input (flattened by an `MLP`). Then comes each
    hidden layer after its activation (and pooling), ``"layer_1"`` to ``"layer_L"``,
    with running BatchNorm statistics and no dropout. The last entry is what the
    classifier acts on. Outputs (logits) are not included: they are
    ``model.apply(variables, x)``. Sorting the names keeps the order, so that the
    dictionary comes out of `jax.jit`, which sorts keys, as it went in.

    Args:
        model: An `MLP` or `CNN`.
        variables: What ``model.init`` returned, or training made of it.
        x: Inputs.

    Returns:
        Features by layer name. An `MLP` has ``[n, width]`` everywhere; a `CNN` has
        ``[n, height, width, channels]`` up to the last block and ``[n, channels]``
        there.

    Raises:
        ValueError: `model` is another module.

    Memory:
        All layers of all `n` examples at once; `jaxtheory.batching.map_examples`
        takes them a chunk at a time.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> model = models.MLP((4,), num_outputs=2)
        >>> x = jnp.ones((3, 5))
        >>> variables = model.init(jax.random.key(0), x)
        >>> list(models.features(model, variables, x))
        ['input', 'layer_1']
    """
    _check_model(model, "its layers are `models.intermediates(module, variables, x)`")
    return model.apply(variables, x, method="features")  # pyright: ignore[reportReturnType]


def classifier(
    model: MLP | CNN, variables: Any
) -> tuple[Float[Array, "k d"], Float[Array, " k"]]:
    """Weights and biases of the last layer as they act on the last features.

    ``outputs = h @ weight.T + bias`` for the last entry ``h`` of `features`, under
    both parametrisations: the factor of the NTK parametrisation is multiplied in.
    Rows of `weight` are classes.

    Args:
        model: An `MLP` or `CNN`.
        variables: What ``model.init`` returned, or training made of it.

    Returns:
        ``(weight, bias)``; `bias` is zero for a model without biases.

    Raises:
        ValueError: `model` is another module.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> model = models.MLP((4,), num_outputs=2, parametrization="ntk")
        >>> x = jnp.ones((3, 5))
        >>> variables = model.init(jax.random.key(0), x)
        >>> weight, bias = models.classifier(model, variables)
        >>> h = models.features(model, variables, x)["layer_1"]
        >>> outputs = model.apply(variables, x)
        >>> bool(jnp.allclose(outputs, h @ weight.T + bias[None], atol=1e-6))
        True
    """
    _check_model(model, "its classifier is `(kernel.T, bias)` of its last layer")
    head = variables["params"]["output"]
    kernel = head["kernel"]
    fan_in, num_outputs = kernel.shape
    scale = forward_scale(model.parametrization, model.weight_std, fan_in)
    bias = head["bias"] if model.use_bias else jnp.zeros(num_outputs, kernel.dtype)
    return scale * kernel.T, bias


def _check_model(model, instead):
    """Raise unless the layers of the model are known."""
    if not isinstance(model, MLP | CNN):
        raise ValueError(
            "`model` must be a `models.MLP` or a `models.CNN`, but is a "
            f"{type(model).__module__}.{type(model).__qualname__}. Of a module of your "
            f"own, {instead}."
        )
