"""The edge-of-stability experiment, small: its runs, its verdicts, its files."""

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import edge_of_stability as script

SMALL = script.Config(
    gradient_descent=(),
    heavy_ball=(),
    nesterov=(),
    adam=(1e-2,),
    rmsprop=(),
    sam=(0.1,),
    sgd=(0.2,),
    num_steps=40,
    num_records=4,
    width=6,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def runs():
    return script.run(SMALL)


def test_each_optimizer_is_held_against_its_own_edge(runs):
    adam, sam, sgd = runs
    assert [run.name for run in runs] == ["adam", "sam", "sgd"]
    for run in runs:
        np.testing.assert_array_equal(run.steps, [0, 10, 20, 30, 40])
        assert run.ratio.shape == (2, 5)
        assert run.loss.shape == (2, 4)
        assert run.diverged == 0
        assert np.all(np.isfinite(run.loss))
        assert run.loss[0, 0] != run.loss[1, 0]  # seeds are runs of their own
    for run in (adam, sam):
        assert np.all(run.loss[:, -1] < run.loss[:, 0])
    np.testing.assert_allclose(adam.threshold[:, 1:], 38 / 1e-2, rtol=1e-5)
    assert np.all(np.isnan(adam.ratio[:, 0]))  # no moments yet
    np.testing.assert_allclose(
        adam.ratio[:, 1:], (adam.sharpness / adam.threshold)[:, 1:], rtol=1e-5
    )
    # Below that of gradient descent, and at every gradient another.
    assert np.all(sam.threshold < 2 / 0.1)
    assert np.all(np.ptp(sam.threshold, axis=1) > 0.01)
    np.testing.assert_allclose(sgd.threshold, 2 / 0.2, rtol=1e-6)
    # Batch sharpness is the ratio there, not the largest eigenvalue.
    assert np.all(np.abs(sgd.ratio - sgd.sharpness / sgd.threshold) > 1e-4)


def at(name, *ratios, threshold: Any = 20.0, **changes):
    """A run at rate .1, one list of ratios a seed."""
    ratio = np.array(ratios)
    edge = np.broadcast_to(threshold, ratio.shape)
    return script.Run(
        name=name,
        learning_rate=0.1,
        steps=np.arange(ratio.shape[1]),
        sharpness=ratio * edge,
        threshold=edge,
        ratio=ratio,
        residual=np.zeros(ratio.shape),
        loss=np.ones((len(ratio), ratio.shape[1] - 1)),
        diverged=0,
    )._replace(**changes)


LOW, HIGH = [0.5, 0.9, 1.0, 1.0, 1.2], [0.5, 0.9, 1.0, 1.02, 1.04]
DIVERGED = [0.5, 0.9, math.nan, math.nan, math.nan]


@pytest.mark.parametrize(
    ("run", "measured", "error", "verdict"),
    [
        (at("gradient_descent", LOW, HIGH), 1.01, 0.01, "holds"),
        (at("gradient_descent", HIGH, [0.5, 0.9, 1.1, 1.1, 1.1]), 1.06, 0.04, "und"),
        (at("gradient_descent", *[[0.5, 0.9, 1.1, 1.1, 1.1]] * 2), 1.1, 0, "fails"),
        (at("gradient_descent", HIGH, DIVERGED), math.nan, math.nan, "not measured"),
        (at("adam", [math.nan, 0.5, 1.0, 0.98, 0.5], LOW), 0.99, 0.01, "holds"),
        # Nesterov's has to reach the edge, not to stay there.
        (at("nesterov", *[[0.5, 1.2, 0.8, 0.8, 0.8]] * 2), 1.2, 0, "holds"),
        (at("nesterov", *[[0.5, 0.9, 0.8, 0.8, 0.8]] * 2), 0.9, 0, "fails"),
        (at("nesterov", LOW, DIVERGED), math.nan, math.nan, "not measured"),
        (at("sgd", *[[0.5, 0.6, 0.8, 0.8, 0.8]] * 2), 0.8, 0, "holds"),
    ],
)
def test_verdicts_follow_the_second_half(run, measured, error, verdict):
    (claim,) = script.claims([run])
    np.testing.assert_allclose(claim.measured, measured)
    np.testing.assert_allclose(claim.error, error, atol=1e-12)
    assert claim.verdict.startswith(verdict)


def test_heavy_ball_is_held_to_reaching_its_edge_and_to_staying():
    late, largest = script.claims([at("heavy_ball", *[[0.5, 1.1, 0.7, 0.7, 0.7]] * 2)])
    assert (late.verdict, largest.verdict) == ("fails", "holds")
    np.testing.assert_allclose([late.measured, largest.measured], [0.7, 1.1])


def test_sam_must_be_far_below_the_edge_of_gradient_descent_too():
    ones = [[0.5, 1, 1, 1, 1]] * 2
    threshold = np.array([8.0, 8.0, 6.0, 6.0, 6.0])
    own, raw = script.claims([at("sam", *ones, threshold=threshold)])
    assert own.verdict == raw.verdict == "holds"
    np.testing.assert_allclose(raw.measured, 6 * 0.1 / 2)
    _, raw = script.claims([at("sam", *ones)])
    assert raw.verdict == "fails"


def test_a_seed_that_diverged_is_said_to():
    said = script.report(SMALL, [at("heavy_ball", LOW, DIVERGED, diverged=1)])
    assert said.count("not measured") == 2
    assert "heavy ball at η = 0.1: 1 of 2 diverged." in said


def test_command_line_writes_numbers_and_figure(runs, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or runs)
    out = tmp_path / "there"
    flags = f"--adam 1e-2 --sam .1 --sgd .2 --num-steps 40 --out {out}"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    script.main()
    assert asked[0].adam == SMALL.adam
    said = capsys.readouterr().out
    assert said.splitlines()[0].split(" | ")[-1] == "verdict"
    assert "38/η, 2207.14484" in said
    assert str(out) in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held[1]["sharpness"], runs[1].sharpness)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_records_that_do_not_divide_the_steps_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-steps", "10", "--num-records", "3"])
    with pytest.raises(SystemExit, match="error: `num_records` must be at least 2"):
        script.main()
