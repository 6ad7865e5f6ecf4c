"""The networks of one shape: pretrained, scored and transferred to every target."""

import itertools
from typing import Any

import jax
import numpy as np

from experiments.transfer import measures, pool
from experiments.transfer.fine_tuning import Schedule, fine_tune_all, fine_tune_layer
from experiments.transfer.targets import Tasks


def of_shape(
    config: Any, shape: pool.Shape, tasks: Tasks, examined: tuple[int, ...], place: int
) -> tuple[dict[str, Any], list[Any]]:
    """Pretrain and measure the networks of one shape.

    Args:
        config: Of the experiment.
        shape: The shape.
        tasks: Source and targets.
        examined: Targets to fine-tune on and to probe layer by layer.
        place: Which shape of the pool it is: runs of others have other seeds.

    Returns:
        What was found by name, with networks on the last axis; and for each network its
        shape, its recipe, its stop and its parameter counts.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), place)
    pretrain_key, fine_key = jax.random.split(key)
    recipes = tuple(
        itertools.starmap(
            pool.Recipe,
            itertools.product(
                config.losses, config.learning_rates, config.weight_decays
            ),
        )
    )
    networks = pool.pretrain(
        shape,
        recipes,
        config.stops,
        tasks.source,
        batch_size=config.batch_size,
        key=pretrain_key,
    )
    found: dict[str, Any] = {"source": measures.source_rows(networks, tasks.source)}
    scores, columns, examinations = [], [], []
    for index, task in enumerate(tasks.targets):
        layers = _layers(config, networks, task)
        # All networks meet the same mixtures.
        mixture_key = jax.random.key(config.seed)
        scores.append(measures.target_rows(layers[0], layers[2], task, mixture_key))
        columns.append(_probes(config, layers, task))
        if index in examined:
            examinations.append(_examine(layers, task))
        fine = _fine_tune(config, networks, task, index, examined, fine_key)
        columns[-1] |= fine.pop("columns")
        found |= fine
        if index == 0:
            found |= _few_shot(config, layers, task)
    stack = lambda several: jax.tree.map(lambda *a: np.stack(a), *several)
    found |= {"scores": stack(scores), "columns": stack(columns)}
    found |= {"examined": stack(examinations)}
    every = zip(networks.recipes, networks.stops, strict=True)
    counts = found.pop("counts")
    return found, [(str(shape), recipe, stop, counts) for recipe, stop in every]


def _layers(config, networks, task):
    """Features of all layers in common units, for training and test, and outputs."""
    model = networks.shape.model(config.num_classes)
    train, outputs = pool.read(model, networks.variables, task.x_train)
    test, _ = pool.read(model, networks.variables, task.x_test)
    return *measures.rescale(train, test), outputs


def _probes(config, layers, task):
    """Accuracies of linear probes on the last features."""
    train, test = measures.last(layers[0]), measures.last(layers[1])
    return {
        "probe": np.asarray(measures.probe(train, task.y_train, test, task.y_test)),
        "few-shot": measures.few_shot_probe(
            train, test, task, config.num_shots, config.num_draws, config.seed
        ),
    }


def _examine(layers, task):
    """Probes on every hidden layer, and which one each score chooses."""
    hidden = sorted(name for name in layers[0] if name != "input")
    accuracy = [
        measures.probe(layers[0][name], task.y_train, layers[1][name], task.y_test)
        for name in hidden
    ]
    return {"layers": np.stack(accuracy), "chosen": measures.choose(layers[0], task)}


def _fine_tune(config, networks, task, index, examined, key):
    """Fine-tuning on examined targets: everything, and the first layer with a skip."""
    if index not in examined:
        nothing = np.full(len(networks.recipes), np.nan)
        return {"columns": {"full": nothing, "skip": nothing}}
    schedule = Schedule(
        config.fine_tune_rate, config.fine_tune_epochs, config.batch_size
    )
    full = fine_tune_all(networks, task, schedule, jax.random.fold_in(key, index))
    depth = len(networks.shape.widths) if index == 0 else 1
    skips = [
        fine_tune_layer(
            networks,
            f"layer_{layer}",
            config.num_classes,
            task,
            schedule,
            jax.random.fold_in(key, 100 * layer + index),
        )
        for layer in range(1, depth + 1)
    ]
    found: dict[str, Any] = {
        "columns": {"full": full.accuracy, "skip": skips[0].accuracy}
    }
    if index == 0:
        found["skip"] = np.stack([one.accuracy for one in skips])
        found["full_train"] = full.train_accuracy
        found["counts"] = [full.parameters, *(one.parameters for one in skips)]
    return found


def _few_shot(config, layers, task):
    """Errors of nearest class means on the new classes, and bounds on them."""
    train, test = measures.last(layers[0]), measures.last(layers[1])
    errors, bounds = [], []
    for count in config.bound_shots:
        errors.append(
            [
                measures.nearest_mean_error(h, task, t, count, 50, config.seed)
                for h, t in zip(np.asarray(train), np.asarray(test), strict=True)
            ]
        )
        bounds.append([measures.few_shot_bounds(h, task, count) for h in train])
    return {
        "few_errors": np.array(errors),
        "few_bounds": np.moveaxis(np.array(bounds), 2, 0),
        "limit": np.array([measures.few_shot_bounds(h, task, None)[0] for h in train]),
    }
