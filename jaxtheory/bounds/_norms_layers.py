"""A network of dense layers, run on the host in double precision."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxtheory.batching import check_examples, check_params, check_word
from jaxtheory.bounds._ledger import SETTING, check_concrete

# All are 1-Lipschitz and 0 at 0, which is what the proofs ask for.
ACTIVATIONS = {"relu": lambda h: np.maximum(h, 0), "tanh": np.tanh}

# One of several architectures, chosen by what they do on the examples, is not paid for.
ARCHITECTURE = (
    SETTING,
    "the layers, their sizes and the activation were fixed before the examples were "
    "seen",
)
# Parameters do not tell what a model makes of them: its scale, its activation.
NETWORK = "the network is what the layers make, dense and between them "


class Dense(NamedTuple):
    """One layer ``h -> h kernel + bias``; `bias` is None where there is none."""

    kernel: Float[np.ndarray, "d k"]
    bias: Float[np.ndarray, " k"] | None

    def joined(self) -> Float[np.ndarray, "d k"]:
        """The kernel, with the bias as the weights of an input that is always 1."""
        if self.bias is None:
            return self.kernel
        return np.concatenate([self.kernel, self.bias[None]])


def read_problem(
    params: Any, x: Any, y: Any, layers: Sequence[str], activation: str = "relu"
) -> tuple[list[Dense], np.ndarray, np.ndarray]:
    """Layers, inputs and margins in float64; raise unless they fit together.

    Args:
        params: Flax parameters of dense layers, with or without ``"params"``.
        x: Inputs ``[n, ...]``, flattened.
        y: Class indices ``[n]``.
        layers: Names of the layers, from input to output.
        activation: Of all layers but the last.

    Returns:
        The layers, the inputs ``[n, d]``, and the margins of the network on them.
    """
    check_concrete(params=params, x=x, y=y)
    check_word("activation", activation, ACTIVATIONS)
    n = check_examples(x=x, y=y)
    found = read_layers(params, layers)
    given = x if hasattr(x, "dtype") else np.asarray(x)
    is_float = jnp.issubdtype(given.dtype, jnp.floating)
    if not is_float and not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"`x` must be one array of real numbers, but has dtype {given.dtype}."
        )
    inputs = np.asarray(given).astype(np.float64).reshape(n, -1)
    if n < 2 or not np.isfinite(inputs).all():
        raise ValueError(
            f"`x` must be at least two finite inputs, but is {n} of them with "
            f"{int((~np.isfinite(inputs)).sum())} entries that are not finite."
        )
    if inputs.shape[1] != len(found[0].kernel):
        raise ValueError(
            f"`x` must have {len(found[0].kernel)} numbers an example, as the first of "
            f"`layers` takes, but has shape {np.shape(x)}."
        )
    outputs = inputs
    for index, (kernel, bias) in enumerate(found):
        hidden = outputs if index == 0 else ACTIVATIONS[activation](outputs)
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = hidden @ kernel + (0 if bias is None else bias[None])
    if not np.isfinite(outputs).all():
        raise ValueError(
            "`params` and `x` must give finite outputs, but these overflow double "
            "precision. Scale the inputs or the parameters down."
        )
    return found, inputs, margins_of(outputs, y)


def read_layers(
    params: Any, layers: Sequence[str], name: str = "params"
) -> list[Dense]:
    """Dense layers in float64; raise unless each feeds the next and none is left."""
    check_params(params, name)
    modules = params.get("params", params) if isinstance(params, Mapping) else {}
    is_names = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not is_names or not layers or not all(isinstance(one, str) for one in layers):
        raise ValueError(
            "`layers` must name the layers from input to output, but was "
            f"{layers!r}. Pass a tuple of names."
        )
    found = [_read_layer(modules, layer, name) for layer in layers]
    shapes = [layer.kernel.shape for layer in found]
    for before, after in itertools.pairwise(shapes):
        if before[1] != after[0]:
            raise ValueError(
                "`layers` must feed each other, but their kernels [in, out] have the "
                f"shapes {shapes}. Name all layers, from input to output."
            )
    rest = sorted(set(modules) - set(layers))
    if rest:
        raise ValueError(
            f"`layers` must name all of `{name}`, but leaves out {rest}: the bound "
            "would be that of another network. Name them, or pass `params` without "
            "what the network does not use."
        )
    return found


def _read_layer(modules, layer, name):
    held = modules.get(layer)
    names = set(held) if isinstance(held, Mapping) else set()
    dense = {"kernel"} <= names <= {"kernel", "bias"}
    shapes = {part: jnp.shape(held[part]) for part in sorted(names)} if dense else {}
    kernel = shapes.get("kernel", ())
    dense = len(kernel) == 2 and min(kernel) > 0
    if not dense or shapes.get("bias", kernel[1:]) != kernel[1:]:
        was = f"holds {shapes or sorted(names)}" if names else "is no layer"
        raise ValueError(
            f"`layers` must name dense layers of `{name}`, of a matrix 'kernel' [in, "
            f"out] and perhaps a 'bias' [out], but {layer!r} {was}; there are "
            f"{sorted(modules)}. The "
            "proof is not about convolutions; fold BatchNorm into the kernels."
        )
    wide = {part: np.asarray(array).astype(np.float64) for part, array in held.items()}
    if not all(np.isfinite(array).all() for array in wide.values()):
        raise ValueError(f"`{name}` must be finite, but {layer!r} is not.")
    return Dense(wide["kernel"], wide.get("bias"))


def unit_scale(array: np.ndarray) -> tuple[np.ndarray, float]:
    """The array over its largest size, and that: its squares keep their digits."""
    size = float(np.abs(array).max())
    return (array / size, size) if size > 0 else (array, 0.0)


def margins_of(outputs: np.ndarray, y: Any) -> np.ndarray:
    """Output of the class less the largest other one; raise for wrong labels."""
    n, k = outputs.shape
    labels = np.asarray(y)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`y` must be a vector of class indices, but has shape {labels.shape} and "
            f"dtype {labels.dtype}. Of one-hot rows pass `y.argmax(-1)`."
        )
    if k < 2 or labels.min() < 0 or labels.max() >= k:
        raise ValueError(
            f"`y` must hold class indices below the number of outputs, which is {k} "
            f"and must be at least 2, but goes from {labels.min()} to {labels.max()}."
        )
    own = np.arange(k)[None] == labels[:, None]
    rest = np.where(own, -np.inf, outputs).max(axis=1)
    return np.where(own, outputs, 0).sum(axis=1) - rest
