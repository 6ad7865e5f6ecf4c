"""Collapse with several tags an example: ``python -m experiments.multilabel_collapse``.

Images show one digit or two beside each other, and the loss is the sum of the
cross-entropies of their tags (pick all labels). Claims of Li, Wang, Li & Qu,
arXiv:2310.15903: in the terminal phase the examples of every set of tags collapse to
its mean; means of single tags and the classifier go to a simplex frame; and the mean of
two tags goes to the scaled sum of the means of each. Beside the networks is the optimum
of free features in closed form, and a solver that knows nothing of it.
"""

import dataclasses
import math
from functools import partial
from itertools import combinations
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

CLASSES, BLANK = 10, 0.0
# Classes, examples of each set with one tag, two tags and so on, decays of both.
FREE = (
    (4, (5, 3), (2e-3, 2e-3)),
    (5, (2, 4), (1e-3, 3e-3)),
    (5, (2, 4, 1), (1e-3, 1e-3)),
)
STATISTICS = {
    "nc1_single": "NC1, one tag",
    "nc1_pair": "NC1 ratio, two tags",
    "nc2_single": "NC2, one tag",
    "nc2_classifier": "NC2 of the classifier",
    "nc3_single": "NC3, one tag",
    "angle_ratio": "two tags, angle to their sum / to all",
    "residual": "two tags, not in the sum",
    "seen": "the same where the classifier sees it",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        single_examples: Training images of each digit alone.
        pair_examples: Training images of each pair of different digits.
        widths: Units of the hidden layers, with BatchNorm.
        num_epochs: Passes over the training images.
        batch_size: Images in a step of SGD with momentum .9.
        learning_rate: At the start; it falls to 0 as a cosine.
        weight_decay: Of all parameters but the biases of the outputs.
        num_records: Looks at the network along training.
        num_seeds: Initialisations and orders of batches, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    single_examples: int = 60
    pair_examples: int = 20
    widths: tuple[int, ...] = (128, 128)
    num_epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-3
    num_records: int = 20
    num_seeds: int = 4
    seed: int = 0
    out: Path = Path("runs/multilabel_collapse")


class Solved(NamedTuple):
    """A solver against the closed form.

    Attributes:
        name: What is solved.
        margins: At the optimum, by number of tags.
        scales: Of sums, over that of one tag.
        margin_error: Largest difference of a margin that the solver finds.
        scale_error: The same of a scale, as `multi_label_statistics` measures it.
        residual: Largest part of the mean of a set that is not in the sum.
    """

    name: str
    margins: np.ndarray
    scales: np.ndarray
    margin_error: float
    scale_error: float
    residual: float


class Result(NamedTuple):
    """What was measured; arrays are ``[s, r]``, seeds and records, or ``[s]``.

    Attributes:
        solved: The solver against the closed form.
        steps: Step of each record.
        train: By name of the statistic, of training images.
        test: The same of test images.
        error: Share of training images whose tags are not the largest outputs.
        test_error: Share of test images.
        scale: Tag-wise scale of pairs, along training.
        uncentred: Residual at the end where no offset is taken off.
        predicted_scale: That of free features whose decay makes both penalties equal.
        margins: Mean output of an image's tags less that of the others, for one tag
            and two, ``[s, 2]``.
        predicted_margins: The same of free features.
    """

    solved: list[Solved]
    steps: np.ndarray
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    error: np.ndarray
    test_error: np.ndarray
    scale: np.ndarray
    uncentred: np.ndarray
    predicted_scale: np.ndarray
    margins: np.ndarray
    predicted_margins: np.ndarray


def pick_all_label(outputs, tags):
    """The sum of the cross-entropies of all tags; rows of `tags` are 0 and 1."""
    return -jnp.sum(tags * jax.nn.log_softmax(outputs), axis=1)


def run(config: Config) -> Result:
    """Solve, and train from every seed.

    Raises:
        ValueError: There are fewer than two seeds, or the steps cannot be divided into
            the records.
    """
    pairs = math.comb(CLASSES, 2)
    total = CLASSES * config.single_examples + pairs * config.pair_examples
    steps = config.num_epochs * (total // config.batch_size)
    if config.num_seeds < 2 or steps % config.num_records:
        raise ValueError(
            "`num_seeds` must be at least 2 and `num_records` divide the steps, but "
            f"there were {config.num_seeds}, {config.num_records} and {steps}."
        )
    key_data, *keys = jax.random.split(
        jax.random.key(config.seed), 1 + config.num_seeds
    )
    train, test = _images(config, key_data)
    model: Any = models.MLP(config.widths, CLASSES, batch_norm=True)
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        optax.sgd(rate, momentum=0.9),
    )
    objective = interop.flax.objective(model, pick_all_label)
    look = _look(model, train, test)
    rows, recorded, start = [], np.zeros(0), jax.jit(model.init)
    for key in keys:
        key_init, key_train = jax.random.split(key)
        variables = start(key_init, train[0][:1])
        params, model_state = interop.flax.split(variables)
        history = dynamics.train(
            objective,
            dynamics.init(optimizer, params, model_state=model_state),
            optimizer,
            train,
            num_steps=steps,
            batch_size=config.batch_size,
            key=key_train,
            record={"look": look},
            record_every=steps // config.num_records,
            progress=False,
        )
        if history.diverged_at is not None:
            raise ValueError(
                f"`learning_rate` {config.learning_rate} must be lower: a network "
                f"diverged at step {history.diverged_at}."
            )
        found, recorded = history.records["look"], history.steps
        rows.append((found, _beside(config, model, history.state, train)))
    both = jax.tree.map(lambda *seeds: np.stack(seeds), *rows)
    solved = [_solve(*case) for case in FREE]
    records, ends = both
    pick = lambda of: {name: records[of][name] for name in STATISTICS}
    return Result(
        solved,
        recorded,
        pick("train"),
        pick("test"),
        records["train"]["error"],
        records["test"]["error"],
        records["train"]["scale"],
        records["train"]["uncentred"][:, -1],
        *ends,
    )


def _decayed(params):
    """All parameters but the biases of the outputs, which the theory leaves free."""
    is_free = lambda path: [entry.key for entry in path] == ["output", "bias"]
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_free(path), params)


