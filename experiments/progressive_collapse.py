"""Progressive collapse: ``python -m experiments.progressive_collapse``.

Wang et al. (arXiv:2311.02960): in a deep linear network, trained by gradient descent
from orthogonal weights on nearly orthogonal inputs, each layer multiplies the
variability ``C = tr Sigma_W / tr Sigma_B`` of the classes by the same factor,
``xi^2 / (sqrt(n) / alpha)^(2 / (L + 1))``. Here over several seeds, with and without
noise in the inputs, and for smaller weights; then the same curve for a ReLU network on
digits, of which the theorem says nothing.

The notebook of the paper overwrites the first input of each class, which makes its
levels of ``C`` a tenth too low. Ratios are not touched, and are what is compared.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.claims import Claim, claims_table
from experiments.folder import run_command
from experiments.separation.progressive import Layers, factors, linear, relu
from jaxtheory import collapse, plot

# Of the run in the notebook of the paper: the factor of each layer.
PUBLISHED = (0.2902, 0.2827, 0.2807, 0.2803, 0.2803)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        scales: Scales ``xi`` of the orthogonal weights; the first is the published one.
        num_seeds: Inputs and initialisations, at least 3.
        dim: Inputs and units of each layer.
        num_classes: Of the linear networks.
        num_per_class: Examples of each class ``n``.
        depth: Hidden layers ``L``; there is one more, the classifier.
        noise: Frobenius norm of the noise on the orthonormal inputs.
        output_scale: Factor ``alpha`` of the outputs.
        learning_rate: Of gradient descent.
        num_steps: Its steps: the smaller the weights, the longer they stay small.
        relu_width: Units of each layer of the ReLU networks.
        relu_epochs: Passes of theirs over 1,000 digits, by Adam at .001.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    scales: tuple[float, ...] = (0.3, 0.2, 0.1)
    num_seeds: int = 20
    dim: int = 50
    num_classes: int = 3
    num_per_class: int = 10
    depth: int = 5
    noise: float = 1.0
    output_scale: float = 100.0
    learning_rate: float = 0.1
    num_steps: int = 3_000
    relu_width: int = 100
    relu_epochs: int = 100
    seed: int = 0
    out: Path = Path("runs/progressive_collapse")


class Result(NamedTuple):
    """What was measured.

    Attributes:
        exact: Linear networks on orthonormal inputs, by scale.
        noisy: The same on inputs with noise, at the first scale, as published.
        relu: ReLU networks on digits.
    """

    exact: dict[float, Layers]
    noisy: Layers
    relu: Layers


def run(config: Config) -> Result:
    """Train all networks and measure every layer.

    Raises:
        ValueError: There are fewer than three seeds, or more examples than dimensions.
    """
    if config.num_seeds < 3:
        raise ValueError(
            "`num_seeds` must be at least 3, for a spread over seeds, but was "
            f"{config.num_seeds}."
        )
    if config.num_classes * config.num_per_class > config.dim:
        raise ValueError(
            f"`dim` must hold {config.num_classes * config.num_per_class} orthogonal "
            f"examples, but was {config.dim}."
        )
    exact = {scale: linear(config, scale, 0.0) for scale in config.scales}
    noisy = linear(config, config.scales[0], config.noise)
    return Result(exact, noisy, relu(config))


def _mean(values):
    """Mean over seeds, with its standard error."""
    return np.mean(values, 0), np.std(values, 0, ddof=1) / len(values) ** 0.5


def claims(config: Config, result: Result) -> list[Claim]:
    """What the paper says, and what these networks do."""
    smallest, largest = min(config.scales), max(config.scales)
    level, found = result.exact[largest].trace_ratio[:, 0], []
    exact = (config.num_per_class - 1) * config.num_classes / (config.num_classes - 1)
    found.append(
        Claim(
            "orthonormal inputs: C of the input is (n-1)K/(K-1), to rounding",
            float(np.max(np.abs(level / exact - 1))),
            0.0,
            1e-5,
        )
    )
    if config.depth == len(PUBLISHED):
        values = factors(result.noisy)
        for layer, published in enumerate(PUBLISHED):
            mean, error = _mean(values[:, layer])
            # The published number is that of one seed.
            spread = float(2 * np.std(values[:, layer], ddof=1))
            text = f"factor of layer {layer + 1}, {published} in the paper's notebook"
            limits = published - spread, published + spread
            found.append(Claim(text, float(mean), *limits, float(error)))
    away = {}
    for scale, layers in result.exact.items():
        values = factors(layers) / layers.theory
        away[scale] = np.abs(1 - values).mean(1)
        mean, error = _mean(values.mean(1))
        text = f"xi = {scale:g}: factor over theory (2311.02960)"
        found.append(Claim(text, float(mean), 0.98, 1.02, float(error)))
    if smallest < largest:
        mean, error = _mean(away[smallest] - away[largest])
        text = f"theory is nearer at xi = {smallest:g} than at {largest:g}"
        found.append(Claim(text, float(mean), -np.inf, 0.0, float(error)))
    mean, error = _mean(np.max(factors(result.relu), axis=1))
    text = "ReLU on digits: C falls in every layer, the largest factor"
    found.append(Claim(text, float(mean), 0.0, 1.0, float(error), "a trend"))
    return found


def _kinds(result: Result) -> dict[str, Layers]:
    kinds = {f"linear, xi {scale:g}": layers for scale, layers in result.exact.items()}
    return {**kinds, "linear, with noise": result.noisy, "ReLU on digits": result.relu}


def report(config: Config, result: Result) -> str:
    """Levels and factors by layer, laws through them, and the claims."""
    head = "".join(f"{f'layer {l}':<17}" for l in range(1, config.depth + 1))
    lines = [f"{'factor of C':<20}{head}theory  {'C input':<9}{'loss':<9}1 - max cos"]
    for name, layers in _kinds(result).items():
        means, errors = _mean(factors(layers))
        cells = [
            f"{f'{m:.4f} ± {e:.4f}':<17}" for m, e in zip(means, errors, strict=True)
        ]
        rest = (
            f"{layers.theory:<8.4f}{layers.trace_ratio[:, 0].mean():<9.4f}"
            f"{layers.loss.max():<9.1e}{layers.angular_separation.min():.3f} or more"
        )
        lines.append(f"{name:<20}" + "".join(cells) + rest)
    lines += ["", f"{'through log C':<20}factor  r        CV of drops  p(CV)"]
    for name, layers in _kinds(result).items():
        typical = jnp.exp(jnp.mean(jnp.log(jnp.asarray(layers.trace_ratio)), axis=0))
        law = collapse.fit_separation_law(typical)
        chance = collapse.random_drop_test(typical, key=jax.random.key(config.seed))
        lines.append(
            f"{name:<20}{law.ratio:<8.4f}{law.pearson_r:<9.5f}"
            f"{law.drop_variation:<13.4f}{chance.drop_variation.value:.4f}"
        )
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def draw(config: Config, result: Result) -> Any:
    """``C`` by layer beside theory, and its factors over theory."""
    colours = iter((plot.TRAIN, plot.KERNEL, plot.ACCENT, plot.TEST))
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
        layers = np.arange(config.depth + 1)
        for (name, kind), colour in zip(_kinds(result).items(), colours, strict=False):
            axes[0].semilogy(layers, kind.trace_ratio.T, ".", color=colour, alpha=0.2)
            line = kind.trace_ratio[:, 0].mean() * kind.theory**layers
            axes[0].semilogy(layers, line, color=colour, label=name)
            values = _mean(factors(kind) / kind.theory)
            axes[1].errorbar(layers[1:], *values, fmt="o-", color=colour, label=name)
        axes[2].semilogy(layers, result.relu.trace_ratio.T, "o-", color=plot.TRAIN)
        axes[1].axhline(1, color=plot.THEORY, ls="--", lw=1)
        axes[0].set(title="linear networks; lines: theory", ylabel="$C$")
        axes[1].set(title="factor of a layer over theory")
        axes[2].set(title="ReLU networks on digits", ylabel="$C$")
        for ax in axes:
            ax.set(xlabel="layer (0: input)")
        axes[0].legend()
        axes[1].legend()
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
