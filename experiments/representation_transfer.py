"""A representation learnt once makes new functions cheap, in any dimension.

``python -m experiments.representation_transfer --help``

Damian, Lee, Soltanolkotabi (arXiv:2206.15144): a two-layer network that was pretrained
on functions of a few hidden directions learns a *new* function of them from a number of
labels that does not grow with the input dimension d; the neural tangent kernel, which
learns no features, needs more than d of them, whatever its ridge.

Pretraining: mixtures of ``h2(z1)``, ``h2(z2)``, ``z1 h2(z2)`` and ``h2(z1) z2`` under
standard normal inputs. Target: ``(z1 + z1 z2) / sqrt(2)``, orthogonal to all of those,
under inputs of another covariance. Only labels of the target count. They are what a
method needs to bring its squared test error under a tenth of the variance, with all of
its choices made on them:

- *pretrained*: ridge regression on the pretrained first layer, ridge by leave-one-out;
- *scratch*: the same network, trained in the same way on the target's labels alone;
- *kernel*: its infinite-width NTK, ridge by leave-one-out.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
import tyro
from matplotlib.figure import Figure

from experiments.folder import run_command
from experiments.relu_ntk import relu_ntk
from jaxtheory import data, dynamics, kernels, models

METHODS = ("pretrained", "scratch", "kernel")
# Without the last two, sums of functions of z1 and of z2 do, and in low dimensions the
# features become just those, of which z1 z2 is no combination.
SOURCE_TERMS = ((2, 0), (0, 2), (1, 2), (2, 1))
TARGET_TERMS = ((1, 0), (1, 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        dims: Input dimensions.
        num_seeds: Repetitions of everything, from the hidden directions on.
        threshold: Relative test error to be reached.
        width: Width of the network.
        num_tasks: Functions in pretraining, one for each output.
        num_source: Labelled examples for pretraining.
        num_steps: Steps of pretraining, and of training from scratch.
        batch_size: Examples in each of them, at most.
        learning_rate: First learning rate of AdamW.
        weight_decay: Its weight decay.
        spread: The target's inputs have variances between ``1 / spread`` and `spread`
            (times one number that makes their mean 1), in random directions.
        smallest: Least numbers of labels that are tried, one for each method:
            pretrained, scratch, kernel; each next one is larger by ``sqrt(2)``.
        largest: Bounds of those numbers.
        num_draws: Draws of labels that the error of pretrained features is the mean of.
        num_layers: Hidden layers of the kernel's network.
        num_test: Test examples.
        quick: Half of each dimension, two seeds, a quarter of the source examples and
            half of the steps.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    dims: tuple[int, ...] = (20, 40, 80)
    num_seeds: int = 4
    threshold: float = 0.1
    width: int = 256
    num_tasks: int = 8
    num_source: int = 65_536
    num_steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 0.01
    weight_decay: float = 0.5
    spread: float = 2.0
    smallest: tuple[int, int, int] = (8, 32, 64)
    largest: tuple[int, int, int] = (512, 4096, 8192)
    num_draws: int = 20
    num_layers: int = 1
    num_test: int = 2000
    quick: bool = False
    seed: int = 0
    out: Path = Path("runs/representation_transfer")


class Slope(NamedTuple):
    """Power of the dimension in the number of labels, with its 95 % interval.

    Attributes:
        value: Least-squares slope of logarithms, over all seeds; NaN if a number of
            labels is not known.
        low: Lower end of the interval, of Student's t.
        high: Upper end.
        num_censored: How many numbers of labels are not known.
    """

    value: float
    low: float
    high: float
    num_censored: int


class Result(NamedTuple):
    """What was found.

    Attributes:
        labels: Labels needed, by method ``[dims, seeds]``. Infinite: more than the
            largest number that was tried; 0: fewer than the smallest.
        curves: By method, for each dimension and seed, pairs of a number of labels
            and the relative test error with it.
        inside: Share of the squared first-layer weights within the hidden subspace,
            after pretraining. ``[dims, seeds]``; ``2 / d`` at the start.
        slopes: By method.
        verdicts: What the numbers say, one sentence each.
    """

    labels: dict[str, np.ndarray]
    curves: dict[str, list[list[list[tuple[int, float]]]]]
    inside: np.ndarray
    slopes: dict[str, Slope]
    verdicts: list[str]


def settings(config: Config) -> Config:
    """The configuration that is run: that of `quick`, if asked for."""
    if not config.quick:
        return config
    dims = tuple(d // 2 for d in config.dims)
    return dataclasses.replace(
        config,
        dims=dims,
        num_seeds=2,
        num_source=config.num_source // 4,
        num_steps=config.num_steps // 2,
        quick=False,
    )


def run(config: Config) -> Result:
    """Pretrain and transfer in every dimension, with every seed."""
    config = settings(config)
    if len(config.dims) < 2 or len(config.dims) * config.num_seeds < 3:
        raise ValueError(
            "`dims` must be at least two, and three with all seeds, for a slope with "
            f"an interval, but was {config.dims} with {config.num_seeds} seeds."
        )
    cells = []
    for d in config.dims:
        for seed in range(config.num_seeds):
            key = jax.random.fold_in(jax.random.key(config.seed), seed)
            cells.append(_cell(config, d, jax.random.fold_in(key, d)))
            said = ", ".join(
                f"{name} {_said(config, name, cells[-1][0][name][0])}"
                for name in METHODS
            )
            print(f"d = {d}, seed {seed}: labels {said}", file=sys.stderr)
    grid = len(config.dims), config.num_seeds
    labels, curves = {}, {}
    for name in METHODS:
        found = [cell[name] for cell, _ in cells]
        labels[name] = np.array([needed for needed, _ in found]).reshape(grid)
        flat = [curve for _, curve in found]
        rows = range(0, len(flat), config.num_seeds)
        curves[name] = [flat[i : i + config.num_seeds] for i in rows]
    inside = np.array([share for _, share in cells]).reshape(grid)
    slopes = {name: slope(config.dims, labels[name]) for name in METHODS}
    return Result(labels, curves, inside, slopes, verdicts(slopes))


def labels_needed(
    error_at: Callable[[int], float], sizes: Sequence[int], threshold: float
) -> tuple[float, list[tuple[int, float]]]:
    """The number of labels at which the error falls to a threshold.

    Sizes are tried in their order, until one is good enough; between it and the one
    before, error and size are taken for a power law.

    Returns:
        The number, infinite if no size is good enough and 0 if the first one is; and
        the sizes that were tried, each with its error.
    """
    tried = []
    for size in sizes:
        tried.append((size, error_at(size)))
        if tried[-1][1] <= threshold:
            break
    else:
        return math.inf, tried
    if len(tried) == 1:
        return 0.0, tried
    (small, above), (large, below) = tried[-2:]
    share = math.log(above / threshold) / math.log(above / below)
    return small * (large / small) ** share, tried


def slope(dims: Sequence[int], labels: np.ndarray) -> Slope:
    """Fit the power of the dimension in the number of labels, ``[dims, seeds]``."""
    known = np.isfinite(labels) & (labels > 0)
    if not known.all():
        return Slope(math.nan, math.nan, math.nan, int(np.sum(~known)))
    fit = kernels.power_law(np.array(dims), labels)
    quantile = float(scipy.stats.t.ppf(0.975, labels.size - 2))
    half = quantile * float(fit.standard_error)
    value = float(fit.value)
    return Slope(value, value - half, value + half, 0)


def verdicts(slopes: dict[str, Slope]) -> list[str]:
    """What the slopes say of each claim."""
    claims = (
        ("pretrained", "contains 0", lambda s: s.low <= 0 <= s.high),
        ("kernel", "exceeds 1", lambda s: s.low > 1),
    )
    said = []
    for name, claim, holds in claims:
        found = slopes[name]
        word = "holds" if holds(found) else "DOES NOT HOLD"
        if found.num_censored:
            word = f"undecided, as {found.num_censored} numbers of labels are not known"
        said.append(f"{name}: the interval of the slope {claim}: {word}")
    return said


def _cell(config: Config, d: int, key: Any) -> tuple[dict[str, Any], float]:
    """One dimension and seed: labels needed by each method, and the share inside."""
    key_source, key_train, key_cov, key_target, key_scratch = jax.random.split(key, 5)
    source = _source(config, d, key_source)
    model, params = _train(config, source.x_train, source.y_train, key_train)
    target = _draw(
        dim=d,
        num_train=max(config.largest),
        num_test=config.num_test,
        terms=TARGET_TERMS,
        directions=source.directions,
        covariance=_covariance(d, config.spread, key_cov),
        key=key_target,
    )
    encode = lambda x: models.features(model, params, x)["layer_1"]
    features = encode(target.x_train[: config.largest[0]]), encode(target.x_test)
    errors = {
        "pretrained": lambda n: _readout_error(config, *features, target, n),
        "scratch": lambda n: _scratch_error(config, target, n, key_scratch),
        "kernel": lambda n: _kernel_error(config, target, n),
    }
    found = {
        name: labels_needed(errors[name], _sizes(config, name), config.threshold)
        for name in METHODS
    }
    weights = params["params"]["layer_1"]["kernel"]
    inside = jnp.matmul(source.directions.T, weights, precision="highest")
    return found, float(jnp.sum(inside**2) / jnp.sum(weights**2))


def _sizes(config, name):
    """Numbers of labels that are tried: a geometric grid."""
    i = METHODS.index(name)
    steps = math.floor(2 * math.log2(config.largest[i] / config.smallest[i]) + 1e-9)
    return [round(config.smallest[i] * 2 ** (j / 2)) for j in range(steps + 1)]


class _Task(NamedTuple):
    x_train: jax.Array
    y_train: jax.Array
    x_test: jax.Array
    y_test: jax.Array
    directions: jax.Array


@functools.partial(jax.jit, static_argnames=("dim", "num_train", "num_test", "terms"))
def _draw(**options):
    """A task; one compilation for each dimension."""
    return _Task(*data.multi_index(**options)[:5])


def _source(config, d, key):
    """The tasks of pretraining: random mixtures of unit variance."""
    key_mixture, key_task = jax.random.split(key)
    shape = config.num_tasks, len(SOURCE_TERMS)
    mixtures = jax.random.normal(key_mixture, shape)
    return _draw(
        dim=d,
        num_train=config.num_source,
        num_test=1,
        terms=SOURCE_TERMS,
        coefficients=mixtures / jnp.linalg.norm(mixtures, axis=1, keepdims=True),
        key=key_task,
    )


@functools.partial(jax.jit, static_argnames=("d", "spread"))
def _covariance(d, spread, key):
    """Variances in geometric progression, with mean 1, in random directions."""
    variances = jnp.geomspace(1 / spread, spread, d)
    axes = jax.random.orthogonal(key, d)
    variances = variances / jnp.mean(variances)
    return jnp.matmul(axes * variances[None], axes.T, precision="highest")


def _loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2, axis=1)


@functools.lru_cache(maxsize=1)  # one and the same: another one compiles anew
def _optimizer(config):
    # A large `eps` keeps steps proportional to gradients where those are small: Adam
    # would blow the noise in directions that do not matter up to full steps.
    return optax.adamw(
        optax.cosine_decay_schedule(config.learning_rate, config.num_steps),
        eps=0.01,
        weight_decay=config.weight_decay,
    )


@functools.lru_cache(maxsize=2)
def _network(width, num_outputs):
    model = models.MLP((width,), num_outputs, bias_std=0.5)
    return model, dynamics.supervised(model.apply, _loss)


def _train(config, x, y, key):
    """The network, trained on these labels."""
    key_init, key_train = jax.random.split(key)
    model, objective = _network(config.width, y.shape[1])
    params = model.init(key_init, x[:1])
    optimizer = _optimizer(config)
    history = dynamics.train(
        objective,
        dynamics.init(optimizer, params),
        optimizer,
        (x, y),
        num_steps=config.num_steps,
        batch_size=min(config.batch_size, len(x)),
        key=key_train,
        progress=False,
    )
    if history.diverged_at is not None:
        raise ValueError(
            f"Training diverged at step {history.diverged_at}. Lower `learning_rate`."
        )
    return model, history.state.params


def _scratch_error(config, target, n, key):
    """Relative test error of the network trained on the first ``n`` labels.

    No label is held out: in trials, stopping early on a fifth of the labels was no
    better, and neither were weight decays from 0.1 to 2 or Adam's usual `eps`.
    """
    model, params = _train(config, target.x_train[:n], target.y_train[:n], key)
    return _relative(model.apply(params, target.x_test), target.y_test)


def _readout_error(config, train, test, target, n):
    """Mean relative test error of ridge regression on features of ``n`` examples."""
    draws = np.random.default_rng(n)
    train, y = np.asarray(train), np.asarray(target.y_train)
    errors = []
    for _ in range(config.num_draws):
        chosen = draws.choice(len(train), n, replace=False)
        predictions = _readout(train[chosen], y[chosen], test)
        errors.append(_relative(predictions, target.y_test))
    return float(np.mean(errors))


@jax.jit
def _readout(train, y, test):
    """Predictions of ridge regression on features, with an offset."""
    a, b = (one - jnp.mean(train, 0)[None] for one in (train, test))
    product = lambda u, v: jnp.matmul(u, v.T, precision="highest")
    return _regress(product(a, a), y, product(b, a))


def _kernel_error(config, target, n):
    """Relative test error of the infinite-width NTK with the first ``n`` labels."""
    x, z = (np.asarray(a) for a in (target.x_train[:n], target.x_test))
    d = x.shape[1]
    options = {"num_layers": config.num_layers, "bias_variance": 0.25}
    square = lambda a: np.sum(a**2, axis=1) / d
    gram = relu_ntk(x @ x.T / d, square(x)[:, None], square(x)[None], **options)
    test = relu_ntk(z @ x.T / d, square(z)[:, None], square(x)[None], **options)
    return _relative(_regress(gram, target.y_train[:n], test), target.y_test)


@jax.jit
def _regress(kernel, y, kernel_test):
    """Predictions with the ridge of least squared leave-one-out residuals."""
    scale = jnp.trace(kernel) / len(kernel)
    fit = lambda ridge: kernels.kernel_regression(
        kernel, y - jnp.mean(y), kernel_test, ridge=ridge
    )
    fits = jax.vmap(fit)(scale * jnp.geomspace(1e-5, 1.0, 11))
    best = jnp.argmin(jnp.mean(fits.leave_one_out**2, axis=(1, 2)))
    return fits.predictions[best] + jnp.mean(y)


def _relative(predictions, y):
    return float(jnp.mean((predictions - y) ** 2) / jnp.var(y))


def _said(config, name, labels):
    """A number of labels as text; one that is not known as its bound."""
    if labels == 0:
        return f"<{config.smallest[METHODS.index(name)]}"
    sizes = _sizes(config, name)
    return f"{labels:.0f}" if math.isfinite(labels) else f">{sizes[-1]}"


def report(config: Config, result: Result) -> str:
    """Labels needed by dimension and seed, slopes with intervals, and verdicts."""
    lines = [f"labels for a relative test error of {config.threshold:g}, by seed", ""]
    for name in METHODS:
        for d, row in zip(config.dims, result.labels[name], strict=True):
            entries = "".join(f"{_said(config, name, n):>8}" for n in row)
            lines.append(f"{name:<11} d = {d:<4}{entries}")
    lines += ["", "slope of log(labels) in log(d), with its 95 % interval"]
    for name, found in result.slopes.items():
        text = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        if found.num_censored:
            text = f"not known: {found.num_censored} of the above are bounds"
        lines.append(f"{name:<11} {text}")
    shares = ", ".join(f"{share:.3f}" for share in result.inside.mean(1))
    lines += ["", f"first-layer weights inside the subspace, by d: {shares}"]
    return "\n".join([*lines, "", *result.verdicts])


def draw(config: Config, result: Result) -> Figure:
    """Labels against the dimension, and errors against labels at the largest."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = dict(zip(METHODS, ("tab:orange", "tab:blue", "tab:green"), strict=True))
    for name, colour in colours.items():
        labels, found = result.labels[name], result.slopes[name]
        known = np.isfinite(labels) & (labels > 0)
        dims = np.broadcast_to(np.array(config.dims)[:, None], labels.shape)
        left.plot(dims[known], labels[known], "o", color=colour, alpha=0.45, ms=5)
        label = name
        if known.all():
            means = np.exp(np.log(labels).mean(axis=1))
            left.plot(config.dims, means, color=colour)
            label += f": slope {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        left.plot([], [], "o-", color=colour, label=label)
        for curve in result.curves[name][-1]:
            right.plot(*zip(*curve, strict=True), "o-", color=colour, ms=3, lw=1)
    left.set(
        xlabel="input dimension $d$",
        ylabel=f"labels for relative error {config.threshold:g}",
        xscale="log",
        yscale="log",
    )
    left.set_xticks(config.dims, [str(d) for d in config.dims])
    left.minorticks_off()
    left.legend(frameon=False, loc="best", fontsize=9)
    right.axhline(config.threshold, color="k", ls=":", lw=1)
    right.set(xlabel="labels", ylabel="relative test error", xscale="log", yscale="log")
    right.set_title(f"d = {config.dims[-1]}, one line a seed", fontsize=10)
    return figure


def main() -> None:
    """Run the command line."""
    run_command(settings(tyro.cli(Config, description=__doc__)), run, report, draw)


if __name__ == "__main__":
    main()
