"""Empirical NTK against explicit forward-mode Jacobians, contracted by NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import kernels

pytestmark = pytest.mark.usefixtures("user_land")


class Dense(nn.Module):
    """A Flax network with a parameter that its outputs do not depend on."""

    @nn.compact
    def __call__(self, x):
        self.param("unused", nn.initializers.ones, (3,))
        return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))


def convolutional(params, x):
    """Two convolutions and a pooled readout, with outputs ``[n, 2, 2]``."""
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    x = jnp.tanh(conv(x, params["conv1"], (1, 1)) * params["gain"])
    x = jnp.tanh(conv(x, params["conv2"], (2, 2)))
    return x.mean(axis=(1, 2)).reshape(-1, 2, 2)


def make(name):
    """A model, parameters, and two sets of 5 and 3 inputs."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (4,) if name == "dense" else (4, 4, 2)
    x1 = jax.random.normal(keys[0], (5, *shape))
    x2 = jax.random.normal(keys[1], (3, *shape))
    if name == "dense":
        model = Dense()
        return model.apply, jax.jit(model.init)(keys[2], x1), x1, x2
    params = {
        "conv1": jax.random.normal(keys[2], (3, 3, 2, 3)) / 4,
        "conv2": jax.random.normal(keys[3], (3, 3, 3, 4)) / 4,
        "gain": jnp.array(1.5),
    }
    return convolutional, params, x1, x2


def oracle(apply_fn, params, x1, x2):
    """The full kernel from dense Jacobians of the whole batch, in float64."""

    n1, n2 = x1.shape[0], x2.shape[0]
    tree = jax.jit(jax.jacfwd(apply_fn))(params, jnp.concatenate([x1, x2]))
    flat = [
        np.asarray(a, np.float64).reshape(n1 + n2, -1, size)
        for a, size in zip(
            jax.tree.leaves(tree), map(jnp.size, jax.tree.leaves(params)), strict=True
        )
    ]
    jacobian = np.concatenate(flat, axis=2)
    return np.einsum("ikp,jlp->ijkl", jacobian[:n1], jacobian[n1:])


def reduce(full, outputs):
    """What `outputs` keeps of a full kernel."""
    diagonal = np.einsum("ijkk->ijk", full)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[outputs]


def assert_close(found, expected, tolerance):
    """Entrywise agreement to `tolerance` of the largest entry."""
    assert found.shape == expected.shape
    error = np.max(np.abs(np.asarray(found, np.float64) - expected))
    assert error <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def dense():
    apply_fn, params, x1, x2 = make("dense")
    both = jnp.concatenate([x1, x2])
    return apply_fn, params, x1, x2, oracle(apply_fn, params, x1, both)


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_matches_explicit_jacobians(dense, outputs, batch_size):
    apply_fn, params, x1, x2, full = dense
    options = {"outputs": outputs, "batch_size": batch_size}

    rectangular = kernels.empirical_ntk(apply_fn, params, x1, x2, **options)
    assert rectangular.dtype == jnp.float32
    assert_close(rectangular, reduce(full[:5, 5:], outputs), 1e-5)

    symmetric = kernels.empirical_ntk(apply_fn, params, x1, **options)
    assert_close(symmetric, reduce(full[:5, :5], outputs), 1e-5)
    axes = {"trace": (1, 0), "diagonal": (1, 0, 2), "full": (1, 0, 3, 2)}[outputs]
    np.testing.assert_array_equal(symmetric, np.transpose(symmetric, axes))


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_double_precision(x64, name):
    apply_fn, params, x1, x2 = make(name)
    params, x1, x2 = jax.tree.map(lambda a: a.astype(jnp.float64), (params, x1, x2))
    full = oracle(apply_fn, params, x1, x2)
    found = kernels.empirical_ntk(
        apply_fn, params, x1, x2, outputs="full", batch_size=3
    )
    assert_close(found, full, 1e-12)
    found = kernels.empirical_ntk(apply_fn, params, x1, x2)
    assert_close(found, reduce(full, "trace"), 1e-12)


def test_trailing_output_axes_are_one():
    apply_fn, params, x1, x2 = make("convolutional")
    full = oracle(apply_fn, params, x1, x2)
    assert full.shape == (5, 3, 4, 4)
    found = kernels.empirical_ntk(apply_fn, params, x1, x2, outputs="full")
    assert_close(found, full, 1e-5)
    found = kernels.empirical_ntk(apply_fn, params, x1, x2, batch_size=2)
    assert_close(found, reduce(full, "trace"), 1e-5)


def test_linear_model_in_closed_form():
    x = jax.random.normal(jax.random.key(1), (6, 4))
    params = jax.random.normal(jax.random.key(2), (4, 3))
    gram = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T

    trace = kernels.empirical_ntk(linear, params, x)
    assert_close(trace, 3 * gram, 1e-6)
    full = kernels.empirical_ntk(linear, params, x, outputs="full")
    assert_close(full, gram[:, :, None, None] * np.eye(3), 1e-6)


def linear(params, x):
    return jnp.matmul(x, params, precision="highest")


def test_bfloat16_parameters_are_summed_in_float32():
    # 300 summands of one: bfloat16 stops counting at 256.
    params, x = jnp.ones((300, 1), jnp.bfloat16), jnp.ones((2, 300), jnp.bfloat16)
    found = kernels.empirical_ntk(linear, params, x)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.full((2, 2), 300.0))


def test_integer_inputs_and_input_pytrees():
    def embed(params, x):
        return params["table"][x["tokens"]].sum(axis=1) * x["scale"][:, None]

    params = {"table": jnp.ones((4, 2))}
    x = {"tokens": jnp.array([[0, 1], [1, 1], [2, 3]]), "scale": jnp.array([1.0, 2, 3])}
    counts = np.array([[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1]]) * [[1], [2], [3]]
    found = kernels.empirical_ntk(embed, params, x, batch_size=2)
    np.testing.assert_allclose(found, 2 * counts @ counts.T, rtol=1e-6)


