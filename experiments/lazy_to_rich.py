"""From lazy to rich training: ``python -m experiments.lazy_to_rich --help``.

Two models whose scale decides whether they learn features. A network scaled up around
its start (Chizat, Oyallon, Bach, arXiv:1812.07956) moves its parameters by 1 / scale
and ends as kernel regression; scaled down, it finds the hidden direction of its task. A
diagonal linear network (Woodworth et al., arXiv:2002.09277) ends in the interpolation
of least l2 norm at large scales and of least l1 norm at small ones.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.optimize
import tyro

from experiments.folder import run_command
from jaxtheory import data, dynamics, kernels, models


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        scales: Scales of the network.
        diagonal_scales: Scales at which diagonal networks start.
        trained_scales: Those of them at which one is trained too, by gradient descent.
        num_seeds: Data sets and initialisations.
        width: Width of the network, of one hidden layer.
        dim: Input dimension of its task, ``He2`` of one direction.
        num_train: Number of its training examples.
        num_steps: Steps of gradient descent, of networks.
        num_diagonal_steps: The same, of diagonal networks.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    diagonal_scales: tuple[float, ...] = (5.0, 1.0, 0.1, 0.01, 1e-4)
    trained_scales: tuple[float, ...] = (5.0, 1.0, 0.1)
    num_seeds: int = 3
    width: int = 200
    dim: int = 20
    num_train: int = 200
    num_steps: int = 4000
    num_diagonal_steps: int = 20_000
    seed: int = 0
    out: Path = Path("runs/lazy_to_rich")


class Result(NamedTuple):
    """What was measured; arrays have one row a scale and one column a seed.

    Attributes:
        movement: ``|w - w_0| / |w_0|`` of the network.
        kernel_change: ``|K - K_0|_F / |K_0|_F`` of its kernel on training examples.
        overlap: Of the top eigenvector of its AGOP with the hidden direction.
        train_loss: Mean squared error over the variance of the targets.
        test_error: The same on 1,000 test examples.
        kernel_error: That of regression with the initial kernel, one for each seed.
        exponent: Fitted power of the scale in `movement`, its geometric mean over
            seeds, for scales of 10 or more.
        l1: l1 norm of the limit of diagonal networks, over the least of all.
        l2: l2 norm of it, over the least of all.
        formula_error: Largest distance of a trained diagonal network from the formula.
    """

    movement: np.ndarray
    kernel_change: np.ndarray
    overlap: np.ndarray
    train_loss: np.ndarray
    test_error: np.ndarray
    kernel_error: np.ndarray
    exponent: Any
    l1: np.ndarray
    l2: np.ndarray
    formula_error: np.ndarray


def run(config: Config) -> Result:
    """Train everything and measure it."""
    large = np.array(config.scales) >= 10
    if large.sum() < 3:
        raise ValueError(
            "`scales` must hold at least three of 10 or more, to fit an exponent, but "
            f"was {config.scales}."
        )
    seeds = range(config.num_seeds)
    keys = [jax.random.fold_in(jax.random.key(config.seed), seed) for seed in seeds]
    columns = [_network(config, key) for key in keys]
    measured = {
        name: np.stack([column[name] for column in columns], axis=-1)
        for name in columns[0]
    }
    typical = np.exp(np.log(measured["movement"][large]).mean(axis=1))
    exponent = kernels.power_law(np.array(config.scales)[large], typical)
    with jax.enable_x64(True):
        diagonal = [_diagonal(config, config.seed + seed) for seed in seeds]
    l1, l2, errors = (np.stack(values, -1) for values in zip(*diagonal, strict=True))
    return Result(**measured, exponent=exponent, l1=l1, l2=l2, formula_error=errors)


def _network(config: Config, key: Any) -> dict[str, np.ndarray]:
    """One seed: the task, and the network at every scale."""
    key_task, key_init, key_train = jax.random.split(key, 3)
    sizes = {"dim": config.dim, "num_train": config.num_train, "num_test": 1000}
    task = data.single_index(link="he2", key=key_task, **sizes)
    # Smooth: the few units of a relu network that switch, each at once, add to the
    # gradient of the scaled model what does not fall with the scale.
    model = models.MLP(
        (config.width,), 1, activation=jax.nn.gelu, parametrization="ntk"
    )
    params = model.init(key_init, task.x_train[:1])
    kernel = kernels.empirical_ntk(model.apply, params, task.x_train)
    fit = kernels.kernel_regression(
        kernel,
        task.y_train,
        kernels.empirical_ntk(model.apply, params, task.x_test, task.x_train),
        ridge=0.0,
    )
    # Half of what is stable at the start, where the Hessian is K / n.
    rate = float(config.num_train / jnp.linalg.eigvalsh(kernel)[-1])
    rows = [
        _train(config, task, model, params, kernel, scale, rate, key)
        for scale, key in zip(
            config.scales, jax.random.split(key_train, len(config.scales)), strict=True
        )
    ]
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    error = jnp.mean((fit.predictions - task.y_test) ** 2) / jnp.var(task.y_test)
    return {**table, "kernel_error": np.array(error)}


def _loss(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def _train(config, task, model, params, kernel, scale, rate, key):
    """The network at one scale, and what became of it."""
    scaled = kernels.lazy(model.apply, params, scale=scale)
    # Below scale 1 weights have to grow, and with them the curvature.
    optimizer = optax.sgd(rate * min(1.0, scale))
    history = dynamics.train(
        dynamics.supervised(scaled, kernels.lazy_loss(_loss, scale=scale)),
        dynamics.init(optimizer, params),
        optimizer,
        (task.x_train, task.y_train),
        num_steps=config.num_steps,
        key=key,
        progress=False,
    )
    trained = history.state.params
    moved = optax.tree.norm(optax.tree.sub(trained, params)) / optax.tree.norm(params)
    after = kernels.empirical_ntk(model.apply, trained, task.x_train)
    matrix = kernels.agop(scaled, trained, task.x_train)
    direction = jnp.linalg.eigh(matrix)[1][:, -1]
    error = lambda x, y: jnp.mean((scaled(trained, x) - y) ** 2) / jnp.var(y)
    row = {
        "movement": moved,
        "kernel_change": kernels.kernel_change(kernel, after),
        "overlap": kernels.direction_overlap(direction, task.direction),
        "train_loss": error(task.x_train, task.y_train),
        "test_error": error(task.x_test, task.y_test),
    }
    # The state of a run that diverged is its last finite one, which means nothing.
    failed = history.diverged_at is not None
    return {name: np.nan if failed else float(value) for name, value in row.items()}


def _diagonal(config: Config, seed: int) -> tuple[np.ndarray, ...]:
    """One seed: norms of the limits at every scale, and what training adds to them."""
    draw = np.random.default_rng(seed)
    x, beta = draw.standard_normal((15, 40)), np.zeros(40)
    beta[:3] = 1.0, -0.8, 0.6
    y = x @ beta
    limits = [
        kernels.diagonal_network_limit(x, y, scale=scale).coefficients
        for scale in config.diagonal_scales
    ]
    both = np.hstack([x, -x])
    least_l1 = scipy.optimize.linprog(np.ones(80), A_eq=both, b_eq=y).fun
    least_l2 = np.linalg.norm(np.linalg.lstsq(x, y, rcond=None)[0])
    errors = [_formula_error(config, x, y, scale) for scale in config.trained_scales]
    l1 = np.array([np.abs(limit).sum() for limit in limits]) / least_l1
    l2 = np.array([np.linalg.norm(limit) for limit in limits]) / least_l2
    return l1, l2, np.array(errors)


def _predict(params, x):
    return x @ (params["u"] ** 2 - params["v"] ** 2)


def _half_square(outputs, y):
    return (outputs - y) ** 2 / 2


def _formula_error(config, x, y, scale):
    """Distance of a trained diagonal network from the formula of its limit."""
    # A tenth of what is stable: the formula is that of gradient flow.
    largest = np.linalg.norm(x, 2) ** 2 / len(x)
    optimizer = optax.sgd(float(0.1 / (4 * largest * max(scale**2, 1.0))))
    start = {name: jnp.full(x.shape[1], scale) for name in "uv"}
    history = dynamics.train(
        dynamics.supervised(_predict, _half_square),
        dynamics.init(optimizer, start),
        optimizer,
        (x, y),
        num_steps=config.num_diagonal_steps,
        key=jax.random.key(0),
        progress=False,
    )
    found = history.state.params
    limit = kernels.diagonal_network_limit(x, y, scale=scale).coefficients
    return float(np.max(np.abs(found["u"] ** 2 - found["v"] ** 2 - limit)))


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows: means over seeds."""
    names = ("movement", "kernel_change", "overlap", "train_loss", "test_error")
    lines = ["scale    " + "  ".join(f"{name:>13}" for name in names)]
    for i, scale in enumerate(config.scales):
        means = [getattr(result, name)[i].mean() for name in names]
        lines.append(f"{scale:<9g}" + "  ".join(f"{mean:>13.4g}" for mean in means))
    lines += [
        f"initial kernel's test error {result.kernel_error.mean():.4g}",
        f"movement ~ scale^a: a = {result.exponent.value:.3f} +- "
        f"{result.exponent.standard_error:.3f} (theory -1)",
        "",
        "scale    l1 / least l1  l2 / least l2  trained - formula",
    ]
    errors = dict(zip(config.trained_scales, result.formula_error, strict=True))
    for i, scale in enumerate(config.diagonal_scales):
        error = f"{errors[scale].max():.1e}" if scale in errors else ""
        norms = f"{result.l1[i].mean():<13.4f}  {result.l2[i].mean():<13.4f}"
        lines.append(f"{scale:<9g}{norms}  {error}".rstrip())
    return "\n".join(lines)


def draw(config: Config, result: Result) -> Any:
    """Movement, errors, and norms against the scale."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    scales = np.array(config.scales)
    for values, label in (
        (result.movement, "parameters"),
        (result.kernel_change, "kernel"),
    ):
        axes[0].loglog(scales, values.mean(1), "o-", label=label)
    last = result.movement[-1].mean()
    axes[0].loglog(scales, last * scales[-1] / scales, "k--", label="slope -1")
    axes[0].set_ylabel("relative change by training")
    axes[1].semilogx(scales, result.test_error.mean(1), "o-", label="network")
    kernel_error = result.kernel_error.mean()
    axes[1].axhline(kernel_error, ls="--", color="k", label="its initial kernel")
    axes[1].set_ylim(0)
    axes[1].set_ylabel("test error / variance")
    for values, label in ((result.l1, "$l_1$"), (result.l2, "$l_2$")):
        mean = values.mean(1)
        axes[2].semilogx(config.diagonal_scales, mean, "o-", label=f"{label} norm")
    axes[2].axhline(1, ls="--", color="k", label="least of all")
    axes[2].set_ylabel("norm of the diagonal network")
    for ax in axes:
        ax.set_xlabel("scale")
        ax.legend()
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
