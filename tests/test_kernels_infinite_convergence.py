"""Wide networks converge to their infinite-width kernels, and what stays different."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtheory import kernels, models
from jaxtheory.kernels import infinite_width

variance_scaling = nn.initializers.variance_scaling
INITIALISERS = {
    "truncated": nn.initializers.lecun_normal(),
    "uniform": variance_scaling(1.0, "fan_in", "uniform"),
    "normal": variance_scaling(1.0, "fan_in", "normal"),
}


def inputs(n, d):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, d)), jnp.float32)


def test_empirical_kernels_converge_as_one_over_root_width():
    """Reference page of kernels, section 4 B, in short."""
    x, widths, seeds = inputs(8, 10), (64, 512), 8
    options = {"num_outputs": 1, "use_bias": False, "parametrization": "ntk"}
    # The limit knows no width. Empirical kernels have their biases left out.
    exact = infinite_width(
        models.MLP((8,), num_outputs=1, use_bias=False), x, weight_std=2**0.5
    ).ntk
    errors = []
    for width in widths:
        model = models.MLP((width,), **options)
        squares = []
        for seed in range(seeds):
            params = model.init(jax.random.key(seed), x[:1])
            found = kernels.empirical_ntk(model.apply, params, x)
            squares.append(jnp.sum((found - exact) ** 2) / jnp.sum(exact**2))
        errors.append(float(jnp.mean(jnp.stack(squares))) ** 0.5)
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert errors[-1] < 0.1
    assert -0.75 < slope < -0.3


class OneLayer(nn.Module):
    """One hidden layer, or two with a residual sum, with an initialiser."""

    initialiser: str
    deep: bool = False
    convolve: bool = False

    @nn.compact
    def __call__(self, x):
        draw = INITIALISERS[self.initialiser]
        if self.convolve:
            h = nn.Conv(8, (2,), kernel_init=draw, name="first")(x)
            return nn.Dense(1, name="output")(jnp.mean(nn.tanh(h), 1))
        h = nn.Dense(8, kernel_init=draw, name="first")(x)
        if self.deep:
            h = h + nn.Dense(8, name="branch")(nn.relu(h))
        return nn.Dense(1, name="output")(nn.tanh(h))


def units(initialiser, key, shape, number):
    """That many columns of a weight matrix, of deviation 1.5 / sqrt(fan_in)."""
    draw = lambda k: INITIALISERS[initialiser](k, (*shape, 1024))
    columns = jax.lax.map(draw, jax.random.split(key, number // 1024))
    return 1.5 * jnp.moveaxis(columns, 0, -2).reshape(*shape, number)


def relative(found, expected):
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize(("name", "least", "most"), [
    ("uniform", 0.07, 0.16), ("normal", 0.0, 0.0)
])  # fmt: skip
def test_first_layer_never_averages_out(name, least, most):
    """Axis-aligned inputs of two features, the worst case of section 7."""
    x = 2 * jnp.eye(2)
    options = {"weight_std": 1.5}
    exact = infinite_width(OneLayer(name), x, **options)
    gaussian = infinite_width(OneLayer(name), x, first_layer="gaussian", **options)
    h = nn.tanh(x @ units(name, jax.random.key(1), (2,), 2**18))
    true = 1.5**2 * h @ h.T / h.shape[1]
    offset = relative(gaussian.nngp, exact.nngp)
    assert least <= offset <= most
    # Relative error of the sampled truth, and of the kernel as it says itself.
    error = 4e-3 + 4 * float(exact.first_layer_error)
    assert relative(exact.nngp, true) < error
    if name != "normal":
        assert 0 < exact.first_layer_error < 0.2 * offset
        assert relative(gaussian.nngp, true) > 0.7 * least
        slope = 1 - h**2
        ntk = true + 1.5**2 * (slope @ slope.T / h.shape[1]) * (1.5**2 * x @ x.T / 2)
        assert relative(exact.ntk, ntk) < error


def test_first_layer_offset_of_wide_empirical_kernels():
    """Ten features: truncated weights are off by about 1 %, at any width."""
    x = inputs(3, 10)
    model = OneLayer("truncated")
    exact = infinite_width(model, x, weight_std=1.5)
    gaussian = infinite_width(model, x, weight_std=1.5, first_layer="gaussian")
    h = nn.tanh(x @ units("truncated", jax.random.key(1), (10,), 2**18))
    wide = 1.5**2 * h @ h.T / h.shape[1]
    assert 0.005 < relative(gaussian.nngp, wide) < 0.03
    assert relative(exact.nngp, wide) < 0.4 * relative(gaussian.nngp, wide)


def test_first_layer_within_a_residual_sum():
    """The first layer is added to a deeper one before the activation."""
    x = jnp.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.5]])
    model = OneLayer("uniform", deep=True)
    exact = infinite_width(model, x, weight_std=1.5)
    gaussian = infinite_width(model, x, weight_std=1.5, first_layer="gaussian")
    first, second = jax.random.split(jax.random.key(1))
    h = x @ units("uniform", first, (2,), 2**18)
    covariance = 1.5**2 * nn.relu(h) @ nn.relu(h).T / h.shape[1]
    deeper = jnp.linalg.cholesky(covariance) @ jax.random.normal(second, h.shape)
    out = nn.tanh(h + deeper)
    true = 1.5**2 * out @ out.T / h.shape[1]
    assert relative(exact.nngp, true) < 5e-3
    assert relative(gaussian.nngp, true) > 1e-2


def test_first_layer_of_a_convolution():
    """Positions are correlated, and the padded ones see fewer weights."""
    x = inputs(3, 8).reshape(3, 4, 2)
    model = OneLayer("uniform", convolve=True)
    exact = infinite_width(model, x, weight_std=1.5)
    gaussian = infinite_width(model, x, weight_std=1.5, first_layer="gaussian")
    filters = units("uniform", jax.random.key(1), (2, 2), 2**18)
    names = ("NHC", "HIO", "NHC")
    h = jax.lax.conv_general_dilated(x, filters, (1,), "SAME", dimension_numbers=names)
    h = jnp.mean(nn.tanh(h), 1)
    true = 1.5**2 * h @ h.T / h.shape[1]
    assert relative(exact.nngp, true) < 8e-3
    assert relative(gaussian.nngp, true) > 1.5 * relative(exact.nngp, true)
