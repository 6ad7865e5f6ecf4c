"""Paths between networks: ``python -m experiments.mode_connectivity --help``.

Two networks that differ in their seeds alone have a barrier between them on the
straight line. Three claims about it: a trained curve goes around it (Garipov et al.,
arXiv:1802.10026); putting the units of one network into the order of the other lowers
it, and the more so the wider the networks, down to zero (Entezari et al.,
arXiv:2110.06296; Ainsworth, Hayase & Srinivasa, arXiv:2209.04836). On digits, for
perceptrons of two hidden layers and for a convolutional network.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

from experiments.claims import Claim, claims_table
from experiments.folder import run_command
from jaxtheory import data, dynamics, kernels, models, plot
from jaxtheory.curvature import landscape

_loss = optax.softmax_cross_entropy_with_integer_labels
PATHS = ("straight", "matched", "curve")
_LABELS = ("straight line", "after weight matching", "trained curve")
# The largest rise of test error along a curve, over its ends, in the paper's table:
# VGG16 on CIFAR-10, 7.75 % after 6.94 %. (PreResNet164: 4.97 % after 4.76 %.)
PUBLISHED_RISE = 0.0081


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        widths: Units of each of two hidden layers, of the perceptrons.
        channels: Of the blocks of the convolutional network; empty for none.
        num_pairs: Pairs of networks of each architecture, at least 2.
        num_train: Training images; the other ``1797 - num_train`` are for testing.
        num_steps: Training steps of a network, of Adam.
        num_curve_steps: Training steps of a curve.
        batch_size: Images a step, of both.
        learning_rate: Of both.
        num_points: Points at which a path is evaluated.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    widths: tuple[int, ...] = (32, 128, 512)
    channels: tuple[int, ...] = (32, 64)
    num_pairs: int = 5
    num_train: int = 1297
    num_steps: int = 800
    num_curve_steps: int = 800
    batch_size: int = 100
    learning_rate: float = 1e-3
    num_points: int = 25
    seed: int = 0
    out: Path = Path("runs/mode_connectivity")


class Result(NamedTuple):
    """What was measured: ``a`` architectures, ``q`` pairs, ``r`` points.

    Attributes:
        names: Of the architectures.
        barriers: By path, that of the training loss, ``[a, q]``.
        error_barriers: By path, that of the test error: the largest excess over the
            line between the errors at the ends, ``[a, q]``.
        losses: By path, training losses along it ``[a, q, r]``.
        end_loss: Mean training loss of the two ends ``[a, q]``.
        end_error: Mean test error of the two ends ``[a, q]``.
        distance: Distance of two networks after matching over that before ``[a, q]``.
        width_exponents: By path, fitted power of the width in the `barriers` of
            perceptrons, NaN where one is zero; empty for fewer than three widths.
    """

    names: tuple[str, ...]
    barriers: dict[str, np.ndarray]
    error_barriers: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    end_loss: np.ndarray
    end_error: np.ndarray
    distance: np.ndarray
    width_exponents: dict[str, Any]


def run(config: Config) -> Result:
    """Train pairs of networks and the paths between them.

    Raises:
        ValueError: There are no architectures, or fewer than two pairs.
    """
    networks = _architectures(config)
    if not networks or config.num_pairs < 2:
        raise ValueError(
            "there must be an architecture and two pairs of networks, but there were "
            f"{len(networks)} and {config.num_pairs}."
        )
    keys = jax.random.split(jax.random.key(config.seed), 1 + len(networks))
    task = data.digits(num_train=config.num_train, key=keys[0], image=True)
    train, test = (task.x_train, task.y_train), (task.x_test, task.y_test)
    optimizer = optax.adam(config.learning_rate)
    found = []
    for model, key in zip(networks.values(), keys[1:], strict=True):
        # The same objects for all pairs, so that programs are compiled once.
        apply_fn: Any = model.apply
        objective = dynamics.supervised(apply_fn, _loss)
        problem = _Problem(model, apply_fn, objective, train, test, optimizer)
        pairs = jax.random.split(key, config.num_pairs)
        found.append([_pair(config, problem, one) for one in pairs])
    by_name = {
        name: np.array([[pair[name] for pair in pairs] for pairs in found])
        for name in found[0][0]
    }
    field = lambda kind: {path: by_name[f"{kind} {path}"] for path in PATHS}
    barriers = field("barrier")
    return Result(
        tuple(networks),
        barriers,
        field("error"),
        field("losses"),
        by_name["end loss"],
        by_name["end error"],
        by_name["distance"],
        _exponents(config.widths, barriers),
    )


def _architectures(config):
    found: dict[str, Any] = {
        f"MLP {width}": models.MLP((width, width), 10) for width in config.widths
    }
    if config.channels:
        label = "-".join(map(str, config.channels))
        found[f"CNN {label}"] = models.CNN(config.channels, 10)
    return found


class _Problem(NamedTuple):
    """An architecture and what it is trained on."""

    model: Any
    apply_fn: Any
    objective: Any
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    optimizer: Any


def _error(outputs, y):
    return (jnp.argmax(outputs, axis=1) != y).astype(jnp.float32)


def _pair(config, problem, key):
    """Two networks, and three paths from one to the other."""
    key_a, key_b, key_match, key_curve = jax.random.split(key, 4)
    _, apply_fn, _, train, test, optimizer = problem
    a, b = (_trained(config, problem, one) for one in (key_a, key_b))
    matched = landscape.match_weights(a, b, key=key_match)
    found: dict[str, Any] = {"distance": matched.distance / matched.distance_before}
    points = {"num": config.num_points}
    for path, end in (("straight", b), ("matched", matched.params)):
        line = landscape.interpolate(apply_fn, _loss, a, end, *train, **points)
        errors = landscape.interpolate(apply_fn, _error, a, end, *test, **points)
        found |= _path(path, line, errors.losses)
    curve = landscape.bezier_curve(
        *(apply_fn, _loss, a, b),
        *train,
        optimizer=optimizer,
        num_steps=config.num_curve_steps,
        key=key_curve,
        examples_per_step=config.batch_size,
        **points,
    )
    errors = _errors(apply_fn, a, curve.bend, b, curve.coordinates, *test)
    middle = lambda values: float(values[0] + values[-1]) / 2
    found |= _path("curve", curve, errors)
    return found | {"end loss": middle(curve.losses), "end error": middle(errors)}


def _trained(config, problem, key):
    key_init, key_train = jax.random.split(key)
    params = problem.model.init(key_init, problem.train[0][:1])
    history = dynamics.train(
        problem.objective,
        dynamics.init(problem.optimizer, params),
        problem.optimizer,
        problem.train,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        key=key_train,
        progress=False,
    )
    return history.state.params


@functools.partial(jax.jit, static_argnums=0)
def _errors(apply_fn, a, bend, b, coordinates, x, y):
    """Test errors along a curve."""

    def one(t):
        params = landscape.bezier_point(a, bend, b, t)
        return jnp.mean(_error(apply_fn(params, x), y))

    return jax.lax.map(one, coordinates)


def _path(path, line, errors):
    """What is kept of a path."""
    shares, errors = np.asarray(line.coordinates), np.asarray(errors)
    excess = errors - (1 - shares) * errors[0] - shares * errors[-1]
    return {
        f"barrier {path}": float(line.barrier),
        f"error {path}": float(np.max(excess)),
        f"losses {path}": np.asarray(line.losses),
    }


def _exponents(widths, barriers):
    """Powers of the width in barriers of the perceptrons, the first rows."""
    if len(widths) < 3:
        return {}
    sizes = np.array(widths)
    return {p: kernels.power_law(sizes, b[: len(sizes)]) for p, b in barriers.items()}


def _mean(values):
    """Mean over pairs, with its standard error."""
    return np.mean(values, -1), np.std(values, -1, ddof=1) / np.sqrt(values.shape[-1])


def report(config: Config, result: Result) -> str:
    """Barriers, means over pairs with standard errors, and claims with verdicts."""
    lines = []
    for what, barriers, ends in (
        ("barrier of the training loss", result.barriers, result.end_loss),
        ("barrier of the test error", result.error_barriers, result.end_error),
    ):
        labels = "".join(f"{label:>22}" for label in _LABELS)
        lines.append(f"{what:<29}{labels}{'ends':>10}")
        for i, name in enumerate(result.names):
            cells = [_mean(barriers[path][i]) for path in PATHS]
            text = "".join(
                f"{f'{mean:.4f} ± {error:.4f}':>22}" for mean, error in cells
            )
            lines.append(f"{name:<29}{text}{ends[i].mean():>10.4f}")
        lines.append("")
    for name, distance in zip(result.names, result.distance.mean(1), strict=True):
        lines.append(f"{name}: matched at {distance:.3f} of the distance before")
    for path, power in result.width_exponents.items():
        text = f"{power.value:+.2f} ± {power.standard_error:.2f}"
        lines.append(f"barrier of perceptrons, {path}: ~ width^{text}")
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def claims(config: Config, result: Result) -> list[Claim]:
    """What is published, as far as these paths can tell."""
    rises = result.error_barriers
    ratios = result.barriers["matched"] / result.barriers["straight"]
    smooth = "test error hardly rises along a curve (1802.10026)"
    lower = "matching lowers the barrier of the loss (2209.04836)"
    found = [
        _claim(f"{name}: {smooth}", rises["curve"][i], PUBLISHED_RISE)
        for i, name in enumerate(result.names)
    ] + [
        _claim(f"{name}: {lower}", ratios[i], 1.0, "of that of the straight line")
        for i, name in enumerate(result.names)
    ]
    power = result.width_exponents.get("matched")
    if power is not None:
        text = "matched, the barrier falls with the width (2209.04836): its power"
        value, error = float(power.value), float(power.standard_error)
        found.append(Claim(text, value, -np.inf, 0.0, error))
    if config.widths:
        widest = int(np.argmax(config.widths))
        text = (
            f"{result.names[widest]}: matched, no rise of the test error (2209.04836)"
        )
        note = "none: as little as along published curves"
        found.append(_claim(text, rises["matched"][widest], PUBLISHED_RISE, note))
    return found


def _claim(text, values, high, note=""):
    mean, error = _mean(values)
    return Claim(text, float(mean), -np.inf, high, float(error), note)


def draw(config: Config, result: Result) -> Any:
    """Losses along the three paths, and barriers of all architectures."""
    colours = (plot.TEST, plot.TRAIN, plot.KERNEL)
    last = max(0, len(config.widths) - 1)
    places = np.arange(len(result.names))
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
        for path, label, colour in zip(PATHS, _LABELS, colours, strict=True):
            curves = result.losses[path][last]
            shares = np.linspace(0, 1, curves.shape[1])
            axes[0].plot(shares, curves.T, color=colour, alpha=0.25, lw=0.8)
            axes[0].plot(shares, curves.mean(0), color=colour, label=label)
            for ax, kind in (
                (axes[1], result.barriers),
                (axes[2], result.error_barriers),
            ):
                ax.errorbar(places, *_mean(kind[path]), fmt="o-", color=colour)
                ax.set_xticks(places, result.names)
        axes[0].set(xlabel="from one network to the other", ylabel="training loss")
        axes[0].set_title(result.names[last])
        axes[0].legend()
        axes[1].set(ylabel="barrier of the training loss")
        axes[1].set_yscale("symlog", linthresh=1e-4)
        axes[1].set_ylim(bottom=0)
        axes[2].set(ylabel="barrier of the test error")
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
