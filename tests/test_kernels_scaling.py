"""Factors of the NTK parametrisation against the network written in it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import kernels
from jaxtheory.models import MLP

pytestmark = pytest.mark.usefixtures("user_land")


def test_kernel_is_that_of_the_network_written_in_the_ntk_parametrisation():
    sizes = {"widths": (30, 20), "num_outputs": 2, "weight_std": 1.3, "bias_std": 0.4}
    standard, ntk = (
        MLP(parametrization=parametrization, **sizes)
        for parametrization in ("standard", "ntk")
    )
    x = jax.random.normal(jax.random.key(0), (6, 5))
    params = jax.jit(standard.init)(jax.random.key(1), x)
    found = kernels.ntk_scaling(standard, x, key=jax.random.key(2))
    assert found.dropped == ()
    # The same function: stored weights are acting ones over weight_std / sqrt(fan_in).
    fan_in = {"layer_1": 5, "layer_2": 30, "output": 20}
    same = {
        name: {
            "kernel": layer["kernel"] * np.sqrt(fan_in[name]) / 1.3,
            "bias": layer["bias"],
        }
        for name, layer in params["params"].items()
    }
    # Its biases stay as they are, with derivative one instead of their deviation.
    for name, layer in found.param_scale["params"].items():
        expected = 1.3**2 / fan_in[name]
        error = found.standard_error["params"][name]["kernel"]
        assert abs(layer["kernel"] - expected) < 4 * error + 1e-6
        assert error < 0.01 * expected
    by_layer = kernels.empirical_ntk(ntk.apply, {"params": same}, x, per_layer=True)
    expected = sum(
        layer["kernel"] + 0.4**2 * layer["bias"]
        for layer in by_layer["params"].values()
    )
    kernel = kernels.empirical_ntk(
        standard.apply, params, x, param_scale=found.param_scale
    )
    np.testing.assert_allclose(kernel, expected, rtol=0.02)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(nn.Dense(4)(x))
        return nn.Dense(2, kernel_init=nn.initializers.zeros)(h)


def test_fixed_parameters_drop_or_are_errors():
    x, key = jnp.ones((1, 3)), jax.random.key
    body = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)])
    found = kernels.ntk_scaling(body, x, key=key(0))
    pair = kernels.ntk_scaling((body.init, body.apply), x, key=key(0))
    jax.tree.map(np.testing.assert_array_equal, pair, found)
    assert found.dropped == (
        "layers_0/bias",
        "layers_1/bias",
        "layers_1/scale",
        "layers_2/bias",
    )
    assert float(found.param_scale["params"]["layers_1"]["scale"]) == 0.0
    given = kernels.ntk_scaling(body, x, key=key(0), zero_variance=0.25)
    assert given.dropped == ()
    assert float(given.param_scale["params"]["layers_0"]["bias"]) == 0.25

    with pytest.raises(ValueError, match=r"draw 'Dense_1/kernel' \(4, 2\) at random"):
        kernels.ntk_scaling(Head(), x, key=key(0))
    with pytest.raises(ValueError, match=r"draw 'layers_0/bias' \(4,\) at random"):
        kernels.ntk_scaling(body, x, key=key(0), zero_variance="error")
    with pytest.raises(ValueError, match=r"`zero_variance` must be .*'keep'"):
        kernels.ntk_scaling(body, x, key=key(0), zero_variance="keep")
    with pytest.raises(ValueError, match=r"`zero_variance` must be .* -1.0"):
        kernels.ntk_scaling(body, x, key=key(0), zero_variance=-1.0)
    with pytest.raises(ValueError, match=r"`module` must be a Linen module, or a pair"):
        kernels.ntk_scaling({"w": x}, x, key=key(0))
