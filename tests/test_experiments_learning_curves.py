"""The learning-curve experiment, small: conservation, kernels, files, command line."""

import json
import sys

import numpy as np
import pytest

from experiments import learning_curves as script
from experiments.relu_ntk import relu_ntk

SMALL = script.Config(
    circle_points=6,
    circle_examples=(2, 5),
    cube_dim=4,
    cube_degrees=(1, 2),
    cube_examples=(6,),
    num_features=60,
    gaussian_examples=(20,),
    ridges=(0.0, 0.1),
    num_trials=12,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_learnabilities_are_conserved_in_every_draw(result):
    assert result.conservation < 1e-13
    assert "holds" in result.verdicts[0]
    multiplicities = [1, 2, 2, 1]
    for n in SMALL.circle_examples:
        rows = [
            row for row in result.rows if (row.world, row.num_examples) == ("circle", n)
        ]
        for column in ("theory", "experiment"):
            learnt = [getattr(row, column) for row in rows]
            assert abs(np.dot(learnt, multiplicities) - n) < 1e-12
            assert np.all((np.array(learnt) > 0) & (np.array(learnt) < 1))


def test_every_world_ridge_and_target_has_its_row(result):
    rows = [row for row in result.rows if row.world != "circle"]
    found = [(r.world, r.target, r.quantity, r.num_examples, r.ridge) for r in rows]
    cube = [
        ("cube", f"k = {k}", "test error", 6, ridge)
        for ridge in SMALL.ridges
        for k in SMALL.cube_degrees
    ]
    gaussian = [
        ("gaussian", "1 / i", quantity, 20, ridge)
        for ridge in SMALL.ridges
        for quantity in ("test error", "GCV", "leave-one-out")
    ]
    assert found == cube + gaussian
    assert all(row.standard_error > 0 for row in rows)
    # Twelve draws in small worlds: far enough only to tell a wrong factor.
    assert all(0.5 < row.ratio < 2 for row in rows)


def test_kernel_has_its_published_values():
    cosine = np.array([-1, -0.5, 0, 0.5, 1])
    expected = {
        1: [0, -0.0576688856, 0.3183098862, 0.9423311144, 2],
        3: [0.6857086363, 0.7422493226, 1.0603881068, 1.7378446792, 4],
    }
    for num_layers, values in expected.items():
        # Those have a last layer of variance 1.
        found = relu_ntk(cosine, np.ones(1), np.ones(1), num_layers=num_layers)
        np.testing.assert_allclose(found / 2, values, atol=1e-9)
    # Homogeneous in the length of each input.
    scaled = relu_ntk(6 * cosine, 4 * np.ones(1), 9 * np.ones(1), num_layers=3)
    np.testing.assert_allclose(scaled / 12, expected[3], atol=1e-9)


def test_quick_is_a_smaller_run_of_the_same():
    quick = script.settings(script.Config(quick=True))
    assert (quick.num_trials, quick.ridges) == (60, (0.0, 0.1))
    assert set(quick.cube_examples) < set(script.Config().cube_examples)
    assert script.settings(quick) == quick


def test_command_line_writes_a_folder(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "run", lambda config: result)
    flags = "--circle-points 6 --circle-examples 2 5 --cube-dim 4 --cube-degrees 1 2 "
    flags += "--cube-examples 6 --num-features 60 --gaussian-examples 10 20 --ridges 0 "
    flags += f"0.1 --out {tmp_path / 'new'}"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    script.main()
    said = capsys.readouterr().out
    assert said.startswith(script.report(result))
    assert "circle: learnabilities sum to n" in said
    files = {file.name for file in (tmp_path / "new").iterdir()}
    names = {"config.json", "environment.json", "result.json", "table.txt"}
    assert files == names | {"figure.png"}
    held = json.loads((tmp_path / "new" / "result.json").read_text())
    assert held["rows"][0]["theory"] == result.rows[0].theory
    assert json.loads((tmp_path / "new" / "config.json").read_text())["cube_dim"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 1}, "`num_trials` must be at least 2"),
        ({"cube_examples": (16,)}, "must be below the 16 points there are"),
    ],
)
def test_what_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        script.run(SMALL.__class__(**{**SMALL.__dict__, **changes}))
