"""Exponents of synthetic power laws, and of the three parametrisations of an MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxtheory import kernels, models

WIDTHS = (64, 512)


def loss_fn(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def standard(width):
    return _mlp(width, "standard", optax.sgd(1e-4))


def ntk(width):
    return _mlp(width, "ntk", optax.sgd(0.03))


def mup(width):
    """From the standard parametrisation: outputs over sqrt(n), rates n, 1, 1."""
    rates = {"layer_1": width, "layer_2": 1.0, "output": 1.0}
    scale = {name: {"kernel": 0.03 * rate} for name, rate in rates.items()}
    optimizer = optax.chain(
        optax.stateless(
            lambda updates, _: jax.tree.map(jnp.multiply, updates, {"params": scale})
        ),
        optax.sgd(1.0),
    )
    member = _mlp(width, "standard", optimizer)
    outputs = lambda params, x: member.apply_fn(params, x) / np.sqrt(width)
    return member._replace(apply_fn=outputs)


def _mlp(width, parametrization, optimizer):
    model = models.MLP(
        (width, width), 1, parametrization=parametrization, use_bias=False
    )

    def activations(params, x):
        layers = models.features(model, params, x)
        return {name: layers[name] for name in ("layer_1", "layer_2")}

    init = lambda key: model.init(key, jnp.ones((1, 5)))
    return kernels.FamilyMember(init, model.apply, activations, optimizer)


def check(family, **changes):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (8, 5))
    options = {"widths": WIDTHS, "num_steps": 2, "num_seeds": 16, "key": keys[1]}
    options = {**options, **changes}
    loss = options.pop("loss_fn", loss_fn)
    return kernels.coordinate_check(family, loss, x, target(x), **options)


def target(x):
    """Larger than the outputs at the start, which are noise here."""
    return 10 * x[:, :1] * x[:, 1:2]


# What first steps of gradient descent give, by counting powers of the width: see the
# docstring of `coordinate_check`.
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (standard, {"layer_1": -0.5, "layer_2": 0.5, "outputs": 1.0}),
        (ntk, {"layer_1": -0.5, "layer_2": -0.5, "outputs": 0.0}),
        (mup, {"layer_1": 0.0, "layer_2": 0.0, "outputs": 0.0}),
    ],
)
def test_exponents_of_parametrisations(family, expected):
    found = check(family)
    for name, exponent in expected.items():
        value, error, num = found.exponent[name]
        assert num == 32
        assert abs(value - exponent) < 0.1 + 3 * error, (name, value, error)
        assert error < 0.15
        assert found.change[name].shape == (2, 16)
    # Activations begin at the same size at every width; mu-P's outputs vanish.
    for name in ("layer_1", "layer_2"):
        assert abs(found.initial_exponent[name].value) < 0.1
    start = found.initial_exponent["outputs"]
    expected_start = -0.5 if family is mup else 0.0
    assert abs(start.value - expected_start) < 0.1 + 3 * start.standard_error


def test_sizes_are_what_training_by_hand_gives():
    found = check(ntk, widths=(8, 16), num_seeds=2, num_steps=2)
    key_x, key = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(key_x, (8, 5))
    y = target(x)
    member = ntk(16)
    params = start = member.init(jax.random.split(jax.random.fold_in(key, 1), 2)[1])
    mean_loss = lambda p: jnp.mean(loss_fn(member.apply_fn(p, x), y))
    for _ in range(2):
        slope = jax.grad(mean_loss)(params)
        params = jax.tree.map(lambda p, g: p - 0.03 * g, params, slope)
    for name, before in member.activations(start, x).items():
        moved = member.activations(params, x)[name] - before
        expected = np.sqrt(np.mean(np.square(moved)))
        np.testing.assert_allclose(found.change[name][1, 1], expected, rtol=1e-4)
        expected = np.sqrt(np.mean(np.square(before)))
        np.testing.assert_allclose(found.initial[name][1, 1], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_power_law_is_linear_regression_of_logarithms(shape):
    sizes = np.array([10, 20, 50, 100])
    noise = np.random.default_rng(0).normal(0, 0.1, shape)
    powers = (3 * sizes**-0.7).reshape(4, *(1,) * (len(shape) - 1))
    values = powers * np.exp(noise)
    u = np.log(np.broadcast_to(sizes.reshape(powers.shape), shape)).ravel()
    expected = scipy.stats.linregress(u, np.log(values.ravel()))
    fit = kernels.power_law(sizes, jnp.asarray(values))
    np.testing.assert_allclose(fit.value, expected.slope, rtol=1e-5)
    np.testing.assert_allclose(fit.standard_error, expected.stderr, rtol=1e-4)
    assert fit.num_samples == values.size


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_undefined_exponents_are_nan(bad):
    fit = kernels.power_law(jnp.arange(1, 4), jnp.array([1.0, bad, 2.0]))
    assert jnp.isnan(fit.value)
    assert jnp.isnan(fit.standard_error)


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    with pytest.raises(ValueError, match=r"`sizes` must be a vector of at least two"):
        kernels.power_law(jnp.arange(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"`values` must hold at least three"):
        kernels.power_law(jnp.arange(1, 3), jnp.ones(2))
    with pytest.raises(ValueError, match="`values` must be an array of real numbers"):
        kernels.power_law(jnp.arange(1, 4), 1j * jnp.ones(3))
    with pytest.raises(ValueError, match=r"`widths` must hold at least two different"):
        check(ntk, widths=(8, 8))
    with pytest.raises(ValueError, match=r"`num_steps` must be an integer"):
        check(ntk, num_steps=0)
    named = lambda width: ntk(width)._replace(
        activations=lambda params, x: {f"units_{width}": x}
    )
    with pytest.raises(ValueError, match=r"`family` must name the same layers"):
        check(named, widths=(2, 4))
    flat = lambda width: ntk(width)._replace(apply_fn=lambda p, x: x[:1, :1])
    with pytest.raises(ValueError, match=r"`family` must return .* a tuple"):
        check(lambda width: tuple(ntk(width)))
    with pytest.raises(ValueError, match=r"`apply_fn` must return one row of outputs"):
        check(flat, widths=(2, 4), loss_fn=lambda outputs, y: outputs[:, 0])
