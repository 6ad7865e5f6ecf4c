"""Topology of paths, small: measures against SciPy, statistics against loops."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from experiments import topological_complexity as script
from experiments.topology import networks, page, paths, ranking
from experiments.topology.paths import Measured

SMALL = script.Config(
    task="mixture",
    learning_rates=(0.05, 0.1, 0.2, 0.4),
    batch_sizes=(20,),
    num_seeds=2,
    width=8,
    num_train=60,
    num_test=500,
    max_steps=1000,
    sketch_dim=64,
    num_losses=30,
    num_probes=2,
    num_iterations=5,
    num_resamples=50,
)


def clouds(config, key):
    """Three Gaussian clouds of NumPy's: nothing to compile."""
    del config, key
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 560)
    x = (3 * np.eye(3, 16)[y] + draw.standard_normal((560, 16))).astype(np.float32)
    x_train, y_train, x_test, y_test = map(
        jnp.asarray, (x[:60], y[:60], x[60:], y[60:])
    )
    return SimpleNamespace(
        x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, num_classes=3
    )


@pytest.fixture(scope="module")
def found():
    """The result, and the window that it was measured on.

    The path of the first network alone is measured; the others get its rows times
    random factors, which is enough for the statistics.
    """
    windows, first = [], {}
    draw = np.random.default_rng(1)

    def kept(*args):
        windows.append(train(*args))
        return windows[-1]

    def measured(window, i, metric, *args):
        if metric not in first:
            first[metric] = measure(window, i, metric, *args)
            return first[metric]
        rows, flag = first[metric]
        change = lambda row: Measured(*(np.array(row) * draw.uniform(0.5, 1)))
        return {name: change(row) for name, row in rows.items()}, flag

    train, measure = networks.train, paths.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "train", kept)
        patch.setattr(paths, "measure", measured)
        patch.setattr(script, "make_task", clouds)
        result = script.run(SMALL)
    return result, windows[0]


def kendalltau(left, right):
    """SciPy's, which is tau-b too."""
    known = ~np.isnan(left + right)
    found: Any = scipy.stats.kendalltau(left[known], right[known])
    return found.statistic


def test_networks_fit_before_the_window_and_stay(found):
    result, window = found
    assert result.gap.shape == (4, 2)
    np.testing.assert_array_equal(np.isnan(result.gap), ~window.fitted.reshape(4, 2))
    assert result.num_excluded == np.sum(~window.fitted) < 3
    assert (window.num_steps[window.fitted] < 1000).all()
    assert window.path.shape == (500, 8, 64)
    assert window.losses.shape == (500, 8, 30)
    gap = result.gap[~np.isnan(result.gap)]
    assert ((gap > 0) & (gap < 0.9)).all()
    assert len(np.unique(result.rows["norm"].value)) > 5
    np.testing.assert_array_equal(result.cells[:, 1], 20)


@pytest.mark.parametrize("metric", paths.METRICS)
def test_rows_are_those_of_scipy_on_the_recorded_path(found, metric):
    result, window = found
    i = 0
    assert window.fitted[i]
    value = lambda row: result.rows[paths.name(row, metric)].value.ravel()[i]
    if metric == "loss":
        points = window.losses[:, i].astype(float)
        distances = cdist(points, points, "cityblock") / 30
        length = np.trace(distances, 1)
    else:
        points = window.path[:, i].astype(float)
        distances = cdist(points, points)
        length = window.step_lengths[:, i].sum()
        distances = distances * length / np.trace(distances, 1)
    # SciPy takes a zero for an absent edge: shift by one.
    shifted = distances + 1 - np.eye(500)
    edges = minimum_spanning_tree(shifted).data - 1
    np.testing.assert_allclose(value("path length"), length, rtol=1e-4)
    np.testing.assert_allclose(value("E_1"), edges.sum(), rtol=1e-4)
    np.testing.assert_allclose(value("E_1 / length"), edges.sum() / length, rtol=1e-4)
    np.testing.assert_allclose(value("E_0.5"), np.sum(edges**0.5), rtol=1e-3)
    weights = np.linalg.solve(np.exp(-(60**0.5) * distances), np.ones(500))
    np.testing.assert_allclose(value("PMag"), np.maximum(weights, 0).sum(), rtol=0.02)
    nulls = result.rows[paths.name("E_1", metric)]
    assert (nulls.flipped.ravel()[i] <= length * 1.01) & (nulls.ou.ravel()[i] > 0)


