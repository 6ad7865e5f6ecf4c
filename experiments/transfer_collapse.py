"""Collapse and transfer: ``python -m experiments.transfer_collapse --help``.

Does neural collapse say which pretrained network transfers? A pool of small networks
(architecture, width, loss, learning rate, weight decay, stopping time) is pretrained on
the digits 0 to 5 and transferred to the digits 6 to 9, and to the digits 0 to 5 under
rotation, blur, noise and low contrast. Collapse on the source and every transfer score
of the target's training features are correlated (Spearman) with accuracies on the
target: of a linear probe on few and on all examples, of fine-tuning everything, and of
fine-tuning one layer with a skip connection.

Claims tested: more collapse on target data goes with better transfer, of source data
less collapse does, and skip-connection fine-tuning needs few parameters (Li et al.,
arXiv:2212.12206); collapse carries over to new classes, where it makes few examples
enough (Galanti et al., arXiv:2112.15121).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments.folder import run_command
from experiments.transfer import correlation, measures, page, pool, ranking, targets
from experiments.transfer.study import of_shape


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        widths: Of the hidden layers of each MLP but the last. All networks have
            BatchNorm.
        depth: Hidden layers.
        num_features: Width of the last one.
        channels: Of the CNN, one for each layer; empty for no CNN.
        losses: "cross entropy", "squared error".
        learning_rates: Of pretraining, SGD with momentum .9.
        weight_decays: Coupled: added to the gradient.
        stops: Epochs after which each run leaves a network, increasing.
        num_classes: Digits to pretrain on, from 0.
        num_source: Training images of each of them.
        num_target: Training images of each class of a target.
        rotations: Degrees.
        blurs: Deviations of the Gaussian, in pixels.
        noises: Standard deviations, in those of a pixel.
        contrasts: Factors.
        batch_size: Of pretraining and fine-tuning.
        fine_tune_rate: Initial learning rate of Adam, for both fine-tunings.
        fine_tune_epochs: Epochs of it.
        num_shots: Examples a class in the column "few-shot".
        bound_shots: Those at which the few-shot bound is held against the error.
        num_draws: Draws of those examples.
        num_resamples: Resamples of runs.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    widths: tuple[int, ...] = (32, 96)
    depth: int = 3
    num_features: int = 32
    channels: tuple[int, ...] = (8, 16, 32)
    losses: tuple[str, ...] = ("cross entropy", "squared error")
    learning_rates: tuple[float, ...] = (0.01, 0.1)
    weight_decays: tuple[float, ...] = (1e-4, 5e-3)
    stops: tuple[int, ...] = (5, 60)
    num_classes: int = 6
    num_source: int = 60
    num_target: int = 40
    rotations: tuple[float, ...] = (15.0, 45.0, 90.0)
    blurs: tuple[float, ...] = (0.5, 1.0, 1.5)
    noises: tuple[float, ...] = (0.5, 1.0, 1.5)
    contrasts: tuple[float, ...] = (0.5, 0.25, 0.1)
    batch_size: int = 30
    fine_tune_rate: float = 3e-3
    fine_tune_epochs: int = 20
    num_shots: int = 5
    bound_shots: tuple[int, ...] = (1, 5, 20)
    num_draws: int = 5
    num_resamples: int = 500
    seed: int = 0
    out: Path = Path("runs/transfer_collapse")


class Result(NamedTuple):
    """What was measured; ``t`` targets (the new classes first), ``m`` networks.

    Attributes:
        targets: Names of the targets.
        networks: Architecture of each network; stops of one run are next to each other.
        recipes: How each was pretrained.
        stops: For how many epochs.
        source: Collapse and accuracy on the source, ``[m]`` each.
        scores: Collapse on the source and scores on the targets, ``[t, m]`` each, more
            of them promising more.
        accuracies: On the targets' test sets, by `ranking.COLUMNS` ``[t, m]``; NaN
            where a target is not fine-tuned on.
        raw: Accuracy of a probe on pixels, ``[t]``.
        skip: Accuracy of skip-connection fine-tuning of each hidden layer on the new
            classes, ``[layers, m]``.
        full_train: Training accuracy of full fine-tuning there.
        counts: Parameters trained, and in all: for each network full, then each layer.
        examined: Targets that are fine-tuned on and probed layer by layer.
        layers: Accuracy of probes on each hidden layer, ``[examined, layers, m]``.
        chosen: Index of the layer that each score chooses, ``[examined, m]``.
        few_errors: Test error of nearest class means, ``[bound_shots, m]``.
        few_bounds: Bounds on it: directional and by the CDNV, ``[2, bound_shots, m]``;
            at most the number of classes less one.
        limit: The directional bound for means that are known, ``[m]``.
        new_classes: Rank correlations on the new classes.
        shifts: The same, averaged over shifts.
    """

    targets: tuple[str, ...]
    networks: np.ndarray
    recipes: tuple[pool.Recipe, ...]
    stops: np.ndarray
    source: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    accuracies: dict[str, np.ndarray]
    raw: np.ndarray
    skip: np.ndarray
    full_train: np.ndarray
    counts: list[Any]
    examined: tuple[int, ...]
    layers: np.ndarray
    chosen: dict[str, np.ndarray]
    few_errors: np.ndarray
    few_bounds: np.ndarray
    limit: np.ndarray
    new_classes: dict[str, ranking.Row]
    shifts: dict[str, ranking.Row]


def run(config: Config) -> Result:
    """Pretrain the pool, score it, transfer it, and correlate.

    Raises:
        ValueError: The configuration cannot be run.
    """
    shapes = _shapes(config)
    strengths = {
        "rotation": config.rotations,
        "blur": config.blurs,
        "noise": config.noises,
        "contrast": config.contrasts,
    }
    tasks = targets.make_tasks(
        config.num_classes,
        config.num_source,
        config.num_target,
        strengths,
        config.seed,
    )
    # The new classes, and the medium strength of every shift.
    sizes = [len(some) for some in strengths.values()]
    begins = 1 + np.cumsum([0, *sizes[:-1]])
    middles = [b + s // 2 for b, s in zip(begins, sizes, strict=True) if s]
    examined = (0, *map(int, middles))
    parts = [
        of_shape(config, shape, tasks, examined, place)
        for place, shape in enumerate(shapes)
    ]
    joined = jax.tree.map(lambda *a: np.concatenate(a, axis=-1), *(p[0] for p in parts))
    networks = [network for _, several in parts for network in several]
    return _result(config, tasks, examined, networks, joined)


def _shapes(config):
    if config.channels and len(config.channels) != config.depth:
        raise ValueError(
            f"`channels` must be {config.depth} numbers, one for each layer, but were "
            f"{config.channels}."
        )
    inner = config.depth - 1
    shapes = [
        pool.Shape("mlp", (width,) * inner + (config.num_features,))
        for width in config.widths
    ]
    if config.channels:
        shapes.append(pool.Shape("cnn", config.channels))
    if list(config.stops) != sorted(set(config.stops)) or min(config.stops) < 1:
        raise ValueError(
            f"`stops` must be increasing and positive, but were {config.stops}."
        )
    return shapes


def _result(config, tasks, examined, networks, joined):
    """Everything together, and correlations over the whole pool."""
    several = [
        {name: _at(value, index) for name, value in joined["scores"].items()}
        for index in range(len(tasks.targets))
    ]
    scores = ranking.oriented(joined["source"], several)
    names = np.array([name for name, *_ in networks])
    num_stops = len(config.stops)
    indices = correlation.resamples(
        len(networks) // num_stops,
        num_stops,
        config.num_resamples,
        np.random.default_rng(config.seed),
    )
    rank = lambda places: ranking.rank(
        scores,
        joined["columns"],
        joined["source"]["source test accuracy"],
        names,
        indices,
        num_stops,
        places,
    )
    return Result(
        targets=tuple(task.name for task in tasks.targets),
        networks=names,
        recipes=tuple(recipe for _, recipe, _, _ in networks),
        stops=np.array([stop for _, _, stop, _ in networks]),
        source=joined["source"],
        scores=scores,
        accuracies=joined["columns"],
        raw=np.array([measures.raw_probe(task) for task in tasks.targets]),
        skip=joined["skip"],
        full_train=joined["full_train"],
        counts=[counts for *_, counts in networks],
        examined=examined,
        layers=joined["examined"]["layers"],
        chosen=joined["examined"]["chosen"],
        few_errors=joined["few_errors"],
        few_bounds=joined["few_bounds"],
        limit=joined["limit"],
        new_classes=rank(slice(0, 1)),
        shifts=rank(slice(1, None)),
    )


def _at(value, index):
    return jax.tree.map(lambda a: a[index], value)


def report(config: Config, result: Result) -> str:
    """The tables that the terminal shows."""
    return page.report(config, result)


def draw(config: Config, result: Result) -> Any:
    """Collapse against transfer, and how well each score ranks the pool."""
    return page.draw(config, result)


def main() -> None:
    """Run the command line."""
    run_command(tyro.cli(Config, description=__doc__), run, report, draw)


if __name__ == "__main__":
    main()
