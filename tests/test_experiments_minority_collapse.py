"""Minority collapse, small: thresholds, trend, remedies, the command line."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import minority_collapse as script
from experiments.collapse import minority_page, remedies, thresholds

SMALL = script.Config(minority_counts=(60, 2), widths=(24,), num_steps=400, num_seeds=2)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "FREE", thresholds.FREE[:1])
        patch.setattr(thresholds, "PEELED", thresholds.PEELED[:1])
        return script.run(SMALL)


def test_thresholds_are_bracketed(result):
    names = [bracket.name for bracket in result.brackets]
    assert names == [
        "cross entropy, 3 x 30 + 3 x 5",
        "squared error, 3 x 30 + 3 x 5",
        "weighted, 3 x 30 + 3 x 5",
        "layer-peeled, 5 + 5, R0 = 12.1924",
    ]
    for bracket in result.brackets:
        assert bracket.apart[0] < 1e-6
        assert bracket.apart[1] > 0.05
        assert not np.any(np.abs(bracket.gap) > 1e-12)
    # Orthogonal rows of the squared error: ||w_k||^2 ~ sqrt(n_k) - N sqrt(lw lh).
    least = np.sqrt(5 / 1.02)
    expected = np.sqrt(2 * (np.sqrt(5) - least) / (np.sqrt(30) - least))
    np.testing.assert_allclose(result.brackets[1].apart[1], expected, rtol=1e-6)


def test_cosines_grow_with_imbalance_and_remedies_undo_it(result):
    trend = result.trend
    assert trend.row_cosine.shape == (2, 2)
    assert np.all(np.diff(trend.row_cosine, axis=0) > 0)
    assert np.all(np.diff(trend.predicted_cosine, axis=0) > 0)
    np.testing.assert_allclose(trend.predicted_cosine[0], -1 / 9, rtol=1e-6)
    assert np.all(np.diff(trend.length_ratio, axis=0) < 0)
    assert np.all(np.diff(trend.margin_of_collapse, axis=0) < 0)
    assert list(result.remedies) == list(remedies.REMEDIES)
    np.testing.assert_array_equal(
        result.remedies["none"].row_cosine, trend.row_cosine[-1:]
    )
    for name in remedies.REMEDIES[1:]:
        assert np.all(result.remedies[name].row_cosine < trend.row_cosine[-1])


def test_remedies_are_equal_in_expectation():
    labels, counts = np.repeat(np.arange(10), 8), np.array([8] * 5 + [2] * 5)
    kept = np.concatenate([np.arange(8) < count for count in counts])
    shares = {}
    for name in remedies.REMEDIES:
        drawn, weights = remedies.shares(name, counts, labels, kept)
        np.testing.assert_allclose(np.sum(drawn), 1, rtol=1e-5)
        assert np.all(drawn[~kept] == 0)
        shares[name] = np.bincount(labels, drawn * weights)
    np.testing.assert_allclose(shares["none"], counts / 50, rtol=1e-5)
    np.testing.assert_allclose(shares["oversampling"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(shares["inverse"], 0.1, rtol=1e-5)
    roots = np.sqrt(counts) / np.sum(np.sqrt(counts))
    np.testing.assert_allclose(shares["square root"], roots, rtol=1e-5)


def test_claims_follow_from_the_numbers(result):
    below, above, first, *undone = minority_page.claims(SMALL, result)
    assert (below.verdict, above.verdict) == ("holds", "holds")
    rises = np.diff(result.trend.row_cosine.mean(1))
    np.testing.assert_allclose([first.measured], rises, rtol=1e-6)
    assert len(undone) == 6
    worse: Any = result.brackets[0]._replace(apart=np.array([0.1, 0.2]))
    claims = minority_page.claims(SMALL, result._replace(brackets=[worse]))
    assert claims[0].verdict == "fails"


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    monkeypatch.setattr(thresholds, "PEELED", thresholds.PEELED[:1])
    monkeypatch.setattr(minority_page, "CURVE_POINTS", 3)
    out = tmp_path / "there"
    flags = ["--minority-counts", "60", "2", "--num-seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["x", *flags, "--out", str(out)])
    script.main()
    assert asked[0].minority_counts == (60, 2)
    said = capsys.readouterr().out
    assert "4 thresholds, 2 % on the collapsed side" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["trend"]["row_cosine"], result.trend.row_cosine)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least 2"),
        (["--minority-counts", "5", "9"], "error: `minority_counts` must be two or"),
        (["--minority-counts", "900", "9"], "error: `minority_counts` must be at most"),
    ],
)
def test_what_cannot_be_run_is_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
