"""AGOP, feature ansatz and overlaps against NumPy loops and closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics, kernels
from jaxtheory.kernels import _feature_learning

EPS = float(np.finfo(np.float32).eps)


def model(params, x):
    hidden = jnp.tanh(jnp.reshape(x, (x.shape[0], -1)) @ params["w"])
    return head(params, hidden)


def head(params, hidden):
    return hidden @ params["v"]


def problem(n=16, k=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (4, 6), dtype),
        "v": jax.random.normal(keys[1], (6, k), dtype),
    }
    return params, jax.random.normal(keys[2], (n, 2, 2), dtype)


def expected_agop(params, x):
    """Gradients by hand, one outer product at a time, in float64."""
    w, v = (np.asarray(params[name], np.float64) for name in "wv")
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    total = np.zeros((4, 4))
    for row in flat:
        slope = 1 - np.tanh(row @ w) ** 2
        for column in v.T:
            gradient = w @ (slope * column)
            total += np.outer(gradient, gradient)
    return total / len(flat)


@pytest.mark.parametrize("batch_size", [None, 5, 16])
@pytest.mark.parametrize("k", [1, 7])  # fewer and more outputs than inputs
def test_agop_is_its_definition(batch_size, k):
    params, x = problem(k=k)
    found = kernels.agop(model, params, x, batch_size=batch_size)
    expected = expected_agop(params, x)
    scale = np.linalg.norm(expected)
    np.testing.assert_allclose(found, expected, atol=50 * EPS * scale)
    np.testing.assert_allclose(found, found.T, atol=4 * EPS * scale)


def test_agop_in_double_precision_and_without_an_output_axis(x64):
    params, x = problem(k=1, dtype=jnp.float64)
    flat = lambda params, x: model(params, x)[:, 0]
    expected = expected_agop(params, x)
    found = kernels.agop(flat, params, x, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_agop_of_a_hidden_layer_is_a_function_of_its_activations():
    params, x = problem()
    hidden = jnp.tanh(jnp.reshape(x, (16, 4)) @ params["w"])
    v = np.asarray(params["v"], np.float64)
    found = kernels.agop(head, params, hidden)
    np.testing.assert_allclose(found, v @ v.T, atol=50 * EPS * np.sum(v**2))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_agop_of_sharded_examples(eight_devices, batch_size):
    params, x = problem(n=40)
    spec = jax.sharding.PartitionSpec("data")
    sharded = jax.device_put(x, jax.sharding.NamedSharding(eight_devices, spec))
    expected = kernels.agop(model, params, x)
    found = kernels.agop(model, params, sharded, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sharded_examples_cost_one_all_reduce(eight_devices):
    params, x = problem(n=40)
    spec = jax.sharding.PartitionSpec("data")
    x = jax.device_put(x, jax.sharding.NamedSharding(eight_devices, spec))
    # The lanes are asked of the array, so the sum itself is what is compiled.
    lowered = _feature_learning._agop.lower(model, params, x, 3, 8)
    text = lowered.compile().as_text()
    assert len(re.findall(r" = .* all-reduce(-start)?\(", text)) == 1
    assert "all-gather" not in text


def test_everything_can_be_recorded_during_training():
    params, x = problem(k=1)
    y = jnp.reshape(x, (16, 4))[:, :1]
    hidden = lambda params: jnp.tanh(jnp.reshape(x, (16, 4)) @ params["w"])

    def measure(state):
        kernel = kernels.empirical_ntk(model, state.params, x)
        before = kernels.empirical_ntk(model, state.initial_params, x)
        matrix = kernels.agop(model, state.params, x, batch_size=5)
        top = jnp.linalg.eigh(matrix)[1][:, -1:]
        features = hidden(state.params), hidden(state.initial_params)
        return {
            "velocity": kernels.kernel_velocity(before, kernel, time=1.0),
            "change": kernels.kernel_change(before, kernel),
            "alignment": kernels.uncentred_alignment(kernel, y),
            "energy": kernels.target_energy(kernel, y),
            "spectrum": kernels.spectrum_summary(kernel, ridge=0.1),
            "cka": kernels.cka(*features),
            "ansatz": kernels.neural_feature_ansatz(state.params["w"].T, matrix),
            "overlap": kernels.subspace_overlap(top, jnp.eye(4)[:, :1]),
            "direction": kernels.direction_overlap(top[:, 0], jnp.eye(4)[0]),
        }

    optimizer = optax.sgd(0.05)
    history = dynamics.train(
        dynamics.supervised(model, lambda out, y: jnp.sum((out - y) ** 2, axis=1)),
        dynamics.init(optimizer, params),
        optimizer,
        (x, y),
        num_steps=20,
        key=jax.random.key(0),
        record={"measured": measure},
        record_every=10,
        progress=False,
    )
    found = history.records["measured"]
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(found))
    assert found["change"][0] < 10 * EPS < 1e-2 < found["change"][1]
    np.testing.assert_allclose(found["cka"][0], 1, rtol=1e-4)
    assert found["energy"].shape == (3, 16)
    np.testing.assert_allclose(
        found["direction"] ** 2, found["overlap"], atol=100 * EPS
    )
    assert history.trace["loss"][-1] < history.trace["loss"][0]


def test_new_parameters_are_no_new_trace():
    params, x = problem()
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return model(params, x)

    measure = lambda params: kernels.agop(counted, params, x, batch_size=5)
    first = measure(params)
    number = len(traces)
    second = measure(jax.tree.map(lambda a: 2 * a, params))
    assert len(traces) == number
    assert jnp.any(first != second)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("scale", [1e-20, 1.0])
def test_ansatz_is_its_definition(power, centred, scale):
    params, x = problem(k=1)
    matrix = expected_agop(params, x)
    values, vectors = np.linalg.eigh(matrix)
    a = np.asarray(params["w"], np.float64) @ np.asarray(params["w"], np.float64).T
    b = vectors * np.maximum(values, 0) ** power @ vectors.T
    if centred:
        a, b = a - a.mean(), b - b.mean()
    expected = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    measure = jax.jit(kernels.neural_feature_ansatz, static_argnames="centred")
    found = measure(
        scale * params["w"].T,
        scale * jnp.asarray(matrix, jnp.float32),
        power=power,
        centred=centred,
    )
    # The root of an eigenvalue that is a rounding error is sqrt(eps).
    np.testing.assert_allclose(found, expected, atol=100 * EPS**power)


def test_ansatz_holds_exactly_where_it_should():
    """A linear model's gradient is its weight."""
    weight = jax.random.normal(jax.random.key(1), (1, 5))
    matrix = kernels.agop(lambda w, x: x @ w.T, weight, jnp.ones((3, 5)))
    for power in (0.5, 1, 2.0):
        found = kernels.neural_feature_ansatz(weight, matrix, power=power)
        np.testing.assert_allclose(found, 1, atol=1e-3)
    # A small power does not make directions of eigenvalues that are rounding.
    wide = jax.random.normal(jax.random.key(2), (1, 200))
    found = kernels.neural_feature_ansatz(wide, wide.T @ wide, power=0.1)
    np.testing.assert_allclose(found, 1, atol=1e-5)
    assert jnp.isnan(kernels.neural_feature_ansatz(0 * weight, matrix))
    holed = matrix.at[0, 0].set(jnp.inf)
    assert jnp.isnan(kernels.neural_feature_ansatz(weight, holed))