def _images(config: Config, key: Any):
    """Training and test images ``[n, 2, 64]`` and their tags ``[n, 10]``.

    One digit beside a blank, or two, in either order.
    """
    digits = data.digits(num_train=1297, key=key)
    draw = np.random.default_rng(config.seed)
    blank = float((BLANK - digits.mean) / digits.std)
    found = []
    for x, y, share in (
        (digits.x_train, digits.y_train, 1.0),
        (digits.x_test, digits.y_test, 0.5),
    ):
        images, labels = np.asarray(x), np.asarray(y)
        single = max(2, round(config.single_examples * share))
        pair = max(2, round(config.pair_examples * share))
        sets = [(k,) for k in range(CLASSES) for _ in range(single)]
        sets += [s for s in combinations(range(CLASSES), 2) for _ in range(pair)]
        slots = np.full((len(sets), 2, 64), blank, np.float32)
        tags = np.zeros((len(sets), CLASSES), np.float32)
        for row, members in enumerate(sets):
            order = draw.permutation(2)
            for place, k in zip(order, members, strict=False):
                slots[row, place] = images[draw.choice(np.flatnonzero(labels == k))]
            tags[row, list(members)] = 1
        found.append((jnp.asarray(slots), jnp.asarray(tags)))
    return found


@partial(jax.jit, static_argnums=0)
def _read(model, state, x):
    """Last features of `x`, and the classifier."""
    variables = {"params": state.params, **dict(state.model_state)}
    features = list(models.features(model, variables, x).values())[-1]
    return features, *models.classifier(model, variables)


