"""Learning curves of kernels, theory against experiment.

``python -m experiments.learning_curves --help``

Theory (Simon et al., arXiv:2110.03922; Bordelon, Canatar, Pehlevan, arXiv:2002.02561)
predicts the test error of kernel regression from the kernel's eigenvalues and the
target's coefficients. Three worlds in which both are known:

- *circle*: in every draw, learnabilities of all eigenfunctions sum to the number of
  examples;
- *cube*: parities of k of d signs, with the NTK of a ReLU network;
- *gaussian*: a power law of random features, where generalised cross-validation and
  leave-one-out have to find the test error in the training data alone.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.folder import run_command
from experiments.relu_ntk import relu_ntk
from jaxtheory import kernels


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        circle_points: Points on the circle.
        circle_examples: Numbers of examples there.
        cube_dim: Number ``d`` of signs: the cube has ``2^d`` corners.
        cube_degrees: Sizes ``k`` of the parities.
        cube_examples: Numbers of examples, drawn without replacement.
        num_layers: Hidden layers of the ReLU network on circle and cube.
        bias_variance: Variance of its biases.
        num_features: Number of Gaussian features, with eigenvalues ``i^-1.5`` and
            coefficients ``1 / i``.
        gaussian_examples: Numbers of examples there.
        ridges: Ridges on the cube and of Gaussian features.
        num_trials: Random training sets of each number of examples.
        quick: A fifth of the trials, every second number of examples on the cube and
            of Gaussian features, and the smallest and the largest ridge.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    circle_points: int = 10
    circle_examples: tuple[int, ...] = (3, 6)
    cube_dim: int = 8
    cube_degrees: tuple[int, ...] = (1, 2, 3)
    cube_examples: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    num_layers: int = 4
    bias_variance: float = 0.01
    num_features: int = 1000
    gaussian_examples: tuple[int, ...] = (25, 50, 100, 200)
    ridges: tuple[float, ...] = (0.0, 0.01, 0.1)
    num_trials: int = 300
    quick: bool = False
    seed: int = 0
    out: Path = Path("runs/learning_curves")


class Row(NamedTuple):
    """One number that theory predicts and an experiment measured.

    Attributes:
        world: ``"circle"``, ``"cube"`` or ``"gaussian"``.
        target: Which eigenfunction or function.
        quantity: ``"learnability"``, ``"test error"``, or how it was estimated from
            training data.
        num_examples: Number of training examples.
        ridge: Ridge of the regression.
        theory: The prediction (leave-one-out: that for one example fewer).
        experiment: Mean over trials.
        standard_error: Of the mean.
    """

    world: str
    target: str
    quantity: str
    num_examples: int
    ridge: float
    theory: float
    experiment: float
    standard_error: float

    @property
    def ratio(self) -> float:
        """Experiment over theory."""
        return self.experiment / self.theory

    @property
    def ratio_error(self) -> float:
        """Standard error of the ratio."""
        return self.standard_error / self.theory


class Result(NamedTuple):
    """What was found.

    Attributes:
        rows: Theory and experiment.
        conservation: Largest distance, in any draw on the circle and in theory, of the
            sum of learnabilities from the number of examples.
        verdicts: What the numbers say, one sentence each.
    """

    rows: list[Row]
    conservation: float
    verdicts: list[str]


def run(config: Config) -> Result:
    """Draw, regress and compare; in double precision."""
    config = settings(config)
    if config.num_trials < 2:
        raise ValueError(
            "`num_trials` must be at least 2, for a standard error, but was "
            f"{config.num_trials}."
        )
    draws = np.random.default_rng(config.seed)
    with jax.enable_x64(True):
        rows, conservation = _circle(config, draws)
        rows += _cube(config, draws) + _gaussian(config, draws)
    return Result(rows, conservation, _verdicts(rows, conservation))


def settings(config: Config) -> Config:
    """The configuration that is run: that of `quick`, if asked for."""
    if not config.quick:
        return config
    return dataclasses.replace(
        config,
        cube_examples=config.cube_examples[1::2] or config.cube_examples,
        gaussian_examples=config.gaussian_examples[1::2] or config.gaussian_examples,
        ridges=tuple(sorted({min(config.ridges), max(config.ridges)})),
        num_trials=config.num_trials // 5,
        quick=False,
    )


def _profile(config: Config, cosine: np.ndarray) -> np.ndarray:
    """That kernel at cosines of inputs with ``|x|^2 = d``."""
    return relu_ntk(
        cosine,
        np.ones(1),
        np.ones(1),
        num_layers=config.num_layers,
        bias_variance=config.bias_variance,
    )


@jax.jit
def _regress(kernel, targets, kernel_test, ridges):
    """Predictions and residuals ``[trials, ridges, ...]``: one eigensystem a trial."""

    def fit(kernel, targets, kernel_test):
        one = lambda ridge: kernels.kernel_regression(
            kernel, targets, kernel_test, ridge=ridge
        )
        return jax.vmap(one)(ridges)

    # Trials one after another: their Gram matrices stay in the cache.
    found = jax.lax.map(lambda arrays: fit(*arrays), (kernel, targets, kernel_test))
    leave_one_out = jnp.mean(found.leave_one_out**2, axis=2)
    return found.predictions, found.generalised_cross_validation, leave_one_out


def _corners(draws, config, num_points, n):
    """Training sets of ``n`` of the points without replacement, ``[trials, n]``."""
    if not 0 < n < num_points:
        raise ValueError(
            f"The numbers of examples must be below the {num_points} points there are, "
            f"but one was {n}."
        )
    return np.stack(
        [draws.permutation(num_points)[:n] for _ in range(config.num_trials)]
    )


def _rows(world, targets, quantity, n, ridge, theory, samples):
    """A row for each target; samples are ``[trials, targets]``."""
    error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    numbers = zip(targets, theory, np.mean(samples, axis=0), error, strict=True)
    return [
        Row(world, target, quantity, n, ridge, *map(float, values))
        for target, *values in numbers
    ]


def _circle(config: Config, draws: Any) -> tuple[list[Row], float]:
    """Learnabilities of frequencies without ridge, and how well they add up."""
    m = config.circle_points
    place = np.arange(m)
    ring = _profile(config, np.cos(2 * np.pi * place / m))
    spectrum = kernels.circle_spectrum(ring)
    gram = ring[np.subtract.outer(place, place) % m]
    frequency = np.arange(m // 2 + 1)
    angles = 2 * np.pi * np.outer(place, frequency) / m
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    rows, distance = [], 0.0
    for n in config.circle_examples:
        curve = kernels.learning_curve(
            spectrum.eigenvalues,
            np.zeros(len(frequency)),
            num_examples=n,
            multiplicities=spectrum.multiplicities,
        )
        chosen = _corners(draws, config, m, n)
        learnt = _regress(
            gram[chosen[:, :, None], chosen[:, None]],
            waves[chosen],
            gram[:, chosen].swapaxes(0, 1),
            np.zeros(1),
        )[0][:, 0]
        # Cosine and sine of a frequency share its mean: their squares sum to m.
        cosines, sines = np.split(np.mean(waves * np.asarray(learnt), 1), 2, 1)
        shares = cosines + sines
        for sum_ in (curve.learnabilities, *shares):
            distance = max(distance, abs(float(sum_ @ spectrum.multiplicities) - n))
        names = [f"frequency {j}" for j in frequency]
        rows += _rows(
            "circle", names, "learnability", n, 0.0, curve.learnabilities, shares
        )
    return rows, distance


def _cube(config: Config, draws: Any) -> list[Row]:
    """Test errors of parities, over all corners."""
    d = config.cube_dim
    corners = 1 - 2.0 * ((np.arange(2**d)[:, None] >> np.arange(d)) & 1)
    parities = np.stack(
        [np.prod(corners[:, :k], axis=1) for k in config.cube_degrees], axis=1
    )
    gram = _profile(config, corners @ corners.T / d)
    names = [f"k = {k}" for k in config.cube_degrees]
    rows = []
    for n in config.cube_examples:
        chosen = _corners(draws, config, 2**d, n)
        predictions, _, _ = _regress(
            gram[chosen[:, :, None], chosen[:, None]],
            parities[chosen],
            gram[:, chosen].swapaxes(0, 1),
            np.array(config.ridges),
        )
        errors = np.mean((np.asarray(predictions) - parities) ** 2, axis=2)
        for ridge, samples in zip(config.ridges, errors.swapaxes(0, 1), strict=True):
            theory = [cube_theory(config, k, n, ridge)[0] for k in config.cube_degrees]
            rows += _rows("cube", names, "test error", n, ridge, theory, samples)
    return rows


def cube_theory(config: Config, degree: int, num_examples: Any, ridge: float) -> Any:
    """The predicted test error of a parity, at each number of examples."""
    d = config.cube_dim
    spectrum = kernels.hypercube_spectrum(
        _profile(config, 1 - 2 * np.arange(d + 1) / d)
    )
    curve = kernels.learning_curve(
        spectrum.eigenvalues,
        np.eye(d + 1)[degree],
        num_examples=np.atleast_1d(num_examples),
        ridge=ridge,
        multiplicities=spectrum.multiplicities,
    )
    return curve.test_error


def gaussian_theory(config: Config, num_examples: Any, ridge: float) -> Any:
    """The predicted test error of Gaussian features, at each number of examples."""
    i = np.arange(1.0, config.num_features + 1)
    curve = kernels.learning_curve(
        i**-1.5, 1 / i, num_examples=np.atleast_1d(num_examples), ridge=ridge
    )
    return curve.test_error


def _gaussian(config: Config, draws: Any) -> list[Row]:
    """Test errors of Gaussian features, and what the training data say of them."""
    i = np.arange(1.0, config.num_features + 1)
    eigenvalues, coefficients = i**-1.5, 1 / i
    rows = []
    for n in config.gaussian_examples:
        found = []
        for _ in range(config.num_trials):
            features = draws.standard_normal((n, config.num_features))
            weighted = features * eigenvalues
            predictions, *estimates = _regress(
                (weighted @ features.T)[None],
                (features @ coefficients)[None, :, None],
                weighted.T[None],  # the coefficient of each eigenfunction
                np.array(config.ridges),
            )
            missed = np.asarray(predictions)[0, :, :, 0] - coefficients
            error = np.sum(missed**2, axis=1)
            found.append([error, *(np.asarray(one)[0, :, 0] for one in estimates)])
        samples = np.array(found)
        for r, ridge in enumerate(config.ridges):
            # Leaving one out, regression is on n - 1 examples.
            sizes = {"test error": n, "GCV": n, "leave-one-out": n - 1}
            for q, (quantity, size) in enumerate(sizes.items()):
                theory = gaussian_theory(config, size, ridge)
                rows += _rows(
                    "gaussian",
                    ["1 / i"],
                    quantity,
                    n,
                    ridge,
                    theory,
                    samples[:, q, r, None],
                )
    return rows


def _verdicts(rows: list[Row], conservation: float) -> list[str]:
    """What the numbers say of each claim."""
    said = [
        f"circle: learnabilities sum to n within {conservation:.1e} in every draw "
        f"({_word(conservation <= 1e-12)}: 1e-12)"
    ]
    cube = [row for row in rows if row.world == "cube" and row.num_examples >= 16]
    if cube:
        outside = [row for row in cube if not _agrees(row)]
        worst = max(abs(row.ratio - 1) for row in cube)
        said.append(
            f"cube, n of 16 or more: theory within 5 % + 3 standard errors in "
            f"{len(cube) - len(outside)} of {len(cube)}, worst {100 * worst:.1f} % "
            f"({_word(not outside)})"
        )
    for quantity in ("test error", "GCV", "leave-one-out"):
        some = [r for r in rows if r.world == "gaussian" and r.quantity == quantity]
        ratios = [row.ratio for row in some]
        fine = all(_agrees(row) for row in some)
        said.append(
            f"gaussian: {quantity} over theory {min(ratios):.3f} to {max(ratios):.3f} "
            f"({_word(fine)}: within 5 % + 3 standard errors)"
        )
    return said


def _agrees(row: Row) -> bool:
    """Within 5 %, or as far beyond as chance makes the worst of many rows."""
    return abs(row.ratio - 1) < 0.05 + 3 * row.ratio_error


def _word(holds: bool) -> str:
    return "holds" if holds else "FAILS"


def report(result: Result) -> str:
    """The table and the verdicts."""
    head = (
        f"{'world':<9} {'target':<12} {'quantity':<14} {'n':>4} {'ridge':>6} "
        f"{'theory':>9} {'experiment':>11} {'+- error':>9} {'ratio':>6}"
    )
    lines = [
        f"{row.world:<9} {row.target:<12} {row.quantity:<14} {row.num_examples:>4} "
        f"{row.ridge:>6g} {row.theory:>9.4f} {row.experiment:>11.4f} "
        f"{row.standard_error:>9.4f} {row.ratio:>6.3f}"
        for row in result.rows
    ]
    return "\n".join([head, *lines, "", *result.verdicts])


def draw(config: Config, result: Result) -> Figure:
    """Lines of theory, points of experiment with 2 standard errors, and their ratio."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _draw_cube(config, result, *axes[:2])
    _draw_gaussian(config, result, axes[2])
    for ax in axes:
        ax.set(xscale="log", xlabel="training examples $n$")
        ax.legend(frameon=False, fontsize=9)
        ax.minorticks_off()
    for ax, sizes in zip(
        axes,
        (config.cube_examples, config.cube_examples, config.gaussian_examples),
        strict=True,
    ):
        ax.set_xticks(sizes, [str(n) for n in sizes])
    return figure


