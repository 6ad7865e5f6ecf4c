"""Features of every layer of a Linen module that nobody prepared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtheory import collapse, models


class Block(nn.Module):
    @nn.compact
    def __call__(self, h):
        h = nn.Dense(6, name="wide")(h)
        h = nn.relu(nn.Dense(4, name="again")(h))
        self.sow("intermediates", "activation", h)
        return h, jnp.sum(h)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        h, _ = Block(name="second")(x)
        h = nn.BatchNorm(use_running_average=not train, name="norm")(h)
        shared = nn.Dense(4, name="first")
        h = shared(nn.relu(shared(h)))
        return nn.Dense(3, name="a_head")(h)


@pytest.fixture(scope="module")
def found():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)), jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    return models.intermediates(Net(), variables, x, train=False), variables, x


def test_layers_come_in_the_order_of_computation(found):
    assert list(found[0]) == [
        "second/wide",
        "second/again",
        "second/activation",
        "norm",
        "first",
        "first#2",
        "a_head",
        "output",
    ]


def test_values_are_those_of_the_layers(found):
    layers, variables, x = found
    dense = variables["params"]["second"]["wide"]
    wide = x @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(layers["second/wide"], wide, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        layers["second/activation"], nn.relu(layers["second/again"])
    )
    outputs = Net().apply(variables, x, train=False)
    np.testing.assert_array_equal(layers["output"], outputs)


def test_they_are_what_the_laws_take(found):
    layers, _, _ = found
    law = collapse.separation_law(layers, jnp.arange(12) % 2)
    assert law.names == tuple(layers)
    assert law.values.shape == (8,)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=False):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


def test_eval_mode_is_asked_for(found, user_land):
    _, variables, x = found
    with pytest.raises(ValueError, match=r"in eval mode.*`train=False`"):
        models.intermediates(Net(), variables, x)
    with pytest.raises(ValueError, match=r"in eval mode.*`deterministic=True`"):
        models.intermediates(Dropped(), {}, x)
    assert list(models.intermediates(Dropped(), {}, x, deterministic=True)) == [
        "Dropout_0",
        "output",
    ]


def test_only_models_of_the_package_are_read_by_name(found, user_land):
    _, variables, x = found
    with pytest.raises(ValueError, match=r"is a \S*\.Net\..*models\.intermediates"):
        models.features(Net(), variables, x)  # pyright: ignore
    with pytest.raises(ValueError, match=r"is a \S*\.Net\..*kernel\.T"):
        models.classifier(Net(), variables)  # pyright: ignore


def test_bad_module_names_the_fix(user_land):
    with pytest.raises(ValueError, match=r"`module` must be a Linen module.*type"):
        models.intermediates(Net, {}, jnp.ones((2, 2)))  # pyright: ignore
