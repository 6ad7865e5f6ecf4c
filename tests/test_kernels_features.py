"""Projected gradients against the dense kernel, over many projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from jaxtheory import kernels

N, K = 6, 2


def mlp(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]


def problem(seed=0, n=N, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    normal = lambda key, *shape: jax.random.normal(key, shape, dtype)
    params = {
        "w1": normal(keys[0], 4, 20) / 2,
        "b1": normal(keys[1], 20) / 2,
        "w2": normal(keys[2], 20, K) / 2,
    }
    return params, normal(keys[3], n, 4)


def new_key():
    return jax.random.key(7)


def dense(params, x, scale=None):
    """``[n k, n k]`` from a forward-mode Jacobian."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacfwd(lambda w: mlp(unravel(w), x)))(flat)
    jacobian = np.asarray(jacobian, np.float64).reshape(-1, flat.size)
    weights = np.ones(flat.size) if scale is None else scale
    return jacobian * weights @ jacobian.T


def gram(features):
    """Inner products of all features, ``[..., n k, n k]``."""
    rows = np.asarray(features, np.float64)
    rows = rows.reshape(*rows.shape[:-3], -1, rows.shape[-1])
    return rows @ np.swapaxes(rows, -1, -2)


def draws(dim, num_draws, **options):
    """The Gram matrices of independent projections, ``[draws, n k, n k]``."""
    params, x = problem()
    project = lambda key: kernels.ntk_features(
        mlp, params, x, key=key, dim=dim, **options
    )
    return gram(jax.vmap(project)(jax.random.split(new_key(), num_draws)))


def test_unbiased_with_the_stated_standard_error():
    """Also of parameters with factors; every entry, over 200 projections."""
    scale = {"w1": 2.0, "b1": 0.0, "w2": 0.5}
    weights = np.concatenate([np.zeros(20), np.full(80, 2.0), np.full(40, 0.5)])
    expected = dense(*problem(), weights)
    diagonal = np.diag(expected)
    spread = {}
    for dim in (2, 32):
        found = draws(dim, 200, param_scale=scale)
        bound = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / dim)
        errors = np.abs(found.mean(axis=0) - expected) / (bound / np.sqrt(200))
        assert errors.max() < 5
        ratio = found.std(axis=0) / bound
        assert ratio.max() < 1.3
        assert ratio.mean() > 0.7
        spread[dim] = np.sqrt(np.mean((found - expected) ** 2))
    # Sixteen times as many features; fewer collisions within blocks help beyond.
    assert 3.5 < spread[2] / spread[32] < 6


def test_without_collisions_it_is_the_kernel(x64):
    """One array of fewer parameters than features: a rotation, up to signs."""
    params, x = problem(dtype=jnp.float64)
    linear = lambda w, x: jnp.tanh(x @ w)
    features = kernels.ntk_features(linear, params["w1"], x, key=new_key(), dim=80)
    assert (features.shape, features.dtype) == ((N, 20, 80), jnp.float64)
    kernel = kernels.empirical_ntk(linear, params["w1"], x, outputs="full")
    expected = np.swapaxes(np.asarray(kernel), 1, 2).reshape(N * 20, N * 20)
    np.testing.assert_allclose(gram(features), expected, atol=1e-13)


def test_batches_and_subsets_share_the_projection():
    params, x = problem()
    first = kernels.ntk_features(mlp, params, x, key=new_key(), dim=16, batch_size=4)
    some = kernels.ntk_features(mlp, params, x[2:4], key=new_key(), dim=16)
    np.testing.assert_allclose(some, first[2:4], atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_sharded_inputs(eight_devices, batch_size):
    params, x = problem(n=64)
    spread = NamedSharding(eight_devices, PartitionSpec("data"))
    options = {"dim": 16, "batch_size": batch_size}
    one = kernels.ntk_features(mlp, params, x, key=new_key(), **options)
    eight = kernels.ntk_features(
        mlp, params, jax.device_put(x, spread), key=new_key(), **options
    )
    np.testing.assert_allclose(eight, one, atol=1e-6)
    assert eight.sharding.shard_shape(eight.shape)[0] == 8


def test_new_parameters_and_keys_cost_no_new_trace():
    count = 0

    def counted(params, x):
        nonlocal count
        count += 1
        return mlp(params, x)

    def measure(seed):
        key = jax.random.key(seed)
        kernels.ntk_features(counted, *problem(seed), key=key, dim=8, batch_size=4)

    measure(0)
    first = count
    measure(1)
    # The check of the outputs' shape traces the model once.
    assert count <= first + 1


WRONG_INPUTS = {
    "dim": ({"dim": 0}, "`dim` must be an integer of at least 1, but was 0"),
    "batch": ({"batch_size": -1}, "`batch_size` must be None"),
    "parameters": ({"params": {}}, "`params` must hold at least one array"),
    "examples": ({"x": jnp.ones((0, 4))}, "`x` must hold at least one example"),
    "outputs": (
        {"apply_fn": lambda params, x: (x @ params).sum()},
        "`apply_fn` must return one row of outputs",
    ),
    "scale": ({"param_scale": -1.0}, "`param_scale` must be a finite number >= 0"),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    arguments = {
        "apply_fn": lambda params, x: x @ params,
        "params": jnp.ones((4, K)),
        "x": jnp.ones((N, 4)),
        "dim": 8,
    }
    with pytest.raises(ValueError, match=message):
        kernels.ntk_features(key=new_key(), **{**arguments, **changes})
