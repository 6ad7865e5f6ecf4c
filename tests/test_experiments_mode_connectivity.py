"""Paths between networks, small: barriers that must be, and the command line."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import mode_connectivity as script

SMALL = script.Config(
    widths=(16,),
    channels=(),
    num_pairs=2,
    num_train=200,
    num_steps=150,
    num_curve_steps=150,
    batch_size=50,
    learning_rate=1e-2,
    num_points=7,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_barriers_are_those_of_the_losses(result):
    assert result.names == ("MLP 16",)
    shares = np.linspace(0, 1, 7)
    for path in script.PATHS:
        losses = result.losses[path]
        assert losses.shape == (1, 2, 7)
        line = (1 - shares) * losses[..., :1] + shares * losses[..., -1:]
        barrier = np.max(losses - line, axis=-1)
        np.testing.assert_allclose(result.barriers[path], barrier, atol=1e-5)
        ends = (losses[..., 0] + losses[..., -1]) / 2
        np.testing.assert_allclose(ends, result.end_loss, rtol=1e-4, atol=1e-6)


def test_paths_around_the_barrier_are_lower(result):
    straight = result.barriers["straight"]
    assert np.all(straight > 0.1)
    assert np.all(result.barriers["matched"].mean(1) < straight.mean(1))
    assert np.all(result.barriers["curve"].mean(1) < straight.mean(1) / 2)
    assert np.all(result.error_barriers["straight"] > 0.05)
    assert np.all(result.distance < 1)
    assert np.all(result.end_error < 0.3)


def test_claims_follow_from_the_barriers(result):
    widths = (8, 16, 32)
    falling = np.array([[2.0, 2.2], [1.0, 1.1], [0.5, 0.55]])
    high = {path: falling for path in script.PATHS}
    power = script._exponents(widths, high)["matched"]
    assert abs(power.value + 1) < 1e-5
    assert script._exponents((8, 32), high) == {}
    named = script.claims(SMALL, result)
    lower = [claim for claim in named if "matching lowers" in claim.claim]
    ratios = result.barriers["matched"] / result.barriers["straight"]
    np.testing.assert_allclose([c.measured for c in lower], ratios.mean(1))
    assert [claim.high for claim in lower] == [1.0]


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--widths 16 --num-pairs 2 --channels"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].widths == (16,)
    said = capsys.readouterr().out
    assert "MLP 16: matched, no rise of the test error" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["barriers"]["curve"], result.barriers["curve"])
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_one_pair_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-pairs", "1"])
    with pytest.raises(SystemExit, match="error: there must be an architecture and"):
        script.main()
