"""Penalties written out, small: each against its definition; files and command."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matplotlib.image import imread

from experiments import better_losses as script
from experiments.losses import arms, page

SMALL = script.Config(
    widths=(4,),
    num_train=60,
    num_steps=40,
    num_tuning=1,
    num_seeds=2,
    arms=("plain", "norm", "label noise"),
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


@pytest.fixture(scope="module")
def problem():
    """A small network on a few points, its loss as a function of one vector."""
    model = arms.make_model((4,))
    x = jax.random.normal(jax.random.key(0), (12, 3))
    y = jnp.arange(12) % 4
    params = model.init(jax.random.key(1), x[:1])
    mean = lambda p: jnp.mean(arms.cross_entropy(model.apply(p, x), y))
    return model, x, y, params, mean


def test_penalties_are_what_they_are_called(problem):
    model, x, y, params, mean = problem
    flat, unravel = ravel_pytree(params)
    arguments = (mean, model, params, x, y)
    gradient = np.asarray(jax.grad(lambda v: mean(unravel(v)))(flat))
    found = arms.gradient_norm(*arguments, None)
    np.testing.assert_allclose(found, np.sum(gradient**2) / 4, rtol=1e-4)
    found = arms.norm(*arguments, None)
    np.testing.assert_allclose(found, np.sum(np.asarray(flat) ** 2) / 2, rtol=1e-5)
    hessian = np.asarray(jax.hessian(lambda v: mean(unravel(v)))(flat))
    keys = jax.random.split(jax.random.key(2), 500)
    draws = jax.vmap(lambda key: arms.trace_of_hessian(*arguments, key))(keys)
    error = np.std(draws, ddof=1) / 500**0.5
    assert abs(np.mean(draws) - np.trace(hessian)) < 4 * error
    hidden = np.maximum(np.asarray(x @ params["params"]["layer_1"]["kernel"]), 0)
    means = np.stack([hidden[y == c].mean(0) for c in range(4)])
    within = np.sum((hidden - means[y]) ** 2) / 12
    between = np.sum((means - means.mean(0)) ** 2) / 4
    found = arms.variability(*arguments, None)
    np.testing.assert_allclose(found, within / between, rtol=1e-4)


def test_every_arm_has_as_many_candidates():
    assert {len(arm.settings) for arm in arms.ARMS.values()} == {8}


def test_a_penalty_is_added_with_the_strength_of_its_run(problem):
    _, x, y, *_ = problem
    settings = (arms.Setting(0.2, None, 0.0), arms.Setting(0.2, None, 0.3))
    params = arms.train(arms.ARMS["norm"], settings, (4,), x, y, 1, jax.random.key(3))
    model = arms.make_model((4,))
    start = model.init(jax.random.fold_in(jax.random.key(3), 0), x[:1])
    # One step of descent on the norm takes off its strength times rate of the weights.
    gap = jax.tree.map(lambda a: a[0] - a[1], params)
    expected = jax.tree.map(lambda a: 0.2 * 0.3 * a, start)
    np.testing.assert_allclose(
        ravel_pytree(gap)[0], ravel_pytree(expected)[0], atol=1e-6
    )


def test_settings_are_chosen_by_validation(result):
    for name in SMALL.arms:
        found = result.found[name]
        assert found.validation.shape == (1, 8)
        assert found.chosen == np.argmin(found.validation[0])
        assert found.test.shape == found.loss.shape == (2,)
        assert np.all((found.test > 0) & (found.test < 1))
    gap = 100 * (result.found["norm"].test - result.found["plain"].test)
    claim = page.claims(SMALL, result)[0]
    np.testing.assert_allclose(claim.measured, gap.mean(), rtol=1e-5)
    assert claim.verdict in {"holds", "fails", "undecided"}


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    monkeypatch.setattr(sys, "argv", ["x", "--num-steps", "40", "--out", str(out)])
    script.main()
    assert asked[0].num_steps == 40
    assert "label noise (labels flipped anew) helps" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(
        held["found"]["norm"]["test"], result.found["norm"].test, rtol=1e-6
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least 2"),
        (["--arms", "norm"], "error: `arms` must be of .* with 'plain' among them"),
    ],
)
def test_bad_options_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
