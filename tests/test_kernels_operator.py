"""The kernel operator against the dense kernel of explicit Jacobians."""

import re

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from jaxtheory import kernels, linalg

N, M, K = 10, 4, 3


def mlp(params, x):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return (hidden @ params["w2"]).reshape(-1, 1, K)


def problem(seed=0, n=N, dtype=jnp.float32):
    """Parameters, inputs, other inputs. The outputs have two trailing axes."""
    keys = jax.random.split(jax.random.key(seed), 5)
    normal = lambda key, *shape: jax.random.normal(key, shape, dtype)
    params = {
        "w1": normal(keys[0], 4, 6) / 2,
        "b1": normal(keys[1], 6) / 2,
        "w2": normal(keys[2], 6, K) / 2,
    }
    return params, normal(keys[3], n, 4), normal(keys[4], M, 4)


def dense(params, x1, x2=None, scale=None):
    """``[n1 k, n2 k]`` from forward-mode Jacobians, entry by entry scaled."""
    flat, unravel = ravel_pytree(params)
    weights = np.ones(flat.size) if scale is None else np.asarray(scale, np.float64)
    jacobian = jax.jit(jax.jacfwd(lambda w, x: mlp(unravel(w), x)))
    rows = [
        np.asarray(jacobian(flat, x), np.float64).reshape(-1, flat.size)
        for x in (x1, x1 if x2 is None else x2)
    ]
    return rows[0] * weights @ rows[1].T


def assert_close(found, expected, tolerance):
    """Entrywise agreement to `tolerance` of the largest entry."""
    assert found.shape == expected.shape
    error = np.max(np.abs(np.asarray(found, np.float64) - expected))
    assert error <= tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_products_equal_the_dense_kernel(batch_size):
    """Also where the batch size leaves a ragged last chunk; and between two sets."""
    params, x, z = problem()
    theta = kernels.ntk_operator(mlp, params, x, batch_size=batch_size)
    assert theta.in_structure() == jax.ShapeDtypeStruct((N, K), jnp.float32)
    assert lx.is_symmetric(theta)
    assert lx.is_positive_semidefinite(theta)
    assert_close(oracles.materialise(theta), dense(params, x), 1e-6)

    cross = kernels.ntk_operator(mlp, params, z, x, batch_size=batch_size)
    assert cross.out_structure().shape == (M, K)
    assert not lx.is_symmetric(cross)
    vector = jax.random.normal(jax.random.key(1), (N, K))
    expected = dense(params, z, x) @ np.asarray(vector, np.float64).ravel()
    assert_close(cross.mv(vector).ravel(), expected, 1e-6)
    assert_close(
        cross.T.mv(cross.mv(vector)).ravel(), dense(params, x, z) @ expected, 2e-6
    )


def test_is_the_full_empirical_kernel(x64):
    params, x, z = problem(dtype=jnp.float64)
    scale = {"w1": 0.5, "b1": 0.0, "w2": 2.0}
    factors = np.concatenate([np.zeros(6), np.full(24, 0.5), np.full(18, 2.0)])
    options = {"batch_size": 3, "param_scale": scale}
    theta = kernels.ntk_operator(mlp, params, x, **options)
    matrix = oracles.materialise(theta)
    assert_close(matrix, dense(params, x, scale=factors), 1e-14)
    full = kernels.empirical_ntk(mlp, params, x, outputs="full", param_scale=scale)
    full = np.swapaxes(np.asarray(full), 1, 2).reshape(N * K, N * K)
    assert_close(matrix, full, 1e-13)
    assert np.linalg.eigvalsh(matrix).min() > -1e-13 * np.linalg.norm(matrix)
    cross = kernels.ntk_operator(mlp, params, z, x, **options)
    vector = jnp.ones((N, K))
    expected = dense(params, z, x, scale=factors) @ np.ones(N * K)
    assert_close(cross.mv(vector).ravel(), expected, 1e-14)


def test_linalg_takes_it():
    params, x, _ = problem()
    theta = kernels.ntk_operator(mlp, params, x, batch_size=4)
    eigenvalues = np.linalg.eigvalsh(dense(params, x))[::-1]
    top = linalg.top_eigenpairs(theta, num=3, key=jax.random.key(0))
    np.testing.assert_allclose(top.values, eigenvalues[:3], rtol=1e-5)
    assert top.vectors.shape == (3, N, K)
    trace = linalg.trace(theta, key=jax.random.key(0), num_samples=200)
    assert abs(trace.value - eigenvalues.sum()) < 4 * trace.standard_error
    ridge = eigenvalues[4]
    found = linalg.effective_dimension(
        theta, ridge, key=jax.random.key(0), num_probes=100
    )
    expected = np.sum(eigenvalues / (eigenvalues + ridge))
    assert abs(found.value - expected) < 4 * found.standard_error
    assert found.standard_error < 0.1 * expected


