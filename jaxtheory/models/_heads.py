"""Heads: classifiers that are not trained, projections, and a skip connection."""

from dataclasses import KW_ONLY
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxtheory import collapse
from jaxtheory.batching import check_count, check_number
from jaxtheory.models._layers import check_sizes
from jaxtheory.models._networks import CNN, MLP


class FixedClassifier(nn.Module):
    """A classifier with a symmetric frame in place of weights; it has no parameters.

    ``outputs = scale * h @ W.T`` with `collapse.classifier_frame` ``W``, rotated by a
    seed. The frame is a constant of the compiled program. Put it after a body, for
    example ``nn.Sequential([body, FixedClassifier(10)])``. As a classifier, for
    `collapse.statistics`, it is ``(head.weight(num_features), None)``.

    Attributes:
        num_outputs: Number of classes.
        frame: "simplex", "seli" or "orthoplex"; see `collapse.classifier_frame`.
        class_counts: Examples of each class, for "seli".
        scale: Factor of the outputs.
        normalize: Whether features are divided by their length first, as losses on the
            dot product of directions want.
        seed: Seed of the rotation.

    Raises:
        ValueError: `num_outputs` is below 2, `scale` not positive or `seed` negative.
            When called: the frame does not fit into the number of features, or they
            are not floating-point.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> head = models.FixedClassifier(3)
        >>> x = jnp.ones((5, 4))
        >>> variables = head.init(jax.random.key(0), x)
        >>> head.apply(variables, x).shape, jax.tree.leaves(variables)
        ((5, 3), [])
    """

    num_outputs: int
    _: KW_ONLY
    frame: Literal["simplex", "seli", "orthoplex"] = "simplex"
    class_counts: tuple[int, ...] | None = None
    scale: float = 1.0
    normalize: bool = False
    seed: int = 0

    def __post_init__(self):
        check_count(num_outputs=self.num_outputs, at_least=2)
        check_count(seed=self.seed, at_least=0)
        check_number("scale", self.scale, lambda s: 0 < s < float("inf"), "positive")
        super().__post_init__()

    def weight(self, dimension: int) -> Float[Array, "k d"]:
        """The frame in `dimension` features, with `scale`."""
        counts = None if self.class_counts is None else tuple(self.class_counts)
        return self.scale * collapse.classifier_frame(
            self.frame,
            self.num_outputs,
            dimension,
            key=jax.random.key(self.seed),
            class_counts=counts,
        )

    def __call__(self, h: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Outputs of features."""
        if not jnp.issubdtype(jnp.result_type(h), jnp.floating):
            raise ValueError(
                "`h` must be floating-point, as the frame is, but has dtype "
                f"{jnp.result_type(h)}. Cast it."
            )
        if self.normalize:
            # The square of a length overflows half precision early. Directions do not
            # depend on the scale, nor do their derivatives.
            largest = jax.lax.stop_gradient(jnp.max(jnp.abs(h), -1, keepdims=True))
            h = h / jnp.where(largest > 0, largest, 1)
            # Zero has no direction, and the derivative of its length is NaN.
            along = jnp.where(largest > 0, h, 1)
            length = jnp.linalg.norm(along, axis=-1, keepdims=True)
            h = h / length
        return h @ self.weight(h.shape[-1]).T.astype(h.dtype)


class ProjectionHead(nn.Module):
    """Hidden layers between features and classifier, to be thrown away for transfer.

    The classifier's collapse is then that of the projection: features before it keep
    more variability within classes.

    Attributes:
        widths: Widths of the hidden layers, each followed by relu.
        num_outputs: Number of classes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> head = models.ProjectionHead((8,), 3)
        >>> variables = head.init(jax.random.key(0), jnp.ones((5, 4)))
        >>> list(variables["params"])
        ['projection_1', 'output']

    References:
        Li et al. 2022, arXiv:2212.12206, section 3.
    """

    widths: tuple[int, ...]
    num_outputs: int

    def __post_init__(self):
        self.widths = tuple(self.widths)
        check_sizes("widths", self.widths)
        check_sizes("num_outputs", (self.num_outputs,))
        super().__post_init__()

    @nn.compact
    def __call__(self, h: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Outputs of features."""
        for index, width in enumerate(self.widths, start=1):
            h = nn.relu(nn.Dense(width, name=f"projection_{index}")(h))
        return nn.Dense(self.num_outputs, name="output")(h)


class SkipConnection(nn.Module):
    """A network whose chosen hidden layer is also fed to a new classifier.

    ``outputs = V (h_L + P h_l)`` with the last features ``h_L``, those of the chosen
    layer ``h_l`` (averaged over pixels), a linear map ``P`` that starts at zero and a
    new classifier ``V``. For skip-connection-layer fine-tuning train the layer, ``P``
    and ``V`` only: ``collapse.trainable_mask(params, model.trainable)``. The rest,
    BatchNorm statistics included, stays as pretrained: features are read in eval mode.

    The parameters of the pretrained model are under ``"model"``: after ``init``, put
    ``{**variables["params"], "model": pretrained["params"]}`` there.

    Attributes:
        model: A pretrained `MLP` or `CNN`.
        layer: Name of the hidden layer, such as ``"layer_2"``.
        num_outputs: Number of target classes.

    Raises:
        ValueError: When called: there is no such hidden layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import collapse, models
        >>> body = models.MLP((8, 6), num_outputs=10)
        >>> model = models.SkipConnection(body, layer="layer_1", num_outputs=3)
        >>> params = model.init(jax.random.key(0), jnp.ones((5, 4)))["params"]
        >>> mask = collapse.trainable_mask(params, model.trainable)
        >>> collapse.count_parameters(params, mask)
        ParameterCount(trainable=109, total=233)

    References:
        Li et al. 2022, arXiv:2212.12206, section 4.
    """

    model: MLP | CNN
    _: KW_ONLY
    layer: str
    num_outputs: int

    def __post_init__(self):
        check_count(num_outputs=self.num_outputs)
        if not isinstance(self.model, MLP | CNN):
            raise ValueError(
                "`model` must be a `models.MLP` or a `models.CNN`, but is a "
                f"{type(self.model).__module__}.{type(self.model).__qualname__}."
            )
        super().__post_init__()

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of what is trained, for `collapse.trainable_mask`."""
        layer = [f"model/{self.layer}"]
        if self.model.batch_norm:
            layer.append(f"model/{self.layer}_norm")
        return (*layer, "skip", "classifier")

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n k"]:
        """Outputs for the target classes."""
        features = self.model.features(x)
        hidden = [name for name in features if name != "input"]
        if self.layer not in hidden:
            raise ValueError(
                f"`layer` must be one of {hidden}, but was {self.layer!r}."
            )
        last, chosen = features[hidden[-1]], features[self.layer]
        chosen = jnp.mean(chosen, axis=tuple(range(1, chosen.ndim - 1)))
        skip = nn.Dense(
            last.shape[-1],
            use_bias=False,
            kernel_init=nn.initializers.zeros_init(),
            name="skip",
        )
        return nn.Dense(self.num_outputs, name="classifier")(last + skip(chosen))
