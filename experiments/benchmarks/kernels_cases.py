"""The models of the kernel benchmark, one text for JAX, PyTorch and NumPy.

Each model is ``model(ops, params, x[n, ...]) -> outputs[n, k]`` with the few functions
that libraries name differently in `Ops`; parameters and inputs are NumPy arrays drawn
from one seed, so that all peers compute the same kernel. This module imports NumPy
alone: it is read in environments that do not have the others.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Ops(NamedTuple):
    """What the libraries name differently.

    Attributes:
        relu: Rectifier.
        gelu: GELU in its approximation by tanh.
        softmax: Over the last axis.
        rsqrt: One over the square root.
        einsum: Sums of products.
        images: Images ``[n, height, width, channels]`` in the library's own order.
        conv: ``conv(images, weight[h, w, c, f], bias[f], stride)`` with padding
            "SAME"; the weight in the library's own order.
        pool: The mean over positions, ``[n, channels]``.
    """

    relu: Callable[[Any], Any]
    gelu: Callable[[Any], Any]
    softmax: Callable[[Any], Any]
    rsqrt: Callable[[Any], Any]
    einsum: Callable[..., Any]
    images: Callable[[Any], Any]
    conv: Callable[[Any, Any, Any, int], Any]
    pool: Callable[[Any], Any]


class Case(NamedTuple):
    """A model with its parameters and inputs.

    Attributes:
        model: ``model(ops, params, x)``.
        params: Nested dictionaries and lists of float32 arrays.
        x: Inputs ``[n, ...]``.
    """

    model: Callable[[Ops, Any, Any], Any]
    params: Any
    x: np.ndarray


def mlp(ops: Ops, params: Any, x: Any) -> Any:
    """A ReLU network."""
    for layer in params[:-1]:
        x = ops.relu(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def cnn(ops: Ops, params: Any, x: Any) -> Any:
    """Three convolutions, the last two of stride 2, and global average pooling."""
    x = ops.images(x)
    for layer, stride in zip(params[:-1], (1, 2, 2), strict=True):
        x = ops.relu(ops.conv(x, layer["w"], layer["b"], stride))
    return ops.pool(x) @ params[-1]["w"] + params[-1]["b"][None]


def transformer(ops: Ops, params: Any, x: Any) -> Any:
    """Blocks of attention (4 heads) and a gelu layer, both after normalisation."""
    x = _dense(params["embed"], x)
    for block in params["blocks"]:
        x = x + _attention(ops, block, _normalise(ops, block["norm1"], x))
        h = _dense(block["up"], _normalise(ops, block["norm2"], x))
        x = x + _dense(block["down"], ops.gelu(h))
    return x.mean(1) @ params["head"]["w"] + params["head"]["b"][None]


def _attention(ops, block, x):
    split = lambda a: a.reshape(a.shape[0], a.shape[1], 4, -1)
    query, key, value = (split(_dense(block[name], x)) for name in "qkv")
    scores = ops.einsum("nthd,nshd->nhts", query, key) / math.sqrt(query.shape[-1])
    mixed = ops.einsum("nhts,nshd->nthd", ops.softmax(scores), value)
    return _dense(block["o"], mixed.reshape(x.shape))


def _normalise(ops, layer, x):
    x = x - x.mean(-1)[..., None]
    x = x * ops.rsqrt((x * x).mean(-1)[..., None] + 1e-6)
    return layer["scale"][None, None] * x + layer["b"][None, None]


def _dense(layer, x):
    return x @ layer["w"] + layer["b"][None, None]


def _layer(rng, *shape):
    fan_in = math.prod(shape[:-1])
    return {
        "w": (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32),
        "b": 0.1 * rng.standard_normal(shape[-1]).astype(np.float32),
    }


def mlp_case(n: int, widths: tuple[int, ...]) -> Case:
    """An MLP of given widths, inputs and outputs included."""
    rng = np.random.default_rng(0)
    params = [_layer(rng, *pair) for pair in itertools.pairwise(widths)]
    return Case(mlp, params, rng.standard_normal((n, widths[0]), np.float32))


def cnn_case(n: int, channels: int, size: int) -> Case:
    """A convolutional network on images of 3 channels, 10 outputs."""
    rng = np.random.default_rng(0)
    widths = (3, channels, channels, channels)
    params = [_layer(rng, 3, 3, *pair) for pair in itertools.pairwise(widths)]
    params.append(_layer(rng, channels, 10))
    return Case(cnn, params, rng.standard_normal((n, size, size, 3), np.float32))


def transformer_case(n: int, width: int, tokens: int, num_blocks: int) -> Case:
    """A transformer on sequences of vectors, 10 outputs."""
    rng = np.random.default_rng(0)
    ones = np.ones(width, np.float32)
    norm = lambda: {"scale": ones, "b": np.zeros(width, np.float32)}
    block = lambda: {
        "norm1": norm(),
        "norm2": norm(),
        **{name: _layer(rng, width, width) for name in "qkvo"},
        "up": _layer(rng, width, 4 * width),
        "down": _layer(rng, 4 * width, width),
    }
    params = {
        "embed": _layer(rng, width, width),
        "blocks": [block() for _ in range(num_blocks)],
        "head": _layer(rng, width, 10),
    }
    return Case(
        transformer, params, rng.standard_normal((n, tokens, width), np.float32)
    )


# By name: how to build it, with the arguments in full and small.
_CASES: dict[str, tuple[Callable[..., Case], tuple[Any, ...], tuple[Any, ...]]] = {
    "MLP 3072": (mlp_case, (16, (3072, 2048, 2048, 2048, 8)), (3, (12, 16, 16, 4))),
    "MLP 784": (mlp_case, (64, (784, 512, 512, 512, 10)), (5, (12, 8, 8, 8, 3))),
    "CNN 32": (cnn_case, (16, 32, 16), (2, 3, 8)),
    "CNN 64": (cnn_case, (16, 64, 32), (2, 4, 8)),
    "transformer": (transformer_case, (16, 64, 16, 2), (2, 8, 4, 1)),
}
NAMES = tuple(_CASES)
MLPS = ("MLP 3072", "MLP 784")


def make(name: str, *, small: bool = False) -> Case:
    """Build one of the cases in `NAMES`.

    Args:
        name: Its name.
        small: Whether in a size that takes no time.

    Returns:
        The case.
    """
    build, full, reduced = _CASES[name]
    return build(*(reduced if small else full))


def map_params(function: Callable[[Any], Any], params: Any) -> Any:
    """Apply a function to each array of nested dictionaries and lists."""
    if isinstance(params, dict):
        return {name: map_params(function, value) for name, value in params.items()}
    if isinstance(params, list):
        return [map_params(function, value) for value in params]
    return function(params)


def leaves(params: Any) -> list[Any]:
    """The arrays of nested dictionaries and lists."""
    found = []
    map_params(found.append, params)
    return found