def test_half_precision():
    """Ones summed by bfloat16 would stop at 256; chunks are added in float32."""
    params, x = jnp.ones((1, 1), jnp.bfloat16), jnp.ones((512, 1), jnp.bfloat16)
    theta = kernels.ntk_operator(lambda p, x: x @ p, params, x, batch_size=8)
    image = theta.mv(jnp.ones((512, 1), jnp.bfloat16))
    assert image.dtype == jnp.bfloat16
    np.testing.assert_array_equal(image.astype(jnp.float32), np.full((512, 1), 512.0))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_sharded_product_is_one_all_reduce(eight_devices, batch_size):
    """Each device scans its own examples, and keeps its own rows of the product."""
    params, x, z = problem(n=64)
    spread = NamedSharding(eight_devices, PartitionSpec("data"))
    everywhere = NamedSharding(eight_devices, PartitionSpec())
    params = jax.device_put(params, everywhere)
    vector = jax.random.normal(jax.random.key(1), (64, K))
    placed = jax.device_put(x, spread), jax.device_put(vector, spread)
    apply = jax.jit(lambda op, v: op.mv(v))
    for others in ((), (placed[0],)):
        rows = () if not others else (jax.device_put(z, everywhere),)
        theta = kernels.ntk_operator(
            mlp, params, *(rows or placed[:1]), *others, batch_size=batch_size
        )
        compiled = apply.lower(theta, placed[1]).compile()
        collectives = re.findall(
            r"(all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)"
            r"(?:-start)?\(",
            compiled.as_text(),
        )
        assert collectives == ["all-reduce"]
        image = compiled(theta, placed[1])
        one = kernels.ntk_operator(mlp, params, *((z, x) if others else (x,)))
        assert_close(image, np.asarray(one.mv(vector), np.float64), 1e-6)
    whole = kernels.ntk_operator(mlp, params, placed[0], batch_size=batch_size)
    image = whole.mv(placed[1])
    assert image.sharding.shard_shape(image.shape) == (8, K)


def test_new_parameters_cost_no_new_trace():
    count = 0

    def counted(params, x):
        nonlocal count
        count += 1
        return mlp(params, x)

    def measure(seed, factor):
        params, x, _ = problem(seed)
        scale = {"w1": factor, "b1": 1.0, "w2": 1.0}
        theta = kernels.ntk_operator(
            counted, params, x, batch_size=4, param_scale=scale
        )
        return theta.mv(jnp.ones((N, K)))

    measure(0, 1.0)
    first = count
    measure(1, 2.0)
    # Building an operator checks the shape of the outputs, which traces the model.
    assert count <= first + 2


def test_survives_transformations():
    params, x, _ = problem()
    theta = kernels.ntk_operator(mlp, params, x, batch_size=4)
    vector = jnp.ones((N, K))
    expected = theta.mv(vector)
    build = lambda p: kernels.ntk_operator(mlp, p, x, batch_size=4).mv(vector)
    np.testing.assert_allclose(jax.jit(build)(params), expected, rtol=1e-5)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    np.testing.assert_allclose(jax.vmap(build)(stacked)[1], expected, rtol=1e-5)


WRONG_INPUTS = {
    "batch": ({"batch_size": 0}, r"`batch_size` must be None .* positive integer"),
    "integers": ({"params": jnp.ones((4, K), int)}, "`params` must be floating-point"),
    "no examples": ({"x1": jnp.ones((0, 4))}, "`x1` must hold at least one example"),
    "other inputs": ({"x2": jnp.ones((N, 5))}, "`x2` must have the shape of `x1`"),
    "no outputs": (
        {"apply_fn": lambda params, x: (x @ params)[:, 0]},
        r"`apply_fn` must return outputs \[n, k\] with an output axis",
    ),
    "scale": ({"param_scale": -1.0}, "`param_scale` must be a finite number >= 0"),
    "scales": ({"param_scale": {"w": 1.0}}, "`param_scale` must have the structure"),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    arguments = {
        "apply_fn": lambda params, x: x @ params,
        "params": jnp.ones((4, K)),
        "x1": jnp.ones((N, 4)),
    }
    with pytest.raises(ValueError, match=message):
        kernels.ntk_operator(**{**arguments, **changes})


@pytest.mark.usefixtures("user_land")
def test_bad_vectors():
    params, x, _ = problem()
    theta = kernels.ntk_operator(mlp, params, x)
    with pytest.raises(
        ValueError, match=r"`vector` must have shape \(10, 3\), but has"
    ):
        theta.mv(jnp.ones((N, 1, K)))
    with pytest.raises(ValueError, match="`vector` must have the structure"):
        theta.mv({"v": jnp.ones((N, K))})
