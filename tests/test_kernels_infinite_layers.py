"""Layers and sums of infinite width against simulation, stax, and each other."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy.special import roots_hermitenorm

from jaxtheory import models
from jaxtheory.kernels import infinite_width
from jaxtheory.kernels._neural_tangents import neural_tangents

GAUSSIAN = {"weight_std": 1.3, "bias_std": 0.2, "first_layer": "gaussian"}


class Function(nn.Module):
    """A module that is a function."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def inputs(n, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def kernels_of(function, x, z=None, **options):
    """Kernels of a network written as a function."""
    return infinite_width(Function(function), x, z, **{**GAUSSIAN, **options})


def assert_same(found, expected, relative=1e-12):
    for one, other in zip(found[:2], expected[:2], strict=True):
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * scale)


def double_integral(function, covariance, points=200):
    """``E[f(u) f(v)]`` by quadrature in two dimensions."""
    nodes, weights = roots_hermitenorm(points)
    weights = weights / weights.sum()
    a, b, c = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    u = np.sqrt(a) * np.broadcast_to(nodes[:, None], (points, points))
    v = b / np.sqrt(a) * nodes[:, None] + np.sqrt(c - b**2 / a) * nodes
    values = np.asarray(function(u)) * np.asarray(function(v))
    return weights @ values @ weights


@pytest.mark.parametrize("function", [nn.tanh, nn.silu, nn.softplus, nn.gelu])
def test_any_function_is_integrated(function, x64):
    x = inputs(3, 4)
    found = kernels_of(lambda x: nn.Dense(1)(function(nn.Dense(4)(x))), x)
    first = 1.3**2 * x @ x.T / 4 + 0.2**2
    value = jax.jit(function)
    slope = jax.jit(jax.vmap(jax.vmap(jax.grad(function))))
    for i, j in ((0, 0), (0, 1), (1, 2)):
        pair = first[np.ix_([i, j], [i, j])] + 1e-13 * np.eye(2)
        nngp = 1.3**2 * double_integral(value, pair) + 0.2**2
        ntk = nngp + 1.3**2 * double_integral(slope, pair) * pair[0, 1]
        np.testing.assert_allclose(found.nngp[i, j], nngp, rtol=1e-9)
        np.testing.assert_allclose(found.ntk[i, j], ntk, rtol=1e-7)
    assert found.integration_error < 1e-6


def test_a_kink_shows_in_the_integration_error():
    x = jnp.asarray(inputs(2, 4), jnp.float32)
    network = lambda f: lambda x: nn.Dense(1)(f(nn.Dense(4)(x)))
    kink = kernels_of(network(nn.hard_tanh), x)
    smooth = kernels_of(network(nn.tanh), x)
    assert 1e-3 < kink.integration_error < 0.1
    assert smooth.integration_error < 1e-6
    # relu less relu, shifted: in closed form on the diagonal.
    variance = 1.3**2 * np.sum(np.asarray(x[0], float) ** 2) / 4 + 0.2**2
    z = np.sqrt(variance) * np.random.default_rng(0).normal(size=10**6)
    expected = 1.3**2 * np.mean(np.clip(z, -1, 1) ** 2) + 0.2**2
    np.testing.assert_allclose(kink.nngp[0, 0], expected, rtol=3e-3)


def test_ways_to_write_relu_have_one_kernel(x64):
    ways = [
        nn.relu,
        lambda x: x * (x > 0),
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: (x + abs(x)) / 2,
        lambda x: 3 * jnp.maximum(x / 3, 0),
    ]
    x = inputs(3, 4)
    network = lambda f: lambda x: nn.Dense(1)(f(nn.Dense(4)(x)))
    found = [kernels_of(network(way), x) for way in ways]
    assert all(one.integration_error == 0 for one in found)
    for other in found[1:]:
        assert_same(other, found[0])


