"""Wide networks against their limit: ``python -m experiments.infinite_width_limit -h``.

Empirical tangent kernels of Flax networks at initialisation, as they are written,
against `infinite_width` of the same modules: the error falls as one over the root of
the width, for perceptrons, residual sums, normalised layers and convolutions alike.
What does not fall is the difference between the first layer's real weights and Gaussian
ones.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.folder import run_command
from jaxtheory import Estimate, kernels


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        widths: Widths of the hidden layers.
        image_widths: Channels of the convolutional network.
        num_seeds: Initialisations at each width.
        num_first_layer_seeds: The same, of the network with a uniform first layer.
        num_examples: Inputs, standard normal.
        dim: Features of an input.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    image_widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    num_seeds: int = 20
    num_first_layer_seeds: int = 200
    num_examples: int = 12
    dim: int = 10
    seed: int = 0
    out: Path = Path("runs/infinite_width_limit")


class Convergence(NamedTuple):
    """How the empirical kernel of one architecture nears its limit.

    Attributes:
        widths: The widths.
        errors: ``|K - K_limit|_F / |K_limit|_F``, one row a width, one column a seed.
        slope: Power of the width that the errors fall with.
    """

    widths: np.ndarray
    errors: np.ndarray
    slope: Estimate


class Result(NamedTuple):
    """What was measured.

    Attributes:
        networks: By name of the architecture.
        first_layer: Relative distance of the kernel, averaged over seeds, from the
            limit with the first layer's real weights (uniform; first row) and with
            Gaussian ones (second row), one column a width.
    """

    networks: dict[str, Convergence]
    first_layer: np.ndarray


# Sums of Gaussian variables only: a truncated normal would shift the limit itself.
_HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Perceptron(nn.Module):
    """Dense layers and relu, as deep as asked."""

    width: int
    depth: int = 1
    normalise: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.Dense(self.width, kernel_init=_HE)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.normalise else x)
        return nn.Dense(1, kernel_init=_HE)(x)


class Residual(nn.Module):
    """Two residual blocks."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, kernel_init=_HE)(x)
        for _ in range(2):
            x = x + nn.Dense(self.width, kernel_init=_HE)(nn.relu(x))
        return nn.Dense(1, kernel_init=_HE)(jnp.tanh(x))


