"""Infinite-width kernels of Flax models against closed forms and hand-written stax."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtheory import models
from jaxtheory.kernels import infinite_width
from jaxtheory.kernels._neural_tangents import neural_tangents

W, B = 1.3, 0.2
COSINES = np.array([-1, -0.5, 0, 0.5, 1])
# Reference page of kernels, section 4 A, and the recursion below.
NTK_TABLE = {
    1: [0, -0.0576688856, 0.3183098862, 0.9423311144, 2],
    2: [0.3183098862, 0.3438622463, 0.6857086363, 1.3514795611, 3],
    3: [0.6857086363, 0.7422493226, 1.0603881068, 1.7378446792, 4],
}


def inputs(n, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def he_network(depth, **options):
    """A He-initialised relu network without biases, and its deviations."""
    model = models.MLP((8,) * depth, num_outputs=1, use_bias=False, **options)
    hidden = {f"layer_{i + 1}": 2**0.5 for i in range(depth)}
    return model, {**hidden, "output": 1.0}


def relu_recursion(x, z, depth):
    """NNGP and NTK of such a network, in NumPy (arXiv:1904.11955, section 3)."""
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1) / x.shape[1]
    nngp = x @ z.T / x.shape[1]
    ntk = nngp
    for _ in range(depth):
        rho = np.clip(nngp / norms, -1, 1)
        angle = np.arccos(rho)
        slope = (np.pi - angle) / np.pi
        nngp = norms * (np.sin(angle) / np.pi + slope * rho)
        ntk = nngp + slope * ntk
    return nngp, ntk


def pairs(dimension=10):
    """One input against five at given cosines, all of squared length `dimension`."""
    z = np.zeros((5, dimension))
    z[:, 0], z[:, 1] = COSINES, np.sqrt(1 - COSINES**2)
    return z[-1:] * dimension**0.5, z * dimension**0.5


def stax_kernels(layers, x, z=None):
    """NNGP and NTK of layers written by hand in stax."""
    kernel = neural_tangents().stax.serial(*layers)[2]
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        return jax.jit(lambda x, z: tuple(kernel(x, z, ("nngp", "ntk"))))(x, z)


def assert_close(found, expected, relative):
    """Agreement of both kernels to `relative` of the largest entry."""
    for one, other in zip((found.nngp, found.ntk), expected, strict=True):
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * scale)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_table_of_relu_networks(depth, x64):
    model, deviations = he_network(depth)
    x, z = pairs()
    found = infinite_width(model, x, z, weight_std=deviations)
    np.testing.assert_allclose(found.ntk[0], NTK_TABLE[depth], rtol=0, atol=6e-11)
    # `arccos` loses half of the digits where the angle is 0 or pi.
    assert_close(found, relu_recursion(x, z, depth), 1e-7)
    assert found.num_nonfinite == 0
    if depth == 1:
        expected = [0, 0.1089977810, 1 / np.pi, 0.6089977810, 1]
        np.testing.assert_allclose(found.nngp[0], expected, rtol=0, atol=6e-11)


@pytest.mark.parametrize("double", [True, False])
def test_diagonal_is_exact(double):
    x = inputs(9, 10)
    expected = 3 * np.sum(x**2, 1) / 10
    tolerance = 3e-15 if double else 1e-6
    model, deviations = he_network(2)
    with jax.enable_x64(double):
        for batch_size in (None, 4):
            options = {"weight_std": deviations, "batch_size": batch_size}
            found = infinite_width(model, jnp.asarray(x), **options)
            assert found.ntk.dtype == (np.float64 if double else np.float32)
            np.testing.assert_allclose(np.diag(found.ntk), expected, rtol=tolerance)
            np.testing.assert_allclose(
                np.diag(found.nngp), expected / 3, rtol=tolerance
            )
            np.testing.assert_array_equal(found.ntk, found.ntk.T)


class Dense(nn.Module):
    """One layer for each activation, and an output layer."""

    activations: tuple

    @nn.compact
    def __call__(self, x):
        for activation in self.activations:
            x = activation(nn.Dense(4)(x))
        return nn.Dense(2)(x)


class Convolutional(nn.Module):
    """Strided convolutions; positions flattened, or pooled."""

    pool: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2))(x))
        if self.pool:
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = jnp.abs(nn.Conv(4, (3, 3), padding="SAME" if self.pool else "VALID")(x))
        x = jnp.mean(x, (1, 2)) if self.pool else x.reshape(len(x), -1)
        return nn.Dense(2)(x)


class Residual(nn.Module):
    """Residual blocks, activation first, with normalisation in the branch."""

    blocks: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        for _ in range(self.blocks):
            h = nn.LayerNorm()(nn.Dense(4)(nn.relu(x)))
            x = x + nn.Dense(4)(nn.relu(h))
        return nn.Dense(2)(nn.relu(x))


def by_hand(name):
    """The model, the same in stax, and the shape of an input."""
    stax = neural_tangents().stax
    dense = lambda: stax.Dense(1, W, B)
    conv = lambda strides, padding: stax.Conv(
        1, (3, 3), strides, padding, W_std=W, b_std=B
    )
    if name == "mlp":
        gelu = lambda x: nn.gelu(x, approximate=False)
        functions = (nn.relu, nn.leaky_relu, jnp.abs, jax.scipy.special.erf, gelu)
        functions = (*functions, jnp.sin, lambda x: 2 * jnp.cos(x / 2))
        layers = [stax.Relu(), stax.LeakyRelu(0.01), stax.Abs(), stax.Erf()]
        layers += [stax.Gelu(), stax.Sin(), stax.Cos(2, 0.5)]
        rows = [layer for f in layers for layer in (dense(), f)]
        return Dense(functions), [*rows, dense()], (5,)
    if name == "exponential":
        functions = (lambda x: jnp.exp(-x / 2), lambda x: x**3 - 2 * x)
        layers = [dense(), stax.Exp(1, -0.5), dense(), stax.Polynomial([0, -2, 0, 1])]
        return Dense(functions), [*layers, dense()], (5,)
    if name in ("flatten", "pool"):
        last = [stax.GlobalAvgPool()] if name == "pool" else [stax.Flatten()]
        middle = [stax.AvgPool((2, 2), (2, 2))] if name == "pool" else []
        padding = "SAME" if name == "pool" else "VALID"
        layers = [conv((2, 2), "SAME"), stax.Relu(), *middle]
        layers += [conv((1, 1), padding), stax.Abs(), *last, dense()]
        return Convolutional(name == "pool"), layers, (8, 8, 3)
    if name == "models.CNN":
        block = lambda pool: [conv((1, 1), "SAME"), stax.Relu(), pool]
        layers = [*block(stax.AvgPool((2, 2), (2, 2))), *block(stax.GlobalAvgPool())]
        return models.CNN((4, 4), num_outputs=2), [*layers, dense()], (6, 6, 2)
    norm = stax.LayerNorm(eps=1e-6)
    branch = [stax.Relu(), dense(), norm, stax.Relu(), dense()]
    parallel = stax.parallel(stax.Identity(), stax.serial(*branch))
    block = [stax.FanOut(2), parallel, stax.FanInSum()]
    return Residual(), [dense(), *block, *block, stax.Relu(), dense()], (5,)


NAMES = [
    "mlp",
    "exponential",
    "flatten",
    "pool",
    "models.CNN",
    "residual",
]


@pytest.mark.parametrize("name", NAMES)
def test_equals_stax_written_by_hand(name, x64):
    model, layers, shape = by_hand(name)
    x, z = inputs(3, *shape), inputs(2, *shape, seed=1)
    options = {"weight_std": W, "bias_std": B, "first_layer": "gaussian"}
    found = infinite_width(model, x, z, **options)
    assert_close(found, stax_kernels(layers, x, z), 1e-12)
    if name in ("mlp", "pool"):
        # neural-tangents itself is off by 1e-8 on the diagonal, compiled.
        same = infinite_width(model, x, **options)
        assert_close(same, stax_kernels(layers, x), 1e-7)


def test_batches_give_the_same(x64):
    model, x, z = Dense((nn.relu,)), inputs(5, 4), inputs(3, 4, seed=1)
    options = {"weight_std": W, "bias_std": B, "first_layer": "gaussian"}
    for other in (z, None):
        whole = infinite_width(model, x, other, **options)
        parts = infinite_width(model, x, other, batch_size=2, **options)
        assert_close(parts, (whole.nngp, whole.ntk), 1e-14)


def test_compiles_once():
    traces = []

    def activation(x):
        traces.append(1)
        return nn.relu(x)

    model = models.MLP((4,), num_outputs=2, activation=activation)
    x = jnp.asarray(inputs(4, 3), jnp.float32)
    options = {"weight_std": 1.0, "first_layer": "gaussian"}
    first = infinite_width(model, x, **options)
    number = len(traces)
    # Without biases, kernels grow with the squared length.
    equal = models.MLP((4,), num_outputs=2, activation=activation)
    second = infinite_width(equal, 2 * x, **options)
    np.testing.assert_allclose(second.ntk, 4 * first.ntk, rtol=1e-5)
    infinite_width(model, x, weight_std=2.0, first_layer="gaussian")
    assert len(traces) == number


def test_works_inside_jit():
    model, deviations = he_network(1)
    x = jnp.asarray(inputs(3, 4), jnp.float32)
    kernel = lambda x: infinite_width(model, x, weight_std=deviations).ntk
    np.testing.assert_allclose(jax.jit(kernel)(x), kernel(x), rtol=1e-6)


def test_estimated_deviations_are_within_three_standard_errors():
    model = Residual(1)
    x = jnp.asarray(inputs(3, 5), jnp.float32)
    options = {"first_layer": "gaussian"}
    found = infinite_width(model, x, key=jax.random.key(2), **options)
    for path, estimate in found.deviations.items():
        assert path.endswith("kernel")  # biases start at zero, and count for nothing
        assert 0 < estimate.standard_error < 0.02
        # Flax's default: variance 1 / fan_in.
        assert abs(estimate.value - 1) < 3 * estimate.standard_error
    exact = infinite_width(model, x, weight_std=1.0, **options)
    assert exact.deviations["Dense_0/kernel"].num_samples == 0
    # What the error of each deviation changes, to first order.
    variance = 0.0
    for path, estimate in found.deviations.items():
        moved = dict.fromkeys(found.deviations, 1.0)
        moved[path] = 1.0 + float(estimate.standard_error)
        change = infinite_width(model, x, weight_std=moved, **options).ntk - exact.ntk
        variance = variance + np.asarray(change) ** 2
    assert np.all(np.abs(found.ntk - exact.ntk) < 3 * np.sqrt(variance))


def test_both_parametrizations_have_one_kernel():
    x = jnp.asarray(inputs(4, 3), jnp.float32)
    options = {"weight_std": 1.5, "bias_std": 0.3}
    standard = models.MLP((16,), num_outputs=2, **options)
    exact = infinite_width(standard, x, **options)
    scaled = models.MLP((16,), num_outputs=2, parametrization="ntk", **options)
    found = infinite_width(scaled, x)
    # Two weights and two biases, each known to half a percent.
    np.testing.assert_allclose(found.ntk, exact.ntk, rtol=0.03)
    np.testing.assert_allclose(found.nngp, exact.nngp, rtol=0.03)
    # Deviations are those of the parameters as they are stored: N(0, 1) here.
    stored = found.deviations["output/kernel"]
    assert abs(stored.value - 4) < 3 * stored.standard_error
    given = {path: float(value.value) for path, value in found.deviations.items()}
    again = infinite_width(scaled, x, weight_std=given)
    np.testing.assert_allclose(again.ntk, found.ntk, rtol=1e-6)
