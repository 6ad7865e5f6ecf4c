"""Progressive collapse, small: against gradient descent in NumPy; files and command."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import progressive_collapse as script
from experiments.separation import progressive

SMALL = script.Config(
    scales=(0.2, 0.1),
    num_seeds=3,
    dim=12,
    num_per_class=4,
    depth=3,
    noise=0.3,
    num_steps=400,
    relu_width=64,
    relu_epochs=5,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def reference(scale, noise):
    """Factors of ``C`` by the same descent, written out, in double precision."""
    rng, found = np.random.default_rng(0), []
    labels, targets = np.arange(12) % 3, np.eye(3)[np.arange(12) % 3]
    draw = lambda columns: np.linalg.qr(rng.normal(size=(12, 12)))[0][:, :columns]
    for _ in range(20):
        shift = rng.normal(size=(12, 12))
        x = draw(12) + noise * shift / np.linalg.norm(shift)
        weights = [scale * draw(columns) for columns in (12, 12, 12, 3)]
        for _ in range(400):
            layers = [x]
            for weight in weights:
                layers.append(layers[-1] @ weight)
            gradient = 2 * 100 * (100 * layers.pop() - targets) / 12
            for i in (3, 2, 1, 0):
                step = layers[i].T @ gradient
                gradient = gradient @ weights[i].T
                weights[i] = weights[i] - 0.1 * step
        ratios, layers = [], [x]
        for weight in weights[:3]:
            layers.append(layers[-1] @ weight)
        for h in layers:
            means = np.stack([h[labels == c].mean(0) for c in range(3)])
            between = np.sum((means - means.mean(0)) ** 2) / 3
            ratios.append(np.sum((h - means[labels]) ** 2) / 12 / between)
        found.append(np.divide(ratios[1:], ratios[:-1]))
    return np.array(found)


def test_factors_are_those_of_plain_gradient_descent(result):
    for layers, noise in ((result.exact[0.2], 0.0), (result.noisy, 0.3)):
        expected = reference(0.2, noise)
        found = progressive.factors(layers)
        assert found.shape == (3, 3)
        # Both are samples of the same distribution.
        gap = np.abs(found.mean(0) - expected.mean(0))
        assert np.all(gap < 4 * expected.std(0, ddof=1) / np.sqrt(3))
        assert np.all(layers.loss < 1e-4)


def test_levels_and_theory_are_exact_without_noise(result):
    for scale, layers in result.exact.items():
        np.testing.assert_allclose(layers.trace_ratio[:, 0], 3 * 3 / 2, rtol=1e-5)
        theory = scale**2 / (np.sqrt(4) / 100) ** (2 / 4)
        np.testing.assert_allclose(layers.theory, theory, rtol=1e-6)
        np.testing.assert_allclose(layers.angular_separation[:, 0], 1, atol=1e-5)
    far, near = (
        np.abs(progressive.factors(layers) / layers.theory - 1)
        for layers in result.exact.values()
    )
    assert near.max() < 0.1
    assert near.mean() < far.mean()
    assert np.isnan(result.relu.theory)
    assert result.relu.trace_ratio.shape == (3, 4)
    named = {claim.claim: claim for claim in script.claims(SMALL, result)}
    exact = named["orthonormal inputs: C of the input is (n-1)K/(K-1), to rounding"]
    assert exact.verdict == "holds"
    mean = progressive.factors(result.exact[0.2]).mean() / result.exact[0.2].theory
    claim = named["xi = 0.2: factor over theory (2311.02960)"]
    np.testing.assert_allclose(claim.measured, mean, rtol=1e-6)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--scales .2 .1 --depth 3 --num-per-class 4 --num-seeds 3"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].scales == (0.2, 0.1)
    said = capsys.readouterr().out
    assert "xi = 0.2: factor over theory" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["relu"]["trace_ratio"], result.relu.trace_ratio)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_more_examples_than_dimensions_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--dim", "20"])
    with pytest.raises(SystemExit, match="error: `dim` must hold 30 orthogonal"):
        script.main()
