"""Collapse and transfer, small: tasks, statistics against loops, and the command."""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread

from experiments import transfer_collapse as script
from experiments.transfer import correlation, fine_tuning, measures, pool, targets
from jaxtheory import models

SMALL = script.Config(
    widths=(8,),
    depth=1,
    num_features=6,
    channels=(),
    losses=("cross entropy", "squared error"),
    learning_rates=(0.01,),
    weight_decays=(1e-4,),
    stops=(1, 12),
    num_source=30,
    num_target=10,
    rotations=(),
    blurs=(),
    noises=(1.0,),
    contrasts=(),
    batch_size=20,
    fine_tune_epochs=3,
    bound_shots=(5,),
    num_draws=2,
    num_resamples=30,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def rank_correlation(left, right):
    found: Any = scipy.stats.spearmanr(left, right)
    return found.statistic


def test_images_are_split_and_shifted():
    strengths = {"rotation": (90.0,), "blur": (1.0,), "contrast": (0.5,)}
    tasks = targets.make_tasks(6, 30, 10, strengths, 0)
    sets = [tasks.source.x_train, tasks.source.x_test, tasks.targets[0].x_train]
    sets.append(tasks.targets[0].x_test)
    # No image is in two of them, but for one that scikit-learn may hold twice.
    flat = np.concatenate(sets).reshape(-1, 64)
    assert len(np.unique(flat, axis=0)) == len(flat)
    new = tasks.targets[0]
    assert np.bincount(new.y_train).tolist() == [10] * 4
    assert np.bincount(tasks.source.y_train).tolist() == [30] * 6
    turned, blurred, faint = tasks.targets[1:]
    # A turn of 90 degrees needs no interpolation.
    clean = tasks.source.x_test
    np.testing.assert_allclose(turned.x_test, np.rot90(clean, 1, (1, 2)), atol=1e-5)
    assert np.array_equal(turned.y_test, tasks.source.y_test)
    std = lambda images: images.std(axis=(1, 2, 3))
    np.testing.assert_allclose(std(faint.x_test), std(clean) / 2, rtol=1e-5)
    means = faint.x_test.mean(axis=(1, 2, 3)), clean.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(*means, atol=1e-5)
    assert np.all(std(blurred.x_test) < std(clean))


def test_correlations_are_those_of_scipy():
    draw = np.random.default_rng(0)
    x, y, z = draw.integers(0, 9, (3, 12)).astype(float)
    indices = correlation.resamples(6, 2, 5, draw)
    # The stops of a run stay together.
    assert np.all(indices[:, 1::2] == indices[:, ::2] + 1)
    assert indices[0].tolist() == [*range(12)]
    a, b, c = (correlation.ranks(values, indices) for values in (x, y, z))
    found = correlation.spearman(a, b)
    assert abs(found.value - rank_correlation(x, y)) < 1e-12
    for sample, rows in zip(found.samples, indices[1:], strict=True):
        assert abs(sample - rank_correlation(x[rows], y[rows])) < 1e-12
    # Partial: correlation of the residuals of ranks on the third rank.
    residual = []
    for values in (x, y):
        rank, third = scipy.stats.rankdata(values), scipy.stats.rankdata(z)
        residual.append(rank - np.polyval(np.polyfit(third, rank, 1), third))
    partial = correlation.partial_spearman(a, b, c).value
    assert abs(partial - np.corrcoef(*residual)[0, 1]) < 1e-12
    assert np.isnan(correlation.partial_spearman(a, c, c).value)


def test_the_probe_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    means = 1.2 * draw.standard_normal((3, 4))
    y, y_test = np.arange(60) % 3, np.arange(90) % 3
    x = means[y] + draw.standard_normal((60, 4))
    x_test = means[y_test] + draw.standard_normal((90, 4))
    fit = LogisticRegression(max_iter=1000).fit(x - x.mean(0), y)
    expected = fit.score(x_test - x.mean(0), y_test)
    stacked = jnp.asarray(np.stack([x, x]), jnp.float32)
    test = jnp.asarray(np.stack([x_test, x_test]), jnp.float32)
    found = measures.probe(stacked, jnp.asarray(y), test, jnp.asarray(y_test))
    # One example may lie at the border.
    np.testing.assert_allclose(found, expected, atol=1.5 / 90)
    assert 0.5 < expected < 1


def test_only_marked_parameters_are_trained(result):
    # A layer of 64-6 with BatchNorm, six classes, then four.
    counts = result.counts[0]
    full = 64 * 6 + 2 * 6 + 6 * 4 + 4
    assert [count.trainable for count in counts] == [full, full + 6 * 6]
    assert [count.total for count in counts] == [full, full + 6 * 6 + 6 * 6 + 6]


def test_pretraining_collapses_the_source(result):
    assert result.stops.tolist() == [1, 12, 1, 12]
    assert [recipe.loss for recipe in result.recipes[1:3]] == list(SMALL.losses)
    nc1, accuracy = (result.source[f"source train {n}"] for n in ("NC1", "accuracy"))
    assert np.all(nc1[1::2] < nc1[::2])
    assert np.all(accuracy[1::2] > accuracy[::2])
    assert result.targets == ("digits 6 to 9", "noise 1")
    np.testing.assert_allclose(
        result.scores["source train NC1 (negative)"], np.tile(-nc1, (2, 1))
    )


def test_scores_agree_with_each_other(result):
    # H = (K-1) (1 - VCI), four classes and then six.
    vci = -result.scores["target VCI (negative)"]
    expected = np.array([[3], [5]]) * (1 - vci)
    np.testing.assert_allclose(result.scores["target H-score"], expected, rtol=1e-4)
    row = result.new_classes["target LogME"].by["probe"]
    probe = result.accuracies["probe"]
    expected = rank_correlation(result.scores["target LogME"][0], probe[0])
    assert abs(row.value - expected) < 1e-12
    # The last layer's probe is the same in both tables.
    np.testing.assert_allclose(result.layers[0, -1], probe[0], atol=1e-6)
    assert np.all(result.few_bounds[0] >= result.few_errors)
    assert np.all(result.few_bounds[0] <= result.few_bounds[1])


def test_fine_tuning_starts_from_the_pretrained_network():
    task = targets.make_tasks(6, 30, 10, {}, 0).targets[0]
    shape = pool.Shape("mlp", (5, 4))
    body = shape.model(6)
    x = jnp.asarray(task.x_test)
    variables = jax.jit(body.init)(jax.random.key(0), x[:1])
    stacked = jax.tree.map(lambda a: a[None], variables)
    networks = pool.Networks(shape, stacked, (pool.Recipe("", 0.0, 0.0),), (0,))
    found = fine_tuning.fine_tune_layer(
        networks,
        "layer_1",
        6,
        task,
        fine_tuning.Schedule(1e-2, 0, 20),
        jax.random.key(1),
    )
    # The skip starts at zero: a new classifier acts on the last features.
    start_key, _ = jax.random.split(jax.random.key(1))
    skip = models.SkipConnection(body, layer="layer_1", num_outputs=4)
    head = jax.jit(skip.init)(start_key, x[:1])["params"]["classifier"]
    read = jax.jit(lambda values: models.features(body, values, x))
    features = read(variables)["layer_2"]
    outputs = np.asarray(features) @ np.asarray(head["kernel"])
    expected = np.mean(outputs.argmax(axis=1) == task.y_test)
    np.testing.assert_allclose(found.accuracy, [expected], atol=0.01)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--stops 1 12 --num-resamples 30 --bound-shots 5"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].stops == (1, 12)
    said = capsys.readouterr().out
    assert "4 networks from 2 runs, 2 targets" in said
    assert "rank correlation on the new classes" in said
    assert "skip-connection fine-tuning trains at least 70 % fewer" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["accuracies"]["probe"], result.accuracies["probe"])
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_shapes_of_unequal_depth_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--depth", "2"])
    with pytest.raises(SystemExit, match="error: `channels` must be 2 numbers"):
        script.main()