def test_subspace_overlap_is_the_mean_squared_cosine():
    angle = 0.3
    axes = jnp.eye(5)
    tilted = jnp.cos(angle) * axes[:, 0] + jnp.sin(angle) * axes[:, 3]
    subspace = jnp.stack([tilted, axes[:, 1]], 1)
    expected = (np.cos(angle) ** 2 + 1) / 2
    found = jax.jit(kernels.subspace_overlap)(subspace, axes[:, :2])
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)
    mixed = 1e-25 * subspace @ jnp.array([[1.0, 2.0], [3.0, 5.0]])
    found = kernels.subspace_overlap(mixed, axes[:, :2])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_subspace_overlap_of_other_dimensions():
    axes = jnp.eye(5)
    assert kernels.subspace_overlap(axes[:, :3], axes[:, 1:2]).round(5) == 1
    assert kernels.subspace_overlap(axes[:, 1:2], axes[:, :4]).round(5) == 0.25
    # Columns that depend on each other span no more.
    doubled = jnp.concatenate([axes[:, :1], 2 * axes[:, :1]], 1)
    assert kernels.subspace_overlap(doubled, axes[:, :2]).round(5) == 0.5
    assert kernels.subspace_overlap(axes[:, :2], doubled).round(5) == 1
    assert kernels.subspace_overlap(0 * axes, axes) == 0
    assert jnp.isnan(kernels.subspace_overlap(axes, 0 * axes))
    assert jnp.isnan(kernels.subspace_overlap(axes.at[0, 0].set(jnp.nan), axes))


def test_direction_overlap():
    keys = jax.random.split(jax.random.key(0))
    w, u = (np.asarray(jax.random.normal(key, (7,)), np.float64) for key in keys)
    expected = abs(w @ u) / np.linalg.norm(w) / np.linalg.norm(u)
    found = kernels.direction_overlap(-1e30 * jnp.asarray(w), jnp.asarray(u))
    np.testing.assert_allclose(found, expected, rtol=20 * EPS)
    found = kernels.subspace_overlap(jnp.asarray(w)[:, None], jnp.asarray(u)[:, None])
    np.testing.assert_allclose(found, expected**2, rtol=20 * EPS)
    assert jnp.isnan(kernels.direction_overlap(jnp.zeros(7), jnp.asarray(u)))


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    params, x = problem()
    matrix, axes = jnp.eye(4), jnp.eye(4)
    with pytest.raises(ValueError, match=r"`x` must be floating-point .* int32"):
        kernels.agop(model, params, jnp.ones((2, 2, 2), int))
    with pytest.raises(ValueError, match=r"`apply_fn` must return one floating-point"):
        kernels.agop(lambda p, x: jnp.sum(x), params, x)
    with pytest.raises(ValueError, match=r"`apply_fn` must return one .* int32"):
        kernels.agop(lambda p, x: jnp.argmax(x[:, 0], 1), params, x)
    with pytest.raises(ValueError, match=r"`apply_fn` must return one floating-point"):
        kernels.agop(lambda p, x: (x, x), params, x)
    with pytest.raises(ValueError, match=r"`batch_size` must be None"):
        kernels.agop(model, params, x, batch_size=0)
    with pytest.raises(ValueError, match=r"`weight` must be \[k, d\].*\(4, 6\)"):
        kernels.neural_feature_ansatz(params["w"], matrix)
    with pytest.raises(ValueError, match=r"`power` must be positive and finite"):
        kernels.neural_feature_ansatz(params["w"].T, matrix, power=0)
    with pytest.raises(ValueError, match=r"`reference` must be a matrix \[d, r\]"):
        kernels.subspace_overlap(axes, axes[0])
    with pytest.raises(ValueError, match=r"`reference` must live in the space"):
        kernels.subspace_overlap(axes, axes[:2])
    with pytest.raises(ValueError, match=r"`vector` and `direction` must be vectors"):
        kernels.direction_overlap(axes, axes)
