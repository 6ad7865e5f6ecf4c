"""The lazy-to-rich experiment, small: its numbers, its files, its command line."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import lazy_to_rich as script

SMALL = script.Config(
    scales=(0.3, 10.0, 30.0, 100.0),
    diagonal_scales=(5.0, 1e-4),
    trained_scales=(5.0,),
    num_seeds=1,
    width=20,
    dim=5,
    num_train=30,
    num_steps=200,
    num_diagonal_steps=2000,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_movement_falls_as_one_over_the_scale(result):
    assert result.movement.shape == (4, 1)
    assert abs(result.exponent.value + 1) < 0.02
    assert np.all(result.movement[0] > 0.1)
    # The kernel of a smooth network follows its parameters.
    change = result.kernel_change[:, 0]
    np.testing.assert_allclose(change[2] / change[3], 100 / 30, rtol=0.2)
    assert np.all(result.train_loss < 1)
    assert np.all((result.overlap >= 0) & (result.overlap <= 1))


def test_diagonal_networks_go_from_least_l2_to_least_l1(result):
    l1, l2 = result.l1.mean(1), result.l2.mean(1)
    assert np.all(result.l1 > 1 - 1e-9)
    assert np.all(result.l2 > 1 - 1e-9)
    np.testing.assert_allclose(l2[0], 1, rtol=1e-4)
    assert l1[0] > 1.1
    # Seeds whose least l1 norm is another interpolation approach it more slowly.
    np.testing.assert_allclose(l1[1], 1, rtol=0.02)
    assert np.all(result.formula_error < 1e-5)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--scales 0.3 10 30 100 --diagonal-scales 5 1e-4 --trained-scales 5"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].scales == SMALL.scales
    said = capsys.readouterr().out
    assert "movement ~ scale^a: a = -1.0" in said
    assert str(out) in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["movement"], result.movement)
    assert json.loads((out / "config.json").read_text())["scales"] == [0.3, 10, 30, 100]
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_scales_too_few_for_an_exponent_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--scales", "1", "10", "100"])
    with pytest.raises(SystemExit, match="error: `scales` must hold at least three"):
        script.main()
