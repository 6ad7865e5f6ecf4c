"""The experiment on training paths, small: its numbers, its verdicts, its files."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import trajectories as script

SMALL = script.Config(
    num_seeds=2,
    num_train=40,
    batch_size=10,
    num_epochs=8,
    epochs_a_record=4,
    width=2,
    num_iterations=25,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_every_optimizer_leaves_a_path(result):
    assert list(result.paths) == list(script.TITLES)
    assert result.num_steps == 32
    assert result.num_params == 64 * 2 + 2 + 2 * 10 + 10
    for paths in result.paths.values():
        assert paths.loss.shape == (2, 9)
        assert np.all(paths.loss[:, -1] < paths.loss[:, 0])
        assert np.all(paths.displacement <= paths.length)
        assert np.all(paths.displacement > 0)
        assert paths.epoch_angles.shape == (2, 7)
        assert paths.gradient_share.shape == (2, 3)
        assert paths.move_share.shape == paths.step_share.shape == (2, 2)
        for share in (paths.gradient_share, paths.move_share, paths.step_share):
            assert np.all((share >= 0) & (share <= 1 + 1e-5))
        np.testing.assert_allclose(paths.overlap[:, -1], 1, rtol=1e-4)
        assert np.all(np.diff(paths.explained, axis=1) <= 0)
        assert paths.plane.shape == (2, 9, 2)
        # Seeds are runs of their own.
        assert paths.length[0] != paths.length[1]
    # Weight decay is all that tells these two apart.
    adam, adamw = result.paths["adam"], result.paths["adamw"]
    assert adam.loss[0, 0] == adamw.loss[0, 0]
    assert adam.length[0] != adamw.length[0]


def test_angles_of_a_square():
    path = np.array([[0, 0], [2, 0], [2, 1], [2, 3], [2, 0]], np.float32)
    np.testing.assert_allclose(script.angles(path), [90, 0, 180])


def test_a_claim_is_the_mean_over_seeds_with_its_error(result):
    claims = script.claims(result)
    share = result.paths["sgd"].gradient_share[:, 1:].mean(1)
    np.testing.assert_allclose(claims[0].measured, share.mean())
    np.testing.assert_allclose(claims[0].error, np.std(share, ddof=1) / np.sqrt(2))
    variance = [claim for claim in claims if "random walk" in claim.claim]
    np.testing.assert_allclose([claim.low for claim in variance], 6 / np.pi**2)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--num-seeds 2 --num-train 40 --batch-size 10 --num-epochs 8"
    flags += f" --epochs-a-record 4 --width 2 --out {out}"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    script.main()
    assert asked[0].width == 2
    said = capsys.readouterr().out
    assert "random walk 60.8" in said
    assert "(1812.04754)" in said
    assert str(out) in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(
        held["paths"]["sam"]["length"], result.paths["sam"].length
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-seeds 1", "`num_seeds` must be at least 2"),
        ("--num-epochs 12", "`num_epochs` must be at least 8 and a multiple"),
        ("--num-epochs 10 --sgd 1e30", "a run diverged at step"),
    ],
)
def test_what_cannot_be_run_is_refused(flags, message, monkeypatch):
    small = "--num-train 40 --batch-size 10 --width 2 --num-iterations 25"
    monkeypatch.setattr(sys, "argv", ["x", *small.split(), *flags.split()])
    with pytest.raises(SystemExit, match=f"error: {message}"):
        script.main()
