"""Fully connected and convolutional networks."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from jaxtheory.models._layers import Network, check_sizes, layer_names


class MLP(Network):
    r"""A fully connected network on flattened inputs.

    With :math:`h_0 = x` (flattened), hidden layers and outputs are

    .. math::
        h_l = \phi(s_l W_l^\top h_{l-1} + b_l), \qquad
        f(x) = s_{L+1} W_{L+1}^\top h_L + b_{L+1}.

    Under ``parametrization="standard"`` the scale :math:`s_l` is 1 and weights start
    as :math:`N(0, \sigma_w^2 / n_{l-1})`; under ``"ntk"`` weights start as
    :math:`N(0, 1)` and :math:`s_l = \sigma_w / \sqrt{n_{l-1}}`, where :math:`n_{l-1}`
    is the fan-in. Both give the same distribution of functions at initialisation and
    differ in how gradient descent moves them. Biases are stored as they act and start
    as :math:`N(0, \sigma_b^2)` under both. The normal distributions are *not*
    truncated, unlike Flax's own initialisers, so that infinite-width formulas hold
    exactly, also in the first layer.

    The variables are ``{"params": {"layer_1": {"kernel", "bias"}, ..., "output"}}``
    (numbers zero-padded from ten layers on) and, with BatchNorm, ``"batch_stats"``.
    Equal configurations compare and hash equal, so that a model is a static argument
    of `jax.jit`; the method ``model.apply`` is equal to itself only for one and the
    same object.

    Attributes:
        widths: Hidden layer widths, from the input side; ``()`` for a linear model.
        num_outputs: Number ``k`` of outputs.
        activation: Elementwise function after each hidden layer.
        batch_norm: Normalise each hidden layer before its activation (decay .9 of the
            running statistics). Such a layer has no bias of its own. Train with
            ``model.apply(variables, x, train=True, mutable=["batch_stats"])``.
        dropout_rate: Fraction of units dropped after each hidden layer in training;
            needs ``rngs={"dropout": key}`` then.
        parametrization: ``"standard"`` or ``"ntk"``.
        weight_std: :math:`\sigma_w`. The default :math:`\sqrt 2` is He's: with relu and
            no biases :math:`E f_k(x)^2 = 2 |x|^2 / d` at every depth and width.
        bias_std: :math:`\sigma_b`; 0 starts biases at zero.
        use_bias: Whether layers have biases.
        param_dtype: Dtype in which parameters are initialised. Computation is in the
            dtype to which inputs and parameters promote.

    Raises:
        ValueError: An option is outside its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> model = models.MLP((16, 8), num_outputs=3)
        >>> x = jnp.ones((5, 2, 2))
        >>> params = model.init(jax.random.key(0), x[:1])
        >>> model.apply(params, x).shape
        (5, 3)
        >>> {name: h.shape for name, h in models.features(model, params, x).items()}
        {'input': (5, 4), 'layer_1': (5, 16), 'layer_2': (5, 8)}

    References:
        He et al. 2015, arXiv:1502.01852, eq. 10 (weight variance 2 / fan-in); Jacot et
        al. 2018, arXiv:1806.07572, section 2 (the NTK parametrisation).
    """

    widths: Sequence[int]
    num_outputs: int

    def __post_init__(self):
        self.widths = tuple(self.widths)  # a list would not hash
        check_sizes("widths", self.widths)
        check_sizes("num_outputs", (self.num_outputs,))
        self._check_options()
        super().__post_init__()

    @nn.compact
    def _forward(self, x, train):
        """Features by layer, and outputs."""
        h = jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
        features = {"input": h}
        names = layer_names(len(self.widths))
        for name, width in zip(names, self.widths, strict=True):
            h = self._drop(self._hidden(h, width, (), name, train), train)
            features[name] = h
        return features, self._affine(self.num_outputs, (), "output", self.use_bias)(h)


class CNN(Network):
    """A small convolutional network on images ``[n, height, width, channels]``.

    Each block is a 3x3 convolution (stride 1, zero padding to the same size),
    BatchNorm if asked, the activation, and a pooling: 2x2 average (an odd last row or
    column is dropped) after every block but the last, the average over all pixels
    after the last. The classifier is a dense layer on those ``channels[-1]`` averages.
    Three blocks on 8x8 digits see 8x8, 4x4, 2x2 pixels.

    Parametrisations, initialisation and variables are those of `MLP`, with fan-in
    ``9 * channels`` in the convolutions.

    Attributes:
        channels: Channels of each block, from the input side; at least one block.
        num_outputs: Number ``k`` of outputs.
        activation: Elementwise function after each convolution.
        batch_norm: Normalise each channel before its activation; see `MLP`.
        dropout_rate: Fraction of entries dropped after each block in training.
        parametrization: ``"standard"`` or ``"ntk"``.
        weight_std: As in `MLP`.
        bias_std: As in `MLP`.
        use_bias: Whether layers have biases.
        param_dtype: As in `MLP`.

    Raises:
        ValueError: An option is outside its range; or, when called, `x` is not a batch
            of images or too small for the number of blocks.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> model = models.CNN((16, 32), num_outputs=10)
        >>> x = jnp.ones((5, 8, 8, 1))
        >>> params = model.init(jax.random.key(0), x[:1])
        >>> {name: h.shape for name, h in models.features(model, params, x).items()}
        {'input': (5, 8, 8, 1), 'layer_1': (5, 4, 4, 16), 'layer_2': (5, 32)}
    """

    channels: Sequence[int]
    num_outputs: int

    def __post_init__(self):
        self.channels = tuple(self.channels)  # a list would not hash
        check_sizes("channels", self.channels)
        check_sizes("num_outputs", (self.num_outputs,))
        if not self.channels:
            raise ValueError("`channels` must name at least one block, but was ().")
        self._check_options()
        super().__post_init__()

    @nn.compact
    def _forward(self, x, train):
        """Features by block, and outputs."""
        self._check_images(x)
        h, features = x, {"input": x}
        names = layer_names(len(self.channels))
        for name, size in zip(names, self.channels, strict=True):
            h = self._hidden(h, size, (3, 3), name, train)
            last = name == names[-1]
            h = jnp.mean(h, (1, 2)) if last else nn.avg_pool(h, (2, 2), (2, 2))
            h = self._drop(h, train)
            features[name] = h
        return features, self._affine(self.num_outputs, (), "output", self.use_bias)(h)

    def _check_images(self, x):
        smallest = 2 ** (len(self.channels) - 1)
        if x.ndim != 4:
            raise ValueError(
                "`x` must be a batch of images [n, height, width, channels], but has "
                f"shape {x.shape}. Add the missing axis (`x[..., None]` for one "
                "channel), or use an MLP, which takes any shape."
            )
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"`x` must have at least {smallest} x {smallest} pixels for "
                f"{len(self.channels)} blocks, each but the last halving both sides, "
                f"but has shape {x.shape}. Use fewer blocks."
            )