def _look(model, train, test):
    """The measurement that is recorded along training."""

    label_sets = np.unique(np.asarray(train[1]) > 0, axis=0)

    def statistics(state, x, tags):
        # Else the compiler folds what follows from the tags alone, and takes seconds.
        is_pair = np.flatnonzero(np.asarray(tags).sum(axis=1) == 2)
        x, tags = jax.lax.optimization_barrier((x, tags))
        features, weight, bias = _read(model, state, x)
        compose = partial(
            collapse.multi_label_statistics, labels=tags, label_sets=label_sets
        )
        composed = compose(features, classifier=(weight, bias), centre=True)
        span = jnp.linalg.qr(weight.T)[0]
        seen = compose(jnp.matmul(features, span, precision="highest"), centre=True)
        pairs = collapse.statistics(
            features[is_pair],
            composed.set_index[is_pair] - CLASSES,
            num_classes=math.comb(CLASSES, 2),
        )
        outputs = jnp.matmul(features, weight.T) + bias[None, :]
        least = jnp.min(jnp.where(tags > 0, outputs, jnp.inf), axis=1)
        other = jnp.max(jnp.where(tags > 0, -jnp.inf, outputs), axis=1)
        return {
            "nc1_single": composed.single.nc1,
            "nc1_pair": pairs.nc1_ratio,
            "nc2_single": composed.single.nc2,
            "nc2_classifier": composed.single.nc2_classifier,
            "nc3_single": composed.single.nc3,
            "angle_ratio": composed.angle_ratio[1],
            "residual": composed.residuals[1],
            "scale": composed.scales[1],
            "seen": seen.residuals[1],
            "uncentred": compose(features).residuals[1],
            "error": jnp.mean(least <= other),
        }

    return lambda state: {
        "train": statistics(state, *train),
        "test": statistics(state, *test),
    }


def _beside(config, model, state, train):
    """Predicted scale, margins, predicted margins of one trained network."""
    features, weight, bias = (
        np.asarray(values, np.float64) for values in _read(model, state, train[0])
    )
    tags = np.asarray(train[1])
    squares = np.sum((features - features.mean(axis=0)) ** 2)
    decay = config.weight_decay
    optimum = theory.pick_all_label_optimum(
        [config.single_examples, config.pair_examples],
        num_classes=CLASSES,
        weight_decay=decay,
        feature_decay=float(decay * np.sum(weight**2) / squares),
    )
    outputs = features @ weight.T + bias
    sizes = tags.sum(axis=1)
    apart = np.sum(outputs * tags, axis=1) / sizes
    apart -= np.sum(outputs * (1 - tags), axis=1) / (CLASSES - sizes)
    margins = np.array([apart[sizes == m].mean() for m in (1, 2)])
    scale = np.asarray(optimum.scales[1] / optimum.scales[0])
    return scale, margins, optimum.margins


def _solve(num_classes, per_set, decays) -> Solved:
    """The solver from a random start, one vector for each set of tags."""
    weight_decay, feature_decay = decays
    optimum = theory.pick_all_label_optimum(
        per_set,
        num_classes=num_classes,
        weight_decay=weight_decay,
        feature_decay=feature_decay,
    )
    sets = [
        members
        for m in range(1, len(per_set) + 1)
        for members in combinations(range(num_classes), m)
    ]
    tags = np.array([[float(k in s) for k in range(num_classes)] for s in sets])
    sizes = tags.sum(axis=1).astype(int)
    found = theory.unconstrained_features(
        pick_all_label,
        tags,
        counts=np.array(per_set)[sizes - 1],
        weight_decay=weight_decay,
        feature_decay=feature_decay,
        num_outputs=num_classes,
        key=jax.random.key(0),
    )
    inside = np.where(tags > 0, found.outputs, np.inf).min(axis=1)
    outside = np.where(tags > 0, -np.inf, found.outputs).max(axis=1)
    errors = np.abs(inside - outside - optimum.margins[sizes - 1])
    with jax.enable_x64(True):
        measured = jax.device_get(
            collapse.multi_label_statistics(
                jnp.asarray(found.features), jnp.asarray(tags)
            )
        )
    scales = optimum.scales / optimum.scales[0]
    counts = " and ".join(str(n) for n in per_set)
    return Solved(
        f"{num_classes} classes, {counts} examples a set",
        *(optimum.margins, scales),
        float(errors.max()),
        float(np.max(np.abs(measured.scales - scales))),
        float(np.max(measured.residuals)),
    )


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _claim(text, values, low, high, note="") -> Claim:
    mean, error = _mean(values)
    return Claim(text, mean, low, high, error, note)