def test_partial_tau_is_its_formula_and_resamples_keep_cells(found):
    result, _ = found
    row = result.rows["norm"].value
    rate = np.broadcast_to(result.cells[:, :1], row.shape)
    xy, xz, yz = (
        kendalltau(np.asarray(a, float), np.asarray(b, float))
        for a, b in ((row, result.gap), (row, rate), (result.gap, rate + 0 * row))
    )
    tau = result.ranking.correlations["norm"]
    assert abs(tau.pooled - xy) < 1e-12
    assert abs(tau.with_rate - xz) < 1e-12
    partial = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert abs(tau.given_rate - partial) < 1e-12
    assert np.isnan(result.ranking.correlations["learning rate"].given_rate)
    assert np.isnan(result.ranking.correlations["path length"].given_length)
    counts = ranking._resamples((5, 3), 7, np.random.default_rng(0))
    assert counts.shape == (8, 15)
    assert (counts[0] == 1).all()
    assert (counts.reshape(8, 5, 3).sum(axis=2) == 3).all()


def test_what_the_gap_is_made_of_ranks_it():
    draw = np.random.default_rng(0)
    cells = np.array([(rate, size) for size in range(6) for rate in range(6)], float)
    hidden = cells[:, :1] + 0.1 * draw.standard_normal((36, 5))
    nothing = np.full((36, 5), np.nan)
    row = lambda values: Measured(values, nothing, draw.standard_normal((36, 5)))
    rows = {
        "path length": row(hidden),
        "follows the rate": row(cells[:, :1] + 0.1 * draw.standard_normal((36, 5))),
        "noise": row(draw.standard_normal((36, 5))),
    }
    gap = hidden + 0.1 * draw.standard_normal((36, 5))
    found = ranking.rank(rows, gap, gap, cells, num_resamples=200, seed=0)
    tau = found.correlations
    assert tau["path length"].pooled > found.ceiling.between_seeds - 0.05 > 0.7
    assert tau["path length"].low < tau["path length"].pooled < tau["path length"].high
    assert 0 < found.ceiling.fixed_rate + 0.2 < 0.6  # only noise at one rate
    # Given the rate, what follows it alone says nothing; of the length much is left.
    spread = np.std(found.samples["follows the rate"].given_rate)
    assert tau["follows the rate"].pooled > 0.7
    assert abs(tau["follows the rate"].given_rate) < 4 * spread + 0.1
    assert tau["path length"].given_rate > 0.25
    assert abs(tau["noise"].pooled) < found.band < 0.5
    assert abs(tau["noise"].ou) < found.band
    assert abs(tau["path length"].batch_sizes) > 0.2  # one rate: the seed's own noise


def test_verdicts_follow_from_the_numbers(found):
    result, _ = found
    claims = {claim.claim: claim for claim in page.claims(result)}
    smallest = claims["smallest E_1 / length of a network (seven runs)"]
    ratio = result.rows["E_1 / length"].value
    assert smallest.measured == np.nanmin(ratio) <= 1.001
    assert smallest.verdict == ("holds" if smallest.measured >= 0.995 else "fails")
    norm = next(c for text, c in claims.items() if text.startswith("the norm"))
    tau = result.ranking.correlations
    difference = abs(tau["norm"].pooled) - abs(tau["PH dimension"].pooled)
    assert norm.measured == pytest.approx(difference)


def test_command_line_writes_numbers_and_figure(found, monkeypatch, tmp_path, capsys):
    result, _ = found
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--task mixture --num-seeds 2"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].num_seeds == 2
    said = capsys.readouterr().out
    assert "mixture: 4 cells x 2 seeds = 8 networks" in said
    assert "noise ceiling" in said
    assert "E_1 goes with the gap, beyond chance (2407.08723)" in said
    held = json.loads((out / "result.json").read_text())
    assert held["num_excluded"] == result.num_excluded
    assert len(held["trees"]["path"]) == 499
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_refuses_what_cannot_be_run():
    with pytest.raises(ValueError, match="`num_steps` must be a multiple of 100"):
        script.run(script.Config(num_steps=400))
    with pytest.raises(ValueError, match="`batch_sizes` must be at most the 300"):
        script.run(script.Config(batch_sizes=(8, 301)))
    with pytest.raises(ValueError, match="at least four cells and two seeds"):
        script.run(script.Config(num_seeds=1))
    assert script.shortened(script.Config(quick=True)).num_seeds == 2
