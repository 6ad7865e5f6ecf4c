"""Neural collapse under four losses: ``python -m experiments.neural_collapse``.

A perceptron with BatchNorm is trained on digits far beyond zero training error, with
weight decay. Claims: in that terminal phase features and classifier collapse to a
simplex frame, each to the other, and the classifier to nearest class means (Papyan, Han
& Donoho, arXiv:2008.08186); cross-entropy, label smoothing, focal loss and squared
error lead to the same geometry and to much the same test error (Zhou et al.,
arXiv:2210.02192); test examples collapse less than training examples (Hui, Belkin &
Nakkiran, arXiv:2202.08384). Beside the networks is the optimum of free features.
"""

import dataclasses
import math
from functools import partial
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
from jaxtheory import collapse, data, dynamics, interop, models, plot
from jaxtheory.collapse import theory

SMOOTHING, FOCUSING, CLASSES = 0.1, 3.0, 10
# NC1 in three forms, NC2 in four, NC3 in two, NC4.
STATISTICS = (
    *("nc1", "nc1_ratio", "cdnv"),
    *("nc2", "nc2_equinorm", "nc2_equiangular", "nc2_classifier"),
    *("nc3", "nc3_cosine", "nc4"),
)
_LABELS = ("NC1", "NC1 ratio", "CDNV", "NC2", "equinorm", "equiangular", "NC2 of W")
_LABELS += ("NC3", "NC3 cosine", "NC4")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        losses: Names of losses, among those of `LOSSES`; cross-entropy first.
        widths: Units of the hidden layers.
        batch_norm: Whether they have BatchNorm.
        examples_per_class: Training images of each digit; 500 images are for testing.
        num_epochs: Passes over them.
        batch_size: Images in a step of SGD with momentum .9.
        learning_rate: At the start; it falls to 0 as a cosine.
        weight_decay: Of all parameters but the biases of the outputs.
        num_records: Looks at the network along training.
        num_seeds: Initialisations and orders of batches, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    losses: tuple[str, ...] = (
        *("cross-entropy", "squared error"),
        *("label smoothing", "focal"),
    )
    widths: tuple[int, ...] = (128, 128, 128)
    batch_norm: bool = True
    examples_per_class: int = 100
    num_epochs: int = 300
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-3
    num_records: int = 30
    num_seeds: int = 4
    seed: int = 0
    out: Path = Path("runs/neural_collapse")


class Curves(NamedTuple):
    """One loss along training; arrays are ``[s, r]``: seeds and records.

    Attributes:
        train: By name of the statistic, of training images.
        test: The same of test images, around their own class means.
        across: NC1 of test images around the means of training images.
        error: Training error.
        test_error: Test error.
        gram: Gram matrix of centred class means over its norm, ``[s, r, k, k]``.
        terminal: First record from which on there is no training error; NaN where
            there is none, as it then is in what is measured from there on. ``[s]``.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    across: np.ndarray
    error: np.ndarray
    test_error: np.ndarray
    gram: np.ndarray
    terminal: np.ndarray


class Optimum(NamedTuple):
    """Trained networks beside the optimum of free features; arrays are ``[s]``.

    Features are centred, which the free bias undoes, and decay as much as makes both
    penalties equal, as they are at every critical point.

    Attributes:
        margin: Mean over training images of the own output less the next.
        predicted_margin: Its value at the optimum.
        means: Distance of the class means' normalised Gram matrix from the predicted.
        classifier: The same of the classifier.
        mean_scale: Length of class means over the predicted length.
        classifier_scale: The same of rows of the classifier.
        excess: Objective over that of the optimum, less 1.
        gap: How much lower than that of the optimum any objective could be, proved by
            duality; NaN for the focal loss, which is not convex.
    """

    margin: np.ndarray
    predicted_margin: np.ndarray
    means: np.ndarray
    classifier: np.ndarray
    mean_scale: np.ndarray
    classifier_scale: np.ndarray
    excess: np.ndarray
    gap: np.ndarray


class Result(NamedTuple):
    """What was measured.

    Attributes:
        steps: Step of each record.
        curves: By name of the loss.
        optima: By name of the loss.
    """

    steps: np.ndarray
    curves: dict[str, Curves]
    optima: dict[str, Optimum]


def squared_error(outputs, labels):
    """Half the squared distance from unit vectors."""
    return jnp.sum((outputs - jax.nn.one_hot(labels, CLASSES)) ** 2, axis=1) / 2


def smoothed(outputs, labels):
    """Cross-entropy with smoothed labels."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), SMOOTHING)
    return optax.softmax_cross_entropy(outputs, targets)


