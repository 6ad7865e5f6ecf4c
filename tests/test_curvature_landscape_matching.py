"""Weight matching: the function stays, a permuted copy comes back, barriers fall."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxtheory import curvature, models

landscape = curvature.landscape
X = jax.random.normal(jax.random.key(9), (6, 5))
IMAGES = jax.random.normal(jax.random.key(9), (4, 4, 4, 1))
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


class Compact(nn.Module):
    """Convolutions, flattened into dense layers: names that Flax gives."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.relu(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


NETWORKS = {
    "MLP": (models.MLP((8, 7), num_outputs=3, bias_std=0.5), X),
    "CNN": (models.CNN((4, 6), num_outputs=3, bias_std=0.5), IMAGES),
    "BatchNorm": (models.MLP((8, 7), num_outputs=3, batch_norm=True), X),
    "Sequential": (nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)]), X),
    "flattened": (Compact(), IMAGES),
}


def random_orders(params, axes, seed):
    """A random order of the units of each layer."""
    rng, sizes = np.random.default_rng(seed), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        for name, length in zip(axes[where], leaf.shape, strict=True):
            if name is not None:
                sizes[name] = min(length, sizes.get(name, length))
    return {name: rng.permutation(size) for name, size in sizes.items()}


def rough(params):
    """Nothing zero or one: a bias or a scale that moved must be noticed."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [a + 0.1 * rng.normal(size=a.shape).astype(a.dtype) for a in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_copy_comes_back(name):
    module, x = NETWORKS[name]
    variables = module.init(jax.random.key(0), x)
    params = rough(variables["params"])
    model = lambda params: module.apply({**variables, "params": params}, x)
    axes = landscape.sequential_axes(params)
    orders = random_orders(params, axes, 1)
    turned = landscape.permute_units(params, axes, orders)
    outputs = model(params)
    scale = np.abs(outputs).max()
    np.testing.assert_allclose(model(turned), outputs, atol=1e-6 * scale)
    found = landscape.match_weights(params, turned, key=jax.random.key(2))
    assert found.distance_before > 1
    assert (found.distance, found.converged) == (0, True)
    for layer, order in orders.items():
        assert order[found.permutations[layer]].tolist() == list(range(len(order)))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_flattened_channels_move_in_all_pixels():
    module, x = NETWORKS["flattened"]
    params = module.init(jax.random.key(0), x)["params"]
    axes = landscape.sequential_axes(params)
    assert axes["Dense_0/kernel"] == ("Conv_1", "Dense_0")
    order = np.array([2, 0, 1, 3, 5, 4])
    turned = landscape.permute_units(params, axes, {"Conv_1": order})
    rows = lambda p: np.asarray(p["Dense_0"]["kernel"]).reshape(4, 6, 5)
    np.testing.assert_array_equal(rows(turned), rows(params)[:, order])
    np.testing.assert_array_equal(turned["Conv_0"]["bias"], params["Conv_0"]["bias"])


def small(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    draw = jax.random.normal
    first, last = draw(keys[0], (2, 4)), draw(keys[1], (4, 1))
    return {"layer_1": {"kernel": first}, "output": {"kernel": last}}


def test_one_hidden_layer_is_matched_as_well_as_can_be():
    """Against all 24 orders: with one layer the assignment is exact."""
    a, b = small(0), small(1)
    found = landscape.match_weights(a, b, key=jax.random.key(0))
    both = lambda p: np.concatenate([p["layer_1"]["kernel"], p["output"]["kernel"].T])
    orders = itertools.permutations(range(4))
    best = min(np.linalg.norm(both(a) - both(b)[:, list(o)]) for o in orders)
    np.testing.assert_allclose(found.distance, best, rtol=1e-6)
    assert found.distance < found.distance_before
    ours = np.linalg.norm(both(a) - both(found.params))
    np.testing.assert_allclose(ours, best, rtol=1e-6)


def test_a_name_on_two_axes_of_one_leaf():
    """Recurrent weights W -> P W P^T: the distance still never grows."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    a = {"in": draw(3, 6), "again": draw(6, 6), "out": draw(6, 2)}
    axes = {"in": (None, "h"), "again": ("h", "h"), "out": ("h", None)}
    b = landscape.permute_units(a, axes, {"h": rng.permutation(6)})
    found = landscape.match_weights(a, b, axes=axes, key=jax.random.key(0))
    assert (found.distance, found.converged) == (0, True)
    for seed in range(5):
        other = jax.tree.map(lambda leaf: draw(*leaf.shape), a)
        key = jax.random.key(seed)
        found = landscape.match_weights(a, other, axes=axes, key=key)
        assert found.distance <= found.distance_before
        assert found.converged


