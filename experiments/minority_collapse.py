"""Minority collapse and what undoes it: ``python -m experiments.minority_collapse``.

With free features, classifier rows of minority classes are equal exactly where such a
class has at most ``N^2 lw lh`` examples, and in the layer-peeled model where the
imbalance ratio reaches ``R_0`` (Fang, He, Long & Su, arXiv:2101.12699; Dang et al.,
arXiv:2301.00437; Hong & Ling, arXiv:2309.09725). Solvers are held against these
thresholds at 2 % below and 2 % above. A network has no decay of its features: for
digits of which five are rare, the cosine of the rare rows against the imbalance ratio
is a trend, beside the model of free features at the decay that would balance both
penalties. Then weights of the loss and oversampling, which are to undo it.
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

CLASSES, MAJORITY = 10, 5
# Majority and minority classes, examples of each.
FREE = ((3, 3, 30, 5), (5, 5, 100, 10), (2, 6, 40, 4), (7, 3, 200, 2))
# Majority and minority classes, energy of features and of weights.
PEELED = ((5, 5, 5, 1), (7, 3, 5, 1), (3, 7, 5, 1), (5, 5, 10, 1))
_SIZES = ("num_majority", "num_minority", "feature_energy", "weight_energy")
SIDES = (0.98, 1.02)
REMEDIES = ("none", "square root", "inverse", "oversampling")
_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        minority_counts: Training images of each of five rare digits, falling, the first
            as many as of the others.
        widths: Units of the hidden layers, with BatchNorm.
        num_steps: Steps of SGD with momentum .9.
        batch_size: Images in a step, drawn with replacement.
        learning_rate: At the start; it falls to 0 as a cosine.
        weight_decay: Of all parameters.
        num_seeds: Splits, initialisations and batches, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    minority_counts: tuple[int, ...] = (100, 30, 10, 5, 2, 1)
    widths: tuple[int, ...] = (64, 64)
    num_steps: int = 3000
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-3
    num_seeds: int = 5
    seed: int = 0
    out: Path = Path("runs/minority_collapse")


class Bracket(NamedTuple):
    """A model below and above its threshold: entries are those of `SIDES`.

    Attributes:
        name: What is solved.
        apart: How far minority rows are from being collapsed: their largest distance
            over the longest row; for squared error without bias their largest length.
        gap: How much lower the objective could be, proved by duality.
    """

    name: str
    apart: np.ndarray
    gap: np.ndarray


class Networks(NamedTuple):
    """Networks of one remedy, by imbalance ratio and seed, ``[a, s]``.

    Attributes:
        row_cosine: Mean cosine of two minority rows of the classifier.
        mean_cosine: The same of centred class means of training images.
        length_ratio: Mean length of minority rows over that of the others.
        minority_error: Test error on the rare digits.
        majority_error: Test error on the others.
        train_error: On the images that were trained with.
        margin_of_collapse: Examples of a rare class over ``N^2 lw lh``: with free
            features, rows are equal where it is at most 1.
        predicted_cosine: `row_cosine` of free features with that ``lh``; NaN for
            remedies.
    """

    row_cosine: np.ndarray
    mean_cosine: np.ndarray
    length_ratio: np.ndarray
    minority_error: np.ndarray
    majority_error: np.ndarray
    train_error: np.ndarray
    margin_of_collapse: np.ndarray
    predicted_cosine: np.ndarray


class Result(NamedTuple):
    """What was measured.

    Attributes:
        brackets: Solvers at their thresholds.
        trend: Networks without remedy, at every imbalance ratio.
        remedies: By name, at the largest ratio; ``"none"`` is the last row of `trend`.
    """

    brackets: list[Bracket]
    trend: Networks
    remedies: dict[str, Networks]


def run(config: Config) -> Result:
    """Solve at the thresholds, and train at every ratio and with every remedy.

    Raises:
        ValueError: There are fewer than two seeds, or counts do not fall from that of
            the majority.
    """
    counts = config.minority_counts
    if config.num_seeds < 2:
        raise ValueError(f"`num_seeds` must be at least 2, but was {config.num_seeds}.")
    if len(counts) < 2 or any(np.diff(counts) >= 0) or min(counts) < 1:
        raise ValueError(
            "`minority_counts` must be two or more positive numbers that fall, but "
            f"were {counts}."
        )
    brackets = [_bracket(*case, loss=loss) for case in FREE for loss in _SOLVED]
    brackets += [_peeled(*case) for case in PEELED]
    problem = _Problem(config)
    trend = [
        [problem.network(count, "none", seed) for seed in range(config.num_seeds)]
        for count in counts
    ]
    remedies = {
        name: [[problem.network(counts[-1], name, s) for s in range(config.num_seeds)]]
        for name in REMEDIES[1:]
    }
    stack = lambda rows: Networks(*np.moveaxis(np.array(rows), -1, 0))
    none = {"none": Networks(*(values[-1:] for values in stack(trend)))}
    return Result(
        brackets,
        stack(trend),
        none | {name: stack(rows) for name, rows in remedies.items()},
    )


# Loss, bias decay, and the weight of the minority's loss over that at its threshold.
_SOLVED = ("cross_entropy", "squared_error", "weighted")


def _bracket(majority, minority, many, few, *, loss) -> Bracket:
    """Free features where `few` is 2 % less and more than the threshold.

    For the weighted loss the decays are four times too strong for `few` (but not for
    `many`), and its weight is 2 % less and more than what brings it back.
    """
    counts = np.array([many] * majority + [few] * minority)
    total, labels = int(counts.sum()), np.arange(len(counts))
    apart, gaps = [], []
    for side in SIDES:
        strength = 4.0 if loss == "weighted" else 1 / side
        decay = math.sqrt(strength * few) / total
        decays: dict[str, Any] = {"weight_decay": decay, "feature_decay": decay}
        solved: Any = loss
        if loss == "weighted":
            least = np.asarray(collapse.escape_weights(counts, **decays), float)
            solved = _Weighted(tuple(np.where(counts == few, side * least, 1.0)))
        else:
            bound = theory.minority_collapse_threshold(loss, total, **decays)
            np.testing.assert_allclose(few, side * bound)
        options = {"counts": counts, **decays}
        found = theory.unconstrained_features(
            solved, labels, num_outputs=len(counts), key=jax.random.key(0), **options
        )
        rows = found.layers[0]
        apart.append(_apart(rows, majority))
        both = {"classifier": (rows, None), "features": found.features}
        gap = math.nan
        if loss != "weighted":
            gap = theory.optimality_gap(loss, labels, **both, **options).gap
        gaps.append(gap)
    name = f"{loss.replace('_', ' ')}, {majority} x {many} + {minority} x {few}"
    return Bracket(name, np.array(apart), np.array(gaps))


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """Cross-entropy with a weight for each class."""

    weights: tuple[float, ...]

    def __call__(self, outputs, labels):
        return jnp.asarray(self.weights)[labels] * _cross_entropy(outputs, labels)


def _apart(rows, majority):
    """Largest distance of two minority rows over the longest row of all."""
    few = rows[majority:]
    distances = np.linalg.norm(few[:, None] - few[None], axis=2)
    return np.max(distances) / np.max(np.linalg.norm(rows, axis=1))


def _peeled(majority, minority, feature_energy, weight_energy) -> Bracket:
    """The layer-peeled model at its threshold; more imbalance collapses."""
    case = (majority, minority, feature_energy, weight_energy)
    sizes: dict[str, Any] = dict(zip(_SIZES, case, strict=True))
    threshold = theory.layer_peeled_threshold(**sizes)
    found = [theory.layer_peeled(threshold / side, **sizes) for side in SIDES]
    grams = [model.geometry.classifier_gram for model in found]
    # Of equal lengths and cosines: the square of the distance from the Gram matrix.
    apart = [
        math.sqrt(max(2 * (g[-1, -1] - g[-1, -2]), 0) / np.max(np.diag(g)))
        for g in grams
    ]
    name = f"layer-peeled, {majority} + {minority}, R0 = {threshold:.6g}"
    return Bracket(name, np.array(apart), np.array([m.optimality_gap for m in found]))


class _Problem:
    """What all networks share, so that programs are compiled once."""

    def __init__(self, config: Config):
        self.config = config
        self.model: Any = models.MLP(config.widths, CLASSES, batch_norm=True)
        self.init = jax.jit(self.model.init)
        rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
        self.optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(rate, momentum=0.9),
        )

    def objective(self, params, model_state, batch, key):
        """Weighted mean loss of images drawn with given probabilities."""
        x, y, probabilities, weights = batch
        drawn = jax.random.choice(
            key, len(x), (self.config.batch_size,), p=probabilities
        )
        outputs, model_state = self.model.apply(
            {"params": params, **model_state},
            x[drawn],
            train=True,
            mutable=list(model_state),
        )
        return jnp.mean(weights[drawn] * _cross_entropy(outputs, y[drawn])), model_state

    def network(self, few: int, remedy: str, seed: int) -> tuple[float, ...]:
        """One network; the fields of `Networks`."""
        config = self.config
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        key_data, key_init, key_train = jax.random.split(key, 3)
        digits = data.digits(num_train=1297, key=key_data)
        many = config.minority_counts[0]
        labels = np.asarray(digits.y_train)
        chosen = [np.flatnonzero(labels == k)[:many] for k in range(CLASSES)]
        rows = np.concatenate(chosen)
        x, y = digits.x_train[rows], digits.y_train[rows]
        counts = [many] * MAJORITY + [few] * (CLASSES - MAJORITY)
        kept = np.concatenate(
            [np.arange(len(chosen[k])) < counts[k] for k in range(CLASSES)]
        )
        probabilities, weights = _remedy(remedy, counts, y, kept)
        variables = self.init(key_init, x[:1])
        params, model_state = interop.flax.split(variables)
        history = dynamics.train(
            self.objective,
            dynamics.init(self.optimizer, params, model_state=model_state),
            self.optimizer,
            (x, y, probabilities, weights),
            num_steps=config.num_steps,
            key=key_train,
            progress=False,
        )
        test = (digits.x_test, np.asarray(digits.y_test))
        predict = remedy == "none"
        return _measured(self, history.state, (x[kept], y[kept]), test, counts, predict)


def _remedy(remedy, counts, labels, kept):
    """Probability of drawing each image, and weight of its loss."""
    present = jnp.asarray(kept, jnp.float32)
    weights = jnp.ones(len(kept))
    if remedy == "oversampling":
        shares = collapse.sampling_probabilities(labels, collapse.class_weights(counts))
        return shares * present / jnp.sum(shares * present), weights
    if remedy != "none":
        rule = "inverse" if remedy == "inverse" else "square_root"
        weights = collapse.class_weights(counts, rule=rule)[labels]
    return present / jnp.sum(present), weights


@partial(jax.jit, static_argnums=0)
def _read(model, variables, x):
    """Last features of `x`, and the class that the network takes it for."""
    features = list(models.features(model, variables, x).values())[-1]
    return features, jnp.argmax(model.apply(variables, x), axis=1)


def _measured(problem, state, train, test, counts, predict):
    """The fields of `Networks` for one network."""
    model, decay = problem.model, problem.config.weight_decay
    variables = {"params": state.params, **state.model_state}
    features, guess = _read(model, variables, train[0])
    weight, _ = models.classifier(model, variables)
    found: Any = collapse.imbalance_statistics(
        features,
        train[1],
        classifier=(weight, None),
        minority=jnp.arange(CLASSES) >= MAJORITY,
    )
    test_wrong = np.asarray(_read(model, variables, test[0])[1]) != test[1]
    rare = test[1] >= MAJORITY
    h = np.asarray(features, np.float64)
    total, squares = len(h), np.sum((h - h.mean(axis=0)) ** 2)
    feature_decay = decay * float(jnp.sum(weight**2)) / squares
    threshold = theory.minority_collapse_threshold(
        "cross_entropy", total, weight_decay=decay, feature_decay=feature_decay
    )
    predicted = math.nan
    if predict:
        cosines = theory.predicted_geometry(
            "cross_entropy",
            counts,
            decay,
            feature_decay=feature_decay,
            bias_decay=decay,
            key=jax.random.key(0),
        ).classifier_cosines[MAJORITY:, MAJORITY:]
        predicted = cosines[np.triu_indices(len(cosines), 1)].mean()
    return (
        float(found.minority_cosine),
        float(found.minority_mean_cosine),
        float(found.minority_norm_ratio),
        test_wrong[rare].mean(),
        test_wrong[~rare].mean(),
        float(jnp.mean(guess != train[1])),
        counts[-1] / threshold,
        predicted,
    )


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size))


def claims(config: Config, result: Result) -> list[Claim]:
    """Thresholds from both sides, the trend, and the remedies."""
    below = max(float(b.apart[0]) for b in result.brackets)
    above = min(float(b.apart[1]) for b in result.brackets)
    number = f"{len(result.brackets)} thresholds"
    gap = np.nanmax([b.gap for b in result.brackets])
    note = f"each proved optimal to {gap:.0e}, but those with weights"
    found = [
        Claim(
            f"{number}, 2 % on the collapsed side: minority rows apart, largest",
            *(below, -math.inf, 1e-6),
            note=note,
        ),
        Claim(
            f"{number}, 2 % on the other side: minority rows apart, smallest",
            *(above, 1e-3, math.inf),
        ),
    ]
    cosines = result.trend.row_cosine
    ratios = [config.minority_counts[0] / few for few in config.minority_counts]
    for i in range(1, len(ratios)):
        text = f"ratio {ratios[i]:.3g}: cosine of minority rows, less that at "
        text += f"{ratios[i - 1]:.3g} (trend, 2101.12699)"
        mean, error = _mean(cosines[i] - cosines[i - 1])
        found.append(Claim(text, mean, 0.0, math.inf, error))
    worst = result.remedies["none"]
    for name in REMEDIES[1:]:
        remedied = result.remedies[name]
        for what, after, before in (
            ("cosine of minority rows", remedied.row_cosine, worst.row_cosine),
            ("error on rare digits", remedied.minority_error, worst.minority_error),
        ):
            text = f"ratio {ratios[-1]:g}, {name}: {what}, less that without (trend)"
            mean, error = _mean(after - before)
            found.append(Claim(text, mean, -math.inf, 0.0, error))
    return found


_COLUMNS = (
    ("cos rows", "row_cosine"),
    ("free features", "predicted_cosine"),
    ("cos means", "mean_cosine"),
    ("length ratio", "length_ratio"),
    ("error rare", "minority_error"),
    ("error others", "majority_error"),
    ("n / threshold", "margin_of_collapse"),
)


def report(config: Config, result: Result) -> str:
    """Solvers at thresholds, networks by ratio and remedy, and claims with verdicts."""
    title = f"rows of the minority apart, at {SIDES[0]} and {SIDES[1]} of"
    lines = [f"{title + ' the threshold':<55}{'apart':>10}{'apart':>10}{'gap':>9}"]
    for name, apart, gap in result.brackets:
        gap = np.max(gap)
        lines.append(f"{name:<55}{apart[0]:>10.1e}{apart[1]:>10.4f}{gap:>9.0e}")
    head = "".join(f"{label:>18}" for label, _ in _COLUMNS)
    lines += ["", f"{'networks':<22}{head}"]
    for i, few in enumerate(config.minority_counts):
        name = f"ratio {config.minority_counts[0] / few:.3g}"
        lines.append(_row(name, Networks(*(values[i] for values in result.trend))))
    for name in REMEDIES[1:]:
        networks = Networks(*(values[0] for values in result.remedies[name]))
        lines.append(_row(name, networks))
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def _row(name: str, networks: Networks) -> str:
    cells = []
    for _, field in _COLUMNS:
        mean, error = _mean(getattr(networks, field))
        text = "" if math.isnan(mean) else f"{mean:.3g} ± {error:.1g}"
        cells.append(f"{text:>18}")
    return f"{name:<22}" + "".join(cells)


def draw(config: Config, result: Result) -> Any:
    """The layer-peeled model, networks by ratio, and remedies."""
    ratios = config.minority_counts[0] / np.array(config.minority_counts)
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
        _draw_peeled(axes[0])
        for field, label, colour in (
            ("row_cosine", "networks", plot.TRAIN),
            ("predicted_cosine", "free features", plot.THEORY),
        ):
            values = getattr(result.trend, field)
            mean, error = values.mean(1), values.std(1, ddof=1) / values.shape[1] ** 0.5
            axes[1].errorbar(ratios, mean, error, fmt="o-", color=colour, label=label)
        axes[1].axhline(-1 / 9, color=plot.NULL, ls="--", label="simplex frame")
        axes[1].set(xscale="log", xlabel="imbalance ratio")
        axes[1].set_ylabel("cosine of minority rows")
        axes[1].legend()
        places = np.arange(len(REMEDIES))
        for field, label, colour in (
            ("row_cosine", "cosine of minority rows", plot.TRAIN),
            ("minority_error", "test error on rare digits", plot.TEST),
        ):
            cells = [_mean(getattr(result.remedies[name], field)) for name in REMEDIES]
            mean, error = zip(*cells, strict=True)
            axes[2].errorbar(places, mean, error, fmt="o", color=colour, label=label)
        axes[2].axhline(-1 / 9, color=plot.NULL, ls="--", label="simplex frame")
        axes[2].set_xticks(places, [name.replace(" ", "\n") for name in REMEDIES])
        axes[2].set_title(f"remedies at ratio {ratios[-1]:g}")
        axes[2].legend()
    return figure


def _draw_peeled(ax):
    """Cosine of minority rows in the layer-peeled model, up to its thresholds."""
    for i, case in enumerate(PEELED):
        sizes: dict[str, Any] = dict(zip(_SIZES, case, strict=True))
        threshold = theory.layer_peeled_threshold(**sizes)
        ratios = np.append(np.geomspace(1, threshold, 20), 2 * threshold)
        cosines = [theory.layer_peeled(r, **sizes).minority_cosine for r in ratios]
        label = f"{case[0]} + {case[1]} classes, $E_H$ = {case[2]}"
        ax.semilogx(ratios, cosines, color=f"C{i}", label=label)
        ax.axvline(threshold, color=f"C{i}", ls=":", lw=1)
    ax.set(xlabel="imbalance ratio (dotted: $R_0$)", title="layer-peeled model")
    ax.set_ylabel("cosine of minority rows")
    ax.legend(loc="upper left", fontsize=7)


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