def claims(result: Result) -> list[Claim]:
    """Solver against closed form, and what is published of networks."""
    solved = result.solved
    found = [
        Claim(
            f"free features, {len(solved)} settings: margins as in closed form, error",
            *(max(s.margin_error for s in solved), -math.inf, 1e-6),
        ),
        Claim(
            "free features: means of several tags are scaled sums, residual",
            *(max(s.residual for s in solved), -math.inf, 1e-6),
        ),
        Claim(
            "free features: scales as in closed form, error",
            *(max(s.scale_error for s in solved), -math.inf, 1e-6),
        ),
    ]
    for name, label in STATISTICS.items():
        values = result.train[name]
        found.append(
            _claim(
                f"networks: {label}, log10 of end / start (2310.15903)",
                np.log10(values[:, -1] / values[:, 0]),
                *(-math.inf, 0.0),
            )
        )
    ratios = result.scale[:, -1] / result.predicted_scale
    apart = np.log10(result.test["residual"][:, -1] / result.train["residual"][:, -1])
    note = "to a tenth"
    return [
        *found,
        *(
            _claim(
                f"networks: {STATISTICS[name]}, at the end (2310.15903)",
                result.train[name][:, -1],
                *(-math.inf, 0.1, note),
            )
            for name in ("residual", "seen")
        ),
        _claim("networks: scale of the sum over that of theory", ratios, 0.95, 1.05),
        _claim(
            "networks: pairs of test images are sums less exactly, log10 of residuals",
            *(apart, 0.0, math.inf),
        ),
    ]


def report(config: Config, result: Result) -> str:
    """Solver, statistics, theory beside networks, and claims with verdicts."""
    lines = [f"{'free features':<40}{'margins':>26}{'scales':>18}{'errors':>18}"]
    for one in result.solved:
        margins, scales = (
            " ".join(f"{value:.5f}" for value in values)
            for values in (one.margins, one.scales[1:])
        )
        errors = f"{one.margin_error:.0e} {one.scale_error:.0e}"
        lines.append(f"{one.name:<40}{margins:>26}{scales:>18}{errors:>18}")
    head = ("start", "end", "end, test images")
    lines += ["", f"{'networks':<40}" + "".join(f"{text:>18}" for text in head)]
    curves = [
        (label, result.train[name], result.test[name])
        for name, label in STATISTICS.items()
    ]
    curves.append(("error", result.error, result.test_error))
    for label, train, test in curves:
        cells = [_said(train[:, 0]), _said(train[:, -1]), _said(test[:, -1])]
        lines.append(f"{label:<40}" + "".join(f"{cell:>18}" for cell in cells))
    label = "two tags, not in the sum, with offset"
    lines.append(f"{label:<40}{'':>18}{_said(result.uncentred):>18}")
    lines += ["", f"{'beside free features':<40}{'measured':>18}{'predicted':>18}"]
    for label, measured, predicted in (
        ("margin, one tag", result.margins[:, 0], result.predicted_margins[:, 0]),
        ("margin, two tags", result.margins[:, 1], result.predicted_margins[:, 1]),
        ("scale of the sum", result.scale[:, -1], result.predicted_scale),
    ):
        lines.append(f"{label:<40}{_said(measured):>18}{_said(predicted):>18}")
    return "\n".join([*lines, "", claims_table(claims(result))])


def _said(values: np.ndarray) -> str:
    mean, error = _mean(values)
    return f"{mean:.3g} ± {error:.1g}" if error else f"{mean:.3g}"


def draw(config: Config, result: Result) -> Any:
    """Variability, frames, and sums along training."""
    groups = (
        ("variability", ("nc1_single", "nc1_pair")),
        ("frames", ("nc2_single", "nc2_classifier", "nc3_single")),
        ("two tags against sums", ("angle_ratio", "residual", "seen")),
    )
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
        for ax, (title, names) in zip(axes, groups, strict=True):
            for name, style in zip(names, ("-", "--", ":"), strict=False):
                for values, colour, of in (
                    (result.train, plot.TRAIN, "train"),
                    (result.test, plot.TEST, "test"),
                )[: 1 if name == "nc2_classifier" else 2]:
                    label = f"{STATISTICS[name]}, {of}"
                    mean = values[name].mean(0)
                    ax.plot(result.steps, mean, style, color=colour, label=label)
            ax.set(yscale="log", xlabel="step", title=title)
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
            ax.legend(fontsize=7.5, ncols=2, **below)
    return figure


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
