"""The transfer experiment, small: how labels are counted, slopes, its kernel, files."""

import itertools
import json
import math
import sys

import jax
import numpy as np
import pytest

from experiments import representation_transfer as script

SMALL = script.Config(
    dims=(3, 4),
    num_seeds=2,
    threshold=0.5,
    width=16,
    num_tasks=2,
    num_source=256,
    num_steps=100,
    batch_size=64,
    smallest=(4, 16, 16),
    largest=(8, 16, 32),
    num_draws=2,
    num_test=100,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_labels_follow_from_the_curves(result):
    for name in script.METHODS:
        labels, sizes = result.labels[name], script._sizes(SMALL, name)
        assert labels.shape == (2, 2)
        curves = itertools.chain(*result.curves[name])
        for needed, curve in zip(labels.ravel(), curves, strict=True):
            tried, errors = zip(*curve, strict=True)
            assert list(tried) == sizes[: len(tried)]
            assert all(error > 0.5 for error in errors[:-1])
            if math.isinf(needed):
                assert tried[-1] == sizes[-1]
                assert errors[-1] > 0.5
            elif needed > 0:
                assert tried[-2] < needed <= tried[-1]
                assert errors[-1] <= 0.5
            else:
                assert len(tried) == 1
    assert np.all((result.inside > 0) & (result.inside <= 1 + 1e-6))


def test_labels_of_a_power_law_are_found_exactly():
    sizes = [8, 11, 16, 23, 32]
    search = lambda threshold: script.labels_needed(
        lambda n: 3 * n**-1.5, sizes, threshold
    )
    needed, tried = search(3 * 20**-1.5)
    assert abs(needed - 20) < 1e-9
    assert [n for n, _ in tried] == [8, 11, 16, 23]
    assert search(3 * 40**-1.5)[0] == math.inf
    assert search(1.0)[0] == 0


def test_slopes_verdicts_and_bounds():
    dims = (20, 40, 80)
    scatter = np.array([0.9, 0.95, 1.05, 1.1])
    quadratic = np.array(dims)[:, None] ** 2 * scatter
    constant = np.tile(30 * scatter, (3, 1))
    slopes = {
        "pretrained": script.slope(dims, constant),
        "kernel": script.slope(dims, quadratic),
    }
    assert abs(slopes["kernel"].value - 2) < 1e-5
    assert 0 < 2 - slopes["kernel"].low < 0.2
    assert all(line.endswith(": holds") for line in script.verdicts(slopes))
    swapped = dict(zip(slopes, reversed(slopes.values()), strict=True))
    assert all(line.endswith("DOES NOT HOLD") for line in script.verdicts(swapped))
    quadratic[2, 1], constant[0, 0] = math.inf, 0
    bounds = {name: script.slope(dims, a) for name, a in (
        ("pretrained", constant), ("kernel", quadratic)
    )}  # fmt: skip
    assert all(math.isnan(found.value) for found in bounds.values())
    assert all("undecided, as 1 number" in line for line in script.verdicts(bounds))


def test_inputs_of_the_target_have_mean_variance_one():
    covariance = np.asarray(script._covariance(7, 2.0, jax.random.key(0)))
    eigenvalues = np.linalg.eigvalsh(covariance)
    assert abs(np.trace(covariance) - 7) < 1e-5
    assert abs(eigenvalues[-1] / eigenvalues[0] - 4) < 1e-4


def test_readout_learns_what_its_features_hold():
    rng = np.random.default_rng(0)
    a, b = (
        jax.numpy.asarray(rng.standard_normal((n, 3)), jax.numpy.float32)
        for n in (40, 20)
    )
    y = lambda x: x[:, :1] - 2 * x[:, 2:] + 5
    target = script._Task(a, y(a), b, y(b), jax.numpy.eye(3))
    assert script._readout_error(SMALL, a, b, target, 30) < 1e-5


def test_command_line_writes_a_folder(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "run", lambda config: result)
    flags = "--dims 3 4 --num-seeds 2 --threshold 0.5 --smallest 4 16 16 --largest 8 "
    flags += f"16 32 --out {tmp_path / 'new'}"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    script.main()
    said = capsys.readouterr().out
    assert said.startswith(script.report(SMALL, result))
    assert "the interval of the slope exceeds 1" in said
    files = {file.name for file in (tmp_path / "new").iterdir()}
    names = {"config.json", "environment.json", "result.json", "table.txt"}
    assert files == names | {"figure.png"}
    held = json.loads((tmp_path / "new" / "result.json").read_text())
    assert set(held["labels"]) == set(script.METHODS)


def test_unknown_numbers_are_said_as_bounds():
    said = lambda labels: script._said(SMALL, "kernel", labels)
    assert [said(0.0), said(20.4), said(math.inf)] == ["<16", "20", ">32"]


def test_one_dimension_is_refused():
    with pytest.raises(ValueError, match="`dims` must be at least two"):
        script.run(script.Config(dims=(20,)))