def test_correlated_branches_against_wide_networks():
    """Sums of one layer's outputs, and functions of two layers that share one."""

    def network(x):
        h = nn.Dense(4)(x)
        g = h / 2 + nn.Dense(4)(nn.relu(h)) + h
        return nn.Dense(1)(nn.relu(h) + nn.tanh(g) + 0.3 * h - 0.2)

    x = inputs(3, 4).astype(np.float32)
    found = kernels_of(network, x, bias_std=0.0)

    draw = np.random.default_rng(0).standard_normal

    def nngp(width=1024):
        """Covariance of outputs of one draw, over the last layer in closed form."""
        h = x @ draw((4, width), np.float32) * 1.3 / 4**0.5
        w = draw((width, width), np.float32) * 1.3 / width**0.5
        g = h / 2 + np.maximum(h, 0) @ w + h
        out = np.maximum(h, 0) + np.tanh(g) + 0.3 * h - 0.2
        return 1.3**2 * out @ out.T / width

    samples = [nngp() for _ in range(40)]
    error = np.std(samples, 0, ddof=1) / 40**0.5
    assert np.all(np.abs(np.mean(samples, 0) - found.nngp) < 4 * error)
    assert np.max(error) < 0.01 * np.max(found.nngp)


def test_tangent_kernel_of_correlated_branches():
    """Against empirical tangent kernels, leaf by leaf, at growing width."""
    x = inputs(3, 4).astype(np.float32)

    def forward(w, x):
        s = [1.3 / len(one) ** 0.5 for one in w]
        h = x @ w[0] * s[0]
        g = h / 2 + nn.relu(h) @ w[1] * s[1]
        return ((nn.relu(h) + nn.tanh(g)) @ w[2] * s[2])[0]

    @jax.jit
    def ntk(w):
        rows = jax.vmap(jax.grad(forward), (None, 0))(w, x)
        flat = [leaf.reshape(3, -1) for leaf in rows]
        return sum(leaf @ leaf.T for leaf in flat)

    def network(x):
        h = nn.Dense(4)(x)
        g = h / 2 + nn.Dense(4)(nn.relu(h))
        return nn.Dense(1)(nn.relu(h) + nn.tanh(g))

    found = kernels_of(network, x, bias_std=0.0)
    draw, width = np.random.default_rng(0).standard_normal, 1024
    shapes = [(4, width), (width, width), (width, 1)]
    draws = ([draw(shape, np.float32) for shape in shapes] for _ in range(30))
    samples = [np.asarray(ntk(w)) for w in draws]
    error = np.std(samples, 0, ddof=1) / 30**0.5
    bias = 0.01 * np.max(found.ntk)  # of order 1 / width
    assert np.all(np.abs(np.mean(samples, 0) - found.ntk) < 4 * error + bias)


def linear_attention(query, key, value, **_):
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("...hqk,...khd->...qhd", scores, value)


def test_linear_attention_equals_stax(x64):
    def network(x):
        attention = nn.MultiHeadDotProductAttention(
            2, qkv_features=8, attention_fn=linear_attention, use_bias=False
        )
        x = attention(nn.relu(nn.Dense(4)(x)))
        return nn.Dense(1)(jnp.mean(x, 1))

    stax = neural_tangents().stax
    attention = stax.GlobalSelfAttention(
        *(1, 1, 1, 1, False, 1.3, 1.3, 1.3, 1.3), attention_mechanism="IDENTITY"
    )
    dense = stax.Dense(1, 1.3, 0.2)
    layers = [dense, stax.Relu(), attention, stax.GlobalAvgPool(), dense]
    x, z = inputs(2, 3, 4), inputs(3, 3, 4, seed=1)
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        kernel = stax.serial(*layers)[2]
        expected = jax.jit(lambda x, z: tuple(kernel(x, z, ("nngp", "ntk"))))(x, z)
    assert_same(kernels_of(network, x, z), expected)


