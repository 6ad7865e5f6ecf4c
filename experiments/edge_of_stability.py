"""Optimizers at their edges of stability: ``python -m experiments.edge_of_stability``.

Trained without batches, a network grows sharper until its optimizer can bear no more,
and stays there: gradient descent at ``2 / rate`` and heavy ball at its own threshold
(Cohen et al., arXiv:2103.00065), Adam at that of its preconditioned sharpness
(arXiv:2207.14484), SAM where its ascent takes part (Long & Bartlett, arXiv:2309.12488).
With batches it is batch sharpness that settles (arXiv:2412.20553). The network is a
tanh perceptron on 20 points of a quartic Chebyshev polynomial. Momentum is held to
reaching its edge too: thrown below it at a loss near zero, it finds nothing to learn
that would make it sharper again.
"""

import dataclasses
import math
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
from jaxtheory import curvature, dynamics, models


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; learning rates of each optimizer, ``()`` for none.

    Attributes:
        gradient_descent: Of gradient descent.
        heavy_ball: Of gradient descent with momentum.
        nesterov: Of gradient descent with Nesterov's momentum.
        momentum: Of these two.
        adam: Of Adam, with ``b1 = .9``.
        rmsprop: Of Adam with ``b1 = 0``.
        sam: Of SAM over gradient descent.
        radius: How far SAM climbs, along the gradient's direction.
        sgd: Of gradient descent on batches.
        batch_size: Its examples in a step, of 20.
        num_steps: Steps of each run.
        num_records: Measurements in each run, beside that of the start.
        width: Units of each of the two hidden layers.
        weight_std: Standard deviation of initial weights times the root of their
            number of inputs; the variance of PyTorch's default, which the published
            code starts from. All but SAM at its larger rate then start below their
            edges.
        num_seeds: Initialisations.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    gradient_descent: tuple[float, ...] = (0.05, 0.08, 0.1)
    heavy_ball: tuple[float, ...] = (0.05, 0.1)
    nesterov: tuple[float, ...] = (0.03, 0.05)
    momentum: float = 0.9
    adam: tuple[float, ...] = (1e-4, 1e-3, 3e-3)
    rmsprop: tuple[float, ...] = (1e-4,)
    sam: tuple[float, ...] = (0.05, 0.1)
    radius: float = 0.1
    sgd: tuple[float, ...] = (0.05,)
    batch_size: int = 4
    num_steps: int = 20_000
    num_records: int = 400
    width: int = 100
    weight_std: float = 3**-0.5
    num_seeds: int = 3
    seed: int = 0
    out: Path = Path("runs/edge_of_stability")


