"""Heavy tails, small: recursions in NumPy, exact indices, files and command line."""

import json
import sys

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import heavy_tails as script
from experiments.tails import networks, page, ranking, regression

SMALL = script.Config(
    dimensions=(1,),
    regression_batch_sizes=(1,),
    rates=(1.0, 1.4, 12.0),
    num_chains=5000,
    num_steps=60,
    num_tails=(50, 200),
    variance_rates=(0.46875,),
    widths=(),  # one weight matrix, one program for each of its measures
    learning_rates=(0.1, 0.3),
    batch_sizes=(10,),
    num_seeds=2,
    num_train=60,
    max_steps=600,
    window=450,
    num_bootstrap=19,
    num_resamples=20,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_a_step_is_that_of_every_chain_on_its_own_batch():
    chains = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    objective, key = regression.fresh_regression(2), jax.random.key(3)
    slope = jax.grad(lambda c: objective(c, (), None, key)[0])(chains)
    inputs_key, targets_key = jax.random.split(jax.random.key(3))
    x = np.asarray(jax.random.normal(inputs_key, (4, 2, 3)))
    y = np.asarray(jax.random.normal(targets_key, (4, 2)))
    for i, chain in enumerate(chains):
        expected = x[i].T @ (x[i] @ chain - y[i]) / 2
        np.testing.assert_allclose(slope[i], expected, rtol=1e-4, atol=1e-5)


def test_tails_are_those_of_theory_where_there_is_a_law(result):
    two, heavy, none = result.chains
    # d = b = 1: the index is 2 at 2/3, and 1.221 at .9333.
    np.testing.assert_allclose(two.learning_rate, 2 / 3)
    np.testing.assert_allclose([two.theory, heavy.theory], [2, 1.221], atol=1e-3)
    for tail in (two, heavy):
        assert np.all(np.abs(tail.hill - tail.theory) < 4 * tail.hill_error + 0.1)
        assert abs(tail.growth) < 0.01
    assert two.log_moment < 1.85
    # The gate: E log |1 - eta a^2| > 0, and chains grow as fast as it says.
    a = np.random.default_rng(0).normal(size=1_000_000)
    growth = np.mean(np.log(np.abs(1 - none.learning_rate * a**2)))
    np.testing.assert_allclose(none.lyapunov, growth, atol=0.01)
    np.testing.assert_allclose(none.growth, none.lyapunov, rtol=0.05)
    assert np.isnan(none.theory)
    assert np.all(np.isnan(none.hill))


def test_the_variance_is_that_of_the_formula(result):
    (one,) = result.variances
    np.testing.assert_allclose([one.formula, one.solved], 0.1875, rtol=1e-9)
    assert abs(one.measured - 0.1875) < 4 * one.error


def test_steps_and_weights_of_a_layer_are_told_apart():
    """Cauchy steps around Gaussian weights: the two indices are 1 and 2."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(64, 10)).astype(np.float32)
    # Shape of the fixture's layer: no program is compiled twice.
    steps = 1e-6 * rng.standard_cauchy((450, 1, 1)) * rng.normal(size=(450, 64, 10))
    kernels = start + np.cumsum(steps, axis=0)
    key = jax.random.key(0)
    found = networks.of_layer(kernels.astype(np.float32), start, key, 19)
    assert 0.7 < found.steps < 1.4
    assert min(found.weights, found.initial) > 1.4
    assert np.isnan(found.spectrum)  # ten eigenvalues are too few


def test_networks_are_fitted_and_ranked(result):
    found = result.networks
    assert found.layers == ("output",)
    np.testing.assert_allclose(found.cells, [[0.1, 10], [0.3, 10]], rtol=1e-6)
    assert found.steps.shape == (2, 2, 1)
    assert np.all(found.reached > 0)
    assert np.all(found.train_error == 0)
    assert np.all((found.test_error > 0.02) & (found.test_error < 0.4))
    ranked = ranking.ranks(SMALL, found)["weights"]
    low, high = found.weights[0, :, 0], found.weights[1, :, 0]
    # Two cells of two networks: four pairs between them, of the five untied ones.
    agreement = np.sum(np.sign(high[:, None] - low[None]))
    np.testing.assert_allclose(ranked.ratio, agreement / np.sqrt(4 * 6), rtol=1e-6)
    np.testing.assert_allclose(ranked.rate, agreement / 4, rtol=1e-6)


def test_claims_come_from_numbers(result):
    named = {claim.claim: claim for claim in page.claims(SMALL, result)}
    gate = "gate: share of regressions whose chains grow just where theory says"
    assert named[gate].measured == 1
    flat = result.networks._replace(p_value=np.full((2, 2, 1), 0.5))
    text = "stable law not rejected: share of layers, steps"
    changed = page.claims(SMALL, result._replace(networks=flat))
    assert next(c for c in changed if c.claim == text).verdict == "holds"
    flat = result.networks._replace(p_value=np.zeros((2, 2, 1)))
    changed = page.claims(SMALL, result._replace(networks=flat))
    assert next(c for c in changed if c.claim == text).verdict == "fails"


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "run", lambda config: result)
    out = tmp_path / "there"
    flags = "--rates 1 1.4 12 --num-tails 50 200 --batch-sizes 10 --num-resamples 20"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert "Kesten: share of 95 % intervals" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["networks"]["steps"], result.networks.steps)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-seeds 1", "`num_seeds` must be at least 2"),
        ("--rates 0.7", "`rates` must hold 1"),
        ("--num-steps 30", "`num_steps` must be a multiple of 20"),
    ],
)
def test_what_cannot_be_run_is_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    with pytest.raises(SystemExit, match=f"error: {message}"):
        script.main()
