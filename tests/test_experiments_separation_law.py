"""The separation law experiment, small: its numbers by NumPy, files, command line."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import separation_law as script
from experiments.separation import networks, page

SMALL = script.Config(
    depths=(3,),
    momentum=(0.05,),
    sgd=(),
    adam=(),
    controls=(networks.LINEAR,),
    num_seeds=2,
    num_per_class=10,
    width=64,
    num_epochs=30,
    batch_size=50,
    num_resamples=10,
)
LABELS = jnp.arange(100) % 10


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def separation(features, labels):
    """``tr(SS_W SS_B^+)`` by a pseudo-inverse, in double precision."""
    features, labels = np.asarray(features, float), np.asarray(labels)
    means = np.stack([features[labels == c].mean(0) for c in range(labels.max() + 1)])
    within, between = features - means[labels], (means - features.mean(0))[labels]
    inverse = np.linalg.pinv(between.T @ between, rcond=1e-9)
    return np.trace(within.T @ within @ inverse)


def test_numbers_are_those_of_the_layers(result):
    assert [point.network for point in result.points] == [
        networks.LAW,
        networks.LINEAR,
    ]
    task = networks.make_task(SMALL)
    assert np.bincount(task.y).tolist() == [10] * 10
    assert float(task.x.min()) > -1e-5
    assert abs(float(task.x.max()) - 1) < 1e-5
    point, layers = networks.measure(SMALL, task, result.points[0][:4])
    expected = [[separation(h, task.y) for h in seed] for seed in layers]
    assert np.shape(expected) == (2, 4)
    np.testing.assert_allclose(point.separation, expected, rtol=1e-3)
    np.testing.assert_allclose(result.points[0].separation, expected, rtol=1e-3)
    logs = np.log(expected)
    correlation = [np.corrcoef(row, np.arange(4))[0, 1] for row in logs]
    np.testing.assert_allclose(point.pearson_r, correlation, rtol=1e-3)
    drops = -np.diff(logs)
    np.testing.assert_allclose(
        point.drop_variation, drops.std(1) / np.abs(drops.mean(1)), rtol=2e-3
    )
    assert np.all((point.p_variation > 0) & (point.p_variation <= 1))
    # What all networks are given is the same.
    first = [p.separation[:, 0] for p in result.points]
    np.testing.assert_allclose(np.ptp(first), 0, atol=1e-4)


def test_bend_is_that_of_a_bent_law():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(100, 64)).astype(np.float32)
    for c in range(10):
        noise[np.asarray(LABELS) == c] -= noise[np.asarray(LABELS) == c].mean(0)
    signal = 100 * np.eye(10, 64, dtype=np.float32)[np.asarray(LABELS)]
    bent = [jnp.asarray(signal * 2 ** (l + 0.2 * l * l) + noise) for l in range(4)]
    task = networks.Task(None, LABELS, None, None)
    found = networks.bend(SMALL, task, [bent, bent])
    np.testing.assert_allclose(found[0], -0.4 * np.log(2), rtol=1e-4)
    assert found[1] < found[0] < found[2]
    np.testing.assert_allclose(found[1:], found[0], atol=0.01)


def test_claims_follow_from_the_points(result):
    lawful = result.points[0]._replace(
        pearson_r=np.array([-0.999, -0.998]), p_variation=np.array([0.01, 0.02])
    )
    points = [lawful, *result.points[1:]]
    changed = result._replace(points=points, bend={3: np.array([0.1, 0.05, 0.15])})
    named = page.claims(SMALL, changed)
    assert [c.verdict for c in named[:3]] == ["holds", "holds", "fails"]
    control = result.points[1].pearson_r
    np.testing.assert_allclose(named[3].measured, control.mean())
    error = abs(control[0] - control[1]) / 2
    np.testing.assert_allclose(named[3].error, error, rtol=1e-5)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--depths 3 --momentum .05 --sgd --adam --num-seeds 2 --controls linear+BN"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].momentum == (0.05,)
    said = capsys.readouterr().out
    assert "linear+BN breaks the law" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(
        held["points"][0]["separation"], result.points[0].separation
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_one_seed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-seeds", "1"])
    with pytest.raises(SystemExit, match="error: there must be two seeds"):
        script.main()


@pytest.mark.slow
def test_the_published_setting_obeys_the_law_and_a_linear_network_does_not():
    """He and Su's setting: r is at most -.98, and at least -.6 without ReLU."""
    config = script.Config(num_seeds=1)
    task = networks.make_task(config)
    law, _ = networks.measure(config, task, (networks.LAW, "momentum", 6, 0.1))
    linear, _ = networks.measure(config, task, (networks.LINEAR, "momentum", 6, 0.1))
    assert law.pearson_r.mean() <= -0.98
    assert linear.pearson_r.min() >= -0.6
