"""Neural collapse under several losses, small: orderings, oracles, the command line."""

import json
import sys
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import log_softmax

from experiments import neural_collapse as script
from experiments.collapse import curves, losses, neural_page
from jaxtheory.collapse import theory

SMALL = script.Config(
    losses=("cross-entropy",),
    widths=(32,),
    examples_per_class=20,
    num_test=200,  # as many as for training: one trace of the statistics of both
    num_epochs=200,
    batch_size=50,
    num_records=4,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_features_collapse_and_more_on_training_images(result):
    assert result.steps.tolist() == [0, 200, 400, 600, 800]
    for found in result.curves.values():
        for name in curves.STATISTICS:
            assert found.train[name].shape == (2, 5)
            assert np.all(found.train[name][:, -1] < found.train[name][:, 0])
        assert np.all(found.train["nc1"][:, -1] < 0.2)
        assert np.all(found.test["nc1"][:, -1] > 2 * found.train["nc1"][:, -1])
        # Scatter around other means than one's own is never less.
        assert np.all(found.across >= found.test["nc1"] * 0.5)
        assert np.all(found.error[:, -1] == 0)
        np.testing.assert_allclose(np.linalg.norm(found.gram, axis=(2, 3)), 1, 1e-5)
        # Of balanced classes the distance of NC2 is that of this Gram matrix.
        frame = (np.eye(10) - 0.1) / 3
        distance = np.linalg.norm(found.gram - frame, axis=(2, 3))
        np.testing.assert_allclose(distance, found.train["nc2"], rtol=1e-3)


def test_networks_are_near_the_optimum_and_never_below(result):
    optimum = result.optima["cross-entropy"]
    assert np.all(optimum.excess > 0)
    assert np.all(optimum.excess < 1)
    np.testing.assert_allclose(optimum.margin, optimum.predicted_margin, rtol=0.3)
    np.testing.assert_allclose(optimum.mean_scale, 1, atol=0.2)
    np.testing.assert_allclose(optimum.classifier_scale, 1, atol=0.2)
    assert np.all(np.abs(optimum.gap) < 1e-12)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_are_those_that_theory_knows(name):
    loss_fn, known = losses.LOSSES[name]
    outputs = np.random.default_rng(0).normal(size=(4, 10))
    labels = np.array([3, 0, 9, 3])
    targets, log_p = np.eye(10)[labels], log_softmax(outputs, axis=1)
    if name == "squared error":
        expected = np.sum((outputs - targets) ** 2, axis=1) / 2
    else:
        smoothing = known.get("label_smoothing", 0)
        targets = (1 - smoothing) * targets + smoothing / 10
        factor = (1 - np.exp(log_p)) ** known.get("focusing", 0)
        expected = -np.sum(targets * factor * log_p, axis=1)
    found = jax.jit(loss_fn)(outputs, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    decays: Any = {"weight_decay": 5e-3, "feature_decay": 1e-4, "bias_decay": 0.0}
    predicted = theory.predicted_geometry(class_counts=[100] * 10, **known, **decays)
    assert predicted.method == "closed_form"
    np.testing.assert_allclose(predicted.mean_cosines[0, 1], -1 / 9, rtol=1e-9)


def with_second_loss(result):
    """The same curves again under another name, a little worse and farther."""
    first = result.curves["cross-entropy"]
    moved = first.gram + np.array([3, 2, 1, 0.5, 0.25])[:, None, None] * np.eye(10)
    other = first._replace(test_error=first.test_error + 0.005, gram=moved)
    return result._replace(curves={"cross-entropy": first, "focal": other})


def test_claims_follow_from_the_curves(result):
    first = result.curves["cross-entropy"]
    claims = neural_page.claims(with_second_loss(result))
    log_falls = [
        np.log10(first.train[name][:, -1] / first.train[name][:, 0]).mean()
        for name in curves.FALLING
    ]
    np.testing.assert_allclose(claims[0].measured, max(log_falls), rtol=1e-6)
    assert claims[0].verdict == "holds"
    nearer, error = claims[-2:]
    np.testing.assert_allclose(nearer.measured, np.log10(0.25 / 2), rtol=1e-5)
    np.testing.assert_allclose(error.measured, 0.005, rtol=1e-4)
    assert error.verdict == "holds"
    # Errors until the end leave no terminal phase, and nothing to say of it.
    never = first._replace(terminal=np.array([1.0, np.nan]))
    claim = neural_page.least_fall("terminal", never, never.terminal)
    assert claim.verdict == "not measured"


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = ["--widths", "32", "--losses", "cross-entropy"]
    monkeypatch.setattr(sys, "argv", ["x", *flags, "--out", str(out)])
    script.main()
    assert asked[0].losses == SMALL.losses
    said = capsys.readouterr().out
    assert "cross-entropy: test images collapse less" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(
        held["optima"]["cross-entropy"]["means"],
        [*result.optima["cross-entropy"].means],
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least 2"),
        (["--losses", "focal"], "error: `losses` must begin with 'cross-entropy'"),
        (["--examples-per-class", "900"], "error: `examples_per_class` must be at"),
    ],
)
def test_what_cannot_be_run_is_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