def test_new_parameters_do_not_trace_again():
    traces = []

    def apply_fn(params, x):
        traces.append(x.shape)
        return jnp.tanh(x @ params)

    x = jnp.ones((5, 2))
    for batch_size in (None, 2):
        kernels.empirical_ntk(apply_fn, jnp.ones((2, 3)), x, batch_size=batch_size)
        before = len(traces)
        kernels.empirical_ntk(apply_fn, jnp.zeros((2, 3)), 2 * x, batch_size=batch_size)
        assert len(traces) == before


def test_works_under_jit_and_vmap(dense):
    apply_fn, params, x1, _, full = dense
    measure = functools.partial(kernels.empirical_ntk, apply_fn, batch_size=2)
    expected = reduce(full[:5, :5], "trace")
    assert_close(jax.jit(measure)(params, x1), expected, 1e-5)

    stacked = jax.tree.map(lambda a: jnp.stack([a, 0 * a]), params)
    found = jax.vmap(measure, in_axes=(0, None))(stacked, x1)
    assert_close(found[0], expected, 1e-5)
    # At zero weights only the readout's three biases have gradients.
    np.testing.assert_allclose(found[1], 3 * np.ones((5, 5)), rtol=1e-6)


def test_is_differentiable_in_the_parameters():
    # f = tanh(w x) has K = x^2 sech^4(w x), dK/dw = -4 x^3 sech^4 tanh.
    x, w = jnp.array([[0.5], [1.0], [2.0]]), jnp.array([[0.7]])

    def trace(w):
        model = lambda w, x: jnp.tanh(x * w)
        return jnp.trace(kernels.empirical_ntk(model, w, x, batch_size=2))

    z = np.asarray(x * w, np.float64)
    expected = np.sum(-4 * np.asarray(x) ** 3 / np.cosh(z) ** 4 * np.tanh(z))
    np.testing.assert_allclose(jax.grad(trace)(w), [[expected]], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_sharded_inputs(eight_devices, batch_size, symmetric):
    params = jax.random.normal(jax.random.key(3), (4, 3))
    x = jax.random.normal(jax.random.key(4), (24, 4))
    rows = jax.sharding.PartitionSpec("data")
    sharded = jax.device_put(x, jax.sharding.NamedSharding(eight_devices, rows))
    model = lambda params, x: jnp.tanh(linear(params, x))

    columns = () if symmetric else (x[:5],)
    one = kernels.empirical_ntk(model, params, x, *columns, batch_size=batch_size)
    eight = kernels.empirical_ntk(
        model, params, sharded, *columns, batch_size=batch_size
    )
    # 10 eps: products of another shape are summed in another order.
    assert_close(eight, np.asarray(one, np.float64), 10 * np.finfo(np.float32).eps)
    assert eight.sharding.shard_shape(eight.shape)[0] == 3
    if symmetric:
        np.testing.assert_array_equal(eight, np.transpose(eight))


def test_batched_memory_is_a_few_chunks():
    n, k, width = 64, 2, 1024
    params = jnp.ones((width, k))
    x = jnp.ones((n, width))
    measure = functools.partial(kernels.empirical_ntk, linear, batch_size=4)
    memory = jax.jit(measure).lower(params, x).compile().memory_analysis()
    whole_jacobian = 4 * n * k * width * k
    chunk = whole_jacobian // 16
    assert memory is not None
    assert memory.temp_size_in_bytes < 5 * chunk


WRONG_INPUTS = {
    "option": ({"outputs": "sum"}, r"`outputs` must be one of .*'sum'"),
    "options": ({"outputs": ["trace"]}, r"`outputs` must be one of .*\['trace'\]"),
    "batch": ({"batch_size": 0}, r"`batch_size` must be None .* positive integer"),
    "integers": ({"params": jnp.ones((2, 3), int)}, r"`params` must be floating-point"),
    "empty": ({"params": {}}, r"`params` must hold at least one array"),
    "examples": ({"x1": jnp.ones((0, 2))}, r"`x1` must hold at least one example"),
    "scalar": ({"x2": jnp.array(1.0)}, r"`x2` must have examples"),
    "trailing": ({"x2": jnp.ones((4, 3))}, r"`x2` must have the shape .* \(4, 3\)"),
    "structure": ({"x2": [jnp.ones((4, 2))]}, r"`x2` must have the structure of `x1`"),
    "no output axis": (
        {"apply_fn": lambda params, x: (x @ params)[:, 0]},
        r"outputs \[n, k\] with an output axis, but returned shape \(5,\).*\[:, None\]",
    ),
    "no outputs": (
        {"apply_fn": lambda params, x: (x @ params)[:, :0]},
        r"outputs \[n, k\] with an output axis, but returned shape \(5, 0\)",
    ),
    "no examples": (
        {"apply_fn": lambda params, x: (x @ params)[0]},
        r"one row of outputs for each of 5 examples, but returned shape \(3,\)",
    ),
    "several outputs": (
        {"apply_fn": lambda params, x: (x @ params, x)},
        r"`apply_fn` must return one array of outputs",
    ),
    "classes": (
        {"apply_fn": lambda params, x: (x @ params).astype(int)},
        r"`apply_fn` must return floating-point outputs",
    ),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    arguments = {"apply_fn": linear, "params": jnp.ones((2, 3)), "x1": jnp.ones((5, 2))}
    with pytest.raises(ValueError, match=message):
        kernels.empirical_ntk(**{**arguments, **changes})
