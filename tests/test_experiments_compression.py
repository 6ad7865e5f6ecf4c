"""The compression experiment, small: what its numbers are, files, command."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import compression as script
from experiments.compress import page

SMALL = script.Config(
    widths=(12, 10),
    steps=60,
    tune_steps=30,
    level_steps=30,
    target_error=0.5,
    dims=(30,),
    num_levels=(2, 3),
    large_dim=60,
    large_levels=8,
    alphas=(1.6,),
    errors=(0.2, 0.5),
    accuracy=0.3,
    memory_width=0,
    rounds=1,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_networks_get_smaller_and_their_files_are_certified(result):
    arms = result.arms
    plain, small = arms["plain"], arms[page.SMALL]
    num_params = 64 * 12 + 12 + 12 * 10 + 10 + 100 + 10
    assert np.all(plain.size > 4 * num_params)
    assert np.all(small.widths < plain.widths)
    assert np.all(small.size < plain.size / 6)
    for name, arm in arms.items():
        assert arm.accuracy.shape == (2,)
        assert np.all(arm.seconds > 0)
        assert arm.certificate.all() == (name != "plain")
    # Of the files of one subspace the one with the smallest bound is taken.
    chosen = arms["subspace, by bound"]
    assert np.all(chosen.coded[:, 0] == 30)
    assert np.isin(chosen.coded[:, 1], (2, 3)).all()
    assert np.all(chosen.size < 40)
    assert np.all(chosen.bound > 1 - chosen.accuracy - 0.2)


def test_noise_and_pruning_share_their_grid(result):
    assert list(result.noise) == ["none", "1.6"]
    for one in result.noise.values():
        assert one.pruned.shape == one.num_params.shape == (2, 2)
        assert np.all(one.num_params[:, 1] <= one.num_params[:, 0])


def test_claims_are_those_of_the_numbers(result):
    peaks = {"plain": [90.0, 90.0], "seed": [60.0, 60.0], "model_state": [30.0, 30.0]}
    peaks = {kind: np.array(mib) for kind, mib in peaks.items()}
    claims = page.claims(SMALL, result._replace(memory=peaks))
    by_text = {claim.claim: claim for claim in claims}
    found = by_text[f"{page.SMALL}: points of test accuracy lost"]
    arms = result.arms
    lost = 100 * (arms["plain"].accuracy - arms[page.SMALL].accuracy)
    assert found.measured == pytest.approx(np.mean(lost))
    ratios = [c for c in claims if c.claim.endswith("less peak memory")]
    assert [c.measured for c in ratios] == [1.5, 3.0]
    assert "plain 90 ± 0" in page.report(SMALL, result._replace(memory=peaks))
    assert [c.verdict for c in ratios] == ["fails", "holds"]


def test_the_smallest_network_that_is_good_enough():
    noise = script.Noise(
        np.array([1.0, 1.0]),
        np.array([[0.9, 0.5, 0.6], [0.2, 0.1, 0.1]]),
        np.array([[100, 50, 20], [90, 40, 10]]),
    )
    config = dataclasses.replace(SMALL, accuracy=0.55)
    np.testing.assert_array_equal(page.smallest_sizes(config, noise), [20, np.nan])
    arms = {"2": noise, "1.6": noise._replace(num_params=noise.num_params * 2)}
    (claim,) = page.noise_claims(config, arms)
    assert claim.verdict == "not measured"
    assert claim.note == "reached on 1 of 2 seeds"
    config = dataclasses.replace(SMALL, accuracy=0.15)
    (claim,) = page.noise_claims(config, arms)
    assert (claim.measured, claim.verdict) == (0.5, "fails")


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--out", str(out)])
    script.main()
    assert asked[0].quick
    assert "certificate from the length of a file" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["arms"]["plain"]["size"], result.arms["plain"].size)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least 2"),
        (["--model", "rnn"], "error: `model` must be 'mlp' or 'cnn'"),
    ],
)
def test_bad_options_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
