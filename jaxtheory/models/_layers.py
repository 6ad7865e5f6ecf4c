"""The one trainable layer: dense or convolutional, standard or NTK parametrised."""

import itertools
import math
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

Parametrization = Literal["standard", "ntk"]


def forward_scale(
    parametrization: Parametrization, weight_std: float, fan_in: int
) -> float:
    """The factor between a stored weight and the weight that acts on the input."""
    return weight_std / math.sqrt(fan_in) if parametrization == "ntk" else 1.0


class Affine(nn.Module):
    """A linear map plus bias: ``scale * (x * W) + b``, see `forward_scale`.

    Attributes:
        size: Number of outputs (channels of a convolution).
        window: ``()`` for a dense layer on ``[n, d]``; the spatial window of a
            convolution on ``[n, h, w, c]``, stride 1, zero padding to the same size.
        parametrization: See `MLP`, as for the fields below.
        weight_std: Standard deviation of an acting weight times ``sqrt(fan_in)``.
        bias_std: Standard deviation of a bias.
        use_bias: Whether there is a bias.
        param_dtype: Dtype in which parameters are initialised.
    """

    size: int
    window: tuple[int, ...]
    _: KW_ONLY
    parametrization: Parametrization
    weight_std: float
    bias_std: float
    use_bias: bool
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Apply the map to the last axis (and the window around each pixel)."""
        shape = (*self.window, x.shape[-1], self.size)
        fan_in = math.prod(shape[:-1])
        scale = forward_scale(self.parametrization, self.weight_std, fan_in)
        # Untruncated normal: the infinite-width kernels are those of Gaussian
        # weights, and the first layer never averages another initialiser out.
        draw = nn.initializers.normal(self.weight_std / math.sqrt(fan_in) / scale)
        kernel = self.param("kernel", draw, shape, self.param_dtype)
        x, kernel = promote_dtype(x, kernel)
        y = same_convolution(x, kernel) if self.window else x @ kernel
        if self.parametrization == "ntk":
            y = scale * y
        if not self.use_bias:
            return y
        draw = nn.initializers.normal(self.bias_std)
        bias = self.param("bias", draw, (self.size,), self.param_dtype)
        return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


@jax.jit  # so that a traced model says what this is, under its name
def same_convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "i j c k"]
) -> Float[Array, "n h w k"]:
    """Stride 1, zero padding to the same size (odd windows), channels last.

    A sum of shifted products instead of `jax.lax.conv_general_dilated`: on CPU, XLA
    runs the gradient of a convolution inside a loop (training is one) 15 to 25 times
    slower than outside, and these products at full speed in both.
    """
    height, width = x.shape[1:3]
    rows, columns = kernel.shape[:2]
    margin = ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
    padded = jnp.pad(x, margin)
    total = jnp.zeros((), x.dtype)
    for row, column in itertools.product(range(rows), range(columns)):
        shifted = padded[:, row : row + height, column : column + width]
        total = total + shifted @ kernel[row, column]
    return total


class Network(nn.Module):
    """What `MLP` and `CNN` share: options, a hidden layer, reading layer by layer.

    A subclass gives ``_forward(x, train) -> (features, outputs)`` and its own fields.
    """

    _: KW_ONLY
    activation: Callable[[Any], Any] = nn.relu
    batch_norm: bool = False
    dropout_rate: float = 0.0
    parametrization: Parametrization = "standard"
    weight_std: float = math.sqrt(2.0)
    bias_std: float = 0.0
    use_bias: bool = True
    param_dtype: Any = jnp.float32

    def _check_options(self):
        """Raise unless the shared options are among those that exist."""
        if self.parametrization not in ("standard", "ntk"):
            raise ValueError(
                '`parametrization` must be "standard" or "ntk", but was '
                f"{self.parametrization!r}."
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                "`dropout_rate` must be in [0, 1), the fraction of units dropped, but "
                f"was {self.dropout_rate}."
            )
        if not self.weight_std > 0.0:
            raise ValueError(
                f"`weight_std` must be positive, but was {self.weight_std}."
            )
        if self.bias_std < 0.0 or (self.bias_std > 0.0 and not self.use_bias):
            raise ValueError(
                "`bias_std` must be zero, or positive with `use_bias=True`, but was "
                f"{self.bias_std} with `use_bias={self.use_bias}`."
            )

    def _affine(self, size, window, name, use_bias):
        return Affine(
            size,
            window,
            parametrization=self.parametrization,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            use_bias=use_bias,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _hidden(self, h, size, window, name, train):
        """Affine map, BatchNorm if asked, activation."""
        # BatchNorm subtracts any bias again: its gradient would be exactly zero.
        use_bias = self.use_bias and not self.batch_norm
        h = self._affine(size, window, name, use_bias)(h)
        if self.batch_norm:
            h = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                param_dtype=self.param_dtype,
                use_fast_variance=False,  # E[h^2] - E[h]^2 cancels
                name=f"{name}_norm",
            )(h)
        return self.activation(h)

    def _drop(self, h, train):
        if self.dropout_rate == 0.0:
            return h
        return nn.Dropout(self.dropout_rate, deterministic=not train)(h)

    def __call__(
        self, x: Float[Array, "n ..."], *, train: bool = False
    ) -> Float[Array, "n k"]:
        """Outputs (logits).

        Args:
            x: Inputs.
            train: Use batch statistics (with ``mutable=["batch_stats"]``) and dropout
                (with ``rngs={"dropout": key}``). False: running statistics and no
                dropout, so that no example influences another.

        Returns:
            Outputs, shape ``[n, num_outputs]``.
        """
        return self._forward(x, train)[1]

    def features(self, x: Float[Array, "n ..."]) -> dict[str, Float[Array, "n ..."]]:
        """Every layer in eval mode; see `jaxtheory.models.features`."""
        return self._forward(x, False)[0]


def layer_names(num_layers: int) -> list[str]:
    """``layer_1, layer_2, ...``, zero-padded so that sorting keeps the order."""
    digits = len(str(num_layers))
    return [f"layer_{i:0{digits}d}" for i in range(1, num_layers + 1)]


def check_sizes(name: str, sizes: tuple[Any, ...]) -> None:
    """Raise unless all sizes are positive integers."""
    if not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"`{name}` must be positive integers, but was {sizes}.")
