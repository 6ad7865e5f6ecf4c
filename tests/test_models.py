"""Networks against closed forms, hand-written layers and their own parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax.errors import InvalidRngError

from jaxtheory import models

X = jax.random.normal(jax.random.key(7), (6, 2, 5))  # d = 10 when flattened
IMAGES = jax.random.normal(jax.random.key(8), (4, 9, 8, 2))


def _build(model: Any, x: Any, seed: int = 0) -> tuple[Any, Any]:
    return model, jax.jit(model.init)(jax.random.key(seed), x)


def _dense(x, layer):
    kernel, bias = np.asarray(layer["kernel"], float), np.asarray(layer["bias"], float)
    return x @ kernel + bias


@pytest.fixture(scope="module")
def mlp():
    return _build(models.MLP((16, 8), 3, bias_std=0.5), X[:1])


@pytest.fixture(scope="module")
def cnn():
    return _build(models.CNN((3, 5), 4, bias_std=0.5), IMAGES[:1])


def test_mlp_is_the_layers_written_out(mlp):
    model, variables = mlp
    p = variables["params"]
    h = np.asarray(X, float).reshape(6, 10)
    expected = {"input": h}
    for name in ("layer_1", "layer_2"):
        expected[name] = h = np.maximum(_dense(h, p[name]), 0)
    features = models.features(model, variables, X)
    assert list(features) == list(expected)
    for name in expected:
        np.testing.assert_allclose(features[name], expected[name], atol=2e-5)
    outputs = model.apply(variables, X)
    np.testing.assert_allclose(outputs, _dense(h, p["output"]), atol=2e-5)


def test_cnn_is_the_blocks_written_out(cnn):
    model, variables = cnn
    p = variables["params"]

    def convolve(images, layer):
        kernel = np.asarray(layer["kernel"], float)[::-1, ::-1]  # true convolution
        out = np.zeros((*images.shape[:3], kernel.shape[3]))
        for n, c, k in np.ndindex(len(images), kernel.shape[2], kernel.shape[3]):
            image, window = images[n, :, :, c], kernel[:, :, c, k]
            out[n, :, :, k] += scipy.signal.convolve2d(image, window, mode="same")
        return np.maximum(out + np.asarray(layer["bias"], float), 0)

    h = convolve(np.asarray(IMAGES, float), p["layer_1"])
    h = h[:, :8].reshape(4, 4, 2, 4, 2, 3).mean((2, 4))  # the ninth row is dropped
    last = convolve(h, p["layer_2"]).mean((1, 2))
    features = models.features(model, variables, IMAGES)
    assert list(features) == ["input", "layer_1", "layer_2"]
    np.testing.assert_allclose(features["layer_1"], h, atol=2e-5)
    np.testing.assert_allclose(features["layer_2"], last, atol=2e-5)
    outputs = model.apply(variables, IMAGES)
    np.testing.assert_allclose(outputs, _dense(last, p["output"]), atol=2e-5)


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_classifier_on_last_features_gives_outputs(parametrization, use_bias):
    kwargs = {"parametrization": parametrization, "use_bias": use_bias}
    bias_std = 0.5 if use_bias else 0.0
    for model, x in (
        (models.MLP((8,), 3, bias_std=bias_std, **kwargs), X),
        (models.MLP((), 3, bias_std=bias_std, **kwargs), X),
        (models.CNN((4,), 3, bias_std=bias_std, **kwargs), IMAGES),
    ):
        model, variables = _build(model, x[:1])
        *_, last = models.features(model, variables, x).values()
        weight, bias = models.classifier(model, variables)
        assert weight.shape == (3, last.shape[1])
        assert bias.shape == (3,)
        assert bool(jnp.any(bias != 0)) == use_bias
        outputs = model.apply(variables, x)
        np.testing.assert_allclose(last @ weight.T + bias[None], outputs, atol=1e-6)


@pytest.mark.parametrize(
    ("parametrization", "weight_std", "bias_std"),
    [("standard", math.sqrt(2), 0.0), ("ntk", 1.2, 0.7)],
)
def test_output_variance_at_initialisation(parametrization, weight_std, bias_std):
    """q_1 = sw^2 |x|^2/d + sb^2, q_{l+1} = sw^2 q_l/2 + sb^2: relu, at every width."""
    options = {"parametrization": parametrization, "weight_std": weight_std}
    model: Any = models.MLP((5, 7), 1, bias_std=bias_std, **options)
    x = X[:1]
    keys = jax.random.split(jax.random.key(3), 4_000)
    draw = jax.jit(jax.vmap(lambda key: model.apply(model.init(key, x), x)[0, 0]))
    squares = np.asarray(draw(keys), float) ** 2
    q = weight_std**2 * float(jnp.sum(x**2)) / 10 + bias_std**2
    for _ in range(2):
        q = weight_std**2 * q / 2 + bias_std**2
    standard_error = squares.std(ddof=1) / math.sqrt(len(squares))
    assert standard_error < 0.1 * q
    assert abs(squares.mean() - q) < 4 * standard_error


def test_ntk_parametrisation_is_the_same_function_rescaled():
    ntk = models.CNN((3, 5), 4, bias_std=0.3, parametrization="ntk")
    ntk, variables = _build(ntk, IMAGES[:1])
    standard: Any = models.CNN((3, 5), 4, bias_std=0.3)
    fan_in = {"layer_1": 9 * 2, "layer_2": 9 * 3, "output": 5}
    scaled = {
        name: {**layer, "kernel": layer["kernel"] * math.sqrt(2 / fan_in[name])}
        for name, layer in variables["params"].items()
    }
    np.testing.assert_allclose(
        ntk.apply(variables, IMAGES),
        standard.apply({"params": scaled}, IMAGES),
        atol=2e-6,
    )


@pytest.mark.parametrize(
    ("parametrization", "std"), [("standard", 0.125), ("ntk", 1.0)]
)
def test_weights_are_untruncated_normal(parametrization, std):
    model = models.MLP((128,), 1, parametrization=parametrization)
    _, variables = _build(model, jnp.ones((1, 128)))
    kernel = np.asarray(variables["params"]["layer_1"]["kernel"]).ravel() / std
    error = 1 / math.sqrt(2 * kernel.size)
    assert abs(kernel.std() - 1) < 4 * error
    # Flax's truncation would end at 2 / .88 = 2.27; 3.5 is the normal's own scale.
    assert np.abs(kernel).max() > 3.5


def test_feature_names_sort_in_order_and_survive_jit():
    model, variables = _build(models.MLP((3,) * 11, 2), X)
    eager = models.features(model, variables, X)
    jitted = jax.jit(lambda v, x: models.features(model, v, x))(variables, X)
    assert list(eager)[:3] == ["input", "layer_01", "layer_02"]
    assert list(eager)[-1] == "layer_11"
    assert list(jitted) == list(eager)


def test_batch_norm_trains_on_the_batch_and_evaluates_on_running_statistics():
    model, variables = _build(models.MLP((8,), 2, batch_norm=True), X)
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["params"]["layer_1"]) == {"kernel"}
    _, updated = model.apply(variables, X, train=True, mutable=["batch_stats"])
    kernel = np.asarray(variables["params"]["layer_1"]["kernel"], float)
    h = np.asarray(X, float).reshape(6, 10) @ kernel
    stats = updated["batch_stats"]["layer_1_norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * h.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * h.var(0), atol=1e-6)
    trained = {"params": variables["params"], **updated}
    normalised = (h - 0.1 * h.mean(0)) / np.sqrt(0.9 + 0.1 * h.var(0) + 1e-5)
    layer = models.features(model, trained, X)["layer_1"]
    np.testing.assert_allclose(layer, np.maximum(normalised, 0), atol=1e-5)
    alone = model.apply(trained, X[:1])
    np.testing.assert_allclose(alone, model.apply(trained, X)[:1], atol=1e-6)


def test_dropout_needs_a_key_in_training_only():
    model, variables = _build(models.MLP((64,), 2, dropout_rate=0.5), X)
    with pytest.raises(InvalidRngError, match="dropout"):
        model.apply(variables, X, train=True)
    one, two = (
        model.apply(variables, X, train=True, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 2)
    )
    assert bool(jnp.any(one != two))
    plain: Any = models.MLP((64,), 2)
    evaluated = model.apply(variables, X)
    np.testing.assert_array_equal(evaluated, plain.apply(variables, X))


def test_equal_models_are_one_static_argument():
    traces = 0

    def outputs(model, variables, x):
        nonlocal traces
        traces += 1
        return model.apply(variables, x)

    jitted = jax.jit(outputs, static_argnums=0)
    for seed, widths in enumerate(([8, 4], (8, 4))):
        model = models.MLP(widths, 2, activation=jnp.tanh)
        jitted(model, model.init(jax.random.key(seed), X), X)
    assert traces == 1
    assert models.MLP((8,), 2) == models.MLP([8], 2)
    assert hash(models.CNN((8,), 2)) == hash(models.CNN([8], 2))
    assert models.MLP((8,), 2) != models.MLP((8,), 2, activation=jnp.tanh)


def test_apply_is_a_contract_function_under_jit_vmap_and_grad(mlp):
    model, variables = mlp
    outputs = model.apply(variables, X)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, X), outputs, atol=1e-6)
    one_by_one = jax.vmap(lambda x: model.apply(variables, x[None])[0])(X)
    np.testing.assert_allclose(one_by_one, outputs, atol=1e-6)
    gradient = jax.grad(lambda v: jnp.sum(model.apply(v, X)))(variables)
    np.testing.assert_allclose(gradient["params"]["output"]["bias"], jnp.full(3, 6.0))


def test_double_precision(x64):
    x = jnp.asarray(IMAGES, float)
    double = models.CNN((3,), 2, batch_norm=True, param_dtype=jnp.float64)
    model, variables = _build(double, x)
    assert {a.dtype.name for a in jax.tree.leaves(variables["params"])} == {"float64"}
    assert model.apply(variables, x).dtype == jnp.float64
    single, variables = _build(models.MLP((3,), 2), X)
    assert variables["params"]["output"]["kernel"].dtype == jnp.float32
    double = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    reference = single.apply(double, jnp.asarray(X, float))
    assert reference.dtype == jnp.float64
    np.testing.assert_allclose(single.apply(variables, X), reference, atol=2e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.MLP((8, 0), 2), "`widths` must be positive integers"),
        (lambda: models.MLP((8,), 0), "`num_outputs` must be positive integers"),
        (lambda: models.CNN((), 2), "`channels` must name at least one block"),
        (lambda: models.CNN((1.5,), 2), "`channels` must be positive integers"),  # type: ignore
        (lambda: models.MLP((8,), 2, parametrization="mup"), "`parametrization` must"),  # type: ignore
        (lambda: models.MLP((8,), 2, dropout_rate=1.0), "`dropout_rate` must be in"),
        (lambda: models.MLP((8,), 2, weight_std=0.0), "`weight_std` must be positive"),
        (lambda: models.MLP((8,), 2, bias_std=-1.0), "`bias_std` must be zero"),
        (
            lambda: models.MLP((8,), 2, bias_std=1.0, use_bias=False),
            "`bias_std` must be zero",
        ),
    ],
)
def test_bad_options_are_named(user_land, build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_images_are_named(user_land):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"`x` must be a batch of images"):
        models.CNN((4,), 2).init(key, IMAGES[..., 0])
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels for 5 blocks"):
        models.CNN((4,) * 5, 2).init(key, IMAGES)


NOTHING: Any = None


@pytest.mark.parametrize("size", [1e-3, 300.0])
def test_directions_in_half_precision(size):
    head = models.FixedClassifier(3, normalize=True)
    h = jnp.asarray([[1.0, 2, 3, 4], [4, -3, 2, 1], [0, 0, 0, 0]])
    expected = head.apply({}, h)
    found = head.apply({}, (size * h).astype(jnp.float16))
    np.testing.assert_allclose(found, expected, atol=5e-3)
    total: Any = lambda h: jnp.sum(jnp.asarray(head.apply({}, h)) ** 2)
    assert jnp.isfinite(jax.grad(total)(h)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.FixedClassifier(1), r"`num_outputs`.*at least 2, but was 1"),
        (lambda: models.FixedClassifier(3, scale=0.0), r"`scale` must be positive"),
        (lambda: models.FixedClassifier(3, seed=-1), r"`seed`.*at least 0, but was -1"),
        (
            lambda: models.FixedClassifier(3).apply({}, jnp.ones((5, 4), int)),
            r"`h`.*int32",
        ),
        (
            lambda: models.SkipConnection(
                models.MLP((4,), 3), layer="a", num_outputs=0
            ),
            "`num_out",
        ),
        (
            lambda: models.SkipConnection(NOTHING, layer="a", num_outputs=2),
            r"`model` must be a `models.MLP`",
        ),
    ],
)
def test_bad_heads_are_named(build, message, user_land):
    with pytest.raises(ValueError, match=message):
        build()