def _draw_cube(config, result, curves, ratios):
    """Parities without ridge, and what is left with each ridge."""
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(config.cube_degrees)))
    fine = np.geomspace(min(config.cube_examples), max(config.cube_examples), 60)
    low = min(config.ridges)
    for j, (degree, colour) in enumerate(
        zip(config.cube_degrees, colours, strict=True)
    ):
        curves.plot(fine, cube_theory(config, degree, fine, low), color=colour)
        some = _select(result, "cube", "test error", low, f"k = {degree}")
        _points(curves, some, color=colour, marker="o", label=f"parity of {degree}")
        for i, ridge in enumerate(config.ridges):
            some = _select(result, "cube", "test error", ridge, f"k = {degree}")
            label = f"ridge {ridge:g}" if degree == config.cube_degrees[0] else None
            style = {"color": colour, "marker": "osD^v<>"[i % 7], "label": label}
            _points(ratios, some, 1.04 ** (3.5 * i + j), relative=True, **style)
    curves.set(yscale="log", ylabel="mean squared test error")
    curves.set_title(f"{config.cube_dim}-cube, ReLU NTK, ridge {low:g}")
    ratios.axhspan(0.95, 1.05, color="0.9", zorder=0)
    ratios.axhline(1, color="k", lw=1)
    ratios.set_ylabel("experiment / theory")
    ratios.set_title("the same, over theory (band: 5 %)")


