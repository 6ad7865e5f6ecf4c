"""Local elasticity, small: similarities against Jacobians; files and command line."""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import local_elasticity as script
from experiments.elasticity import networks, page

SMALL = script.Config(
    num_seeds=2,
    width=64,
    num_torus=24,
    torus_steps=100,
    torus_rate=1e-6,
    digits_width=64,
    num_digits=24,
    digits_steps=100,
    pairs=((5, 8),),
    impacts=((1.5, 1.5), (2.0, 1.0)),
    num_features=300,
    duration=8.0,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_points_lie_on_a_torus():
    x, y, distance = networks.torus(24, jax.random.key(0))
    around = np.hypot(*np.asarray(x[:, :2]).T)
    np.testing.assert_allclose((around - 8) ** 2 + x[:, 2] ** 2, 1, rtol=1e-4)
    angle = np.arctan2(x[:, 1], x[:, 0])
    # The second curve is opposite the first on the tube.
    sign = np.where(np.asarray(y) == 1, 1, -1)
    np.testing.assert_allclose(x[:, 2], sign * np.cos(4 * angle), atol=1e-4)
    chord = np.abs(np.exp(1j * angle)[:, None] - np.exp(1j * angle)[None])
    np.testing.assert_allclose(2 * np.sin(distance / 2), chord, atol=1e-5)


def test_steps_change_what_the_jacobian_says():
    x, y, _ = networks.torus(24, jax.random.key(0))
    network = networks._model("ReLU", 64, 3)
    init, apply_fn, _ = network
    key = jax.random.key(1)
    both, loss = networks._elastic(x, y, key, network, 1e-12, 100)
    params: Any = init(jax.random.key(1), x[:1])
    leaves = jax.tree.leaves(jax.jacobian(apply_fn)(params, x))
    flat = np.concatenate([np.reshape(leaf, (24, -1)) for leaf in leaves], axis=1)
    gram = flat @ flat.T
    expected = np.abs(gram) / np.diag(gram)[:, None]
    np.testing.assert_allclose(both[0].similarity, expected, rtol=1e-3)
    np.testing.assert_allclose(both[1].similarity, expected, atol=0.02)
    error = np.mean((np.asarray(apply_fn(params, x))[:, 0] - np.asarray(y)) ** 2)
    np.testing.assert_allclose(loss, error, rtol=1e-4)


def test_relu_is_elastic_and_the_criterion_decides(result):
    relu, linear = (result.torus[kind] for kind in networks.KINDS)
    assert np.all(relu.kernel < -0.9)
    assert np.all(relu.kernel < linear.kernel)
    np.testing.assert_allclose(relu.step, relu.kernel, rtol=0.01)
    assert np.all(result.digits[(5, 8)]["ReLU"].kernel > 1)
    at, above = (result.paths[impacts][0] for impacts in SMALL.impacts)
    assert np.all(at[:, -1] < at[:, 10])
    assert np.all(above[:, -1] > above[:, 10])
    named = page.claims(SMALL, result)
    measured = [c.measured for c in named if "ReLU: similarity" in c.claim]
    np.testing.assert_allclose(measured, relu.kernel.mean())


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--pairs 5 8 --impacts 1.5 1.5 2 1 --width 64"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].pairs == ((5, 8),)
    assert asked[0].impacts == SMALL.impacts
    said = capsys.readouterr().out
    assert "digits 5, 8: index of ReLU above 1" in said
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(
        held["torus"]["ReLU"]["kernel"], result.torus["ReLU"].kernel
    )
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


def test_one_seed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-seeds", "1"])
    with pytest.raises(SystemExit, match="error: `num_seeds` must be at least 2"):
        script.main()


def test_similarities_on_the_other_curve_do_not_count():
    distance = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    similarity = jnp.asarray(np.where(np.arange(6)[:, None] % 2 == 1, -distance, 7.0))
    found = networks.correlation(similarity, distance, jnp.arange(6) % 2)
    np.testing.assert_allclose(found, -1, rtol=1e-6)