class Convolutional(nn.Module):
    """Two convolutions, one of stride 2, and the mean over positions."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3), kernel_init=_HE)(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2, kernel_init=_HE)(x))
        return nn.Dense(1, kernel_init=_HE)(jnp.mean(x, axis=(1, 2)))


class UniformFirst(nn.Module):
    """One hidden layer of tanh, whose first weights are uniform, of deviation 1.5."""

    width: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(2.25, "fan_in", "uniform")
        x = jnp.tanh(nn.Dense(self.width, kernel_init=init)(x))
        return nn.Dense(1, kernel_init=_HE)(x)


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "1 hidden layer": Perceptron,
    "3 hidden layers": lambda width: Perceptron(width, depth=3),
    "LayerNorm": lambda width: Perceptron(width, depth=2, normalise=True),
    "residual": Residual,
    "convolutional": Convolutional,
}


def run(config: Config) -> Result:
    """Measure every architecture at every width."""
    for name in ("widths", "image_widths"):
        if len(set(getattr(config, name))) < 2:
            raise ValueError(
                f"`{name}` must hold at least two widths, to fit a slope, but was "
                f"{getattr(config, name)}."
            )
    keys = jax.random.split(jax.random.key(config.seed), 4)
    key_x, key_images, key_networks, key_first = keys
    x = jax.random.normal(key_x, (config.num_examples, config.dim))
    images = jax.random.normal(key_images, (config.num_examples, 8, 8, 3))
    cases = [
        (name, make, images, config.image_widths)
        if name == "convolutional"
        else (name, make, x, config.widths)
        for name, make in ARCHITECTURES.items()
    ]
    networks = {
        name: _convergence(config, make, x, widths, jax.random.fold_in(key_networks, i))
        for i, (name, make, x, widths) in enumerate(cases)
    }
    return Result(networks, _first_layer(config, key_first))


def empirical(module: nn.Module, x: Any, key: Any, num_seeds: int) -> jax.Array:
    """Kernels ``[seeds, n, n]`` of a module in its NTK parametrisation."""
    key_scale, key_init = jax.random.split(key)
    scale = kernels.ntk_scaling(module, x, key=key_scale).param_scale

    @jax.jit
    def kernel(key):
        params = module.init(key, x)
        return kernels.empirical_ntk(module.apply, params, x, param_scale=scale)

    return jax.lax.map(kernel, jax.random.split(key_init, num_seeds))


def _convergence(config, make, x, widths, key):
    """One architecture: the limit, and kernels of every width."""
    limit = kernels.infinite_width(make(widths[0]), x, weight_std=2**0.5).ntk
    distances = jax.vmap(lambda found: kernels.kernel_change(limit, found))
    rows = []
    for width in widths:
        at_width = jax.random.fold_in(key, width)
        rows.append(distances(empirical(make(width), x, at_width, config.num_seeds)))
    errors = np.stack(rows)
    sizes = np.array(widths)
    return Convergence(sizes, errors, kernels.power_law(sizes, errors))


# Inputs along the axes, of two features: the worst there is.
AXIS_ALIGNED = jnp.array([[2.0, 0.0], [0.0, 2.0], [1.5, 1.5]])


def distances_of_mean(found: jax.Array) -> np.ndarray:
    """The mean of kernels of `UniformFirst` against both limits."""
    limits = [
        kernels.infinite_width(
            UniformFirst(8),
            AXIS_ALIGNED,
            weight_std={"Dense_0": 1.5, "Dense_1": 2**0.5},
            first_layer=first_layer,
        ).ntk
        for first_layer in ("exact", "gaussian")
    ]
    return np.array([kernels.kernel_change(limit, found.mean(0)) for limit in limits])


def _first_layer(config, key):
    """The averaged kernel against both limits, at every width."""
    columns = []
    for width in config.widths:
        module, at_width = UniformFirst(width), jax.random.fold_in(key, width)
        found = empirical(module, AXIS_ALIGNED, at_width, config.num_first_layer_seeds)
        columns.append(distances_of_mean(found))
    return np.stack(columns, axis=1)


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows: root mean squares over seeds."""
    lines = ["relative error of the empirical kernel (root mean square over seeds)"]
    for name, found in result.networks.items():
        rms = np.sqrt(np.mean(found.errors**2, axis=1))
        values = "  ".join(
            f"{width}: {error:.3f}"
            for width, error in zip(found.widths, rms, strict=True)
        )
        lines.append(
            f"{name:<16} {values}   slope {found.slope.value:.3f} +- "
            f"{found.slope.standard_error:.3f} (theory -1/2)"
        )
    lines += [
        "",
        "uniform first layer: the mean kernel's distance from the limit with",
    ]
    names = "its weights", "Gaussian ones"
    for name, row in zip(names, result.first_layer, strict=True):
        values = "  ".join(
            f"{width}: {error:.3f}"
            for width, error in zip(config.widths, row, strict=True)
        )
        lines.append(f"{name:<16} {values}")
    return "\n".join(lines)


def draw(config: Config, result: Result) -> Any:
    """Errors against the width, and the part that no width removes."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, found in result.networks.items():
        rms = np.sqrt(np.mean(found.errors**2, axis=1))
        label = f"{name}: {found.slope.value:.2f}"
        axes[0].loglog(found.widths, rms, "o-", label=label)
    found = result.networks["1 hidden layer"]
    first = np.sqrt(np.mean(found.errors[0] ** 2))
    guide = 0.5 * first * (found.widths / found.widths[0]) ** -0.5
    axes[0].loglog(found.widths, guide, "k--", label="slope -1/2")
    axes[0].set_ylabel("relative error of the empirical kernel")
    names = "its weights", "Gaussian weights"
    for row, label in zip(result.first_layer, names, strict=True):
        axes[1].loglog(config.widths, row, "o-", label=f"limit with {label}")
    axes[1].set_ylabel("relative error of the mean kernel")
    axes[1].set_title("uniform first layer, inputs of two features", fontsize="medium")
    for ax in axes:
        ax.set_xlabel("width")
        ax.legend()
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
