"""The spike of one step, small: against the gradient written out; files and command."""

import json
import sys

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import one_step_spike as script
from experiments.spike import page, theory

SMALL = script.Config(
    dim=40,
    width=80,
    num_train=1200,
    num_test=400,
    strengths=(0.0, 8.0),
    large=100.0,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_a_step_is_the_gradient_step():
    rng = np.random.default_rng(0)
    x, w, a = (rng.normal(size=s) for s in ((30, 5), (5, 7), (7,)))
    y = rng.normal(size=30)
    slope = jax.grad(lambda w: script.objective(w, a, (x, y), None)[0])(w)
    hidden = np.tanh(x @ w)
    residual = hidden @ a / 7 - y
    expected = x.T @ (residual[:, None] * a / 7 * (1 - hidden**2)) / 30
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_the_rate_makes_the_spike_that_it_is_said_to_make():
    # By plain Monte Carlo: the squared norm of the step over that of a row of noise.
    rng = np.random.default_rng(1)
    teacher = np.eye(SMALL.dim)[0]
    squares = []
    for _ in range(20):
        x = rng.normal(size=(SMALL.num_train, SMALL.dim))
        z = x @ teacher
        y = 0.8 * z + 0.6 * (z**3 - 3 * z) / np.sqrt(6)
        direction = x.T @ y / SMALL.num_train
        mean_slope = np.mean(1 - np.tanh(rng.normal(size=100_000)) ** 2)
        step = script._rate(SMALL, 4.0) / SMALL.width * mean_slope * direction
        squares.append(SMALL.dim * np.sum(step**2))
    spike = 4 * np.sqrt(SMALL.dim / SMALL.width)
    error = np.std(squares, ddof=1) / 20**0.5
    assert abs(np.mean(squares) - spike) < 4 * error + 0.01 * spike


def test_spectra_with_and_without_a_spike(result):
    found = result.measured["linear and cubic"]
    assert found.eigenvalues.shape == (2, 3, SMALL.dim)
    # Traces: of the noise, and of the noise with one spike.
    traces = found.eigenvalues.sum(-1)
    np.testing.assert_allclose(traces[:, 0], SMALL.dim, rtol=0.1)
    assert np.all(found.num_outliers[:, 0] == 0)
    assert np.all(found.num_outliers[:, 1] == 1)
    assert np.all(found.overlap[:, 1] > 0.6)
    assert np.all(result.measured["quadratic"].overlap[:, 1] < 0.3)
    ratio = np.sqrt(0.5)
    spike = 8 * ratio
    np.testing.assert_allclose(
        result.location[1], (1 + spike) * (1 + 0.5 / spike), rtol=1e-6
    )
    signal = theory.signal(SMALL)
    cosine = (1 - 0.5 / spike**2) / (1 + 0.5 / spike) * 0.64 / signal
    np.testing.assert_allclose(result.overlap[1], cosine, rtol=1e-5)


def test_claims_count_what_was_measured(result):
    named = {claim.claim: claim for claim in page.claims(SMALL, result)}
    assert named["below the threshold, outliers at most"].verdict == "holds"
    place = result.measured["linear and cubic"].eigenvalues[:, 1, 0].mean()
    claim = next(c for name, c in named.items() if "place over predicted" in name)
    np.testing.assert_allclose(
        claim.measured, abs(place / result.location[1] - 1), rtol=1e-5
    )


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--dim 40 --width 80 --strengths 0 8"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].strengths == (0.0, 8.0)
    assert "below the threshold" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(
        held["measured"]["quadratic"]["overlap"], result.measured["quadratic"].overlap
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_one_seed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-seeds", "1"])
    with pytest.raises(SystemExit, match="error: `num_seeds` must be at least 2"):
        script.main()
