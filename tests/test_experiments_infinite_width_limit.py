"""The experiment on the infinite-width limit, small: numbers, files, command line."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import infinite_width_limit as script
from jaxtheory import kernels

SMALL = script.Config(widths=(32, 128), num_seeds=12, num_first_layer_seeds=4)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("3 hidden layers", "LayerNorm", "convolutional"):
            patch.delitem(script.ARCHITECTURES, name)
        return script.run(SMALL)


def test_errors_fall_as_one_over_the_root_of_the_width(result):
    assert list(result.networks) == ["1 hidden layer", "residual"]
    for found in result.networks.values():
        assert found.errors.shape == (2, 12)
        slope, error = found.slope.value, found.slope.standard_error
        assert error < 0.25
        assert abs(slope + 0.5) < 4 * error
    # Section 4 B of the reference: .254 and .171 at widths 64 and 128.
    rms = np.sqrt(np.mean(result.networks["1 hidden layer"].errors[1] ** 2))
    assert 0.1 < rms < 0.25


def test_the_real_first_layer_is_the_limit(result):
    """Gaussian weights in its place are off by a tenth at any width."""
    x = script.AXIS_ALIGNED
    found = script.empirical(script.UniformFirst(128), x, jax.random.key(5), 200)
    real, gaussian = script.distances_of_mean(found)
    # Fluctuations of 0.2 at this width, over the root of 200.
    assert real < 0.03
    assert gaussian > 0.07
    assert result.first_layer.shape == (2, 2)


def test_empirical_kernels_are_those_of_the_parametrisation():
    """By hand: variances 2 / fan_in times the kernels of the arrays."""
    x = jax.random.normal(jax.random.key(0), (3, 4))
    model = script.Perceptron(512)
    (found,) = script.empirical(model, x, jax.random.key(1), 1)
    (seed,) = jax.random.split(jax.random.split(jax.random.key(1))[1], 1)
    layers = kernels.empirical_ntk(model.apply, model.init(seed, x), x, per_layer=True)[
        "params"
    ]
    expected = layers["Dense_0"]["kernel"] * 2 / 4 + layers["Dense_1"]["kernel"] / 256
    assert jnp.linalg.norm(found - expected) < 0.05 * jnp.linalg.norm(expected)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = "--widths 32 128 --num-seeds 12"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].widths == SMALL.widths
    said = capsys.readouterr().out
    slope = result.networks["residual"].slope.value
    assert f"slope {slope:.3f}" in said
    numbers = json.loads((out / "result.json").read_text())
    assert numbers["first_layer"] == result.first_layer.tolist()
    assert imread(out / "figure.png").shape == (600, 1500, 4)


def test_one_width_is_no_slope(user_land):
    with pytest.raises(ValueError, match="`image_widths` must hold at least two"):
        script.run(script.Config(image_widths=(8, 8)))