class Block(nn.Module):
    """A residual block, in the form that `nn.scan` takes."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4)(nn.relu(x)), None


def scanned(x):
    parts = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    x, _ = nn.scan(Block, length=2, **parts)()(nn.Dense(4)(x), None)
    return nn.Dense(1)(x)


def unrolled(x):
    x = nn.Dense(4)(x)
    for _ in range(2):
        x, _ = Block()(x, None)
    return nn.Dense(1)(x)


def rematerialised(x):
    x = jax.jit(lambda x: x * 1.0)(nn.remat(nn.Dense)(4)(x))
    for _ in range(2):
        x, _ = nn.remat(Block)()(x, None)
    return nn.Dense(1)(x)


def test_programs_within_programs(x64):
    x = inputs(3, 4)
    expected = kernels_of(unrolled, x)
    assert_same(kernels_of(rematerialised, x), expected)
    assert_same(kernels_of(scanned, x), expected)


def test_positions_can_be_padded_cut_and_turned(x64):
    """Maps of positions commute with layers that treat each position alike."""
    x = inputs(2, 4, 3, 2)
    turn = lambda h: jnp.flip(jnp.swapaxes(h, 1, 2), 1)[:, :2].reshape(len(h), -1, 4)
    end = lambda h: nn.Dense(1)(jnp.mean(nn.relu(h), 1))
    early = kernels_of(lambda x: end(nn.Dense(4)(turn(jnp.tile(x, 2)))), x)
    late = kernels_of(lambda x: end(turn(nn.Dense(4)(jnp.tile(x, 2)))), x)
    assert_same(late, early)


def test_normalisation_over_channels(x64):
    """RMSNorm of a Gaussian layer is LayerNorm; LayerNorm centres a relu."""
    x = inputs(3, 4)
    network = lambda norm: lambda x: nn.Dense(1)(nn.relu(norm()(nn.Dense(4)(x))))
    layer = kernels_of(network(nn.LayerNorm), x)
    assert_same(kernels_of(network(nn.RMSNorm), x), layer)
    centred = kernels_of(
        lambda x: nn.Dense(1)(nn.LayerNorm(epsilon=0.0)(nn.relu(nn.Dense(4)(x)))), x
    )
    np.testing.assert_allclose(np.diag(centred.nngp), 1.3**2 + 0.2**2, rtol=1e-8)
    first = 1.3**2 * x @ x.T / 4 + 0.2**2
    moment, mean = first[0, 0] / 2, np.sqrt(first[0, 0] / (2 * np.pi))
    slope = (1.3**2 * 0.5 * first[0, 0]) / (moment - mean**2)
    expected = centred.nngp[0, 0] + slope
    np.testing.assert_allclose(centred.ntk[0, 0], expected, rtol=1e-8)


def test_embedding_is_a_layer_on_one_hot_inputs(x64):
    tokens = np.array([[0, 3, 1], [2, 3, 3], [1, 1, 0]])
    end = lambda h: nn.Dense(1)(jnp.mean(nn.relu(nn.Dense(4)(h)), 1))
    options = {"bias_std": 0.0, "weight_std": 1.0}
    one_hot = lambda x: end(nn.Dense(4, use_bias=False)(x))
    expected = kernels_of(one_hot, np.eye(5)[tokens], **options)
    found = kernels_of(lambda x: end(nn.Embed(5, 4)(x)), tokens, **options)
    assert_same(found, expected)


class Positions(nn.Module):
    """A layer with a learned embedding of positions added."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, use_bias=False)(x)
        h = h + self.param("embedding", nn.initializers.normal(0.5), (1, 3, 4))
        return nn.Dense(1, use_bias=False)(jnp.mean(h, 1))


def test_learned_positions_are_independent_fields(x64):
    x = inputs(2, 3, 4)
    given = {"Dense_0": 1.0, "Dense_1": 1.0, "embedding": 0.5}
    found = infinite_width(Positions(), x, weight_std=given, first_layer="gaussian")
    pooled = np.mean(x, 1)
    nngp = pooled @ pooled.T / 4 + 0.5**2 / 3
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, 2 * nngp, rtol=1e-12)


def test_dropout_in_eval_mode_is_nothing(x64):
    x = inputs(3, 4)
    options = {"weight_std": 1.3, "bias_std": 0.2, "first_layer": "gaussian"}
    with_dropout = models.MLP((4,), num_outputs=1, dropout_rate=0.5)
    without = models.MLP((4,), num_outputs=1)
    expected = infinite_width(without, x, **options)
    assert_same(infinite_width(with_dropout, x, **options), expected)


class Net(nnx.Module):
    """A small NNX network."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.output = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.hidden(x)))


def test_an_nnx_model_as_a_pair_of_functions(x64):
    graph, _ = nnx.split(Net(nnx.Rngs(0)))
    init = lambda key, x: nnx.to_pure_dict(nnx.split(Net(nnx.Rngs(params=key)))[1])

    def apply(params, x):
        return nnx.merge(graph, params)(x)

    x = inputs(3, 4)
    found = infinite_width((init, apply), x, **GAUSSIAN)
    expected = kernels_of(lambda x: nn.Dense(1)(nn.relu(nn.Dense(8)(x))), x)
    assert_same(found, expected)
