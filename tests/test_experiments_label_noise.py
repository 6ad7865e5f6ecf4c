"""Label noise, small: against closed forms and orderings; files and command line."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import label_noise as script
from experiments.drift import digits, page, theory

SMALL = script.Config(
    num_runs=4096,
    strengths=((0.2, 0.1), (0.1, 0.1)),
    time=0.5,
    num_points=4,
    dim=2,
    width=4,
    num_repeats=8,
    num_records=4,
    num_seeds=2,
    num_train=20,
    digits_width=16,
    num_networks=2,
    start_loss=0.05,
    final_loss=0.02,
    max_steps=3000,
    num_steps=2000,
    noise=1.0,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_two_parameters_have_the_exact_drift(result):
    full, leading = result.predicted
    assert round(full, 4) == 1.6583
    assert round(leading, 4) == 1.6894
    error = result.gaps.std(ddof=1) / 64
    assert abs(result.gaps.mean() - full) < 4 * error + 0.0005
    assert abs(result.gaps.mean() - leading) > 10 * error


def test_the_regulariser_falls_as_predicted(result):
    for drift in result.drifts:
        assert drift.trace.shape == (2, 5)
        np.testing.assert_allclose(drift.time, np.linspace(0, 0.5, 5), rtol=1e-2)
        assert np.all(np.diff(drift.predicted, axis=1) > 0)
        # Seeds begin at the same minima whatever the noise.
        np.testing.assert_allclose(
            drift.trace[:, 0], result.drifts[0].trace[:, 0], rtol=1e-5
        )
        fit = [
            np.linalg.lstsq(p[:, None], d)[0]
            for p, d in zip(drift.predicted, drift.decrease, strict=True)
        ]
        np.testing.assert_allclose(page.slope(drift), np.concatenate(fit), rtol=1e-6)
        np.testing.assert_allclose(page.slope(drift), 1, atol=0.15)
        # The factor 1 / (1 - eta h / 2) that the leading order lacks.
        assert np.all(drift.leading[:, -1] < drift.predicted[:, -1])


def test_a_minimum_is_where_descent_ends():
    # x w1 w2 from off the hyperbola: gradient flow keeps w1^2 - w2^2.
    model = lambda w, x: x * w[0] * w[1]
    start = jnp.array([1.5, 0.9])
    x = jnp.ones(1)
    end = theory.minimum(model, start, x, x, 1e-2)
    np.testing.assert_allclose(end[0] * end[1], 1, rtol=1e-6)
    gap = start[0] ** 2 - start[1] ** 2
    np.testing.assert_allclose(end[0] ** 2 - end[1] ** 2, gap, rtol=1e-2)


def test_digits_become_flat_under_noise_alone(result):
    noise, batches, descent = (
        result.arms[name] for name in (digits.NOISE, digits.BATCHES, digits.DESCENT)
    )
    # All go on from the same networks.
    np.testing.assert_allclose(noise.trace[0], descent.trace[0], rtol=1e-6)
    assert np.all(noise.loss[0] <= SMALL.start_loss)
    assert np.all(noise.trace[-1] < 0.95 * noise.trace[0])
    assert np.all(noise.trace[-1] < batches.trace[-1])
    assert np.all(noise.end.reached)
    assert np.all(noise.end.trace < descent.end.trace)
    assert np.all(noise.end.loss <= SMALL.final_loss)
    assert np.all(noise.loss[-1] < noise.noisy_loss[-1])


def test_the_model_state_is_the_running_mean():
    objective = digits.Averaged(lambda p, state, batch, key: (jnp.sum(p), state), 0.9)
    _, state = objective(jnp.ones(2), jnp.zeros(2), None, None)
    np.testing.assert_allclose(state, 0.1, rtol=1e-5)
    slope = jax.grad(lambda p: objective(p, jnp.zeros(2), None, None)[0])(jnp.ones(2))
    np.testing.assert_allclose(slope, 1)


def test_claims_count_what_was_measured(result):
    claims = page.claims(SMALL, result)
    np.testing.assert_allclose(claims[0].measured, result.gaps.mean())
    named = {claim.claim: claim for claim in claims}
    ends = [result.arms[name].end for name in (digits.NOISE, digits.DESCENT)]
    flatter = next(c for name, c in named.items() if "flatter than descent" in name)
    ratio = ends[0].trace / ends[1].trace
    np.testing.assert_allclose(flatter.measured, ratio.mean(), rtol=1e-5)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    monkeypatch.setattr(sys, "argv", ["x", "--noise", "0.4", "--out", str(out)])
    script.main()
    assert asked[0].noise == 0.4
    assert "flatter than descent" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["predicted"], result.predicted)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least 2"),
        (["--num-steps", "30"], "error: `num_steps` must be a multiple of 20"),
    ],
)
def test_bad_options_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