def test_matching_removes_the_barrier_of_a_permuted_network():
    model = models.MLP((16, 16), num_outputs=3)
    x = jax.random.normal(jax.random.key(0), (30, 5))
    params = jax.tree.map(lambda a: 2 * a, model.init(jax.random.key(2), x))
    y = jnp.argmax(model.apply(params, x), axis=-1)  # a minimum, with its own labels
    axes = landscape.sequential_axes(params)
    other = landscape.permute_units(params, axes, random_orders(params, axes, 0))
    found = landscape.match_weights(params, other, key=jax.random.key(3))
    interpolate = lambda end: landscape.interpolate(
        model.apply, CROSS_ENTROPY, params, end, x, y, num=9
    )
    before, after = interpolate(other), interpolate(found.params)
    np.testing.assert_allclose(before.losses[0], before.losses[-1], rtol=1e-4)
    assert before.barrier > 0.1
    np.testing.assert_allclose(after.barrier, 0, atol=1e-5)


def test_the_order_of_layers():
    dense = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
    many = {f"layer_{i}": dense(i, i + 1) for i in range(1, 13)}
    axes = landscape.sequential_axes(many)
    assert axes["layer_10/kernel"] == ("layer_9", "layer_10")
    assert axes["layer_12/kernel"] == ("layer_11", None)
    norm = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
    named = {"BatchNorm_0": norm, "zeroth": dense(3, 4), "last": dense(4, 2)}
    axes = landscape.sequential_axes(named, layers=["zeroth", "BatchNorm_0", "last"])
    assert axes["BatchNorm_0/scale"] == ("zeroth",)
    assert axes["zeroth/kernel"] == (None, "zeroth")
    assert axes["last/bias"] == (None,)


def test_axes_refuse(user_land):
    dense = lambda i, o: {"kernel": jnp.ones((i, o))}
    norm = {"scale": jnp.ones(4)}
    two = {"a1": dense(3, 4), "a2": dense(4, 2)}
    alike = {name: dense(4, 4) for name in ("input", "hidden", "output")}
    for params, layers, message in (
        ({"a1": dense(3, 4)}, None, "at least two layers .* those are .'a1'."),
        ({**two, "a0": norm}, None, "'a0', without a 'kernel', before the first or"),
        ({**two, "a3": norm}, None, "'a3', without a 'kernel', before the first or"),
        ({**two, "BatchNorm_0": norm}, None, "`layers` must be given"),
        (alike, None, "`layers` must be given, because the names of layers do not say"),
        (two, ["a1", "c"], "`layers` must name each .* 'c' fits"),
        (two, ["a1"], "`layers` must name every layer once"),
        (
            two,
            ["a2", "a1"],
            "'a1' takes 3 inputs where the layer before it has 2 units",
        ),
        # Twice the units are pixels only behind a convolution.
        ({**two, "a2": dense(8, 2)}, None, "'a2' takes 8 inputs where .* has 4 units"),
        ({**two, "a2": {**dense(4, 2), "bias": jnp.ones(4)}}, None, "a layer of 2 un"),
        (
            {**two, "a2": {"kernel": jnp.ones(4)}},
            None,
            r"leaf of shape \(4,\) in the l",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            landscape.sequential_axes(params, layers=layers)


def test_permutations_refuse(user_land):
    params = small(0)
    axes = landscape.sequential_axes(params)
    for changed, message in (
        (
            {"middle/kernel": ("layer_1", None)},
            "names 'middle/kernel', which is not in",
        ),
        (
            {"layer_1/kernel": ("layer_1",)},
            r"`axes\['layer_1/kernel'\]` must say .* \(2, 4\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            landscape.permute_units(params, axes | changed, {})
    with pytest.raises(ValueError, match="must name at least one axis"):
        landscape.permute_units(params, {}, {})
    with pytest.raises(
        ValueError, match=r"`permutations\['layer_1'\]` is no order of 4"
    ):
        landscape.permute_units(params, axes, {"layer_1": [0, 1, 1, 2]})
    with pytest.raises(ValueError, match=r"`permutations\['x'\]` is of no named axis"):
        landscape.permute_units(params, axes, {"x": [0]})


def test_matching_refuses(user_land):
    a, b, key = small(0), small(1), jax.random.key(0)
    wider = {**b, "output": {"kernel": jnp.ones((5, 1))}}
    with pytest.raises(
        ValueError, match=r"`params_b\['output'\]\['kernel'\]` must have"
    ):
        landscape.match_weights(a, wider, key=key)
    with pytest.raises(ValueError, match="`params_b` must have the structure"):
        landscape.match_weights(a, {**b, "more": b["output"]}, key=key)
    with pytest.raises(ValueError, match="are traced"):
        jax.jit(lambda a: landscape.match_weights(a, b, key=key).distance)(a)
    with pytest.raises(ValueError, match="`key` must be one typed random key"):
        landscape.match_weights(a, b, key=0)
    with pytest.raises(ValueError, match="`max_sweeps` must be an integer"):
        landscape.match_weights(a, b, key=key, max_sweeps=0)