class Run(NamedTuple):
    """An optimizer at a learning rate; arrays ``[s, r]``, one row a seed.

    What a seed that diverged did not record is NaN.

    Attributes:
        name: Of the optimizer, as in `Config`.
        learning_rate: Its learning rate.
        steps: Steps of the records, ``[r]``.
        sharpness: Largest eigenvalue of the Hessian, preconditioned for Adam.
        threshold: What the optimizer can bear.
        ratio: What has to settle at 1: sharpness, or batch sharpness, over `threshold`.
        residual: Of the eigenvalue, over it: how far it may be off.
        loss: Training loss at `steps`, but for the last; of the batch, if there is one.
        diverged: How many seeds diverged.
    """

    name: str
    learning_rate: float
    steps: np.ndarray
    sharpness: np.ndarray
    threshold: np.ndarray
    ratio: np.ndarray
    residual: np.ndarray
    loss: np.ndarray
    diverged: int

    @property
    def late(self) -> np.ndarray:
        """`ratio` in the second half of training."""
        return self.ratio[:, self.ratio.shape[1] // 2 :]


class Optimizer(NamedTuple):
    """What an optimizer is called, and the edge that theory gives it.

    Attributes:
        title: Its name for readers.
        method: Its recursion, as `curvature.stability_threshold` calls it.
        edge: The threshold as a formula, with its source.
        low: Least median ratio, late, at which training counts as being at the edge.
        high: Largest.
    """

    title: str
    method: Any
    edge: str
    low: float = 0.9
    high: float = 1.1


# Within 10 %, where nobody has said how near; closer for gradient descent.
OPTIMIZERS = {
    "gradient_descent": Optimizer(
        "gradient descent", "gradient_descent", "2/η, 2103.00065", 0.97, 1.05
    ),
    "heavy_ball": Optimizer("heavy ball", "heavy_ball", "(2+2β)/η, 2103.00065"),
    "nesterov": Optimizer("Nesterov", "nesterov", "(2+2β)/(η(1+2β)), 2103.00065"),
    "adam": Optimizer("Adam", "adam", "38/η, 2207.14484"),
    "rmsprop": Optimizer("Adam, β1 = 0", "adam", "2/η, 2207.14484"),
    "sam": Optimizer("SAM", "sam", "SAM's own, 2309.12488"),
    "sgd": Optimizer("SGD", "gradient_descent", "2/η, 2412.20553", 0.7, 1.05),
}
_B2, _EPS = 0.999, 1e-8
# SAM keeps the sharpness so far below what gradient descent could bear.
_BELOW = 0.5


def run(config: Config) -> list[Run]:
    """Train every optimizer at every learning rate."""
    if config.num_records < 2 or config.num_steps % config.num_records:
        raise ValueError(
            "`num_records` must be at least 2 and divide `num_steps`, but was "
            f"{config.num_records} of {config.num_steps} steps."
        )
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    x = jnp.linspace(-1, 1, 20)[:, None]
    y = 8 * x**4 - 8 * x**2 + 1
    model = models.MLP(
        (config.width, config.width),
        1,
        activation=jnp.tanh,
        weight_std=config.weight_std,
    )
    return [
        _run(config, name, rate, model, x, y)
        for name in OPTIMIZERS
        for rate in getattr(config, name)
    ]


def _half_square(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def _momentum(config: Config, name: str) -> Any:
    """Momentum, or Adam's ``b1``."""
    both = config.momentum
    known = {"heavy_ball": both, "nesterov": both, "adam": 0.9, "rmsprop": 0.0}
    return known.get(name)


def _optimizer(config: Config, name: str, rate: float) -> Any:
    momentum = _momentum(config, name)
    if name in ("adam", "rmsprop"):
        return optax.adam(rate, b1=momentum, b2=_B2, eps=_EPS)
    if name == "sam":
        climb = optax.chain(optax.contrib.normalize(), optax.sgd(config.radius))
        return optax.contrib.sam(optax.sgd(rate), climb, opaque_mode=True)
    return optax.sgd(rate, momentum=momentum, nesterov=name == "nesterov")


def _run(config: Config, name: str, rate: float, model, x, y) -> Run:
    """An optimizer at a learning rate, from every seed."""
    optimizer = _optimizer(config, name, rate)
    record: dict[str, Any] = {"edge": _edge(config, name, rate, model, x, y)}
    if name == "sgd":
        record["batch"] = _batch_sharpness(config, model, x, y)
    every = config.num_steps // config.num_records
    rows, diverged = [], 0
    for seed in range(config.seed, config.seed + config.num_seeds):
        key_init, key_train = jax.random.split(jax.random.key(seed))
        history = dynamics.train(
            dynamics.supervised(model.apply, _half_square),
            dynamics.init(optimizer, model.init(key_init, x[:1])),
            optimizer,
            (x, y),
            num_steps=config.num_steps,
            batch_size=config.batch_size if name == "sgd" else None,
            key=key_train,
            record=record,
            record_every=every,
            progress=False,
        )
        diverged += history.diverged_at is not None
        edge, batch = history.records["edge"], history.records.get("batch")
        rows.append(
            {
                "sharpness": edge.sharpness,
                "threshold": edge.threshold,
                "ratio": edge.ratio if batch is None else batch.value / edge.threshold,
                "residual": edge.residual / np.abs(edge.sharpness),
                "loss": history.trace["loss"][::every],
            }
        )
    length = config.num_records + 1
    arrays = {
        name: np.stack([_padded(row[name], length - (name == "loss")) for row in rows])
        for name in rows[0]
    }
    steps = every * np.arange(length)
    return Run(name, rate, steps, diverged=diverged, **arrays)


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """With NaN for what a run that diverged did not record."""
    return np.append(values, np.full(max(length - len(values), 0), np.nan))[:length]


def _edge(config, name, rate, model, x, y):
    """Sharpness over the threshold of the optimizer, as a measurement."""
    method, momentum = OPTIMIZERS[name].method, _momentum(config, name)
    preconditioner = None
    if method == "adam":
        preconditioner = lambda state: curvature.preconditioner(
            state.opt_state, b1=momentum, b2=_B2, eps=_EPS
        )
    return curvature.sharpness_over_threshold(
        model.apply,
        _half_square,
        x,
        y,
        method=method,
        learning_rate=rate,
        momentum=momentum,
        radius=config.radius if name == "sam" else None,
        preconditioner=preconditioner,
        key=jax.random.key(config.seed + 2),
    )


def _batch_sharpness(config, model, x, y):
    """Batch sharpness, as a measurement."""

    def measure(state):
        key = jax.random.fold_in(jax.random.key(config.seed + 3), state.step)
        return curvature.batch_sharpness(
            model.apply,
            _half_square,
            state.params,
            x,
            y,
            batch_size=config.batch_size,
            num_batches=100,
            key=key,
        )

    return measure


def claims(runs: list[Run]) -> list[Claim]:
    """Where training should settle, and where it did; means over seeds."""
    return [claim for run in runs for claim in _claims(run)]


def _claims(run: Run) -> list[Claim]:
    kind = OPTIMIZERS[run.name]
    where = f"{kind.title}, η = {run.learning_rate:g}"
    middle = np.median(run.late, axis=1)
    largest = np.max(run.ratio[:, 1:], axis=1)
    # Adam has no preconditioner before its first step.
    first = 1 if kind.method == "adam" else 0
    loss = np.exp(np.mean(np.log(run.loss[:, -1])))
    note = f"starts at {np.mean(run.ratio[:, first]):.2f}, ends at loss {loss:.0e}"
    found = []
    if run.name != "nesterov":
        what = "batch sharpness" if run.name == "sgd" else "sharpness"
        text = f"{where}: late {what} / ({kind.edge})"
        found.append(_claim(text, middle, kind.low, kind.high, note))
    if run.name in ("heavy_ball", "nesterov"):
        text = f"{where}: largest sharpness / ({kind.edge})"
        after = f"{note}, late {np.mean(middle):.2f}"
        found.append(_claim(text, largest, 1.0, math.inf, after))
    if run.name == "sam":
        late = run.sharpness[:, -run.late.shape[1] :] * run.learning_rate / 2
        text = f"{where}: late sharpness / (2/η), the edge without ascent"
        found.append(_claim(text, np.median(late, axis=1), -math.inf, _BELOW))
    return found


def _claim(text: str, values: np.ndarray, low: float, high: float, note="") -> Claim:
    """Of one number for each seed."""
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return Claim(text, float(np.mean(values)), low, high, float(error), note)


def report(config: Config, runs: list[Run]) -> str:
    """The claims, and how well the eigenvalues were found."""
    residuals = np.concatenate([run.residual.ravel() for run in runs])
    residuals = residuals[np.isfinite(residuals)]
    lines = [
        claims_table(claims(runs)),
        "",
        f"Late: medians over the second half of {config.num_steps} steps. Means over "
        f"{config.num_seeds} seeds. Sharpness known to 1 % in "
        f"{100 * np.mean(residuals <= 0.01):.1f} % of {len(residuals)} records.",
    ]
    for run in runs:
        if run.diverged:
            where = f"{OPTIMIZERS[run.name].title} at η = {run.learning_rate:g}"
            lines.append(f"{where}: {run.diverged} of {config.num_seeds} diverged.")
    return "\n".join(lines)


def draw(config: Config, runs: list[Run]) -> Any:
    """A panel an optimizer: sharpness over its threshold, and the loss, thin."""
    names = [name for name in OPTIMIZERS if any(run.name == name for run in runs)]
    rows = math.ceil(len(names) / 4)
    figure, axes = plt.subplots(
        rows, 4, figsize=(17, 3.8 * rows), layout="constrained", squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=False):
        losses = ax.twinx()
        for i, run in enumerate(run for run in runs if run.name == name):
            style: dict[str, Any] = {"color": f"C{i}", "lw": 0.8}
            ax.plot(run.steps, run.ratio.T, **style)
            ax.plot([], [], color=f"C{i}", label=f"η = {run.learning_rate:g}")
            if name == "sam":
                raw = run.sharpness.T * run.learning_rate / 2
                ax.plot(run.steps, raw, ":", **style)
                ax.plot([], [], ":", color=f"C{i}", label="of 2/η")
            losses.semilogy(
                run.steps[:-1], run.loss.T, color=f"C{i}", lw=0.5, alpha=0.5
            )
        ax.axhline(1, color="k", ls="--", lw=1)
        ax.set_ylim(0, 1.5)
        ax.set_title(f"{OPTIMIZERS[name].title}: {OPTIMIZERS[name].edge}", fontsize=10)
        ax.set_xlabel("step")
        what = "batch sharpness" if name == "sgd" else "sharpness"
        ax.set_ylabel(f"{what} / threshold")
        losses.set_ylabel("training loss (thin)")
        # What diverges would leave no room for the rest.
        losses.set_ylim(top=min(losses.get_ylim()[1], 10.0))
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
