"""The shape of training paths: ``python -m experiments.trajectories``.

A perceptron learns digits with SGD, momentum, Adam, AdamW and SAM, at learning rates
that bring all to a similar training loss. Of each path: its length, how far it goes,
how fast it turns, how much of the gradient lies in the span of the Hessian's top
eigenvectors, as many as there are classes (Gur-Ari et al., arXiv:1812.04754; Song et
al., arXiv:2405.16002), and what its principal directions explain, beside those of a
random walk (Antognini & Sohl-Dickstein, arXiv:1806.08805).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree

from experiments.claims import Claim, claims_table
from experiments.folder import run_command
from jaxtheory import curvature, data, dynamics, linalg, models
from jaxtheory.curvature import landscape


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        sgd: Learning rate of SGD.
        momentum: Of SGD with momentum .9.
        adam: Of Adam.
        adamw: Of Adam with decoupled weight decay .1.
        sam: Of SAM over SGD, with radius .05.
        num_seeds: Initialisations and orders of the batches.
        num_train: Training images.
        batch_size: Images in a step.
        num_epochs: Passes over them.
        epochs_a_record: Passes from one look at the Hessian to the next.
        width: Units of the hidden layer.
        num_iterations: Lanczos iterations of such a look.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    sgd: float = 0.1
    momentum: float = 0.01
    adam: float = 1e-3
    adamw: float = 1.2e-3
    sam: float = 0.08
    num_seeds: int = 5
    num_train: int = 1000
    batch_size: int = 50
    num_epochs: int = 60
    epochs_a_record: int = 5
    width: int = 64
    num_iterations: int = 60
    seed: int = 0
    out: Path = Path("runs/trajectories")


class Paths(NamedTuple):
    """The paths of one optimizer; the first axis of each array is the seed.

    Attributes:
        loss: Training loss after each epoch, and at the start, ``[s, e + 1]``.
        test_accuracy: At the end.
        length: Sum of the lengths of all steps.
        displacement: Distance of the end from the start.
        step_angle: Mean angle between one step and the next, degrees.
        epoch_angles: Between the displacements of one epoch and the next, degrees,
            ``[s, e - 1]``.
        explained: Share of the variance of the path, seen once an epoch, along each of
            five principal directions.
        gradient_share: Of the squared norm of the full gradient in the span of the top
            eigenvectors of the Hessian, one for each class, ``[s, r]``.
        step_share: The same of the step that the optimizer takes there, ``[s, r - 1]``.
        move_share: The same of all steps together up to the next record.
        overlap: Mean squared cosine between that span and the last one, ``[s, r]``.
        converged: Share of those eigenvectors found to .1 %.
        plane: Coordinates of the path on the first two principal directions.
    """

    loss: np.ndarray
    test_accuracy: np.ndarray
    length: np.ndarray
    displacement: np.ndarray
    step_angle: np.ndarray
    epoch_angles: np.ndarray
    explained: np.ndarray
    gradient_share: np.ndarray
    step_share: np.ndarray
    move_share: np.ndarray
    overlap: np.ndarray
    converged: np.ndarray
    plane: np.ndarray


class Result(NamedTuple):
    """What was measured.

    Attributes:
        paths: By name of the optimizer, as in `Config`.
        num_steps: Steps of each run.
        num_params: Parameters of the network.
    """

    paths: dict[str, Paths]
    num_steps: int
    num_params: int


TITLES = {
    "sgd": "SGD",
    "momentum": "momentum",
    "adam": "Adam",
    "adamw": "AdamW",
    "sam": "SAM",
}
_CLASSES, _DIRECTIONS, _EARLY = 10, 5, 0.1


class _Task(NamedTuple):
    """What all runs share; `look` is the measurement of the Hessian."""

    model: Any
    digits: data.Digits
    look: Callable[..., Any]
    training_loss: Callable[..., Any]


def run(config: Config) -> Result:
    """Train with every optimizer, from every seed."""
    epoch = config.num_train // config.batch_size
    if config.num_epochs < 8 or config.num_epochs % config.epochs_a_record:
        raise ValueError(
            "`num_epochs` must be at least 8 and a multiple of `epochs_a_record`, but "
            f"was {config.num_epochs}, with {config.epochs_a_record}."
        )
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    task = _task(config)
    paths = {}
    for name in TITLES:
        optimizer = _optimizer(config, name)
        rows = [_path(config, task, optimizer, s) for s in range(config.num_seeds)]
        stacked = [np.stack(values) for values in zip(*rows, strict=True)]
        paths[name] = Paths(*stacked)
    params = task.model.init(jax.random.key(0), task.digits.x_train[:1])
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Result(paths, epoch * config.num_epochs, num_params)


def _optimizer(config: Config, name: str) -> Any:
    rate = getattr(config, name)
    if name == "adam":
        return optax.adam(rate)
    if name == "adamw":
        return optax.adamw(rate, weight_decay=0.1)
    if name == "sam":
        climb = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        return optax.contrib.sam(optax.sgd(rate), climb, opaque_mode=True)
    return optax.sgd(rate, momentum=0.9 if name == "momentum" else None)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def _task(config: Config) -> _Task:
    """The digits, the network, and how to look at its Hessian."""
    digits = data.digits(
        num_train=config.num_train, key=jax.random.fold_in(_key(config), 0)
    )
    model: Any = models.MLP((config.width,), digits.num_classes)
    x, y = digits.x_train, digits.y_train

    def training_loss(params):
        return jnp.mean(_cross_entropy(model.apply(params, x), y))

    def look(state):
        """Top eigenvectors of the Hessian, and the share of the gradient in them."""
        operator = curvature.hessian(model.apply, _cross_entropy, state.params, x, y)
        top = linalg.top_eigenpairs(
            operator,
            num=_CLASSES,
            num_iterations=config.num_iterations,
            key=jax.random.fold_in(jax.random.key(config.seed), state.step),
        )
        vectors = jax.vmap(lambda v: ravel_pytree(v)[0])(top.vectors)
        gradient = ravel_pytree(jax.grad(training_loss)(state.params))[0]
        share = _share(vectors, gradient)
        return {"vectors": vectors, "share": share, "converged": top.converged}

    return _Task(model, digits, look, training_loss)


def _key(config: Config) -> Any:
    return jax.random.key(config.seed)


def _share(vectors, move):
    """Share of the squared norm of `move` in the span of orthonormal rows."""
    inside = jnp.matmul(vectors, move, precision="highest")
    return jnp.sum(inside**2) / jnp.sum(move**2)


def _flat(state):
    return ravel_pytree(state.params)[0]


def _path(config: Config, task: _Task, optimizer: Any, seed: int) -> Paths:
    """One run and all that is measured of it."""
    key_init, key_train = jax.random.split(jax.random.fold_in(_key(config), 1 + seed))
    digits, epoch = task.digits, config.num_train // config.batch_size
    history = dynamics.train(
        dynamics.supervised(task.model.apply, _cross_entropy),
        dynamics.init(optimizer, task.model.init(key_init, digits.x_train[:1])),
        optimizer,
        (digits.x_train, digits.y_train),
        num_steps=epoch * config.num_epochs,
        batch_size=config.batch_size,
        key=key_train,
        record={"look": task.look},
        record_every=epoch * config.epochs_a_record,
        trace={"params": _flat},
        progress=False,
    )
    if history.diverged_at is not None:
        raise ValueError(
            f"a run diverged at step {history.diverged_at}: lower its learning rate."
        )
    last = history.state.params
    path = np.vstack([history.trace["params"], _flat(history.state)[None]])
    unflatten = ravel_pytree(last)[1]
    losses = jax.lax.map(lambda w: task.training_loss(unflatten(w)), path[::epoch])
    guess = jnp.argmax(task.model.apply(last, digits.x_test), axis=1)
    plane = landscape.trajectory_plane(path[::epoch], num_directions=_DIRECTIONS)
    return Paths(
        loss=np.asarray(losses),
        test_accuracy=np.asarray(jnp.mean(guess == digits.y_test)),
        length=np.asarray(dynamics.topology.path_length(path)),
        displacement=np.asarray(dynamics.topology.displacement(path)),
        step_angle=np.asarray(np.mean(angles(path))),
        epoch_angles=angles(path[::epoch]),
        explained=np.asarray(plane.explained_variance),
        plane=np.asarray(plane.coordinates[:, :2]),
        **_shares(history, path),
    )


def angles(path: np.ndarray) -> np.ndarray:
    """Angles in degrees between successive displacements of a path ``[t, p]``."""
    moves = np.diff(path.astype(np.float64), axis=0)
    moves /= np.linalg.norm(moves, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip(np.sum(moves[1:] * moves[:-1], 1), -1, 1)))


def _shares(history: Any, path: np.ndarray) -> dict[str, np.ndarray]:
    """What lies in the top space of the Hessian at each record."""
    look, steps = history.records["look"], history.steps
    spans = look["vectors"]
    share = lambda span, move: np.sum((span @ move) ** 2) / np.sum(move**2)
    starts = list(enumerate(steps[:-1]))
    moves = [share(spans[i], path[steps[i + 1]] - path[t]) for i, t in starts]
    return {
        "gradient_share": look["share"],
        "step_share": np.array(
            [share(spans[i], path[t + 1] - path[t]) for i, t in starts]
        ),
        "move_share": np.array(moves),
        "overlap": np.sum((spans @ spans[-1].T) ** 2, axis=(1, 2)) / len(spans[-1]),
        "converged": np.mean(look["converged"]),
    }


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _claim(text: str, values: np.ndarray, low: float, high: float, note="") -> Claim:
    mean, error = _mean(values)
    return Claim(text, mean, low, high, error, note)


def _later(shares: np.ndarray) -> np.ndarray:
    """Mean over records after the first tenth of training, for each seed."""
    first = math.ceil(_EARLY * shares.shape[1])
    return shares[:, first:].mean(1)


def claims(result: Result) -> list[Claim]:
    """What has been said of such paths, and what these do."""
    return _subspace_claims(result) + _turning_claims(result) + _walk_claims(result)


def _subspace_claims(result: Result) -> list[Claim]:
    """Gradients and steps against the top space of the Hessian."""
    sgd = result.paths["sgd"]
    found = [
        _claim(
            f"{title}: gradient mostly in the top {_CLASSES} eigenvectors, share of "
            "its square (1812.04754)",
            _later(result.paths[name].gradient_share),
            0.5,
            1.0,
        )
        for name, title in TITLES.items()
    ]
    middle = sgd.overlap.shape[1] // 2
    found += [
        _claim(
            "SGD: that space mostly preserved, overlap half-way with the end "
            "(1812.04754)",
            sgd.overlap[:, middle],
            0.5,
            1.0,
        ),
        _claim(
            "SGD: the way from record to record is not in it, share less that of the "
            "gradient (2405.16002)",
            _later(sgd.move_share) - _later(sgd.gradient_share[:, :-1]),
            -1.0,
            0.0,
        ),
    ]
    for name in ("momentum", "adam"):
        found.append(
            _claim(
                f"{TITLES[name]} turns steps out of it, share of a step less SGD's "
                "(2405.16002)",
                _later(result.paths[name].step_share) - _later(sgd.step_share),
                -1.0,
                0.0,
            )
        )
    return found


def _turning_claims(result: Result) -> list[Claim]:
    """How fast paths turn."""
    sgd = result.paths["sgd"]
    parts = np.array_split(sgd.epoch_angles, 3, axis=1)
    first, second, third = (part.mean(1) for part in parts)
    return [
        _claim(
            "SGD bounces between walls: degrees from step to step (1802.08770)",
            sgd.step_angle,
            90.0,
            180.0,
        ),
        _claim(
            "SGD's angular velocity rises: degrees an epoch, last third of training "
            "less first (2111.15317)",
            third - first,
            0.0,
            180.0,
        ),
        _claim(
            "and saturates: its rise from first third to second less that from second "
            "to last (2111.15317)",
            (second - first) - (third - second),
            0.0,
            360.0,
        ),
    ]


def _walk_claims(result: Result) -> list[Claim]:
    """Paths against a random walk with drift."""
    walk = landscape.random_walk_variance(_DIRECTIONS)
    sgd, found = result.paths["sgd"], []
    for name, title in TITLES.items():
        explained = result.paths[name].explained
        first = f"{title}: first principal direction at least that of a random walk"
        two = f"{title}: first two principal directions (1712.09913)"
        found += [
            _claim(f"{first} (1806.08805)", explained[:, 0], float(walk[0]), 1.0),
            _claim(two, explained[:, :2].sum(1), 0.4, 0.9),
        ]
    straight = sgd.displacement / sgd.length
    text = "SGD drifts: displacement / path beyond 1/√steps, a walk's (1806.08805)"
    found.append(_claim(text, straight, 1 / math.sqrt(result.num_steps), 1.0))
    return found


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows: means over seeds, standard errors."""
    rows = {
        "learning rate": lambda name, _: f"{getattr(config, name):g}",
        "final training loss": lambda _, p: _said(p.loss[:, -1]),
        "test accuracy": lambda _, p: _said(p.test_accuracy),
        "path length": lambda _, p: _said(p.length),
        "displacement": lambda _, p: _said(p.displacement),
        "displacement / path": lambda _, p: _said(p.displacement / p.length),
        "degrees a step": lambda _, p: _said(p.step_angle),
        "degrees an epoch": lambda _, p: _said(p.epoch_angles.mean(1)),
        "gradient in top space": lambda _, p: _said(_later(p.gradient_share)),
        "step in top space": lambda _, p: _said(_later(p.step_share)),
        "way in top space": lambda _, p: _said(_later(p.move_share)),
    }
    lines = [" " * 24 + "".join(f"{title:<18}" for title in TITLES.values())]
    for label, cell in rows.items():
        cells = [cell(name, paths) for name, paths in result.paths.items()]
        lines.append(f"{label:<24}" + "".join(f"{text:<18}" for text in cells))
    walk = landscape.random_walk_variance(_DIRECTIONS)
    for k in range(3):
        cells = [_said(100 * paths.explained[:, k]) for paths in result.paths.values()]
        label = f"variance {k + 1}, %"
        line = f"{label:<24}" + "".join(f"{text:<18}" for text in cells)
        lines.append(f"{line}random walk {100 * walk[k]:.1f}")
    converged = np.mean([paths.converged for paths in result.paths.values()])
    lines += [
        "",
        claims_table(claims(result)),
        "",
        f"Means over {config.num_seeds} seeds; top space of {_CLASSES} of "
        f"{result.num_params} dimensions, from {100 * _EARLY:.0f} % of training on; "
        f"{100 * converged:.1f} % of its eigenvectors found to .1 %.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _said(values: np.ndarray) -> str:
    mean, error = _mean(values)
    return f"{mean:.3g} ± {error:.1g}"


def draw(config: Config, result: Result) -> Any:
    """Loss, shares, angles, variances, and the first seed's paths."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    epoch = config.num_train // config.batch_size
    records = np.arange(0, config.num_epochs + 1, config.epochs_a_record)
    components = np.arange(1, _DIRECTIONS + 1)
    for i, (name, paths) in enumerate(result.paths.items()):
        style: dict[str, Any] = {"color": f"C{i}", "label": TITLES[name]}
        axes[0, 0].semilogy(paths.loss.mean(0), **style)
        axes[0, 1].plot(records, paths.gradient_share.mean(0), **style)
        axes[0, 1].plot(records[:-1], paths.move_share.mean(0), "--", color=f"C{i}")
        turned = np.arange(1, config.num_epochs)
        axes[0, 2].plot(turned, paths.epoch_angles.mean(0), **style)
        axes[1, 0].semilogy(components, paths.explained.mean(0), "o-", **style)
        straight = (paths.displacement / paths.length).mean()
        axes[1, 1].plot(paths.length.mean(), straight, "o", **style)
        axes[1, 2].plot(*paths.plane[0].T, "o-", markersize=2, **style)
    walk = landscape.random_walk_variance(_DIRECTIONS)
    axes[1, 0].semilogy(components, walk, "k--", label="random walk")
    chance = 1 / math.sqrt(epoch * config.num_epochs)
    axes[1, 1].axhline(chance, color="k", ls="--", label="random walk")
    axes[1, 1].set_ylim(0)
    labels = (
        ("epoch", "training loss"),
        ("epoch", "share in top space (dashed: the way)"),
        ("epoch", "degrees an epoch"),
        ("principal direction", "share of variance"),
        ("path length", "displacement / path"),
        ("first principal direction", "second"),
    )
    for ax, (x, y) in zip(axes.flat, labels, strict=True):
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