def _draw_gaussian(config, result, ax):
    """Gaussian features, and what the training data say of the test error."""
    ridge = sorted(config.ridges)[len(config.ridges) // 2]
    sizes = config.gaussian_examples
    fine = np.geomspace(min(sizes), max(sizes), 60)
    ax.plot(fine, gaussian_theory(config, fine, ridge), color="k", label="theory")
    for quantity, marker, shift in (
        ("test error", "o", 1.0),
        ("GCV", "s", 0.95),
        ("leave-one-out", "^", 1.05),
    ):
        some = _select(result, "gaussian", quantity, ridge)
        _points(ax, some, shift, marker=marker, label=quantity)
    ax.set(yscale="log", title=f"Gaussian features, ridge {ridge:g}")


def _select(result, world, quantity, ridge, target=None):
    """The rows of one curve."""
    return [
        row
        for row in result.rows
        if (row.world, row.quantity, row.ridge) == (world, quantity, ridge)
        and target in (None, row.target)
    ]


def _points(ax, rows, shift=1.0, *, relative=False, **style):
    """Points of experiment, or of its ratio to theory."""
    ax.errorbar(
        [shift * row.num_examples for row in rows],
        [row.ratio if relative else row.experiment for row in rows],
        yerr=[2 * (r.ratio_error if relative else r.standard_error) for r in rows],
        linestyle="",
        markersize=4,
        capsize=2,
        **style,
    )


def main() -> None:
    """Run the command line."""
    run_command(
        settings(tyro.cli(Config, description=__doc__)),
        run,
        lambda _, result: report(result),
        draw,
    )


if __name__ == "__main__":
    main()