def focal(outputs, labels):
    """Cross-entropy times a power of the probability of all other classes."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return (-jnp.expm1(-cross_entropy)) ** FOCUSING * cross_entropy


# The function, and how the theory knows it.
LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cross-entropy": (
        optax.softmax_cross_entropy_with_integer_labels,
        {"loss": "cross_entropy"},
    ),
    "squared error": (squared_error, {"loss": "squared_error"}),
    "label smoothing": (
        smoothed,
        {"loss": "cross_entropy", "label_smoothing": SMOOTHING},
    ),
    "focal": (focal, {"loss": "cross_entropy", "focusing": FOCUSING}),
}


def run(config: Config) -> Result:
    """Train with every loss from every seed.

    Raises:
        ValueError: There are fewer than two seeds, too many examples, or the steps
            cannot be divided into the records.
    """
    steps = config.num_epochs * (CLASSES * config.examples_per_class)
    steps //= config.batch_size
    if config.losses[:1] != ("cross-entropy",) or not set(config.losses) <= set(LOSSES):
        raise ValueError(
            f"`losses` must begin with 'cross-entropy' and be of {list(LOSSES)}, but "
            f"were {config.losses}."
        )
    if config.num_seeds < 2 or steps % config.num_records:
        raise ValueError(
            "`num_seeds` must be at least 2 and `num_records` divide the steps, but "
            f"there were {config.num_seeds}, {config.num_records} and {steps}."
        )
    key_task, *keys = jax.random.split(
        jax.random.key(config.seed), 1 + config.num_seeds
    )
    task = _task(config, key_task)
    model: Any = models.MLP(config.widths, CLASSES, batch_norm=config.batch_norm)
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        optax.sgd(rate, momentum=0.9),
    )
    look = _look(model, task)
    pairs = [jax.random.split(key) for key in keys]
    start = jax.jit(model.init)
    starts = [start(key, task.x_train[:1]) for key, _ in pairs]
    curves, optima, recorded = {}, {}, np.zeros(0)
    for name in config.losses:
        # The same functions for all seeds, so that programs are compiled once.
        objective = interop.flax.objective(model, LOSSES[name][0])
        rows, ends = [], []
        for (_, key_train), variables in zip(pairs, starts, strict=True):
            params, model_state = interop.flax.split(variables)
            history = dynamics.train(
                objective,
                dynamics.init(optimizer, params, model_state=model_state),
                optimizer,
                (task.x_train, task.y_train),
                num_steps=steps,
                batch_size=config.batch_size,
                key=jax.random.clone(key_train),  # the batches of all losses
                record={"collapse": look},
                record_every=steps // config.num_records,
                progress=False,
            )
            _check_finite(config, history)
            recorded = history.steps
            rows.append(_curves(history.records["collapse"]))
            ends.append(_optimum(config, model, name, history.state, task))
        curves[name] = jax.tree.map(lambda *seeds: np.stack(seeds), *rows)
        optima[name] = jax.tree.map(lambda *seeds: np.stack(seeds), *ends)
    return Result(recorded, curves, optima)


def _check_finite(config, history):
    if history.diverged_at is not None:
        raise ValueError(
            f"`learning_rate` {config.learning_rate} must be lower: a network diverged "
            f"at step {history.diverged_at}."
        )


def _decayed(params):
    """All parameters but the biases of the outputs, which the theory leaves free."""
    is_free = lambda path: [entry.key for entry in path] == ["output", "bias"]
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_free(path), params)


def _task(config: Config, key: Any) -> Any:
    """Digits with as many training images of every class."""
    digits = data.digits(num_train=1297, key=key)
    labels, count = np.asarray(digits.y_train), config.examples_per_class
    if np.bincount(labels).min() < count:
        raise ValueError(
            f"`examples_per_class` must be at most {np.bincount(labels).min()}, the "
            f"training images of the rarest digit, but was {count}."
        )
    rows = np.concatenate([np.flatnonzero(labels == k)[:count] for k in range(CLASSES)])
    return digits._replace(x_train=digits.x_train[rows], y_train=digits.y_train[rows])


def _look(model, task):
    """The measurement that is recorded along training."""

    def look(state):
        """The statistics of training and test images, and the frame of the means."""
        features, weight, bias = _read(model, state, task.x_train)
        sets = {
            "train": (features, task.y_train),
            "test": (_read(model, state, task.x_test)[0], task.y_test),
        }
        found = collapse.compare_sets(
            sets, reference="train", classifier=(weight, bias)
        )
        means = jnp.mean(jnp.reshape(features, (CLASSES, -1, weight.shape[1])), axis=1)
        means -= jnp.mean(means, axis=0, keepdims=True)
        gram = jnp.matmul(means, means.T, precision="highest")
        return found | {"gram": gram / jnp.linalg.norm(gram)}

    return look


@partial(jax.jit, static_argnums=0)
def _read(model, state, x):
    """Last features of `x`, and the classifier."""
    variables = {"params": state.params, **dict(state.model_state)}
    features = list(models.features(model, variables, x).values())[-1]
    return features, *models.classifier(model, variables)


def _curves(records):
    """One seed."""
    train, test = records["train"].own, records["test"].own
    wrong = np.flatnonzero(train.classifier_error > 0)
    first = wrong[-1] + 1 if wrong.size else 0
    return Curves(
        {name: getattr(train, name) for name in STATISTICS},
        {name: getattr(test, name) for name in STATISTICS},
        records["test"].across.nc1,
        train.classifier_error,
        test.classifier_error,
        records["gram"],
        np.array(first if first < len(train.nc1) else np.nan),
    )


def _optimum(config, model, name, state, task):
    """One trained network beside the optimum of its loss and decays."""
    loss_fn, known = LOSSES[name]
    features, weight, bias = (
        np.asarray(values, np.float64) for values in _read(model, state, task.x_train)
    )
    labels = np.asarray(task.y_train)
    mean = features.mean(axis=0)
    features, bias = features - mean, bias + weight @ mean
    decays = {
        "weight_decay": config.weight_decay,
        "feature_decay": config.weight_decay * np.sum(weight**2) / np.sum(features**2),
        "bias_decay": 0.0,
    }
    counts = [config.examples_per_class] * CLASSES
    predicted = theory.predicted_geometry(class_counts=counts, **known, **decays)
    distance = theory.geometry_distance(
        predicted, features, labels, classifier=(weight, None)
    )
    outputs = features @ weight.T + bias
    own = np.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    np.put_along_axis(outputs, labels[:, None], -np.inf, axis=1)
    penalty = config.weight_decay * np.sum(weight**2)  # of both factors, as they agree
    losses = loss_fn(jnp.asarray(features @ weight.T + bias), task.y_train)
    excess = (np.mean(losses) + penalty) / predicted.optimum.objective - 1
    found = Optimum(
        margin=own - outputs.max(axis=1),
        predicted_margin=predicted.optimum.margins,
        **{name: np.array(value) for name, value in distance._asdict().items()},
        excess=np.array(excess),
        gap=np.array(math.nan if predicted.gap is None else predicted.gap),
    )
    return Optimum(*(np.asarray(np.mean(values)) for values in found))


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error; NaN if a seed has no number."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _falls(curves: Curves, since: np.ndarray) -> dict[str, np.ndarray]:
    """Orders of magnitude by which NC1 to NC3 rise from a record to the end."""
    found = {}
    for name in STATISTICS[:-1]:
        values = curves.train[name]
        start = [
            row[int(r)] if r == r else np.nan
            for row, r in zip(values, since, strict=True)
        ]
        found[name] = np.log10(values[:, -1] / np.array(start))
    return found


def _least_fall(text: str, curves: Curves, since: np.ndarray) -> Claim:
    """That all statistics fall, by the one that falls least."""
    falls = _falls(curves, since)
    name = max(falls, key=lambda name: falls[name].mean())
    mean, error = _mean(falls[name])
    label = _LABELS[STATISTICS.index(name)]
    return Claim(text, mean, -math.inf, 0.0, error, f"{label} falls least")


def claims(result: Result) -> list[Claim]:
    """What is published, loss by loss."""
    found = []
    for name, curves in result.curves.items():
        start = np.zeros(len(curves.error))
        apart = np.log10(curves.test["nc1"][:, -1] / curves.train["nc1"][:, -1])
        found += [
            _least_fall(
                f"{name}: all of NC1 to NC3 fall, log10 of end / start (2008.08186)",
                *(curves, start),
            ),
            _least_fall(
                f"{name}: and still in the terminal phase (2008.08186)",
                *(curves, curves.terminal),
            ),
            Claim(
                f"{name}: NC4, training images not of the nearest mean (2008.08186)",
                _mean(curves.train["nc4"][:, -1])[0],
                *(-math.inf, 0.001),
                _mean(curves.train["nc4"][:, -1])[1],
            ),
            Claim(
                f"{name}: test images collapse less, log10 of NC1 / NC1 (2202.08384)",
                _mean(apart)[0],
                *(0.0, math.inf),
                _mean(apart)[1],
            ),
        ]
    return found + _comparisons(result)


def _comparisons(result: Result) -> list[Claim]:
    """Losses against cross-entropy, seed by seed."""
    found, (first, *others) = [], result.curves.values()
    for name, curves in zip(list(result.curves)[1:], others, strict=True):
        apart = np.linalg.norm(curves.gram - first.gram, axis=(2, 3))
        mean, error = _mean(np.log10(apart[:, -1] / apart[:, 1]))
        text = (
            f"{name}: class means go to the frame of cross-entropy, log10 of distance"
        )
        text += " at the end / at the second record (2210.02192)"
        found.append(Claim(text, mean, -math.inf, 0.0, error))
        mean, error = _mean(curves.test_error[:, -1] - first.test_error[:, -1])
        text = f"{name}: test error as of cross-entropy, difference (2210.02192)"
        found.append(Claim(text, mean, -0.01, 0.01, error, "similar: within a point"))
    return found


def report(config: Config, result: Result) -> str:
    """Statistics at the end, beside what theory has, and claims with verdicts."""
    lines = ["at the end, training / test images; start: training images"]
    names = list(result.curves)
    lines.append(f"{'':<13}{'start':>8}" + "".join(f"{name:>38}" for name in names))
    first = result.curves[names[0]]
    for label, name in zip(_LABELS, STATISTICS, strict=True):
        cells = [
            f"{_said(curves.train[name][:, -1])} / {_said(curves.test[name][:, -1])}"
            for curves in result.curves.values()
        ]
        start = f"{first.train[name][:, 0].mean():>8.3g}"
        lines.append(f"{label:<13}{start}" + "".join(f"{cell:>38}" for cell in cells))
    for label, read in (
        ("NC1 around", lambda curves: curves.across[:, -1]),
        ("test error", lambda curves: curves.test_error[:, -1]),
        ("terminal at", lambda curves: _step(result, curves)),
    ):
        cells = [_said(read(curves)) for curves in result.curves.values()]
        lines.append(f"{label:<21}" + "".join(f"{cell:>38}" for cell in cells))
    lines += ["(NC1 around: test images around the means of training images)", ""]
    lines.append(
        f"{'beside the optimum of free features':<38}"
        + "".join(f"{name:>19}" for name in names)
    )
    for label, field in (
        ("margin", "margin"),
        ("margin at the optimum", "predicted_margin"),
        ("distance of the means' Gram matrix", "means"),
        ("distance of the classifier's", "classifier"),
        ("length of means / predicted", "mean_scale"),
        ("length of rows / predicted", "classifier_scale"),
        ("objective above the optimum, relative", "excess"),
        ("error of the optimum, at most", "gap"),
    ):
        cells = [_said(getattr(optimum, field)) for optimum in result.optima.values()]
        lines.append(f"{label:<38}" + "".join(f"{cell:>19}" for cell in cells))
    return "\n".join([*lines, "", claims_table(claims(result))])


def _step(result: Result, curves: Curves) -> np.ndarray:
    """The step at which the terminal phase has begun."""
    return np.array(
        [result.steps[int(r)] if r == r else np.nan for r in curves.terminal]
    )


def _said(values: np.ndarray) -> str:
    mean, error = _mean(values)
    return f"{mean:.3g} ± {error:.1g}" if error else f"{mean:.3g}"


def draw(config: Config, result: Result) -> Any:
    """Statistics along training, one column a loss, training and test images."""
    rows = (("nc1", "nc1_ratio", "cdnv"), ("nc2", "nc2_classifier", "nc3"), ("nc4",))
    styles = ("-", "--", ":")
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(
            *(3, len(result.curves)),
            figsize=(14, 8),
            layout="constrained",
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for column, (name, curves) in zip(axes.T, result.curves.items(), strict=True):
            for ax, group in zip(column, rows, strict=True):
                for statistic, style in zip(group, styles, strict=False):
                    label = _LABELS[STATISTICS.index(statistic)]
                    of_network = statistic == "nc2_classifier"
                    for values, colour, of in (
                        (curves.train, plot.TRAIN, "train"),
                        (curves.test, plot.TEST, "test"),
                    )[: 1 if of_network else 2]:
                        mean = values[statistic].mean(0)
                        text = f"{label}, {of}"
                        ax.plot(result.steps, mean, style, color=colour, label=text)
                begin = np.nanmean(_step(result, curves))
                ax.axvline(begin, color=plot.NULL, lw=0.8)
            column[0].set_title(name)
            column[0].set_yscale("log")
            column[1].set_ylim(bottom=0)
            column[2].set_yscale("symlog", linthresh=1e-3)
            column[2].set_ylim(bottom=0)
            column[2].set_xlabel("step (grey line: no training error since)")
        for ax in axes[:, 0]:
            ax.legend(fontsize=7)
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
