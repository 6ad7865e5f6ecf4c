"""What has no infinite-width kernel is refused by name, with a reason and a way out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtheory import models
from jaxtheory.kernels import infinite_width

pytestmark = pytest.mark.usefixtures("user_land")


class Function(nn.Module):
    """A module that is a function, with an output layer."""

    function: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="output")(self.function(x))


def dense(x, name="hidden", **options):
    return nn.Dense(4, name=name, **options)(x)


def attention(x):
    return jnp.mean(nn.MultiHeadDotProductAttention(2, name="attention")(x), 1)


def tied(x):
    layer = nn.Dense(4, name="hidden")
    return layer(nn.relu(layer(x)))


def recurrent(x):
    return nn.RNN(nn.SimpleCell(4), name="cell")(x)[:, -1]


def max_pool(x):
    h = nn.relu(nn.Conv(4, (3, 3), name="hidden")(x))
    return nn.max_pool(h, (2, 2), (2, 2)).reshape(len(x), -1)


def pooled_activation(x):
    h = nn.relu(nn.Conv(4, (3, 3), name="hidden")(x))
    return jnp.mean(nn.relu(nn.avg_pool(h, (2, 2), (2, 2))), (1, 2))


def post_activation(x):
    h = nn.relu(dense(x))
    return nn.relu(h + dense(h, "branch"))


def centred_batch(x):
    h = dense(x)
    return nn.relu(h - jnp.mean(h, 0, keepdims=True))


def pooled_sum(x):
    h = nn.relu(nn.Dense(4, name="hidden")(x))
    return jnp.mean(h, 1) + h[:, 0]


def straight_through(x):
    @jax.custom_jvp
    def sign(x):
        return jnp.sign(x)

    sign.defjvp(lambda primals, tangents: (sign(*primals), tangents[0]))
    return sign(dense(x))


FLAT, TOKENS, IMAGES = (4,), (3, 4), (4, 4, 2)
REFUSED = {
    "max pooling": (max_pool, IMAGES, "pools by the maximum", "by the average"),
    "softmax": (lambda x: nn.softmax(dense(x)), FLAT, "softmax", "average"),
    "softmax attention": (attention, TOKENS, "attention'", "linear attention"),
    "tied weights": (tied, FLAT, "'hidden/kernel'", "parameters of its own"),
    "recurrence": (recurrent, TOKENS, "cell", "leading axis"),
    "batch statistics": (centred_batch, FLAT, "over examples", "nn.LayerNorm"),
    "batch of inputs": (
        lambda x: dense(x - jnp.mean(x, 0, keepdims=True)),
        FLAT,
        "combines different examples",
        "by itself",
    ),
    "activation of pooled": (
        pooled_activation,
        IMAGES,
        "is not Gaussian",
        "a layer with weights between",
    ),
    "pooled plus unpooled": (
        pooled_sum,
        TOKENS,
        "correlation is not followed",
        "weights of its own",
    ),
    "activation after the sum": (
        post_activation,
        FLAT,
        "several independent activations",
        "into the branch",
    ),
    "skip from the inputs": (
        lambda x: nn.relu(x + dense(x)),
        FLAT,
        "known features",
        "layer with weights",
    ),
    "weight normalisation": (
        lambda x: nn.WeightNorm(nn.Dense(4, name="hidden"))(x),
        FLAT,
        "'hidden/kernel'",
        "computes with a random parameter",
    ),
    "groups of channels": (
        lambda x: nn.Conv(4, (3,), feature_group_count=2, name="hidden")(dense(x, "a"))[
            :, 0
        ],
        TOKENS,
        "groups of channels",
        "feature_group_count=1",
    ),
    "stopped gradient": (
        lambda x: jax.lax.stop_gradient(nn.relu(dense(x))),
        FLAT,
        "stops a gradient",
        "without",
    ),
    "its own derivative": (
        straight_through,
        FLAT,
        "derivative of its own",
        "without",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_limit_is_refused(name):
    function, shape, why, way_out = REFUSED[name]
    x = jnp.ones((2, *shape))
    with pytest.raises(ValueError, match="`module` has no infinite-width") as caught:
        infinite_width(Function(function), x, weight_std=1.0, first_layer="gaussian")
    message = str(caught.value)
    assert "layer 'Function" in message
    assert why in message
    assert way_out in message


def test_a_layer_that_starts_at_zero_is_refused():
    zeros = nn.initializers.zeros
    model = Function(lambda x: nn.relu(dense(x, kernel_init=zeros)))
    with pytest.raises(
        ValueError, match=r"'hidden/kernel' starts at .* 0.0.*`weight_std`"
    ):
        infinite_width(model, X)
    found = infinite_width(model, X, weight_std=1.0)
    assert found.ntk[0, 0] > 0


def test_batch_norm_is_refused_by_name():
    model = models.MLP((4,), num_outputs=2, batch_norm=True)
    with pytest.raises(ValueError, match=r"BatchNorm .*'layer_1_norm'.*LayerNorm"):
        infinite_width(model, jnp.ones((2, 3)))


def test_a_module_with_a_list_in_it_compares_by_identity():
    model = nn.Sequential([nn.Dense(4, name="hidden"), nn.relu, nn.Dense(2)])
    with pytest.raises(TypeError):
        hash(model)
    found = infinite_width(model, X, key=jax.random.key(0), weight_std=1.0)
    # |x|^2 / d = 1: NNGP 1/2, NTK twice that.
    np.testing.assert_allclose(found.nngp, np.full((3, 3), 0.5), rtol=1e-5)
    np.testing.assert_allclose(found.ntk, np.ones((3, 3)), rtol=1e-5)


X = np.ones((3, 4), np.float32)
MODEL = models.MLP((4,), num_outputs=2)
BAD = {
    "class": ({"module": models.MLP}, "`module` must be .* class MLP"),
    "no module": ({"module": nn.relu}, "`module` must be a Linen module, or a pair"),
    "scalar": ({"x1": 1.0}, "`x1` must have examples"),
    "no features": ({"x1": X[:, 0]}, r"`x1` must have a feature axis .*\(3,\)"),
    "other inputs": ({"x2": X[:, :2]}, r"`x2` must have the shape .*\(3, 2\)"),
    "batch_size": ({"batch_size": 0}, "`batch_size` must be"),
    "num_draws": ({"num_draws": 2}, "`num_draws` must be an integer of at least 64"),
    "first_layer": ({"first_layer": "no"}, "`first_layer` must be one of .*'no'"),
    "negative": ({"weight_std": -1.0}, "`weight_std` must be a positive number"),
    "zero weight": ({"weight_std": 0.0}, "`weight_std` must be a positive number"),
    "bias": ({"bias_std": -1.0}, "`bias_std` must be a number that is not negative"),
    "text": ({"weight_std": "x"}, "`weight_std` must be .* a str"),
    "path": ({"weight_std": {"layer_9": 1.0}}, "'layer_9' is none. They are .*layer_1"),
    "value": ({"bias_std": {"layer_1": "x"}}, r"`bias_std\['layer_1'\]` must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    options, message = BAD[name]
    options = {"module": MODEL, "x1": X, **options}
    with pytest.raises(ValueError, match=message):
        infinite_width(**options)


def outputs(function):
    """A pair of functions with the parameters of one layer."""
    init = lambda key, x: {"w": jax.random.normal(key, (4, 2))}
    return init, lambda params, x: function(x @ params["w"])


OUTPUTS = {
    "several": (lambda f: (f, f), "must return one array of outputs"),
    "positions": (lambda f: f, "have positions of sizes"),
    "known": (lambda f: jnp.mean(f**2, -1, keepdims=True), "known from the inputs"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_must_be_one_layer(name):
    function, message = OUTPUTS[name]
    x = np.ones((3, 5, 4) if name == "positions" else (3, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        infinite_width(outputs(function), x)


def biased(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype)


INITIALISERS = {
    "mean": (biased, "mean zero.*'hidden/kernel'"),
    "tied": (nn.initializers.orthogonal(), "'hidden/kernel'.*not independent"),
    "skewed": (
        lambda *args: jax.random.exponential(*args) - 1,
        "'hidden/kernel'.*skewed",
    ),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_initialisers_that_are_not_understood(name):
    initialiser, message = INITIALISERS[name]
    model = Function(lambda x: nn.relu(dense(x, kernel_init=initialiser)))
    with pytest.raises(ValueError, match=message):
        infinite_width(model, X)


def test_non_finite_kernels_are_counted():
    x = X.copy()
    x[1, 0] = np.nan
    found = infinite_width(MODEL, x, weight_std=1.0)
    # Row and column of one example, in both kernels.
    assert found.num_nonfinite == 2 * 5
    assert np.isfinite(found.ntk[0, 0])
