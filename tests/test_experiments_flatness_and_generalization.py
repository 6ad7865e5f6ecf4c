"""Flatness against generalization, small: statistics against loops, and the command."""

import itertools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread

from experiments import flatness_and_generalization as script
from experiments.population import correlation, networks, page

SMALL = script.Config(
    task="mixture",
    learning_rates=(0.02, 0.05),
    batch_sizes=(30,),
    widths=(8,),
    weight_decays=(0.0, 1e-3),
    num_seeds=2,
    num_train=60,
    num_test=500,
    stop_loss=0.1,
    max_steps=2000,
    num_resamples=50,
    measures=("lpf", "fisher_rao"),
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def kendalltau(left, right):
    """SciPy's, which is tau-b too."""
    found: Any = scipy.stats.kendalltau(np.ravel(left), np.ravel(right))
    return found.statistic


def test_networks_stop_at_the_training_loss(result):
    assert result.gap.shape == (4, 2)
    assert result.num_excluded == 0
    losses = result.rows["train loss"]
    assert np.all((losses <= 0.1) & (losses > 0.02))
    assert np.all((result.gap > 0) & (result.gap < 0.9))
    assert np.all(result.test_loss > losses)
    np.testing.assert_array_equal(result.cells[:, 0], [0.02, 0.02, 0.05, 0.05])
    assert len(np.unique(result.rows["distance moved"])) == 8
    assert np.all(result.rows["lpf"] > 0)
    assert list(result.rows)[:3] == ["lpf", "fisher_rao", "fisher_rao.hessian"]


def test_a_network_that_has_stopped_stays_as_it_is():
    x, y = jax.random.normal(jax.random.key(0), (20, 3)), jnp.arange(20) % 2
    setting = networks.Setting(networks.make_network(4, 1, 2), 10, 0.9, 0.5, 60)
    keys = jax.random.split(jax.random.key(1), 2)
    slow = networks.train(setting, x, y, jnp.array([0.1, 0.001]), jnp.zeros(2), keys)
    keys = jax.random.split(jax.random.key(1), 2)
    fast = networks.train(setting, x, y, jnp.array([0.1, 0.1]), jnp.zeros(2), keys)
    assert slow.num_epochs[0] == fast.num_epochs[0] < slow.num_epochs[1] == 60
    assert fast.num_epochs[1] < 60
    assert slow.loss[0] <= 0.5 < slow.loss[1]
    for pair in zip(*map(jax.tree.leaves, (slow.params, fast.params)), strict=True):
        np.testing.assert_array_equal(pair[0][0], pair[1][0])


def test_tau_is_that_of_scipy_in_resamples_of_cells():
    draw = np.random.default_rng(0)
    left, right = draw.integers(0, 6, (2, 7)).astype(float)
    assert abs(correlation.tau(left, right) - kendalltau(left, right)) < 1e-12
    counts = correlation.resamples(7, 5, draw)
    assert counts.shape == (5, 7)
    assert np.all(counts.sum(axis=1) == 7)


def test_pairs_that_differ_in_one_hyperparameter():
    cells = np.array([*itertools.product((0.1, 0.2), (1, 2), (5,))], float)
    single = correlation.alone(cells)
    for a, b in itertools.product(range(4), repeat=2):
        differ = [i for i in range(3) if cells[a, i] != cells[b, i]]
        for i in range(3):
            assert single[i, a, b] == (differ == [i])
    assert correlation.equal(cells, 1)[0].tolist() == [True, False, True, False]


def test_noise_is_found():
    draw = np.random.default_rng(0)
    gap = np.arange(40.0)[:, None] + 5 * draw.standard_normal((40, 4))
    halves = np.arange(40) < 20
    found = correlation.ceiling(gap, halves[:, None] == halves)
    assert 0.5 < found.between_seeds < found.from_other_seeds < 1
    pairs = [
        kendalltau(gap[:, a], gap[:, b]) for a, b in itertools.combinations(range(4), 2)
    ]
    assert abs(found.between_seeds - np.mean(pairs)) < 1e-12
    pairs = [
        kendalltau(gap[half, a], gap[half, b])
        for a, b in itertools.combinations(range(4), 2)
        for half in (halves, ~halves)
    ]
    assert abs(found.fixed_width - np.mean(pairs)) < 1e-12


def test_verdicts_follow_from_the_band():
    assert page.verdict(0.3, 0.2) == "yes"
    assert page.verdict(-0.3, 0.2) == "yes, reversed"
    assert page.verdict(-0.1, 0.2) == "no"
    assert page.verdict(float("nan"), 0.2) == "constant"


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--task mixture --widths 8 --num-seeds 2"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].widths == (8,)
    said = capsys.readouterr().out
    assert "mixture: 4 cells x 2 seeds = 8 networks, 0 of them left out" in said
    assert "noise ceiling" in said
    assert "flatter networks generalise better by lpf (tau 0.606, 2201.08025)" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["gap"], result.gap)
    assert held["ranking"]["correlations"]["lpf"]["pooled"] == pytest.approx(
        result.ranking.correlations["lpf"].pooled
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_a_grid_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-seeds", "1"])
    with pytest.raises(SystemExit, match="error: there must be at least four cells"):
        script.main()
